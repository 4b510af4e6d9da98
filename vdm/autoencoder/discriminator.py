"""Patch discriminators (Isola et al., 2017): one logit for each patch of a frame, or of a clip."""

from __future__ import annotations

from typing import Literal

import torch
from einops import rearrange
from torch import Tensor, nn
from torch.nn import functional as F

from vdm.bounds import PositiveInt


class PatchDiscriminator(nn.Module):
    """`dims=2` judges single frames, as the paper does; `dims=3` judges clips and so their motion."""

    def __init__(
        self, *, dims: Literal[2, 3], channels: PositiveInt, layers: PositiveInt, norm: Literal["batch", "group"]
    ):
        super().__init__()
        self.dims = dims
        conv = nn.Conv2d if dims == 2 else nn.Conv3d
        # Clips are halved in space only: they have few frames.
        kernel, halve, keep = (4, 2, 1) if dims == 2 else ((3, 4, 4), (1, 2, 2), (1, 1, 1))

        def normalisation(width: int) -> nn.Module:
            if norm == "group":
                return nn.GroupNorm(min(32, width), width)
            return (nn.BatchNorm2d if dims == 2 else nn.BatchNorm3d)(width)

        modules: list[nn.Module] = [conv(3, channels, kernel, halve, 1), nn.LeakyReLU(0.2)]
        width = channels
        for layer in range(1, layers + 1):
            out = channels * min(2**layer, 8)
            stride = halve if layer < layers else keep
            modules += [conv(width, out, kernel, stride, 1, bias=False), normalisation(out), nn.LeakyReLU(0.2)]
            width = out
        modules.append(conv(width, 1, kernel, keep, 1))
        self.net = nn.Sequential(*modules)
        for module in self.modules():
            if isinstance(module, nn.Conv2d | nn.Conv3d):
                nn.init.normal_(module.weight, 0.0, 0.02)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)

    def forward(self, video: Tensor) -> Tensor:
        """Logits of `b 3 T H W`, of any shape."""
        return self.net(rearrange(video, "b c t h w -> (b t) c h w") if self.dims == 2 else video)


def hinge(real: Tensor, fake: Tensor) -> Tensor:
    """Discriminator's loss on logits of real and generated videos."""
    return 0.5 * (F.relu(1.0 - real).mean() + F.relu(1.0 + fake).mean())


def call_frozen(module: nn.Module, x: Tensor) -> Tensor:
    """`module(x)` with a gradient to `x` but none to the weights, and no change of running statistics."""
    state = {name: p.detach() for name, p in module.named_parameters()}
    state |= {name: b.clone() for name, b in module.named_buffers()}
    return torch.func.functional_call(module, state, (x,))
