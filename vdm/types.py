"""What flows between the parts: batches of clips, and the three doors of the backbone.

Letters, everywhere: b batch, c latent channels, t h w latent frames and size, T H W the same in pixels, n tokens,
d token width, e embedding width, k control channels, m scene graphs or ticks.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple, NotRequired, TypedDict

import torch
from torch import Tensor


class VideoBatch(TypedDict):
    """A dictionary, so that default collate, pinned memory and device transfer work untouched."""

    video: Tensor  # b 3 T H W in [-1, 1]
    caption: list[str]
    fps: Tensor  # b
    key: list[str]  # stable id of each clip: it seeds the noise and names output files
    extras: NotRequired[dict[str, Any]]  # signals under the name of their condition


class LatentShape(NamedTuple):
    """Shape of one latent clip, without the batch."""

    channels: int
    frames: int
    height: int
    width: int


@dataclass(frozen=True, eq=False)  # compared by identity, so that a backbone may keep what it made of them
class Tokens:
    """What a stream of cross-attention reads. `visible` joins padding, dropping and per-frame tokens in one boolean."""

    values: Tensor  # b n d
    visible: Tensor | None = None  # b t n, or b 1 n where every frame sees the same; None: everything is seen

    def __len__(self) -> int:
        return len(self.values)

    def __getitem__(self, index: Any) -> Tokens:
        """Some samples of the batch: a slice, or a tensor of indices."""
        return self._each(lambda x: x[index])

    def __add__(self, other: Tokens) -> Tokens:
        """Tokens of one stream, one after the other."""
        values = torch.cat([self.values, other.values], dim=1)
        if self.visible is None and other.visible is None:
            return Tokens(values)
        masks = [tokens._mask() for tokens in (self, other)]
        frames = max(mask.shape[1] for mask in masks)
        return Tokens(values, torch.cat([mask.expand(-1, frames, -1) for mask in masks], dim=2))

    def repeat(self, times: int) -> Tokens:
        """The whole batch again and again, as `Tensor.repeat` does."""
        return self._each(lambda x: x.repeat(times, 1, 1))

    def to(self, device: torch.device | str, dtype: torch.dtype | None = None) -> Tokens:
        return Tokens(self.values.to(device, dtype), None if self.visible is None else self.visible.to(device))

    @staticmethod
    def cat(parts: Sequence[Tokens]) -> Tokens:
        """One batch out of several. Shorter ones are filled up with tokens nobody sees."""
        length = max(part.values.shape[1] for part in parts)
        parts = [part._filled(length) for part in parts]
        values = torch.cat([part.values for part in parts])
        if all(part.visible is None for part in parts):
            return Tokens(values)
        masks = [part._mask() for part in parts]
        frames = max(mask.shape[1] for mask in masks)
        return Tokens(values, torch.cat([mask.expand(-1, frames, -1) for mask in masks]))

    def _mask(self) -> Tensor:
        if self.visible is not None:
            return self.visible
        b, n, _ = self.values.shape
        return torch.ones(b, 1, n, dtype=torch.bool, device=self.values.device)

    def _filled(self, length: int) -> Tokens:
        b, n, d = self.values.shape
        if n == length:
            return self
        nothing = Tokens(self.values.new_zeros(b, length - n, d), self._mask().new_zeros(b, 1, length - n))
        return self + nothing

    def _each(self, change: Callable[[Tensor], Tensor]) -> Tokens:
        return Tokens(change(self.values), None if self.visible is None else change(self.visible))


@dataclass(frozen=True, eq=False)
class Controls:
    """Everything a backbone is told besides the noisy latent and the timestep. `+` combines two conditions."""

    embed: Tensor | None = None  # b e, or b t e: for each frame its own; added to the timestep embedding
    concat: Tensor | None = None  # b k t h w, joined to the latent channels
    tokens: dict[str, Tokens] = field(default_factory=dict)  # by stream

    def __len__(self) -> int:
        doors = [door for door in (self.embed, self.concat, *self.tokens.values()) if door is not None]
        assert doors, "empty controls have no batch size"
        return len(doors[0])

    def __add__(self, other: Controls) -> Controls:
        tokens = dict(self.tokens)
        for stream, added in other.tokens.items():
            tokens[stream] = tokens[stream] + added if stream in tokens else added
        embed = _sum(*_alike([self.embed, other.embed]))
        return Controls(embed, _sum(self.concat, other.concat), tokens)

    def __getitem__(self, index: Any) -> Controls:
        """Some samples of the batch: a slice, or a tensor of indices."""
        return self._each(lambda x: x[index], lambda tokens: tokens[index])

    def repeat(self, times: int) -> Controls:
        """The whole batch again and again."""
        return self._each(lambda x: torch.cat([x] * times), lambda tokens: tokens.repeat(times))

    def to(self, device: torch.device | str, dtype: torch.dtype | None = None) -> Controls:
        return self._each(lambda x: x.to(device, dtype), lambda tokens: tokens.to(device, dtype))

    @staticmethod
    def cat(parts: Sequence[Controls]) -> Controls:
        """One batch out of several that open the same doors."""
        first = parts[0]
        for part in parts:
            doors = (part.embed is None, part.concat is None, set(part.tokens))
            expected = (first.embed is None, first.concat is None, set(first.tokens))
            assert doors == expected, f"controls with other doors cannot share a batch: {doors}, {expected}"
        return Controls(
            None if first.embed is None else torch.cat(_alike([part.embed for part in parts])),
            None if first.concat is None else torch.cat([part.concat for part in parts]),
            {stream: Tokens.cat([part.tokens[stream] for part in parts]) for stream in first.tokens},
        )

    def _each(self, change: Callable[[Tensor], Tensor], change_tokens: Callable[[Tokens], Tokens]) -> Controls:
        return Controls(
            None if self.embed is None else change(self.embed),
            None if self.concat is None else change(self.concat),
            {stream: change_tokens(tokens) for stream, tokens in self.tokens.items()},
        )


def _alike(embeds: Sequence[Tensor | None]) -> list[Tensor | None]:
    """Where some are told frame by frame, all are."""
    frames = max((embed.shape[1] for embed in embeds if embed is not None and embed.dim() == 3), default=0)
    if not frames:
        return list(embeds)
    spread = [e if e is None or e.dim() == 3 else e[:, None] for e in embeds]
    return [e if e is None else e.expand(-1, frames, -1) for e in spread]


def _sum(one: Tensor | None, other: Tensor | None) -> Tensor | None:
    if one is None or other is None:
        return other if one is None else one
    return one + other
