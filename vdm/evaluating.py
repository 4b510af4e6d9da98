"""From a run to numbers: load its networks, read clips, measure by a protocol, write metrics.json beside the run."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator
from typing import Any

import torch
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf

from vdm import config, restore, runs

log = logging.getLogger(__name__)


def evaluate(cfg: DictConfig) -> dict[str, float]:
    """Evaluate one run; returns and prints the numbers."""
    run = restore.chosen_run(cfg.paths.output_root, cfg.run, stage=cfg.protocol.stage, any_stage=True)
    log.info("evaluating %s", run.name)
    settings = restore.settings_of(run)
    protocol = instantiate(cfg.protocol)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    networks = {name: restore.load_network(run, settings, name).to(device) for name in protocol.needs}
    folder = run.folder / "evaluation" / cfg.protocol.name
    metrics = {name: instantiate(node, _convert_="all") for name, node in cfg.metric.items()}
    originals = {
        name: instantiate(cfg.metric[name], _convert_="all") for name, m in metrics.items() if hasattr(m, "judge")
    }
    reads = sorted({m.reads for m in metrics.values() if hasattr(m, "reads")})
    data = _data(cfg, settings, reads)
    numbers = protocol.run(networks, _batches(data, device), metrics, originals, folder)
    result = {
        "protocol": OmegaConf.to_container(cfg.protocol, resolve=True),
        "run": run.name,
        "checkpoint": run.last_checkpoint().name,
        "data": {"name": data.name, "fingerprint": data.fingerprint},
        "metrics": numbers,
    }
    runs.write_atomically(folder / "metrics.json", json.dumps(result, indent=2) + "\n")
    for name, value in numbers.items():
        log.info("%-20s %.4f", name, value)
    log.info("written to %s", folder)
    return numbers


def _data(cfg: DictConfig, settings: dict[str, Any], extras: list[str]):
    """The data the run was trained on, another split of it, read in order."""
    config.check_resolved({"data": settings["data"]})
    changed = {"val_split": cfg.protocol.split, "val_clips": cfg.protocol.clips, "extras": extras}
    changed |= {"root": f"{cfg.paths.data_root}/{settings['data']['name']}", "num_workers": cfg.num_workers}
    data = instantiate(settings["data"] | changed, _convert_="all")
    data.setup("fit")
    return data


def _batches(data, device: torch.device) -> Iterator:
    for batch in data.val_dataloader():
        batch["video"] = batch["video"].to(device)
        yield data.on_after_batch_transfer(batch, 0)
