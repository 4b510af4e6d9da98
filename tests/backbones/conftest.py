"""A network small enough to build in every test, with weights that make every part matter."""

import pytest
import torch
from torch import nn

from vdm.backbones.unet3d import UNet3D

torch.set_num_threads(1)

SMALL = {
    "latent_channels": 3,
    "channels": 8,
    "multipliers": [1, 2],
    "blocks": 1,
    "attention_levels": [0],
    "heads": 2,
    "head_width": None,
    "depth": 1,
    "feed_forward_ratio": 2,
    "norm_groups": 4,
    "dropout": 0.0,
    "time_conditioning": "add",
    "temporal_conv": 2,
    "temporal_dropout": 0.0,
    "temporal_attention": "separate",
    "temporal_position": "none",
    "temporal_max_distance": 4,
    "temporal_in_heads": 2,
    "temporal_in_head_width": 4,
    "coordinates": 0,
    "moments": 0,
    "checkpoint_levels": [],
    "compile": False,
}


def randomise(module: nn.Module, seed: int = 0) -> nn.Module:
    """Zero-initialised layers would hide mistakes."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in module.named_parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * (0.1 if parameter.ndim > 1 else 0.3))
            if "norm" in name and name.endswith("weight"):
                parameter.add_(1)
    return module


@pytest.fixture
def build():
    """`build(channels=16, ...)`: the small network with some settings changed, randomised."""

    def make(**changes) -> UNet3D:
        return randomise(UNet3D(**(SMALL | changes)))

    return make


@pytest.fixture
def latent() -> torch.Tensor:
    return torch.randn(2, 3, 4, 6, 8, generator=torch.Generator().manual_seed(1))  # b c t h w


@pytest.fixture
def timestep() -> torch.Tensor:
    return torch.tensor([30.0, 700.5])
