"""`parser=actiongenome` and `parser=activitynet_entities`: published annotation files, read as they are distributed."""

from __future__ import annotations

import json
import pickle
import re
from pathlib import Path
from typing import Any

import numpy as np

from dysen.parsing.detectors import checksum_of
from dysen.parsing.frames import Box, FrameGraph, Link, Seen, fitted, held
from dysen.parsing.relations import Relations
from vdm.bounds import NonNegativeFloat, PositiveFloat
from vdm.errors import ConfigError, DataError

_KINDS = ("attention_relationship", "spatial_relationship", "contacting_relationship")
_ARRAYS = {("numpy.core.multiarray", "_reconstruct"), ("numpy._core.multiarray", "_reconstruct"), ("numpy", "ndarray"),
           ("numpy", "dtype"), ("numpy.core.multiarray", "scalar"), ("numpy._core.multiarray", "scalar"),
           ("_codecs", "encode"), ("builtins", "set"), ("builtins", "tuple"), ("builtins", "list")}  # fmt: skip


class _Plain(pickle.Unpickler):
    """Only numbers, texts, containers and arrays: a pickle may else run any code."""

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in _ARRAYS:
            raise pickle.UnpicklingError(f"it wants {module}.{name}")
        return super().find_class(module, name)


class ActionGenome:
    """Persons, objects and how they relate in frames of Charades videos.

    Args:
        folder: with `object_bbox_and_relationship.pkl` and `person_bbox.pkl`.
        fps: of the videos whose frames were numbered; null: what the clip's source says, else the clip's own.
        unsure: keep the predicates "unsure" and "other relationship".
    """

    name, needs_video = "actiongenome", False

    def __init__(self, *, folder: str, fps: PositiveFloat | None, unsure: bool):
        self.folder, self.fps, self.unsure = Path(folder), fps, unsure
        self._files = [self.folder / name for name in ("object_bbox_and_relationship.pkl", "person_bbox.pkl")]
        self._objects, self._persons = map(_unpickled, self._files)
        self._frames: dict[str, list[str]] = {}
        for key in self._objects:
            self._frames.setdefault(str(key).partition("/")[0].removesuffix(".mp4"), []).append(key)

    def parse(
        self, video: np.ndarray | None, caption: str, fps: float, extras: dict[str, Any]
    ) -> list[FrameGraph] | None:
        """Frames are found by the video's id: `source.video`, `source.videoid`, or the key of the clip."""
        keys = self._frames.get(_video_id(extras).removesuffix(".mp4"))
        if keys is None:
            return None
        rate = self.fps or extras["source"].get("fps") or fps
        start = float(extras["source"].get("start") or 0.0)
        annotated: dict[int, FrameGraph] = {}
        for key in sorted(keys):
            number = int(re.sub(r"\D", "", key.rpartition("/")[2]) or 0)
            at = round(((number - 1) / rate - start) * fps)  # pictures are numbered from 1
            if 0 <= at < extras["frames"]:
                annotated.setdefault(at, self._graph(key, (extras["height"], extras["width"])))
        return held(annotated, extras["frames"]) if annotated else None

    def fingerprint(self) -> dict[str, Any]:
        files = {path.name: checksum_of(str(path)) for path in self._files}
        return {"parser": self.name, "files": files, "fps": self.fps, "unsure": self.unsure}

    def _graph(self, key: str, stored: tuple[int, int]) -> FrameGraph:
        person = self._persons.get(key) or {}
        boxes = np.asarray(person.get("bbox", ()), dtype=float).reshape(-1, 4).tolist()
        size = person.get("bbox_size")  # width, height of the picture
        size = (float(size[1]), float(size[0])) if size is not None else stored

        def place(box: Any) -> Box | None:
            return None if box is None else fitted(tuple(map(float, box)), size, stored)

        found: dict[str, Seen] = {"person": Seen("person", "person", place(boxes[0]) if boxes else None)}
        links: list[Link] = []
        for entry in self._objects[key]:
            if not entry.get("visible", True):
                continue
            label = str(entry["class"])
            x, y, w, h = entry["bbox"] if entry.get("bbox") is not None else (0, 0, 0, 0)
            found[label] = Seen(label, label, place((x, y, x + w, y + h)) if w and h else None)
            for kind in _KINDS:
                for word in entry.get(kind) or ():
                    predicate = str(word).replace("_", " ")
                    if self.unsure or predicate not in ("unsure", "other relationship"):
                        # Where something is, is said of the thing; the other two kinds of the person.
                        pair = (label, "person") if kind == "spatial_relationship" else ("person", label)
                        is_action = kind == "contacting_relationship" and predicate != "not contacting"
                        links.append(Link(pair[0], predicate, pair[1], is_action))
        return FrameGraph(tuple(found.values()), tuple(dict.fromkeys(links)))


class ActivityNetEntities:
    """Objects of the sentences of ActivityNet Captions, boxed in ten frames of each segment; relations from the boxes.

    Args:
        file: `anet_entities_cleaned_class_thresh50_trainval.json`.
        width: of the pictures whose boxes were drawn; their height follows from the clip's shape.
        relations: what boxes show. Ten frames a segment are too few for motion.
        samples: annotated frames a segment.
    """

    name, needs_video = "activitynet_entities", False

    def __init__(self, *, file: str, width: PositiveFloat, relations: Relations, samples: NonNegativeFloat):
        self.file, self.width, self.relations, self.samples = Path(file), width, relations, samples
        try:
            content = json.loads(self.file.read_text(encoding="utf-8"))
            self._videos: dict[str, Any] = content["annotations"]
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise ConfigError("not a file of ActivityNet-Entities", key="parser.file", got=f"{file}: {error}",
                              allowed='json with "vocab" and "annotations"') from error  # fmt: skip

    def parse(
        self, video: np.ndarray | None, caption: str, fps: float, extras: dict[str, Any]
    ) -> list[FrameGraph] | None:
        """A clip is a segment: `source.video` and `source.segment`, or a key that ends with the segment's number."""
        name, _, number = str(extras["key"]).rpartition("-")
        name = str(extras["source"].get("video") or name)
        number = str(extras["source"].get("segment", number))
        name = name if name in self._videos else f"v_{name}"
        segment = self._videos.get(name, {}).get("segments", {}).get(number)
        if not segment or not segment.get("frame_ind"):
            return None
        stored = (extras["height"], extras["width"])
        size = (self.width * stored[0] / stored[1], float(self.width))
        seen: dict[int, dict[str, Seen]] = {}
        rows = zip(segment["frame_ind"], segment["process_clss"], segment["process_idx"], segment["process_bnd_box"],
                   strict=True)  # fmt: skip
        for frame, labels, words, box in rows:
            at = min(int((frame + 0.5) * extras["frames"] / self.samples), extras["frames"] - 1)
            for label, word in zip(*map(_listed, (labels, words)), strict=True):
                # The same word of the sentence in several frames is one thing; more boxes of it in one frame are others.
                here, nth = seen.setdefault(at, {}), 0
                while f"{label} {word} {nth}" in here:
                    nth += 1
                track = f"{label} {word} {nth}"
                here[track] = Seen(track, str(label), fitted(tuple(map(float, box)), size, stored))
        frames = held({at: FrameGraph(tuple(things.values())) for at, things in seen.items()}, extras["frames"])
        linked = self.relations.link([list(frame.objects) for frame in frames], stored, fps)
        return [FrameGraph(frame.objects, tuple(x for x in frame.links if not x.is_action)) for frame in linked]

    def fingerprint(self) -> dict[str, Any]:
        return {"parser": self.name, "file": checksum_of(str(self.file)), "width": self.width,
                "samples": self.samples, "relations": vars(self.relations)}  # fmt: skip


def _listed(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [value]


def _video_id(extras: dict[str, Any]) -> str:
    source = extras["source"]
    return str(source.get("video") or source.get("videoid") or str(extras["key"]).rpartition("-")[2])


def _unpickled(path: Path) -> dict[str, Any]:
    try:
        with open(path, "rb") as file:
            content = _Plain(file).load()
    except OSError as error:
        raise ConfigError("no annotations of Action Genome", key="parser.folder", got=f"{path}: {error.strerror}",
                          remedy="parser.folder=<the folder with its two .pkl files>") from error  # fmt: skip
    except (pickle.UnpicklingError, EOFError, ValueError, ImportError, AttributeError, IndexError, KeyError) as error:
        raise DataError("the annotations cannot be read", key="parser.folder", got=f"{path}: {error}") from error
    if not isinstance(content, dict):
        raise DataError(
            "not annotations of Action Genome", key="parser.folder", got=f"{path}: {type(content).__name__}"
        )
    return content
