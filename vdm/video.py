"""mp4 <-> uint8 <-> [-1, 1]: the only place that scales pixels and the only place that talks to the codec."""

from __future__ import annotations

import io
from collections.abc import Iterable, Iterator
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import torch
from av.video.reformatter import VideoReformatter
from torch import Tensor

from vdm.errors import DataError

# yuv420p stores colour at half the resolution, which smears small pictures; yuv444p keeps every pixel's colour.
PIXEL_FORMATS = ("yuv420p", "yuv444p")


def to_float(video: Tensor) -> Tensor:
    """uint8 [0, 255] -> float [-1, 1]."""
    return video.float().div_(127.5).sub_(1.0)


def to_uint8(video: Tensor) -> Tensor:
    """Float [-1, 1] -> uint8 [0, 255], clipped and rounded."""
    return video.detach().float().add(1.0).mul_(127.5).round_().clamp_(0, 255).to(torch.uint8)


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
        for frame in frames:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        container.mux(stream.encode())
    return buffer.getvalue()


def iter_frames(source: bytes | str | Path) -> Iterator[av.VideoFrame]:
    """Decoded frames in display order. Trusts nothing the container says about their number."""
    opened = io.BytesIO(source) if isinstance(source, bytes) else str(source)
    with av.open(opened) as container:
        if not container.streams.video:
            raise DataError("no video stream")
        stream = container.streams.video[0]
        stream.thread_type, stream.codec_context.thread_count = "SLICE", 1
        yield from container.decode(stream)


def decode(source: bytes | str | Path, *, indices: Iterable[int] | None = None, limit: int | None = None) -> np.ndarray:
    """Frames T H W 3 in uint8: all, the first `limit`, or those at the sorted `indices`.

    One scaler for the whole clip: a scaler per frame, PyAV's default, costs more than decoding a small clip.
    """
    wanted = None if indices is None else set(indices)
    last = max(wanted) if wanted else None
    scaler, out = VideoReformatter(), []
    for position, frame in enumerate(iter_frames(source)):
        if wanted is None or position in wanted:
            rgb = scaler.reformat(frame, format="rgb24", threads=1)
            out.append(rgb.to_ndarray())
        if (last is not None and position >= last) or (limit is not None and position + 1 >= limit):
            break
    if not out or (wanted is not None and len(out) < len(wanted)):
        expected = "at least one frame" if wanted is None else f"{len(wanted)} frames up to index {last}"
        raise DataError("the video ends too early", got=f"{len(out)} frames", allowed=expected)
    return np.stack(out)


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
