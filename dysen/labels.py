"""Labels of nodes as vectors: the mean of what a text encoder makes of their tokens, so that words nobody trained on work."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from vdm.bounds import PositiveInt
from vdm.conditions.encoders.base import TextEncoder, TextTokens
from vdm.conditions.encoders.small import SmallEncoder
from vdm.conditions.encoders.vocabulary import BYTE


class WordEncoder(SmallEncoder):
    """The words, pieces and bytes of the small text encoder and their positions, without its transformer."""

    def __init__(self, *, width: PositiveInt, length: PositiveInt):
        super().__init__(width=width, depth=0, heads=1, length=length)

    def to_ids(self, captions: Sequence[str]) -> TextTokens:
        ids, _, cut = super().to_ids(captions)
        return TextTokens(ids, ids >= BYTE, cut)  # start and end say nothing where no token looks at another


def vectors_of(encoder: TextEncoder, labels: Sequence[str]) -> Tensor:
    """`labels d`: the mean over the tokens of each label."""
    values, mask = encoder(labels)  # labels n d
    if mask is None:
        mask = written(encoder.tokenize(labels).ids.to(values.device))
    weights = mask[..., None].to(values.dtype)
    return (values * weights).sum(1) / weights.sum(1).clamp(min=1)


def written(ids: Tensor) -> Tensor:
    """Where an encoder shows its padding: all tokens up to the first of those that fill the row, which ends the text."""
    changes = ids[:, 1:] != ids[:, :-1]  # labels n-1
    places = torch.arange(1, ids.shape[1], device=ids.device)
    last = (changes * places).amax(dim=1, keepdim=True)  # where the last run begins
    return torch.arange(ids.shape[1], device=ids.device) <= last
