"""What is looked at: samples of a text-to-video model, or reconstructions of an autoencoder. Called with a batch of clips."""

from __future__ import annotations

import hashlib
import json
import logging
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from vdm import checkpoint, lineage, restore
from vdm.diffusion.guidance import classifier_free
from vdm.errors import RunError
from vdm.evaluation.graphs import GRAPHS, GraphsOfClips
from vdm.runs import Run
from vdm.sampling import files
from vdm.sampling.model import TextToVideo, free_memory, is_out_of_memory
from vdm.types import VideoBatch
from vdm.video import to_uint8

log = logging.getLogger(__name__)

DECIDES_SAMPLES = ("sampler", "seed", "guidance", "guidance_rescale", "guidance_interval")


def weights_of(folder: Path) -> dict[str, str]:
    """SHA-256 of the files of a checkpoint."""
    return {name: fact["sha256"] for name, fact in checkpoint.read_manifest(folder)["files"].items()}


class Samples:
    """Samples for the captions of batches, b 3 T H W in uint8. Each is kept in a file, so that a stopped evaluation goes on.

    A batch of which something is missing is made as a whole again: the last digits of a sample may depend on its batch.

    Args:
        labels: other conditions that are heard, with the names in `extras` of what they read.
    """

    def __init__(
        self, *, model: TextToVideo, last: Path, protocol: Any, settings: Mapping[str, Any], graphs: GraphsOfClips | None,
        labels: Mapping[str, str], folder: Path,
    ):  # fmt: skip
        self.model, self.protocol, self.graphs, self.folder, self.made = model, protocol, graphs, folder, 0
        self.labels = dict(labels)
        self.decided = [
            {name: settings[name] for name in DECIDES_SAMPLES}, weights_of(last), model.conditions.fingerprint()
        ]  # fmt: skip
        self.guidance = classifier_free(
            (*model.heard, *([] if graphs is None else [GRAPHS]), *labels),
            protocol.guidance,
            rescale=protocol.guidance_rescale,
            interval=protocol.guidance_interval,
        )

    def __call__(self, batch: VideoBatch) -> Tensor:
        said = self._said(batch)
        size, rates = tuple(batch["video"].shape[2:]), batch["fps"].tolist()
        places = [self._place(*one, size) for one in zip(batch["key"], batch["caption"], said, rates, strict=True)]
        clips = [_kept(path) for path in places]
        if any(clip is None for clip in clips):
            for rate in dict.fromkeys(rates):
                self._make([i for i, other in enumerate(rates) if other == rate], batch, said, size, places, clips)
            log.info("%d clips sampled", self.made)
        return torch.from_numpy(np.stack(clips)).permute(0, 4, 1, 2, 3)

    def _said(self, batch: VideoBatch) -> list[dict[str, Any]]:
        """Of each clip what is said besides its caption."""
        said = [{} for _ in batch["key"]] if self.graphs is None else self.graphs.of(batch)
        read = {name: batch["extras"][name] for name in self.labels.values()}
        return [one | {name: values[i] for name, values in read.items()} for i, one in enumerate(said)]

    def _make(
        self, chosen: Sequence[int], batch: VideoBatch, said: Sequence[Mapping], size: Sequence[int],
        places: Sequence[Path], clips: list[np.ndarray | None],
    ) -> None:  # fmt: skip
        """Those of a batch that have one frame rate."""
        if all(clips[i] is not None for i in chosen):
            return
        captions, keys = ([batch[name][i] for i in chosen] for name in ("caption", "key"))
        fps = float(batch["fps"][chosen[0]])
        latents = self._latents(captions, keys, [said[i] for i in chosen], size, fps)
        for i, latent in zip(chosen, latents, strict=True):
            if clips[i] is None:
                clips[i] = self.model.frames(latent).numpy()
                whole = files.encoded(clips[i], fps, format="npz", crf=0, pixel_format="")  # lossless
                files.write_whole(places[i], whole)
                self.made += 1

    def _place(self, key: str, caption: str, said: Mapping[str, Any], fps: float, size: Sequence[int]) -> Path:
        decided = json.dumps([self.decided, list(size)], sort_keys=True)
        text = json.dumps([caption, said, round(fps, 3)], sort_keys=True, default=str)
        name = f"{key}-{hashlib.sha256(text.encode()).hexdigest()[:8]}.npz"
        return self.folder / "samples" / hashlib.sha256(decided.encode()).hexdigest()[:8] / name

    def _latents(
        self, captions: Sequence[str], keys: Sequence[str], said: Sequence[Mapping], size: Sequence[int], fps: float
    ) -> Tensor:
        try:
            return self.model.latents(
                captions,
                keys,
                seed=self.protocol.seed,
                shape=self.model.latent_shape(*size),
                fps=fps,
                sampler=self.protocol.sampler,
                guidance=self.guidance,
                extras=said,
            )
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
            reason = str(error).splitlines()[0][:200]
        free_memory()
        if len(keys) == 1:
            raise RunError("one clip does not fit into memory", key="data.clip", got=reason,
                           remedy="fewer frames or a smaller size: data.clip.frames, data.clip.height")  # fmt: skip
        half = len(keys) // 2
        log.warning("out of memory with %d clips at once; batch_size=%d fits better", len(keys), half)
        parts = [slice(0, half), slice(half, None)]
        return torch.cat([self._latents(captions[p], keys[p], said[p], size, fps) for p in parts])


class Reconstructions:
    def __init__(self, autoencoder: Any):
        self.autoencoder = autoencoder.eval()

    @torch.no_grad()
    def __call__(self, batch: VideoBatch) -> Tensor:
        return to_uint8(self.autoencoder.decode(self.autoencoder.encode(batch["video"])))


def graphs_of(
    protocol: Any, model: TextToVideo, *, folder: str, data: str, root: str
) -> tuple[GraphsOfClips | None, str | None]:
    """What the model hears besides captions, if it hears graphs and shall; and the folder of its plans."""
    hears = GRAPHS in model.conditions.names
    if protocol.graphs == "planned" and not hears:
        raise RunError("this model hears no scene graphs", key="protocol.graphs", got="planned",
                       allowed="gold: nothing is said", remedy="leave it out, or name another run")  # fmt: skip
    if not hears or protocol.graphs == "none":
        return None, None
    condition, key = model.conditions.members[GRAPHS], "protocol.plans.folder"
    if protocol.graphs == "gold":
        return GraphsOfClips(condition=condition, source="gold", plans=None), None
    if folder == "auto":
        folder = str(lineage.newest_plans(root, data, protocol.split, key=key))
    lineage.plans_are_there(folder=folder, data=data, split=protocol.split, key=key)
    log.info("scene graphs are those of %s", folder)
    return GraphsOfClips(condition=condition, source="planned", plans=protocol.plans(folder=folder)), folder


def labels_of(model: TextToVideo) -> dict[str, str]:
    """Conditions besides text and graphs, such as the class of a clip, with what they read of it."""
    others = {name: m for name, m in model.conditions.members.items() if name not in (*model.heard, GRAPHS)}
    return {name: member.reads for name, member in others.items() if isinstance(getattr(member, "reads", None), str)}


def text_to_video(run: Run, device: torch.device) -> TextToVideo:
    return TextToVideo.of_run(run, run.last_checkpoint(), averaged=True, device=device, precision=None)


def autoencoder(run: Run, device: torch.device) -> Any:
    return restore.load_network(run, restore.settings_of(run), "autoencoder").to(device)


def _kept(path: Path) -> np.ndarray | None:
    try:
        with np.load(path) as arrays:
            return arrays["arr_0"]
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile):
        log.warning("%s is damaged and made again", path)
        return None
