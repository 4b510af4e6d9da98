"""The spatial layers of a `UNet3D` from a 2D Stable Diffusion U-Net (a diffusers `UNet2DConditionModel` folder).

The layers along time start closed, so that the filled network treats every frame as the image model does.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from torch import Tensor

from vdm.backbones.modelscope import from_diffusers, read_weights
from vdm.backbones.published import IMAGE, read_config
from vdm.backbones.unet3d import UNet3D
from vdm.checkpoint import LoadReport, load_weights
from vdm.errors import ConfigError

TEMPORAL = (".temporal_in.", ".temporal_conv.", ".temporal.", ".temporal1.", ".temporal2.")


def load_stable_diffusion(backbone: UNet3D, folder: str | Path, *, doors: Sequence[str] = ()) -> LoadReport:
    """Fill everything but the layers along time and the named doors; anything else that is missing is an error."""
    kind = read_config(folder).get("_class_name")
    if kind != IMAGE:
        raise ConfigError("not the folder of a 2D Stable Diffusion U-Net", got=f"{folder}: {kind}", allowed=IMAGE)
    tensors = {name: _linear(name, tensor) for name, tensor in read_weights(folder).items()}
    absent = [*temporal_keys(backbone), *backbone.door_keys(*doors)]
    return load_weights(backbone, from_diffusers(tensors, backbone), source=str(folder), allow_missing=absent)


def temporal_keys(backbone: UNet3D) -> list[str]:
    """Names of the tensors that act along time: what an image model lacks."""
    return [name for name in backbone.state_dict() if any(part in f".{name}" for part in TEMPORAL)]


def _linear(name: str, tensor: Tensor) -> Tensor:
    """Stable Diffusion 1 projects into and out of its transformers with 1 x 1 convolutions."""
    return tensor.flatten(1) if ".proj_" in name and tensor.ndim == 4 else tensor
