"""The door every command comes in through: compose with Hydra, check, run, and turn user errors into one message.

Imports nothing heavy, so that `--help` and a misspelt key answer at once. A user error ends with exit code 2 and no
traceback; anything else is a defect and keeps its traceback.
"""

from __future__ import annotations

import functools
import logging
import os
import re
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import hydra
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from hydra.errors import (
    ConfigCompositionException,
    HydraException,
    InstantiationException,
    MissingConfigException,
    OverrideParseException,
)
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf, open_dict
from omegaconf.errors import OmegaConfBaseException

from vdm import config, lineage, secrets, sweeps
from vdm.errors import ConfigError, UserError, suggest
from vdm.slurm import job

CONF = Path(__file__).resolve().parents[1] / "conf"
USER_ERROR = 2


def launch(task: Callable[[DictConfig], Any], config_name: str) -> None:
    """Run `task` on the configuration composed from `conf/<config_name>.yaml` and the command line."""
    os.environ["HYDRA_FULL_ERROR"] = "1"  # Hydra otherwise prints and exits by itself
    # Threads that wait for each other spin, and where the cores are shared that made a training step ten times slower.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    log_to_stderr()
    secrets.say_no_secrets()
    sys.argv[1:] = secrets.put_away(sys.argv[1:])
    job.name_processes()

    failed = False
    try:
        _check_groups(sys.argv[1:])
    except UserError as error:
        _say(error)
        sys.exit(USER_ERROR)

    @functools.wraps(task)
    def checked(cfg: DictConfig) -> Any:
        nonlocal failed
        try:
            _check_launcher()
            sweeps.pin(cfg)
            lineage.adopt(cfg)
            config.check(cfg, _top_level(config_name))
            with plain_errors():
                return task(cfg)
        except UserError as error:
            _say(error)  # here, because Hydra would add a line of its own, and a sweep goes on with the next job
            sweeps.failed(error)
            failed = True
            return None

    checked.look = functools.partial(
        _look, config_name=config_name
    )  # for a launcher that runs jobs elsewhere, and later
    try:
        with job.coming_back():
            hydra.main(version_base="1.3", config_path=str(CONF), config_name=config_name)(checked)()
    except UserError as error:
        _say(error)
        failed = True
    except (HydraException, OmegaConfBaseException) as error:
        _say(explain(error, config_name))
        failed = True
    if failed:
        sys.exit(USER_ERROR)


def _check_launcher() -> None:
    chosen = HydraConfig.get().runtime.choices.get("hydra/launcher")
    if HydraConfig.get().mode == RunMode.RUN and chosen not in (None, "basic"):
        remedy = "add -m, also for a single job: python train.py -m ..."
        raise ConfigError("a launcher starts sweeps, and this is none", key="hydra/launcher", got=chosen, remedy=remedy)


def _look(cfg: DictConfig, *, config_name: str, waits: bool) -> None:
    """The checks of a job that another machine will run; one that `waits` for others cannot be held against files yet."""
    if not waits:
        lineage.adopt(cfg)
    with open_dict(cfg):
        kept = {} if waits else {name: node for name, node in (cfg.get("checks") or {}).items() if name != "devices"}
        cfg.checks = kept
    config.check(cfg, {*_top_level(config_name), "checks"})


@contextmanager
def plain_errors() -> Iterator[None]:
    """What constructors say as they say it, without Hydra's words around it."""
    try:
        yield
    except InstantiationException as error:
        if isinstance(error.__cause__, UserError):
            raise error.__cause__ from None
        raise


def _top_level(config_name: str) -> set[str]:
    """The keys and groups that the primary configuration has."""
    primary = OmegaConf.to_container(OmegaConf.load(CONF / f"{config_name}.yaml"), resolve=False)
    groups = {
        name.removeprefix("override ") for entry in primary["defaults"] if isinstance(entry, dict) for name in entry
    }
    return {name for name in {*primary, *groups} if "/" not in name} - {"defaults"}


def _say(error: UserError) -> None:
    """Once, not once a rank."""
    if os.environ.get("RANK", "0") == "0" and os.environ.get("SLURM_PROCID", "0") == "0":
        sys.stderr.write(secrets.redact(f"{type(error).__name__}: {error}\n"))
        sys.stderr.flush()


def log_to_stderr(level: int = logging.INFO) -> None:
    handler = logging.StreamHandler()
    plain = logging.Formatter("%(asctime)s %(levelname).1s %(message)s", datefmt="%H:%M:%S")
    handler.setFormatter(secrets.Redacting(plain))
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(level)
    for noisy in ("fsspec", "lightning_fabric", "pytorch_lightning"):
        logging.getLogger(noisy).setLevel(logging.WARNING)


def explain(error: Exception, config_name: str) -> UserError:
    """Hydra's and OmegaConf's errors in our form: what, key, got, allowed, remedy."""
    if isinstance(error, MissingConfigException):
        return _missing_choice(error, config_name)
    if isinstance(error, OverrideParseException):
        remedy = "write key=value; quote values that hold spaces, commas, = or brackets: 'key=\"a, b\"'"
        return ConfigError(
            "this override cannot be read", key=error.override.split("=")[0], got=error.override, remedy=remedy
        )
    if isinstance(error, ConfigCompositionException):
        return _bad_override(error, config_name)
    cause = error.__cause__ if error.__cause__ is not None else error
    if isinstance(cause, UserError):  # of a constructor, which says more than Hydra's words around it
        return cause
    return ConfigError(str(cause).splitlines()[0], key=str(getattr(cause, "full_key", "") or ""))


def _missing_choice(error: MissingConfigException, config_name: str) -> ConfigError:
    path = error.missing_cfg_file or ""
    group, _, choice = path.rpartition("/")
    found = error.options or [file.stem for file in sorted((CONF / group).glob("*.yaml"))]  # none are told of a list
    options = [name for name in found if not name.startswith("_")]
    if not group:
        return ConfigError("no such configuration", key="--config-name", got=path, allowed=options)
    close = suggest(choice, options)
    return ConfigError(
        f"there is no {group} of this name",
        key=group,
        got=choice,
        allowed=options or "nothing: the group is empty",
        remedy=close or (f"choose one: {group}={options[0]}" if options else f"add conf/{path}.yaml"),
    )


def _check_groups(words: list[str]) -> None:
    """stage.tuning=lora would put a word in the place of what the file stage/tuning/lora.yaml says. `_base` is no choice."""
    for word in words:
        key, _, choice = word.partition("=")
        folder = CONF.joinpath(*key.split("."))
        if choice.startswith("_") and (CONF / key / f"{choice}.yaml").exists():
            options = [file.stem for file in sorted((CONF / key).glob("[!_]*.yaml"))]
            raise ConfigError("this is a part of other files", key=key, got=choice, allowed=options)
        if "." in key and folder.is_dir() and (folder / f"{choice}.yaml").exists():
            group = key.replace(".", "/")
            raise ConfigError("this is a group of files", key=key, got=choice, remedy=f"write {group}={choice}")


def _bad_override(error: ConfigCompositionException, config_name: str) -> ConfigError:
    cause = error.__cause__
    text = str(error)
    if match := re.search(r"Ambiguous value for argument '([^'\n]*)'", text):
        key, _, several = match[1].partition("=")
        remedy = f"{key}=[{several}] for all of them at once, -m for one run of each, quotes for a text: '{key}=\"{several}\"'"
        return ConfigError("several values for one key", key=key, got=match[1], remedy=remedy)
    match = re.search(r"override '?([^'\s]+?)'?\.?\s", text + " ") or re.search(r"group(?: override)? '([^']+)'", text)
    key = str(getattr(cause, "full_key", None) or (match.group(1) if match else ""))
    key = key.split("=")[0].split("@")[0].lstrip("+~")
    given = next((a for a in sys.argv[1:] if a.lstrip("+~").split("=")[0].split("@")[0] == key), None)
    node = _choices_alone(key, config_name)
    known, origin = _known_beside(key, node)
    name = key.rpartition(".")[2]
    if origin != key:
        return ConfigError("this part is written elsewhere", key=key, got=given, remedy=f"set {origin}=<value>")
    places = _places_of(_written(key), node)
    elsewhere = f"write {places[0]}=<value>" if places else ""
    if known is not None and name not in known:
        parent = key.rpartition(".")[0]
        return ConfigError(
            f"there is no setting {name!r}" + (f" in {parent!r}" if parent else ""),
            key=key,
            got=given or name,
            allowed=known,
            remedy=elsewhere or suggest(name, known) or "check the name with --cfg job",
        )
    if elsewhere:
        return ConfigError("this setting stands elsewhere", key=_written(key), remedy=elsewhere)
    reason = str(cause).splitlines()[0] if cause is not None else text.splitlines()[0]
    return ConfigError(reason, key=key, got=given, remedy="see the composed configuration with --cfg job")


def _choices_alone(key: str, config_name: str) -> DictConfig | None:
    """The configuration without the bad override of `key`."""
    choices = [a for a in sys.argv[1:] if re.fullmatch(r"[a-z_/]+=[\w,\[\]]+", a) and (CONF / a.split("=")[0]).is_dir()]
    GlobalHydra.instance().clear()
    try:
        with hydra.initialize_config_dir(str(CONF), version_base="1.3"):
            return hydra.compose(config_name, overrides=choices, return_hydra_config=key.startswith("hydra."))
    except (HydraException, OmegaConfBaseException):
        return None


def _written(key: str) -> str:
    """What the command names where a part of it is told: sampler.num_steps for sampler."""
    words = (word.lstrip("+~").split("=")[0] for word in sys.argv[1:])
    return next((word for word in words if word.startswith(f"{key}.")), key)


def _places_of(key: str, node: DictConfig | None) -> list[str]:
    """Where a key stands farther down: sampler.num_steps as protocol.sampler.num_steps."""

    def below(node: Any, path: str) -> Iterator[str]:
        if OmegaConf.is_dict(node) and not (node._is_none() or node._is_missing() or node._is_interpolation()):
            for name in node:
                here, value = f"{path}{name}", node._get_node(name)
                if here.endswith(f".{key}") and not value._is_interpolation():
                    yield here
                yield from below(value, f"{here}.")

    return [place for place in below(node, "") if not place.startswith("checks.")]


def _known_beside(key: str, node: DictConfig | None) -> tuple[list[str] | None, str]:
    """The names beside a key in the configuration without the bad override, and the key that its value comes from."""
    if node is None:
        return None, key
    origin = config.key_of_origin(node, key)
    if origin != key:
        return None, origin
    for part in key.split(".")[:-1]:
        if not OmegaConf.is_dict(node) or part not in node:
            return None, key
        node = node._get_node(part)
    groups = [folder.name for folder in CONF.iterdir() if folder.is_dir()] if "." not in key else []
    return (sorted({*map(str, node.keys()), *groups}) if OmegaConf.is_dict(node) else None), key
