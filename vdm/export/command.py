"""The export command: the networks of one checkpoint, written as a folder that is whole or not there."""

from __future__ import annotations

import importlib.metadata
import logging
import os
import shutil
from pathlib import Path
from typing import Any

import torch
from omegaconf import DictConfig
from safetensors import SafetensorError

from vdm import checkpoint, config, restore, runs
from vdm.backbones.modelscope import save_diffusers
from vdm.conditions.text import TextCondition
from vdm.errors import RunError
from vdm.export.parts import scheduler_config, write_autoencoder, write_json, write_text_encoder
from vdm.export.request import INDEX, STAGES, TEXT
from vdm.sampling.model import TextToVideo

log = logging.getLogger(__name__)

RECORD = "export.json"
PIPELINE = "TextToVideoSDPipeline"
LOADS = "0.33.1"  # of diffusers, the last version that PIPELINE was made for; later ones still have it


def export(cfg: DictConfig) -> Path:
    """Write the folder; returns it."""
    asked = config.resolve(cfg)
    run = restore.chosen_run(asked["paths"]["output_root"], asked["run"], stage=STAGES)
    folder = _checkpoint(run, asked["step"])
    log.info("exporting %s, %s", run.name, folder.name)
    settings = restore.settings_of(run, needs=restore.VIDEO_MODEL)
    model = TextToVideo.of_run(run, folder, averaged=asked["ema"], device=torch.device("cpu"), precision=None)
    to = Path(str(asked["to"])).absolute()
    partial = to.with_name(f".{to.name}.partial-{os.getpid()}")
    shutil.rmtree(partial, ignore_errors=True)
    try:
        partial.mkdir(parents=True)
        _write(partial, model, settings, asked["sampler"])
        write_json(partial / RECORD, _record(run, folder, settings, asked))
        _move_into_place(partial, to)
    except (OSError, SafetensorError) as error:
        raise RunError("the folder could not be written", key="to", got=f"{to}: {error}",
                       remedy="free space, or name another place") from error  # fmt: skip
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    log.info("%s: load it with diffusers.%s.from_pretrained", to, PIPELINE)
    return to


def _write(folder: Path, model: TextToVideo, settings: dict[str, Any], sampler: dict[str, Any]) -> None:
    clip = (settings.get("data") or {}).get("clip") or {}
    height = clip.get("height")
    size = height // model.autoencoder.stride[1] if isinstance(height, int) else None
    save_diffusers(model.backbone, folder / "unet", sample_size=size)
    write_autoencoder(model.autoencoder, settings["autoencoder"], folder / "vae")
    text = model.conditions.members[TEXT]
    assert isinstance(text, TextCondition), "the settings of the run were checked"
    write_text_encoder(text.encoder, settings["condition"][TEXT]["encoder"]["folder"], folder)
    scheduler = scheduler_config(settings["objective"], sampler)
    write_json(folder / "scheduler" / "scheduler_config.json", scheduler)
    index = {
        "_class_name": PIPELINE,
        "_diffusers_version": LOADS,
        "scheduler": ["diffusers", scheduler["_class_name"]],
        "text_encoder": ["transformers", "CLIPTextModel"],
        "tokenizer": ["transformers", "CLIPTokenizer"],
        "unet": ["diffusers", "UNet3DConditionModel"],
        "vae": ["diffusers", "AutoencoderKL"],
    }
    write_json(folder / INDEX, index)


def _record(run: runs.Run, folder: Path, settings: dict[str, Any], asked: dict[str, Any]) -> dict[str, Any]:
    """Where the weights come from, and with what the pipeline makes the videos of sample.py."""
    stored = checkpoint.read_manifest(folder)["files"]
    kinds = ("weights", "ema") if asked["ema"] else ("weights",)
    sampler, data = asked["sampler"], settings.get("data") or {}
    steps = sampler["num_steps"]
    if sampler["_target_"].endswith(".ddim") and settings["objective"]["schedule"]["num_timesteps"] % steps:
        log.warning("diffusers' DDIM makes other steps than sample.py where their number does not divide the timesteps")
    return {
        "run": run.name,
        "checkpoint": folder.name,
        "weights": {name: fact["sha256"] for name, fact in stored.items() if name.split("/")[0] in kinds},
        "sampler": sampler,
        "clip": data.get("clip"),
        "call": {"num_inference_steps": steps, "num_frames": (data.get("clip") or {}).get("frames")},
        "made_by": {"dysen-vdm": importlib.metadata.version("dysen-vdm")},
    }


def _checkpoint(run: runs.Run, step: int | None) -> Path:
    if step is None:
        return run.last_checkpoint()
    found = {int(path.name.rpartition("-")[2]): path for path in run.checkpoints()}
    if step not in found:
        raise RunError("the run has no checkpoint of this step", key="step", got=step, allowed=sorted(found))
    return found[step]


def _move_into_place(partial: Path, folder: Path) -> None:
    old = folder.with_name(f".{folder.name}.old-{os.getpid()}")
    if folder.exists():
        folder.rename(old)
    partial.rename(folder)
    shutil.rmtree(old, ignore_errors=True)
