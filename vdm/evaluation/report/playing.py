"""Clips as every browser plays them, whatever they were kept as."""

from __future__ import annotations

from pathlib import Path

import av
import numpy as np

from vdm.video import decode, encode_mp4

SMALLEST = 224  # shorter side in pixels below which a clip is enlarged: browsers smear small ones
MOST_FRAMES = 600
LARGEST = 4096  # side of a picture that is still shown


def playable(path: Path) -> bytes:
    """H.264 that every browser plays, with pixels large enough to be seen as they are. Where it is that already, as it is."""
    with av.open(str(path), metadata_errors="replace") as container:
        codec = _stream(container).codec_context
        plays = codec.name == "h264" and codec.pix_fmt == "yuv420p" and container.format.name.startswith("mov")
        if plays and min(codec.height, codec.width) >= SMALLEST:
            return path.read_bytes()
    return encoded_again(path)


def encoded_again(path: Path) -> bytes:
    """The same for clips of any codec, always through the same encoder, which leaves no trace of the first one in the file."""
    with av.open(str(path), metadata_errors="replace") as container:
        rate = _stream(container).average_rate
    frames = decode(path, limit=MOST_FRAMES)  # T H W 3
    times = max(1, -(-SMALLEST // min(frames.shape[1:3])))
    frames = frames.repeat(times, axis=1).repeat(times, axis=2)
    odd = [(0, frames.shape[1] % 2), (0, frames.shape[2] % 2)]
    frames = np.pad(frames, [(0, 0), *odd, (0, 0)], mode="edge")
    return encode_mp4(frames, float(rate or 8), crf=20, preset="medium")


def _stream(container: av.container.InputContainer) -> av.video.stream.VideoStream:
    if not container.streams.video:
        raise ValueError("it holds no video")
    stream = container.streams.video[0]
    height, width = stream.codec_context.height, stream.codec_context.width
    if not 0 < min(height, width) <= max(height, width) <= LARGEST:
        raise ValueError(f"its frames are {width}x{height}")
    return stream
