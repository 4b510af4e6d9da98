"""Clips go in, group by group, in any number of processes; numbers, scores of each clip and numbers of parts come out."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from hydra.utils import instantiate
from torch import Tensor

from vdm.errors import ConfigError, DataError
from vdm.evaluating.processes import Processes
from vdm.evaluation.base import VideoMetric
from vdm.evaluation.breakdowns import Frames
from vdm.evaluation.keyed import PerClip, Skipped
from vdm.types import VideoBatch
from vdm.video import to_uint8

log = logging.getLogger(__name__)


@dataclass
class Measured:
    numbers: dict[str, float]
    skipped: dict[str, str]
    facts: dict[str, dict[str, Any]]
    breakdowns: dict[str, list[dict[str, Any]]]
    cases: list[dict[str, Any]]  # number, key, caption, scores; in the order of their numbers
    best_first: bool | None = None  # whether a larger first score is better; None: there are no scores
    names: list[str] = field(default_factory=list)  # of the scores


class Measurement:
    """The metrics of an evaluation.

    Args:
        nodes: settings of metrics by name.
        breakdowns: by name.
        lacking: what clips do not come with (captions, originals, truth), and why.
        has_reference: the real side is a set of its own.
        features: folder where features are kept; None: nowhere.
    """

    def __init__(
        self,
        nodes: Mapping[str, Any],
        *,
        breakdowns: Mapping[str, Any],
        lacking: Mapping[str, str],
        has_reference: bool,
        features: Path | None,
    ):
        self.features, self.skipped = features, {}
        self.metrics: dict[str, VideoMetric] = {}
        for name, node in nodes.items():
            metric = self._built(node)
            absent = [need for need in metric.needs if need in lacking]
            if absent:
                self.skipped[name] = lacking[absent[0]]
            else:
                self.metrics[name] = metric
        with_originals = [n for n, m in self.metrics.items() if m.of_originals and "originals" not in lacking]
        self.originals = {name: self._built(nodes[name]) for name in with_originals}
        chosen = {name: part for name, part in breakdowns.items() if part is not None and part.needs not in lacking}
        self.parts = {name: part for name, part in chosen.items() if not isinstance(part, Frames)}
        self.lengths = {name: part for name, part in chosen.items() if isinstance(part, Frames)}
        self.shorter: dict[int, dict[str, VideoMetric]] = {}
        for name, part in self.lengths.items():
            for count in part.counts:
                asked = {metric: nodes[metric] for metric in part.metrics if metric in self.metrics}
                cut = {metric: self._built(_cut_to(node, count, name)) for metric, node in asked.items()}
                self.shorter.setdefault(count, {}).update(cut)
        self.with_sets = [m for m in self._all() if hasattr(m, "begin_reference")]
        if has_reference:
            for metric in self.with_sets:
                metric.begin_reference()
        self._cases: list[dict[str, Any]] = []
        self._frames = 0

    def warn(self) -> None:
        """Says which metrics will have no number, before anything takes long."""
        for name, metric in self.metrics.items():
            try:
                metric.check_ready()
            except Skipped as reason:
                log.warning("%s will be skipped: %s", name, reason)

    @property
    def reads(self) -> set[str]:
        """Extras that clips have to bring."""
        found = {metric.reads for metric in self.metrics.values() if hasattr(metric, "reads")}
        return found | {part.reads for part in self.parts.values() if part.reads is not None}

    @property
    def needs_real(self) -> bool:
        return bool(self.with_sets)

    def refer(self, video: Tensor, keys: Sequence[str]) -> None:
        """Real clips b 3 T H W in uint8, before anything is seen."""
        for metric in self.with_sets:
            if not self._is_too_long(metric, video.shape[2]):
                metric.refer(video, keys)

    def see(self, numbers: Sequence[int], made: Tensor, batch: VideoBatch) -> None:
        """Clips with these numbers; `batch` holds what they were made from."""
        self._frames = max(self._frames, made.shape[2])
        for metric in self.metrics.values():
            metric.update(made, batch)
        for metric in self.originals.values():
            metric.update(to_uint8(batch["video"]), batch)
        for count, metrics in self.shorter.items():
            for metric in metrics.values() if count <= made.shape[2] else ():
                metric.update(made, batch)
        bins = {name: part.bins_of(batch) for name, part in self.parts.items()}
        for position, number in enumerate(numbers):
            case = {"number": number, "key": batch["key"][position], "caption": batch["caption"][position]}
            self._cases.append(case | {"bins": {name: found[position] for name, found in bins.items()}})

    def result(self, processes: Processes, *, expected: int, key: str) -> Measured:
        """From what all processes have seen. DataError where that are fewer distinct clips than expected."""
        by_key: dict[str, dict[str, Any]] = {}
        for case in sorted(processes.gathered(self._cases), key=lambda case: case["number"]):
            by_key.setdefault(case["key"], case)
        cases = list(by_key.values())
        self._frames = max([self._frames, *processes.gathered([self._frames])])
        if len(cases) < expected:
            raise DataError("fewer distinct clips were found than the protocol counts", key=key, got=len(cases),
                            allowed=expected, remedy="clips are broken or share a key: prepare the split again")  # fmt: skip
        numbers: dict[str, float] = {"clips": len(cases)}
        for metric in self.metrics.values():
            numbers |= metric.compute()
        for metric in self.originals.values():
            numbers |= {f"original/{name}": value for name, value in metric.compute().items()}
        skipped = self.skipped | {name: m.skipped for name, m in self.metrics.items() if m.skipped}
        scored = {n: m for n, m in self.metrics.items() if isinstance(m, PerClip) and not m.skipped}
        keys = [case["key"] for case in cases]
        for metric in scored.values():
            for case, scores in zip(cases, metric.scores(keys), strict=True):
                case.setdefault("scores", {}).update(scores)
        names = [name for metric in scored.values() for name in metric.columns()]
        first = next(iter(scored.values()), None)
        return Measured(
            numbers=numbers,
            skipped=skipped,
            facts={name: m.facts() for name, m in self.metrics.items() if not m.skipped},
            breakdowns=self._broken_down(cases),
            cases=cases,
            best_first=None if first is None else first.higher_is_better is not False,
            names=names,
        )

    def _broken_down(self, cases: Sequence[Mapping[str, Any]]) -> dict[str, list[dict[str, Any]]]:
        found = {}
        for name, part in self.parts.items():
            keys = [[case["key"] for case in cases if case["bins"][name] == one] for one in part.bins]
            rows = [{"bin": one, "clips": len(k), "metrics": {}} for one, k in zip(part.bins, keys, strict=True)]
            for metric in self.metrics.values():
                for row, numbers in zip(rows, metric.numbers_of_parts(keys), strict=True):
                    row["metrics"] |= numbers
            found[name] = [row for row in rows if row["clips"] or row["bin"] not in part.unlisted]
        for name, part in self.lengths.items():
            found[name] = [self._cut(count, len(cases)) for count in part.counts]
        return found

    def _cut(self, count: int, clips: int) -> dict[str, Any]:
        """Numbers of the first frames of all clips; none where clips are shorter."""
        metrics, numbers = self.shorter[count], {}
        if count > self._frames:
            return {"bin": str(count), "clips": 0, "metrics": {}}
        for metric in metrics.values():
            value = next(iter(metric.compute().values()), None)
            numbers |= {} if value is None else {metric.label: value}
        return {"bin": str(count), "clips": clips, "metrics": numbers}

    def _all(self) -> list[VideoMetric]:
        return [*self.metrics.values(), *(m for metrics in self.shorter.values() for m in metrics.values())]

    def _is_too_long(self, metric: VideoMetric, frames: int) -> bool:
        return any(metric is one for count, ms in self.shorter.items() if count > frames for one in ms.values())

    def _built(self, node: Mapping[str, Any]) -> VideoMetric:
        metric = instantiate(dict(node), _convert_="all")
        if self.features is not None:
            metric.keep_features(self.features)
        return metric


def _cut_to(node: Mapping[str, Any], frames: int, part: str) -> dict[str, Any]:
    """The settings of a metric that looks at the first frames, and at all of them."""
    if not {"frames", "label"} <= node.keys():
        raise ConfigError("this metric does not look at a number of frames", key=f"protocol.breakdowns.{part}.metrics",
                          got=node.get("_target_"), remedy="name such as fvd")  # fmt: skip
    wanted = {"frames": frames, "stride": 1, "draws": 0}
    return dict(node) | {name: value for name, value in wanted.items() if name in node}
