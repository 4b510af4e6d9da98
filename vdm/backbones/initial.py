"""Published weights as the start of a backbone, whatever they come as: see `vdm.backbones.published`."""

from __future__ import annotations

from pathlib import Path

from vdm.backbones.lvdm import load_lvdm
from vdm.backbones.modelscope import load_diffusers
from vdm.backbones.published import IMAGE, TEXT, read_config
from vdm.backbones.stable_diffusion import load_stable_diffusion
from vdm.backbones.unet3d import UNet3D
from vdm.checkpoint import LoadReport
from vdm.errors import ConfigError


def load_published(backbone: UNet3D, source: str, *, fps: float | None = None) -> LoadReport:
    """Fill a backbone. Its doors for other things than the caption stay as they are: no public model has them."""
    doors = [*(stream for stream in backbone.streams if stream != TEXT), "concat", "embed"]
    if not Path(source).is_dir():
        return load_lvdm(backbone, source, doors=doors, fps=fps)
    if fps is not None:
        raise ConfigError("only VideoCrafter's weights are told a frame rate", key="init.fps", got=fps, allowed="null")
    load = load_stable_diffusion if read_config(source).get("_class_name") == IMAGE else load_diffusers
    return load(backbone, source, doors=doors)
