"""A text encoder small enough to be trained with the video model: the embedded default, nothing to download.

Pre-norm transformer over words, both directions, learned positions.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vdm.bounds import PositiveInt
from vdm.conditions.encoders.base import TextEncoder, TextTokens
from vdm.conditions.encoders.vocabulary import END, PAD, START, Vocabulary
from vdm.errors import ConfigError, RunError

GRAIN = 16  # the longest caption of a batch decides its length, in few steps for the sake of compiled code


class Block(nn.Module):
    """Attention of the tokens to each other, then a layer for each by itself."""

    def __init__(self, *, width: int, heads: int):
        super().__init__()
        self.heads = heads
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.to_qkv = nn.Linear(width, 3 * width, bias=False)
        self.to_out = nn.Linear(width, width)
        self.hidden = nn.Linear(width, 4 * width)
        self.out = nn.Linear(4 * width, width)

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        """x `b n d`, mask `b 1 1 n`."""
        q, k, v = self.to_qkv(self.norm1(x)).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)  # b heads n d
        x = x + self.to_out(F.scaled_dot_product_attention(q, k, v, attn_mask=mask).transpose(1, 2).flatten(2))
        return x + self.out(F.gelu(self.hidden(self.norm2(x))))


class SmallEncoder(TextEncoder):
    def __init__(self, *, width: PositiveInt, depth: PositiveInt, heads: PositiveInt, length: PositiveInt):
        super().__init__(width=width, length=length, is_trained=True)
        key = "condition.text.encoder"
        if width % heads:
            raise ConfigError("heads share the width", key=f"{key}.heads", got=heads, allowed=f"divisors of {width}")
        if length < 2:
            raise ConfigError("a caption has a start and an end", key=f"{key}.length", got=length, allowed=">= 2")
        self.vocabulary = Vocabulary()
        self.embedding = nn.Embedding(len(self.vocabulary), width)
        self.positions = nn.Parameter(torch.empty(length, width))
        self.blocks = nn.ModuleList([Block(width=width, heads=heads) for _ in range(depth)])
        self.norm = nn.LayerNorm(width)
        # Travels with the weights: ids mean something only together with the words they were learned for.
        self.register_buffer("digest", torch.tensor(list(self.vocabulary.digest()), dtype=torch.uint8))
        self._initialise(depth)

    def _initialise(self, depth: int) -> None:
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.normal_(module.weight, std=0.02)
            if isinstance(module, nn.Linear) and module.bias is not None:
                nn.init.zeros_(module.bias)
        # Of the size of what follows: small ones are swamped by the biases of the blocks, and all tokens become the same.
        nn.init.normal_(self.embedding.weight, std=1.0)
        nn.init.normal_(self.positions, std=0.3)
        for block in self.blocks:  # what is added up over the depth keeps its size
            for layer in (block.to_out, block.out):
                nn.init.normal_(layer.weight, std=0.02 / (2 * depth) ** 0.5)

    def to_ids(self, captions: Sequence[str]) -> TextTokens:
        room = self.length - 2
        read = [list(itertools.islice(self.vocabulary.ids(caption), room + 1)) for caption in captions]
        longest = max((min(len(tokens), room) for tokens in read), default=0) + 2
        ids = torch.full((len(captions), min(self.length, -(-longest // GRAIN) * GRAIN)), PAD)
        for row, tokens in zip(ids, read, strict=True):
            full = torch.tensor([START, *tokens[:room], END])
            row[: len(full)] = full
        return TextTokens(ids, ids != PAD, tuple(i for i, tokens in enumerate(read) if len(tokens) > room))

    def embed(self, ids: Tensor, mask: Tensor | None) -> Tensor:
        x = self.embedding(ids) + self.positions[: ids.shape[1]]
        for block in self.blocks:
            x = block(x, mask[:, None, None])
        return self.norm(x)  # b n d

    def settings(self) -> dict[str, Any]:
        return {"width": self.width, "depth": len(self.blocks)}

    def _load_from_state_dict(self, state_dict: dict[str, Tensor], prefix: str, *args: Any) -> None:
        stored = state_dict.get(f"{prefix}digest")
        if stored is not None and not torch.equal(stored.cpu(), self.digest.cpu()):
            raise RunError(
                "these weights of the small text encoder were trained with other words",
                key="vdm/conditions/encoders/words.py",
                remedy="use the version of the code that trained them",
            )
        super()._load_from_state_dict(state_dict, prefix, *args)
