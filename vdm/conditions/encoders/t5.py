"""T5's encoder from a folder of transformers (Raffel et al., 2020; arXiv 1910.10683); mT5 and UMT5 as well.

Unlike CLIP it was trained with its padding hidden, so padding is hidden from the video model too.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from vdm.bounds import PositiveInt
from vdm.conditions.encoders.base import Dtype, TextEncoder, TextTokens
from vdm.conditions.encoders.local import checked_kind, from_folder, padded_ids


class T5Encoder(TextEncoder):
    """Its positions are relative: `length` is a choice."""

    def __init__(self, *, folder: str, length: PositiveInt, dtype: Dtype, is_trained: bool):
        words, network = from_folder(folder, dtype, is_trained)
        checked_kind(network, folder, ("t5", "mt5", "umt5"))
        super().__init__(width=network.config.d_model, length=length, is_trained=is_trained)
        self.dtype = dtype
        self.words, self.network = words, network

    def to_ids(self, captions: Sequence[str]) -> TextTokens:
        return TextTokens(*padded_ids(self.words, captions, self.length))

    def embed(self, ids: Tensor, mask: Tensor | None) -> Tensor:
        return self.network(input_ids=ids, attention_mask=mask.long()).last_hidden_state  # b n d

    def settings(self) -> dict[str, Any]:
        return {"dtype": self.dtype}
