"""Sequences of lessons as tensors: captions and plans one after the other, and which tokens a model should know to say."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from dysen.action_plan import Event, Plan
from dysen.tiny.vocabulary import FIRST_NUMBER, IDS, NUMBERS, PAD, STOP, Tokens

HINTS = 8  # which event of the caption; two words of its agent, predicate, two words of its target, start, end
IGNORED = -100  # a hint that cannot be known
GRAIN = 16  # lengths come in few sizes, for the sake of reused memory


class LessonBatch(NamedTuple):
    """`ids` and `forms` b n; `wanted` b n, true for the tokens of plans that can be known from what stands before them;
    `explained` b n, true for those of them that only a demonstration tells: what a new verb means. `hints` k 2 + HINTS: row
    and place of a verb in a caption, and tokens that say what its event is. `verbs` k 3: row, place before a predicate in a
    plan, and the verb of the caption that tells it.
    """

    ids: Tensor
    forms: Tensor
    wanted: Tensor
    explained: Tensor
    hints: Tensor
    verbs: Tensor

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
    hints, verbs = [], []
    for row, (tokens, known, places, said, told) in enumerate(encoded):
        count = min(len(tokens), n)
        ids[row, :count] = torch.tensor(tokens.ids[:count])
        forms[row, :count] = torch.tensor(tokens.forms[:count])
        wanted[row, :count] = torch.tensor(known[:count])
        explained[row, [place for place in places if place < count]] = True
        hints += [[row, *hint] for hint in said if hint[0] < count]
        verbs += [[row, *verb] for verb in told if verb[0] < count]
    rows = [torch.tensor(found, dtype=torch.long).view(-1, size) for found, size in ((hints, 2 + HINTS), (verbs, 3))]
    return LessonBatch(ids, forms, wanted, explained, *rows)


def encode(
    lessons: Sequence[dict[str, Any]],
) -> tuple[Tokens, list[bool], list[int], list[list[int]], list[list[int]]]:
    """The tokens of a sequence, which are to be learned, where a verb stands that an earlier plan explains, and two hints.

    Learned is all of each plan, except what a new verb means where no plan before has shown it: that would be guessing.
    """
    tokens, wanted, explained, hints, verbs, shown = Tokens(), [], [], [], [], set()
    for lesson in lessons:
        plan, letters = Plan.from_json(lesson["plan"]), tokens.caption(lesson["caption"])
        wanted += [False] * (len(tokens) - len(wanted))
        places = tokens.plan(plan)
        wanted += [True] * (len(tokens) - len(wanted))
        for number, (place, verb) in enumerate(zip(places, lesson["new"], strict=True)):
            wanted[place] = verb is None or verb in shown
            explained += [place] if verb in shown else []
            letter = lesson["verbs"][number]
            if letter in letters:
                hints.append([letters[letter], *_hint(plan.events[number], number, verb is None)])
                verbs.append([place - 1, tokens.ids[letters[letter]]])
        shown.update(verb for verb in lesson["new"] if verb is not None)
    return tokens, wanted, explained, hints, verbs


def _hint(event: Event, number: int, is_known: bool) -> list[int]:
    agent, target = Tokens(), Tokens()
    agent.words(event.agent)
    target.words(event.target or "")
    predicate = IDS.get(event.predicate, IGNORED) if is_known else IGNORED
    times = [FIRST_NUMBER + min(time, NUMBERS - 1) for time in (number, event.start, event.end)]
    return [times[0], *_pair(agent.ids), predicate, *_pair(target.ids), *times[1:]]


def _pair(ids: list[int]) -> list[int]:
    return (ids + [STOP, STOP])[:2]
