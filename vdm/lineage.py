"""What a stage takes over from an earlier one: which run `init.<network>=auto` means, and how that network is built.

Light and early: the configuration is completed here before it is checked, so that every check sees the network that will
be there and not the one a default names.
"""

from __future__ import annotations

import logging
from typing import Any

from omegaconf import DictConfig, OmegaConf, open_dict

from vdm import runs
from vdm.errors import RunError
from vdm.runs import Run

log = logging.getLogger(__name__)

STAGE_OF = {"autoencoder": "autoencoder", "backbone": "vdm", "conditions": "vdm"}  # which trains a network


def adopt(cfg: DictConfig) -> None:
    """Write run names in the place of `auto`, and the settings of a network of an earlier stage in the place of its group."""
    if OmegaConf.select(cfg, "init") is None or OmegaConf.select(cfg, "stage.name") is None:
        return
    for network in [str(name) for name in cfg.init]:
        wanted = cfg.init[network]
        if wanted is None or network not in STAGE_OF:
            continue
        own = _own_record(cfg) if wanted == "auto" else None
        if own is not None and (own.get("init") or {}).get(network):
            _write(cfg, network, own["init"][network], own)
            continue
        parent = _newest(cfg, network) if wanted == "auto" else runs.find(
            str(cfg.paths.output_root), str(wanted), key=f"init.{network}"
        )  # fmt: skip
        _write(cfg, network, parent.name if wanted == "auto" else str(wanted), _record(parent, network))


def _newest(cfg: DictConfig, network: str) -> Run:
    root, stage, data = str(cfg.paths.output_root), STAGE_OF[network], str(cfg.data.name)
    parent = runs.newest_complete(root, stage, data)
    if parent is None:
        raise RunError(
            f"stage={cfg.stage.name} starts from a complete run of stage={stage}, and there is none",
            key=f"init.{network}",
            got=f"auto, in {root}",
            remedy=f"train one first: python train.py stage={stage} data={data}; or name a run: init.{network}=<run>",
        )
    trained_on = parent.info.get("data")
    other = "" if trained_on == data else f", trained on {trained_on}"
    log.info("init.%s: the newest complete run of stage=%s is %s%s", network, stage, parent.name, other)
    return parent


def _own_record(cfg: DictConfig) -> dict[str, Any] | None:
    """A run with a chosen name keeps the parent that it began with."""
    chosen = OmegaConf.select(cfg, "run.id")
    if chosen is None or cfg.resume == "never":
        return None
    runs.id_is_a_name(id=chosen)
    run = Run(runs.folder_of(cfg, str(chosen)))
    if run.last_checkpoint() is None or run.info.get("stage") != cfg.stage.name:
        return None
    return _record(run, "run")


def _record(run: Run, network: str) -> dict[str, Any]:
    try:
        return OmegaConf.to_container(OmegaConf.load(run.folder / "config.yaml"))
    except (OSError, ValueError) as error:
        remedy = "name another run, or restore its config.yaml"
        raise RunError("config.yaml cannot be read", key=f"init.{network}", got=f"{run.name}: {error}",
                       remedy=remedy) from None  # fmt: skip


def _write(cfg: DictConfig, network: str, run: str, record: dict[str, Any]) -> None:
    with open_dict(cfg):
        cfg.init[network] = run
        if STAGE_OF[network] == cfg.stage.name:
            return  # trained on here: built as this command says, and the weights must fit
        settings = record.get(network)
        if not isinstance(settings, dict):
            raise RunError("this run has no such network", key=f"init.{network}", got=run, allowed=sorted(record))
        if "pretrained" in settings:
            settings["pretrained"] = None  # the run has weights of its own
        cfg[network] = OmegaConf.create(settings)
