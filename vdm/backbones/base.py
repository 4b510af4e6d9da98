"""What a backbone is: a noisy latent, a timestep and controls in, a prediction of the latent's shape out.

`prepare` turns controls into what no denoising step changes (projected maps, K and V of every token), so that a sampler
pays for them once per video. `forward` takes either.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

from torch import Tensor

from vdm.layers.attention import KeysValues
from vdm.types import Controls

BlockTokens = Mapping[str, Tensor | KeysValues]  # by stream


@dataclass(frozen=True, eq=False)
class Prepared:
    """Controls after every projection that does not depend on the noisy latent."""

    embed: Tensor | None  # b e, or b t e
    concat: Tensor | None  # b t h w c
    tokens: tuple[tuple[BlockTokens, ...], ...]  # of each cell, of each of its blocks
    visible: Mapping[str, Tensor]  # b t n, for the streams that hide something

    @property
    def batch_size(self) -> int | None:
        """Number of samples, None where nothing is said."""
        given = [value for cell in self.tokens[:1] for block in cell for value in block.values()]
        doors = [self.embed, self.concat, *(v.keys if isinstance(v, KeysValues) else v for v in given)]
        return next((len(door) for door in doors if door is not None), None)

    def __getitem__(self, index: Any) -> Prepared:
        """Some samples of the batch: a slice, or a tensor of indices."""
        return self._each(lambda x: x[index])

    def _each(self, change: Callable[[Tensor], Tensor]) -> Prepared:
        def blocks(cell: tuple[BlockTokens, ...]) -> tuple[BlockTokens, ...]:
            return tuple(
                {stream: KeysValues(change(kv.keys), change(kv.values)) for stream, kv in b.items()} for b in cell
            )

        return Prepared(
            embed=None if self.embed is None else change(self.embed),
            concat=None if self.concat is None else change(self.concat),
            tokens=tuple(blocks(cell) for cell in self.tokens),
            visible={stream: change(visible) for stream, visible in self.visible.items()},
        )


class Backbone(Protocol):
    """Denoiser of latents. `stride` is what height and width must be multiples of."""

    latent_channels: int
    stride: int

    def __call__(
        self, x: Tensor, timestep: Tensor, controls: Controls | Prepared | None = None, *, branches: int = 1
    ) -> Tensor:
        """x `b c t h w`, timestep `b` -> `b c t h w`. `branches`: how many batches of controls are about these latents."""
        ...

    def prepare(self, controls: Controls) -> Prepared:
        """What stays the same from step to step."""
        ...

    def open_doors(self, *, streams: Mapping[str, int], concat_channels: int, embed_width: int) -> None:
        """Make room for token streams (name: width), control channels and an embedding. Changes no output."""
        ...
