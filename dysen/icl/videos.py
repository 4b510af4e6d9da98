"""Videos made from plans by a finished run, for rewards: in few steps, with noise that a caption decides, kept on disk.

All plans of a caption begin in the same noise, so their videos differ by nothing but the plans.
"""

from __future__ import annotations

import functools
import hashlib
import io
import json
import logging
import os
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from dysen.icl.rewards import Outcome
from dysen.scene_graph import event_to_dsg
from vdm import checkpoint, restore
from vdm.bounds import NonNegativeFloat, NonNegativeInt, PositiveInt
from vdm.devices import this_device
from vdm.diffusion.guidance import classifier_free
from vdm.errors import RunError
from vdm.runs import Run, newest_complete
from vdm.sampling.model import TextToVideo
from vdm.video import to_float

log = logging.getLogger(__name__)

GRAPHS = "scene_graph"  # the condition that hears a plan
STAGES = ("dysen", "vdm")  # whose runs may have it
USUAL_FPS = 8.0  # where a run was trained on clips of any rate


class PlanVideos:
    """Called with outcomes, gives a video `3 T H W` in [-1, 1] for each, in the size of the run.

    Args:
        run: of stage=dysen or stage=vdm with condition=[text,scene_graph]; auto: the newest complete one.
        output_root: where runs are.
        sampler: with few steps.
        guidance: of caption and graphs together.
        seed: of the noise, with the caption.
        batch_size: videos at once.
        folder: keeps the videos, each by everything that decides it; null: nothing is kept.
    """

    def __init__(
        self,
        *,
        run: str,
        output_root: str,
        sampler: Callable[..., Tensor],
        guidance: NonNegativeFloat,
        seed: NonNegativeInt,
        batch_size: PositiveInt,
        folder: str | None,
        device: Literal["auto", "cpu", "cuda"],
    ):
        self.device = this_device(device, key="stage.terms.video.sample.device")
        self.output_root, self.sampler, self.guidance = output_root, sampler, guidance
        self.seed, self.batch_size = seed, batch_size
        self.folder = None if folder is None else Path(folder)
        self._model: TextToVideo | None = None
        self.choose(None if run == "auto" else run)

    def choose(self, run: str | None) -> None:
        """Takes this run, or the newest that hears graphs."""
        root, key = self.output_root, "stage.terms.video.sample.run"
        if run is None:
            self.run = _newest(root, key)
            log.info("%s: the newest complete run that hears scene graphs is %s", key, self.run.name)
        else:
            self.run = restore.chosen_run(root, run, stage=STAGES)
            if not _hears(self.run):
                raise RunError("this run hears no scene graphs", key=key, got=self.run.name,
                               remedy="name one with condition=[text,scene_graph]")  # fmt: skip
        self._model = None
        self._decides = self._facts()

    def __call__(self, outcomes: Sequence[Outcome]) -> list[Tensor]:
        keys = [self._key(outcome) for outcome in outcomes]
        videos = {key: video for key in dict.fromkeys(keys) if (video := self._read(key)) is not None}
        missing = {key: outcome for key, outcome in zip(keys, outcomes, strict=True) if key not in videos}
        todo = list(missing)
        # The random numbers of a training step are not to depend on what has been kept.
        with torch.random.fork_rng():
            for first in range(0, len(todo), self.batch_size):
                some = todo[first : first + self.batch_size]
                for key, video in zip(some, self._made([missing[key] for key in some]), strict=True):
                    self._write(key, video)
                    videos[key] = video
        return [to_float(videos[key].permute(3, 0, 1, 2)) for key in keys]

    def of_truth(self, outcomes: Sequence[Outcome]) -> list[Tensor]:
        """The same of the true plans."""
        return self([replace(one, plan=one.gold, dsg=None if one.dsg is None else one.gold_dsg) for one in outcomes])

    @torch.no_grad()
    def _made(self, outcomes: Sequence[Outcome]) -> list[Tensor]:
        """T H W 3 each, in uint8."""
        if self._model is None:
            self._model = TextToVideo.of_run(self.run, self.run.last_checkpoint(), averaged=True, device=self.device,
                                             precision=None)  # fmt: skip
        model, facts = self._model, self._decides
        latents = model.latents(
            [one.caption for one in outcomes],
            [_noise(one) for one in outcomes],
            seed=self.seed,
            shape=model.latent_shape(facts["frames"], facts["height"], facts["width"]),
            fps=facts["fps"],
            sampler=self.sampler,
            guidance=classifier_free((*model.heard, GRAPHS), self.guidance, rescale=0.0, interval=(0.0, 1.0)),
            extras=[{GRAPHS: _graphs(one)} for one in outcomes],
        )
        return [model.frames(latent).clone() for latent in latents]

    def _facts(self) -> dict[str, Any]:
        """What decides a video besides caption and graphs."""
        settings = restore.settings_of(self.run, needs=("data",))["data"]
        clip, store = settings.get("clip") or {}, settings.get("store") or {}
        files = checkpoint.read_manifest(self.run.last_checkpoint())["files"]
        rate = store.get("fps") or USUAL_FPS
        call = self.sampler if isinstance(self.sampler, functools.partial) else functools.partial(self.sampler)
        facts = {name: clip.get(name) for name in ("frames", "height", "width")}
        if any(type(value) is not int for value in facts.values()):
            raise RunError("the run does not say how large its clips are", key="stage.terms.video", got=self.run.name)
        return facts | {
            "fps": float(rate) / (clip.get("frame_stride") or 1),
            "weights": {name: fact["sha256"] for name, fact in files.items() if name.endswith(".safetensors")},
            "sampler": [call.func.__name__, {name: repr(value) for name, value in call.keywords.items()}],
            "guidance": self.guidance,
            "seed": self.seed,
        }

    def _key(self, outcome: Outcome) -> str:
        text = json.dumps([self._decides, outcome.caption, _graphs(outcome)], sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()

    def _read(self, key: str) -> Tensor | None:
        if self.folder is None:
            return None
        try:
            found = np.load(self.folder / f"{key}.npy", allow_pickle=False)
        except (OSError, ValueError, EOFError):
            return None  # not there, or damaged: made anew
        size = tuple(self._decides[name] for name in ("frames", "height", "width"))
        return torch.from_numpy(found) if found.shape == (*size, 3) and found.dtype == np.uint8 else None

    def _write(self, key: str, video: Tensor) -> None:
        if self.folder is None:
            return
        content = io.BytesIO()
        np.save(content, video.numpy())
        partial = self.folder / f".{key}.partial-{os.getpid()}"
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            partial.write_bytes(content.getvalue())
            partial.replace(self.folder / f"{key}.npy")
        except OSError as error:
            remedy = "make room, or set stage.terms.video.sample.folder=null"
            raise RunError("a video cannot be kept", got=f"{self.folder}: {error}", remedy=remedy) from error


class PooledPixels:
    """Videos `b 3 T H W` -> `b d`: the means over a coarse grid. Needs no weights: enough where plans are compared by videos
    of the same model in the same noise.
    """

    def __init__(self, *, frames: PositiveInt, size: PositiveInt):
        self.grid = (frames, size, size)

    def __call__(self, videos: Tensor) -> Tensor:
        pooled = F.adaptive_avg_pool3d(videos.float(), self.grid).flatten(1)
        return pooled / pooled.shape[1] ** 0.5  # so that distances do not grow with the grid


def _graphs(outcome: Outcome) -> list[Any]:
    assert outcome.plan is not None, "there is a plan"
    return (event_to_dsg(outcome.plan) if outcome.dsg is None else outcome.dsg).to_json()


def _noise(outcome: Outcome) -> str:
    return hashlib.sha256(outcome.caption.encode("utf-8", "surrogatepass")).hexdigest()[:16]


def _hears(run: Run) -> bool:
    return GRAPHS in (restore.settings_of(run).get("condition") or {})


def _newest(root: str, key: str) -> Run:
    run = newest_complete(root, STAGES, suits=_hears)
    if run is None:
        remedy = "train one: python train.py stage=vdm condition=[text,scene_graph]; or name one"
        raise RunError("videos are made by a complete run that hears scene graphs, and there is none", key=key,
                       got=f"auto, in {root}", remedy=remedy)  # fmt: skip
    return run
