"""From a record to the members of its samples: cut in time, resampled, resized, encoded, with the text beside it."""

from __future__ import annotations

import heapq
import io
import json
import zipfile
import zlib
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction

import av
import numpy as np

from data.records import Record, StoreSettings, check_key
from vdm.errors import ConfigError, DataError
from vdm.video import CoverCrop, encode_mp4, iter_frames

_LONGEST_GAP = 60.0  # seconds: longer pauses between frames are lies of the container
_RATES = (0.1, 1000.0)
_PACKED = 4  # frames that packed B-frames may be apart from their own time


@dataclass(frozen=True)
class Stored:
    """One sample as it goes into a shard: extension -> content."""

    key: str
    members: dict[str, bytes]


def store_record(
    record: Record, store: StoreSettings, *, clips_per_video: int | None, min_frames: int
) -> Iterator[Stored]:
    """The samples of a record: its first `clips_per_video` clips, or all. DataError for what cannot be used."""
    check_key(record.key)
    captions = _clean(record.captions)
    for count, (start, frames, fps) in enumerate(_clips(record, store, clips_per_video, min_frames)):
        key = record.key if clips_per_video == 1 else check_key(f"{record.key}-{count:04d}")
        source = record.source if clips_per_video == 1 else record.source | {"clip": count, "start": round(start, 3)}
        yield _stored(record, key, captions, source, frames, fps, store)


def _stored(
    record: Record, key: str, captions: list[str], source: dict, frames: np.ndarray, fps: float, store: StoreSettings
) -> Stored:
    length, height, width, _ = frames.shape
    mp4 = encode_mp4(frames, fps, gop=store.gop, crf=store.crf, pixel_format=store.pixel_format)
    text = {"caption": captions[0]} if len(captions) == 1 else {"captions": captions}
    facts = {"fps": fps, "frames": length, "height": height, "width": width, "crc32": zlib.crc32(mp4)}
    sample = {"key": key, **text, **facts, "source": source, "extras": record.extras}
    members = {"mp4": mp4, "json": json.dumps(sample, ensure_ascii=False, allow_nan=False).encode()}
    if record.arrays:
        members["npz"] = _npz(record.arrays)
    return Stored(key, members)


def _clean(captions: tuple[str, ...]) -> list[str]:
    texts = [" ".join(text.split()) for text in captions if isinstance(text, str)]
    texts = [text for text in texts if text]
    if not texts:
        raise DataError("no caption")
    for text in texts:
        if any(0xD800 <= ord(letter) < 0xE000 for letter in text):
            raise DataError("the caption is not UTF-8", got=ascii(text)[:200])
    return texts


def _npz(arrays: dict[str, np.ndarray]) -> bytes:
    """What np.savez_compressed writes, at the fastest level: truth is mostly zeros and must not dominate the work."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive:
        for name in sorted(arrays):
            content = io.BytesIO()
            np.lib.format.write_array(content, np.ascontiguousarray(arrays[name]), allow_pickle=False)
            member = zipfile.ZipInfo(f"{name}.npy")  # its date is fixed, so that equal arrays make equal bytes
            member.compress_type = zipfile.ZIP_DEFLATED
            archive.writestr(member, content.getvalue(), compresslevel=1)
    return buffer.getvalue()


def _clips(
    record: Record, store: StoreSettings, limit: int | None, min_frames: int
) -> Iterator[tuple[float, np.ndarray, float]]:
    """(start in seconds, T H W 3, fps) of each clip."""
    if (record.frames is None) == (record.path is None):
        raise DataError("a record needs either frames or a path", got=record.key)
    if _is_ready(record, store):
        if len(record.frames) < min_frames:
            raise _too_short(len(record.frames), min_frames)
        yield 0.0, record.frames, float(record.fps)
        return
    if record.arrays or (record.extras and record.frames is not None):
        shape = "a video" if record.frames is None else "x".join(map(str, record.frames.shape[:3]))
        raise ConfigError(
            "truth beside a clip fits only the frames it was made for",
            key="data.store",
            got=f"{record.key}: {shape} at {record.fps} fps",
            allowed=f"at most {store.frames} frames of {store.height}x{store.width} at {store.fps or 'any'} fps",
            remedy="give data.source and data.store the same frames, height, width and fps",
        )
    crop, done, total, chunk, times = CoverCrop(store.height, store.width), 0, 0, [], []
    for time, frame, is_repeated in _resampled(_timed(record), store.fps, record.start, record.end):
        chunk.append(chunk[-1] if is_repeated and chunk else crop(frame))
        times.append(time)
        total += 1
        if len(chunk) == store.frames:
            yield times[0], np.stack(chunk), store.fps or _rate(times)
            done, chunk, times = done + 1, [], []
            if limit is not None and done >= limit:
                return
    if len(chunk) >= min_frames:
        yield times[0], np.stack(chunk), store.fps or _rate(times)
    elif not done:
        raise _too_short(total, min_frames)


def _is_ready(record: Record, store: StoreSettings) -> bool:
    frames = record.frames
    if frames is None:
        return False
    if frames.ndim != 4 or frames.shape[-1] != 3 or frames.dtype != np.uint8 or not record.fps:
        raise DataError("frames must be T H W 3 in uint8 with their fps", got=f"{frames.shape} {frames.dtype}")
    is_whole = record.start is None and record.end is None and 1 <= len(frames) <= store.frames
    return is_whole and frames.shape[1:3] == (store.height, store.width) and store.fps in (None, record.fps)


def _timed(record: Record) -> Iterator[tuple[float, av.VideoFrame]]:
    """Frames with their times, which increase; nothing is believed before it is decoded."""
    previous = None
    frames = _from_array(record) if record.path is None else iter_frames(record.path, start=record.start or 0.0)
    is_avi = record.path is not None and record.path.lower().endswith(".avi")
    for time, frame in _in_step(frames, _PACKED if is_avi else 0):
        if previous is not None and time <= previous:
            raise DataError("frames without time, or out of order")
        if previous is not None and time - previous > _LONGEST_GAP:
            raise DataError("a gap in the video", got=f"{time - previous:.0f} seconds between two frames")
        previous = time
        yield time, frame


def _in_step(frames: Iterator[av.VideoFrame], swapped: int) -> Iterator[tuple[float, av.VideoFrame]]:
    """Each frame with its time. Frames come as they are shown, but in AVI files with packed B-frames, of which UCF-101 has
    many, neighbours bear each other's times: these are sorted, over so many frames.
    """
    held: deque[av.VideoFrame] = deque()
    times: list[float] = []
    for frame in frames:
        if frame.time is None:
            raise DataError("frames without time, or out of order")
        held.append(frame)
        heapq.heappush(times, frame.time)
        if len(held) > swapped:
            yield heapq.heappop(times), held.popleft()
    while held:
        yield heapq.heappop(times), held.popleft()


def _from_array(record: Record) -> Iterator[av.VideoFrame]:
    for position, pixels in enumerate(record.frames):
        frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(pixels), format="rgb24")
        frame.pts, frame.time_base = position, 1 / Fraction(record.fps).limit_denominator(1001)
        yield frame


def _resampled(
    timed: Iterator[tuple[float, av.VideoFrame]], fps: float | None, start: float | None, end: float | None
) -> Iterator[tuple[float, av.VideoFrame, bool]]:
    """(time, frame, whether it is the one before again): what is on screen at the ticks of `fps`, or every frame."""
    start, end = start if start is not None else -np.inf, end if end is not None else np.inf
    if fps is None:
        yield from ((time, frame, False) for time, frame in timed if start <= time < end)
        return
    held, shown_until, origin, tick, step = None, 0.0, 0.0, 0, 0.0
    for time, frame in timed:
        if held is None:
            origin = max(time, start)
        else:
            step, is_repeated = time - shown_until, False
            while origin + tick / fps < min(time, end) - 1e-6:
                yield origin + tick / fps, held, is_repeated
                tick, is_repeated = tick + 1, True
        if time >= end:
            return
        held, shown_until = frame, time
    is_repeated = False
    while held is not None and origin + tick / fps < min(shown_until + (step or 1 / fps), end) - 1e-6:
        yield origin + tick / fps, held, is_repeated
        tick, is_repeated = tick + 1, True


def _rate(times: list[float]) -> float:
    """Frames per second as decoded; what the container says may be anything."""
    rate = (len(times) - 1) / (times[-1] - times[0]) if len(times) > 1 else 0.0
    if not _RATES[0] <= rate <= _RATES[1]:
        raise DataError("an impossible frame rate", got=f"{rate:g} fps", allowed=f"{_RATES[0]:g} to {_RATES[1]:g}")
    return round(rate, 3)


def _too_short(got: int, needed: int) -> DataError:
    if not got:
        return DataError("no frames in the video")
    return DataError("the video is too short", got=f"{got} frames", allowed=f"at least {needed}")
