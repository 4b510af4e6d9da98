"""Distances of two sets of features, and the Inception score: plain maths in float64, without networks or files.

A set is `n d`, or `n f d` for clips of which f frames were looked at: clips are then drawn, split and counted, never frames.
Nothing here takes the square root of a covariance matrix, nothing is added to a diagonal, no complex number appears.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

Distance = Callable[[Tensor, Tensor], float]


def frechet_distance(real: Tensor, made: Tensor) -> float:
    """Of the Gaussians with the mean and covariance (n - 1) of each set. It is too large by a part that falls with n."""
    return _frechet(*_mean_and_root(real), *_mean_and_root(made))


def frechet_of_gaussians(mean_a: Tensor, covariance_a: Tensor, mean_b: Tensor, covariance_b: Tensor) -> float:
    """The same from stored means `d` and covariances `d d`."""
    return _frechet(mean_a.double(), _root(covariance_a), mean_b.double(), _root(covariance_b))


def _frechet(mean_a: Tensor, root_a: Tensor, mean_b: Tensor, root_b: Tensor) -> float:
    """With covariances A'A and B'B the trace of (A'A B'B)^1/2 is the sum of the singular values of AB'."""
    shared = torch.linalg.svdvals(root_a @ root_b.mT).sum()
    apart = (mean_a - mean_b).square().sum()
    return max(0.0, (apart + root_a.square().sum() + root_b.square().sum() - 2 * shared).item())


def _mean_and_root(features: Tensor) -> tuple[Tensor, Tensor]:
    x = _flat(features)
    if len(x) < 2:
        raise ValueError(f"a covariance needs at least two samples, got {len(x)}")
    mean = x.mean(0)
    root = (x - mean) / math.sqrt(len(x) - 1)  # n d
    if len(x) > x.shape[1]:
        root = torch.linalg.qr(root, mode="r").R  # d d, with the same product
    return mean, root


def _root(covariance: Tensor) -> Tensor:
    values, vectors = torch.linalg.eigh((covariance.double() + covariance.double().mT) / 2)
    return values.clamp_min(0).sqrt()[:, None] * vectors.mT


def kernel_distance(real: Tensor, made: Tensor) -> float:
    """Unbiased squared MMD with the kernel (x.y / d + 1)^3 of KID and KVD, of all pairs: it may be below 0."""
    return KernelSums(real, made).distance()


class KernelSums:
    """The kernel of every pair, kept, so that drawing again costs next to nothing."""

    def __init__(self, real: Tensor, made: Tensor):
        x, y = _flat(real), _flat(made)
        if min(len(x), len(y)) < 2:
            raise ValueError(f"the unbiased form needs two samples on each side, got {len(x)} and {len(y)}")
        self.within = [_kernel(x, x).fill_diagonal_(0), _kernel(y, y).fill_diagonal_(0)]
        self.across = _kernel(x, y)

    def distance(self) -> float:
        return self._weighted(*(torch.ones(n, dtype=torch.float64) for n in self.across.shape))

    def drawn(self, generator: torch.Generator) -> float:
        """Of a bootstrap sample. A clip that was drawn twice is never compared with itself."""
        return self._weighted(
            *(
                torch.bincount(torch.randint(n, (n,), generator=generator), minlength=n).double()
                for n in self.across.shape
            )
        )

    def _weighted(self, a: Tensor, b: Tensor) -> float:
        inner = [w @ k @ w / (w.sum().square() - w.square().sum()) for w, k in zip((a, b), self.within, strict=True)]
        return (inner[0] + inner[1] - 2 * (a @ self.across @ b) / (a.sum() * b.sum())).item()


def _kernel(x: Tensor, y: Tensor) -> Tensor:
    return (x @ y.mT / x.shape[1] + 1) ** 3


def inception_score(probabilities: Tensor, *, splits: int) -> tuple[float, float]:
    """Mean and deviation over `splits` equal parts of exp(mean KL(p(y|x) || p(y))). Rows `n c` or `n f c` sum to one."""
    n = len(probabilities)
    if n < splits:
        raise ValueError(f"{n} samples cannot be split into {splits} parts")
    scores = []
    for i in range(splits):
        p = _flat(probabilities[i * n // splits : (i + 1) * n // splits])
        marginal = p.mean(0, keepdim=True)
        # A class nobody shows has p = 0 on both sides and adds nothing.
        divergence = torch.special.xlogy(p, p) - torch.special.xlogy(p, marginal)
        scores.append(divergence.sum(1).mean().exp())
    found = torch.stack(scores)
    return found.mean().item(), found.std(correction=0).item()


def frechet_draws(real: Tensor, made: Tensor, *, draws: int, seed: int) -> list[float]:
    """Frechet distances of bootstrap samples of both sides."""
    generator = torch.Generator().manual_seed(seed)
    return [
        frechet_distance(*(x[torch.randint(len(x), (len(x),), generator=generator)] for x in (real, made)))
        for _ in range(draws)
    ]


def kernel_draws(real: Tensor, made: Tensor, *, draws: int, seed: int) -> list[float]:
    """Kernel distances of bootstrap samples of both sides."""
    generator = torch.Generator().manual_seed(seed)
    sums = KernelSums(real, made)
    return [sums.drawn(generator) for _ in range(draws)]


def interval(value: float, drawn: list[float], *, level: float) -> tuple[float, float]:
    """Around `value`, as wide as the draws spread.

    Draws repeat samples, which makes a Frechet distance larger as fewer samples would: their spread is used, not their place.
    """
    found = torch.tensor(drawn, dtype=torch.float64)
    edges = torch.tensor([(1 - level) / 2, (1 + level) / 2], dtype=torch.float64)
    low, high = (value + torch.quantile(found - found.mean(), edges)).tolist()
    return low, high


def floor(distance: Distance, real: Tensor, made: Tensor, *, splits: int, seed: int) -> tuple[float, float, int]:
    """What real clips get: `count` of them against as many others, and `count` made ones against the same real ones.

    Both are means over random splits. Only these two may be compared: a distance depends on the number of samples.
    """
    count = min(len(made), len(real) // 2)
    generator = torch.Generator().manual_seed(seed)
    real_against_real, made_against_real = [], []
    for _ in range(splits):
        order, chosen = (torch.randperm(len(x), generator=generator) for x in (real, made))
        ours, others = real[order[:count]], real[order[count : 2 * count]]
        real_against_real.append(distance(ours, others))
        made_against_real.append(distance(ours, made[chosen[:count]]))
    return sum(real_against_real) / splits, sum(made_against_real) / splits, count


def _flat(features: Tensor) -> Tensor:
    return features.double().flatten(0, -2)
