"""What a text encoder is: captions in, one vector per token out, with what a cache must know about it.

Any text is taken: of any length, empty, in any script. What does not fit is cut at the end, and said once.
"""

from __future__ import annotations

import hashlib
import logging
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn

log = logging.getLogger(__name__)

Dtype = Literal["float32", "bfloat16", "float16"]
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}

CHARACTERS = 32  # no token of a public vocabulary is longer: what comes behind length x this is cut in any case
PROBES = ("", "A red circle moves to the left.", "Zwölf Boxkämpfer jagen 3 Eulen über den 深圳 Deich 🦉!")


class TextTokens(NamedTuple):
    """Captions as token ids."""

    ids: Tensor  # b n
    mask: Tensor | None  # b n, False where nothing is to be seen; None: every token is seen, padding as well
    cut: tuple[int, ...]  # captions that did not fit


class TextEncoder(nn.Module, ABC):
    """`width` of a token, `length` in tokens. One that is not trained is frozen: eval, no gradients, its own precision."""

    def __init__(self, *, width: int, length: int, is_trained: bool):
        super().__init__()
        self.width, self.length, self.is_trained = width, length, is_trained
        self._has_warned = False

    @abstractmethod
    def to_ids(self, captions: Sequence[str]) -> TextTokens:
        """Ids on the CPU."""

    @abstractmethod
    def embed(self, ids: Tensor, mask: Tensor | None) -> Tensor:
        """Ids `b n` -> vectors `b n d`."""

    def settings(self) -> dict[str, Any]:
        """Settings that decide the vectors, besides the weights."""
        return {}

    def tokenize(self, captions: Sequence[str]) -> TextTokens:
        tokens = self.to_ids([_readable(caption, CHARACTERS * self.length) for caption in captions])
        cut = sorted(
            {*tokens.cut, *(i for i, caption in enumerate(captions) if len(caption) > CHARACTERS * self.length)}
        )
        if cut and not self._has_warned:
            self._has_warned = True
            log.warning(
                "a caption is longer than the %d tokens that the text encoder reads; its end is not heard (said once): %.200s",
                self.length,
                captions[cut[0]],
            )
        return tokens

    def forward(self, captions: Sequence[str]) -> tuple[Tensor, Tensor | None]:
        """Vectors `b n d`, and a mask `b n` of those to look at, or None for all of them."""
        tokens = self.tokenize(captions)
        device = next(self.parameters()).device
        ids = tokens.ids.to(device)
        mask = None if tokens.mask is None else tokens.mask.to(device)
        if self.is_trained:
            return self.embed(ids, mask), mask
        # The same vectors in training, in sampling and in a cache, whatever the precision of the trainer.
        with torch.no_grad(), torch.autocast(device.type, enabled=False):
            return self.embed(ids, mask), mask

    def train(self, mode: bool = True) -> TextEncoder:
        return super().train(mode and self.is_trained)

    def fingerprint(self) -> dict[str, Any]:
        """Everything that decides the vectors: settings, what the tokenizer does, the weights."""
        ids = self.to_ids(PROBES).ids.numpy().tobytes()
        weights = hashlib.sha256()
        for name, tensor in sorted(self.state_dict().items()):
            weights.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
            weights.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy())
        return {
            "encoder": type(self).__name__,
            **self.settings(),
            "length": self.length,
            "tokenizer": hashlib.sha256(ids).hexdigest(),
            "weights": weights.hexdigest(),
        }


def _readable(caption: str, limit: int) -> str:
    """Without half surrogate pairs, which no encoding of text can write, and without what would be cut anyway."""
    caption = caption.encode("utf-8", "replace").decode("utf-8")
    return caption if len(caption) <= limit else " ".join(caption.split())[:limit]
