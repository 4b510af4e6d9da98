"""The class of a clip as one learned vector beside the timestep embedding, as in class-conditional image models (Dhariwal
and Nichol, 2021)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from vdm.bounds import Fraction, PositiveInt
from vdm.conditions.base import Condition
from vdm.errors import DataError
from vdm.types import Controls, LatentShape, VideoBatch


class ClassLabel(Condition):
    """Said nothing, it says what was learned for clips without a class.

    Args:
        classes: how many there are; they are numbered from 0.
        width: of their vectors, as wide as what other conditions add to the timestep embedding.
        reads: the name in `extras` of the number of a clip's class. What stands there under the name of the condition
            comes first.
    """

    def __init__(self, *, classes: PositiveInt, width: PositiveInt, reads: str, drop_prob: Fraction):
        super().__init__(embed_width=width, drop_prob=drop_prob)
        self.classes, self.reads = classes, reads
        self.table = nn.Embedding(classes + 1, width)  # the last row: no class

    def encode(self, batch: VideoBatch, shape: LatentShape) -> Controls:
        extras = batch.get("extras", {})
        said = extras.get(self.name, extras.get(self.reads))
        if said is None:
            remedy = f"set data.extras=[{self.reads}], or leave {self.name} out of condition"
            raise DataError("no clip comes with its class", key=f"extras.{self.reads}", remedy=remedy)
        return Controls(embed=self.table(self._rows(said, batch["key"])))

    def null(self, count: int, shape: LatentShape) -> Controls:
        rows = torch.full((count,), self.classes, device=self.table.weight.device)
        return Controls(embed=self.table(rows))  # b e

    def _rows(self, said: Tensor | Sequence[int | None], keys: Sequence[str]) -> Tensor:
        numbers = said.tolist() if isinstance(said, Tensor) else list(said)
        for number, key in zip(numbers, keys, strict=True):
            is_class = isinstance(number, int) and not isinstance(number, bool) and 0 <= number < self.classes
            if number is not None and not is_class:
                raise DataError("no such class", key=f"extras.{self.reads}", got=f"{number!r} for clip {key}",
                                allowed=f"a whole number from 0 to {self.classes - 1}, or nothing",
                                remedy="set condition.class_label.classes to the number of classes")  # fmt: skip
        rows = [self.classes if number is None else number for number in numbers]
        return torch.tensor(rows, device=self.table.weight.device)  # b
