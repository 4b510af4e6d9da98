"""Sequences of lessons as tensors: captions and plans one after the other, and which tokens a model should know to say."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from dysen.action_plan import Plan
from dysen.tiny.vocabulary import PAD, Tokens

GRAIN = 16  # lengths come in few sizes, for the sake of reused memory


class LessonBatch(NamedTuple):
    """`ids` and `forms` b n; `wanted` b n, true for the tokens of plans that can be known from what stands before them."""

    ids: Tensor
    forms: Tensor
    wanted: Tensor

    def to(self, device: torch.device) -> LessonBatch:
        return LessonBatch(*(part.to(device) for part in self))


def batch_of(sequences: Sequence[Sequence[dict[str, Any]]], length: int) -> LessonBatch:
    """Sequences of lessons `{"caption", "plan", "new"}`; what does not fit into `length` tokens is cut at the end."""
    encoded = [encode(lessons) for lessons in sequences]
    longest = min(max(len(tokens) for tokens, _ in encoded), length)
    n = min(-(-longest // GRAIN) * GRAIN, length)
    ids = torch.full((len(encoded), n), PAD)
    forms, wanted = torch.zeros_like(ids), torch.zeros_like(ids, dtype=torch.bool)
    for row, (tokens, known) in enumerate(encoded):
        count = min(len(tokens), n)
        ids[row, :count] = torch.tensor(tokens.ids[:count])
        forms[row, :count] = torch.tensor(tokens.forms[:count])
        wanted[row, :count] = torch.tensor(known[:count])
    return LessonBatch(ids, forms, wanted)


def encode(lessons: Sequence[dict[str, Any]]) -> tuple[Tokens, list[bool]]:
    """The tokens of a sequence, and which of them are to be learned.

    All of each plan, except what a new verb means where no plan before has shown it: that would be guessing.
    """
    tokens, wanted, shown = Tokens(), [], set()
    for lesson in lessons:
        tokens.caption(lesson["caption"])
        wanted += [False] * (len(tokens) - len(wanted))
        places = tokens.plan(Plan.from_json(lesson["plan"]))
        wanted += [True] * (len(tokens) - len(wanted))
        for place, verb in zip(places, lesson["new"], strict=True):
            wanted[place] = verb is None or verb in shown
        shown.update(verb for verb in lesson["new"] if verb is not None)
    return tokens, wanted
