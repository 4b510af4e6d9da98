"""What is measured and what stands on the real side, from a run, from shards or from a folder: clips, who makes them, facts."""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import Tensor

from vdm import restore
from vdm.errors import ConfigError, DataError
from vdm.evaluating import subjects
from vdm.evaluating.processes import Processes
from vdm.evaluating.stored import StoredClips, data_node
from vdm.evaluating.videos import FoundVideos, Groups
from vdm.evaluation.folder import KINDS, Folder, as_table, counted
from vdm.evaluation.reading import ClipRule, Refusal
from vdm.runs import Run, write_atomically
from vdm.types import VideoBatch
from vdm.video import to_uint8

log = logging.getLogger(__name__)

SAID_OF_SAMPLES = ("sampler", "guidance", "guidance_rescale", "guidance_interval", "seed")
NO_ORIGINALS = "it compares each clip with the one it was made from, and these videos have none"
NO_TRUTH = "it needs to know what happens in each clip, which nobody says of these videos"
NO_CAPTIONS = "not every video has a caption: put captions.json or captions.txt beside them (docs/evaluation.md)"


@dataclass
class Subject:
    """Clips of one side, in groups, and how they become 8-bit video."""

    title: str
    folder: Path
    count: int
    key: str  # the setting that says how many
    groups: Callable[[], Groups]
    at: Callable[[Sequence[int]], Iterator[VideoBatch]]
    make: Callable[[VideoBatch], Tensor]
    record: Callable[[VideoBatch], dict[str, Any] | None]
    facts: dict[str, Any]  # of the result
    decided: dict[str, Any]  # of the id
    lacking: dict[str, str] = field(default_factory=dict)
    refused: dict[str, Refusal] = field(default_factory=dict)
    reports_on: Path | None = None  # the folder of a run


@dataclass
class Reference:
    groups: Callable[[], Groups]
    facts: dict[str, Any]
    decided: dict[str, Any]


class Sources:
    """Finds them for a composed configuration, as plain values."""

    def __init__(self, settings: Mapping[str, Any], protocol: Any, processes: Processes):
        self.settings, self.protocol, self.processes = settings, protocol, processes
        self.run: Run | None = None
        self.of_run: dict[str, Any] | None = None
        self._repeats = False  # whether captions are sampled more than once
        if settings["videos"] is None:
            paths = settings["paths"]
            keeps = protocol.kind != "samples"  # any run has the autoencoder that made its latents
            tuned_on = settings["data"]["name"] if settings["data"] and "finetune" in protocol.stage else None
            self.run = restore.chosen_run(
                paths["output_root"], settings["run"], stage=protocol.stage, any_stage=keeps, data=tuned_on
            )
            self.of_run = restore.settings_of(self.run)
            if self.run.state != "complete" and processes.is_first:
                log.warning("%s is %s: it was not trained to its end", self.run.name, self.run.state)
        chosen, root = settings["data"], settings["paths"]["data_root"]
        self.node = data_node(chosen, self.of_run, settings["reader"], root)

    # ---- what is measured -----------------------------------------------------------------------------------------------

    def of_a_run(self, reads: set[str]) -> Subject:
        """`reads`: extras that metrics want of clips."""
        assert self.run is not None, "a run was chosen"
        run, protocol, node = self.run, self.protocol, self.node
        last = run.last_checkpoint()
        folder = self._output() or run.folder / "evaluation" / protocol.name
        graphs, told, labels = None, {}, {}
        if protocol.kind == "samples":
            model = subjects.text_to_video(run, self.processes.device)
            plans = str(self.settings["protocol"]["plans"]["folder"])
            graphs, plans = subjects.graphs_of(protocol, model, folder=plans, data=node["name"], root=node["root"])
            if graphs is not None or subjects.GRAPHS in model.conditions.names:
                told = {
                    "graphs": {
                        "source": protocol.graphs,
                        "plans": None if plans is None else _fingerprint_of_plans(plans),
                    }
                }
                if protocol.graphs not in ("gold", "auto") and self.settings["output"] is None:
                    folder = folder.with_name(f"{folder.name}-{protocol.graphs}")
            said = {name: self.settings["protocol"][name] for name in SAID_OF_SAMPLES}
            labels = subjects.labels_of(model)
            make = subjects.Samples(
                model=model, last=last, protocol=protocol, settings=said, graphs=graphs, labels=labels, folder=folder
            )  # fmt: skip
            # True graphs tell more than the caption; what was planned from it is the method's own.
            said["told"] = "the true scene graphs" if graphs is not None and graphs.plans is None else None
        else:
            make, said = subjects.Reconstructions(subjects.autoencoder(run, self.processes.device)), {}
        extras = sorted(reads | set(graphs.reads if graphs else ()))
        clips = self._stored(
            [protocol.split], protocol.clips, protocol.order, extras, "protocol.clips", protocol.repeat,
            extras_if_there=sorted(set(labels.values())),
        )  # fmt: skip
        facts, self._repeats = _facts_of(clips), any(place.copy for place in clips.places)
        self._warn_of_size(clips)
        return Subject(
            title=run.name,
            folder=folder,
            count=len(clips),
            key="protocol.clips",
            groups=lambda: clips.groups(**self._share()),
            at=lambda numbers: clips.at(numbers, self.processes.device),
            make=make,
            record=lambda batch: None if graphs is None else graphs.record(batch, 0),
            facts={"run": run.name, "checkpoint": last.name, "data": {n: facts[n] for n in ("name", "split", "fingerprint")},
                   "weights": subjects.weights_of(last), **told},
            decided={"subject": {"kind": protocol.kind, **said}, "clips": self._decided_of(clips, protocol.order)},
            reports_on=run.folder,
        )  # fmt: skip

    def of_videos(self) -> Subject:
        """Of a folder that somebody gave."""
        path = Path(str(self.settings["videos"]))
        found = FoundVideos(self._folder(path), self.processes)
        folder = self._output() or self._folder_of(path)
        if self.processes.is_first:
            write_atomically(folder / "rejected.csv", as_table(found.refused))
        wanted = self.protocol.clips
        if not found.good and not found.refused:
            raise DataError("there is no video in this folder", key="videos", got=str(path), allowed=KINDS)
        if len(found.good) < wanted:
            reasons = ", ".join(f"{reason} {count}" for reason, count in counted(found.refused).items())
            raise DataError(
                "fewer videos can be scored than the protocol counts", key="videos",
                got=f"{len(found.good)} of {len(found.good) + len(found.refused)}; rejected: {reasons or 'none'}",
                allowed=f"{wanted}",
                remedy=f"each is named in {folder / 'rejected.csv'}; protocol.clips={max(1, len(found.good))} counts "
                       "fewer: that is another protocol, with an id of its own",
            )  # fmt: skip
        chosen = found.spread(wanted)
        captions, lacking = found.folder.listing.captions or {}, {"originals": NO_ORIGINALS, "truth": NO_TRUTH}
        if not all(entry.key in captions for entry, _ in chosen):
            captions, lacking = None, lacking | {"captions": NO_CAPTIONS}
        said = None if captions is None else _hash({entry.key: captions[entry.key] for entry, _ in chosen})
        rule = found.folder.rule.deciding()
        sizes = sorted({clip.size for _, clip in chosen})
        data = {"name": path.name, "videos": len(found.good) + len(found.refused), "used": len(chosen),
                "captions": captions is not None, "fingerprint": _hash({e.key: clip.content for e, clip in chosen}),
                "sizes": [f"{height}x{width}" for height, width in sizes[:20]]}  # fmt: skip
        return Subject(
            title=str(path),
            folder=folder,
            count=len(chosen),
            key="protocol.clips",
            groups=lambda: found.groups(chosen, self._size(), captions),
            at=lambda numbers: found.one_by_one([chosen[n] for n in numbers], captions),
            make=lambda batch: to_uint8(batch["video"]),
            record=lambda batch: None,
            facts={"run": None, "checkpoint": None, "data": data, "weights": None},
            decided={"subject": {"kind": "videos", "rule": rule, "captions": said}, "clips": {"count": len(chosen)}},
            lacking=lacking,
            refused=found.refused,
        )

    # ---- the real side --------------------------------------------------------------------------------------------------

    def reference(self) -> Reference | None:
        """None: the clips that were made belong to clips, and these are it."""
        protocol, settings = self.protocol, self.settings
        if settings["reference"] is not None:
            return self._reference_folder(Path(str(settings["reference"])))
        splits, clips, order, key = (
            protocol.reference_splits,
            protocol.reference_clips,
            "spread",
            "protocol.reference_clips",
        )
        if splits is None and settings["videos"] is None:
            if self._repeats:
                raise ConfigError("captions are sampled more than once, so the real side has to be named",
                                  key="protocol.reference_split", got=None,
                                  remedy=f"protocol.reference_split={protocol.split}")  # fmt: skip
            return None
        if splits is None:
            splits, clips, order, key = (protocol.split,), protocol.clips, protocol.order, "protocol.clips"
        if self.node is None:
            raise ConfigError("the protocol names no data, so nothing is on the real side", key="reference",
                              remedy="reference=<folder of real videos>, or data=<data>")  # fmt: skip
        stored = self._stored(splits, clips, order, [], key, False)
        if settings["videos"] is not None:
            self._same_path(stored)
        return Reference(
            lambda: stored.groups(**self._share()), _facts_of(stored), self._decided_of(stored, order)
        )  # fmt: skip

    def _reference_folder(self, path: Path) -> Reference:
        found = FoundVideos(self._folder(path), self.processes)
        wanted = self.protocol.reference_clips or len(found.good)
        if not found.good or len(found.good) < wanted:
            reasons = ", ".join(f"{reason} {count}" for reason, count in counted(found.refused).items())
            raise DataError("the reference has fewer videos than the protocol counts", key="reference",
                            got=f"{len(found.good)} in {path}; rejected: {reasons or 'none'}", allowed=wanted,
                            remedy=f"protocol.reference_clips={len(found.good) or 'null'} counts fewer")  # fmt: skip
        chosen = found.spread(wanted)
        content = _hash({entry.key: clip.content for entry, clip in chosen})
        facts = {"name": path.name, "split": None, "clips": len(chosen), "fingerprint": content,
                 "rejected": counted(found.refused)}  # fmt: skip
        decided = {"folder": content, "count": len(chosen), "rule": found.folder.rule.deciding()}
        return Reference(lambda: found.groups(chosen, self._size(), None), facts, decided)

    # ---- parts ----------------------------------------------------------------------------------------------------------

    def _stored(
        self, splits: Sequence[str], clips: int | None, order: str, extras: Sequence[str], key: str, repeat: bool,
        extras_if_there: Sequence[str] = (),
    ) -> StoredClips:  # fmt: skip
        node = dict(self.node) | {"num_workers": self.settings["num_workers"], "seed": self.settings["seed"]}
        node["extras_if_there"] = list(extras_if_there)
        return StoredClips(
            node,
            splits=splits,
            clips=clips,
            order=order,
            repeat=repeat,
            batch_size=self._size(),
            extras=extras,
            key=key,
        )

    def _folder(self, path: Path) -> Folder:
        given = dict(self.settings["clip_rule"])
        clip = (self.node or {}).get("clip") or {}
        for name, of_data in (
            ("frames", "frames"),
            ("stride", "frame_stride"),
            ("height", "height"),
            ("width", "width"),
        ):
            given[name] = clip.get(of_data) if given[name] is None else given[name]
            if given[name] is None:
                raise ConfigError("the protocol does not say what clips look like", key=f"clip_rule.{name}",
                                  remedy=f"clip_rule.{name}=<value>, or data=<data>")  # fmt: skip
        limits = {name: given.pop(name) for name in ("timeout", "memory")}
        processes = max(1, self.settings["num_workers"])
        return Folder(path, ClipRule(**given), processes=processes, **limits)

    def _same_path(self, stored: StoredClips) -> None:
        """Videos are resized once; real clips were, when they were prepared, and may not be a second time."""
        size = stored.clip["height"], stored.clip["width"]
        if stored.stored_size not in (None, size):
            height, width = stored.stored_size
            raise ConfigError("the real clips would be resized twice, and the videos once", key="data.clip.height",
                              got=f"{size[0]}x{size[1]}, stored as {height}x{width}",
                              remedy=f"data.clip.height={height} data.clip.width={width}, or reference=<folder>")  # fmt: skip

    def _warn_of_size(self, clips: StoredClips) -> None:
        trained = ((self.of_run or {}).get("data") or {}).get("clip") or {}
        names = ("frames", "height", "width")
        if self.processes.is_first and any(trained.get(name) not in (None, clips.clip[name]) for name in names):
            was, now = ("x".join(str(one.get(name)) for name in names) for one in (trained, clips.clip))
            log.warning(
                "the run was trained on clips of %s, and the protocol asks for %s: data.clip.* says which", was, now
            )

    def _decided_of(self, clips: StoredClips, order: str) -> dict[str, Any]:
        counts = {"count": len(clips), "order": order, "seed": self.settings["seed"]}
        return {"data": clips.name, "splits": clips.fingerprints, "clip": clips.clip, **counts}

    def _share(self) -> dict[str, Any]:
        return {"rank": self.processes.rank, "count": self.processes.count, "device": self.processes.device}

    def _size(self) -> int:
        return self.settings["batch_size"]

    def _output(self) -> Path | None:
        return None if self.settings["output"] is None else Path(str(self.settings["output"]))

    def _folder_of(self, videos: Path) -> Path:
        place = hashlib.sha256(str(videos.absolute()).encode("utf-8", "surrogatepass")).hexdigest()[:6]
        return (
            Path(self.settings["paths"]["output_root"]) / "evaluation" / f"{self.protocol.name}-{videos.name}-{place}"
        )


def _facts_of(clips: StoredClips) -> dict[str, Any]:
    prints = clips.fingerprints
    joined = {"split": "+".join(prints), "fingerprint": "+".join(prints.values())}
    return {"name": clips.name, **joined, "clips": len(clips)}


def _fingerprint_of_plans(folder: str) -> str | None:
    """Who planned: plans are the method's own, and not of the protocol."""
    path = Path(folder) / "planner.json"
    return hashlib.sha256(path.read_bytes()).hexdigest()[:16] if path.is_file() else None


def _hash(table: Mapping[str, str]) -> str:
    return hashlib.sha256(json.dumps(table, sort_keys=True).encode()).hexdigest()[:16]
