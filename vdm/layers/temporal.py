"""Layers along time: the convolution stack of ModelScope, and attention over frames with or without LVDM's positions.

With frames as rows and positions as columns, a clip `b t h w c` is an image of t x (h w) in the channels-last layout, and
a convolution over time is a 2D convolution with a 3 x 1 kernel: no copy, and no 3D kernels, which are slow on a CPU.
Temporal attention reads the same memory with (position, head) as its heads.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn

from vdm.layers.attention import attend, per_head
from vdm.layers.lean import linear_add, norm_conv, norm_linear

TemporalPosition = Literal["none", "relative"]


class TemporalConv(nn.Module):
    """A residual stack of norm, SiLU, dropout (from the second on) and a convolution over three frames."""

    def __init__(self, *, width: int, layers: int, groups: int, dropout: float):
        super().__init__()
        self.dropout = dropout
        self.norms = nn.ModuleList(nn.GroupNorm(groups, width) for _ in range(layers))
        self.convs = nn.ModuleList(nn.Conv2d(width, width, (3, 1), padding=(1, 0)) for _ in range(layers))
        nn.init.zeros_(self.convs[-1].weight)  # frames start independent of each other
        nn.init.zeros_(self.convs[-1].bias)

    def forward(self, x: Tensor) -> Tensor:
        clip = branch = x.flatten(2, 3)  # b t (h w) c
        last = len(self.convs) - 1
        for index, (norm, conv) in enumerate(zip(self.norms, self.convs, strict=True)):
            dropout = self.dropout if self.training and index else 0.0
            branch = norm_conv(branch, norm, conv, dropout=dropout, add=clip if index == last else None)
        return branch.reshape(x.shape)


class RelativePosition(nn.Module):
    """A learned vector for each distance between two frames; distances beyond the longest share its vector."""

    def __init__(self, *, width: int, max_distance: int):
        super().__init__()
        self.max_distance = max_distance
        self.table = nn.Parameter(torch.empty(2 * max_distance + 1, width))
        nn.init.xavier_uniform_(self.table)

    def forward(self, frames: int) -> Tensor:
        at = torch.arange(frames, device=self.table.device)
        distance = (at[None, :] - at[:, None]).clamp(-self.max_distance, self.max_distance)
        return self.table[distance + self.max_distance]  # t t d


class TemporalAttention(nn.Module):
    """Attention of each position to itself in all frames, x `b t p c`; pre-norm, residual included."""

    def __init__(self, *, width: int, heads: int, head_width: int, position: TemporalPosition, max_distance: int):
        super().__init__()
        self.heads, self.head_width = heads, head_width
        self.norm = nn.LayerNorm(width)
        self.to_qkv = nn.Linear(width, 3 * heads * head_width, bias=False)
        self.to_out = nn.Linear(heads * head_width, width)
        relative = position == "relative"
        self.position_k = RelativePosition(width=head_width, max_distance=max_distance) if relative else None
        self.position_v = RelativePosition(width=head_width, max_distance=max_distance) if relative else None

    def forward(self, x: Tensor) -> Tensor:
        b, t, p, _ = x.shape
        qkv = norm_linear(x, self.norm, self.to_qkv)  # b t p (heads 3 d)
        q, k, v = per_head(qkv.view(b, t, -1), p * self.heads, 3)  # b (p heads) t d
        attended = attend(q, k, v) if self.position_k is None else self._relative(q, k, v)
        return linear_add(attended.transpose(1, 2).reshape(b, t, p, -1), self.to_out, add=x)

    def _relative(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """Shaw et al. (2018): positions enter the scores and the values, so the weights are needed in the open."""
        keys, values = self.position_k(q.shape[2]).to(q.dtype), self.position_v(q.shape[2]).to(q.dtype)
        scores = q @ k.transpose(2, 3) + torch.einsum("bptd,tsd->bpts", q, keys)
        weights = (scores * self.head_width**-0.5).softmax(dim=-1)
        return weights @ v + torch.einsum("bpts,tsd->bptd", weights, values)
