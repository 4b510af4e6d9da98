"""Which prompts are answered together: those with a long common beginning, sorted by length, within a budget of tokens."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

BATCH_COST = 2_000  # tokens: about what one batch more costs, since each of its steps reads all weights once


@dataclass(frozen=True)
class Group:
    """Positions of prompts whose first `common` tokens are the same."""

    common: int
    members: tuple[int, ...]


def group(prompts: Sequence[Sequence[int]]) -> list[Group]:
    """Groups that make the tokens to be computed few: a common beginning counts once, a further group costs something.

    At least the last token of a prompt is its own, since what follows it is what is asked for.
    """
    order = sorted(range(len(prompts)), key=lambda i: prompts[i])
    shared = [_common(prompts[i], prompts[j]) for i, j in zip(order, order[1:], strict=False)]
    lengths = [len(prompts[i]) for i in order]

    def common(first: int, last: int) -> int:  # of order[first:last]
        return min([*shared[first : last - 1], *(length - 1 for length in lengths[first:last])])

    def cost(first: int, last: int) -> int:
        return sum(lengths[first:last]) - (last - first - 1) * common(first, last)

    found: list[Group] = []
    pending = [(0, len(order))] if order else []
    while pending:
        first, last = pending.pop()
        lowest = min(shared[first : last - 1], default=0)
        cuts = [i + 1 for i in range(first, last - 1) if shared[i] == lowest]
        pieces = list(zip([first, *cuts], [*cuts, last], strict=True))
        if len(pieces) > 1 and sum(cost(*piece) + BATCH_COST for piece in pieces) < cost(first, last) + BATCH_COST:
            pending += reversed(pieces)
        else:
            found.append(Group(common(first, last), tuple(order[first:last])))
    return found


def batches(prompts: Mapping[int, Sequence[int]], answer: int, budget: int) -> list[list[int]]:
    """From the longest prompt to the shortest, as many at once as fit the budget with their padding and answers."""
    found: list[list[int]] = []
    longest = 0
    for member, prompt in sorted(prompts.items(), key=lambda entry: -len(entry[1])):
        if found and (len(found[-1]) + 1) * (longest + answer) <= budget:
            found[-1].append(member)
        else:
            longest = len(prompt)
            found.append([member])
    return found


def _common(one: Sequence[int], other: Sequence[int]) -> int:
    for position, (a, b) in enumerate(zip(one, other, strict=False)):
        if a != b:
            return position
    return min(len(one), len(other))
