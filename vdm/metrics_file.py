"""metrics.csv of a run: every logged number by step, whole after any crash, continued and not duplicated by a resume."""

from __future__ import annotations

import csv
import io
from pathlib import Path
from typing import Any

from pytorch_lightning.loggers.logger import Logger

from vdm.runs import write_atomically


class MetricsFile(Logger):
    """One row a step, columns in the order of first appearance; numbers keep all their digits."""

    def __init__(self, *, path: str, resumed_step: int | None):
        super().__init__()
        self.path = Path(path)
        self.columns, self.rows = ["step"], {}
        if resumed_step is not None and self.path.exists():
            self._read_up_to(resumed_step)
        self._unwritten: set[int] = set()
        self._rewrite()

    @property
    def name(self) -> str:
        return "metrics"

    @property
    def version(self) -> str:
        return ""

    def log_hyperparams(self, *args: Any, **kwargs: Any) -> None:
        """The configuration is in config.yaml."""

    def log_metrics(self, metrics: dict[str, float], step: int | None = None) -> None:
        if self._unwritten and step not in self._unwritten:
            self.save()
        row = self.rows.setdefault(step, {"step": step})
        row.update({name: repr(value) for name, value in metrics.items()})
        self._unwritten.add(step)

    def save(self) -> None:
        has_new = any(name not in self.columns for step in self._unwritten for name in self.rows[step])
        if has_new or not self._unwritten.isdisjoint(self._written):
            self._rewrite()
        elif self._unwritten:
            with self.path.open("a", encoding="utf-8") as file:
                file.write("".join(self._line(self.rows[step]) for step in sorted(self._unwritten)))
        self._written |= self._unwritten
        self._unwritten = set()

    def on_rollback(self, step: int) -> None:
        """What comes after this step is measured again."""
        self.rows = {at: row for at, row in self.rows.items() if at <= step}
        self._unwritten = set()
        self._rewrite()

    def finalize(self, status: str) -> None:
        self.save()

    def _read_up_to(self, step: int) -> None:
        """Rows after the checkpoint will be computed again; a line cut off by a crash is one of them."""
        with self.path.open(newline="", encoding="utf-8") as file:
            reader = csv.DictReader(file)
            self.columns = list(reader.fieldnames or self.columns)
            for row in reader:
                if (row["step"] or "").isdigit() and int(row["step"]) <= step and None not in row.values():
                    self.rows[int(row["step"])] = {name: value for name, value in row.items() if value != ""}

    def _line(self, row: dict[str, Any]) -> str:
        text = io.StringIO()
        csv.DictWriter(text, self.columns, restval="", lineterminator="\n").writerow(row)
        return text.getvalue()

    def _rewrite(self) -> None:
        self.columns = list(dict.fromkeys([*self.columns, *(name for row in self.rows.values() for name in row)]))
        header = self._line(dict(zip(self.columns, self.columns, strict=True)))
        write_atomically(self.path, header + "".join(self._line(row) for _, row in sorted(self.rows.items())))
        self._written = set(self.rows)
