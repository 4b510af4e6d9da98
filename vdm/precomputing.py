"""What `python -m data.precompute` stores of a clip: its latent, and what frozen text encoders make of its captions."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf
from torch import Tensor

from vdm import restore, runs
from vdm.autoencoder.base import VideoAutoencoder
from vdm.conditions.base import ConditionSet
from vdm.devices import this_device
from vdm.errors import ConfigError
from vdm.types import LatentShape, VideoBatch
from vdm.video import to_float

log = logging.getLogger(__name__)

LATENT = "latent"
DTYPES = {"float32": torch.float32, "float16": torch.float16}


@dataclass(frozen=True)
class ClipEncoder:
    """The networks, and what is kept of what they say."""

    autoencoder: VideoAutoencoder
    conditions: ConditionSet
    device: torch.device
    latent_dtype: torch.dtype

    @property
    def every_frame(self) -> bool:
        """Whether a latent can be cut in time as its video can."""
        return self.autoencoder.frames_are_independent

    def made_by(self) -> dict[str, Any]:
        """The same that a run says about its own networks."""
        return {"autoencoder": self.autoencoder.fingerprint(), "conditions": self.conditions.fingerprint()}

    def arrays(self) -> dict[str, str]:
        """Names and types of the arrays of a clip: those of the batches of a run, less the number of the caption."""
        latent = {LATENT: str(self.latent_dtype).removeprefix("torch.")}
        return latent | {name: str(array.dtype).removeprefix("torch.") for name, array in self._text("").items()}

    def latent_shape(self, frames: int, height: int, width: int) -> LatentShape:
        """Raises what is wrong with a clip of this size."""
        return self.autoencoder.latent_shape(frames, height, width)

    def encode(self, frames: np.ndarray, captions: Sequence[str]) -> dict[str, np.ndarray]:
        """Frames T H W 3 in uint8 and all captions of a clip -> `latent` c t h w, and `<name>.<caption>` of each caption."""
        pixels = torch.from_numpy(np.ascontiguousarray(frames)).to(self.device)
        video = to_float(pixels.permute(3, 0, 1, 2)[None]).contiguous()
        arrays = {LATENT: self.autoencoder.latents(video)[0].to(self.latent_dtype)}
        if not bool(torch.isfinite(arrays[LATENT]).all()):
            remedy = "latent_dtype=float32" if self.latent_dtype == torch.float16 else "train the autoencoder further"
            raise ConfigError("a latent is not finite", key="latent_dtype", got=str(self.latent_dtype), remedy=remedy)
        for number, caption in enumerate(captions):
            arrays |= {f"{name}.{number}": array for name, array in self._text(caption).items()}
        return {name: _as_numpy(array) for name, array in arrays.items()}

    @torch.no_grad()
    def _text(self, caption: str) -> dict[str, Tensor]:
        batch: VideoBatch = {"caption": [caption], "key": [""]}
        arrays = {
            name: array[0] for name, array in self.conditions.cache(batch, LatentShape(0, 0, 0, 0)).items()
        }  # n d, or n
        for name in [name for name in arrays if f"{name}_mask" in arrays]:
            # Nobody looks at these tokens, and as zeros they take no room.
            arrays[name] = arrays[name].masked_fill(~arrays[f"{name}_mask"][:, None].bool(), 0.0)
        return arrays


def clip_encoder(cfg: DictConfig) -> ClipEncoder:
    """The networks that the command names, on the device of this process."""
    if cfg.latent_dtype not in DTYPES:
        raise ConfigError("unknown type", key="latent_dtype", got=cfg.latent_dtype, allowed=list(DTYPES))
    device = this_device(cfg.device)
    autoencoder = _autoencoder(cfg).to(device).eval().requires_grad_(False)
    members = {
        name: instantiate(node, _convert_="all") for name, node in (OmegaConf.select(cfg, "condition") or {}).items()
    }
    conditions = ConditionSet(members=members, joint_drop_prob=0.0, joint_keep_prob=0.0)
    kept = conditions.fingerprint()
    for name in members:
        if name not in kept:
            raise ConfigError(
                "what is trained with the model cannot be precomputed",
                key=f"condition.{name}",
                got="an encoder that learns",
                remedy="leave it out: condition=[]; training reads the caption as before",
            )
    return ClipEncoder(autoencoder, conditions.to(device).eval(), device, DTYPES[cfg.latent_dtype])


def _autoencoder(cfg: DictConfig) -> VideoAutoencoder:
    public = OmegaConf.select(cfg, "autoencoder")
    if public is not None and cfg.run is not None:
        remedy = "give one of them"
        raise ConfigError("the autoencoder is either public or that of a run", key="run, autoencoder", remedy=remedy)
    if public is not None and not public.get("pretrained"):
        raise ConfigError(
            "latents of an autoencoder that nobody trained mean nothing",
            key="autoencoder.pretrained",
            got="null",
            remedy="name a folder with weights, or leave out autoencoder=... to take that of a run",
        )
    if public is not None:
        return instantiate(public, _convert_="all")
    root, run = cfg.paths.output_root, None
    if cfg.run is None:
        run = runs.newest_complete(root, "autoencoder", str(cfg.data.name))
    run = run or restore.chosen_run(root, cfg.run, stage="autoencoder", any_stage=True)
    log.info("the autoencoder is that of %s, %s", run.name, run.last_checkpoint().name)
    return restore.load_network(run, restore.settings_of(run), "autoencoder")


def _as_numpy(array: Tensor) -> np.ndarray:
    array = array.detach().cpu().contiguous()
    return (array.view(torch.int16) if array.dtype == torch.bfloat16 else array).numpy()
