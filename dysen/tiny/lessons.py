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
    """`ids` and `forms` b n; `wanted` b n, true for the tokens of plans that can be known from what stands before them;
    `explained` b n, true for those of them that only a demonstration tells: what a new verb means.
    """

    ids: Tensor
    forms: Tensor
    wanted: Tensor
    explained: Tensor

    def to(self, device: torch.device) -> LessonBatch:
        return LessonBatch(*(part.to(device) for part in self))


def batch_of(sequences: Sequence[Sequence[dict[str, Any]]], length: int) -> LessonBatch:
    """Sequences of lessons `{"caption", "plan", "new"}`; what does not fit into `length` tokens is cut at the end."""
    encoded = [encode(lessons) for lessons in sequences]
    longest = min(max(len(tokens) for tokens, *_ in encoded), length)
    n = min(-(-longest // GRAIN) * GRAIN, length)
    ids = torch.full((len(encoded), n), PAD)
    forms, wanted = torch.zeros_like(ids), torch.zeros_like(ids, dtype=torch.bool)
    explained = torch.zeros_like(wanted)
    for row, (tokens, known, places) in enumerate(encoded):
        count = min(len(tokens), n)
        ids[row, :count] = torch.tensor(tokens.ids[:count])
        forms[row, :count] = torch.tensor(tokens.forms[:count])
        wanted[row, :count] = torch.tensor(known[:count])
        explained[row, [place for place in places if place < count]] = True
    return LessonBatch(ids, forms, wanted, explained)


def encode(lessons: Sequence[dict[str, Any]]) -> tuple[Tokens, list[bool], list[int]]:
    """The tokens of a sequence, which of them are to be learned, and where a verb stands that an earlier plan explains.

    All of each plan, except what a new verb means where no plan before has shown it: that would be guessing.
    """
    tokens, wanted, explained, shown = Tokens(), [], [], set()
    for lesson in lessons:
        tokens.caption(lesson["caption"])
        wanted += [False] * (len(tokens) - len(wanted))
        places = tokens.plan(Plan.from_json(lesson["plan"]))
        wanted += [True] * (len(tokens) - len(wanted))
        for place, verb in zip(places, lesson["new"], strict=True):
            wanted[place] = verb is None or verb in shown
            explained += [place] if verb in shown else []
        shown.update(verb for verb in lesson["new"] if verb is not None)
    return tokens, wanted, explained
