"""Good videos in every form, and bad ones: what people's folders hold."""

import os
import time
from dataclasses import dataclass
from fractions import Fraction
from functools import cache
from io import BytesIO

import av
import numpy as np

SIZE, FRAMES = 24, 8
CODEC = {
    "mp4": ("libx264", "yuv420p"),
    "avi": ("mpeg4", "yuv420p"),
    "matroska": ("ffv1", "yuv420p"),
    "gif": ("gif", "rgb8"),
}


def pictures(seed, frames=FRAMES, height=SIZE, width=SIZE):
    """Blocks of colour that move: T H W 3."""
    rng = np.random.default_rng(seed)
    blocks = rng.integers(40, 216, (4, 4, 3), dtype=np.uint8)
    picture = blocks.repeat(-(-height // 4), axis=0).repeat(-(-width // 4), axis=1)[:height, :width]
    return np.stack([np.roll(picture, step, axis=1) for step in range(frames)])


def encoded(frames, container="mp4", *, times=None, pixel_format=None, fps=8):
    """Frames as a file; `times` in ticks of a hundredth of a second."""
    buffer, (codec, usual) = BytesIO(), CODEC[container]
    with av.open(buffer, "w", format=container) as file:
        stream = file.add_stream(codec, rate=fps)
        stream.height, stream.width = frames.shape[1:3]
        stream.pix_fmt, stream.thread_count = pixel_format or usual, 1
        if times is not None:
            stream.codec_context.time_base = Fraction(1, 100)
        for number, picture in enumerate(frames):
            frame = av.VideoFrame.from_ndarray(picture, format="rgb24")
            if times is not None:
                frame.pts, frame.time_base = times[number], Fraction(1, 100)
            file.mux(stream.encode(frame))
        file.mux(stream.encode())
    return buffer.getvalue()


@cache
def good(seed, kind="mp4"):
    return encoded(pictures(seed), kind)


@cache
def bad():
    """By reason the bytes of a file that is refused for it, under the name that it has."""
    mp4, avi, matroska = good(0), good(0, "avi"), good(0, "matroska")
    huge = np.full((2, 4320, 7680, 3), 99, np.uint8)
    return {
        "empty.mp4": (b"", "it cannot be read as a video"),
        "no_frames.mp4": (encoded(pictures(0)[:0], "mp4"), "it cannot be read as a video"),
        "one_frame.mp4": (encoded(pictures(0)[:1]), "too short"),
        "eight_k.avi": (encoded(huge, "avi"), "the picture is too large"),
        "tiny.mp4": (encoded(pictures(0, 8, 2, 4)), "the picture is too small"),
        "jumps.mp4": (encoded(pictures(0), times=[0, 3, 30, 33, 60, 63, 90, 93]), "variable frame rate"),
        "grey.mkv": (encoded(pictures(0), "matroska", pixel_format="gray"), "greyscale"),
        "sound.mp4": (sound(), "no video stream, only sound"),
        "notes.mp4": (b"A list of things to do.\n" * 40, "it cannot be read as a video"),
        "cut.mp4": (mp4[: len(mp4) // 2], "it cannot be read as a video"),
        "nothing.avi": (avi[: avi.index(b"movi") + 4], "no frames in the video"),
        "short.mkv": (matroska[: len(matroska) // 2], "too short"),
        "damaged.mp4": (scrambled(mp4), "it cannot be read as a video"),
        "strange.xyz": (b"?", "no known kind of file"),
        "numbers.npz": (array(np.zeros((8, 24, 24, 3), np.float32)), "not an array of video"),
        "text.npz": (b"not a zip", "it cannot be read as an array"),
        "lonely.png": (b"", "a single picture"),
    }


def sound():
    buffer = BytesIO()
    with av.open(buffer, "w", format="mp4") as file:
        stream = file.add_stream("aac", rate=8000, layout="mono")
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), format="fltp", layout="mono")
        frame.rate = 8000
        file.mux(stream.encode(frame))
        file.mux(stream.encode())
    return buffer.getvalue()


def scrambled(content):
    """The pictures of an mp4 overwritten, its tables whole."""
    start = content.index(b"mdat") + 704  # behind what the encoder says of itself
    noise = np.random.default_rng(0).integers(0, 256, 200, dtype=np.uint8).tobytes()
    return content[:start] + noise + content[start + 200 :]


def array(clips):
    buffer = BytesIO()
    np.savez(buffer, clips)
    return buffer.getvalue()


def write(folder, files):
    for name, content in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)


@dataclass(frozen=True)
class Trouble:
    """Work that hangs, dies or wants too much where it is told so."""

    def __call__(self, item):
        if item == "hang":
            time.sleep(600)
        if item == "die":
            os._exit(3)
        if item == "much":
            try:
                return len(np.ones(2**31, np.uint8))
            except MemoryError:
                return "refused"
        return item
