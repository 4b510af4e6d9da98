"""LPIPS (Zhang et al., 2018) on VGG16: distance of unit-length features, weighted by learned linear heads.

The weights are files of the user; nothing is downloaded. They are buffers outside the state dict: frozen, moved with
the module, and in no checkpoint.
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn import functional as F

from vdm.errors import ConfigError, RunError

log = logging.getLogger(__name__)

# Position of VGG16's convolutions in torchvision's `features`, by block; features are taken at each block's end.
BLOCKS = ((0, 2), (5, 7), (10, 12, 14), (17, 19, 21), (24, 26, 28))
WIDTHS = (64, 128, 256, 512, 512)
BUNDLE = "lpips_vgg.safetensors"
# The two published files, by the beginning of their sha256.
PUBLISHED = {
    "vgg16-397923af.pth": "397923af",
    "vgg.pth": "a78928a0af1e5f0fcb1f3b9e8f8c3a2a5a3de244d830ad5c1feddc79b8432868",
}

SHIFT = (-0.030, -0.088, -0.188)  # ImageNet's mean and deviation for pixels in [-1, 1]
SCALE = (0.458, 0.448, 0.450)


class LPIPS(nn.Module):
    """Distance of two sets of frames `b 3 H W` in [-1, 1], one value a frame."""

    def __init__(self, weights: Mapping[str, Tensor]):
        super().__init__()
        needed = [f"features.{i}.{kind}" for block in BLOCKS for i in block for kind in ("weight", "bias")]
        needed += [f"lin{i}.model.1.weight" for i in range(len(BLOCKS))]
        missing = [name for name in needed if name not in weights]
        if missing:
            raise RunError(
                "the LPIPS weights are not complete",
                key="stage.loss.perceptual",
                got=f"missing {', '.join(missing[:4])}" + (", ..." if len(missing) > 4 else ""),
                allowed=f"{BUNDLE}, or {' and '.join(PUBLISHED)}",
                remedy="replace the files, or set stage.loss.perceptual=null",
            )
        for name in needed:
            self.register_buffer(_flat(name), weights[name].detach().float().clone(), persistent=False)
        self.register_buffer("shift", torch.tensor(SHIFT).view(1, 3, 1, 1), persistent=False)
        self.register_buffer("scale", torch.tensor(SCALE).view(1, 3, 1, 1), persistent=False)

    def forward(self, first: Tensor, second: Tensor) -> Tensor:
        total = first.new_zeros(first.shape[0])
        for index, (a, b) in enumerate(zip(self.features(first), self.features(second), strict=True)):
            difference = (_unit(a) - _unit(b)).square()
            total = total + F.conv2d(difference, self._get(f"lin{index}.model.1.weight")).mean((1, 2, 3))
        return total

    def features(self, frames: Tensor) -> list[Tensor]:
        """Activations after the last convolution of each of the five blocks."""
        x, out = (frames - self.shift) / self.scale, []
        for number, block in enumerate(BLOCKS):
            if number:
                x = F.max_pool2d(x, 2)
            for i in block:
                x = F.relu(F.conv2d(x, self._get(f"features.{i}.weight"), self._get(f"features.{i}.bias"), padding=1))
            out.append(x)
        return out

    def _get(self, name: str) -> Tensor:
        return getattr(self, _flat(name))


def load_lpips(*, folder: str, sha256: str | None) -> LPIPS | None:
    """LPIPS from `folder`, or None and one warning when its files are not there.

    `sha256` checks the bundle; the two published files are always checked.
    """
    root = Path(folder)
    if (root / BUNDLE).is_file():
        return LPIPS(_read(root / BUNDLE, sha256 or ""))
    if all((root / name).is_file() for name in PUBLISHED):
        weights: dict[str, Tensor] = {}
        for name, digest in PUBLISHED.items():
            weights |= _read(root / name, digest)
        return LPIPS(weights)
    log.warning(
        "The perceptual term is OFF: no LPIPS weights in %s. For it, put there either %s, or both "
        "vgg16-397923af.pth (torchvision's VGG16_Weights.IMAGENET1K_V1, BSD-3-Clause) and vgg.pth (the v0.1 linear "
        "heads of the PerceptualSimilarity repository, BSD-2-Clause). stage.loss.perceptual=null silences this.",
        root,
        BUNDLE,
    )
    return None


def _read(path: Path, digest: str) -> dict[str, Tensor]:
    actual = hashlib.sha256(path.read_bytes()).hexdigest()
    if not actual.startswith(digest.lower()):
        raise ConfigError(
            "a weights file is not the one expected",
            key="stage.loss.perceptual.sha256",
            got=f"{path}: sha256 {actual}",
            allowed=f"sha256 {digest}",
            remedy="download the file again, or correct the checksum",
        )
    if path.suffix == ".safetensors":
        return load_file(path)
    return torch.load(path, map_location="cpu", weights_only=True)


def _flat(name: str) -> str:
    return name.replace(".", "_")


def _unit(x: Tensor) -> Tensor:
    return x / (x.square().sum(1, keepdim=True) + 1e-8).sqrt()
