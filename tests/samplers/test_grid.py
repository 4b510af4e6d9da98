"""Where samplers stop: diffusers' timesteps, the shape of the way, and what is refused."""

import math

import pytest
import torch

from vdm.diffusion.schedule import Flow, scaled_linear
from vdm.errors import ConfigError
from vdm.samplers.grid import ancestral_variance, grid

VP = scaled_linear(num_timesteps=1000, beta_start=0.00085, beta_end=0.012, zero_terminal_snr=False)
ZERO_SNR = scaled_linear(num_timesteps=1000, beta_start=0.00085, beta_end=0.012, zero_terminal_snr=True)
FLOW = Flow(num_timesteps=1000, shift=1.0, base_tokens=None)
SPACINGS = ["trailing", "leading", "linspace", "karras"]


PEERS = [("DDIMScheduler", False), ("DPMSolverMultistepScheduler", True), ("UniPCMultistepScheduler", True)]


@pytest.mark.parametrize("spacing", ["trailing", "leading", "linspace"])
@pytest.mark.parametrize(("name", "skip_first"), PEERS)
def test_timesteps_are_those_of_diffusers(name, skip_first, spacing):
    schedulers = pytest.importorskip("diffusers.schedulers")
    theirs = getattr(schedulers, name)(timestep_spacing=spacing)
    for num_steps in (1, 2, 3, 7, 20, 33, 50, 64, 250, 999):
        if num_steps == 1 and spacing == "linspace" and not skip_first:
            continue  # theirs makes its only step from the clean end
        theirs.set_timesteps(num_steps)
        ours = grid(VP, num_steps, spacing=spacing, skip_first=skip_first).timesteps
        assert ours == theirs.timesteps.tolist(), num_steps


@pytest.mark.parametrize("schedule", [VP, ZERO_SNR, FLOW], ids=["vp", "zero_snr", "flow"])
@pytest.mark.parametrize("spacing", SPACINGS)
@pytest.mark.parametrize("num_steps", [1, 2, 17, 50])
def test_the_way_leads_from_noise_to_data(schedule, spacing, num_steps):
    levels = grid(schedule, num_steps, spacing=spacing)
    assert len(levels.timesteps) == num_steps
    assert len(levels.alphas) == len(levels.sigmas) == num_steps + 1
    assert (levels.alphas[-1], levels.sigmas[-1]) == (1.0, 0.0)
    assert all(before > after for before, after in zip(levels.timesteps, levels.timesteps[1:], strict=False))
    assert all(before > after for before, after in zip(levels.sigmas, levels.sigmas[1:], strict=False))
    half_log_snr = levels.half_log_snr()
    assert all(math.isfinite(level) for level in half_log_snr[:-1])
    assert half_log_snr[-1] == math.inf


@pytest.mark.parametrize("schedule", [VP, ZERO_SNR, FLOW], ids=["vp", "zero_snr", "flow"])
@pytest.mark.parametrize("spacing", ["trailing", "linspace"])
def test_the_first_stop_is_the_last_timestep(schedule, spacing):
    assert grid(schedule, 10, spacing=spacing).timesteps[0] == schedule.first + 999


def test_levels_belong_to_the_timesteps():
    levels = grid(VP, 20, spacing="karras")
    alpha, sigma = VP.levels(torch.tensor(levels.timesteps, dtype=torch.float64))
    assert levels.alphas[:-1] == alpha.tolist()
    ratio = (sigma / alpha) ** (1 / 7)
    torch.testing.assert_close(ratio.diff(), ratio.diff().mean().expand(19), rtol=1e-9, atol=0)


def test_end_at_the_first_timestep():
    levels = grid(VP, 20, spacing="trailing", end="first")
    assert levels.alphas[-1] == pytest.approx(math.sqrt(1 - 0.00085), abs=1e-12)


def test_shift_moves_the_stops_towards_noise():
    shifted = Flow(num_timesteps=1000, shift=3.0, base_tokens=None)
    assert grid(shifted, 2, spacing="trailing").timesteps == pytest.approx([1000.0, 750.0])


def test_variance_of_an_ancestral_step():
    """Against the definition: the posterior of the cleaner latent, given the noisier one and the clean."""
    noisy, cleaner = (0.3, math.sqrt(0.91)), (0.8, 0.6)
    scale = noisy[0] / cleaner[0]
    small, large = ancestral_variance(noisy, cleaner)
    assert large == pytest.approx(noisy[1] ** 2 - scale**2 * cleaner[1] ** 2)
    assert 1 / small == pytest.approx(1 / cleaner[1] ** 2 + scale**2 / large)


@pytest.mark.parametrize(
    ("settings", "key"),
    [
        ({"num_steps": 0, "spacing": "trailing"}, "num_steps"),
        ({"num_steps": 1001, "spacing": "trailing"}, "num_steps"),
        ({"num_steps": 1000, "spacing": "leading", "skip_first": True}, "num_steps"),
        ({"num_steps": 20, "spacing": "even"}, "spacing"),
        ({"num_steps": 20, "spacing": "trailing", "offset": 1}, "offset"),
        ({"num_steps": 1000, "spacing": "leading", "offset": 1}, "offset"),
    ],
)
def test_refused(settings, key):
    num_steps = settings.pop("num_steps")
    with pytest.raises(ConfigError, match=f"sampler.{key}"):
        grid(VP, num_steps, **settings)


def test_a_flow_takes_any_number_of_steps():
    assert len(grid(FLOW, 1500, spacing="trailing").timesteps) == 1500
