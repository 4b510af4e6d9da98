"""Schedules against diffusers' tables, their own definitions, and each other's inverse."""

import copy
import math
import pickle

import pytest
import torch

from vdm.diffusion.schedule import Flow, VariancePreserving, cosine, linear, scaled_linear
from vdm.errors import ConfigError
from vdm.types import LatentShape

LATENT = {"num_timesteps": 1000, "beta_start": 0.00085, "beta_end": 0.012}
TABLES = {
    ("scaled_linear", False): scaled_linear(**LATENT, zero_terminal_snr=False),
    ("scaled_linear", True): scaled_linear(**LATENT, zero_terminal_snr=True),
    ("linear", False): linear(num_timesteps=1000, beta_start=1e-4, beta_end=0.02, zero_terminal_snr=False),
    ("linear", True): linear(num_timesteps=1000, beta_start=1e-4, beta_end=0.02, zero_terminal_snr=True),
    ("squaredcos_cap_v2", False): cosine(num_timesteps=1000, offset=0.008, max_beta=0.999, zero_terminal_snr=False),
}
FLOW = Flow(num_timesteps=1000, shift=1.0, base_tokens=None)
ALL = [*TABLES.values(), FLOW]
IDS = [*map(str, TABLES), "flow"]


def timesteps(schedule):
    return torch.arange(schedule.first, schedule.first + schedule.num_timesteps)


@pytest.mark.parametrize(("name", "zero_snr"), TABLES)
def test_tables_are_those_of_diffusers(name, zero_snr):
    schedulers = pytest.importorskip("diffusers.schedulers")
    betas = {"beta_start": 1e-4, "beta_end": 0.02} if name == "linear" else {"beta_start": 0.00085, "beta_end": 0.012}
    theirs = schedulers.DDIMScheduler(beta_schedule=name, rescale_betas_zero_snr=zero_snr, **betas)
    alpha, sigma = TABLES[name, zero_snr].levels(torch.arange(1000))
    # Theirs is a product of a thousand float32 numbers.
    torch.testing.assert_close(alpha**2, theirs.alphas_cumprod.double(), rtol=1e-4, atol=1e-7)
    torch.testing.assert_close(sigma**2, 1 - theirs.alphas_cumprod.double(), rtol=1e-4, atol=1e-6)


def test_golden_values():
    """By hand: the first and the middle of the schedule of latent diffusion, in exact arithmetic on its betas."""
    alpha, _ = TABLES["scaled_linear", False].levels(torch.tensor([0, 1, 999]))
    start, end = math.sqrt(0.00085), math.sqrt(0.012)
    betas = [(start + (end - start) * i / 999) ** 2 for i in range(1000)]
    log_product = math.fsum(math.log1p(-beta) for beta in betas)
    expected = [math.sqrt(1 - betas[0]), math.sqrt((1 - betas[0]) * (1 - betas[1])), math.exp(log_product / 2)]
    assert alpha.tolist() == pytest.approx(expected, rel=1e-12)
    assert alpha[2].item() == pytest.approx(0.0683, abs=1e-4)


@pytest.mark.parametrize("schedule", ALL, ids=IDS)
def test_noise_rises_and_signal_falls(schedule):
    alpha, sigma = schedule.levels(timesteps(schedule))
    assert alpha.dtype == sigma.dtype == torch.float64
    assert (alpha.diff() < 0).all()
    assert (sigma.diff() > 0).all()
    total = alpha + sigma if schedule is FLOW else alpha**2 + sigma**2
    torch.testing.assert_close(total, torch.ones_like(total), rtol=0, atol=1e-14)


@pytest.mark.parametrize("schedule", [TABLES["scaled_linear", True], TABLES["linear", True]])
def test_zero_terminal_snr(schedule):
    alpha, sigma = schedule.levels(torch.tensor([0, 999]))
    assert (alpha[1], sigma[1]) == (0, 1)


def test_zero_terminal_snr_keeps_the_first_entry():
    plain, rescaled = (TABLES["scaled_linear", zero].levels(torch.tensor(0))[0] for zero in (False, True))
    assert rescaled.item() == pytest.approx(plain.item(), abs=1e-15)


@pytest.mark.parametrize("schedule", ALL, ids=IDS)
def test_between_entries_the_way_is_continuous(schedule):
    at = torch.linspace(schedule.first, schedule.first + 999, 7001, dtype=torch.float64)
    alpha, sigma = schedule.levels(at)
    assert (alpha.diff() < 0).all()
    assert alpha.diff().abs().max() < 1.01 * schedule.levels(timesteps(schedule))[0].diff().abs().max()
    total = alpha + sigma if schedule is FLOW else alpha**2 + sigma**2
    torch.testing.assert_close(total, torch.ones_like(total), rtol=0, atol=1e-14)


@pytest.mark.parametrize("schedule", ALL, ids=IDS)
def test_timestep_of_inverts_levels(schedule):
    at = torch.linspace(schedule.first, schedule.first + 998.9, 5003, dtype=torch.float64)
    alpha, sigma = schedule.levels(at)
    torch.testing.assert_close(schedule.timestep_of(sigma / alpha), at, rtol=0, atol=1e-6)
    end = schedule.timestep_of(torch.tensor([math.inf]))
    assert end.item() == schedule.first + 999


@pytest.mark.parametrize("schedule", ALL, ids=IDS)
def test_training_covers_the_schedule_from_little_noise_to_much(schedule):
    quantile = torch.linspace(0, 1, 100_001, dtype=torch.float64)[:-1]
    at = schedule.training_timestep(quantile)
    assert (at.diff() >= 0).all()
    assert at.min() >= 0
    assert at.max() <= schedule.first + 999
    if schedule.is_discrete:
        assert at.unique().tolist() == list(range(1000))
        assert (at == at.round()).all()


def test_shapes_and_devices_follow_the_timestep():
    for schedule in ALL:
        alpha, sigma = schedule.levels(torch.full((2, 3), 5))
        assert alpha.shape == sigma.shape == (2, 3)


def test_flow_shift():
    """Esser et al. 2024, Eq. 23: half way under a shift of 3 is three quarters."""
    shifted = Flow(num_timesteps=1000, shift=3.0, base_tokens=None)
    assert shifted.training_timestep(torch.tensor(0.5)).item() == pytest.approx(750)
    assert shifted.shifted(torch.tensor([0.0, 1000.0])).tolist() == [0, 1000]
    assert shifted.levels(torch.tensor(750.0)) == FLOW.levels(torch.tensor(750.0)), "the shift moves stops, not noise"


def test_flow_shift_grows_with_the_latent():
    schedule = Flow(num_timesteps=1000, shift=2.0, base_tokens=4 * 8 * 8)
    assert schedule.at_resolution(LatentShape(4, 4, 8, 8)).shift == 2.0
    assert schedule.at_resolution(LatentShape(4, 4, 16, 16)).shift == pytest.approx(4.0)
    assert schedule.at_resolution(LatentShape(4, 1, 8, 8)).shift == pytest.approx(1.0)
    assert schedule.shift == 2.0
    fixed = Flow(num_timesteps=1000, shift=2.0, base_tokens=None)
    assert fixed.at_resolution(LatentShape(4, 64, 64, 64)) is fixed
    table = TABLES["linear", False]
    assert table.at_resolution(LatentShape(4, 64, 64, 64)) is table


def test_a_schedule_travels():
    schedule = TABLES["scaled_linear", False]
    before = schedule.levels(torch.tensor(500))
    for other in (pickle.loads(pickle.dumps(schedule)), copy.deepcopy(schedule)):
        assert other.levels(torch.tensor(500)) == before


@pytest.mark.parametrize(
    "betas", [{"beta_start": 0.02, "beta_end": 0.01}, {"beta_start": 0.0, "beta_end": 0.01}, {"beta_end": 1.0}]
)
def test_impossible_betas_are_refused(betas):
    settings = {"num_timesteps": 10, "beta_start": 0.01, "beta_end": 0.02, "zero_terminal_snr": False, **betas}
    with pytest.raises(ConfigError, match="beta_start"):
        scaled_linear(**settings)


def test_a_schedule_of_one_timestep_is_refused():
    with pytest.raises(ConfigError, match="num_timesteps"):
        linear(num_timesteps=1, beta_start=0.01, beta_end=0.02, zero_terminal_snr=False)


def test_tables_are_float64():
    with pytest.raises(AssertionError, match="float64"):
        VariancePreserving(betas=torch.linspace(0.1, 0.2, 10), zero_terminal_snr=False)
