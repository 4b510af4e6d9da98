"""From a run, or a folder of videos, to numbers: make or read clips, measure them by a protocol, write what was found.

Everything that takes long is kept as it is done: samples and features in files. So the same command again goes on where it was
stopped, and metrics.json has the same bytes, for any number of processes. What may differ is in evaluated.json.
"""

from __future__ import annotations

import json
import logging
import sys
import time
from pathlib import Path
from typing import Any

from hydra.utils import instantiate
from omegaconf import DictConfig

from vdm import config, runs
from vdm.errors import RunError
from vdm.evaluating.gallery import Gallery, chosen_numbers, shown
from vdm.evaluating.measuring import Measured, Measurement
from vdm.evaluating.processes import Processes, joined
from vdm.evaluating.sources import Reference, Sources, Subject
from vdm.evaluation.folder import counted
from vdm.evaluation.identity import identity, settings_of_metric
from vdm.video import to_uint8

log = logging.getLogger(__name__)

RESULT = "metrics.json"


def evaluate(cfg: DictConfig) -> dict[str, float]:
    """Evaluate one run or folder; returns the numbers."""
    settings = config.resolve(cfg)
    with joined() as processes:
        if not processes.is_first:
            logging.getLogger().setLevel(logging.ERROR)  # the first one speaks for all
        try:
            return _Evaluation(settings, processes).run()
        except KeyboardInterrupt:
            log.warning("stopped; the same command goes on from here")
            sys.exit(130)


class _Evaluation:
    def __init__(self, settings: dict[str, Any], processes: Processes):
        self.settings, self.processes = settings, processes
        self.protocol = instantiate(settings["protocol"], _convert_="all")
        self.seconds: dict[str, float] = {}

    def run(self) -> dict[str, float]:
        began = time.time()
        sources = Sources(self.settings, self.protocol, self.processes)
        subject, measurement, reference = self._ready(sources)
        log.info("evaluating %s by %s", subject.title, self.protocol.name)
        if self.processes.is_first:
            measurement.warn()
        self._timed("reference", lambda: self._refer(measurement, reference))
        self._timed("clips", lambda: self._see(measurement, subject))
        measured = self._timed(
            "metrics", lambda: measurement.result(self.processes, expected=subject.count, key=subject.key)
        )
        graphs = getattr(subject.make, "graphs", None)
        if graphs is not None and graphs.plans is not None:
            without = measured.numbers["without_plan"] = sum(self.processes.gathered([graphs.without]))
            if without:
                log.warning(
                    "%d clips heard no graphs: their caption has no plan (python -m dysen.plan captions=all)", without
                )
        if self.processes.is_first:
            try:
                result = self._result(subject, measurement, reference, measured)
                self._write(subject, result, measured, began)
            except OSError as error:
                remedy = "free space, or set output=<folder>, and give the same command again: it goes on"
                got = f"{subject.folder}: {error}"
                raise RunError("the result cannot be written", key="output", got=got, remedy=remedy) from None
        return measured.numbers

    def _write(self, subject: Subject, result: dict[str, Any], measured: Measured, began: float) -> None:
        """The result comes after all that it speaks of."""
        self._timed("gallery", lambda: self._show(subject, measured))
        runs.write_atomically(subject.folder / RESULT, json.dumps(result, indent=2) + "\n")
        self._side(subject, began)
        self._say(subject, result)
        self._report(subject)

    def _ready(self, sources: Sources) -> tuple[Subject, Measurement, Reference | None]:
        """Everything that can be wrong with settings and files is said here, before anything takes long."""
        settings, protocol = self.settings, self.protocol
        features = None if settings["features"] is None else Path(str(settings["features"]))
        common = {"breakdowns": protocol.breakdowns, "features": features}
        nodes = settings["metric"] or {}
        if sources.run is None:
            subject = self.processes.together(sources.of_videos)
            measurement = Measurement(nodes, lacking=subject.lacking, has_reference=True, **common)
        else:
            apart = protocol.reference_splits is not None or settings["reference"] is not None
            measurement = Measurement(nodes, lacking={}, has_reference=apart, **common)
            subject = self.processes.together(lambda: sources.of_a_run(measurement.reads))
        reference = self.processes.together(sources.reference) if measurement.needs_real else None
        return subject, measurement, reference

    def _refer(self, measurement: Measurement, reference: Reference | None) -> None:
        def look() -> None:
            for _, batch in reference.groups():
                measurement.refer(to_uint8(batch["video"]), batch["key"])

        if reference is not None:
            self.processes.together(look)

    def _see(self, measurement: Measurement, subject: Subject) -> None:
        def look() -> None:
            for numbers, batch in subject.groups():
                measurement.see(numbers, subject.make(batch), batch)

        self.processes.together(look)

    def _result(
        self, subject: Subject, measurement: Measurement, reference: Reference | None, measured: Measured
    ) -> dict[str, Any]:
        metrics = self.settings["metric"] or {}
        real = "the clips of the captions" if measurement.needs_real else None
        decided = subject.decided | {
            "reference": real if reference is None else reference.decided,
            "metrics": {name: settings_of_metric(node) for name, node in metrics.items()},
            "breakdowns": self.settings["protocol"]["breakdowns"],
        }
        return {
            "id": identity(self.protocol.name, decided),
            "protocol": self.settings["protocol"],
            **subject.facts,
            "reference": None if reference is None else reference.facts,
            "metrics": measured.numbers,
            "skipped": measured.skipped,
            "measured": measured.facts,
            "breakdowns": measured.breakdowns,
            "rejected": counted(subject.refused),
            "decided": decided,
        }

    def _show(self, subject: Subject, measured: Measured) -> None:
        gallery = Gallery(subject.folder, drawing=self.protocol.drawing, scale=self.protocol.scale)
        numbers = chosen_numbers(measured, shown(measured, self.protocol.shown))
        for batch in subject.at(numbers) if numbers else ():
            original = None if "originals" in subject.lacking else batch["video"][0]
            gallery.add(batch, subject.make(batch)[0], original, subject.record(batch))
        gallery.finish(measured)

    def _side(self, subject: Subject, began: float) -> None:
        """What differs from one evaluation to the next and decides no number."""
        command = runs.typed("evaluate.py")
        content = {
            "began": began,
            "seconds": self.seconds | {"all": time.time() - began},
            "processes": self.processes.count,
            "device": str(self.processes.device.type),
            "sampled": getattr(subject.make, "made", 0),
            "evaluated_by": runs.provenance() | ({"command": command} if command else {}),
        }
        runs.write_atomically(subject.folder / "evaluated.json", json.dumps(content, indent=2) + "\n")

    def _say(self, subject: Subject, result: dict[str, Any]) -> None:
        for name, value in result["metrics"].items():
            log.info("%-20s %.4f", name, value)
        for name, reason in result["skipped"].items():
            log.warning("%-20s skipped: %s", name, reason)
        for reason, count in result["rejected"].items():
            log.warning("%d files rejected: %s", count, reason)
        log.info("%s, written to %s", result["id"], subject.folder)

    def _report(self, subject: Subject) -> None:
        if self.settings["report"]:
            from vdm.evaluation.report import write_report

            log.info("report: %s", write_report(subject.folder, run=subject.reports_on))

    def _timed(self, name: str, work: Any) -> Any:
        began = time.time()
        try:
            return work()
        finally:
            self.seconds[name] = round(time.time() - began, 3)
