"""One split from shards to a cache of latents: resumable by shard, shared by any number of processes, the same bytes.

What a clip becomes is asked of an encoder, which knows the networks. Every shard depends on its source shard and nothing
else. Beside the shards `.progress/` keeps one note per finished shard until the index is written.
"""

from __future__ import annotations

import contextlib
import fcntl
import io
import json
import os
import shutil
import zipfile
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from data.notes import NOTES, Note, Rejected, count_reasons, read_note, read_settings, write_note, write_settings
from data.pool import Lost, ordered_map
from data.precomputed import BROKEN, LATENT, recipe_name, settings_of_clip
from data.reader import BrokenSample, ShardReader
from data.records import check_key
from data.samples import ClipReader, ClipSettings, Decoder, captions_of, metadata
from data.shards import INDEX, ShardIndex, ShardWriter, read_index, write_index
from vdm.errors import ConfigError, DataError


class Encoder(Protocol):
    """Networks, and what decides their numbers."""

    every_frame: bool

    def made_by(self) -> dict[str, Any]: ...
    def arrays(self) -> dict[str, str]: ...
    def latent_shape(self, frames: int, height: int, width: int) -> Any: ...
    def encode(self, frames: np.ndarray, captions: Sequence[str]) -> dict[str, np.ndarray]: ...


@dataclass(frozen=True)
class Outcome:
    """`index` is None while other processes still work on their shards."""

    index: ShardIndex | None
    folder: Path
    broken: Counter[str] = field(default_factory=Counter)
    was_finished: bool = False


@dataclass(frozen=True, kw_only=True)
class CacheBuilder:
    """Makes the caches of the splits of one dataset."""

    root: str  # where recipes lie
    clip: ClipSettings
    decoder: Decoder
    encoder: Encoder
    num_workers: int
    timeout: float  # seconds a decoder may take
    rank: int
    world_size: int

    def build(
        self, source: ShardIndex, shards: ShardReader, *, on_progress: Callable[[int, int, int], None]
    ) -> Outcome:
        """Make the shards of this process that are not there. The last process to finish writes the index.

        `on_progress` hears clips done, their total, and how many were broken.
        """
        settings = self.settings(source)
        folder = Path(self.root) / recipe_name(settings) / source.split
        if not self.encoder.every_frame:
            self._refuse_moving_cuts(source)
        if self._begin(folder, settings):
            return Outcome(_index_of(folder), folder, was_finished=True)
        mine = range(self.rank, len(source.shards), self.world_size)
        todo = [number for number in mine if _finished(folder, source, number) is None]
        total = sum(source.shards[number].samples for number in mine)
        done, broken = total - sum(source.shards[number].samples for number in todo), 0
        job = _Job(shards, self.clip, self.decoder, self.encoder.every_frame)
        places = ((number, nth) for number in todo for nth in range(source.shards[number].samples))
        results = ordered_map(job, places, num_workers=self.num_workers, timeout=self.timeout)
        with contextlib.closing(results):
            for number in todo:
                with _locked(folder / NOTES / f"{number:06d}.lock", wait=False):
                    found = []
                    with ShardWriter(folder / source.shards[number].file) as writer:
                        for nth in range(source.shards[number].samples):
                            refusal = self._add(writer, next(results), number, nth)
                            found += [refusal] if refusal else []
                            done += 1
                            on_progress(done, total, broken + len(found))
                        note = Note(writer.close(), [], found)
                    write_note(folder, number, note)
                    broken += len(found)
        return self._finish(folder, source, settings)

    def settings(self, source: ShardIndex) -> dict[str, Any]:
        """What decides the bytes."""
        content = {
            "source": source.fingerprint,
            "clip": settings_of_clip(self.clip, every_frame=self.encoder.every_frame),
            "made_by": self.encoder.made_by(),
            "arrays": self.encoder.arrays(),
        }
        return json.loads(json.dumps(content))

    def _begin(self, folder: Path, settings: dict[str, Any]) -> bool:
        """True when everything is there. Only a cache of another source can be in the way: the rest is in the name."""
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise DataError("cannot write to the cache", key="output", got=f"{folder}: {error}") from error
        with _locked(folder):
            is_finished = (folder / INDEX).exists()
            existing = _index_of(folder).settings if is_finished else read_settings(folder)
            if existing is None:
                write_settings(folder, settings)
            elif existing != settings:
                raise DataError(
                    "the cache here is of other shards",
                    key="data.root",
                    got=f"{folder}, of the shards {str(existing.get('source'))[:12]}",
                    allowed=f"the shards {settings['source'][:12]}",
                    remedy="delete this folder, then the same command makes it again",
                )
        return is_finished

    def _refuse_moving_cuts(self, source: ShardIndex) -> None:
        stored = source.settings.get("store", {}).get("frames")
        if stored is not None and stored > self.clip.span:
            raise _moving(f"{stored} frames, training takes {self.clip.span} of them")

    def _add(self, writer: ShardWriter, result: _Decoded | _Broken | Lost, shard: int, nth: int) -> Rejected | None:
        if isinstance(result, Lost):
            kinds = {"took too long": "decoder hung", "the decoder crashed": "decoder killed its process"}
            result = _Broken(None, kinds.get(result.reason, result.reason), result.detail)
        if isinstance(result, _Broken):
            key = result.key or f"sample-{shard:06d}-{nth:06d}"
            reason = {"kind": result.kind, "detail": result.detail}
            writer.add(key, {BROKEN: json.dumps(reason).encode()})
            return Rejected(nth, key, result.kind, result.detail)
        writer.add(result.key, {"json": result.json, "npz": _npz(self.encoder.encode(result.frames, result.captions))})
        return None

    def _finish(self, folder: Path, source: ShardIndex, settings: dict[str, Any]) -> Outcome:
        with _locked(folder):
            if (folder / INDEX).exists():
                return Outcome(_index_of(folder), folder)
            notes = [_finished(folder, source, number) for number in range(len(source.shards))]
            if None in notes:
                return Outcome(None, folder)
            shards = [note.shard for note in notes]
            index = write_index(folder, name=source.name, split=source.split, settings=settings, shards=shards)
            shutil.rmtree(folder / NOTES, ignore_errors=True)
            return Outcome(index, folder, count_reasons([entry for note in notes for entry in note.rejected]))


@dataclass(frozen=True)
class _Decoded:
    key: str
    json: bytes
    captions: list[str]
    frames: np.ndarray


@dataclass(frozen=True)
class _Broken:
    key: str | None
    kind: str
    detail: str


@dataclass(frozen=True)
class _Job:
    """Reading one sample, in a worker process, as training would."""

    shards: ShardReader
    clip: ClipSettings
    decoder: Decoder
    every_frame: bool

    def __call__(self, place: tuple[int, int]) -> _Decoded | _Broken:
        # Where a latent can be cut, how much is too short is for training to say.
        reader, key = self._reader(1, 1) if self.every_frame else self._reader(self.clip.frames), None
        try:
            key, members = self.shards.read(*place, reader.extensions)
            check_key(key)
            if members.get("json"):
                info = metadata(key, members["json"])
                stored = reader.choose(key, info, 0).stored[0]
                if self.every_frame:
                    reader = self._reader(stored, 1)
                elif stored > self.clip.span:
                    raise _moving(f"{key} has {stored} frames, training takes {self.clip.span} of them")
            frames = reader.read(key, members, 0).frames
            return _Decoded(key, members["json"], captions_of(info), frames)
        except BrokenSample as error:
            return _Broken(error.key or key, error.kind, error.detail)

    def _reader(self, frames: int, stride: int | None = None) -> ClipReader:
        clip = replace(self.clip, frames=frames, frame_stride=stride or self.clip.frame_stride)
        return ClipReader(clip=clip, seed=0, extras=(), decoder=self.decoder)


def _index_of(folder: Path) -> ShardIndex:
    try:
        return read_index(folder)
    except DataError as error:
        remedy = "delete this folder, then the same command makes it again"
        raise DataError(f"the cache is damaged: {error.what}", key="output", got=error.got, remedy=remedy) from error


def _moving(got: str) -> ConfigError:
    return ConfigError(
        "this autoencoder looks across frames, so a latent belongs to one cut of a clip, and training cuts at random",
        key="data.clip.frames",
        got=got,
        allowed="clips that are stored as long as they are trained on",
        remedy="prepare shards with data.store.frames=<frames of a clip>, or take an autoencoder of single frames (kl2d)",
    )


def _npz(arrays: dict[str, np.ndarray]) -> bytes:
    """Latents are noise to a compressor; text is padded, and half of it zeros."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name, array in arrays.items():
            content = io.BytesIO()
            np.lib.format.write_array(content, array, allow_pickle=False)
            member = zipfile.ZipInfo(f"{name}.npy")  # its date is fixed, so that equal arrays make equal bytes
            member.compress_type = zipfile.ZIP_STORED if name == LATENT else zipfile.ZIP_DEFLATED
            archive.writestr(member, content.getvalue(), compresslevel=1)
    return buffer.getvalue()


def _finished(folder: Path, source: ShardIndex, number: int) -> Note | None:
    note = read_note(folder, number)
    wanted = source.shards[number]
    return (
        note if note and note.shard and (note.shard.file, note.shard.samples) == (wanted.file, wanted.samples) else None
    )


@contextlib.contextmanager
def _locked(path: Path, *, wait: bool = True) -> Iterator[None]:
    """One process at a time; the lock goes with the process, however it ends."""
    handle = os.open(path, os.O_RDONLY if path.is_dir() else os.O_RDWR | os.O_CREAT)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
    except BlockingIOError as error:
        os.close(handle)
        remedy = "wait for it, or give each process its own RANK, as torchrun does"
        raise DataError("another process makes this shard", key="RANK", got=path, remedy=remedy) from error
    except OSError:
        pass  # a file system without locks
    try:
        yield
    finally:
        os.close(handle)
