"""The rules of the house, read from the source: who may import whom, how long a file may be, what nobody writes."""

import ast
import importlib.metadata
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PACKAGES = ("vdm", "data", "dysen")
FILES = sorted(p for name in PACKAGES for p in (ROOT / name).rglob("*.py"))
SCRIPTS = sorted(ROOT.glob("*.py"))

FOUNDATION = {"types", "video", "errors", "bounds", "phases"}
# Each part of vdm may import these parts of vdm (and itself).
PARTS = ("autoencoder", "backbones", "conditions", "diffusion", "samplers", "layers")
MAY_IMPORT = {
    **{part: FOUNDATION | {"layers", "checkpoint"} for part in PARTS},
    "evaluation": FOUNDATION | {"layers", "checkpoint", "runs"},
    "stages": FOUNDATION
    | {
        "autoencoder",
        "backbones",
        "conditions",
        "diffusion",
        "samplers",
        "layers",
        "checkpoint",
        "adapters",
        "strategies",
    },
    "callbacks": FOUNDATION | {"checkpoint", "ema", "runs", "slurm", "stages", "strategies", "watching"},
    "strategies": {"bounds", "errors", "launch", "slurm", "training"},
    "watching": set(),
    "preflight": FOUNDATION | {"ema", "stages", "watching"},
    "types": set(),
    "video": {"errors"},
    "errors": set(),
    "faults": {"errors"},
    "devices": {"errors"},
    "bounds": set(),
    "phases": set(),
    "secrets": set(),
    "compat": set(),
    "signature": set(),
    "checks": {"errors"},
    "adapters": {"errors"},
    "checkpoint": {"adapters", "errors"},
    "ema": {"errors"},
    "config": {"bounds", "errors", "signature"},
    "runs": {"errors", "secrets"},
    "slurm": {"bounds", "config", "errors", "runs", "sweeps"},
    "sweeps": {"errors", "runs", "secrets", "slurm"},
    "wandb_run": set(),
    "launch": {"config", "errors", "lineage", "secrets", "slurm", "sweeps"},
    "lineage": {"autoencoder", "backbones", "errors", "runs"},
    "merge": {"adapters", "checkpoint", "errors", "launch", "restore", "runs"},
    "metrics_file": {"runs"},
    "restore": {"checkpoint", "config", "errors", "runs"},
}
LIGHT = (
    "vdm/launch.py",
    "vdm/config.py",
    "vdm/signature.py",
    "vdm/secrets.py",
    "vdm/runs/__init__.py",
    "vdm/runs/__main__.py",
    "vdm/runs/listing.py",
    "vdm/lineage.py",
    "vdm/autoencoder/published.py",
    "vdm/backbones/published.py",
    "vdm/export/request.py",
    "vdm/checks.py",
    "vdm/errors.py",
    "vdm/merge.py",
    "vdm/restore.py",
    "vdm/sampling/request.py",
    "vdm/slurm/after.py",
    "vdm/slurm/job.py",
    "vdm/slurm/launcher.py",
    "vdm/strategies/launching.py",
    "vdm/slurm/signals.py",
    "vdm/sweeps.py",
    "train.py",
    "sample.py",
)
# Commands: they come in through vdm.launch, and may ask one composer for networks.
ENTRY_POINTS = {
    "data/prepare.py": {"launch", "config"},
    "data/precompute.py": {"launch", "precomputing"},
    "vdm/evaluation/report/__main__.py": {"launch", "sampling"},
    "vdm/evaluation/study/command.py": {"launch", "sampling"},
}


def imports(path: Path, *, top_only: bool = False) -> set[str]:
    tree = ast.parse(path.read_text(encoding="utf-8"))
    nodes = tree.body if top_only else ast.walk(tree)
    found = set()
    for node in nodes:
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            found |= {node.module} | {f"{node.module}.{alias.name}" for alias in node.names}
    return found


def part_of(path: Path) -> str:
    relative = path.relative_to(ROOT / "vdm")
    return relative.parts[0].removesuffix(".py")


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(ROOT)))
def test_imports_point_one_way(path):
    own = {name for name in imports(path) if name.split(".")[0] in PACKAGES}
    package = path.relative_to(ROOT).parts[0]
    if package == "vdm":
        assert not [n for n in own if not n.startswith("vdm")], "vdm knows neither data nor dysen"
        part = part_of(path)
        if part in ("__init__", "training", "evaluating", "sampling", "precomputing", "export"):
            return
        allowed = MAY_IMPORT[part] | {part} | ENTRY_POINTS.get(str(path.relative_to(ROOT)), set())
        used = {n.split(".")[1] for n in own if "." in n}
        assert used <= allowed, f"{part} may not import {sorted(used - allowed)}"
    if package == "data":
        outside = {n.split(".")[1] for n in own if n.startswith("vdm.")}
        allowed = FOUNDATION | ENTRY_POINTS.get(str(path.relative_to(ROOT)), set())
        assert outside <= allowed, f"data may not import vdm.{sorted(outside - allowed)}"
        assert not [n for n in own if n.startswith("dysen")]
    if package == "dysen":
        assert not [n for n in own if n.startswith("data")]


@pytest.mark.parametrize("path", SCRIPTS, ids=lambda p: p.name)
def test_entry_points_name_no_class(path):
    assert len(path.read_text().splitlines()) < 80
    ours = {n for n in imports(path) if n.split(".")[0] in PACKAGES}
    assert all(
        n.split(".")[1] in ("launch", "training", "sampling", "evaluating", "slurm", "strategies")
        for n in ours
        if "." in n
    )


@pytest.mark.parametrize("name", LIGHT)
def test_light_modules_stay_light(name):
    heavy = {"torch", "pytorch_lightning", "transformers", "numpy", "av"}
    assert not {n.split(".")[0] for n in imports(ROOT / name, top_only=True)} & heavy


@pytest.mark.parametrize("path", FILES + SCRIPTS, ids=lambda p: str(p.relative_to(ROOT)))
def test_form(path):
    text = path.read_text(encoding="utf-8")
    tree = ast.parse(text)
    assert len(text.splitlines()) <= 500, "one file, one idea: at most 500 lines"
    assert ast.get_docstring(tree), "a module says in a paragraph what it is"
    forbidden = ("util", "helper", "misc", "tmp", "wrapper")
    assert not any(word in path.stem for word in forbidden)
    for node in ast.walk(tree):
        if isinstance(node, ast.ExceptHandler):
            assert node.type is not None, f"line {node.lineno}: bare except"
        command = "__main__" in text
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "print":
            assert command, f"line {node.lineno}: print in library code"
        if isinstance(node, ast.FunctionDef):
            length = node.end_lineno - node.lineno
            assert length <= 80, f"{node.name} has {length} lines"


def test_no_installed_distribution_shares_our_names():
    ours = {"vdm", "data", "dysen", "train", "sample", "evaluate", "conf"}
    clashes = {
        f"{distribution.metadata['Name']}: {top}"
        for distribution in importlib.metadata.distributions()
        for top in (distribution.read_text("top_level.txt") or "").split()
        if top in ours and distribution.metadata["Name"] != "dysen-vdm"
    }
    assert not clashes


def test_every_package_of_the_tree_is_installed():
    declared = (ROOT / "pyproject.toml").read_text()
    assert all(f'"{name}*"' in declared for name in PACKAGES if (ROOT / name).is_dir())


def test_nothing_names_a_machine():
    suspicious = ("/work/", "/home/", "/mnt/", "/root/", "pypi" + ".org", "debian" + ".org", "npmjs" + ".org")
    names = ("*.py", "*.yaml", "*.sh", "*.md", "*.toml", "*.txt")
    skipped = (".venv", "outputs", "datasets", ".git")
    for pattern in names:
        for path in ROOT.rglob(pattern):
            relative = path.relative_to(ROOT)
            if relative.parts[0] in skipped or relative.name == "test_architecture.py":
                continue
            text = path.read_text(encoding="utf-8")
            assert not [s for s in suspicious if s in text], f"{relative} names a machine or host"
