"""Every command the README and docs/ show is composed and checked, the scripts parse, and the links lead somewhere."""

import re
import shlex
import subprocess
from pathlib import Path

import hydra
import pytest

from vdm import config
from vdm.launch import CONF

ROOT = Path(__file__).resolve().parents[1]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
SCRIPTS = sorted([*(ROOT / "shellscripts").rglob("*.sh"), *(ROOT / "shellscripts").rglob("*.sbatch")])
OFFICIAL = sorted((ROOT / "shellscripts").glob("run_*.sh"))
PRIMARY = {
    "train.py": "train", "evaluate.py": "evaluate", "sample.py": "sample", "data.prepare": "prepare",
    "data.precompute": "precompute", "vdm.export": "export", "vdm.merge": "merge", "dysen.plan": "plan",
    "dysen.parsing": "parsing",
    "vdm.evaluation.report": "report",
}  # fmt: skip


def commands():
    for page in PAGES:
        for language, block in re.findall(r"^```(\w*)\n(.*?)^```$", page.read_text(), flags=re.S | re.M):
            if language not in ("", "bash", "sh"):
                continue
            for line in block.replace("\\\n", " ").splitlines():
                words = shlex.split(line, comments=True)
                if words and words[0] in ("python", "torchrun", "bash", "pip", "source"):
                    yield page.name, words


COMMANDS = list(commands())


def test_there_are_commands():
    assert sum(page == "README.md" for page, _ in COMMANDS) >= 10


@pytest.mark.parametrize(("page", "words"), COMMANDS, ids=[" ".join(words)[:90] for _, words in COMMANDS])
def test_command(page, words):
    entry = next((word for word in words if word in PRIMARY), None)
    if entry is None:
        scripts = [word for word in words if word.endswith(".sh")]
        known = words[0] in ("pip", "source") or words[:3] == ["python", "-m", "venv"] or words[1:3] == ["-m", "pip"]
        module = "-m" in words and words[words.index("-m") + 1]
        script = next((word for word in words if word.endswith(".py")), None)
        assert known or scripts or module or script, f"{page}: nobody knows this command"
        assert all((ROOT / name).exists() for name in scripts)
        assert script is None or (ROOT / script).exists()
        return
    primary, rest = PRIMARY[entry], words[words.index(entry) + 1 :]
    if rest[:1] == ["compare"]:  # takes results, no settings
        assert len(rest) >= 3
        return
    if rest[:1] == ["study"]:  # a command of its own: make or count
        primary, rest = f"study_{rest[1]}", rest[2:]
    overrides = [word for word in rest if not word.startswith("-")]
    overrides = [word for word in overrides if "<" not in word and "..." not in word]
    if {"--cfg", "--package"} & set(words):
        overrides = [word for word in overrides if "=" in word]
    sweep = [re.sub(r"=([^\[{,]+),.*", r"=\1", word) for word in overrides]  # the first point of a sweep
    with hydra.initialize_config_dir(str(CONF), version_base="1.3"):
        resolved = config.resolve(hydra.compose(primary, overrides=sweep))
    for name in ("data", "devices", "packages", "model", "prompts", "files"):  # ask for shards, GPUs, runs or files
        resolved.get("checks", {}).pop(name, None)
    config.check_resolved(resolved)


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda p: p.name)
def test_scripts_parse(script):
    subprocess.run(["bash", "-n", str(script)], check=True)


@pytest.mark.parametrize("script", OFFICIAL, ids=lambda p: p.name)
def test_official_script_says_how_it_is_used(script):
    command = ["bash", str(script)]
    environment = {"PYTHON": "/bin/true", "PATH": "/usr/bin:/bin"}
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False, env=environment)
    assert done.returncode == 2
    assert "usage" in done.stderr


@pytest.mark.parametrize("script", OFFICIAL, ids=lambda p: p.name)
def test_official_script_gives_a_command_that_composes(script):
    environment = {"PYTHON": "/bin/echo", "PATH": "/usr/bin:/bin"}
    done = subprocess.run(
        ["bash", str(script), "it"], cwd=ROOT, capture_output=True, text=True, check=True, env=environment
    )
    entry, *overrides = done.stdout.split()
    with hydra.initialize_config_dir(str(CONF), version_base="1.3"):
        hydra.compose(PRIMARY[entry], overrides=overrides)
    assert len(script.read_text().splitlines()) <= 20


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.name)
def test_links_lead_somewhere(page):
    for target in re.findall(r"\]\(([^)#]+?)(?:#[^)]*)?\)", page.read_text()):
        if not target.startswith("http"):
            assert (page.parent / target).exists(), f"{page.name} links to {target}"
