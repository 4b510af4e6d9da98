"""python -m vdm.merge: a run that holds an adapter becomes one with whole weights, or a whole one becomes an adapter."""

from __future__ import annotations

import json
import logging
import os
import shutil
import sys
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from vdm import restore, runs
from vdm.errors import ConfigError, RunError
from vdm.launch import launch
from vdm.runs import Run

log = logging.getLogger(__name__)

STAGE = "finetune"
NETWORKS = ("autoencoder", "backbone", "conditions")


def merge(cfg: DictConfig) -> Path:
    """Writes the run; returns its folder, which is whole or not there."""
    from vdm import checkpoint  # late: torch takes seconds to import

    run, folder = _asked(str(cfg.paths.output_root), cfg.run), place(str(cfg.paths.output_root), str(cfg.to))
    source = run.last_checkpoint()
    content = _whole(run, source) if cfg.extract is None else _adapter(run, source, folder, cfg.extract)
    partial = folder.with_name(f".{folder.name}.partial-{os.getpid()}")
    shutil.rmtree(partial, ignore_errors=True)
    try:
        checkpoint.save(partial / "checkpoints" / source.name, content, step=checkpoint.read_manifest(source)["step"])
        _describe(
            run, source, partial, tuning=None if cfg.extract is None else dict(rank=cfg.extract, alpha=cfg.extract)
        )
        partial.rename(folder)
    except OSError as error:
        raise RunError("the run could not be written", key="to", got=f"{folder}: {error}") from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    log.info("%s, %s: written as %s", run.name, source.name, folder)
    return folder


def _whole(run: Run, source: Path) -> dict[str, Any]:
    from vdm import adapters, checkpoint

    if adapters.FILE not in checkpoint.read_manifest(source)["files"]:
        raise RunError("this run holds whole weights already", key="run", got=run.name)
    content: dict[str, Any] = {"state_dict": {}, "ema": {}}
    for network in NETWORKS:
        if not checkpoint.holds(source, network):
            continue  # all of it is frozen
        last, averaged = (checkpoint.network_weights(source, network, averaged=which) for which in (False, True))
        content["state_dict"] |= {f"{network}.{name}": tensor for name, tensor in last.items()}
        moved = {name: tensor for name, tensor in averaged.items() if not tensor.equal(last[name])}
        content["ema"] |= {f"{network}.{name}": tensor for name, tensor in moved.items()}
    return content


def _adapter(run: Run, source: Path, folder: Path, rank: int) -> dict[str, Any]:
    """Of the averaged weights, by the largest singular values of what they differ by from their parent's."""
    from vdm import adapters, checkpoint

    parent = _parent(run)
    content: dict[str, Any] = {"state_dict": {}}
    for network in NETWORKS:
        if not checkpoint.holds(source, network):
            continue
        before = checkpoint.network_weights(parent, network) if checkpoint.holds(parent, network) else {}
        after = checkpoint.network_weights(source, network)
        own, lost = adapters.split(before, after, rank=rank)
        content["state_dict"] |= {f"{network}.{name}": tensor for name, tensor in own.items()}
        if own:
            log.info("%s: %d tensors, without %.3g of the change", network, len(own), lost)
    files = checkpoint.read_manifest(parent)["files"]
    return content | {"adapter": adapters.record(parent, files, run_folder=folder, scale=1.0)}


def _parent(run: Run) -> Path:
    entries = [entry for entry in run.info.get("lineage") or [] if entry.get("network") in NETWORKS]
    places = {(entry.get("run"), entry.get("checkpoint")) for entry in entries}
    if len(places) != 1 or None in next(iter(places)):
        remedy = "only a run that began with another run as a whole can become its adapter"
        raise RunError("this run has no parent, or several", key="run", got=run.name, remedy=remedy)
    ((name, step),) = places
    parent = runs.find(run.folder.parent, name, key="run")
    if not (parent.folder / "checkpoints" / step / "manifest.json").is_file():
        raise RunError("the parent has not the checkpoint any more", key="run", got=f"{parent.folder}: {step}")
    return parent.folder / "checkpoints" / step


def _describe(run: Run, source: Path, partial: Path, *, tuning: dict[str, Any] | None) -> None:
    """The settings of the networks, the record, the curves."""
    settings = restore.settings_of(run, needs=restore.VIDEO_MODEL)
    kind = {"_target_": "vdm.stages.tuning.Full"}
    if tuning is not None:
        kind = {"_target_": "vdm.stages.tuning.Lora", "layers": ["*"], "dropout": 0.0, **tuning}
    settings["stage"] = {**(settings.get("stage") or {}), "tuning": kind}
    runs.write_atomically(partial / "config.yaml", OmegaConf.to_yaml(OmegaConf.create(settings)))
    info = run.info | {"made_from": {"run": run.name, "checkpoint": source.name, "adapter": tuning}}
    info |= {"state": "complete", "best": None, "stopped": None}
    runs.write_atomically(partial / "run.json", json.dumps(info, indent=2, default=str) + "\n")
    if (run.folder / "metrics.csv").is_file():
        shutil.copyfile(run.folder / "metrics.csv", partial / "metrics.csv")


def _asked(output_root: str, wanted: Any) -> Run:
    return restore.chosen_run(output_root, wanted, stage=STAGE, any_stage=True)


def place(output_root: str, to: str) -> Path:
    """A name is that of a run, anything else a folder."""
    return Path(output_root).absolute() / to if os.sep not in to else Path(to).absolute()


# Named by `checks` in conf/: said before anything is built.


def is_possible(*, output_root: str, to: str | None, extract: int | None) -> None:
    if to is None or not str(to).strip():
        raise ConfigError("the run needs a place", key="to", got=to, remedy="give it: to=<name of a run, or a folder>")
    if place(output_root, str(to)).exists():
        raise RunError("this is there already", key="to", got=place(output_root, str(to)), remedy="name another place")
    if extract is not None and (type(extract) is not int or extract < 1):
        raise ConfigError("the rank of an adapter", key="extract", got=extract, allowed="an integer >= 1, or null")


def run_is_there(*, output_root: str, run: str | int | None) -> None:
    _asked(output_root, run)


if __name__ == "__main__":
    launch(merge, "merge")
    sys.exit(0)
