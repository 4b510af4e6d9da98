"""Decoding: the wanted frames, exactly; and DataError for everything that is not a whole video."""

import io
import logging
import sys

import av
import numpy as np
import pytest

from data.decode import decode_clip, resolve_backend
from vdm import video
from vdm.errors import ConfigError, DataError
from vdm.video import CoverCrop, decode, encode_mp4, iter_frames


def moving(frames=12, height=32, width=48):
    y, x = np.mgrid[:height, :width]
    return np.stack([np.stack([(x * 5 + 9 * n) % 256, y * 7 % 256, 0 * x + 20 * n], -1) for n in range(frames)]).astype(
        np.uint8
    )


def reordered(frames, target=None, format="mp4", movflags="", **options):
    """With B-frames, as films on the web have them."""
    buffer = io.BytesIO()
    with av.open(target or buffer, "w", format=format, options={"movflags": movflags} if movflags else {}) as container:
        stream = container.add_stream("libx264", rate=10)
        stream.width, stream.height, stream.pix_fmt = frames.shape[2], frames.shape[1], "yuv420p"
        stream.options = {"crf": "12", "bf": "3", "g": "6", "b-adapt": "0", **options}
        for frame in frames:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        container.mux(stream.encode())
    return buffer.getvalue()


CLIPS = {
    "short groups": encode_mp4(moving(), 8.0, gop=4),
    "one group": encode_mp4(moving(), 8.0, gop=100),
    "only keyframes": encode_mp4(moving(), 8.0, gop=1),
    "full colour": encode_mp4(moving(width=33), 29.97, gop=5, pixel_format="yuv444p"),
    "reordered": reordered(moving()),
    "open groups": reordered(moving(), **{"x264-params": "open-gop=1"}),
    "matroska": reordered(moving(), format="matroska"),
}


@pytest.mark.parametrize("clip", CLIPS)
def test_chosen_frames_equal_those_of_the_whole_clip(clip):
    whole = decode(CLIPS[clip])
    assert len(whole) == 12
    for indices in ([0], [11], [5], [4, 5, 6], [0, 3, 6, 9], [1, 11], range(12), range(7, 12)):
        np.testing.assert_array_equal(decode_clip(CLIPS[clip], indices), whole[list(indices)])


def test_what_comes_out_is_what_went_in():
    frames = moving()
    out = decode_clip(encode_mp4(frames, 8.0, crf=0, pixel_format="yuv444p"), range(12))
    assert out.shape == frames.shape
    assert out.dtype == np.uint8
    # Between RGB and YUV a step or three are lost, even where the codec is lossless.
    assert np.abs(out.astype(int) - frames).max() <= 6


def test_only_the_needed_groups_are_decoded(monkeypatch):
    real, fed = video._needed, []
    monkeypatch.setattr(video, "_needed", lambda packets, wanted: fed.append(real(packets, wanted)) or fed[-1])
    still = np.repeat(moving(1), 12, axis=0)  # no cuts, so that keyframes come every 4 frames
    decode(encode_mp4(still, 8.0, gop=4), indices=[9])
    decode(encode_mp4(still, 8.0, gop=4), indices=[1, 8])
    decode(CLIPS["only keyframes"], indices=[3, 7])
    assert [len(packets) for packets in fed] == [2, 3, 2]


def test_frames_beyond_the_end():
    with pytest.raises(DataError, match="ends too early[^$]*12 frames"):
        decode_clip(CLIPS["one group"], [3, 12])


@pytest.mark.parametrize("indices", [[], [-1], [3, 3], [4, 2]])
def test_indices_increase(indices):
    with pytest.raises(ValueError, match="increasing"):
        decode(CLIPS["one group"], indices=indices)


def test_no_cut_gives_frames_that_are_not_there():
    mp4 = CLIPS["short groups"]
    for size in [0, 1, 8, *range(16, len(mp4) - 120, 37)]:
        with pytest.raises(DataError):
            decode_clip(mp4[:size], range(12))


def test_a_cut_with_the_header_in_front_is_noticed(tmp_path):
    """As an interrupted download leaves it: the header promises all frames."""
    path = tmp_path / "front.mp4"
    reordered(moving(40, 64, 64), target=str(path), movflags="faststart")
    whole = path.read_bytes()
    assert whole.index(b"moov") < whole.index(b"mdat")
    assert len(decode(whole)) == 40
    for size in range(len(whole) // 2, len(whole), 211):
        with pytest.raises((DataError, av.FFmpegError)):
            decode(whole[:size])
        with pytest.raises(DataError):
            decode_clip(whole[:size], range(40))


def test_random_damage_is_refused_or_leaves_the_right_shape():
    mp4 = np.frombuffer(CLIPS["short groups"], np.uint8)
    rng = np.random.default_rng([3])
    refused = 0
    for _ in range(200):
        changed = mp4.copy()
        changed[rng.integers(0, len(mp4), 8)] = rng.integers(0, 256, 8)
        try:
            assert decode_clip(changed.tobytes(), range(12)).shape[0] == 12
        except DataError:
            refused += 1
    assert refused > 120


@pytest.mark.parametrize("content", [b"", b"ftyp", b"not a video at all" * 50, bytes(4000)])
def test_what_is_no_video(content):
    with pytest.raises(DataError):
        decode_clip(content, [0])


def test_sound_alone_is_no_video():
    buffer = io.BytesIO()
    with av.open(buffer, "w", format="mp4") as container:
        stream = container.add_stream("aac", rate=8000, layout="mono")
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), format="fltp", layout="mono")
        frame.sample_rate = 8000
        container.mux(stream.encode(frame))
        container.mux(stream.encode())
    with pytest.raises(DataError, match="no video stream"):
        decode_clip(buffer.getvalue(), [0])


def test_a_changing_size_is_refused():
    """Annex B streams can be joined: two sizes, one file."""
    joined = b"".join(reordered(moving(4, size, size), format="h264", bf="0") for size in (32, 64))
    with pytest.raises((DataError, av.FFmpegError)):
        decode(joined)


def test_seeking_starts_at_a_keyframe_before(tmp_path):
    path = tmp_path / "long.mp4"
    path.write_bytes(encode_mp4(moving(60), 10.0, gop=10))
    times = [frame.time for frame in iter_frames(path, start=3.55)]
    assert times[0] == pytest.approx(3.0)
    assert len(times) == 30


def test_backends_by_name(monkeypatch, caplog):
    resolve_backend.cache_clear()
    assert resolve_backend("pyav") == "pyav"
    with pytest.raises(ConfigError, match="pyav, torchcodec, auto"):
        resolve_backend("decord")
    monkeypatch.setitem(sys.modules, "torchcodec", None)
    monkeypatch.setitem(sys.modules, "torchcodec.decoders", None)
    with caplog.at_level(logging.INFO):
        assert [resolve_backend("auto") for _ in range(3)] == ["pyav"] * 3
    assert [record.message for record in caplog.records] == [caplog.records[0].message]
    assert "PyAV" in caplog.records[0].message
    with pytest.raises(ConfigError, match="torchcodec cannot be used"):
        resolve_backend("torchcodec")
    resolve_backend.cache_clear()


def test_torchcodec_gives_the_same_frames():
    try:
        import torchcodec.decoders  # noqa: F401
    except (ImportError, RuntimeError, OSError) as error:
        pytest.skip(f"torchcodec does not import: {error}".splitlines()[0])
    for clip in ("short groups", "reordered", "full colour"):
        indices = [1, 4, 9]
        theirs, ours = (decode_clip(CLIPS[clip], indices, backend) for backend in ("torchcodec", "pyav"))
        assert np.abs(theirs.astype(int) - ours).max() <= 2
    for broken in (b"", CLIPS["short groups"][:200]):
        with pytest.raises(DataError):
            decode_clip(broken, [0], "torchcodec")


def frame_of(pixels):
    return av.VideoFrame.from_ndarray(np.ascontiguousarray(pixels), format="rgb24")


def test_cover_and_crop_keeps_the_middle():
    wide = np.zeros((20, 60, 3), np.uint8)
    wide[:, 20:40] = (200, 100, 50)
    out = CoverCrop(20, 20)(frame_of(wide))
    np.testing.assert_array_equal(out, wide[:, 20:40])
    half = CoverCrop(10, 10)(frame_of(wide))
    assert half.shape == (10, 10, 3)
    assert np.abs(half[3:7, 3:7].astype(int) - (200, 100, 50)).max() <= 2
    tall = CoverCrop(30, 10)(frame_of(wide.transpose(1, 0, 2)))
    assert tall.shape == (30, 10, 3)


@pytest.mark.parametrize("size", [(7, 5), (32, 32), (64, 16), (101, 203)])
def test_any_size_covers_any_size(size):
    for height, width in ((11, 90), (33, 33), (90, 7)):
        out = CoverCrop(*size)(frame_of(np.full((height, width, 3), 90, np.uint8)))
        assert out.shape == (*size, 3)
        assert np.abs(out.astype(int) - 90).max() <= 1


def test_keyframes_that_need_earlier_frames_are_no_obstacle():
    noise = np.random.default_rng(0).integers(0, 256, (12, 32, 32, 3), dtype=np.uint8)
    mp4 = video.encode_mp4(noise, 7.5, gop=100)
    np.testing.assert_array_equal(video.decode(mp4, indices=[5, 8]), video.decode(mp4)[[5, 8]])
