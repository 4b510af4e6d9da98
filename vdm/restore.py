"""Networks of a run, built again from its folder, which may be somebody else's: its configuration is foreign code.

Light: torch is imported when a network is built, so that a run that is missing is said before.
"""

from __future__ import annotations

import ast
import importlib.util
import logging
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError

from vdm import config, runs
from vdm.errors import ConfigError, RunError
from vdm.runs import Run

if TYPE_CHECKING:
    from torch import nn

log = logging.getLogger(__name__)

# Where the code of a group lives. A run may name nothing else there: much else in this project writes files.
PACKAGES = {
    "autoencoder": ("vdm.autoencoder.",),
    "backbone": ("vdm.backbones.",),
    "objective": ("vdm.diffusion.",),
    "language": ("dysen.tiny.",),
    "features": ("dysen.icl.features.", "vdm.conditions.encoders."),
    "condition": ("vdm.conditions.", "dysen.condition.", "dysen.graph_encoder.", "dysen.labels."),
}
VIDEO_MODEL = ("autoencoder", "backbone", "objective", "condition")  # of these groups it is made


def chosen_run(
    output_root: str | Path,
    wanted: Any,
    *,
    stage: str | Sequence[str],
    any_stage: bool = False,
    data: str | None = None,
) -> Run:
    """The run that is named, or the newest complete one of a stage, or of one of several; of this data if there is one."""
    if wanted is not None:
        return runs.find(output_root, str(wanted), key="run", stage=None if any_stage else stage)
    run = runs.newest_complete(output_root, stage, data)
    if run is None:
        first = stage if isinstance(stage, str) else stage[0]
        remedy = f"train one (python train.py stage={first}) or name one with run=<run>"
        raise RunError(f"there is no complete {first} run", key="run", got=str(output_root), remedy=remedy)
    return run


def settings_of(run: Run, needs: Iterable[str] = ()) -> dict[str, Any]:
    """The configuration a run was made with. Read as data: it is written with everything in it replaced."""
    path = run.folder / "config.yaml"
    try:
        settings = OmegaConf.to_container(OmegaConf.load(path), resolve=False)
    except (OSError, ValueError, YAMLError, OmegaConfBaseException) as error:
        reason = str(error).splitlines()[0]
        raise RunError("the configuration of the run cannot be read", key="run", got=f"{path}: {reason}") from None
    absent = [name for name in needs if name not in settings] if isinstance(settings, dict) else ["settings"]
    if absent:
        got = f"{path} has no {', '.join(absent)}"
        raise RunError("the configuration of the run is empty or cut off", key="run", got=got)
    return settings


def checked(settings: Mapping[str, Any], name: str, run: Run) -> Any:
    """The settings of one group of a run, if they are safe to build."""
    if name not in settings:
        raise RunError("this run has no such network", key="run", got=f"{name} in {run.name}")
    node = settings[name]
    for key, value in _walk(node, name):
        if isinstance(value, str) and "${" in value:
            raise ConfigError("a run is written without references", key=key, got=value)
        if key.endswith("._target_") and name in PACKAGES:
            _check_origin(value, key, PACKAGES[name])
    parts = {name: node} if name != "condition" else node if isinstance(node, dict) else {name: None}
    for key, part in parts.items() if name in PACKAGES else ():
        if not (isinstance(part, dict) and "_target_" in part):
            raise RunError(
                "the configuration of the run names no code here", key="run", got=f"{name}: {key}={part!r:.80}"
            )
    config.check_resolved({name: node})
    # The weights of a run are in its checkpoint; the public ones that it began with may be gone.
    return {**node, "pretrained": None} if isinstance(node, dict) and node.get("pretrained") is not None else node


def load_network(
    run: Run, settings: Mapping[str, Any], name: str, *, folder: Path | None = None, averaged: bool = True
) -> nn.Module:
    """A network of a run with its averaged weights, from its last checkpoint or the one in `folder`."""
    from hydra.utils import instantiate

    from vdm import checkpoint

    network = instantiate(checked(settings, name, run), _convert_="all")
    tensors = checkpoint.network_weights(folder or run.last_checkpoint(), name, averaged=averaged)
    checkpoint.load_weights(network, tensors, source=str(run.folder))
    return network.eval()


def _check_origin(target: Any, key: str, packages: tuple[str, ...]) -> None:
    """The name is defined in a module of the packages: not elsewhere, and not merely imported there."""
    module, _, name = str(target).rpartition(".")
    if str(target).startswith(packages) and "._" not in target and name in _defined_in(module):
        return
    allowed = [f"{package}*" for package in packages]
    raise ConfigError("this code may not be named by a run", key=key, got=target, allowed=allowed)


def _defined_in(module: str) -> set[str]:
    root = importlib.util.find_spec("vdm")
    path = Path(root.origin).parents[1].joinpath(*module.split(".")).with_suffix(".py")
    if not path.is_file():
        return set()
    body = ast.parse(path.read_text(encoding="utf-8")).body
    return {node.name for node in body if isinstance(node, ast.ClassDef | ast.FunctionDef)}


def _walk(node: Any, key: str) -> Iterable[tuple[str, Any]]:
    yield key, node
    if isinstance(node, Mapping):
        for name, value in node.items():
            yield f"{key}[a key]", name
            yield from _walk(value, f"{key}.{name}")
    elif isinstance(node, list):
        for position, value in enumerate(node):
            yield from _walk(value, f"{key}[{position}]")
