"""The objective against written-out formulas, and against what a perfect backbone would reach."""

import math

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from vdm.diffusion.density import LogitNormal, Uniform
from vdm.diffusion.objective import Objective
from vdm.diffusion.schedule import Flow, scaled_linear
from vdm.errors import ConfigError
from vdm.types import Controls, LatentShape

BETAS = {"num_timesteps": 1000, "beta_start": 0.00085, "beta_end": 0.012}
SHAPE = LatentShape(2, 3, 4, 4)
KEYS = ["a", "b", "c", "d", "e"]
PREDICTIONS = ["epsilon", "v", "x0", "velocity"]


def objective(kind="epsilon", *, schedule=None, **settings):
    if schedule is None:
        schedule = scaled_linear(**BETAS, zero_terminal_snr=kind == "v")
    plain = {
        "density": Uniform(),
        "loss": "l2",
        "huber_delta": 1.0,
        "min_snr_gamma": None,
        "offset_noise": 0.0,
        "shared_noise": 0.0,
    }
    return Objective(schedule=schedule, prediction=kind, **(plain | settings))


def flow(shift=1.0, base_tokens=None):
    return Flow(num_timesteps=1000, shift=shift, base_tokens=base_tokens)


def latent(keys=KEYS):
    return torch.randn(len(keys), *SHAPE, generator=torch.Generator().manual_seed(3))


class Recorder(nn.Module):
    """A backbone with one number in it, that remembers what it was asked."""

    def __init__(self):
        super().__init__()
        self.scale = nn.Parameter(torch.tensor(0.3))

    def forward(self, x, timestep, controls):
        self.x, self.timestep, self.controls = x, timestep, controls
        return self.scale * x


class Clairvoyant:
    """Knows the clean latent, and answers in the language of the objective."""

    def __init__(self, kind, schedule, clean):
        self.kind, self.schedule, self.clean = kind, schedule, clean

    def __call__(self, x, timestep, controls):
        alpha, sigma = (level.view(-1, 1, 1, 1, 1) for level in self.schedule.levels(timestep))
        epsilon = (x - alpha * self.clean) / sigma
        answers = {
            "epsilon": epsilon,
            "x0": self.clean,
            "v": alpha * epsilon - sigma * self.clean,
            "velocity": epsilon - self.clean,
        }
        return answers[self.kind]


def draw(one, keys=KEYS, step=0):
    return one.draw(keys, 0, step, SHAPE, "cpu")


def loss_of(one, backbone, step=0):
    noise, timestep, _ = draw(one, step=step)
    return one(backbone, latent(), Controls(), noise=noise, timestep=timestep)


@pytest.mark.parametrize(
    ("kind", "schedule"), [(k, "table") for k in PREDICTIONS] + [(k, "flow") for k in PREDICTIONS[1:]]
)
def test_a_perfect_backbone_has_no_loss(kind, schedule):
    one = objective(kind, schedule=flow() if schedule == "flow" else None)
    perfect = Clairvoyant(kind, one.schedule, latent().double())
    loss = loss_of(one, perfect)
    assert loss.shape == (5,)
    assert loss.dtype == torch.float32
    assert loss.max() < 1e-8


@pytest.mark.parametrize("kind", PREDICTIONS)
def test_loss_is_the_written_formula(kind):
    one, backbone, clean = objective(kind), Recorder(), latent()
    noise, timestep, _ = draw(one)
    loss = one(backbone, clean, Controls(), noise=noise, timestep=timestep)
    alpha, sigma = (level.float().view(-1, 1, 1, 1, 1) for level in one.schedule.levels(timestep))
    x = alpha * clean + sigma * noise
    wanted = {"epsilon": noise, "x0": clean, "v": alpha * noise - sigma * clean, "velocity": noise - clean}[kind]
    torch.testing.assert_close(backbone.x, x)
    torch.testing.assert_close(loss, ((0.3 * x - wanted) ** 2).mean(dim=(1, 2, 3, 4)))
    loss.mean().backward()
    assert backbone.scale.grad.abs() > 0


@pytest.mark.parametrize(
    ("loss", "formula"),
    [
        ("l1", lambda a, b: (a - b).abs()),
        ("l2", lambda a, b: (a - b) ** 2),
        ("huber", lambda a, b: F.huber_loss(a, b, reduction="none", delta=0.5)),
    ],
)
def test_losses(loss, formula):
    one = objective(loss=loss, huber_delta=0.5)
    noise, timestep, _ = draw(one)
    backbone = Recorder()
    found = one(backbone, latent(), Controls(), noise=noise, timestep=timestep)
    torch.testing.assert_close(found, formula(0.3 * backbone.x, noise).mean(dim=(1, 2, 3, 4)))


def test_controls_and_timesteps_reach_the_backbone():
    one, backbone, controls = objective(), Recorder(), Controls(embed=torch.ones(5, 2))
    noise, timestep, _ = draw(one)
    one(backbone, latent(), controls, noise=noise, timestep=timestep)
    assert backbone.controls is controls
    assert backbone.timestep is timestep


@pytest.mark.parametrize("schedule", [None, flow(), flow(3.0)], ids=["table", "flow", "shifted"])
def test_a_draw_belongs_to_its_sample(schedule):
    one = objective("velocity", schedule=schedule, density=LogitNormal(mean=0.0, std=1.0), offset_noise=0.1)
    together, apart = draw(one), draw(one, keys=["d", "b"])
    for whole, part in zip(together, apart, strict=True):
        assert part.equal(whole[[3, 1]])
    assert not draw(one, step=1).noise.equal(together.noise)
    assert together.timestep.dtype == torch.float32


def test_permuting_a_batch_permutes_its_losses():
    one, backbone, order = objective(), Recorder(), torch.tensor([3, 0, 4, 1, 2])
    noise, timestep, _ = draw(one)
    loss = one(backbone, latent(), Controls(), noise=noise, timestep=timestep)
    noise, timestep, _ = draw(one, keys=[KEYS[i] for i in order])
    permuted = one(backbone, latent()[order], Controls(), noise=noise, timestep=timestep)
    torch.testing.assert_close(permuted, loss[order], rtol=0, atol=0)


def test_timesteps_of_a_table_are_whole_and_even():
    one = objective()
    timestep = one.draw([str(i) for i in range(4000)], 0, 0, LatentShape(1, 1, 1, 1), "cpu").timestep
    assert (timestep == timestep.round()).all()
    assert timestep.min() >= 0
    assert timestep.max() <= 999
    assert torch.histc(timestep, 10, 0, 1000).min() > 330


def test_logit_normal_density():
    """The logit of the places is Gaussian with the given mean and deviation."""
    quantile = torch.linspace(0, 1, 20_001, dtype=torch.float64)[1:-1]
    place = LogitNormal(mean=0.5, std=0.8)(quantile)
    assert (place.diff() > 0).all()
    logit = torch.logit(place)
    assert logit.mean().item() == pytest.approx(0.5, abs=1e-3)
    assert logit.std().item() == pytest.approx(0.8, abs=1e-3)
    assert LogitNormal(mean=0.0, std=1.0)(torch.tensor(0.5)).item() == 0.5


def test_larger_latents_are_trained_at_more_noise():
    one = objective("velocity", schedule=flow(base_tokens=3 * 4 * 4))
    small = one.draw(KEYS, 0, 0, SHAPE, "cpu").timestep / 1000
    large = one.draw(KEYS, 0, 0, LatentShape(2, 3, 8, 8), "cpu").timestep / 1000
    same_quantile = objective("velocity", schedule=flow(base_tokens=3 * 8 * 8)).draw(
        KEYS, 0, 0, LatentShape(2, 3, 8, 8), "cpu"
    )
    torch.testing.assert_close(large, 2 * same_quantile.timestep / 1000 / (1 + same_quantile.timestep / 1000))
    assert small.shape == large.shape


@pytest.mark.parametrize("kind", PREDICTIONS)
def test_min_snr_weights_are_those_of_the_paper(kind):
    """Hang et al. 2023: min(SNR, 5) for x0, / SNR for epsilon, / (SNR + 1) for v."""
    one = objective(kind, schedule=scaled_linear(**BETAS, zero_terminal_snr=False), min_snr_gamma=5.0)
    timestep = torch.arange(1000)
    alpha, sigma = one.schedule.levels(timestep)
    snr = (alpha / sigma) ** 2
    clipped = snr.clamp(max=5)
    wanted = {
        "x0": clipped,
        "epsilon": clipped / snr,
        "v": clipped / (snr + 1),
        "velocity": clipped / (1 + snr.sqrt()) ** 2,
    }[kind]
    torch.testing.assert_close(one.weight(timestep), wanted.float())
    assert one.weight(timestep).dtype == torch.float32


@pytest.mark.parametrize(("kind", "schedule"), [("v", None), ("velocity", flow()), ("x0", flow())])
def test_min_snr_weights_are_finite_at_both_ends(kind, schedule):
    one = objective(kind, schedule=schedule, min_snr_gamma=5.0)
    ends = torch.tensor([one.schedule.first - 1.0, one.schedule.first + 999.0]).clamp(min=0)
    assert one.weight(ends).isfinite().all()


def test_weighting_multiplies_the_loss():
    plain, weighted = objective(), objective(min_snr_gamma=5.0)
    _, timestep, _ = draw(plain)
    torch.testing.assert_close(loss_of(weighted, Recorder()), loss_of(plain, Recorder()) * weighted.weight(timestep))


@pytest.mark.parametrize("kind", PREDICTIONS)
def test_denoiser_finds_the_clean_latent(kind):
    one, clean = objective(kind), latent().double()
    x, timestep = torch.randn(clean.shape, dtype=torch.float64), torch.tensor([0.0, 1.0, 500.5, 998.0, 999.0])
    found = one.denoiser(Clairvoyant(kind, one.schedule, clean), Controls())(x, timestep)
    torch.testing.assert_close(found, clean, rtol=0, atol=1e-10)


def test_denoiser_of_a_half_precision_backbone_converts_in_float32():
    one = objective()
    x, timestep = torch.randn(1, *SHAPE), torch.tensor([900.0])
    said = torch.randn(1, *SHAPE).bfloat16()
    found = one.denoiser_of(lambda x, timestep: said)(x, timestep)
    alpha, sigma = (level.float() for level in one.schedule.levels(timestep))
    torch.testing.assert_close(found, (x - sigma * said.float()) / alpha)
    assert found.dtype == torch.float32


def test_half_precision_latents_have_a_float32_loss():
    one, backbone = objective(), Recorder().bfloat16()
    noise, timestep, _ = draw(one)
    loss = one(backbone, latent().bfloat16(), Controls(), noise=noise, timestep=timestep)
    assert backbone.x.dtype == torch.bfloat16
    assert loss.dtype == torch.float32
    torch.testing.assert_close(loss, loss_of(one, Recorder()), rtol=0.05, atol=0.05)


def test_noise_level_bins():
    quantile = torch.tensor([0.0, 0.1, 0.25, 0.999, 1.0])
    assert Objective.noise_level(quantile, 4).tolist() == [0, 0, 1, 3, 3]
    one = objective("velocity", schedule=flow(3.0), density=LogitNormal(mean=1.0, std=0.5))
    drawn = one.draw([str(i) for i in range(2000)], 0, 0, LatentShape(1, 1, 1, 1), "cpu")
    level = Objective.noise_level(drawn.quantile, 4)
    assert level.bincount().min() > 420, "each bin is filled alike, whatever the density"
    edges = [drawn.timestep[level == i] for i in range(4)]
    assert all(low.max() <= high.min() for low, high in zip(edges, edges[1:], strict=False))


@pytest.mark.parametrize("schedule", [scaled_linear(**BETAS, zero_terminal_snr=True), flow()], ids=["table", "flow"])
def test_epsilon_is_refused_where_it_says_nothing(schedule):
    with pytest.raises(ConfigError, match="objective.prediction"):
        objective("epsilon", schedule=schedule)


def test_it_learns_a_gaussian():
    """All the parts at once: a linear denoiser trained by the objective becomes the one known in closed form."""
    one = objective("v", density=Uniform(), schedule=flow())
    mean, std = 0.5, 0.2
    clean = mean + std * torch.randn(512, 1, 1, 1, 8, generator=torch.Generator().manual_seed(0))
    keys, timestep = [str(i) for i in range(512)], torch.full((512,), 400.0)
    features = [
        torch.stack([torch.ones(512 * 8), (alpha_x := 0.6 * clean + 0.4 * noise).flatten()], dim=1)
        for noise in (one.draw(keys, 0, step, LatentShape(1, 1, 1, 8), "cpu").noise for step in range(4))
    ]
    assert alpha_x.shape == clean.shape
    wanted = [
        (0.6 * one.draw(keys, 0, step, LatentShape(1, 1, 1, 8), "cpu").noise - 0.4 * clean).flatten()
        for step in range(4)
    ]
    bias, scale = torch.linalg.lstsq(torch.cat(features), torch.cat(wanted)[:, None]).solution.flatten().tolist()
    denoise = one.denoiser_of(lambda x, timestep: bias + scale * x)
    x = torch.linspace(-1, 2, 512).view(512, 1, 1, 1, 1)
    exact = mean + 0.6 * std**2 / (0.36 * std**2 + 0.16) * (x - 0.6 * mean)
    torch.testing.assert_close(denoise(x, timestep), exact, rtol=0, atol=0.02)
    best = loss_of_linear(one, clean, keys, timestep, bias, scale)
    assert best < loss_of_linear(one, clean, keys, timestep, bias + 0.1, scale)
    assert best < loss_of_linear(one, clean, keys, timestep, bias, scale + 0.1)
    assert math.isfinite(best)


def loss_of_linear(one, clean, keys, timestep, bias, scale):
    noise = one.draw(keys, 0, 0, LatentShape(1, 1, 1, 8), "cpu").noise
    loss = one(lambda x, timestep, controls: bias + scale * x, clean, Controls(), noise=noise, timestep=timestep)
    return loss.mean().item()
