"""Random numbers that belong to a sample, not to a batch.

Every draw comes from a generator seeded by a hash of what it is for (seed, step) and of the sample's key, on the CPU. So
sample i has the same noise alone or among others, in any order, on any number of devices of any kind, and after a resume.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import torch
from torch import Tensor


def generator_for(key: str, seed: int, *purpose: str | int) -> torch.Generator:
    """A generator of its own for each key, seed and purpose."""
    # Length before text, so that no two different lists of parts read the same.
    parts = "".join(f"{len(str(part))}:{part}" for part in (seed, *purpose, key))
    digest = hashlib.blake2b(parts.encode(), digest_size=8).digest()
    return torch.Generator("cpu").manual_seed(int.from_bytes(digest, "big") >> 1)


def noise_for(
    keys: Sequence[str],
    seed: int,
    shape: Sequence[int],
    device: torch.device | str = "cpu",
    *,
    step: int = 0,
    shared: float = 0.0,
    dtype: torch.dtype = torch.float32,
) -> Tensor:
    """Gaussian noise of shape (len(keys), *shape). `step` 0 starts a sampler, the others are what it adds on the way."""
    draws = [_noise(shape, generator_for(key, seed, "sample", step), shared, dtype) for key in keys]
    return torch.stack(draws).to(device)


def training_noise(
    keys: Sequence[str], seed: int, step: int, shape: Sequence[int], offset: float = 0.0, shared: float = 0.0
) -> tuple[Tensor, Tensor]:
    """For each sample at an optimizer step: where in the training density it lies (float64, in (0, 1)), and its noise.

    `offset` adds that much of one more draw per channel, constant over the clip (offset noise).
    """
    quantiles, noises = [], []
    for key in keys:
        generator = generator_for(key, seed, "train", step)
        quantiles.append(torch.rand((), generator=generator, dtype=torch.float64))
        noise = _noise(shape, generator, shared)
        if offset:
            noise = noise + offset * torch.randn(shape[0], *[1] * (len(shape) - 1), generator=generator)
        noises.append(noise)
    smallest = 2.0**-53  # rand can be 0, which a density need not allow
    return torch.stack(quantiles).clamp(min=smallest), torch.stack(noises)


def _noise(
    shape: Sequence[int], generator: torch.Generator, shared: float, dtype: torch.dtype = torch.float32
) -> Tensor:
    """`c t h w` of unit variance, of which the part `shared` is the same in all frames."""
    noise = torch.randn(*shape, generator=generator, dtype=dtype)
    if not shared:
        return noise
    still = torch.randn(shape[0], 1, *shape[2:], generator=generator, dtype=dtype)  # c 1 h w
    return (1 - shared) ** 0.5 * noise + shared**0.5 * still
