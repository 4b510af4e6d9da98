"""CLIP for metrics: frames and captions in one space, by any model of open_clip with weights from a file.

Frames are prepared as CLIP was trained: shorter side resized (bicubic, antialiased), rounded to 8 bit, centre cut out.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from vdm.bounds import PositiveInt
from vdm.evaluation.keyed import Skipped
from vdm.evaluation.networks import checked, digest

LOCAL = "local-dir:"


class OpenClip:
    """Read when it is first needed.

    Args:
        model: a name of open_clip, or `local-dir:<folder>` with open_clip_config.json in it.
        weights: a checkpoint file of open_clip.
        sha256: of that file; null: not checked.
        origin, licence: said when the file is not there.
        batch_size: frames a call.
    """

    def __init__(
        self, *, model: str, weights: str, sha256: str | None, origin: str, licence: str, batch_size: PositiveInt
    ):
        self.model, self.weights, self.sha256 = model, Path(weights), sha256
        self.origin, self.licence, self.batch_size = origin, licence, batch_size

    @property
    def title(self) -> str:
        """What the model is called in the name of a number."""
        return Path(self.model.removeprefix(LOCAL)).name if self.model.startswith(LOCAL) else self.model

    @torch.no_grad()
    def pictures(self, video: Tensor) -> Tensor:
        """b f d of length 1, of clips b 3 f H W in uint8. What was asked last is remembered: metrics share it."""
        assert video.dtype == torch.uint8, "CLIP sees what viewers see"
        clip, frames = self._clip(), video.transpose(1, 2)
        mark = (hashlib.blake2b(frames.cpu().contiguous().view(-1).numpy()).digest(), tuple(frames.shape))
        if clip.last_mark != mark:
            flat = frames.flatten(0, 1).split(self.batch_size)
            parts = [clip.network.encode_image(clip.prepared(part), normalize=True).float().cpu() for part in flat]
            clip.last_mark, clip.last = mark, torch.cat(parts).unflatten(0, frames.shape[:2])
        return clip.last

    @torch.no_grad()
    def captions(self, texts: Sequence[str]) -> Tensor:
        """b d of length 1."""
        clip = self._clip()
        ids = clip.tokenizer(list(texts)).to(clip.device)
        return clip.network.encode_text(ids, normalize=True).float().cpu()

    def check_ready(self) -> None:
        checked(self.weights, self.sha256, self.origin, self.licence)

    def facts(self) -> dict[str, Any]:
        known = digest(self.weights) if self.weights.is_file() else None
        return {"network": self.model, "weights": self.weights.name, "sha256": known, "scale": "cosine, not times 100"}

    def _clip(self) -> _Clip:
        path = checked(self.weights, self.sha256, self.origin, self.licence)
        return _loaded(self.model, path, digest(path), "cuda" if torch.cuda.is_available() else "cpu")


@dataclass
class _Clip:
    network: Any
    tokenizer: Any
    device: str
    mean: Tensor
    deviation: Tensor
    size: tuple[int, int]
    last_mark: tuple | None = None
    last: Tensor = field(default_factory=lambda: torch.empty(0))

    def prepared(self, frames: Tensor) -> Tensor:
        x = frames.to(self.device).float()
        height, width = self.size
        scale = max(height / x.shape[-2], width / x.shape[-1])
        covering = max(height, round(x.shape[-2] * scale)), max(width, round(x.shape[-1] * scale))
        x = F.interpolate(x, size=covering, mode="bicubic", antialias=True, align_corners=False).round().clamp(0, 255)
        top, left = (covering[0] - height) // 2, (covering[1] - width) // 2
        return (x[..., top : top + height, left : left + width] / 255 - self.mean) / self.deviation


@lru_cache(maxsize=2)
def _loaded(model: str, path: Path, _sha256: str, device: str) -> _Clip:
    try:
        import open_clip
    except ImportError:
        raise Skipped("the package open_clip is not installed: pip install 'dysen-vdm[clip]'") from None
    try:
        # Built first and filled then: with local-dir the weights that are named would be passed over in silence.
        network = open_clip.create_model(model, pretrained=None, load_weights=False)
        open_clip.load_checkpoint(network, str(path), strict=True)
        tokenizer = open_clip.get_tokenizer(model)
    except Exception as error:  # a wrong file or name makes this library raise nearly anything
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0][:200]
        raise Skipped(f"the CLIP model {model} with {path} cannot be read: {reason}") from None
    visual = network.visual
    colours = (
        getattr(visual, "image_mean", None) or open_clip.OPENAI_DATASET_MEAN,
        getattr(visual, "image_std", None) or open_clip.OPENAI_DATASET_STD,
    )
    mean, deviation = (torch.tensor(values, device=device).view(3, 1, 1) for values in colours)
    size = visual.image_size
    size = tuple(size) if isinstance(size, tuple | list) else (size, size)
    return _Clip(network.to(device).eval().requires_grad_(False), tokenizer, device, mean, deviation, size)
