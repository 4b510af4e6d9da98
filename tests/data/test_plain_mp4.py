"""The short way into an mp4 gives the same pixels as the library, or steps aside."""

import random
import tempfile
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
from clip_factory import mp4

from data.decode import decode_clip
from data.plain_mp4 import decode_plain, decode_stored
from vdm.errors import DataError
from vdm.video import decode, encode_mp4


def noise(frames=10, height=32, width=48):
    blocks = np.random.default_rng(0).integers(0, 256, (frames, height // 4, width // 4, 3), dtype=np.uint8)
    return blocks.repeat(4, axis=1).repeat(4, axis=2)


@pytest.mark.parametrize("gop", [1, 3, 8, 100])
@pytest.mark.parametrize("pixel_format", ["yuv420p", "yuv444p"])
@pytest.mark.parametrize("fps", [8.0, 7.5, 29.97])
def test_what_we_write_is_read_the_short_way(gop, pixel_format, fps):
    video = encode_mp4(noise(), fps, gop=gop, pixel_format=pixel_format)
    for indices in (range(10), range(2, 9, 3), [9], [0], [1, 2, 7]):
        plain = decode_plain(video, indices)
        assert plain is not None
        assert np.array_equal(plain, decode(video)[list(indices)])


def test_padded_lines_and_one_frame():
    for size in (4, 18, 34):
        video = encode_mp4(np.ascontiguousarray(noise()[:1, :size, :size]), 8.0)
        assert np.array_equal(decode_plain(video, [0]), decode_clip(video, [0]))


def encoded(codec="libx264", container_options=None, sound=False, **options):
    path = Path(tempfile.mkdtemp()) / "clip.mp4"  # a file, because faststart reads back what it wrote
    with av.open(str(path), "w", options=container_options or {}) as container:
        stream = container.add_stream(
            codec, rate=Fraction(8), options={key: str(value) for key, value in options.items()}
        )
        stream.width, stream.height, stream.pix_fmt = 48, 32, "yuv420p"
        audio = container.add_stream("aac", rate=8000) if sound else None
        for frame in noise():
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        container.mux(stream.encode())
        if audio:
            frame = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), format="fltp", layout="mono")
            frame.sample_rate = 8000
            container.mux(audio.encode(frame))
            container.mux(audio.encode())
    return path.read_bytes()


@pytest.mark.parametrize(
    ("video", "is_plain"),
    [
        (encoded(bf=0), True),
        (encoded(bf=0, container_options={"movflags": "faststart"}), True),
        (encoded(bf=2), False),
        (encoded(bf=0, sound=True), False),
        (encoded(codec="mpeg4"), False),
        (encoded(bf=0, container_options={"movflags": "frag_keyframe+empty_moov"}), False),
    ],
    ids=["plain", "faststart", "B-frames", "sound", "mpeg4", "fragments"],
)
def test_others_are_left_to_the_library(video, is_plain):
    assert (decode_plain(video, range(10)) is not None) == is_plain
    assert np.array_equal(decode_stored(video, range(10), "pyav"), decode_clip(video, range(10)))


def test_damage_never_gives_other_pixels_than_the_library():
    """Any byte of the tables may be wrong: nothing but an ordinary error comes out, and no picture that differs."""
    video, random_ = mp4(0), random.Random(0)
    begin = video.index(b"moov")
    same = refused = 0
    for _ in range(400):
        damaged = bytearray(video)
        at = random_.randrange(begin if random_.random() < 0.9 else 0, len(video))
        damaged[at] = random_.randrange(256)
        plain = decode_plain(bytes(damaged), range(8))
        if plain is None:
            refused += 1
            continue
        same += 1
        try:
            assert np.array_equal(plain, decode_clip(bytes(damaged), range(8)))
        except DataError:
            assert np.array_equal(plain, decode_clip(video, range(8))), "stricter about what does not matter"
    assert same > 50
    assert refused > 50


@pytest.mark.parametrize("cut", [0, 4, 8, 40, 200, -600])
def test_cut_files_end_in_data_errors(cut):
    with pytest.raises(DataError):
        decode_stored(mp4(0)[:cut], range(8), "pyav")


def test_more_frames_than_there_are():
    assert decode_plain(mp4(0), [7, 8]) is None
    with pytest.raises(DataError, match="too early"):
        decode_stored(mp4(0), [7, 8], "pyav")
