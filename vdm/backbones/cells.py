"""One step of the 3D U-Net at one resolution, and the settings all steps of a network share."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from torch import Tensor, nn

from vdm.backbones.base import BlockTokens
from vdm.errors import ConfigError
from vdm.layers.attention import Sight
from vdm.layers.resnet import ResnetBlock, TimeConditioning
from vdm.layers.temporal import TemporalConv, TemporalPosition
from vdm.layers.transformer import SpatialTransformer, TemporalTransformer, TransformerShape

TemporalAttentionKind = Literal["separate", "interleaved", "none"]


class Cell(nn.Module):
    """One step at one resolution. The unit of compilation and of activation checkpointing."""

    def __init__(
        self,
        *,
        resnet: ResnetBlock,
        temporal_conv: TemporalConv | None,
        spatial: SpatialTransformer | None,
        temporal: TemporalTransformer | None,
    ):
        super().__init__()
        self.resnet, self.temporal_conv, self.spatial, self.temporal = resnet, temporal_conv, spatial, temporal

    def forward(
        self, x: Tensor, embedding: Tensor, tokens: Sequence[BlockTokens], sights: Mapping[str, Sight]
    ) -> Tensor:
        x = self.resnet(x, embedding)
        if self.temporal_conv is not None:
            x = self.temporal_conv(x)
        if self.spatial is not None:
            x = self.spatial(x, tokens, sights)
        return x if self.temporal is None else self.temporal(x)


@dataclass(frozen=True)
class CellSettings:
    """What every cell of a network has in common; `cell` and `transformer` make its parts."""

    embedding: int
    heads: int | None
    head_width: int | None
    depth: int
    feed_forward_ratio: int
    norm_groups: int
    dropout: float
    time_conditioning: TimeConditioning
    temporal_conv: int
    temporal_dropout: float
    temporal_attention: TemporalAttentionKind
    temporal_position: TemporalPosition
    temporal_max_distance: int

    def cell(self, width_in: int, width_out: int, *, attends: bool) -> Cell:
        groups = self.norm_groups
        resnet = ResnetBlock(
            width_in=width_in,
            width_out=width_out,
            embedding=self.embedding,
            groups=groups,
            dropout=self.dropout,
            time_conditioning=self.time_conditioning,
        )
        layers, dropout = self.temporal_conv, self.temporal_dropout
        conv = TemporalConv(width=width_out, layers=layers, groups=groups, dropout=dropout) if layers else None
        if not attends:
            return Cell(resnet=resnet, temporal_conv=conv, spatial=None, temporal=None)
        shape = self.transformer(width_out, self.heads or width_out // self.head_width)
        temporal = TemporalTransformer(shape) if self.temporal_attention == "separate" else None
        return Cell(resnet=resnet, temporal_conv=conv, spatial=SpatialTransformer(shape), temporal=temporal)

    def transformer(self, width: int, heads: int, head_width: int | None = None) -> TransformerShape:
        return TransformerShape(
            width=width,
            heads=heads,
            head_width=head_width or width // heads,
            groups=self.norm_groups,
            depth=self.depth,
            ratio=self.feed_forward_ratio,
            position=self.temporal_position,
            max_distance=self.temporal_max_distance,
            interleaved=self.temporal_attention == "interleaved",
        )


def check_sizes(
    widths: Sequence[int],
    groups: int,
    attention_levels: Sequence[int],
    checkpoint_levels: Sequence[int],
    heads: int | None,
    head_width: int | None,
) -> None:
    """Levels, groups and heads must divide the widths they are parts of."""
    if not widths or any(width < 1 for width in widths):
        raise ConfigError("there must be levels, each some channels wide", key="backbone.multipliers", got=list(widths))
    if widths[0] % 2:
        what = "the timestep embedding is as wide as the first level, half sines and half cosines"
        raise ConfigError(what, key="backbone.channels", got=widths[0], allowed="an even number")
    if any(width % groups for width in widths):
        fits = math.gcd(*widths)
        remedy = f"set backbone.norm_groups={math.gcd(groups, fits)}"
        raise ConfigError(
            f"levels are {widths} wide, which does not divide into {groups} groups",
            key="backbone.norm_groups",
            got=groups,
            allowed=f"a divisor of {fits}",
            remedy=remedy,
        )
    for key, levels in (("attention_levels", attention_levels), ("checkpoint_levels", checkpoint_levels)):
        unknown = sorted(set(levels) - set(range(len(widths))))
        if unknown:
            allowed = f"0 (full size) to {len(widths) - 1}"
            raise ConfigError(
                f"there is no level {unknown[0]}", key=f"backbone.{key}", got=list(levels), allowed=allowed
            )
    if (heads is None) == (head_width is None):
        what = "heads are given by their number or by their width"
        raise ConfigError(
            what, key="backbone.heads", got=f"heads {heads}, head_width {head_width}", allowed="one of the two"
        )
    attending = {widths[level] for level in attention_levels} | {widths[-1]}
    wrong = sorted(width for width in attending if width % (heads or head_width))
    if wrong:
        key = "heads" if heads else "head_width"
        allowed = f"a divisor of {math.gcd(*attending)}"
        raise ConfigError(
            f"a width of {wrong[0]} does not divide into heads",
            key=f"backbone.{key}",
            got=heads or head_width,
            allowed=allowed,
        )
