"""CLIP's text transformer from a folder of transformers (Radford et al., 2021; arXiv 2103.00020).

The paper's family: ViT-L/14, 77 tokens, last layer. Stable Diffusion 2 and ModelScope read ViT-H/14 before its last
layer; their own folders (`text_encoder`) already lack that layer, so there `layer` is last.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

from torch import Tensor

from vdm.bounds import PositiveInt
from vdm.conditions.encoders.base import Dtype, TextEncoder, TextTokens
from vdm.conditions.encoders.local import checked_kind, checked_length, from_folder, padded_ids

Layer = Literal["last", "penultimate"]


class ClipEncoder(TextEncoder):
    """Every token is seen, padding as well: so the public models were trained."""

    def __init__(self, *, folder: str, layer: Layer, length: PositiveInt, dtype: Dtype, is_trained: bool):
        words, network = from_folder(folder, dtype, is_trained)
        checked_kind(network, folder, ("clip", "clip_text_model"))
        config = network.config
        super().__init__(
            width=config.hidden_size,
            length=checked_length(length, config.max_position_embeddings),
            is_trained=is_trained,
        )
        self.layer, self.dtype = layer, dtype
        self.words, self.network = words, network
        if layer == "penultimate":  # the final norm then follows the layer before
            body = getattr(network, "text_model", network)  # transformers 4 nests it
            body.encoder.layers = body.encoder.layers[:-1]

    def to_ids(self, captions: Sequence[str]) -> TextTokens:
        ids, _, cut = padded_ids(self.words, captions, self.length)
        return TextTokens(ids, None, cut)

    def embed(self, ids: Tensor, mask: Tensor | None) -> Tensor:
        return self.network(input_ids=ids).last_hidden_state  # b n d

    def settings(self) -> dict[str, Any]:
        return {"layer": self.layer, "dtype": self.dtype}
