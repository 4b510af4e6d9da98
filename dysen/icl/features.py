"""Frozen features of captions, by which demonstrations are compared: one vector of length 1 for each caption."""

from __future__ import annotations

import re
import zlib
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from vdm.bounds import PositiveInt
from vdm.conditions.encoders.base import TextEncoder

WORD = re.compile(r"\w+")


class TextFeatures(ABC):
    """`width` numbers for a caption."""

    width: int

    @abstractmethod
    def __call__(self, captions: Sequence[str]) -> Tensor:
        """n d, on the CPU, each of length 1 (0 where a caption says nothing)."""

    @abstractmethod
    def fingerprint(self) -> dict[str, Any]:
        """What decides the features."""

    def fit(self, captions: Sequence[str]) -> None:
        """Learn what is common among the captions of a pool. Most features have nothing to learn."""
        del captions


class HashedWords(TextFeatures):
    """Counts of words and of runs of words, hashed to `width` numbers: needs no weights and no download.

    Args:
        width: numbers of a caption; two words share one with probability 1 / width.
        longest: words in the longest run that counts.
        is_weighted: rare words of the pool count for more (inverse document frequency).
    """

    def __init__(self, *, width: PositiveInt, longest: PositiveInt, is_weighted: bool):
        self.width, self.longest, self.is_weighted = width, longest, is_weighted
        self._weights = torch.ones(width)

    def fit(self, captions: Sequence[str]) -> None:
        if self.is_weighted:
            seen_in = (self._counts(captions) > 0).sum(0)  # d
            self._weights = torch.log((1 + len(captions)) / (1 + seen_in)) + 1

    def __call__(self, captions: Sequence[str]) -> Tensor:
        return F.normalize(self._counts(captions) * self._weights, dim=-1)

    def _counts(self, captions: Sequence[str]) -> Tensor:
        counts = torch.zeros(len(captions), self.width)
        for row, caption in zip(counts, captions, strict=True):
            words = WORD.findall(caption.casefold())
            runs = [" ".join(words[i : i + n]) for n in range(1, self.longest + 1) for i in range(len(words) - n + 1)]
            places = [zlib.crc32(run.encode("utf-8", "replace")) % self.width for run in runs]
            row += torch.bincount(torch.tensor(places, dtype=torch.long), minlength=self.width)
        return counts

    def fingerprint(self) -> dict[str, Any]:
        return {"features": "hashed words", "width": self.width, "longest": self.longest, "weighted": self.is_weighted}


class EncodedText(TextFeatures):
    """Means over the tokens of a frozen text encoder, such as the CLIP model of the paper."""

    def __init__(self, *, encoder: TextEncoder):
        self.encoder = encoder.requires_grad_(False).eval()
        self.width = encoder.width

    @torch.no_grad()
    def __call__(self, captions: Sequence[str]) -> Tensor:
        values, mask = self.encoder(captions)  # n l d, n l
        seen = torch.ones_like(values[..., 0]) if mask is None else mask.to(values.dtype)
        mean = (values * seen[..., None]).sum(1) / seen.sum(1, keepdim=True).clamp(min=1)
        return F.normalize(mean.float().cpu(), dim=-1)

    def fingerprint(self) -> dict[str, Any]:
        return {"features": "text encoder", **self.encoder.fingerprint()}
