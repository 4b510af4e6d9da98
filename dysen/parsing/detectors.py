"""Detectors: what is where in one picture. One for plain colours without weights, two for real pictures."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from dysen.names import shorten
from dysen.parsing.coco import COCO
from dysen.parsing.frames import Box, Seen
from vdm.bounds import Fraction, NonNegativeInt, PositiveInt
from vdm.errors import ConfigError


class Detector(Protocol):
    """Finds things in pictures; who is who in the next picture is the tracker's business."""

    def detect(self, frame: np.ndarray) -> list[Seen]:
        """Things in a picture H W 3 in uint8; the track of each is its place in the list."""

    def fingerprint(self) -> dict[str, Any]:
        """What decides the detections."""


class Blobs:
    """Connected patches of one hue on a grey ground.

    Args:
        hues: name and angle on the colour wheel, 0 to 360, of each colour.
        chroma: least difference of the strongest and the weakest channel, 0 to 255.
        least: smallest patch, as a share of the picture.
        join: patches of one hue with a gap below so many widths of the picture are one thing that another one hides.
        label: what a thing is called after its colour.
    """

    def __init__(
        self, *, hues: Mapping[str, float], chroma: NonNegativeInt, least: Fraction, join: Fraction, label: str
    ):
        self.hues, self.chroma, self.least, self.join, self.label = dict(hues), chroma, least, join, label

    def detect(self, frame: np.ndarray) -> list[Seen]:
        rgb = frame.astype(np.int16)
        is_coloured = rgb.max(axis=2) - rgb.min(axis=2) >= self.chroma
        if not is_coloured.any():
            return []
        wheel = np.array(list(self.hues.values()), dtype=np.float32)
        away = np.abs((_hue(rgb)[..., None] - wheel + 180) % 360 - 180)  # H W n
        nearest = np.where(is_coloured, away.argmin(axis=2), -1)
        found: list[Seen] = []
        for i, colour in enumerate(self.hues):
            boxes = _joined(_patches(nearest == i), self.join * frame.shape[1])
            for box, pixels in boxes:
                if pixels >= self.least * frame.shape[0] * frame.shape[1]:
                    name = f"{colour} {self.label}".strip()
                    found.append(Seen(len(found), name, box, attributes=(colour,)))
        return found

    def fingerprint(self) -> dict[str, Any]:
        return {"detector": "blobs", **vars(self)}


def _hue(rgb: np.ndarray) -> np.ndarray:
    """Angles on the colour wheel, H W."""
    red, green, blue = (rgb[..., i].astype(np.float32) for i in range(3))
    return np.degrees(np.arctan2(np.sqrt(3) * (green - blue), 2 * red - green - blue)) % 360


def _patches(mask: np.ndarray) -> list[tuple[Box, int]]:
    """Box and number of pixels of each connected patch, corners included: runs of each row, joined from row to row."""
    owner: list[int] = []
    runs: list[tuple[int, int, int]] = []  # row, first, end

    def root(i: int) -> int:
        while owner[i] != i:
            owner[i] = owner[owner[i]]
            i = owner[i]
        return i

    above: list[int] = []
    for row in np.flatnonzero(mask.any(axis=1)).tolist():
        edges = np.flatnonzero(np.diff(np.concatenate([[0], mask[row].astype(np.int8), [0]]))).tolist()
        here = []
        for first, end in zip(edges[::2], edges[1::2], strict=True):
            at = len(runs)
            runs.append((row, first, end))
            owner.append(at)
            here.append(at)
            for i in above:
                if runs[i][0] == row - 1 and runs[i][1] <= end and first <= runs[i][2]:
                    owner[root(i)] = root(at)
        above = here
    parts: dict[int, list[tuple[int, int, int]]] = {}
    for i, run in enumerate(runs):
        parts.setdefault(root(i), []).append(run)
    return [
        (
            (float(min(r[1] for r in part)), float(part[0][0]), float(max(r[2] for r in part)), float(part[-1][0] + 1)),
            sum(r[2] - r[1] for r in part),
        )
        for part in parts.values()
    ]


def _joined(patches: list[tuple[Box, int]], gap: float) -> list[tuple[Box, int]]:
    """Patches that lie close to each other as one."""
    merged: list[tuple[Box, int]] = []
    for box, pixels in sorted(patches, key=lambda entry: -entry[1]):
        rest = []
        for other, count in merged:
            apart = max(other[0] - box[2], box[0] - other[2], other[1] - box[3], box[1] - other[3])
            if apart < gap:
                box = (*(min(a, b) for a, b in zip(box[:2], other[:2], strict=True)),
                       *(max(a, b) for a, b in zip(box[2:], other[2:], strict=True)))  # fmt: skip
                pixels += count
            else:
                rest.append((other, count))
        merged = [*rest, (box, pixels)]
    return merged


class OpenCV:
    """A detector in TensorFlow's or ONNX' format that ends in SSD's rows (picture, class, score, left, top, right, bottom).

    Args:
        weights: .pb, .onnx or another file that cv2.dnn reads.
        config: the text graph beside a .pb; null where the file says all.
        size: side of the square that the network sees.
        mean, scale: a pixel becomes (pixel - mean) * scale, in RGB.
        labels: a file with a class a line, counted from `first_label`; null: the 90 classes of COCO.
        min_score: detections below are left out.
        keep: these classes only; null: all.
        threads: of OpenCV.
    """

    def __init__(
        self,
        *,
        weights: str | None,
        config: str | None,
        size: PositiveInt,
        mean: float,
        scale: float,
        labels: str | None,
        first_label: NonNegativeInt,
        min_score: Fraction,
        keep: list[str] | None,
        threads: NonNegativeInt,
    ):
        self.weights, self.config = _file(weights, "detector.weights"), config and _file(config, "detector.config")
        self.labels = _labels(labels, first_label)
        self.size, self.mean, self.scale, self.min_score = size, mean, scale, min_score
        self.keep = _kept(keep, self.labels)
        try:
            import cv2
        except ImportError as error:
            raise ConfigError("detector=opencv needs OpenCV", key="detector", got=str(error).splitlines()[0],
                              remedy="pip install opencv-python-headless") from None  # fmt: skip
        self._cv2 = cv2
        cv2.setNumThreads(threads)
        try:
            self._net = cv2.dnn.readNet(*filter(None, (str(self.weights), self.config and str(self.config))))
        except cv2.error as error:
            raise ConfigError("OpenCV cannot read this network", key="detector.weights, detector.config",
                              got=f"{weights}: {str(error).strip().splitlines()[0]}") from error  # fmt: skip

    def detect(self, frame: np.ndarray) -> list[Seen]:
        height, width = frame.shape[:2]
        blob = self._cv2.dnn.blobFromImage(
            np.ascontiguousarray(frame), self.scale, (self.size, self.size), (self.mean,) * 3, swapRB=False
        )
        self._net.setInput(blob)
        rows = np.asarray(self._net.forward())
        if rows.shape[-1] != 7:
            raise ConfigError("this network's output is not that of an SSD", key="detector.weights", got=rows.shape,
                              allowed="1 1 n 7")  # fmt: skip
        found: list[Seen] = []
        for _, kind, score, *sides in rows.reshape(-1, 7).tolist():
            label = self.labels.get(int(kind))
            box = _inside([side * size for side, size in zip(sides, (width, height) * 2, strict=True)], width, height)
            if score >= self.min_score and label is not None and box and (self.keep is None or label in self.keep):
                found.append(Seen(len(found), label, box, float(score)))
        return found

    def fingerprint(self) -> dict[str, Any]:
        settings = {name: value for name, value in vars(self).items() if not name.startswith("_") and name != "labels"}
        return {"detector": "opencv", **settings, "weights": checksum_of(self.weights),
                "config": self.config and checksum_of(self.config)}  # fmt: skip


class Torchvision:
    """A detector of torchvision by its name, such as ssdlite320_mobilenet_v3_large or fasterrcnn_resnet50_fpn.

    Args:
        model: its name.
        weights: a file with its state; null is an error, nothing is downloaded.
        min_score, keep: as above.
        device: cpu or cuda.
    """

    def __init__(self, *, model: str, weights: str | None, min_score: Fraction, keep: list[str] | None, device: str):
        path = _file(weights, "detector.weights")
        try:
            import torch
            from torchvision.models import detection, get_model, get_model_weights, list_models
            from torchvision.ops import boxes

            boxes.nms(torch.zeros(1, 4), torch.zeros(1), 0.5)  # fails where torchvision was made for another torch
        except (ImportError, RuntimeError) as error:
            raise ConfigError("detector=torchvision needs torchvision", key="detector", got=shorten(str(error)),
                              remedy="install the torchvision that fits torch") from None  # fmt: skip
        known = list_models(module=detection)
        if model not in known:
            raise ConfigError("torchvision has no such detector", key="detector.model", got=model, allowed=known)
        categories = get_model_weights(model).DEFAULT.meta["categories"]
        self.model, self.weights, self.min_score = model, path, min_score
        self.labels = {i: name for i, name in enumerate(categories) if name not in ("__background__", "N/A")}
        self.keep = _kept(keep, self.labels)
        self._torch, self._device = torch, device
        try:
            state = torch.load(path, map_location="cpu", weights_only=True)
            self._net = get_model(model, weights=None, weights_backbone=None, num_classes=len(categories))
            self._net.load_state_dict(state)
        except Exception as error:  # pickle, zip and torch all raise their own
            raise ConfigError("these are not the weights of this detector", key="detector.weights, detector.model",
                              got=f"{weights}, {model}: {str(error).strip().splitlines()[0]}") from error  # fmt: skip
        self._net.eval().to(device)

    def detect(self, frame: np.ndarray) -> list[Seen]:
        torch = self._torch
        picture = torch.from_numpy(np.ascontiguousarray(frame)).permute(2, 0, 1).to(self._device).float() / 255
        with torch.inference_mode():
            out = {name: value.cpu().tolist() for name, value in self._net([picture])[0].items()}
        found: list[Seen] = []
        for box, kind, score in zip(out["boxes"], out["labels"], out["scores"], strict=True):
            label, box = self.labels.get(kind), _inside(box, frame.shape[1], frame.shape[0])
            if score >= self.min_score and label is not None and box and (self.keep is None or label in self.keep):
                found.append(Seen(len(found), label, box, score))
        return found

    def fingerprint(self) -> dict[str, Any]:
        return {"detector": self.model, "weights": checksum_of(self.weights), "min_score": self.min_score,
                "keep": self.keep}  # fmt: skip


def checksum_of(path: str) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()[:16]


def _inside(box: list[float], width: int, height: int) -> Box | None:
    x1, y1, x2, y2 = max(box[0], 0.0), max(box[1], 0.0), min(box[2], float(width)), min(box[3], float(height))
    return (x1, y1, x2, y2) if x1 < x2 and y1 < y2 else None


def _file(path: str | None, key: str) -> str:
    if path is None or not Path(path).is_file():
        raise ConfigError("the detector has no weights" if key.endswith("weights") else "no such file", key=key,
                          got="nothing" if path is None else path, remedy=f"{key}=<file>; nothing is downloaded")  # fmt: skip
    return path


def _labels(path: str | None, first: int) -> dict[int, str]:
    if path is None:
        return COCO
    try:
        return dict(enumerate(Path(path).read_text(encoding="utf-8").split("\n"), start=first))
    except (OSError, ValueError) as error:
        raise ConfigError("the labels cannot be read", key="detector.labels", got=f"{path}: {error}") from error


def _kept(keep: list[str] | None, labels: dict[int, str]) -> list[str] | None:
    unknown = sorted(set(keep or ()) - set(labels.values()))
    if unknown:
        raise ConfigError("the detector knows no such class", key="detector.keep", got=", ".join(unknown),
                          allowed=sorted(labels.values()))  # fmt: skip
    return keep
