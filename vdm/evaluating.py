"""From a run to numbers: load its networks, read clips, measure by a protocol, write metrics.json beside the run."""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf
from torch import Tensor

from vdm import checkpoint, config, lineage, restore, runs
from vdm.diffusion.guidance import classifier_free
from vdm.errors import RunError
from vdm.evaluation.graphs import GRAPHS, GraphsOfClips
from vdm.runs import Run
from vdm.sampling import files
from vdm.sampling.model import TextToVideo
from vdm.types import VideoBatch
from vdm.video import to_uint8

log = logging.getLogger(__name__)


def evaluate(cfg: DictConfig) -> dict[str, float]:
    """Evaluate one run; returns and prints the numbers."""
    run = restore.chosen_run(cfg.paths.output_root, cfg.run, stage=cfg.protocol.stage, any_stage=True)
    log.info("evaluating %s", run.name)
    settings = restore.settings_of(run)
    protocol = instantiate(cfg.protocol)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    folder, graphs = run.folder / "evaluation" / cfg.protocol.name, None
    if "samples" in protocol.needs:
        model = TextToVideo.of_run(run, run.last_checkpoint(), averaged=True, device=device, precision=None)
        graphs = _graphs(cfg, settings, protocol, model)
        if GRAPHS in model.conditions.names and protocol.graphs != "gold":
            folder = folder.with_name(f"{folder.name}-{protocol.graphs}")
        subject = _maker(run, OmegaConf.to_container(cfg.protocol, resolve=True), protocol, model, graphs, folder)
    else:
        subject = {name: restore.load_network(run, settings, name).to(device) for name in protocol.needs}
    metrics = {name: instantiate(node, _convert_="all") for name, node in cfg.metric.items()}
    originals = {name: instantiate(cfg.metric[name], _convert_="all") for name, m in metrics.items() if m.of_originals}
    reads = sorted({m.reads for m in metrics.values() if hasattr(m, "reads")} | set(graphs.reads if graphs else ()))
    data = _data(cfg, settings, reads, split=cfg.protocol.split, clips=cfg.protocol.clips)
    reference = _refer(cfg, settings, metrics, device)
    numbers = protocol.run(subject, _batches(data, device), metrics, originals, folder)
    if graphs is not None and graphs.plans is not None:
        numbers["without_plan"] = graphs.without
    result = {
        "protocol": OmegaConf.to_container(cfg.protocol, resolve=True),
        "run": run.name,
        "checkpoint": run.last_checkpoint().name,
        "data": {
            "name": data.name,
            "split": cfg.protocol.split,
            "fingerprint": data.split_fingerprint(cfg.protocol.split),
        },
        "reference": reference,
        "metrics": numbers,
        "skipped": {name: m.skipped for name, m in metrics.items() if m.skipped},
        "measured": {name: m.facts() for name, m in metrics.items() if not m.skipped},
    }
    runs.write_atomically(folder / "metrics.json", json.dumps(result, indent=2) + "\n")
    for name, value in numbers.items():
        log.info("%-20s %.4f", name, value)
    for name, reason in result["skipped"].items():
        log.warning("%-20s skipped: %s", name, reason)
    log.info("written to %s", folder)
    return numbers


def _graphs(cfg: DictConfig, settings: dict[str, Any], protocol: Any, model: TextToVideo) -> GraphsOfClips | None:
    """What the model hears besides captions, if it hears graphs and shall."""
    hears = GRAPHS in model.conditions.names
    if protocol.graphs == "planned" and not hears:
        raise RunError("this model hears no scene graphs", key="protocol.graphs", got="planned",
                       allowed="gold: nothing is said", remedy="leave it out, or name another run")  # fmt: skip
    if not hears or protocol.graphs == "none":
        return None
    plans = None
    if protocol.graphs == "planned":
        data, split, folder = settings["data"]["name"], cfg.protocol.split, str(cfg.protocol.plans.folder)
        if folder == "auto":
            folder = str(
                lineage.newest_plans(f"{cfg.paths.data_root}/{data}", data, split, key="protocol.plans.folder")
            )
        lineage.plans_are_there(folder=folder, data=data, split=split, key="protocol.plans.folder")
        log.info("scene graphs are those of %s", folder)
        plans = protocol.plans(folder=folder)
    return GraphsOfClips(condition=model.conditions.members[GRAPHS], source=protocol.graphs, plans=plans)


def _maker(
    run: Run,
    settings: dict[str, Any],
    protocol: Any,
    model: TextToVideo,
    graphs: GraphsOfClips | None,
    folder: Path,
) -> Callable[[VideoBatch], Tensor]:
    """Samples for a batch, b 3 T H W in uint8. Each is kept in `folder`, so that a stopped evaluation goes on."""
    last = run.last_checkpoint()
    guidance = classifier_free(
        (*model.heard, *([] if graphs is None else [GRAPHS])),
        protocol.guidance,
        rescale=protocol.guidance_rescale,
        interval=protocol.guidance_interval,
    )
    deciding = {
        name: settings[name] for name in ("sampler", "seed", *(n for n in settings if n.startswith("guidance")))
    }
    weights = {name: fact["sha256"] for name, fact in checkpoint.read_manifest(last)["files"].items()}
    text = json.dumps([deciding, weights, model.conditions.fingerprint()], sort_keys=True)
    kept = folder / "samples" / hashlib.sha256(text.encode()).hexdigest()[:8]

    def place(key: str, caption: str, said: dict[str, Any]) -> Path:
        text = caption if not said else json.dumps([caption, said], sort_keys=True, default=str)
        return kept / f"{key}-{hashlib.sha256(text.encode()).hexdigest()[:8]}.npz"

    def make(batch: VideoBatch) -> Tensor:
        said = [{}] * len(batch["key"]) if graphs is None else graphs.of(batch)
        places = [place(*one) for one in zip(batch["key"], batch["caption"], said, strict=True)]
        todo = [position for position, path in enumerate(places) if not path.exists()]
        if todo:
            size = batch["video"].shape[2:]
            latents = model.latents(
                [batch["caption"][i] for i in todo],
                [batch["key"][i] for i in todo],
                seed=protocol.seed,
                shape=model.latent_shape(*size),
                fps=float(batch["fps"][todo[0]]),
                sampler=protocol.sampler,
                guidance=guidance,
                extras=[said[i] for i in todo],
            )
            for position, latent in zip(todo, latents, strict=True):
                frames, fps = model.frames(latent).numpy(), float(batch["fps"][position])
                whole = files.encoded(frames, fps, format="npz", crf=0, pixel_format="")  # lossless
                files.write_whole(places[position], whole)
            log.info("%d clips sampled", len(todo))
        clips = [np.load(path)["arr_0"] for path in places]
        return torch.from_numpy(np.stack(clips)).permute(0, 4, 1, 2, 3)

    return make


def _refer(cfg: DictConfig, settings: dict[str, Any], metrics: dict[str, Any], device: torch.device) -> dict | None:
    """Shows the real clips to metrics that compare sets, where the protocol takes other ones than those of the captions."""
    split = cfg.protocol.get("reference_split")
    sets = [metric for metric in metrics.values() if hasattr(metric, "refer")]
    if split is None or not sets:
        return None
    data = _data(cfg, settings, [], split=split, clips=cfg.protocol.reference_clips)
    for batch in _batches(data, device):
        for metric in sets:
            metric.refer(to_uint8(batch["video"]), batch["key"])
    return {"name": data.name, "split": split, "fingerprint": data.split_fingerprint(split)}


def _data(cfg: DictConfig, settings: dict[str, Any], extras: list[str], *, split: str, clips: int):
    """The data the run was trained on, another split of it, read in order."""
    config.check_resolved({"data": settings["data"]})
    changed = {"val_split": split, "val_clips": clips, "extras": extras}
    changed |= {"root": f"{cfg.paths.data_root}/{settings['data']['name']}", "num_workers": cfg.num_workers}
    data = instantiate(settings["data"] | changed, _convert_="all")
    data.setup("fit")
    return data


def _batches(data, device: torch.device) -> Iterator:
    for batch in data.val_dataloader():
        batch["video"] = batch["video"].to(device)
        yield data.on_after_batch_transfer(batch, 0)
