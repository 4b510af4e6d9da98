"""The factorised 3D U-Net of the LVDM / ModelScope family: layers within a frame take turns with layers along time.

A cell is a residual block, a stack of temporal convolutions, a spatial transformer with one cross-attention per token
stream, and a temporal transformer. Inside, a clip is `b t h w c` and stays in that layout: every view a layer needs, of
frames, positions or heads, is then a view of the same memory. LVDM: He et al., 2022 (arXiv 2211.13221); ModelScope: Wang
et al., 2023 (arXiv 2308.06571).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from vdm.backbones.base import BlockTokens, Prepared
from vdm.backbones.cells import Cell, CellSettings, check_sizes
from vdm.bounds import Fraction, NonNegativeInt, PositiveInt
from vdm.errors import ConfigError
from vdm.layers.attention import Sight, sight
from vdm.layers.embeddings import MomentEmbedding, TimestepEmbedding, place_embedding
from vdm.layers.lean import norm_conv
from vdm.layers.resnet import Downsample, Upsample
from vdm.layers.transformer import TemporalTransformer, repeated, zero_initialised
from vdm.types import Controls


class Level(nn.Module):
    """The cells of one resolution on the way down or up, and the step to the next resolution."""

    def __init__(self, cells: Sequence[Cell], resample: Downsample | Upsample | None):
        super().__init__()
        self.cells = nn.ModuleList(cells)
        self.resample = resample


def _levels(
    settings: CellSettings, channels: int, widths: Sequence[int], blocks: int, attention_levels: set[int]
) -> tuple[nn.ModuleList, nn.ModuleList, nn.ModuleList]:
    """The way down, the middle and the way up. Every tensor made on the way down is read once on the way up."""
    last, skips, width = len(widths) - 1, [channels], channels
    down, up = nn.ModuleList(), nn.ModuleList()
    for level, out in enumerate(widths):
        cells = []
        for _ in range(blocks):
            cells.append(settings.cell(width, out, attends=level in attention_levels))
            width = out
        down.append(Level(cells, Downsample(width=out) if level < last else None))
        skips += [out] * (blocks + (level < last))
    mid = nn.ModuleList([settings.cell(width, width, attends=True), settings.cell(width, width, attends=False)])
    for level, out in reversed(list(enumerate(widths))):
        cells = []
        for _ in range(blocks + 1):
            cells.append(settings.cell(width + skips.pop(), out, attends=level in attention_levels))
            width = out
        up.append(Level(cells, Upsample(width=out) if level else None))
    return down, mid, up


class UNet3D(nn.Module):
    """`multipliers` has one entry per level; level i is `channels * multipliers[i]` wide and 1 / 2^i in height and width."""

    def __init__(
        self,
        *,
        latent_channels: PositiveInt,
        channels: PositiveInt,
        multipliers: Sequence[int],
        blocks: PositiveInt,
        attention_levels: Sequence[int],
        heads: PositiveInt | None,
        head_width: PositiveInt | None,
        depth: PositiveInt,
        feed_forward_ratio: PositiveInt,
        norm_groups: PositiveInt,
        dropout: Fraction,
        time_conditioning: Literal["add", "scale_shift"],
        temporal_conv: NonNegativeInt,
        temporal_dropout: Fraction,
        temporal_attention: Literal["separate", "interleaved", "none"],
        temporal_position: Literal["none", "relative"],
        temporal_max_distance: PositiveInt,
        temporal_in_heads: NonNegativeInt,
        temporal_in_head_width: PositiveInt,
        coordinates: NonNegativeInt,
        moments: NonNegativeInt,
        checkpoint_levels: Sequence[int],
        compile: bool,
        streams: Mapping[str, int] | None = None,
        concat_channels: NonNegativeInt = 0,
        embed_width: NonNegativeInt = 0,
    ):
        super().__init__()
        self.latent_channels, self.stride = latent_channels, 2 ** (len(multipliers) - 1)
        self.streams: dict[str, int] = {}
        self.concat_channels = self.embed_width = 0
        self.checkpoint_levels = frozenset(checkpoint_levels)
        self.widths = widths = [channels * multiplier for multiplier in multipliers]
        self.blocks, self.attention_levels = blocks, sorted(set(attention_levels))
        check_sizes(widths, norm_groups, attention_levels, checkpoint_levels, heads, head_width)

        self.settings = CellSettings(
            embedding=4 * channels,
            heads=heads,
            head_width=head_width,
            depth=depth,
            feed_forward_ratio=feed_forward_ratio,
            norm_groups=norm_groups,
            dropout=dropout,
            time_conditioning=time_conditioning,
            temporal_conv=temporal_conv,
            temporal_dropout=temporal_dropout,
            temporal_attention=temporal_attention,
            temporal_position=temporal_position,
            temporal_max_distance=temporal_max_distance,
        )
        self.time_embedding = TimestepEmbedding(width=channels, hidden=4 * channels)
        self.conv_in = nn.Conv2d(latent_channels, channels, 3, padding=1)
        self.coordinates = coordinates
        self.place_in: nn.Linear | None = None
        if coordinates:
            self.place_in = zero_initialised(nn.Linear((coordinates + 1) ** 3 - 1, channels, bias=False))
        self.moments = moments
        self.moment_embedding = MomentEmbedding(width=4 * channels, hidden=channels, waves=moments) if moments else None
        self.temporal_in: TemporalTransformer | None = None
        if temporal_in_heads:
            self.temporal_in = TemporalTransformer(
                self.settings.transformer(channels, temporal_in_heads, temporal_in_head_width)
            )
        self.down, self.mid, self.up = _levels(self.settings, channels, widths, blocks, set(attention_levels))
        self.norm_out = nn.GroupNorm(norm_groups, widths[0])
        self.conv_out = zero_initialised(nn.Conv2d(widths[0], latent_channels, 3, padding=1))

        self.embed_in: nn.Linear | None = None
        self.concat_in: nn.Conv2d | None = None
        self.open_doors(streams=streams or {}, concat_channels=concat_channels, embed_width=embed_width)
        self.to(memory_format=torch.channels_last)
        if compile:
            self.compile_cells()

    def open_doors(self, *, streams: Mapping[str, int], concat_channels: int = 0, embed_width: int = 0) -> None:
        """Make room for what conditions will say. The output stays what it was, bit for bit; keys are only added."""
        for stream, token_width in streams.items():
            if stream in self.streams:
                _same_width(f"streams.{stream}", self.streams[stream], token_width)
                continue
            for cell in self.cells():
                for block in cell.spatial.blocks if cell.spatial is not None else ():
                    block.attach(stream, token_width)
            self.streams[stream] = token_width
        like = self.conv_in.weight
        if concat_channels and self.concat_in is None:
            conv = nn.Conv2d(concat_channels, like.shape[0], 3, padding=1, bias=False)
            self.concat_in = zero_initialised(conv).to(like.device, like.dtype, memory_format=torch.channels_last)
            self.concat_channels = concat_channels
        elif concat_channels:
            _same_width("concat_channels", self.concat_channels, concat_channels)
        if embed_width and self.embed_in is None:
            linear = nn.Linear(embed_width, self.time_embedding.linear2.out_features, bias=False)
            self.embed_in = zero_initialised(linear).to(like.device, like.dtype)
            self.embed_width = embed_width
        elif embed_width:
            _same_width("embed_width", self.embed_width, embed_width)

    def door_keys(self, *doors: str) -> list[str]:
        """Names of the tensors of some doors (streams by their name, `concat`, `embed`): what older weights lack."""
        starts = tuple(f"{door}_in." for door in doors)
        parts = tuple(f".streams.{door}." for door in doors)
        return [name for name in self.state_dict() if name.startswith(starts) or any(part in name for part in parts)]

    def compile_cells(self, backend: str = "inductor") -> None:
        """Compile each cell on its own, for the sizes it meets: cells of one form share their code."""
        cells = list(self.cells())
        limit = torch._dynamo.config.recompile_limit  # counts the cells of all forms as one function; the default is 8
        torch._dynamo.config.recompile_limit = max(limit, 4 * len(cells))
        for cell in cells:
            cell.compile(backend=backend, dynamic=False)

    def cells(self) -> Iterator[Cell]:
        """In the order they run."""
        for level in self.down:
            yield from level.cells
        yield from self.mid
        for level in self.up:
            yield from level.cells

    def prepare(self, controls: Controls | None) -> Prepared:
        """Everything about the controls that no denoising step changes: once per video."""
        plain = self._unprojected(controls)

        def project(cell: Cell, given: tuple[BlockTokens, ...]) -> tuple[BlockTokens, ...]:
            pairs = zip(cell.spatial.blocks, given, strict=True) if cell.spatial is not None else ()
            return tuple(
                {stream: block.cross_attention.project(stream, values) for stream, values in tokens.items()}
                for block, tokens in pairs
            )

        tokens = tuple(project(cell, given) for cell, given in zip(self.cells(), plain.tokens, strict=True))
        return Prepared(plain.embed, plain.concat, tokens, plain.visible)

    def forward(
        self, x: Tensor, timestep: Tensor, controls: Controls | Prepared | None = None, *, branches: int = 1
    ) -> Tensor:
        """x `b c t h w`, timestep `b` -> `b c t h w`. With several branches the controls are of as many batches, one behind
        the other, all about these latents; so is the result. What no control reaches is computed once for all of them.
        """
        self._check_latent(x)
        prepared = controls if isinstance(controls, Prepared) else self._unprojected(controls)
        b, _, t, h, w = x.shape
        count = branches * b
        if prepared.batch_size not in (None, count):
            got = f"{prepared.batch_size} samples"
            raise ConfigError(
                "controls and latents have different batches", key="controls", got=got, allowed=str(count)
            )
        dtype = _compute_dtype(x)
        embedding = self.time_embedding(timestep.expand(b))
        if prepared.embed is not None:
            told = _of_frames(prepared.embed, t)
            embedding = repeated(embedding, count).view(count, *[1] * (told.dim() - 2), -1) + told
        if self.moment_embedding is not None:
            embedding = self.moment_embedding(embedding, t)
        embedding = F.silu(embedding).to(dtype)  # b e, or b t e
        x = _conv_frames(self.conv_in, x.to(dtype))  # b t h w c
        if self.place_in is not None:
            x = x + self.place_in(place_embedding(t, h, w, self.coordinates, like=x))
        if prepared.concat is not None:
            x = repeated(x, count) + _fitting(prepared.concat, x).to(dtype)
        if prepared.embed is not None:
            x = repeated(x, count)
        if self.temporal_in is not None:
            x = self.temporal_in(x)

        tokens, last = iter(prepared.tokens), len(self.down) - 1
        positions = {i: (h >> i) * (w >> i) for i in {*self.attention_levels, last}}
        sights = {i: _sights(prepared.visible, t, p, dtype) for i, p in positions.items()}
        skips = [x]
        for index, level in enumerate(self.down):
            for cell in level.cells:
                x = self._run(cell, index, x, embedding, next(tokens), sights.get(index, {}))
                skips.append(x)
            if level.resample is not None:
                x = level.resample(x)
                skips.append(x)
        for cell in self.mid:
            x = self._run(cell, last, x, embedding, next(tokens), sights[last])
        for index, level in zip(range(last, -1, -1), self.up, strict=True):
            for cell in level.cells:
                joined = torch.cat([x, repeated(skips.pop(), len(x))], dim=-1)
                x = self._run(cell, index, joined, embedding, next(tokens), sights.get(index, {}))
            if level.resample is not None:
                x = level.resample(x)
        x = norm_conv(x.flatten(0, 1), self.norm_out, self.conv_out).unflatten(0, (-1, t))
        return repeated(x.permute(0, 4, 1, 2, 3).contiguous(), count)

    def _run(self, cell: Cell, level: int, x: Tensor, embedding: Tensor, *controls) -> Tensor:
        inputs = x, repeated(embedding, len(x)), *controls
        if level in self.checkpoint_levels and torch.is_grad_enabled():
            return checkpoint(cell, *inputs, use_reentrant=False)
        return cell(*inputs)

    def _unprojected(self, controls: Controls | None) -> Prepared:
        """Controls at their doors. Tokens stay tokens: each block projects its own, in its own (sharded) forward."""
        controls = Controls() if controls is None else controls
        self._check_doors(controls)
        dtype = _compute_dtype(self.conv_in.weight)
        tokens = {stream: given.values.to(dtype) for stream, given in controls.tokens.items()}
        concat = None if controls.concat is None else _conv_frames(self.concat_in, controls.concat.to(dtype))
        return Prepared(
            embed=None if controls.embed is None else self.embed_in(controls.embed.to(dtype)),
            concat=concat,
            tokens=tuple((tokens,) * (0 if c.spatial is None else len(c.spatial.blocks)) for c in self.cells()),
            visible={stream: given.visible for stream, given in controls.tokens.items() if given.visible is not None},
        )

    def _check_latent(self, x: Tensor) -> None:
        if x.ndim != 5 or x.shape[1] != self.latent_channels:
            got = " x ".join(map(str, x.shape))
            raise ConfigError(
                f"the backbone reads latents of {self.latent_channels} channels, b c t h w",
                key="backbone.latent_channels",
                got=got,
            )
        for name, size in zip(("height", "width"), x.shape[3:], strict=True):
            if size % self.stride:
                below, above = size // self.stride * self.stride, (size // self.stride + 1) * self.stride
                raise ConfigError(
                    f"the backbone halves the latent {self.stride.bit_length() - 1} times, which does not divide its {name}",
                    key="backbone.multipliers",
                    got=f"{size} latent pixels",
                    allowed=f"multiples of {self.stride}, such as {below or above} or {above}",
                    remedy=f"change the {name} of the video, or use fewer levels",
                )

    def _check_doors(self, controls: Controls) -> None:
        for stream, tokens in controls.tokens.items():
            width = self.streams.get(stream)
            if width is None:
                raise ConfigError(
                    "a condition speaks to a stream this backbone has not opened",
                    key="backbone.streams",
                    got=stream,
                    allowed=list(self.streams) or "none is open",
                )
            _same_width(f"streams.{stream}", width, tokens.values.shape[-1])
        if controls.concat is not None:
            _same_width("concat_channels", self.concat_channels, controls.concat.shape[1])
        if controls.embed is not None:
            _same_width("embed_width", self.embed_width, controls.embed.shape[-1])


def _conv_frames(conv: nn.Conv2d, x: Tensor) -> Tensor:
    """A convolution within each frame, from `b c t h w` to the inner layout `b t h w c`."""
    frames = x.permute(0, 2, 3, 4, 1).contiguous().flatten(0, 1).permute(0, 3, 1, 2)
    return conv(frames).permute(0, 2, 3, 1).contiguous().unflatten(0, (x.shape[0], x.shape[2]))


def _sights(visible: Mapping[str, Tensor], frames: int, positions: int, dtype: torch.dtype) -> dict[str, Sight]:
    for stream, mask in visible.items():
        if mask.shape[1] not in (1, frames):
            raise ConfigError(
                f"the {stream} tokens say what each frame sees, for another number of frames",
                key=f"controls.tokens.{stream}.visible",
                got=f"{mask.shape[1]} frames",
                allowed=f"1 or {frames}",
            )
    return {stream: sight(mask, positions, dtype) for stream, mask in visible.items()}


def _of_frames(embed: Tensor, frames: int) -> Tensor:
    if embed.dim() == 3 and embed.shape[1] not in (1, frames):
        raise ConfigError(
            "an embedding says something for each frame, for another number of frames",
            key="controls.embed",
            got=f"{embed.shape[1]} frames",
            allowed=f"1 or {frames}",
        )
    return embed.expand(-1, frames, -1) if embed.dim() == 3 else embed


def _fitting(concat: Tensor, x: Tensor) -> Tensor:
    if concat.shape[1:] != x.shape[1:]:
        got, allowed = (" x ".join(map(str, tensor.shape[1:4])) for tensor in (concat, x))
        raise ConfigError(
            "a control map has another size than the latent", key="controls.concat", got=got, allowed=allowed
        )
    return concat


def _compute_dtype(x: Tensor) -> torch.dtype:
    """What the body computes in: the dtype of automatic mixed precision where it is on."""
    device = x.device.type
    mixed = torch.amp.is_autocast_available(device) and torch.is_autocast_enabled(device)
    return torch.get_autocast_dtype(device) if mixed else x.dtype


def _same_width(key: str, opened: int, got: int) -> None:
    if opened != got:
        what = "a door of the backbone was opened for another width" if opened else "this door of the backbone is shut"
        raise ConfigError(
            what, key=f"backbone.{key}", got=got, allowed=str(opened) if opened else "0: nothing was to come through it"
        )
