"""Where in a clip a position is, and how noisy it is: sines and cosines (Vaswani et al., 2017), then a small network."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

MAX_PERIOD = 10_000


def sinusoidal_embedding(timestep: Tensor, width: int) -> Tensor:
    """Cosines, then sines, at `width / 2` frequencies from 1 to 1 / 10,000. Always float32: timesteps reach 1000."""
    half = width // 2
    exponent = torch.arange(half, dtype=torch.float32, device=timestep.device) / half
    frequencies = torch.exp(-math.log(MAX_PERIOD) * exponent)
    angles = timestep.float()[:, None] * frequencies  # b w/2
    return torch.cat([angles.cos(), angles.sin()], dim=-1)  # b w


def place_embedding(frames: int, height: int, width: int, waves: int, *, like: Tensor) -> Tensor:
    """Products of cosines along the three axes, up to `waves` half periods each: `t h w (waves + 1)^3 - 1`.

    Products, so that a place that moves with time is a sum of them.
    """
    number = torch.arange(waves + 1, device=like.device, dtype=torch.float32)
    along = []
    for size in (frames, height, width):
        place = (torch.arange(size, device=like.device, dtype=torch.float32) + 0.5) / size
        along.append(torch.cos(math.pi * place[:, None] * number))  # size waves+1
    products = torch.einsum("ta,hb,wc->thwabc", *along).flatten(3)
    return products[..., 1:].to(like.dtype)  # the first is 1 everywhere


class TimestepEmbedding(nn.Module):
    def __init__(self, *, width: int, hidden: int):
        super().__init__()
        self.width = width
        self.linear1 = nn.Linear(width, hidden)
        self.linear2 = nn.Linear(hidden, hidden)

    def forward(self, timestep: Tensor) -> Tensor:
        embedding = sinusoidal_embedding(timestep, self.width).to(self.linear1.weight.dtype)
        return self.linear2(nn.functional.silu(self.linear1(embedding)))  # b e


class MomentEmbedding(nn.Module):
    """What the timestep embedding says, for every frame anew: a caption can mean one thing at the beginning and another at
    the end. Starts as the same for all frames.
    """

    def __init__(self, *, width: int, hidden: int, waves: int):
        super().__init__()
        self.waves = waves
        self.moment = nn.Linear(waves, width, bias=False)
        self.linear1 = nn.Linear(width, hidden)
        self.linear2 = nn.Linear(hidden, width)
        nn.init.zeros_(self.linear2.weight)
        nn.init.zeros_(self.linear2.bias)

    def forward(self, embedding: Tensor, frames: int) -> Tensor:
        """`b e`, or `b t e`, -> `b t e`."""
        if embedding.dim() == 2:
            embedding = embedding[:, None]
        place = (torch.arange(frames, device=embedding.device, dtype=torch.float32) + 0.5) / frames
        number = torch.arange(1, self.waves + 1, device=embedding.device, dtype=torch.float32)
        moments = self.moment(torch.cos(math.pi * place[:, None] * number).to(embedding.dtype))  # t e
        inner = nn.functional.silu(embedding + moments)  # b t e
        return embedding + self.linear2(nn.functional.silu(self.linear1(inner)))
