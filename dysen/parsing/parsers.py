"""Parsers of pixels and of the shapes world's own truth. Those of annotation files and of vision models have a module each."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

import numpy as np

from dysen.parsing.detectors import Detector
from dysen.parsing.frames import FrameGraph, Link, Seen, iou
from dysen.parsing.relations import Relations
from dysen.parsing.tracking import Tracker
from dysen.scene_graph import DynamicSceneGraph
from vdm.bounds import Fraction


class ShapesTruth:
    """What the shapes world wrote beside each clip: its graphs and boxes.

    Args:
        boxes: the extras with the boxes, `boxes` of what is in sight or `whole_boxes`.
    """

    name, needs_video = "shapes", False

    def __init__(self, *, boxes: str):
        self.boxes = boxes

    def parse(
        self, video: np.ndarray | None, caption: str, fps: float, extras: dict[str, Any]
    ) -> list[FrameGraph] | None:
        """A frame has the graph of its tick, and only what is in sight in the frame itself."""
        if any(name not in extras for name in ("scene_graphs", "script", "frame_ticks", self.boxes)):
            return None
        dsg = DynamicSceneGraph.from_json(extras["scene_graphs"])
        things = [thing["name"] for thing in extras["script"]["things"]]
        frames = []
        for at, time in enumerate(extras["frame_ticks"]):
            graph = dsg[min(round(time), len(dsg) - 1)]
            attributes = {entry.name: entry.attributes for entry in graph.objects}
            objects = [
                Seen(name, name, tuple(map(float, found[at])), attributes=attributes.get(name, ()))
                for name, found in zip(things, extras[self.boxes], strict=True)
                if found[at] is not None
            ]
            links = [Link(t.subject, t.predicate, t.object, is_action=True) for t in graph.actions]
            links += [Link(t.subject, t.predicate, t.object) for t in graph.relations]
            frames.append(FrameGraph(tuple(objects), tuple(links)))
        return frames

    def fingerprint(self) -> dict[str, Any]:
        return {"parser": self.name, "boxes": self.boxes}


class Detection:
    """A detector on each frame, a tracker, and the relations that boxes show.

    Args:
        detector: finds things in a picture.
        tracker: joins them over time.
        relations: reads their boxes.
        same: overlap from which two detections in one frame are one thing, whatever their labels; the better one stays.
    """

    name, needs_video = "detector", True

    def __init__(self, *, detector: Detector, tracker: Tracker, relations: Relations, same: Fraction):
        self.detector, self.tracker, self.relations, self.same = detector, tracker, relations, same

    def parse(
        self, video: np.ndarray | None, caption: str, fps: float, extras: dict[str, Any]
    ) -> list[FrameGraph] | None:
        assert video is not None, "this parser reads pixels"
        found = self.tracker.track([self._distinct(self.detector.detect(frame)) for frame in video])
        return self.relations.link(found, video.shape[1:3], fps)

    def fingerprint(self) -> dict[str, Any]:
        return {
            "parser": self.name,
            "detector": self.detector.fingerprint(),
            "tracker": asdict(self.tracker),
            "relations": asdict(self.relations),
            "same": self.same,
        }

    def _distinct(self, found: list[Seen]) -> list[Seen]:
        kept: list[Seen] = []
        for seen in sorted(found, key=lambda seen: -seen.score):
            if seen.box is not None and all(iou(seen.box, other.box) < self.same for other in kept):
                kept.append(seen)
        return kept
