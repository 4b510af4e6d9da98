"""Every yaml composes, names code that exists, and gives it settings it takes."""

import importlib
import inspect
from pathlib import Path

import hydra
import pytest
from omegaconf import OmegaConf

from vdm import config
from vdm.launch import CONF

GROUPS = sorted(p.name for p in CONF.iterdir() if p.is_dir() and p.name not in ("hydra", "experiment", "debug"))
OF_THE_MACHINE = (
    "vdm.checks.devices_exist",
    "vdm.conditions.presence.encoders_are_there",
    "vdm.lineage.plans_are_there",
    "vdm.strategies.checks.packages_are_there",
)
ROOTS = {path.stem: path for path in CONF.glob("*.yaml")}


def choices(group):
    return sorted(p.stem for p in (CONF / group).glob("*.yaml") if not p.stem.startswith("_"))


def compose(*overrides, root="train"):
    with hydra.initialize_config_dir(str(CONF), version_base="1.3"):
        return hydra.compose(root, overrides=list(overrides))


def targets(node, key=""):
    if isinstance(node, dict):
        if "_target_" in node:
            yield key, node
        for name, value in node.items():
            yield from targets(value, f"{key}.{name}" if key else name)
    elif isinstance(node, list):
        for value in node:
            yield from targets(value, key)


def in_train(group):
    defaults = OmegaConf.to_container(OmegaConf.load(ROOTS["train"]), resolve=False)["defaults"]
    return group in {name for entry in defaults if isinstance(entry, dict) for name in entry}


CHOICES = [(group, choice) for group in GROUPS for choice in choices(group) if in_train(group)]
OVERLAYS = [(group, choice) for group in ("experiment", "debug") for choice in choices(group)]


@pytest.mark.parametrize(("group", "choice"), CHOICES + OVERLAYS, ids=lambda x: x)
def test_choice_composes_and_passes_its_own_checks(group, choice, monkeypatch):
    resolved = config.resolve(compose(f"{group}={choice}"))
    for _name, node in resolved["checks"].items():
        if node is None:
            continue  # a stage that has no use for it
        if node["_target_"].startswith("data.") or node["_target_"] in OF_THE_MACHINE:
            node["_target_"] = "builtins.dict"  # asks for shards, GPUs or files, tested where there are some
    monkeypatch.setattr(config, "ALLOWED_TARGETS", (*config.ALLOWED_TARGETS, "builtins."))
    config.check_resolved(resolved)


@pytest.mark.parametrize(("group", "choice"), CHOICES, ids=lambda x: x)
def test_every_target_is_real_and_takes_its_settings(group, choice):
    resolved = config.resolve(compose(f"{group}={choice}"))
    for key, node in targets({group: resolved[group]}):
        module, _, name = node["_target_"].rpartition(".")
        called = getattr(importlib.import_module(module), name)
        given = {k: v for k, v in node.items() if k not in config.HYDRA_KEYS}
        parameters = inspect.signature(called)
        bind = parameters.bind_partial if node.get("_partial_") else parameters.bind
        missing_place = {"save_dir": "."} if "save_dir" in parameters.parameters else {}  # training adds it
        assert bind(**{**missing_place, **given}), key


@pytest.mark.parametrize("choice", choices("experiment"))
def test_experiments_only_override(choice):
    """A misspelt top-level key in an experiment would pass in silence."""
    with_experiment = compose(f"experiment={choice}")
    conditions = ",".join(with_experiment.get("condition") or {})
    plain = compose(f"stage={with_experiment.stage.name}", *([f"condition=[{conditions}]"] if conditions else []))
    assert set(with_experiment) <= set(plain)


def test_one_default_one_home():
    """What a yaml sets has no default in the signature of our own code."""
    doubled = []
    for group, choice in CHOICES:
        for key, node in targets({group: config.resolve(compose(f"{group}={choice}"))[group]}):
            if not node["_target_"].startswith(("vdm.", "data.")):
                continue
            module, _, name = node["_target_"].rpartition(".")
            called = getattr(importlib.import_module(module), name)
            written = called.__init__ if inspect.isclass(called) else called
            if not getattr(written, "__module__", "").startswith(("vdm.", "data.")):
                continue  # inherited from somebody else
            parameters = inspect.signature(called).parameters
            doubled += [
                f"{key}.{k}" for k in node if k in parameters and parameters[k].default is not inspect.Parameter.empty
            ]
    assert not sorted(set(doubled))


def test_folders_of_conf_are_groups_someone_uses():
    for folder in CONF.iterdir():
        if folder.is_dir():
            assert list(folder.rglob("*.yaml")), f"{Path(folder).name} is empty"
