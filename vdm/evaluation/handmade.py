"""Features of clips written down by hand, without training or weights: where patches of a colour are and how they move.

For small worlds of coloured things on dull ground. A Frechet distance of them is no FVD and has another scale and name.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

VERSION = 1  # of the features below: kept ones are of one version
HUES = 8
DULL = 0.2  # saturation up to which a pixel has no hue
EMPTY = 0.002  # share of the picture below which a patch fades out of the features

# What one unit of each kind of number is divided by, so that no kind outweighs the others.
SCALE = {
    "mass": 0.02, "mass_change": 0.03, "place": 0.5, "shift": 0.5, "path": 0.5, "spread": 0.1, "growth": 0.1,
    "light": 0.2, "contrast": 0.1, "edges": 0.02, "grain": 0.02, "change": 0.02, "jitter": 0.05,
}  # fmt: skip


class HandmadeFeatures:
    """78 numbers of a clip b 3 T H W in uint8. Clips of one frame stand still."""

    @torch.no_grad()
    def __call__(self, pictures: Tensor) -> Tensor:
        assert pictures.dtype == torch.uint8, "features see what viewers see"
        x = pictures.transpose(1, 2).float() / 255  # b T 3 H W
        parts = {**_patches(x), **_surface(x)}
        return torch.cat([parts[name].flatten(1) / unit for name, unit in SCALE.items()], dim=1).cpu()

    def check_ready(self) -> None:
        """Nothing is needed."""

    def facts(self) -> dict[str, Any]:
        return {"network": f"none: features by hand, {VERSION}", "resize": "none"}


def _patches(x: Tensor) -> dict[str, Tensor]:
    """By hue: mass, place and spread of the pixels that have it, and their change over the clip."""
    height, width = x.shape[-2:]
    weights = _hues(x)  # b T k H W
    mass = weights.mean((-1, -2))  # b T k
    down, across = (torch.linspace(-1, 1, n, device=x.device) for n in (height, width))
    held = mass + EMPTY
    place = torch.stack([
        (weights * across).mean((-1, -2)) / held, (weights * down[:, None]).mean((-1, -2)) / held,
    ], dim=-1)  # b T k 2  # fmt: skip
    squares = across.square() + down[:, None].square()
    spread = (weights * squares).mean((-1, -2)) / held - place.square().sum(-1)
    return {
        "mass": mass.mean(1), "mass_change": mass.diff(dim=1).abs().sum(1), "place": place.mean(1),
        "shift": place[:, -1] - place[:, 0], "path": place.diff(dim=1).norm(dim=-1).sum(1),
        "spread": spread.mean(1), "growth": spread[:, -1] - spread[:, 0],
    }  # fmt: skip


def _surface(x: Tensor) -> dict[str, Tensor]:
    """Light, contrast, edges, grain, and change from frame to frame, over the whole picture."""
    grey = x.mean(2)  # b T H W
    grain = x[..., 1:-1, 1:-1] - (x[..., :-2, 1:-1] + x[..., 2:, 1:-1] + x[..., 1:-1, :-2] + x[..., 1:-1, 2:]) / 4
    change, jitter = x.diff(dim=1), x.diff(n=2, dim=1)
    found = {
        "light": grey.mean((1, 2, 3)), "contrast": grey.std((2, 3)).mean(1),
        "edges": (x.diff(dim=-1).abs().flatten(1).mean(1) + x.diff(dim=-2).abs().flatten(1).mean(1)) / 2,
        "grain": grain.abs().flatten(1).mean(1),
        "change": change.abs().flatten(1).sum(1) / max(1, change[0].numel()),
        "jitter": jitter.abs().flatten(1).sum(1) / max(1, jitter[0].numel()),
    }  # fmt: skip
    return {name: value[:, None] for name, value in found.items()}


def _hues(x: Tensor) -> Tensor:
    """b T k H W: how much a pixel belongs to each of k hues, 0 for dull ones."""
    red, green, blue = x.unbind(2)
    angle = torch.atan2((green - blue) * (math.sqrt(3) / 2), red - (green + blue) / 2)
    strength = ((x.amax(2) - x.amin(2) - DULL) / (1 - DULL)).clamp_min(0)
    centres = torch.arange(HUES, device=x.device) * (2 * math.pi / HUES)
    near = torch.cos(angle[:, :, None] - centres.view(1, 1, -1, 1, 1)).clamp_min(0) ** 8
    return near * strength[:, :, None]
