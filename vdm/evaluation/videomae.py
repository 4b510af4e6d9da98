"""Features of VideoMAE from a folder of transformers: they see motion better than those of I3D, and have another scale."""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from vdm.bounds import PositiveInt
from vdm.evaluation.keyed import Skipped
from vdm.evaluation.networks import checked, digest

MEAN, DEVIATION = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # of the pixels it was trained on


class VideoMAE:
    """What a fine-tuned VideoMAE computes before its classes, of 8-bit clips with as many frames as it was trained on.

    Args:
        folder: with config.json and model.safetensors.
        sha256: of model.safetensors; null: not checked.
        origin, licence: said when the folder is not there.
    """

    def __init__(self, *, folder: str, sha256: str | None, origin: str, licence: str, batch_size: PositiveInt):
        self.folder, self.sha256, self.origin, self.licence = Path(folder), sha256, origin, licence
        self.batch_size = batch_size

    @property
    def file(self) -> Path:
        return self.folder / "model.safetensors"

    @torch.no_grad()
    def __call__(self, pictures: Tensor) -> Tensor:
        """b d in float32, on the CPU."""
        assert pictures.dtype == torch.uint8, "networks see what viewers see"
        checked(self.file, self.sha256, self.origin, self.licence)
        device = "cuda" if torch.cuda.is_available() else "cpu"
        network, parts = _loaded(self.folder, digest(self.file), device), []
        size, frames = network.config.image_size, network.config.num_frames
        if pictures.shape[2] != frames:
            raise Skipped(f"clips have {pictures.shape[2]} frames, and this VideoMAE takes {frames}")
        mean, deviation = (torch.tensor(values, device=device).view(3, 1, 1) for values in (MEAN, DEVIATION))
        for part in pictures.split(self.batch_size):
            x = part.to(device).transpose(1, 2).float() / 255  # b T 3 H W
            x = F.interpolate(x.flatten(0, 1), size=(size, size), mode="bilinear", antialias=True, align_corners=False)
            x = ((x - mean) / deviation).unflatten(0, (len(part), frames))
            parts.append(network(pixel_values=x).logits.float().cpu())
        return torch.cat(parts)

    def check_ready(self) -> None:
        checked(self.file, self.sha256, self.origin, self.licence)

    def facts(self) -> dict[str, Any]:
        known = digest(self.file) if self.file.is_file() else None
        return {"network": self.folder.name, "sha256": known, "resize": "bilinear, antialiased, both sides"}


@lru_cache(maxsize=1)
def _loaded(folder: Path, _sha256: str, device: str) -> Any:
    try:
        from transformers import VideoMAEForVideoClassification
    except ImportError:
        raise Skipped("the package transformers is not installed: pip install 'dysen-vdm[diffusers]'") from None
    try:
        network, report = VideoMAEForVideoClassification.from_pretrained(
            folder, local_files_only=True, dtype=torch.float32, output_loading_info=True
        )
    except Exception as error:  # a damaged folder makes this library raise nearly anything
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0][:200]
        raise Skipped(f"{folder} cannot be read as a VideoMAE: {reason}") from None
    missing = sorted(str(key) for key in report["missing_keys"] if not str(key).startswith("classifier."))
    if missing or not network.config.use_mean_pooling:
        raise Skipped(f"{folder} is not a VideoMAE that was fine-tuned on classes: missing {', '.join(missing[:3])}")
    network.classifier = torch.nn.Identity()
    return network.to(device).eval().requires_grad_(False)
