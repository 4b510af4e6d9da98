"""The two transformers of a cell: within a frame (with the token streams), and along time.

`interleaved` is LVDM's arrangement: temporal attention stands between the layers of the spatial block, under one norm.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from torch import Tensor, nn

from vdm.layers.attention import CrossAttention, FeedForward, KeysValues, SelfAttention, Sight
from vdm.layers.lean import linear_add, norm_linear
from vdm.layers.temporal import TemporalAttention, TemporalPosition

StreamTokens = Mapping[str, Tensor | KeysValues]


@dataclass(frozen=True)
class TransformerShape:
    """Sizes that the layers of one transformer share. Inside it is `heads * head_width` wide."""

    width: int
    heads: int
    head_width: int
    groups: int
    depth: int
    ratio: int
    position: TemporalPosition
    max_distance: int
    interleaved: bool

    @property
    def inner(self) -> int:
        return self.heads * self.head_width

    def temporal_attention(self) -> TemporalAttention:
        return TemporalAttention(
            width=self.inner,
            heads=self.heads,
            head_width=self.head_width,
            position=self.position,
            max_distance=self.max_distance,
        )


class SpatialTransformer(nn.Module):
    """Blocks within a frame, between two projections. The group norm counts one frame."""

    def __init__(self, shape: TransformerShape):
        super().__init__()
        self.norm = nn.GroupNorm(shape.groups, shape.width, eps=1e-6)
        self.proj_in = nn.Linear(shape.width, shape.inner)
        self.blocks = nn.ModuleList(SpatialBlock(shape) for _ in range(shape.depth))
        self.proj_out = zero_initialised(nn.Linear(shape.inner, shape.width))

    def forward(self, x: Tensor, tokens: Sequence[StreamTokens], sights: Mapping[str, Sight]) -> Tensor:
        """x is `b t h w c`; `tokens` has one entry per block."""
        b, t = x.shape[:2]
        frames = x.flatten(0, 1).flatten(1, 2)  # (b t) (h w) c
        rows = norm_linear(frames, self.norm, self.proj_in).unflatten(0, (b, t))  # b t (h w) c
        for block, given in zip(self.blocks, tokens, strict=True):
            rows = block(rows, given, sights)
        return linear_add(rows, self.proj_out, add=repeated(x, len(rows)))


class SpatialBlock(nn.Module):
    """Self-attention, cross-attention where a stream is open, feed-forward."""

    def __init__(self, shape: TransformerShape):
        super().__init__()
        self.shape = shape
        self.self_attention = SelfAttention(width=shape.inner, heads=shape.heads, head_width=shape.head_width)
        self.temporal1 = _closed(shape.temporal_attention()) if shape.interleaved else None
        self.cross_attention: CrossAttention | None = None
        self.temporal2 = _closed(shape.temporal_attention()) if shape.interleaved else None
        self.feed_forward = FeedForward(width=shape.inner, ratio=shape.ratio)

    def attach(self, stream: str, token_width: int) -> None:
        """Open a stream, next to where this block already is."""
        shape, weight = self.shape, self.feed_forward.to_out.weight
        if self.cross_attention is None:
            cross = CrossAttention(width=shape.inner, heads=shape.heads, head_width=shape.head_width)
            self.cross_attention = cross.to(weight.device, weight.dtype)
        self.cross_attention.attach(stream, token_width)

    def forward(self, x: Tensor, tokens: StreamTokens, sights: Mapping[str, Sight]) -> Tensor:
        """x is `b t (h w) c`."""
        shape = x.shape
        x = self.self_attention(x.flatten(0, 1)).view(shape)
        if self.temporal1 is not None:
            x = self.temporal1(x)
        if self.cross_attention is not None:
            x = repeated(x, samples_of(tokens) or len(x))
            shape = x.shape
            x = self.cross_attention(x.flatten(1, 2), tokens, sights).view(shape)
        if self.temporal2 is not None:
            x = self.temporal2(x)
        return self.feed_forward(x)


class TemporalTransformer(nn.Module):
    """Blocks of two self-attentions along time. The group norm counts the whole clip."""

    def __init__(self, shape: TransformerShape):
        super().__init__()
        self.norm = nn.GroupNorm(shape.groups, shape.width, eps=1e-6)
        self.proj_in = nn.Linear(shape.width, shape.inner)
        self.blocks = nn.ModuleList(TemporalBlock(shape) for _ in range(shape.depth))
        self.proj_out = zero_initialised(nn.Linear(shape.inner, shape.width))

    def forward(self, x: Tensor) -> Tensor:
        """x is `b t h w c`."""
        rows = norm_linear(x.flatten(2, 3), self.norm, self.proj_in)  # b t (h w) c
        for block in self.blocks:
            rows = block(rows)
        return linear_add(rows, self.proj_out, add=x)


class TemporalBlock(nn.Module):
    def __init__(self, shape: TransformerShape):
        super().__init__()
        self.attention1 = shape.temporal_attention()
        self.attention2 = shape.temporal_attention()
        self.feed_forward = FeedForward(width=shape.inner, ratio=shape.ratio)

    def forward(self, x: Tensor) -> Tensor:
        return self.feed_forward(self.attention2(self.attention1(x)))


def samples_of(tokens: StreamTokens) -> int | None:
    """How many samples the tokens speak to: several times those of a clip where branches of guidance share it."""
    given = next(iter(tokens.values()), None)
    return None if given is None else len(given.keys if isinstance(given, KeysValues) else given)


def repeated(x: Tensor, count: int) -> Tensor:
    """The batch of x as often as it takes to make `count` samples."""
    return x if len(x) == count else x.repeat(count // len(x), *[1] * (x.ndim - 1))


def _closed(attention: TemporalAttention) -> TemporalAttention:
    """Starts as nothing, so that a block filled with the weights of an image model still computes that model."""
    zero_initialised(attention.to_out)
    return attention


def zero_initialised(layer: nn.Linear | nn.Conv2d) -> nn.Linear | nn.Conv2d:
    """The last layer of a residual branch: the branch starts as nothing."""
    nn.init.zeros_(layer.weight)
    if layer.bias is not None:
        nn.init.zeros_(layer.bias)
    return layer
