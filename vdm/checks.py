"""Parts that must fit each other, checked on plain numbers before anything is built. Named by `checks` in conf/."""

from __future__ import annotations

import math
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from vdm.errors import ConfigError

GPU_DEVICES = ("/dev/nvidiactl", "/dev/kfd", "/dev/dxg")  # NVIDIA, AMD, and either under WSL


def clip_fits_stride(*, autoencoder: Mapping[str, Any], frames: int, height: int, width: int) -> None:
    """The autoencoder reduces a clip by whole strides; a 2D one halves it between its levels."""
    spatial = 2 ** (len(autoencoder["multipliers"]) - 1)
    stride = autoencoder.get("stride", (1, spatial, spatial))
    for key, size, step in zip(("frames", "height", "width"), (frames, height, width), stride, strict=True):
        if size % step:
            below, above = size // step * step, (size // step + 1) * step
            raise ConfigError(
                f"the autoencoder reduces {key} by {step}, which does not divide the clip",
                key=f"data.clip.{key}",
                got=size,
                allowed=f"multiples of {step}",
                remedy=f"set data.clip.{key}={below or above}, or another stride with autoencoder.stride",
            )


def optimizer_is_possible(*, optimizer: Mapping[str, Any]) -> None:
    """Of any optimizer, which checks itself only when it is built. At a rate of 0 a run shows what it starts from."""
    lr = optimizer.get("lr")
    if lr is not None and (isinstance(lr, bool) or not isinstance(lr, int | float) or not 0 <= lr < math.inf):
        raise ConfigError("no learning rate", key="stage.optimizer.lr", got=lr, allowed="numbers from 0, such as 1e-4")


def autoencoder_is_trained(*, autoencoder: Mapping[str, Any], init: Mapping[str, str | None]) -> None:
    """Latents of an autoencoder that nobody trained mean nothing."""
    if init.get("autoencoder") is None and not autoencoder.get("pretrained"):
        raise ConfigError(
            "the diffusion model needs a trained autoencoder",
            key="init.autoencoder",
            got="null",
            allowed="auto, or a run of stage=autoencoder; null only together with autoencoder.pretrained",
            remedy="leave out init.autoencoder, or set autoencoder=kl2d autoencoder.pretrained=<folder>",
        )


def latent_fits_backbone(
    *, autoencoder: Mapping[str, Any], backbone: Mapping[str, Any], height: int, width: int
) -> None:
    """A U-Net halves the latent between its levels."""
    spatial = 2 ** (len(autoencoder["multipliers"]) - 1)
    stride = autoencoder.get("stride", (1, spatial, spatial))
    halvings = 2 ** (len(backbone["multipliers"]) - 1)
    for key, size, step in (("height", height, stride[1]), ("width", width, stride[2])):
        unit = step * halvings
        if size % unit:
            below, above = size // unit * unit, (size // unit + 1) * unit
            raise ConfigError(
                f"the autoencoder reduces {key} by {step} and the backbone by {halvings} more, which does not divide the clip",
                key=f"data.clip.{key}",
                got=size,
                allowed=f"multiples of {unit}",
                remedy=f"set data.clip.{key}={below or above}, or backbone.multipliers with fewer levels (backbone=tiny has two)",
            )


def buckets_fit(
    *,
    autoencoder: Mapping[str, Any],
    backbone: Mapping[str, Any] | None,
    buckets: Sequence[Mapping[str, int]] | None,
) -> None:
    """Every bucket is a clip that autoencoder and backbone can reduce; an image has only one frame to reduce."""
    for number, bucket in enumerate(buckets or ()):
        frames, height, width = (bucket[name] for name in ("frames", "height", "width"))
        try:
            clip_fits_stride(autoencoder=autoencoder, frames=frames, height=height, width=width)
            if backbone is not None:
                latent_fits_backbone(autoencoder=autoencoder, backbone=backbone, height=height, width=width)
        except ConfigError as error:
            key, remedy = (text.replace("data.clip", f"data.buckets[{number}]") for text in (error.key, error.remedy))
            raise ConfigError(error.what, key=key, got=error.got, allowed=error.allowed, remedy=remedy) from None


def extras_are_asked_for(*, name: str, reads: Sequence[str | None], extras: Sequence[str]) -> None:
    """What a condition reads of a clip must come with it."""
    absent = [each for each in reads if each is not None and each not in extras]
    if absent:
        remedy = f"set data.extras=[{','.join([*extras, *absent])}]"
        raise ConfigError(
            f"the condition {name} reads what no clip brings", key="data.extras", got=list(extras),
            allowed=f"a list with {' and '.join(absent)} in it", remedy=remedy,
        )  # fmt: skip


def steps_are_given(*, max_steps: int, max_epochs: int | None) -> None:
    """Training is counted in steps: the data is an endless stream."""
    if max_steps < 1:
        raise ConfigError("training needs a number of steps", key="trainer.max_steps", got=max_steps, allowed=">= 1")
    if max_epochs not in (None, -1):
        remedy = "set trainer.max_steps instead; samples per epoch / (batch size x ranks) is one epoch"
        raise ConfigError(
            "training is counted in steps, not epochs", key="trainer.max_epochs", got=max_epochs, remedy=remedy
        )


def precision_is_known(*, precision: str | int) -> None:
    known = ("32-true", "bf16-mixed", "bf16-true", "16-mixed", "64-true")
    if precision not in known:
        raise ConfigError("unknown precision", key="trainer.precision", got=precision, allowed=known)


def devices_exist(*, accelerator: str, devices: int | str | list[int]) -> None:
    """A GPU is only looked for when one is asked for; torch, slow to import, is asked where a driver is loaded."""
    known = ("auto", "cpu", "gpu", "cuda", "mps", "tpu", "hpu")
    if accelerator not in known:
        raise ConfigError("unknown accelerator", key="trainer.accelerator", got=accelerator, allowed=known)
    if accelerator not in ("gpu", "cuda"):
        return
    present = 0
    if sys.platform != "linux" or any(Path(device).exists() for device in GPU_DEVICES):
        import torch

        present = torch.cuda.device_count()
    if not present:
        remedy = "use trainer=cpu (or trainer=auto); on a GPU machine install a torch with CUDA"
        raise ConfigError(
            "no GPU is visible to torch", key="trainer.accelerator", got=accelerator, allowed="cpu, auto", remedy=remedy
        )
    if isinstance(devices, int) and devices > present:
        raise ConfigError("more devices than there are", key="trainer.devices", got=devices, allowed=f"up to {present}")


def preflight_is_known(*, preflight: bool | str) -> None:
    known = ("quick", True, False)
    if not any(preflight is each or preflight == each for each in known):
        raise ConfigError("unknown kind of preflight", key="preflight", got=preflight, allowed="quick, true, false")


def seed_is_whole(*, seed: int) -> None:
    if isinstance(seed, bool) or not isinstance(seed, int) or not 0 <= seed < 2**32:
        raise ConfigError("the seed is a whole number", key="seed", got=seed, allowed="0 to 4294967295")
