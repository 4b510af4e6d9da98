"""From the bytes of a stored clip to its frames, with PyAV or, where it is installed and asked for, torchcodec."""

from __future__ import annotations

import functools
import importlib
import logging
from collections.abc import Sequence

import av
import numpy as np

from vdm.errors import ConfigError, DataError
from vdm.video import decode

BACKENDS = ("pyav", "torchcodec", "auto")
_log = logging.getLogger(__name__)


def decode_clip(mp4: bytes, indices: Sequence[int], backend: str = "pyav") -> np.ndarray:
    """Frames T H W 3 in uint8 at the increasing `indices`. Whatever is wrong with the clip ends in DataError."""
    try:
        if resolve_backend(backend) == "torchcodec":
            return _torchcodec(mp4, indices)
        return decode(mp4, indices=indices)
    except (av.FFmpegError, EOFError, MemoryError) as error:
        raise DataError("cannot decode the video", got=f"{type(error).__name__}: {error}".strip()) from error


@functools.cache
def resolve_backend(backend: str) -> str:
    """The backend that will run: `auto` is torchcodec where it imports, else PyAV, and says so once."""
    if backend not in BACKENDS:
        raise ConfigError("unknown video decoder", key="data.backend", got=backend, allowed=BACKENDS)
    if backend == "pyav":
        return backend
    try:
        # It raises RuntimeError or OSError where its FFmpeg or torch does not fit, so installed is not enough.
        importlib.import_module("torchcodec.decoders")
    except (ImportError, RuntimeError, OSError) as error:
        reason = str(error).strip().splitlines()[0][:200] if str(error).strip() else type(error).__name__
        if backend == "torchcodec":
            remedy = "install a torchcodec that fits torch, and FFmpeg's libraries; or choose pyav"
            raise ConfigError("torchcodec cannot be used", key="data.backend", got=reason, remedy=remedy) from error
        _log.info("video decoder: PyAV (torchcodec cannot be used: %s)", reason)
        return "pyav"
    if backend == "auto":
        _log.info("video decoder: torchcodec")
    return "torchcodec"


def _torchcodec(mp4: bytes, indices: Sequence[int]) -> np.ndarray:
    from torchcodec.decoders import VideoDecoder

    try:
        decoder = VideoDecoder(mp4, dimension_order="NHWC", num_ffmpeg_threads=1, seek_mode="exact")
        return decoder.get_frames_at(list(indices)).data.numpy()
    except (RuntimeError, ValueError, IndexError) as error:
        raise DataError("cannot decode the video", got=str(error).strip()[:300]) from error
