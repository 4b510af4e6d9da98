"""mp4 <-> uint8 <-> [-1, 1]: the only place that scales pixels and the only place that talks to the codec."""

from __future__ import annotations

import io
from collections.abc import Container, Iterable, Iterator
from contextlib import contextmanager
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING

import av
import numpy as np
from av.container import InputContainer
from av.video.reformatter import Interpolation, VideoReformatter
from av.video.stream import VideoStream

from vdm.errors import DataError

if TYPE_CHECKING:
    from torch import Tensor  # only named: processes that encode and decode start without torch

# yuv420p stores colour at half the resolution, which smears small pictures; yuv444p keeps every pixel's colour.
PIXEL_FORMATS = ("yuv420p", "yuv444p")


def to_float(video: Tensor) -> Tensor:
    """uint8 [0, 255] -> float [-1, 1]."""
    return video.float().div_(127.5).sub_(1.0)


def to_uint8(video: Tensor) -> Tensor:
    """Float [-1, 1] -> uint8 [0, 255], clipped and rounded."""
    return video.detach().float().add(1.0).mul_(127.5).round_().clamp_(0, 255).byte()


def encode_mp4(
    frames: np.ndarray,  # T H W 3, uint8
    fps: float,
    *,
    gop: int = 8,
    crf: int = 18,
    preset: str = "veryfast",
    pixel_format: str = "yuv420p",
) -> bytes:
    """H.264 in mp4, one thread, so that the same frames give the same bytes on every machine."""
    if frames.ndim != 4 or frames.shape[-1] != 3 or frames.dtype != np.uint8 or not len(frames):
        raise ValueError(f"expected frames T H W 3 in uint8 with T >= 1, got {frames.shape} {frames.dtype}")
    _, height, width, _ = frames.shape
    if pixel_format == "yuv420p" and (height % 2 or width % 2):
        raise ValueError(f"yuv420p needs an even size, got {height}x{width}")
    buffer = io.BytesIO()
    with av.open(buffer, "w", format="mp4") as container:
        rate = Fraction(fps).limit_denominator(1001)
        stream = container.add_stream("libx264", rate=rate)
        stream.width, stream.height, stream.pix_fmt = width, height, pixel_format
        stream.thread_count = 1
        stream.options = {"crf": str(crf), "preset": preset, "g": str(gop), "bf": "0", "threads": "1"}
        # Without scene cuts every keyframe is a clean place to start decoding; without the in-loop filter and arithmetic
        # coding a clip is read a third faster, for a sixth more bytes.
        stream.options |= {"sc_threshold": "0", "tune": "fastdecode"}
        for frame in frames:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        container.mux(stream.encode())
    return buffer.getvalue()


@contextmanager
def _opened(source: bytes | str | Path) -> Iterator[tuple[InputContainer, VideoStream]]:
    is_bytes = isinstance(source, bytes)
    # Naming the format saves a tenth of the time of a small clip; guessing it is for everything else.
    container_format = "mp4" if is_bytes and source[4:8] == b"ftyp" else None
    opened = io.BytesIO(source) if is_bytes else str(source)
    with av.open(opened, format=container_format, metadata_errors="replace") as container:
        if not container.streams.video:
            raise DataError("no video stream")
        stream = container.streams.video[0]
        codec = stream.codec_context
        if codec is None:
            raise DataError("no decoder for the video stream")
        codec.thread_type, codec.thread_count = "SLICE", 1
        codec.options = {"err_detect": "explode"}  # a damaged picture is an error, not a grey block
        yield container, stream


def iter_frames(source: bytes | str | Path, *, start: float = 0.0) -> Iterator[av.VideoFrame]:
    """Decoded frames in display order, from the last keyframe before `start` seconds.

    Trusts nothing the container says about their number.
    """
    with _opened(source) as (container, stream):
        if start > 0 and stream.time_base:
            container.seek(int(start / stream.time_base), stream=stream)
        for packet in container.demux(stream):
            if packet.is_corrupt:
                raise DataError("the video is damaged or cut off")
            yield from packet.decode()


def decode(source: bytes | str | Path, *, indices: Iterable[int] | None = None, limit: int | None = None) -> np.ndarray:
    """Frames T H W 3 in uint8: all, the first `limit`, or those at the increasing `indices`.

    One scaler for the whole clip: a scaler per frame, PyAV's default, costs more than decoding a small clip.
    """
    if indices is not None:
        return _decode_at(source, list(indices))
    scaler, out = VideoReformatter(), []
    for frame in iter_frames(source):
        out.append(_rgb(scaler.reformat(frame, format="rgb24", threads=1)))
        if limit is not None and len(out) >= limit:
            break
    if not out:
        raise DataError("the video ends too early", got="0 frames", allowed="at least one frame")
    if len({frame.shape for frame in out}) > 1:
        raise DataError("the frame size changes within the video")
    return np.stack(out)


def _decode_at(source: bytes | str | Path, indices: list[int], *, in_groups: bool = True) -> np.ndarray:
    """Decodes only the groups of pictures that hold a wanted frame, each from its keyframe on."""
    if not indices or indices[0] < 0 or any(b <= a for a, b in zip(indices, indices[1:], strict=False)):
        raise ValueError(f"expected increasing indices from 0, got {indices}")
    scaler, out, filled = VideoReformatter(), None, 0
    with _opened(source) as (container, stream):
        packets = [packet for packet in container.demux(stream) if packet.size]
        shown = [packet.pts for packet in packets if not packet.is_discard]
        if None in shown or len(set(shown)) < len(shown):
            raise DataError("frames of the video have no time, or share one")
        if indices[-1] >= len(shown):
            allowed = f"{len(indices)} frames up to index {indices[-1]}"
            raise DataError("the video ends too early", got=f"{len(shown)} frames", allowed=allowed)
        rows = {pts: row for pts, row in zip(np.sort(shown)[indices].tolist(), range(len(indices)), strict=True)}
        # Where frames are reordered, those beside a keyframe may need the group before it.
        in_groups = in_groups and all(a < b for a, b in zip(shown, shown[1:], strict=False))
        for packet in [
            *(_needed(packets, rows) if in_groups else packets),
            None,
        ]:  # None: hand out the frames held back
            for frame in stream.codec_context.decode(packet):
                row = rows.get(frame.pts)
                if row is None:
                    continue
                rgb = _rgb(scaler.reformat(frame, format="rgb24", threads=1))
                out = np.empty((len(indices), *rgb.shape), np.uint8) if out is None else out
                if rgb.shape != out.shape[1:]:
                    raise DataError("the frame size changes within the video")
                out[row], filled = rgb, filled + 1
    if in_groups and filled != len(indices):
        return _decode_at(source, indices, in_groups=False)  # a keyframe that needs what is before it
    if out is None or filled != len(indices):
        raise DataError("the video ends too early", got=f"{filled} frames", allowed=f"{len(indices)} frames")
    return out


def _needed(packets: list[av.Packet], wanted: Container[int]) -> list[av.Packet]:
    """Of every group of pictures what lies up to its last wanted frame; nothing of the other groups."""
    needed, group = [], []
    for packet in packets:
        if packet.is_keyframe:
            group = []
        group.append(packet)
        if packet.pts in wanted:
            if any(part.is_corrupt for part in group):
                raise DataError("the video is damaged or cut off")
            needed += group
            group = []
    return needed


class CoverCrop:
    """Makes frames upright, resizes them until they cover H x W, and cuts out the centre."""

    def __init__(self, height: int, width: int):
        self.height, self.width = height, width
        self._scaler = VideoReformatter()

    def __call__(self, frame: av.VideoFrame) -> np.ndarray:  # H W 3, uint8
        turns = round(frame.rotation / 90) % 4
        height, width = (self.width, self.height) if turns % 2 else (self.height, self.width)
        scale = max(height / frame.height, width / frame.width)
        covering = max(height, round(frame.height * scale)), max(width, round(frame.width * scale))
        # Bit-exact, so that shards do not depend on the vector units of the machine.
        flags = Interpolation.BICUBIC | Interpolation.ACCURATE_RND | Interpolation.BITEXACT
        resized = self._scaler.reformat(
            frame, width=covering[1], height=covering[0], format="rgb24", interpolation=flags, threads=1
        )
        top, left = (covering[0] - height) // 2, (covering[1] - width) // 2
        return np.rot90(_rgb(resized)[top : top + height, left : left + width], turns)


def _rgb(frame: av.VideoFrame) -> np.ndarray:
    """A view H W 3 into an rgb24 frame, whose lines may be padded."""
    plane, width = frame.planes[0], frame.width
    lines = np.frombuffer(plane, np.uint8).reshape(plane.height, plane.line_size)
    return lines[:, : 3 * width].reshape(frame.height, width, 3)


def save_mp4(path: str | Path, video: Tensor, fps: float, *, crf: int = 12) -> None:
    """Write a clip `3 T H W` in [-1, 1]; the file appears whole or not at all."""
    path = Path(path)
    frames = to_uint8(video).permute(1, 2, 3, 0).cpu().numpy()  # T H W 3
    pixel_format = "yuv420p" if frames.shape[1] % 2 == 0 and frames.shape[2] % 2 == 0 else "yuv444p"
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(path.name + ".partial")
    partial.write_bytes(encode_mp4(frames, fps, crf=crf, pixel_format=pixel_format))
    partial.replace(path)


def sheet(clips: list[Tensor], *, columns: int | None = None, scale: int = 1, gap: int = 2) -> np.ndarray:
    """Contact sheet H W 3 in uint8: one row per clip `3 T H W` in [-1, 1], time from left to right."""
    rows = []
    for clip in clips:
        frames = to_uint8(clip).permute(1, 2, 3, 0).cpu().numpy()[: columns or None]
        frames = frames.repeat(scale, axis=1).repeat(scale, axis=2)
        rows.append(np.concatenate([np.pad(f, ((0, gap), (0, gap), (0, 0)), constant_values=255) for f in frames], 1))
    return np.concatenate(rows, axis=0)


def save_png(path: str | Path, image: np.ndarray) -> None:
    """Write H W 3 uint8 as PNG with the codec library that is there anyway."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    buffer = io.BytesIO()
    with av.open(buffer, "w", format="image2pipe") as container:
        stream = container.add_stream("png", rate=1)
        stream.width, stream.height, stream.pix_fmt = image.shape[1], image.shape[0], "rgb24"
        container.mux(stream.encode(av.VideoFrame.from_ndarray(np.ascontiguousarray(image), format="rgb24")))
        container.mux(stream.encode())
    partial = path.with_name(path.name + ".partial")
    partial.write_bytes(buffer.getvalue())
    partial.replace(path)
