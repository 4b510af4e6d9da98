"""One clip out of anybody's file: mp4, gif, avi and what else holds video, a folder of pictures, or an array in an npz.

Whatever is wrong with a file ends in a DataError whose first words are the reason that is counted. Nothing that a file says
of itself is believed, and no more of it is decoded than a clip needs.
"""

from __future__ import annotations

import hashlib
import re
import zipfile
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from fractions import Fraction
from itertools import islice, pairwise
from pathlib import Path
from typing import Literal

import av
import numpy as np

from vdm.bounds import PositiveFloat, PositiveInt
from vdm.errors import DataError, UserError
from vdm.video import CoverCrop, iter_frames

VIDEOS = (".mp4", ".avi", ".gif", ".mkv", ".webm", ".mov", ".m4v", ".mpg", ".mpeg", ".wmv", ".flv", ".ts", ".apng")
PICTURES = (".png", ".jpg", ".jpeg", ".bmp", ".webp")
ARRAYS = ".npz"
GREY = re.compile(r"gray|mono|ya\d")
UNEVEN = 0.5  # of the usual time between frames that one may be longer or shorter
TICK = 0.0105  # seconds: a gif counts in hundredths
PACKED = 4  # frames that packed B-frames of AVI files may be apart from their own time
LONGEST = 65_536  # pictures of a folder, clips of an array


@dataclass(frozen=True)
class Entry:
    """Where a clip lies. `part` is its place in an array of several."""

    key: str
    path: str
    kind: Literal["video", "pictures", "array"]
    part: int | None = None


@dataclass(frozen=True, kw_only=True)
class ClipRule:
    """What is taken of a file: the first frames, resized to cover height x width, of which the centre is cut out.

    Args:
        frames, stride: that many frames, every `stride`-th.
        fps: what is on screen at these ticks; None: the frames as they come, which have to follow each other evenly.
        still_fps: of pictures and arrays, which say none.
        grey: whether files with one channel are refused or taken.
        max_pixels: of a frame as it is stored.
        enlarge: how much larger a picture may be made.
    """

    frames: PositiveInt
    stride: PositiveInt
    height: PositiveInt
    width: PositiveInt
    fps: PositiveFloat | None
    still_fps: PositiveFloat
    grey: Literal["refuse", "take"]
    max_pixels: PositiveInt
    enlarge: PositiveFloat

    @property
    def span(self) -> int:
        return (self.frames - 1) * self.stride + 1

    def deciding(self) -> dict:
        """What decides the pixels, for ids."""
        return asdict(self) | {"window": "the first", "resize": "bicubic to cover, centre"}


@dataclass
class FoundClip:
    frames: np.ndarray | None  # T H W 3, uint8
    fps: float
    size: tuple[int, int]  # height and width as stored
    content: str  # hash of the frames


@dataclass(frozen=True)
class Refusal:
    reason: str
    detail: str


@dataclass(frozen=True)
class Reader:
    """Called in a process of its own."""

    rule: ClipRule
    with_frames: bool

    def __call__(self, entry: Entry) -> FoundClip | Refusal:
        try:
            clip = read_clip(entry, self.rule)
        except DataError as error:
            return Refusal(error.what, str(error.got or ""))
        except MemoryError as error:
            return Refusal("it needs too much memory", str(error))
        except (av.FFmpegError, EOFError) as error:
            return Refusal("it cannot be read as a video", f"{type(error).__name__}: {error}")
        except OSError as error:
            return Refusal("the file cannot be read", f"{type(error).__name__}: {error}")
        except UserError:
            raise
        except Exception as error:  # noqa: BLE001 - a strange file may make a library raise anything
            return Refusal("it cannot be read", f"{type(error).__name__}: {error}"[:300])
        if not self.with_frames:
            clip.frames = None
        return clip


def read_clip(entry: Entry, rule: ClipRule) -> FoundClip:
    """The clip of a file by the rule."""
    if entry.kind == "video":
        timed, swapped = _decoded(entry.path, rule), PACKED if entry.path.lower().endswith(".avi") else 0
    elif entry.kind == "pictures":
        timed, swapped = _pictures(entry.path, rule), 0
    else:
        timed, swapped = _array(entry, rule), 0
    crop, frames, times, size = CoverCrop(rule.height, rule.width), [], [], None
    if rule.fps is not None:
        timed, swapped = _on_screen(timed, rule.fps), 0
    for position, (time, frame) in enumerate(timed):
        size = size or (frame.height, frame.width)
        if (frame.height, frame.width) != size:
            raise DataError("the frame size changes", got=f"{size[0]}x{size[1]}, then {frame.height}x{frame.width}")
        times.append(time)
        if position < rule.span and position % rule.stride == 0:
            frames.append(crop(frame))
        if position >= rule.span - 1 + swapped:
            break
    if not frames:
        raise DataError("no frames in the video")
    if len(times) < rule.span:
        raise DataError("too short", got=f"{len(times)} frames", allowed=rule.span)
    stack = np.stack(frames)
    fps = _rate(sorted(times)[: rule.span], rule) / rule.stride
    return FoundClip(stack, fps, size, hashlib.blake2b(stack.data, digest_size=16).hexdigest())


def _decoded(path: str, rule: ClipRule) -> Iterator[tuple[float, av.VideoFrame]]:
    with av.open(path, metadata_errors="replace") as container:
        if not container.streams.video:
            what = "no video stream, only sound" if container.streams.audio else "no video stream"
            raise DataError(what)
        codec = container.streams.video[0].codec_context
        if codec is not None:
            _check_size(codec.height, codec.width, rule)
    for frame in iter_frames(path):
        _check_frame(frame, rule)
        if frame.time is None:
            raise DataError("frames without time")
        yield frame.time, frame


def _check_frame(frame: av.VideoFrame, rule: ClipRule) -> None:
    _check_size(frame.height, frame.width, rule)
    scale = max(rule.height / frame.height, rule.width / frame.width)
    if scale > rule.enlarge:
        got = f"{frame.height}x{frame.width}, to be {scale:.1f} times as large"
        raise DataError("the picture is too small", got=got)
    if rule.grey == "refuse" and GREY.match(frame.format.name):
        raise DataError("greyscale", got=frame.format.name)


def _check_size(height: int, width: int, rule: ClipRule) -> None:
    if height * width > rule.max_pixels:
        raise DataError("the picture is too large", got=f"{height}x{width}", allowed=f"{rule.max_pixels} pixels")


def _on_screen(timed: Iterator[tuple[float, av.VideoFrame]], fps: float) -> Iterator[tuple[float, av.VideoFrame]]:
    """What is shown at the ticks of a clock that starts with the first frame. The last frame is shown for one tick."""
    held, origin, tick = None, 0.0, 0
    for time, frame in timed:
        if held is None:
            origin = time
        while held is not None and origin + tick / fps < time - 1e-6:
            yield origin + tick / fps, held
            tick += 1
        held = frame
    if held is not None:
        yield origin + tick / fps, held


def _rate(times: list[float], rule: ClipRule) -> float:
    """Frames a second, which have to be even: motion would otherwise jump."""
    if len(times) < 2:
        return rule.fps or rule.still_fps
    gaps = [b - a for a, b in pairwise(times)]
    usual = sorted(gaps)[len(gaps) // 2]
    if usual <= 0 or min(gaps) < 0:
        raise DataError("frames out of order")
    if any(abs(gap - usual) > max(UNEVEN * usual, TICK) for gap in gaps):
        raise DataError("variable frame rate", got=f"{min(gaps):.4f} to {max(gaps):.4f} s between frames")
    return (len(times) - 1) / (times[-1] - times[0])


# ---- pictures and arrays ------------------------------------------------------------------------------------------------


def _pictures(folder: str, rule: ClipRule) -> Iterator[tuple[float, av.VideoFrame]]:
    for position, path in enumerate(islice(pictures_of(Path(folder)), LONGEST)):
        frame = next(iter_frames(str(path)), None)
        if frame is None:
            raise DataError("a picture cannot be read", got=path.name)
        _check_frame(frame, rule)
        yield position / rule.still_fps, frame


def pictures_of(folder: Path) -> list[Path]:
    """Frames of a folder by the numbers in their names: frame2 comes before frame10."""
    found = [path for path in folder.iterdir() if path.suffix.lower() in PICTURES and not path.name.startswith(".")]
    return sorted(found, key=lambda path: (natural(path.name), path.name))


def natural(name: str) -> list[tuple[int, int, str]]:
    parts = re.split(r"(\d+)", name.casefold())
    return [(1, int(part), "") if part.isdecimal() else (0, 0, part) for part in parts]


def clips_in_array(path: str) -> tuple[int | None, tuple[int, ...]]:
    """How many clips an npz holds (None: itself one), and the shape of its array, without reading it."""
    with zipfile.ZipFile(path) as archive, archive.open(_member(archive)) as file:
        shape, dtype = _header(file)
    if dtype != np.uint8 or len(shape) not in (4, 5) or shape[-1] != 3:
        allowed = "T H W 3 or clips T H W 3, in uint8"
        raise DataError("not an array of video", got=f"{'x'.join(map(str, shape))} {dtype}", allowed=allowed)
    if len(shape) == 5 and not 1 <= shape[0] <= LONGEST:
        raise DataError("no frames in the video" if not shape[0] else "too many clips in an array", got=shape[0])
    return (shape[0] if len(shape) == 5 else None), shape


def _array(entry: Entry, rule: ClipRule) -> Iterator[tuple[float, av.VideoFrame]]:
    """Only the frames of this clip are read."""
    _, shape = clips_in_array(entry.path)
    frames, height, width = shape[-4:-1]
    if min(height, width) < 1:
        raise DataError("no frames in the video", got="x".join(map(str, shape)))
    _check_size(height, width, rule)
    each = height * width * 3
    with zipfile.ZipFile(entry.path) as archive, archive.open(_member(archive)) as file:
        _header(file)
        if entry.part:
            file.seek(entry.part * frames * each, 1)
        for position in range(frames):
            pixels = file.read(each)
            if len(pixels) < each:
                raise DataError("the array is cut off")
            frame = av.VideoFrame.from_ndarray(
                np.frombuffer(pixels, np.uint8).reshape(height, width, 3), format="rgb24"
            )
            _check_frame(frame, rule)
            frame.pts, frame.time_base = position, 1 / Fraction(rule.still_fps).limit_denominator(1001)
            yield position / rule.still_fps, frame


def _member(archive: zipfile.ZipFile) -> str:
    names = [name for name in archive.namelist() if name.endswith(".npy")]
    if len(names) != 1:
        raise DataError(
            "not one array", got=", ".join(sorted(names)[:5]) or "none", allowed="arr_0, or one of any name"
        )
    return names[0]


def _header(file) -> tuple[tuple[int, ...], np.dtype]:
    version = np.lib.format.read_magic(file)
    read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
    shape, is_fortran, dtype = read(file)
    if is_fortran:
        raise DataError("not an array of video", got="stored by columns")
    return shape, dtype
