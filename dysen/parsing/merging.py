"""From graphs of frames to graphs of ticks, the same for every parser: identity, smoothing over time, ticks, a plan.

A track that is there long enough is one object with one name. What holds with short gaps holds all the time, what holds
for a moment only does not hold. A tick says what holds in at least half of its frames.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Hashable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from dysen.action_plan import MAX_EVENTS, Event, Plan, Triplet
from dysen.alignment import frame_ticks
from dysen.names import MAX_NAME, check_name, clean, label
from dysen.parsing.frames import Box, FrameGraph, Link, Seen, Track
from dysen.scene_graph import MAX_ATTRIBUTES, MAX_OBJECTS, MAX_TRIPLETS, DynamicSceneGraph, SceneGraph, SceneObject
from vdm.bounds import Fraction, NonNegativeInt, PositiveInt


@dataclass(frozen=True)
class Parsed:
    """`boxes` has for each object a box, or None, in each frame; `plan` is made of the actions, None where there are none."""

    dsg: DynamicSceneGraph
    plan: Plan | None
    boxes: dict[str, tuple[Box | None, ...]]

    def to_json(self) -> dict[str, Any]:
        boxes = {name: [_rounded(box) for box in found] for name, found in self.boxes.items()}
        return {
            "plan": None if self.plan is None else self.plan.to_json(),
            "scene_graphs": self.dsg.to_json(),
            "boxes": boxes,
        }


def _rounded(box: Box | None) -> list[float] | None:
    return None if box is None else [round(side, 1) for side in box]


@dataclass(frozen=True)
class Merging:
    """How frames become ticks.

    Args:
        ticks: graphs of a clip; null: one for each frame, as many as a plan may have.
        min_score: detections below are not believed.
        min_frames: objects in fewer frames are left out.
        max_gap: frames that an object or a link may be missing without ending; a box is then between its neighbours.
        min_link: links that hold for fewer frames in a row are left out.
        share: of the frames of a tick in which what it says holds.
    """

    ticks: PositiveInt | None
    min_score: Fraction
    min_frames: PositiveInt
    max_gap: NonNegativeInt
    min_link: PositiveInt
    share: Fraction

    def merge(self, frames: Sequence[FrameGraph]) -> Parsed:
        seen = self._tracks(frames)
        names = _names(seen)
        length = len(frames)
        present = {track: self._filled(found, length) for track, found in seen.items()}
        attributes: dict[tuple[Track, str], np.ndarray] = {}
        links: dict[Link, np.ndarray] = {}
        for at, frame in enumerate(frames):
            for entry in frame.objects:
                for attribute in dict.fromkeys(map(_name, entry.attributes)):
                    if entry.track in names and attribute:
                        _mark(attributes, (entry.track, attribute), at, length)
            for link in frame.links:
                if link.subject in names and (link.object is None or link.object in names):
                    _mark(links, link, at, length)
        held = {key: _closed(found, self.max_gap) & present[key[0]] for key, found in attributes.items()}
        smooth = {link: self._smoothed(link, found, present) for link, found in links.items()}
        smooth = {link: (flags, links[link]) for link, flags in smooth.items() if flags.any()}
        ticks = np.array(frame_ticks(length, min(self.ticks or length, length, 256)))
        dsg = self._graphs(names, ticks, present, held, smooth)
        boxes = {names[track]: _between(seen[track], present[track]) for track in names}
        return Parsed(dsg, _plan(dsg), boxes)

    def _tracks(self, frames: Sequence[FrameGraph]) -> dict[Track, dict[int, Seen]]:
        """By track and frame, in the order of appearance; the longest ones where there are too many."""
        found: dict[Track, dict[int, Seen]] = {}
        for at, frame in enumerate(frames):
            for entry in frame.objects:
                if entry.score >= self.min_score and _name(entry.label):
                    found.setdefault(entry.track, {})[at] = entry
        least = min(self.min_frames, len(frames))
        kept = sorted((t for t in found if len(found[t]) >= least), key=lambda t: -len(found[t]))[:MAX_OBJECTS]
        return {track: found[track] for track in found if track in set(kept)}

    def _filled(self, found: dict[int, Seen], length: int) -> np.ndarray:
        flags = np.zeros(length, dtype=bool)
        flags[list(found)] = True
        return _closed(flags, self.max_gap)

    def _smoothed(self, link: Link, flags: np.ndarray, present: dict[Track, np.ndarray]) -> np.ndarray:
        flags = _closed(flags, self.max_gap)
        if not link.is_action:  # an action may be said of somebody who is about to appear
            flags = flags & present[link.subject] & present[link.object]
        for first, last in _runs(flags):
            if last - first < min(self.min_link, len(flags)):
                flags[first:last] = False
        return flags

    def _graphs(
        self,
        names: dict[Track, str],
        ticks: np.ndarray,
        present: dict[Track, np.ndarray],
        attributes: dict[tuple[Track, str], np.ndarray],
        links: dict[Link, tuple[np.ndarray, np.ndarray]],
    ) -> DynamicSceneGraph:
        graphs = []
        for tick in range(int(ticks[-1]) + 1):
            inside = ticks == tick

            def holds(flags: np.ndarray, inside: np.ndarray = inside) -> bool:
                return bool(flags[inside].any()) and flags[inside].mean() >= self.share

            objects = {track: [] for track in names if holds(present[track])}
            for (track, attribute), flags in attributes.items():
                if track in objects and holds(flags) and len(objects[track]) < MAX_ATTRIBUTES:
                    objects[track].append(attribute)
            votes = {link: int(raw[inside].sum()) for link, (flags, raw) in links.items() if holds(flags)}
            said = _without_rivals(votes)
            said.sort(key=lambda link: not link.is_action)
            triplets = [(_triplet(link, names), link) for link in said][:MAX_TRIPLETS]
            graphs.append(
                SceneGraph.build(
                    [SceneObject(names[track], tuple(found)) for track, found in objects.items()],
                    [triplet for triplet, link in triplets if link.is_action],
                    [
                        triplet
                        for triplet, link in triplets
                        if not link.is_action and link.subject in objects and link.object in objects
                    ],
                )
            )
        return DynamicSceneGraph(tuple(graphs))


def _without_rivals(votes: dict[Link, int]) -> list[Link]:
    """Of actions that begin with the same word, such as moving left and moving up left, the one seen most often."""
    best: dict[tuple[Track, Track | None, str], Link] = {}
    for link, count in votes.items():
        kind = (link.subject, link.object, link.predicate.partition(" ")[0])
        if link.is_action and (kind not in best or count > votes[best[kind]]):
            best[kind] = link
    return [link for link in votes if not link.is_action or link in best.values()]


def _name(text: str) -> str:
    return clean(text)[: MAX_NAME - 8].strip()


def _names(seen: dict[Track, dict[int, Seen]]) -> dict[Track, str]:
    """The label a track has most often, numbered where several objects share one."""
    labels: dict[Track, str] = {}
    for track, found in seen.items():
        votes: Counter[str] = Counter()
        for entry in found.values():
            votes[_name(entry.label)] += entry.score
        labels[track] = max(votes, key=lambda text: (votes[text], text))
    many = Counter(label(text).casefold() for text in labels.values())
    names: dict[Track, str] = {}
    counted: Counter[str] = Counter()
    for track, text in labels.items():
        plain = label(text)
        counted[plain.casefold()] += 1
        names[track] = f"{plain} #{counted[plain.casefold()]}" if many[plain.casefold()] > 1 else text
        check_name(names[track], "an object")
    return names


def _triplet(link: Link, names: dict[Track, str]) -> Triplet:
    return Triplet(names[link.subject], _name(link.predicate), None if link.object is None else names[link.object])


def _mark(found: dict[Any, np.ndarray], key: Hashable, at: int, length: int) -> None:
    found.setdefault(key, np.zeros(length, dtype=bool))[at] = True


def _runs(flags: np.ndarray) -> list[tuple[int, int]]:
    """[first, last) of each stretch that holds."""
    edges = np.flatnonzero(np.diff(np.concatenate([[False], flags, [False]]).astype(np.int8)))
    return [(int(a), int(b)) for a, b in zip(edges[::2], edges[1::2], strict=True)]


def _closed(flags: np.ndarray, max_gap: int) -> np.ndarray:
    """Gaps of at most `max_gap` frames between two stretches are filled."""
    flags = flags.copy()
    runs = _runs(flags)
    for (_, end), (start, _) in zip(runs, runs[1:], strict=False):
        if start - end <= max_gap:
            flags[end:start] = True
    return flags


def _between(found: dict[int, Seen], present: np.ndarray) -> tuple[Box | None, ...]:
    """Boxes of a track; in filled gaps on the way from one to the next."""
    known = {at: entry.box for at, entry in found.items() if entry.box is not None}
    if not known:
        return (None,) * len(present)
    frames = sorted(known)
    sides = [np.interp(np.arange(len(present)), frames, [known[at][side] for at in frames]) for side in range(4)]
    whole = np.stack(sides, axis=1)
    is_known = _closed(np.isin(np.arange(len(present)), frames), len(present)) & present
    for at in found:
        is_known[at] = at in known
    return tuple(tuple(row) if ok else None for row, ok in zip(whole.tolist(), is_known, strict=True))


def _plan(dsg: DynamicSceneGraph) -> Plan | None:
    """The stretches of ticks in which an action stands. The last tick belongs to what ends there, as in step II."""
    last = len(dsg) - 1
    found: list[Event] = []
    for triplet in dict.fromkeys(action for graph in dsg for action in graph.actions):
        flags = np.array([triplet in graph.actions for graph in dsg])
        found += [_event(triplet, first, end, last) for first, end in _runs(flags)]
    kept = sorted(dict.fromkeys(found), key=lambda event: event.start - event.end)[:MAX_EVENTS]
    return Plan(tuple(_in_order(kept))) if kept else None


def _event(triplet: Triplet, first: int, end: int, last: int) -> Event:
    end = max(min(end, last), 1)
    return Event(triplet.subject, triplet.predicate, triplet.object, min(first, end - 1), end)


def _in_order(events: Iterable[Event]) -> list[Event]:
    return sorted(events, key=lambda event: (event.start, event.end, event.agent, event.predicate))
