"""A run that goes on is the one that was begun: what has changed since is refused, or said."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException
from safetensors import safe_open
from torch import nn
from yaml import YAMLError

from vdm.errors import ConfigError, RunError
from vdm.runs import Run, deciding
from vdm.secrets import redact

log = logging.getLogger(__name__)

ANOTHER = (
    "give the new one a name of its own with run.id=<name>, or continue this one with the settings it has (config.yaml)"
)
NAMED = 6  # changed settings in a warning


def written(settings: Mapping[str, Any]) -> str:
    """The text of config.yaml."""
    return redact(OmegaConf.to_yaml(OmegaConf.create({k: v for k, v in settings.items() if k != "checks"})))


def check_goes_on(run: Run, settings: Mapping[str, Any], *, leader: bool) -> None:
    """Before anything is read or written. Settings that the run did not have when it was begun are no change."""
    begun, stage = run.info.get("stage"), settings["stage"]["name"]
    if begun is not None and begun != stage:
        raise ConfigError("this run is of another stage", key="run.id", got=f"stage={stage}, for {run.name} of stage={begun}",
                          remedy=ANOTHER)  # fmt: skip
    changed = changes(run, settings)
    goals = [change for change in changed if change.startswith("objective.")]
    if goals and run.checkpoints():
        raise ConfigError("this run was begun with another objective", key="objective", got="; ".join(goals[:NAMED]),
                          remedy=ANOTHER)  # fmt: skip
    if changed and run.checkpoints() and leader:
        more = f" and {len(changed) - NAMED} more" if len(changed) > NAMED else ""
        log.warning("%s goes on with other settings than it had: %s%s", run.name, "; ".join(changed[:NAMED]), more)


def changes(run: Run, settings: Mapping[str, Any]) -> list[str]:
    """Settings that decide the result and are not what they were, as `key before -> now`."""
    try:
        before = OmegaConf.to_container(OmegaConf.load(run.folder / "config.yaml"), resolve=False)
    except (OSError, ValueError, YAMLError, OmegaConfBaseException):
        return []
    if not isinstance(before, dict):
        return []
    now = OmegaConf.to_container(OmegaConf.create(written(settings)), resolve=False)
    old, new = dict(_leaves(deciding(before))), dict(_leaves(deciding(now)))
    return [f"{key} {old[key]} -> {new[key]}" for key in old if key in new and old[key] != new[key]]


def check_shapes(run: Run, start: Path, stage: nn.Module) -> None:
    """Weights of a checkpoint have their places in the networks that are to go on with them."""
    own = {name: tuple(tensor.shape) for name, tensor in stage.state_dict().items()}
    wrong = []
    for path in sorted((start / "weights").glob("*.safetensors")):
        with safe_open(path, framework="pt") as file:
            for name in file.keys():  # noqa: SIM118 - no mapping
                full, shape = f"{path.stem}.{name}", tuple(file.get_slice(name).get_shape())
                if full in own and own[full] != shape:
                    wrong.append(f"{full} {shape} for {own[full]}")
    if wrong:
        got = f"{'; '.join(wrong[:3])}{f' and {len(wrong) - 3} more' if len(wrong) > 3 else ''}, from {start.name}"
        raise RunError("this run has weights of another network", key="run.id", got=got, remedy=ANOTHER)


def _leaves(node: Any, key: str = "") -> Iterator[tuple[str, Any]]:
    if isinstance(node, Mapping) and node:
        for name, value in node.items():
            yield from _leaves(value, f"{key}.{name}" if key else str(name))
    else:
        yield key, node
