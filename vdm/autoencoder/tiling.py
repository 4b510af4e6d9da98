"""Encode and decode of clips that do not fit: overlapping tiles, blended, with group statistics of the whole clip.

A tile sees only what is inside it, so a value is right where the network's receptive field (one side, in pixels) ends
inside the tile. With `overlap >= receptive field` everything outside the overlaps equals the untiled result. A group
norm breaks this: its mean and variance run over the whole clip. `exact_norm` therefore measures those first, one norm
after the other, each pass running the tiles up to that norm; right when `overlap >= 2 * receptive field`. It costs
about half as many extra passes as there are norms, and no memory.
"""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from vdm.errors import ConfigError

AXES = ("frames", "height", "width")


@dataclass(frozen=True)
class Tiling:
    """Tile size and overlap of neighbouring tiles, both (frames, height, width) in pixels."""

    tile: Sequence[int]
    overlap: Sequence[int]
    exact_norm: bool

    def check(self, stride: Sequence[int]) -> None:
        for axis, tile, overlap, step in zip(AXES, self.tile, self.overlap, stride, strict=True):
            if tile % step or overlap % step or not 0 <= overlap < tile:
                raise ConfigError(
                    f"tiles of {tile} {axis} with an overlap of {overlap} do not fit the stride {step}",
                    key="autoencoder.tiling",
                    got=f"tile {list(self.tile)}, overlap {list(self.overlap)}",
                    allowed=f"multiples of {step} in {axis}, with 0 <= overlap < tile",
                    remedy="change autoencoder.tiling.tile and .overlap, or autoencoder.tiling=null for none",
                )

    def covers(self, sizes: Sequence[int]) -> bool:
        """Whether a clip of this size is larger than one tile."""
        return any(size > tile for size, tile in zip(sizes, self.tile, strict=True))

    def divided(self, stride: Sequence[int]) -> Tiling:
        """The same tiles in units of the latent."""
        tile = [size // step for size, step in zip(self.tile, stride, strict=True)]
        overlap = [size // step for size, step in zip(self.overlap, stride, strict=True)]
        return replace(self, tile=tile, overlap=overlap)


class GroupNorm(nn.GroupNorm):
    """Group norm that can be given the statistics of a clip of which it sees only a tile."""

    measuring: _Measurement | None = None
    fixed: tuple[Tensor, Tensor] | None = None  # mean and reciprocal deviation, b g

    def forward(self, x: Tensor) -> Tensor:
        if self.measuring is not None:
            self.measuring.add(x, self.num_groups)
            raise _Measured
        if self.fixed is None:
            return F.group_norm(x, self.num_groups, self.weight, self.bias, self.eps)
        mean, reciprocal = (s.repeat_interleave(x.shape[1] // self.num_groups, dim=1) for s in self.fixed)  # b c
        scale = reciprocal * self.weight
        shift = self.bias - mean * scale
        expand = (...,) + (None,) * (x.dim() - 2)
        return (x * scale[expand] + shift[expand]).to(x.dtype)


class _Measured(Exception):
    """Ends a tile's forward pass at the norm that is being measured."""


class _Measurement:
    """Sums over the parts of the tiles that no other tile counts."""

    def __init__(self) -> None:
        self.count, self.sum, self.square = 0, 0.0, 0.0
        self.core: Sequence[tuple[int, int]] = ()
        self.tile: Sequence[int] = ()

    def add(self, x: Tensor, groups: int) -> None:
        for axis, ((start, end), tile) in enumerate(zip(self.core, self.tile, strict=True), start=2):
            size = x.shape[axis]
            x = x.narrow(axis, start * size // tile, (end - start) * size // tile)
        values = x.reshape(x.shape[0], groups, -1).double()
        self.count += values.shape[-1]
        self.sum = self.sum + values.sum(-1)
        self.square = self.square + values.square().sum(-1)

    def statistics(self, eps: float) -> tuple[Tensor, Tensor]:
        mean = self.sum / self.count
        variance = (self.square / self.count - mean**2).clamp_min(0)
        return mean.float(), (variance + eps).rsqrt().float()


@dataclass(frozen=True)
class _Tile:
    start: tuple[int, ...]
    end: tuple[int, ...]
    core: tuple[tuple[int, int], ...]  # relative to start: the cores of all tiles partition the clip
    ramp: tuple[tuple[int, int], ...]  # overlap with the neighbour before and after


def _spans(size: int, tile: int, overlap: int) -> list[tuple[int, int]]:
    """Spans of at most `tile` that overlap by at least `overlap`; the last one is moved back to end at `size`."""
    if size <= tile:
        return [(0, size)]
    starts = list(range(0, size - tile, tile - overlap)) + [size - tile]
    return [(start, start + tile) for start in starts]


def _tiles(sizes: Sequence[int], tiling: Tiling, unit: Sequence[int]) -> list[_Tile]:
    per_axis = []
    for size, tile, overlap, step in zip(sizes, tiling.tile, tiling.overlap, unit, strict=True):
        spans = _spans(size, tile, overlap)
        before = [0] + [spans[i - 1][1] - spans[i][0] for i in range(1, len(spans))]
        after = before[1:] + [0]
        cuts = [0] + [s[0] + b // 2 // step * step for s, b in zip(spans[1:], before[1:], strict=True)] + [size]
        per_axis.append(
            [
                (start, end, (cuts[i] - start, cuts[i + 1] - start), (before[i], after[i]))
                for i, (start, end) in enumerate(spans)
            ]
        )
    return [_Tile(*zip(*parts, strict=True)) for parts in itertools.product(*per_axis)]


def run_tiled(
    module: nn.Module,
    function: Callable[[Tensor], Tensor],
    x: Tensor,
    *,
    tiling: Tiling,
    unit: Sequence[int],
    ratio: Sequence[tuple[int, int]],
) -> Tensor:
    """`function(x)` for `x: b c T H W` by tiles whose borders are multiples of `unit`; sizes change by `ratio`."""
    tiles = _tiles(x.shape[2:], tiling, unit)
    if not tiling.exact_norm:
        return _blend(function, x, tiles, ratio)
    norms = [m for m in module.modules() if isinstance(m, GroupNorm)]
    try:
        for norm in _execution_order(norms, function, x, tiles):
            norm.measuring = _Measurement()
            for tile in tiles:
                norm.measuring.core = tile.core
                norm.measuring.tile = [end - start for start, end in zip(tile.start, tile.end, strict=True)]
                with contextlib.suppress(_Measured):
                    function(_cut(x, tile))
            norm.fixed, norm.measuring = norm.measuring.statistics(norm.eps), None
        return _blend(function, x, tiles, ratio)
    finally:
        for norm in norms:
            norm.fixed = norm.measuring = None


def _execution_order(norms: list[GroupNorm], function: Callable, x: Tensor, tiles: list[_Tile]) -> list[GroupNorm]:
    """The norms `function` runs through, in its order (an encoder's pass does not meet the decoder's norms)."""
    order: list[GroupNorm] = []
    hooks = [norm.register_forward_pre_hook(lambda m, _: order.append(m)) for norm in norms]
    try:
        function(_cut(x[:1], tiles[0]))
    finally:
        for hook in hooks:
            hook.remove()
    return order


def _cut(x: Tensor, tile: _Tile) -> Tensor:
    for axis, (start, end) in enumerate(zip(tile.start, tile.end, strict=True), start=2):
        x = x.narrow(axis, start, end - start)
    return x


def _blend(function: Callable, x: Tensor, tiles: list[_Tile], ratio: Sequence[tuple[int, int]]) -> Tensor:
    """Weighted mean of the tiles, with weights that fall linearly over each overlap."""
    out = weights = None
    for tile in tiles:
        y = function(_cut(x, tile))
        if out is None:
            sizes = [size * up // down for size, (up, down) in zip(x.shape[2:], ratio, strict=True)]
            out = y.new_zeros(*y.shape[:2], *sizes)
            weights = y.new_zeros(1, 1, *sizes)
        weight = y.new_ones(())
        target, target_weight = out, weights
        for axis, (start, (up, down)) in enumerate(zip(tile.start, ratio, strict=True), start=2):
            size = y.shape[axis]
            before, after = (overlap * up // down for overlap in tile.ramp[axis - 2])
            line = y.new_ones(size)
            line[:before] = torch.arange(1, before + 1, device=y.device) / (before + 1)
            line[size - after :] *= torch.arange(after, 0, -1, device=y.device) / (after + 1)
            weight = weight * line.view(-1, *[1] * (4 - axis))
            target = target.narrow(axis, start * up // down, size)
            target_weight = target_weight.narrow(axis, start * up // down, size)
        target += y * weight
        target_weight += weight
    return out / weights
