"""Residual block within a frame, and the layers that halve and double a frame. Tensors are `b t h w c`."""

from __future__ import annotations

from typing import Literal

from torch import Tensor, nn

from vdm.layers.lean import norm_conv
from vdm.layers.subpixel import upsampled_conv

TimeConditioning = Literal["add", "scale_shift"]


class ResnetBlock(nn.Module):
    """Two convolutions of 3 x 3; the timestep embedding shifts, or scales and shifts, what lies between them."""

    def __init__(
        self,
        *,
        width_in: int,
        width_out: int,
        embedding: int,
        groups: int,
        dropout: float,
        time_conditioning: TimeConditioning,
    ):
        super().__init__()
        self.dropout, self.modulates = dropout, time_conditioning == "scale_shift"
        self.norm1 = nn.GroupNorm(groups, width_in)
        self.conv1 = nn.Conv2d(width_in, width_out, 3, padding=1)
        self.time = nn.Linear(embedding, 2 * width_out if self.modulates else width_out)
        self.norm2 = nn.GroupNorm(groups, width_out)
        self.conv2 = nn.Conv2d(width_out, width_out, 3, padding=1)
        nn.init.zeros_(self.conv2.weight)  # the block starts as its shortcut
        nn.init.zeros_(self.conv2.bias)
        self.shortcut = nn.Linear(width_in, width_out) if width_in != width_out else None

    def forward(self, x: Tensor, embedding: Tensor) -> Tensor:
        """`embedding` is b e, or b t e where frames are told different things; already activated."""
        frames = x.flatten(0, 1)  # (b t) h w c
        time = self.time(embedding)
        time = time.flatten(0, 1) if time.dim() == 3 else time.repeat_interleave(x.shape[1], dim=0)  # (b t) c
        shift = None if self.modulates else time[:, None, None]
        branch = norm_conv(frames, self.norm1, self.conv1, add=shift)
        scale_shift = time if self.modulates else None
        dropout = self.dropout if self.training else 0.0
        skip = frames if self.shortcut is None else self.shortcut(frames)
        out = norm_conv(branch, self.norm2, self.conv2, scale_shift=scale_shift, dropout=dropout, add=skip)
        return out.unflatten(0, x.shape[:2])


class Downsample(nn.Module):
    def __init__(self, *, width: int):
        super().__init__()
        self.conv = nn.Conv2d(width, width, 3, stride=2, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        frames = x.flatten(0, 1).permute(0, 3, 1, 2)
        return self.conv(frames).permute(0, 2, 3, 1).unflatten(0, x.shape[:2])


class Upsample(nn.Module):
    def __init__(self, *, width: int):
        super().__init__()
        self.conv = nn.Conv2d(width, width, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return upsampled_conv(x.flatten(0, 1), self.conv).unflatten(0, x.shape[:2])
