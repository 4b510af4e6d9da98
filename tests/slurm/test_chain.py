"""The commands of shellscripts/slurm/chain.sh: each composes, and names runs that one before it makes."""

import subprocess
from pathlib import Path

import hydra
import pytest

from vdm import config
from vdm.launch import CONF

ROOT = Path(__file__).resolve().parents[2]
PRIMARY = {"train.py": "train", "dysen.plan": "plan", "evaluate.py": "evaluate"}


def chain(*words, **environment):
    """Stage: program, overrides."""
    environment = {"PATH": "/usr/bin:/bin", "PYTHON": "/bin/echo", **environment}
    command = ["bash", "shellscripts/slurm/chain.sh", *words]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    stages = [line.removeprefix("== ") for line in lines[::2]]
    commands = [line.removeprefix("-m ").split() for line in lines[1::2]]
    assert all(words.pop(1) == "-m" for words in commands)  # Hydra wants it before the overrides
    return {stage: (words[0], words[1:]) for stage, words in zip(stages, commands, strict=True)}


def after(overrides):
    (text,) = [word.partition("=")[2] for word in overrides if word.startswith("hydra.launcher.after=")]
    return set(filter(None, text.strip("[]").split(",")))


def test_all_stages_each_after_what_it_needs():
    stages = chain("data=shapes")
    names = [f"chain-{stage}" for stage in stages]
    assert list(stages) == ["autoencoder", "vdm", "language", "planner", "plans", "dysen", "finetune", "evaluation"]
    for position, (_, overrides) in enumerate(stages.values()):
        named = {word.partition("=")[2] for word in overrides} & set(names) - {names[position]}
        assert named | after(overrides) <= set(names[:position])
    assert after(stages["dysen"][1]) == {"chain-vdm", "chain-plans"}


@pytest.mark.parametrize(
    "stage", ["autoencoder", "vdm", "language", "planner", "plans", "dysen", "finetune", "evaluation"]
)
def test_commands_compose(stage):
    program, overrides = chain("data=webvid", "finetune_data=ucf101", "protocol=ucf101", COMMON="paths.data_root=/d")[
        stage
    ]
    with hydra.initialize_config_dir(str(CONF), version_base="1.3"):
        resolved = config.resolve(hydra.compose(PRIMARY[program], overrides=overrides))
    resolved.pop("checks", None)
    config.check_resolved(resolved)


def test_settings_of_one_stage_and_of_all():
    stages = chain("trainer.max_steps=9", VDM="a=[1,*] b=2", LAUNCHER="hydra.launcher.gpus=0", NAME="it")
    for stage, (program, overrides) in stages.items():
        assert ("b=2" in overrides) == ("a=[1,*]" in overrides) == (stage == "vdm")
        assert "hydra.launcher.gpus=0" in overrides
        assert f"hydra.launcher.name=it-{stage}" in overrides
        reads_clips = program == "train.py" and stage not in ("language", "planner")
        assert ("trainer.max_steps=9" in overrides) == reads_clips


def test_some_stages():
    stages = chain(FROM="plans", SKIP="language planner")
    assert list(stages) == ["plans", "dysen", "finetune", "evaluation"]
    assert after(stages["plans"][1]) == set()
    assert "llm=rules" in stages["plans"][1]
    assert after(chain(FROM="vdm")["vdm"][1]) == {"chain-autoencoder"}  # complete, or submitted before


@pytest.mark.parametrize(("words", "environment"), [(["shapes"], {}), ([], {"FROM": "vmd"}), ([], {"SKIP": "x"})])
def test_wrong_words(words, environment):
    environment = {"PATH": "/usr/bin:/bin", "PYTHON": "/bin/echo", **environment}
    command = ["bash", "shellscripts/slurm/chain.sh", *words]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert done.stderr
