"""The maths of distances: golden values, other implementations, and what resampling says about the spread."""

import math

import numpy as np
import pytest
import scipy.linalg
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from vdm.evaluation.distances import (
    floor,
    frechet_distance,
    frechet_draws,
    frechet_of_gaussians,
    inception_score,
    interval,
    kernel_distance,
    kernel_draws,
)


def features(n, d, seed, shift=0.0, scale=1.0):
    generator = torch.Generator().manual_seed(seed)
    mix = torch.randn(d, d, generator=torch.Generator().manual_seed(99), dtype=torch.float64)
    return torch.randn(n, d, generator=generator, dtype=torch.float64) @ mix * scale + shift


def by_scipy(real, made):
    a, b = real.numpy(), made.numpy()
    covariances = [np.atleast_2d(np.cov(x, rowvar=False)) for x in (a, b)]
    root = scipy.linalg.sqrtm(covariances[0] @ covariances[1])
    apart = ((a.mean(0) - b.mean(0)) ** 2).sum()
    return float(apart + np.trace(covariances[0]) + np.trace(covariances[1]) - 2 * np.trace(root).real)


def test_two_known_gaussians():
    # One dimension: (m1 - m2)^2 + (s1 - s2)^2; independent dimensions add up.
    mean_a, mean_b = torch.tensor([0.0, 1.0]), torch.tensor([3.0, 1.0])
    cov_a, cov_b = torch.diag(torch.tensor([4.0, 9.0])), torch.diag(torch.tensor([1.0, 25.0]))
    assert frechet_of_gaussians(mean_a, cov_a, mean_b, cov_b) == pytest.approx(9 + 1 + 4, abs=1e-12)
    # A quarter turn between two that do not commute, by the closed form for 2 x 2: tr root = sqrt(tr M + 2 sqrt det M).
    a = torch.tensor([[2.0, 1.0], [1.0, 2.0]], dtype=torch.float64)
    b = torch.tensor([[3.0, -1.0], [-1.0, 1.0]], dtype=torch.float64)
    root = math.sqrt((a @ b).trace() + 2 * math.sqrt(torch.linalg.det(a @ b)))
    zero = torch.zeros(2)
    assert frechet_of_gaussians(zero, a, zero, b) == pytest.approx(4 + 4 - 2 * root, abs=1e-12)


@pytest.mark.parametrize(("n", "m", "d"), [(200, 150, 12), (40, 300, 12), (30, 25, 12), (50, 50, 1)])
def test_frechet_is_that_of_scipy(n, m, d):
    real, made = features(n, d, 0), features(m, d, 1, shift=0.3, scale=1.2)
    expected = by_scipy(real, made)
    assert frechet_distance(real, made) == pytest.approx(expected, rel=1e-6)
    stored = [value for x in (real, made) for value in (x.mean(0), torch.atleast_2d(torch.cov(x.T)))]
    assert frechet_of_gaussians(*stored) == pytest.approx(frechet_distance(real, made), rel=1e-6)


def test_frechet_is_that_of_torchmetrics():
    from torchmetrics.image.fid import _compute_fid

    real, made = features(300, 10, 2), features(280, 10, 3, shift=0.5)
    theirs = _compute_fid(real.mean(0), torch.cov(real.T), made.mean(0), torch.cov(made.T))
    assert frechet_distance(real, made) == pytest.approx(theirs.item(), rel=1e-8)


@pytest.mark.parametrize("n", [2, 5, 40])  # fewer samples than dimensions: singular covariances
def test_frechet_of_a_set_with_itself_is_zero(n):
    x = features(n, 20, 4) * 1e3
    assert frechet_distance(x, x.flip(0)) == pytest.approx(0, abs=1e-6)
    constant = torch.full((n, 20), 3.0)
    assert frechet_distance(constant, constant + 2) == pytest.approx(80)


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 10**6), st.integers(2, 12), st.integers(1, 8), st.floats(0.1, 5), st.floats(-3, 3))
def test_frechet_is_symmetric_and_never_negative(seed, n, d, scale, shift):
    a, b = features(n, d, seed), features(n + 3, d, seed + 1, shift, scale)
    there, back = frechet_distance(a, b), frechet_distance(b, a)
    assert there >= 0
    assert there == pytest.approx(back, rel=1e-8, abs=1e-8)
    turn = torch.linalg.qr(torch.randn(d, d, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))).Q
    assert frechet_distance(a @ turn + 1, b @ turn + 1) == pytest.approx(there, rel=1e-6, abs=1e-7)


def test_kernel_distance_by_hand():
    x, y = features(7, 4, 5), features(6, 4, 6, shift=0.2)

    def kernel(a, b):
        return (float(a @ b) / 4 + 1) ** 3

    inner = sum(kernel(x[i], x[j]) for i in range(7) for j in range(7) if i != j) / 42
    inner += sum(kernel(y[i], y[j]) for i in range(6) for j in range(6) if i != j) / 30
    across = sum(kernel(a, b) for a in x for b in y) / 42
    assert kernel_distance(x, y) == pytest.approx(inner - 2 * across, rel=1e-12)


def test_kernel_distance_has_no_bias_and_its_draws_keep_that():
    values = [kernel_distance(features(40, 3, 2 * i), features(40, 3, 2 * i + 1)) for i in range(200)]
    spread = torch.tensor(values).std().item()
    assert abs(sum(values) / 200) < 4 * spread / math.sqrt(200)
    assert min(values) < 0
    real, made = features(200, 3, 7), features(200, 3, 8, shift=0.3)
    drawn = kernel_draws(real, made, draws=200, seed=0)
    found = torch.tensor(drawn)
    assert found.mean().item() == pytest.approx(
        kernel_distance(real, made), abs=3 * found.std().item() / math.sqrt(200)
    )


def test_inception_score_of_known_distributions():
    sure = torch.eye(4).repeat(10, 1)  # each of four classes as often: the score is their number
    assert inception_score(sure, splits=10) == pytest.approx((4, 0), abs=1e-12)
    assert inception_score(torch.full((40, 4), 0.25), splits=10) == pytest.approx((1, 0))
    assert inception_score(torch.eye(4)[[0] * 40], splits=10) == pytest.approx((1, 0)), "one class only"
    mixed = torch.cat([torch.eye(4)[[0] * 20], torch.eye(4)[[1] * 20]])
    assert inception_score(mixed, splits=2) == pytest.approx((1, 0)), "each part has one class"
    assert inception_score(mixed, splits=1) == pytest.approx((2, 0))
    half = torch.tensor([[0.75, 0.25], [0.25, 0.75]])
    expected = math.exp(0.75 * math.log(1.5) + 0.25 * math.log(0.5))
    assert inception_score(half, splits=1)[0] == pytest.approx(expected)
    # Of frames: all of a clip in one part.
    frames = torch.eye(4)[[0, 1]].expand(6, 2, 4)
    assert inception_score(frames, splits=6) == pytest.approx((2, 0))
    with pytest.raises(ValueError, match="split"):
        inception_score(sure[:5], splits=10)


def test_inception_score_is_that_of_torchmetrics():
    from torchmetrics.image.inception import InceptionScore

    logits = torch.randn(50, 7, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    theirs = InceptionScore(feature=torch.nn.Flatten(), splits=1)
    theirs.features = [logits]
    assert inception_score(logits.softmax(1), splits=1)[0] == pytest.approx(theirs.compute()[0].item(), rel=1e-9)


def test_interval_is_as_wide_as_the_distance_varies():
    def value(seed):
        return frechet_distance(features(120, 4, 2 * seed), features(120, 4, 2 * seed + 1, shift=0.5))

    actual = torch.tensor([value(seed) for seed in range(10, 90)]).std().item()
    real, made = features(120, 4, 0), features(120, 4, 1, shift=0.5)
    drawn = frechet_draws(real, made, draws=100, seed=0)
    low, high = interval(value(0), drawn, level=0.95)
    assert low < value(0) < high
    assert 0.6 < (high - low) / (2 * 1.96 * actual) < 1.6
    assert frechet_draws(real, made, draws=3, seed=0) == drawn[:3]
    # With few samples every draw is larger than the distance: the interval stays around it all the same.
    real, made = features(30, 20, 0), features(30, 20, 1)
    drawn, value = frechet_draws(real, made, draws=50, seed=0), frechet_distance(real, made)
    assert min(drawn) > value
    low, high = interval(value, drawn, level=0.95)
    assert low < value < high


def test_floor_compares_equal_counts():
    real, alike, other = features(200, 6, 0), features(100, 6, 1), features(100, 6, 2, shift=2.0)
    lowest, matched, count = floor(frechet_distance, real, alike, splits=5, seed=0)
    assert count == 100
    assert matched == pytest.approx(lowest, rel=0.25), "as good as real ones"
    assert lowest > 0, "real clips are never at 0"
    assert floor(frechet_distance, real, other, splits=5, seed=0)[1] > 5 * lowest
    assert floor(frechet_distance, real[:60], alike, splits=5, seed=0)[2] == 30


def test_distance_falls_with_the_number_of_samples():
    few, many = (frechet_distance(features(n, 6, 0), features(n, 6, 1)) for n in (20, 500))
    assert few > 5 * many
