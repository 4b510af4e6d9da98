"""When events happen, from what is claimed of pairs of them: the fewest ticks that satisfy the claims."""

from __future__ import annotations


class Timeline:
    """Starts and ends as points; a claim is a few inequalities between them. A claim that contradicts earlier ones is ignored."""

    def __init__(self, num_events: int):
        self._times = [0, 1] * num_events  # of start and end of each event
        self._edges: dict[tuple[int, int], int] = {(2 * i, 2 * i + 1): 1 for i in range(num_events)}

    def before(self, first: int, second: int) -> bool:
        """`first` is over when `second` begins. Whether the claim was accepted."""
        return self._claim({(2 * first + 1, 2 * second): 0})

    def overlap(self, first: int, second: int) -> bool:
        """At some time both are under way."""
        return self._claim({(2 * first, 2 * second + 1): 1, (2 * second, 2 * first + 1): 1})

    def intervals(self) -> list[tuple[int, int]]:
        """[start, end) of each event."""
        return list(zip(self._times[::2], self._times[1::2], strict=True))

    def _claim(self, edges: dict[tuple[int, int], int]) -> bool:
        merged = dict(self._edges)
        for pair, least in edges.items():
            merged[pair] = max(least, merged.get(pair, 0))
        times, limit, moved = list(self._times), len(self._times), True
        while moved:
            moved = False
            for (a, b), least in merged.items():
                if times[b] < times[a] + least:
                    times[b], moved = times[a] + least, True
                    if times[b] > limit:  # no chain is longer: they contradict each other
                        return False
        self._times, self._edges = times, merged
        return True
