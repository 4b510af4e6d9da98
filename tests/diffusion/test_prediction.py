"""Conversions between predictions round-trip in float64, on every schedule, at all timesteps where they are defined."""

import itertools
from typing import get_args

import pytest
import torch

from vdm.diffusion import prediction
from vdm.diffusion.prediction import CONVERSIONS, Kind, target, to_x0
from vdm.diffusion.schedule import Flow, cosine, linear, scaled_linear

KINDS = get_args(Kind)
BETAS = {"num_timesteps": 1000, "beta_start": 0.00085, "beta_end": 0.012}
SCHEDULES = {
    "scaled_linear": scaled_linear(**BETAS, zero_terminal_snr=False),
    "scaled_linear_zero_snr": scaled_linear(**BETAS, zero_terminal_snr=True),
    "linear": linear(num_timesteps=1000, beta_start=1e-4, beta_end=0.02, zero_terminal_snr=False),
    "cosine": cosine(num_timesteps=1000, offset=0.008, max_beta=0.999, zero_terminal_snr=False),
    "flow": Flow(num_timesteps=1000, shift=1.0, base_tokens=None),
}


def case(schedule):
    """Every timestep, and the clean end of the flow, with something clean and some noise."""
    timestep = torch.arange(schedule.first, schedule.first + 1000)
    if not schedule.is_discrete:
        timestep = torch.cat([torch.zeros(1, dtype=torch.long), timestep])
    alpha, sigma = (level[:, None] for level in schedule.levels(timestep))
    g = torch.Generator().manual_seed(0)
    x0, epsilon = torch.randn(2, len(timestep), 64, generator=g, dtype=torch.float64)
    return x0, epsilon, alpha, sigma


def is_defined(kind, alpha, sigma):
    return {"epsilon": alpha > 0, "x0": sigma > 0}.get(kind, torch.ones_like(alpha, dtype=torch.bool))[:, 0]


@pytest.mark.parametrize("name", SCHEDULES)
@pytest.mark.parametrize(("one", "other"), itertools.permutations(KINDS, 2))
def test_each_conversion_gives_the_definition(name, one, other):
    x0, epsilon, alpha, sigma = case(SCHEDULES[name])
    x = alpha * x0 + sigma * epsilon
    found = CONVERSIONS[one, other](x, target(one, x0, epsilon, alpha, sigma), alpha, sigma)
    where = is_defined(one, alpha, sigma)
    assert where.sum() >= len(where) - 1
    wanted = target(other, x0, epsilon, alpha, sigma)
    # Dividing by what little there is of one part multiplies the rounding of the other: 1e-12 at alpha or sigma 4e-5.
    torch.testing.assert_close(found[where], wanted[where], rtol=0, atol=1e-11)


@pytest.mark.parametrize("name", SCHEDULES)
@pytest.mark.parametrize(("one", "other"), itertools.permutations(KINDS, 2))
def test_round_trips(name, one, other):
    """For any prediction, not only right ones."""
    _, anything, alpha, sigma = case(SCHEDULES[name])
    x = torch.randn(anything.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    there = CONVERSIONS[one, other](x, anything, alpha, sigma)
    back = CONVERSIONS[other, one](x, there, alpha, sigma)
    where = is_defined(one, alpha, sigma) & is_defined(other, alpha, sigma)
    torch.testing.assert_close(back[where], anything[where], rtol=0, atol=1e-9)


@pytest.mark.parametrize("kind", ["v", "velocity"])
def test_both_ends_are_defined_for_v_and_velocity(kind):
    x0, epsilon = torch.randn(2, 8, dtype=torch.float64)
    for alpha, sigma in ((1.0, 0.0), (0.0, 1.0)):
        alpha, sigma = torch.tensor(alpha), torch.tensor(sigma)
        x = alpha * x0 + sigma * epsilon
        said = target(kind, x0, epsilon, alpha, sigma)
        assert CONVERSIONS[kind, "x0"](x, said, alpha, sigma).equal(x0) or kind == "velocity"
        torch.testing.assert_close(to_x0(kind, x, said, alpha, sigma), x0)
        torch.testing.assert_close(CONVERSIONS[kind, "epsilon"](x, said, alpha, sigma), epsilon)


def test_at_pure_noise_v_is_minus_the_clean_latent():
    x0, epsilon = torch.randn(2, 8)
    assert target("v", x0, epsilon, torch.tensor(0.0), torch.tensor(1.0)).equal(-x0)


def test_names_say_what_they_do():
    for one, other in itertools.permutations(KINDS, 2):
        assert CONVERSIONS[one, other] is getattr(prediction, f"{one}_to_{other}")


def test_converting_to_itself_changes_nothing():
    said = torch.randn(3)
    for kind in KINDS:
        assert CONVERSIONS[kind, kind](torch.randn(3), said, torch.tensor(0.0), torch.tensor(0.0)) is said
