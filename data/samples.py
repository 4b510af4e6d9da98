"""From the bytes of one stored sample to one training clip: a window of frames, a caption, the asked-for extras.

Every choice is keyed by (seed, epoch, key of the sample), so it depends on neither worker nor batch nor restart. Nothing
that metadata says about the video is believed: a clip is what was decoded, and where the two disagree the sample is broken.
"""

from __future__ import annotations

import contextlib
import copy
import hashlib
import io
import json
import math
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from torch.nn import functional

from data.reader import BrokenSample
from vdm.bounds import PositiveInt
from vdm.errors import ConfigError, DataError

Decoder = Callable[[bytes, Sequence[int]], np.ndarray]  # mp4, increasing frame indices -> T H W 3 in uint8


@dataclass(frozen=True, kw_only=True)
class ClipSettings:
    """What training takes out of a stored clip."""

    frames: PositiveInt
    frame_stride: PositiveInt
    height: PositiveInt
    width: PositiveInt

    @property
    def span(self) -> int:
        """Stored frames from the first to the last one taken."""
        return (self.frames - 1) * self.frame_stride + 1


@dataclass
class Clip:
    """One sample, decoded."""

    frames: np.ndarray | None  # T H W 3, uint8
    caption: str
    fps: float
    key: str
    extras: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Choice:
    """What is taken of a sample in an epoch."""

    window: range  # of stored frames
    stored: tuple[int, int, int]  # frames, height, width
    caption: int  # which of them
    text: str
    fps: float  # of the clip


class ClipReader:
    """Makes clips from members. BrokenSample says why there is none."""

    def __init__(self, *, clip: ClipSettings, seed: int, extras: Sequence[str], decoder: Decoder):
        self.clip, self.seed, self.extras, self.decoder = clip, seed, tuple(extras), decoder
        self.needed = clip  # smaller ones are broken
        # Arrays are read only when asked for; a name that is not in the json can only be there.
        self.extensions = ("mp4", "json", "npz") if self.extras else ("mp4", "json")

    def cut_to(self, frames: int, height: int, width: int) -> ClipReader:
        """The same reader for clips of another size; what it calls broken stays the same."""
        other = copy.copy(self)
        other.clip = replace(self.clip, frames=frames, height=height, width=width)
        return other

    def read(self, key: str, members: dict[str, bytes], epoch: int) -> Clip:
        """One clip of a sample, chosen by its key and the epoch."""
        for extension in ("mp4", "json"):
            if not members.get(extension):
                what = "empty member" if extension in members else "missing member"
                raise BrokenSample(what, f"{key}.{extension}")
        info = metadata(key, members["json"])
        choice = self.choose(key, info, epoch)
        # Decoders conceal damage: only a checksum tells a picture with flipped bits from a true one.
        if "crc32" in info and info["crc32"] != zlib.crc32(members["mp4"]):
            raise BrokenSample("damaged video", "its checksum is not the one in the json")
        video = self._decode(members["mp4"], choice)
        extras = self.truths(info, members.get("npz"), choice) if self.extras else {}
        return Clip(video, choice.text, choice.fps, key, extras)

    def choose(self, key: str, info: dict[str, Any], epoch: int) -> Choice:
        """What is taken of a sample, by what its json says."""
        captions, fps = captions_of(info), _number(info, "fps")
        stored = frames, height, width = tuple(int(_number(info, name)) for name in ("frames", "height", "width"))
        if frames < self.needed.span:
            raise BrokenSample("too short", f"{frames} frames, {self.needed.span} are needed")
        if height < self.needed.height or width < self.needed.width:
            raise BrokenSample("too small", f"{height}x{width}, {self.needed.height}x{self.needed.width} are needed")
        draw = _draw(self.seed, epoch, key)
        start = draw % (frames - self.clip.span + 1)
        window = range(start, start + self.clip.span, self.clip.frame_stride)
        caption = (draw >> 32) % len(captions)
        return Choice(window, stored, caption, captions[caption], fps / self.clip.frame_stride)

    def _decode(self, mp4: bytes, choice: Choice) -> np.ndarray:
        window, (_, height, width) = choice.window, choice.stored
        try:
            video = self.decoder(mp4, window)
        except ConfigError:
            raise
        except DataError as error:
            raise BrokenSample("undecodable video", f"{error.what} ({error.got})") from error
        except Exception as error:  # a decoder fed with garbage may raise anything
            raise BrokenSample("undecodable video", f"{type(error).__name__}: {error}".splitlines()[0]) from error
        expected = (len(window), height, width, 3)
        if video.shape != expected or video.dtype != np.uint8:
            raise BrokenSample("lying metadata", f"decoded {video.shape} {video.dtype}, the json says {expected}")
        if (height, width) == (self.clip.height, self.clip.width):
            return video
        return resize_and_crop(video, self.clip.height, self.clip.width)

    def truths(self, info: dict[str, Any], npz: bytes | None, choice: Choice) -> dict[str, Any]:
        """What was asked for; None where this sample has none."""
        window, truths = choice.window, info.get("extras")
        truths = truths if isinstance(truths, dict) else {}
        found = {name: truths.get(name) for name in self.extras}
        wanted = [name for name in self.extras if name not in truths]
        if wanted and npz:
            arrays = _arrays(npz, wanted)
            found |= {name: self._cut(name, array, choice) for name, array in arrays.items()}
        # What is told per stored frame (a plan's times) can be placed in the clip only by knowing where that begins.
        return found | {"window": np.array([window.start, window.step], dtype=np.int64)}

    def _cut(self, name: str, array: np.ndarray, choice: Choice) -> np.ndarray:
        """Arrays with an entry for each stored frame, or for each step between two, follow the window."""
        window, (frames, height, width) = choice.window, choice.stored
        pairs = list(zip(array.shape, array.shape[1:], strict=False))
        axis = 0
        if (height, width) in pairs:
            if (height, width) != (self.clip.height, self.clip.width):
                remedy = "set data.clip.height and data.clip.width to the stored size, or leave this array out"
                raise ConfigError("arrays of pixels are not resized", key="data.extras", got=f"{name} at {height}x{width}",
                                  allowed=f"{self.clip.height}x{self.clip.width}", remedy=remedy)  # fmt: skip
            axis = len(pairs) - 1 - pairs[::-1].index((height, width)) - 1  # time comes right before the picture
        length = array.shape[axis] if 0 <= axis < array.ndim else None
        if length == frames - 1 and window.step > 1 and (height, width) in pairs:
            remedy = "set data.clip.frame_stride=1, or leave this array out"
            raise ConfigError(
                "steps between stored frames cannot be joined", key="data.extras", got=name, remedy=remedy
            )
        if length == frames or (length == frames - 1 and (height, width) in pairs):
            last = window.stop if length == frames else window.stop - 1
            return np.take(array, range(window.start, last, window.step), axis=axis)
        return array


def resize_and_crop(video: np.ndarray, height: int, width: int) -> np.ndarray:
    """The shorter side shrinks to fit, the longer one is cut on both ends. Frames T H W 3."""
    scale = max(height / video.shape[1], width / video.shape[2])
    if scale < 1:
        size = [max(height, round(video.shape[1] * scale)), max(width, round(video.shape[2] * scale))]
        pixels = torch.from_numpy(video).permute(0, 3, 1, 2)
        pixels = functional.interpolate(pixels, size=size, mode="bilinear", antialias=True)
        video = pixels.permute(0, 2, 3, 1).numpy()
    top, left = (video.shape[1] - height) // 2, (video.shape[2] - width) // 2
    return video[:, top : top + height, left : left + width]


def extras_names(members: dict[str, bytes]) -> set[str]:
    """Names of the truths that one sample has."""
    truths = json.loads(members.get("json", b"{}")).get("extras")
    with np.load(io.BytesIO(members["npz"])) if "npz" in members else contextlib.nullcontext(()) as arrays:
        return {*(truths if isinstance(truths, dict) else ()), *arrays}


def _arrays(npz: bytes, wanted: Sequence[str]) -> dict[str, np.ndarray]:
    try:
        with np.load(io.BytesIO(npz), allow_pickle=False) as arrays:
            return {name: arrays[name] for name in wanted if name in arrays}
    except Exception as error:  # zip and numpy raise what they like
        raise BrokenSample("unreadable arrays", f"{type(error).__name__}: {error}") from error


def metadata(key: str, content: bytes) -> dict[str, Any]:
    """What the json of a sample says. BrokenSample when it says nothing."""
    try:
        info = json.loads(content.decode("utf-8"))
    except UnicodeDecodeError as error:
        raise BrokenSample("bad UTF-8", str(error)) from error
    except (ValueError, RecursionError) as error:
        raise BrokenSample("invalid json", str(error)) from error
    if not isinstance(info, dict):
        raise BrokenSample("invalid json", f"not an object but {type(info).__name__}")
    if info.get("key") != key:
        raise BrokenSample("lying metadata", f"the json belongs to {str(info.get('key'))[:80]!r}")
    return info


def captions_of(info: dict[str, Any]) -> list[str]:
    """All captions of a sample. BrokenSample when one of them cannot be used."""
    captions = info.get("captions", info.get("caption"))
    captions = [captions] if isinstance(captions, str) else captions
    if not isinstance(captions, list) or not captions:
        raise BrokenSample("missing caption")
    for caption in captions:
        if not isinstance(caption, str) or not caption.strip():
            raise BrokenSample("missing caption", f"an empty one among {len(captions)}")
        if "\0" in caption:
            raise BrokenSample("bad caption", "holds a NUL character")
        try:
            caption.encode("utf-8")
        except UnicodeEncodeError as error:
            raise BrokenSample("bad UTF-8", "half a surrogate pair") from error
    return captions


def _number(info: dict[str, Any], name: str) -> float:
    value = info.get(name)
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value) or value <= 0:
        raise BrokenSample("lying metadata", f"{name} is {str(value)[:40]}")
    return value


def _draw(seed: int, epoch: int, key: str) -> int:
    digest = hashlib.blake2b(f"{seed}/{epoch}/{key}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little")
