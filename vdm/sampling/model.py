"""The networks of a run as one thing that turns prompts into videos."""

from __future__ import annotations

import functools
import gc
import logging
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
from hydra.utils import instantiate
from torch import Tensor, nn

from vdm import checkpoint, restore
from vdm.autoencoder.base import VideoAutoencoder
from vdm.autoencoder.tiling import Tiling
from vdm.conditions.base import ConditionSet
from vdm.conditions.text import TextCondition
from vdm.diffusion.guidance import Guidance, Subset, guided
from vdm.diffusion.objective import Objective
from vdm.errors import ConfigError, RunError
from vdm.runs import Run
from vdm.types import Controls, LatentShape
from vdm.video import to_uint8

log = logging.getLogger(__name__)

Sampler = Callable[..., Tensor]
Signals = Mapping[str, Any]  # what is said to other conditions than the text, by their names
NOTHING_ELSE: Signals = {}
REMEMBERED = 64  # prompts whose text is kept encoded: copies of a prompt come one after the other


class TextToVideo:
    """Sample i depends on (seed, key, prompt, settings), not on what else is in its batch.

    Args:
        precision: of the networks' arithmetic; None: that of their weights.
    """

    def __init__(
        self,
        *,
        autoencoder: VideoAutoencoder,
        backbone: nn.Module,
        objective: Objective,
        conditions: ConditionSet,
        device: torch.device,
        precision: torch.dtype | None,
    ):
        self.autoencoder, self.backbone, self.conditions = (
            network.to(device).eval().requires_grad_(False) for network in (autoencoder, backbone, conditions)
        )
        self.objective, self.device, self.precision = objective, device, precision
        self.heard = tuple(name for name, m in conditions.members.items() if isinstance(m, TextCondition))
        self._negative: str | None = None
        self._said: dict[tuple[str, int, Subset, LatentShape], tuple[Signals, Controls]] = {}

    @classmethod
    def of_run(
        cls, run: Run, folder: Path, *, averaged: bool, device: torch.device, precision: torch.dtype | None
    ) -> TextToVideo:
        """From one checkpoint of a run. Nothing outside the packages of the networks is built."""
        settings = restore.settings_of(run, needs=restore.VIDEO_MODEL)
        nodes = {name: restore.checked(settings, name, run) for name in restore.VIDEO_MODEL}
        autoencoder, backbone = (instantiate(nodes[name], _convert_="all") for name in ("autoencoder", "backbone"))
        members = {name: instantiate(node, _convert_="all") for name, node in nodes["condition"].items()}
        conditions = ConditionSet(members=members, joint_drop_prob=0.0, joint_keep_prob=0.0)
        backbone.open_doors(
            streams=conditions.streams, concat_channels=conditions.concat_channels, embed_width=conditions.embed_width
        )
        stored = checkpoint.read_manifest(folder)["files"]
        for name, network in {"autoencoder": autoencoder, "backbone": backbone, "conditions": conditions}.items():
            absent = f"weights/{name}.safetensors" not in stored and not network.state_dict()  # all of it is frozen
            tensors = {} if absent else checkpoint.network_weights(folder, name, averaged=averaged)
            checkpoint.load_weights(network, tensors, source=f"{folder}: {name}")
        return cls(
            autoencoder=autoencoder,
            backbone=backbone,
            objective=instantiate(nodes["objective"], _convert_="all"),
            conditions=conditions,
            device=device,
            precision=precision,
        )

    def latent_shape(self, frames: int, height: int, width: int) -> LatentShape:
        """A ConfigError where the strides of the networks do not divide the clip."""
        steps = self.autoencoder.stride[0], *(step * self.backbone.stride for step in self.autoencoder.stride[1:])
        sizes = {"frames": frames, "height": height, "width": width}
        for (axis, size), step in zip(sizes.items(), steps, strict=True):
            if size % step:
                below, above = size // step * step, (size // step + 1) * step
                fitting = {**sizes, axis: below or above}
                near = (
                    f"frames={fitting['frames']}"
                    if axis == "frames"
                    else f"size={fitting['height']}x{fitting['width']}"
                )
                raise ConfigError(
                    f"the networks of this run make clips whose {axis} is a multiple of {step}",
                    key="frames" if axis == "frames" else "size",
                    got=size if axis == "frames" else f"{height}x{width} (height x width)",
                    allowed=f"{axis}: multiples of {step}",
                    remedy=f"set {near}",
                )
        return self.autoencoder.latent_shape(frames, height, width)

    @property
    def ends_in_noise(self) -> bool:
        """Whether nothing of a clip is left at the last timestep of training."""
        schedule = self.objective.schedule
        return schedule.levels(torch.tensor(schedule.first + schedule.num_timesteps - 1.0))[0].item() == 0

    def decode_in_tiles(self, tiling: Tiling) -> None:
        tiling.check(self.autoencoder.stride)
        self.autoencoder.tiling = tiling

    def say_instead(self, negative: str | None) -> None:
        """What guidance points away from."""
        if negative is not None and not self.heard:
            raise ConfigError("this model hears no text", key="negative_prompt", got=negative, allowed="null")
        self._negative = negative
        self._said.clear()

    @torch.inference_mode()
    def latents(
        self,
        prompts: Sequence[str],
        keys: Sequence[str],
        *,
        seed: int,
        shape: LatentShape,
        fps: float,
        sampler: Sampler,
        guidance: Guidance,
        extras: Sequence[Signals] | None = None,
        batched: bool = True,
        callback: Callable[..., None] | None = None,
    ) -> Tensor:
        """Clean latents `b c t h w`.

        Args:
            extras: for each sample what else is said, as `extras` of a batch hold it for one clip. The same object for
                several samples is read once.
            batched: False runs the branches of guidance one after the other.
        """
        signals = [NOTHING_ELSE] * len(prompts) if extras is None else extras

        def controls(subset: Subset) -> Controls:
            pairs = zip(prompts, signals, strict=True)
            return Controls.cat([self._controls(prompt, subset, shape, fps, said) for prompt, said in pairs])

        with self._arithmetic():
            predict = guided(
                self._predictor,
                controls,
                guidance,
                num_timesteps=self.objective.schedule.num_timesteps,
                batched=batched,
                shared=True,
            )
            return sampler(
                self.objective.denoiser_of(predict),
                self.objective.noise(keys, seed, shape, self.device),
                self.objective.schedule.at_resolution(shape),
                step_noise=lambda step: self.objective.noise(keys, seed, shape, self.device, step=step),
                callback=callback,
            )

    @torch.inference_mode()
    def frames(self, latent: Tensor) -> Tensor:
        """The video T H W 3 in uint8 of one latent `c t h w`, on the CPU."""
        with self._arithmetic():
            video = self.autoencoder.decode(latent[None])[0]
        if not torch.isfinite(video).all():
            remedy = "use precision=fp32, less guidance, or another checkpoint of the run"
            raise RunError("the sample is not finite", key="precision", got="nan or inf in the video", remedy=remedy)
        return to_uint8(video).permute(1, 2, 3, 0).cpu()

    def _predictor(self, controls: Controls) -> Callable[[Tensor, Tensor], Tensor]:
        prepared = self.backbone.prepare(controls)  # keys and values of all tokens: once a video, not once a step
        return functools.partial(self.backbone, controls=prepared)

    def _controls(
        self, prompt: str, subset: Subset, shape: LatentShape, fps: float, signals: Signals = NOTHING_ELSE
    ) -> Controls:
        """Of one sample, each prompt by itself: what is heard of it does not depend on its neighbours."""
        signals = signals if subset - set(self.heard) else NOTHING_ELSE
        # The signals are kept with what they say, so no other object takes their id.
        place = (prompt if subset else "", id(signals), subset, shape)
        if place not in self._said:
            if len(self._said) >= 2 * REMEMBERED:
                del self._said[next(iter(self._said))]
            batch: dict[str, Any] = {"key": [""], "caption": [prompt], "fps": torch.tensor([fps], device=self.device)}
            batch["extras"] = {name: _as_batch(value) for name, value in signals.items()}
            instead = {}
            if self._negative is not None and not subset:
                instead = {name: self.conditions.members[name].say([self._negative]) for name in self.heard}
            self._said[place] = signals, self.conditions.controls_for(batch, shape, instead=instead)(subset)
        return self._said[place][1]

    def _arithmetic(self):
        if self.precision is None:
            return nullcontext()
        return torch.autocast(self.device.type, dtype=self.precision)


def _as_batch(value: Any) -> Any:
    """One clip's signal as a batch of one: a tensor gets an axis, anything else a list."""
    return value[None] if isinstance(value, Tensor) else [value]


def is_out_of_memory(error: BaseException) -> bool:
    """Of a GPU or of the machine."""
    return isinstance(error, torch.OutOfMemoryError | MemoryError) or "can't allocate memory" in str(error)


def free_memory() -> None:
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
