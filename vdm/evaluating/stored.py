"""Clips of prepared datasets that a protocol chose, in a fixed order and in groups that no number of processes changes.

A group is sampled and looked at as a whole by one process. So every number comes out of the same arithmetic whether an
evaluation ran in one process or in several, in one go or in three.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any, Literal

import torch
from hydra.utils import instantiate
from torch import Tensor

from vdm import config
from vdm.errors import ConfigError, DataError
from vdm.evaluation.graphs import COPY
from vdm.types import VideoBatch

Order = Literal["first", "spread"]


@dataclass(frozen=True)
class Place:
    """Of one clip of a set."""

    split: str
    number: int  # in stored order
    copy: int  # 0; above it the same clip's caption once more


class StoredClips:
    """A set of clips of one dataset.

    Args:
        node: settings of the data module; what it was made of is not built.
        splits: one after the other.
        clips: how many; None: all.
        order: first: those that are stored first; spread: evenly over all, in stored order.
        repeat: captions are taken again where there are fewer clips than that.
        key: said where the count is wrong.
    """

    def __init__(
        self,
        node: Mapping[str, Any],
        *,
        splits: Sequence[str],
        clips: int | None,
        order: Order,
        repeat: bool,
        batch_size: int,
        extras: Sequence[str],
        key: str,
    ):
        self.name, self.splits, self.batch_size = node["name"], tuple(splits), batch_size
        self.clip = {name: node["clip"][name] for name in ("frames", "frame_stride", "height", "width")}
        self._data, self._loaders = {}, {}
        for split in self.splits:
            asked = {"source": None, "buckets": None, "train_split": split, "val_split": split, "extras": list(extras)}
            settings = dict(node) | asked | {"batch_size": batch_size, "val_clips": 2**40}
            config.check_resolved({"data": settings})
            self._data[split] = instantiate(settings, _convert_="all")
            self._data[split].setup("fit")
            self._loaders[split] = self._data[split].val_dataloader()
        self.totals = {split: loader.reader.plan.stored for split, loader in self._loaders.items()}
        self.places = self._chosen(clips, order, repeat, key)
        self._taken = {s: frozenset(p.number for p in self.places if p.split == s) for s in self.splits}

    def __len__(self) -> int:
        return len(self.places)

    @property
    def fingerprints(self) -> dict[str, str]:
        return {split: data.split_fingerprint(split) for split, data in self._data.items()}

    @property
    def stored_size(self) -> tuple[int, int] | None:
        """Height and width of what is stored, which clips are cut from."""
        stored = next(iter(self._loaders.values())).reader.shards.index.settings.get("store") or {}
        return (stored["height"], stored["width"]) if {"height", "width"} <= stored.keys() else None

    def groups(self, *, rank: int, count: int, device: torch.device) -> Iterator[tuple[list[int], VideoBatch]]:
        """For each group of this process the numbers of its clips, and a batch of them."""
        whole = [
            range(start, min(start + self.batch_size, len(self))) for start in range(0, len(self), self.batch_size)
        ]
        mine = whole[rank::count]
        clips = self._read([number for group in mine for number in group])
        for group in mine:
            yield list(group), self._batch(list(islice(clips, len(group))), device)

    def at(self, numbers: Sequence[int], device: torch.device) -> Iterator[VideoBatch]:
        """Some clips, one by one."""
        for clip in self._read(numbers, num_workers=0):
            yield self._batch([clip], device)

    def _batch(self, clips: list[VideoBatch], device: torch.device) -> VideoBatch:
        batch = joined(clips)
        batch["video"] = batch["video"].to(device)
        return next(iter(self._data.values())).on_after_batch_transfer(batch, 0)

    def _read(self, numbers: Sequence[int], *, num_workers: int | None = None) -> Iterator[VideoBatch]:
        """Clips of these numbers, each as a batch of one."""
        wanted = [self.places[number] for number in numbers]
        streams = {
            split: self._stream(split, [place.number for place in wanted if place.split == split], num_workers)
            for split in self.splits
        }
        for place in wanted:
            clip = next(streams[place.split])
            if place.copy:
                clip["key"] = [f"{key}{COPY}{place.copy}" for key in clip["key"]]
            yield clip

    def _stream(self, split: str, numbers: list[int], num_workers: int | None) -> Iterator[VideoBatch]:
        if not numbers:
            return
        loader = self._loaders[split]
        reader = copy.copy(loader.reader)
        reader.plan = ChosenPlan(reader.plan, numbers, self._taken[split])
        chosen = type(loader)(
            reader=reader, quarantine=loader.quarantine, batch_size=self.batch_size, rank=0, world_size=1,
            num_workers=loader.num_workers if num_workers is None else num_workers, prefetch=loader.prefetch,
        )  # fmt: skip
        for batch in chosen:
            yield from (cut(batch, position) for position in range(len(batch["key"])))

    def _chosen(self, clips: int | None, order: Order, repeat: bool, key: str) -> list[Place]:
        total = sum(self.totals.values())
        wanted = total if clips is None else clips
        if wanted > total and not repeat:
            raise DataError("there are fewer clips than the protocol counts", key=key,
                            got=f"{total} in {self.name}/{'+'.join(self.splits)}", allowed=wanted,
                            remedy=f"{key}={total} counts fewer: that is another protocol, with an id of its own")  # fmt: skip
        copies, rest = divmod(wanted, total)
        ends, places = [], []
        for split in self.splits:
            ends += [(split, number) for number in range(self.totals[split])]
        for nth in range(copies):
            places += [Place(*end, nth) for end in ends]
        last = [position if order == "first" else position * total // rest for position in range(rest)]
        return places + [Place(*ends[position], copies) for position in last]


class ChosenPlan:
    """Some clips of a split, as a plan that a reader follows. A broken one is replaced by the next that nobody chose."""

    def __init__(self, plan: Any, numbers: Sequence[int], taken: frozenset[int]):
        self.plan, self.numbers, self.taken = plan, list(numbers), taken
        self.num_samples = len(self.numbers)

    def locate(self, position: int) -> Any:
        chosen = position < self.num_samples
        return self.plan.locate(self.numbers[position] if chosen else position - self.num_samples)

    def substitute(self, position: int, attempt: int) -> int:
        number, stored = self.numbers[position], self.plan.stored
        if len(self.taken) == stored:
            raise DataError("a clip is broken, and all others are measured already", key="protocol.clips", got=stored,
                            remedy="prepare the data again; docs/data.md says how broken samples are found")  # fmt: skip
        for _ in range(attempt):
            number = (number + 1) % stored
            while number in self.taken:
                number = (number + 1) % stored
        return self.num_samples + number


def cut(batch: VideoBatch, position: int) -> VideoBatch:
    """One clip of a batch."""
    part = slice(position, position + 1)
    one = {name: value[part] for name, value in batch.items() if name != "extras"}
    if "extras" in batch:
        one["extras"] = {name: value[part] for name, value in batch["extras"].items()}
    return one


def joined(clips: Sequence[VideoBatch]) -> VideoBatch:
    """Batches of one as one batch."""
    first = clips[0]
    out = {name: _all([clip[name] for clip in clips]) for name in first if name != "extras"}
    if "extras" in first:
        out["extras"] = {name: _all([clip["extras"][name] for clip in clips]) for name in first["extras"]}
    return out


def _all(parts: Sequence[Any]) -> Any:
    if all(isinstance(part, Tensor) and part.shape == parts[0].shape for part in parts):
        return torch.cat(list(parts))
    return [entry for part in parts for entry in part]


def data_node(
    chosen: Mapping[str, Any] | None, of_run: Mapping[str, Any] | None, reader: Mapping[str, Any], data_root: str
) -> dict[str, Any] | None:
    """How clips are read: those of the data that was named, else of the data a run was trained on.

    Of a run only the name, the place and the shape of clips are taken, so that old runs and new settings agree.
    """
    if chosen:
        return dict(chosen)
    if not of_run:
        return None
    data = of_run.get("data") or {}
    absent = [name for name in ("name", "clip") if not data.get(name)]
    if absent:
        raise ConfigError("the run does not say what it was trained on", key="run", got=f"no data.{absent[0]}",
                          remedy="name the data: data=<data>")  # fmt: skip
    root, was = str(data.get("root", "")), str((of_run.get("paths") or {}).get("data_root") or "").rstrip("/")
    if was and root.startswith(f"{was}/"):
        root = f"{data_root}/{root[len(was) + 1 :].strip('/')}"  # the data root may be elsewhere today
    elif not was or not root:
        root = f"{data_root}/{data['name']}"
    return dict(reader) | {"name": data["name"], "clip": data["clip"], "root": root}
