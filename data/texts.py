"""The data of a stage that reads no videos: items of text from a generator, in an order that a position decides."""

from __future__ import annotations

import vdm.errors  # isort: skip  # noqa: F401 - before Lightning: lets it import torchvision on any torch

import hashlib
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import pytorch_lightning as pl

from vdm.bounds import NonNegativeInt, PositiveInt
from vdm.errors import DataError

ENDLESS = 2**40  # as the loader of videos


class TextSource(Protocol):
    """`sizes` of the splits train and val; None for one that never ends."""

    sizes: dict[str, int | None]

    def item(self, split: str, index: int) -> dict[str, Any]:
        """`key`, `caption`, and more under names of its own."""

    def fingerprint(self) -> dict[str, Any]:
        """What decides the items."""


class StoredCaptions:
    """Captions with their plans from a jsonl file, such as `python -m dysen.plan write_pool=<number>` writes.

    Args:
        path: lines `{"id", "caption", "plan"}`, and `dsg` where the enriched graphs are known.
        num_pool, num_train, num_val: the first ones are candidates for demonstrations, the next ones are trained on, the
            next ones validate.
    """

    def __init__(self, *, path: str, num_pool: PositiveInt, num_train: PositiveInt, num_val: PositiveInt):
        try:
            lines = Path(path).read_text(encoding="utf-8").splitlines()
            self._entries = [json.loads(line) for line in lines if line.strip()]
            keys = {key for entry in self._entries for key in ("id", "caption", "plan") if key not in entry}
        except (OSError, ValueError, TypeError) as error:
            raise DataError("no captions with their plans", key="texts.source.path", got=f"{path}: {error}") from error
        wanted = num_pool + num_train + num_val
        if keys or len(self._entries) < wanted:
            got = f"{path}: {len(self._entries)} lines" + (f", some without {', '.join(sorted(keys))}" if keys else "")
            raise DataError("not the captions that are asked for", key="texts.source", got=got,
                            allowed=f"{wanted} lines with id, caption and plan")  # fmt: skip
        self._first = {"pool": 0, "train": num_pool, "val": num_pool + num_train}
        self._num_pool = num_pool
        self.sizes: dict[str, int | None] = {"train": num_train, "val": num_val}

    def item(self, split: str, index: int) -> dict[str, Any]:
        entry = self._entries[self._first[split] + index]
        found = {"key": str(entry["id"]), "caption": entry["caption"], "plan": entry["plan"]}
        return found | {"scene_graphs": entry.get("dsg")}

    def pool(self) -> list[dict[str, Any]]:
        """The candidates."""
        return self._entries[: self._num_pool]

    def fingerprint(self) -> dict[str, Any]:
        text = json.dumps(self._entries, sort_keys=True)
        return {"stored": hashlib.sha256(text.encode()).hexdigest(), "pool": self._num_pool, "sizes": self.sizes}


class TextData(pl.LightningDataModule):
    """Batches `{"key", "caption", "extras"}` of a source: what else an item has becomes a list in `extras`."""

    def __init__(self, *, source: TextSource, batch_size: PositiveInt, seed: NonNegativeInt):
        super().__init__()
        self.source, self.batch_size, self.seed = source, batch_size, seed
        self.run_folder: str | os.PathLike | None = None

    @property
    def fingerprint(self) -> str:
        """Belongs to the lineage of a run."""
        return hashlib.sha256(json.dumps(self.source.fingerprint(), sort_keys=True).encode()).hexdigest()

    def train_dataloader(self) -> TextLoader:
        return TextLoader(
            source=self.source,
            batch_size=self.batch_size,
            seed=self.seed,
            fingerprint=self.fingerprint,
            rank=self.trainer.global_rank if self.trainer else 0,
            world_size=self.trainer.world_size if self.trainer else 1,
        )

    def sample_dataloader(self) -> TextLoader:
        """Training items to measure on."""
        return self.train_dataloader()

    def val_dataloader(self) -> list[dict[str, Any]]:
        """All items of the split val, dealt to the ranks."""
        rank, world = (self.trainer.global_rank, self.trainer.world_size) if self.trainer else (0, 1)
        mine = [self.source.item("val", i) for i in range(rank, self.source.sizes["val"], world)]
        return [collate(mine[i : i + self.batch_size]) for i in range(0, len(mine), self.batch_size)]

    def preview(self, count: int) -> dict[str, Any]:
        """The first items to validate on."""
        return collate([self.source.item("val", i) for i in range(min(count, self.source.sizes["val"]))])


class TextLoader:
    """Endless training batches. A source that ends is shuffled anew in each epoch."""

    def __init__(self, *, source: TextSource, batch_size: int, seed: int, fingerprint: str, rank: int, world_size: int):
        self.source, self.batch_size, self.seed, self.fingerprint = source, batch_size, seed, fingerprint
        self.rank, self.world_size = rank, world_size
        self.consumed = 0  # items of all ranks, handed to training

    def __len__(self) -> int:
        return ENDLESS

    def __iter__(self) -> Iterator[dict[str, Any]]:
        while True:
            first = self.consumed + self.rank * self.batch_size
            indices = [self._index(position) for position in range(first, first + self.batch_size)]
            self.consumed += self.batch_size * self.world_size
            yield collate([self.source.item("train", index) for index in indices])

    def _index(self, position: int) -> int:
        size = self.source.sizes["train"]
        if size is None:
            return position
        epoch, place = divmod(position, size)
        return int(np.random.default_rng([self.seed, epoch]).permutation(size)[place])

    def state_dict(self) -> dict[str, Any]:
        return {"consumed": self.consumed, "fingerprint": self.fingerprint, "seed": self.seed}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue behind what was consumed, with the same texts only."""
        if (state["fingerprint"], state["seed"]) != (self.fingerprint, self.seed):
            raise DataError("the run to continue read other texts, or the same in another order", key="texts",
                            remedy="restore the settings of texts, or start another run with run.id=<name>")  # fmt: skip
        self.consumed = int(state["consumed"])


def collate(items: list[dict[str, Any]]) -> dict[str, Any]:
    names = [name for name in items[0] if name not in ("key", "caption")]
    return {
        "key": [item["key"] for item in items],
        "caption": [item["caption"] for item in items],
        "extras": {name: [item[name] for item in items] for name in names},
    }
