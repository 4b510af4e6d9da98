"""Features that are computed once: what a network gave for certain pixels lies in a file that is named by both.

A file holds the rows of one call, so that a number never mixes rows of differently cut calls, whose last digits differ.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor


class KeptFeatures:
    """A network of `Features` that remembers. The folder may be deleted at any time."""

    def __init__(self, network: Any, folder: Path):
        self.network, self.folder = network, folder

    def __call__(self, pictures: Tensor) -> Tensor:
        return kept(self.network, self.network, pictures, self.folder)

    def check_ready(self) -> None:
        self.network.check_ready()

    def facts(self) -> dict[str, Any]:
        return self.network.facts()


class KeptClip:
    """The same for a CLIP, whose frames are what takes time."""

    def __init__(self, clip: Any, folder: Path):
        self.clip, self.folder = clip, folder

    @property
    def title(self) -> str:
        return self.clip.title

    def pictures(self, video: Tensor) -> Tensor:
        return kept(self.clip, self.clip.pictures, video, self.folder)

    def captions(self, texts: Sequence[str]) -> Tensor:
        return self.clip.captions(texts)

    def check_ready(self) -> None:
        self.clip.check_ready()

    def facts(self) -> dict[str, Any]:
        return self.clip.facts()


def kept(network: Any, call: Callable[[Tensor], Tensor], pictures: Tensor, folder: Path) -> Tensor:
    """`call(pictures)`, from its file where it is there."""
    kind = type(network)
    facts = {"of": f"{kind.__module__}.{kind.__qualname__}", **network.facts()}
    mark = hashlib.sha256(json.dumps(facts, sort_keys=True, default=str).encode()).hexdigest()[:16]
    path = folder / mark / f"{content(pictures)}.npy"
    with contextlib.suppress(OSError, ValueError, EOFError):  # a damaged file is computed again
        return torch.from_numpy(np.load(path, allow_pickle=False))
    found = call(pictures)
    _write(path, found.numpy())
    return found


def content(pictures: Tensor) -> str:
    """A hash of pixels and their layout."""
    array = pictures.cpu().contiguous().numpy()
    made = hashlib.blake2b(str((array.dtype, array.shape)).encode(), digest_size=20)
    made.update(array.reshape(-1).data)
    return made.hexdigest()


def _write(path: Path, array: np.ndarray) -> None:
    """Whole or not at all. A full disk costs the next evaluation time, and this one nothing."""
    partial = path.with_name(f"{path.name}.partial-{os.getpid()}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with partial.open("wb") as file:
            np.save(file, array)
        partial.replace(path)
    except OSError:
        with contextlib.suppress(OSError):
            partial.unlink(missing_ok=True)
