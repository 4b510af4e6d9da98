"""A Gaussian with known mean and variance comes back from noise, by every sampler on every schedule."""

import functools

import pytest
import torch

from vdm.diffusion.noise import noise_for
from vdm.diffusion.schedule import Flow, cosine, linear, scaled_linear
from vdm.samplers.ddim import ddim, ddim_invert
from vdm.samplers.ddpm import ddpm
from vdm.samplers.dpm_solver import dpm_solver
from vdm.samplers.euler import euler
from vdm.samplers.heun import heun
from vdm.samplers.unipc import unipc

MEAN, STD = 0.6, 0.4
BETAS = {"num_timesteps": 1000, "beta_start": 0.00085, "beta_end": 0.012}
SCHEDULES = {
    "scaled_linear": scaled_linear(**BETAS, zero_terminal_snr=False),
    "zero_snr": scaled_linear(**BETAS, zero_terminal_snr=True),
    "linear": linear(num_timesteps=1000, beta_start=1e-4, beta_end=0.02, zero_terminal_snr=False),
    "cosine": cosine(num_timesteps=1000, offset=0.008, max_beta=0.999, zero_terminal_snr=False),
    "flow": Flow(num_timesteps=1000, shift=1.0, base_tokens=None),
    "shifted_flow": Flow(num_timesteps=1000, shift=3.0, base_tokens=None),
}
SPACED = {"spacing": "trailing", "offset": 0}
SAMPLERS = {
    "ddpm": functools.partial(ddpm, num_steps=1000, variance="small", **SPACED),
    "ddpm_large": functools.partial(ddpm, num_steps=1000, variance="large", **SPACED),
    "ddpm_strided": functools.partial(ddpm, num_steps=250, variance="small", **SPACED),
    "ddim": functools.partial(ddim, num_steps=250, end="clean", eta=0.0, **SPACED),
    "ddim_eta": functools.partial(ddim, num_steps=250, end="clean", eta=1.0, **SPACED),
    "dpm_solver": functools.partial(dpm_solver, num_steps=100, end="clean", lower_order_final=True, **SPACED),
    "dpm_solver_karras": functools.partial(
        dpm_solver, num_steps=100, end="clean", lower_order_final=True, spacing="karras", offset=0
    ),
    "unipc": functools.partial(unipc, num_steps=100, end="clean", lower_order_final=True, **SPACED),
    "euler": functools.partial(euler, num_steps=250, spacing="trailing"),
    "heun": functools.partial(heun, num_steps=100, spacing="trailing"),
}
KEYS = ["a", "b", "c", "d"]
SHAPE = (4, 8, 32, 32)


def denoiser(schedule):
    """The mean of a Gaussian given a noisy view of it."""

    def denoise(x, timestep):
        alpha, sigma = (level.view(-1, 1, 1, 1, 1) for level in schedule.levels(timestep))
        return MEAN + alpha * STD**2 / (alpha**2 * STD**2 + sigma**2) * (x - alpha * MEAN)

    return denoise


def draw(step=0, keys=KEYS):
    return noise_for(keys, 0, SHAPE, step=step, dtype=torch.float64)


def marginal(schedule, timestep):
    """Mean and standard deviation of the Gaussian under noise."""
    alpha, sigma = schedule.levels(torch.tensor(float(timestep), dtype=torch.float64))
    return alpha * MEAN, (alpha**2 * STD**2 + sigma**2).sqrt()


THOUSAND_STEPS = ("ddpm", "ddpm_large")  # on two schedules only: they take a second each
PAIRS = [(a, b) for a in SAMPLERS for b in SCHEDULES if a not in THOUSAND_STEPS or b in ("scaled_linear", "flow")]


@pytest.mark.parametrize(("sampler", "schedule"), PAIRS)
def test_mean_and_variance(sampler, schedule):
    schedule = SCHEDULES[schedule]
    small = (1, 4, 32, 32)  # 16384 numbers: the mean is known to 0.003, the variance to 0.002
    noise = noise_for(KEYS, 0, small, dtype=torch.float64)
    mean, std = marginal(schedule, schedule.first + 999)  # not all schedules end in pure noise
    latent = SAMPLERS[sampler](
        denoiser(schedule),
        mean + std * (noise - noise.mean()) / noise.std(),
        schedule,
        step_noise=lambda step: noise_for(KEYS, 0, small, step=step, dtype=torch.float64),
    )
    assert latent.mean().item() == pytest.approx(MEAN, abs=0.01)
    # The step to the clean end gives the mean of what may be there, which takes away some of the variance.
    assert latent.var().item() == pytest.approx(STD**2, abs=0.013)


def ode_error(sampler, schedule, num_steps):
    """Distance from where the ODE leads: for a Gaussian it scales the noise, in closed form."""
    (mean, std), (mean_end, std_end) = marginal(schedule, schedule.first + 999), marginal(schedule, schedule.first)
    x = mean + std * draw(keys=["a"])
    settings = {
        "num_steps": num_steps,
        "spacing": "karras" if sampler in ("dpm_solver", "unipc", "ddim") else "linspace",
    }
    if sampler in ("euler", "heun"):  # these end clean, only a little further
        mean_end, std_end = MEAN, STD
    else:
        settings["end"] = "first"
    if sampler in ("dpm_solver", "unipc"):
        settings["lower_order_final"] = False
    found = SAMPLERS[sampler](denoiser(schedule), x, schedule, **settings)
    return (found - mean_end - std_end * (x - mean) / std).abs().mean().item()


ORDERS = {"ddim": 1, "dpm_solver": 2, "unipc": 3}  # the corrector adds one to the order of unipc


@pytest.mark.parametrize("schedule", ["scaled_linear", "linear"])
@pytest.mark.parametrize("sampler", ORDERS)
def test_error_falls_with_the_order_of_the_sampler(sampler, schedule):
    coarse, fine = (ode_error(sampler, SCHEDULES[schedule], num_steps) for num_steps in (40, 80))
    assert coarse / fine > 2 ** (ORDERS[sampler] - 0.1), (coarse, fine)


@pytest.mark.parametrize(("sampler", "order"), [("euler", 1), ("heun", 2)])
def test_error_falls_with_the_order_on_a_flow(sampler, order):
    coarse, fine = (ode_error(sampler, SCHEDULES["flow"], num_steps) for num_steps in (40, 80))
    assert coarse / fine > 2 ** (order - 0.1), (coarse, fine)


def test_euler_is_ddim():
    """Both follow the clean latent in a straight line; only the book-keeping differs."""
    for schedule in SCHEDULES.values():
        one = SAMPLERS["euler"](denoiser(schedule), draw(), schedule, num_steps=10)
        other = SAMPLERS["ddim"](denoiser(schedule), draw(), schedule, num_steps=10)
        torch.testing.assert_close(one, other, rtol=0, atol=1e-12)


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_one_step_gives_the_clean_latent(schedule):
    schedule, x = SCHEDULES[schedule], draw()
    expected = denoiser(schedule)(x, torch.full((4,), schedule.first + 999.0, dtype=torch.float64))
    for name, sampler in SAMPLERS.items():
        settings = {"spacing": "trailing"} if "karras" in name else {}
        latent = sampler(denoiser(schedule), x, schedule, num_steps=1, step_noise=draw, **settings)
        # Pure noise is held at a finite SNR by the multistep solvers.
        torch.testing.assert_close(latent, expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("end", ["clean", "first"])
def test_inversion_finds_the_noise_again(schedule, end):
    schedule = SCHEDULES[schedule]
    latent = MEAN + STD * draw()
    errors = []
    for num_steps in (25, 100):
        settings = {"num_steps": num_steps, "end": end, **SPACED}
        noise = ddim_invert(denoiser(schedule), latent, schedule, **settings)
        back = ddim(denoiser(schedule), noise, schedule, eta=0.0, **settings)
        errors.append((back - latent).abs().mean().item())
    assert errors[1] < errors[0] / 2
    assert errors[1] < 0.05
    assert noise.mean().item() == pytest.approx(0, abs=0.15)
    assert noise.std().item() == pytest.approx(1, abs=0.15)


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_a_sample_does_not_depend_on_its_batch(sampler):
    schedule = SCHEDULES["scaled_linear"]
    run = functools.partial(SAMPLERS[sampler], denoiser(schedule), schedule=schedule, num_steps=5)
    together = run(draw(), step_noise=draw)
    order = ["c", "a"]
    apart = run(draw(keys=order), step_noise=functools.partial(draw, keys=order))
    assert apart.equal(together[[2, 0]])


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_callback_sees_every_step(sampler):
    schedule, seen = SCHEDULES["scaled_linear"], []

    def callback(*, step, num_steps, latent, clean):
        assert num_steps == 6
        assert latent.shape == clean.shape == (4, *SHAPE)
        seen.append((step, latent))

    latent = SAMPLERS[sampler](denoiser(schedule), draw(), schedule, num_steps=6, step_noise=draw, callback=callback)
    assert [step for step, _ in seen] == [1, 2, 3, 4, 5, 6]
    assert seen[-1][1].equal(latent)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("sampler", SAMPLERS)
def test_a_latent_keeps_its_precision(sampler, dtype):
    def denoise(x, timestep):
        assert x.dtype == dtype
        assert timestep.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
        return 0.5 * x

    latent = SAMPLERS[sampler](
        denoise,
        draw().to(dtype),
        SCHEDULES["scaled_linear"],
        num_steps=4,
        step_noise=lambda step: draw(step).to(dtype),
    )
    assert latent.dtype == dtype


def test_fresh_noise_has_to_be_given():
    schedule = SCHEDULES["scaled_linear"]
    for sampler in ("ddpm", "ddim_eta"):
        with pytest.raises(AssertionError, match="step_noise"):
            SAMPLERS[sampler](denoiser(schedule), draw(), schedule, num_steps=4)
