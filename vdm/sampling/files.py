"""Videos as files. A file has its whole content or is not there, whatever happens."""

from __future__ import annotations

import contextlib
import io
import os
from fractions import Fraction
from pathlib import Path

import av
import numpy as np

from vdm.errors import RunError
from vdm.video import encode_mp4

GAP = 2  # pixels between the frames of a picture


def write_whole(path: Path, content: bytes) -> None:
    """Written beside its place and renamed; nothing is left of it where the disk is full."""
    partial = path.with_name(f"{path.name}.partial-{os.getpid()}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with partial.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        partial.replace(path)
    except OSError as error:
        remedy = "free space, or set output to a folder on another disk, and run the same command again: it goes on"
        raise RunError("the sample could not be written", key="output", got=f"{path}: {error}", remedy=remedy) from None
    finally:
        with contextlib.suppress(OSError):
            partial.unlink(missing_ok=True)


def encoded(frames: np.ndarray, fps: float, *, format: str, crf: int, pixel_format: str) -> bytes:
    """Frames T H W 3 in uint8 -> the bytes of a file."""
    if format == "mp4":
        odd = frames.shape[1] % 2 or frames.shape[2] % 2  # halved colour needs an even size
        return encode_mp4(frames, fps, crf=crf, pixel_format="yuv444p" if odd else pixel_format)
    if format == "gif":
        return encode_gif(frames, fps)
    if format == "png":
        return encode_png(
            np.concatenate([np.pad(f, ((0, 0), (0, GAP), (0, 0)), constant_values=255) for f in frames], 1)
        )
    buffer = io.BytesIO()
    np.savez_compressed(buffer, frames)  # as arr_0, which tools that compute FVD from arrays read
    return buffer.getvalue()


def encode_gif(frames: np.ndarray, fps: float) -> bytes:
    """With one palette for the clip, chosen from its own colours."""
    _, height, width, _ = frames.shape
    rate = Fraction(fps).limit_denominator(1001)
    graph = av.filter.Graph()
    source = graph.add("buffer", f"video_size={width}x{height}:pix_fmt=rgb24:time_base={1 / rate}:frame_rate={rate}")
    split, palette, use = graph.add("split"), graph.add("palettegen"), graph.add("paletteuse", "dither=none")
    sink = graph.add("buffersink")
    source.link_to(split)
    split.link_to(use, 0, 0)
    split.link_to(palette, 1, 0)
    palette.link_to(use, 0, 1)
    use.link_to(sink)
    graph.configure()
    for position, picture in enumerate(frames):
        frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(picture), format="rgb24")
        frame.pts, frame.time_base = position, 1 / rate
        graph.push(frame)
    graph.push(None)
    buffer = io.BytesIO()
    with av.open(buffer, "w", format="gif") as container:
        stream = container.add_stream("gif", rate=rate)
        stream.width, stream.height, stream.pix_fmt = width, height, "pal8"
        for position in range(len(frames)):
            frame = graph.pull()
            frame.pts = position
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return buffer.getvalue()


def encode_png(picture: np.ndarray) -> bytes:
    """A picture H W 3 in uint8."""
    buffer = io.BytesIO()
    with av.open(buffer, "w", format="image2pipe") as container:
        stream = container.add_stream("png", rate=1)
        stream.width, stream.height, stream.pix_fmt = picture.shape[1], picture.shape[0], "rgb24"
        container.mux(stream.encode(av.VideoFrame.from_ndarray(np.ascontiguousarray(picture), format="rgb24")))
        container.mux(stream.encode())
    return buffer.getvalue()
