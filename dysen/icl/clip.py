"""CLIP for rewards: pictures of a video and its caption in one space, by any model of open_clip with weights from a file."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from vdm.bounds import PositiveInt
from vdm.conditions.encoders.local import open_clip_module
from vdm.devices import this_device
from vdm.errors import ConfigError

KEY = "stage.terms.video"


class Clip:
    """Read when it is first needed. Nothing is downloaded.

    Args:
        model: a name of open_clip, or `local-dir:<folder>` with its configuration.
        weights: a checkpoint file.
        frames: pictures of each video, evenly spread.
    """

    def __init__(self, *, model: str, weights: str, frames: PositiveInt, device: Literal["auto", "cpu", "cuda"]):
        if not Path(weights).is_file():
            raise ConfigError("the weights of CLIP are not on this machine, and nothing is downloaded",
                              key=f"{KEY}: weights", got=weights, remedy="name a checkpoint file of open_clip")  # fmt: skip
        self.name, self.weights, self.frames = model, weights, frames
        self.device = this_device(device, key=f"{KEY}: device")
        self._model: Any = None

    @torch.no_grad()
    def cosines(self, videos: Sequence[Tensor], captions: Sequence[str]) -> Tensor:
        """b: of each caption with the mean of what is seen in the pictures of its video."""
        seen = F.normalize(self.pictures(videos).mean(1), dim=-1)
        said = self._network().encode_text(self._tokenizer(list(captions)).to(self.device), normalize=True)
        return (seen * said).sum(-1).float().cpu()

    @torch.no_grad()
    def pictures(self, videos: Sequence[Tensor]) -> Tensor:
        """b f d, each of length 1."""
        network = self._network()
        size = network.visual.image_size
        size = tuple(size) if isinstance(size, tuple | list) else (size, size)
        chosen = []
        for video in videos:
            places = torch.linspace(0, video.shape[1] - 1, self.frames).round().long()
            chosen.append(video[:, places.to(video.device)].transpose(0, 1))  # f 3 H W
        pictures = torch.stack(chosen).to(self.device).add(1).div(2).flatten(0, 1)
        pictures = F.interpolate(pictures, size=size, mode="bicubic", antialias=True, align_corners=False).clamp(0, 1)
        mean, std = (torch.tensor(values, device=self.device).view(3, 1, 1) for values in self._colours)
        found = network.encode_image((pictures - mean) / std, normalize=True)
        return found.view(len(videos), self.frames, -1)

    def __call__(self, videos: Tensor) -> Tensor:
        """As features of videos: b fd."""
        return self.pictures(list(videos)).flatten(1).float().cpu()

    def _network(self) -> Any:
        if self._model is None:
            open_clip = open_clip_module()
            try:
                # Built first and filled then: with local-dir the weights that are named would be passed over in silence.
                network = open_clip.create_model(self.name, pretrained=None, load_weights=False)
                open_clip.load_checkpoint(network, self.weights, strict=True)
                self._tokenizer = open_clip.get_tokenizer(self.name)
            except Exception as error:  # a wrong file or name makes this library raise nearly anything
                reason = (str(error).strip().splitlines() or [type(error).__name__])[0][:200]
                raise ConfigError("this CLIP model cannot be read", key=f"{KEY}: model, weights",
                                  got=f"{self.name}, {self.weights}: {reason}") from error  # fmt: skip
            visual = network.visual
            self._colours = (
                getattr(visual, "image_mean", None) or open_clip.OPENAI_DATASET_MEAN,
                getattr(visual, "image_std", None) or open_clip.OPENAI_DATASET_STD,
            )
            self._model = network.to(self.device).eval().requires_grad_(False)
        return self._model
