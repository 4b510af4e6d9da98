"""Every sampler against diffusers' scheduler of the same name, on a fixed denoiser.

To 1e-4 with the float32 tables it computes, and to 1e-9 where it can be given float64 ones.
"""

import pytest
import torch

from vdm.diffusion.schedule import Flow, scaled_linear
from vdm.samplers.ddim import ddim, ddim_invert
from vdm.samplers.ddpm import ddpm
from vdm.samplers.dpm_solver import dpm_solver
from vdm.samplers.euler import euler
from vdm.samplers.heun import heun
from vdm.samplers.unipc import unipc

schedulers = pytest.importorskip("diffusers.schedulers")

BETAS = {"beta_start": 0.00085, "beta_end": 0.012}
TOLERANCE, EXACT = 1e-4, 1e-9
SHAPE = (2, 3, 2, 4, 4)


def schedule(zero_terminal_snr=False):
    return scaled_linear(num_timesteps=1000, zero_terminal_snr=zero_terminal_snr, **BETAS)


def peer(name, **settings):
    return getattr(schedulers, name)(beta_schedule="scaled_linear", **BETAS, **settings)


def noise():
    return torch.randn(SHAPE, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def step_noise(step):
    return torch.randn(SHAPE, generator=torch.Generator().manual_seed(step), dtype=torch.float64)


def denoise(x, timestep):
    """Not linear in x, and other at every timestep."""
    return 0.7 * torch.tanh(1.3 * x) + 0.3 * torch.sin(timestep / 150).view(-1, 1, 1, 1, 1)


def output(kind, x, timestep, levels):
    """What a network of some kind would have said to mean this clean latent."""
    alpha, sigma = levels
    clean = denoise(x, torch.full((len(x),), float(timestep), dtype=torch.float64))
    epsilon = (x - alpha * clean) / sigma
    return {"sample": clean, "epsilon": epsilon, "v_prediction": alpha * epsilon - sigma * clean}[kind]


def run(scheduler, num_steps, kind="sample", zero_terminal_snr=False, **step_settings):
    scheduler.set_timesteps(num_steps)
    ours, x = schedule(zero_terminal_snr), noise()
    for timestep in scheduler.timesteps:
        said = output(kind, x, timestep, ours.levels(timestep))
        x = scheduler.step(said, timestep, x, **step_settings).prev_sample
    return x


def in_float64(scheduler):
    """Our table in place of theirs, which is the same but for rounding."""
    table = schedule().alphas ** 2
    torch.testing.assert_close(scheduler.alphas_cumprod.double(), table, rtol=1e-4, atol=0)
    scheduler.alphas_cumprod = table
    if hasattr(scheduler.config, "set_alpha_to_one"):
        end = torch.ones((), dtype=torch.float64) if scheduler.config.set_alpha_to_one else table[0]
        scheduler.final_alpha_cumprod = scheduler.initial_alpha_cumprod = end
    return scheduler


def same(ours, theirs, tolerance=TOLERANCE):
    assert ours.shape == theirs.shape
    assert ours.std() > 0.1
    assert (ours - theirs).abs().max() < tolerance


SPACED = [("leading", 0, 20), ("leading", 1, 20), ("trailing", 0, 20), ("trailing", 0, 1)]


@pytest.mark.parametrize("kind", ["sample", "epsilon", "v_prediction"])
@pytest.mark.parametrize(("spacing", "offset", "num_steps"), SPACED)
@pytest.mark.parametrize("end", ["clean", "first"])
def test_ddim(spacing, offset, num_steps, end, kind):
    settings = {"timestep_spacing": spacing, "steps_offset": offset, "clip_sample": False}
    scheduler = peer("DDIMScheduler", set_alpha_to_one=end == "clean", prediction_type=kind, **settings)
    ours = ddim(denoise, noise(), schedule(), num_steps=num_steps, spacing=spacing, offset=offset, end=end, eta=0.0)
    same(ours, run(scheduler, num_steps, kind))
    same(ours, run(in_float64(scheduler), num_steps, kind), EXACT)


class Fed:
    """Stands for `torch.randn`: gives diffusers the draws that ours gets, numbered from 1."""

    def __init__(self, monkeypatch, module):
        self.step = 0
        monkeypatch.setattr(f"diffusers.schedulers.{module}.randn_tensor", self)

    def __call__(self, *args, **kwargs):
        self.step += 1
        return step_noise(self.step)


@pytest.mark.parametrize("eta", [0.4, 1.0])
@pytest.mark.parametrize("end", ["clean", "first"])
def test_ddim_with_fresh_noise(eta, end, monkeypatch):
    scheduler = peer("DDIMScheduler", clip_sample=False, prediction_type="sample", set_alpha_to_one=end == "clean")
    Fed(monkeypatch, "scheduling_ddim")
    settings = {"num_steps": 20, "spacing": "leading", "offset": 0, "end": end}
    ours = ddim(denoise, noise(), schedule(), **settings, eta=eta, step_noise=step_noise)
    same(ours, run(in_float64(scheduler), 20, eta=eta), EXACT)


def test_ddim_from_pure_noise():
    scheduler = peer(
        "DDIMScheduler",
        clip_sample=False,
        prediction_type="v_prediction",
        timestep_spacing="trailing",
        rescale_betas_zero_snr=True,
    )
    ours = ddim(denoise, noise(), schedule(True), num_steps=20, spacing="trailing", offset=0, end="clean", eta=0.0)
    same(ours, run(scheduler, 20, "v_prediction", True))


@pytest.mark.parametrize("end", ["clean", "first"])
def test_ddim_invert(end):
    settings = {"clip_sample": False, "set_alpha_to_one": end == "clean", "prediction_type": "epsilon"}
    scheduler = peer("DDIMInverseScheduler", timestep_spacing="leading", steps_offset=1, **settings)
    ours = ddim_invert(denoise, noise(), schedule(), num_steps=20, spacing="leading", offset=1, end=end)
    same(ours, run(in_float64(scheduler), 20, "epsilon"), EXACT)


@pytest.mark.parametrize(("variance", "theirs"), [("small", "fixed_small"), ("large", "fixed_large")])
@pytest.mark.parametrize(("spacing", "num_steps"), [("leading", 1000), ("leading", 25), ("linspace", 30)])
def test_ddpm(variance, theirs, spacing, num_steps, monkeypatch):
    scheduler = peer(
        "DDPMScheduler",
        variance_type=theirs,
        timestep_spacing=spacing,
        clip_sample=False,
        prediction_type="sample",
    )
    Fed(monkeypatch, "scheduling_ddpm")
    ours = ddpm(
        denoise,
        noise(),
        schedule(),
        num_steps=num_steps,
        spacing=spacing,
        offset=0,
        variance=variance,
        step_noise=step_noise,
    )
    same(ours, run(in_float64(scheduler), num_steps), EXACT)


MULTISTEP = [("leading", 1), ("trailing", 0), ("linspace", 0)]
SOLVERS = [("DPMSolverMultistepScheduler", dpm_solver), ("UniPCMultistepScheduler", unipc)]


@pytest.mark.parametrize("num_steps", [1, 2, 5, 20])
@pytest.mark.parametrize(("spacing", "offset"), MULTISTEP)
@pytest.mark.parametrize(("end", "final"), [("clean", "zero"), ("first", "sigma_min")])
@pytest.mark.parametrize(("name", "sampler"), SOLVERS)
def test_multistep(name, sampler, end, final, spacing, offset, num_steps):
    scheduler = peer(
        name,
        timestep_spacing=spacing,
        steps_offset=offset,
        final_sigmas_type=final,
        prediction_type="sample",
    )
    ours = sampler(
        denoise,
        noise(),
        schedule(),
        num_steps=num_steps,
        spacing=spacing,
        offset=offset,
        end=end,
        lower_order_final=True,
    )
    same(ours, run(scheduler, num_steps))


@pytest.mark.parametrize("lower_order_final", [True, False])
@pytest.mark.parametrize(("name", "sampler"), SOLVERS)
def test_multistep_order_of_the_last_step(name, sampler, lower_order_final):
    settings = {"lower_order_final": lower_order_final, "final_sigmas_type": "sigma_min"}
    scheduler = peer(name, prediction_type="sample", **settings)
    ours = sampler(
        denoise,
        noise(),
        schedule(),
        num_steps=8,
        spacing="linspace",
        offset=0,
        end="first",
        lower_order_final=lower_order_final,
    )
    same(ours, run(scheduler, 8))


@pytest.mark.parametrize(("name", "sampler"), SOLVERS)
def test_multistep_from_pure_noise(name, sampler):
    settings = {"rescale_betas_zero_snr": True, "timestep_spacing": "trailing"}
    scheduler = peer(name, prediction_type="sample", **settings)
    ours = sampler(
        denoise,
        noise(),
        schedule(True),
        num_steps=20,
        spacing="trailing",
        offset=0,
        end="clean",
        lower_order_final=True,
    )
    same(ours, run(scheduler, 20, zero_terminal_snr=True))


@pytest.mark.parametrize(("name", "sampler"), SOLVERS)
def test_multistep_with_karras_spacing(name, sampler, monkeypatch):
    """Theirs rounds the timestep it tells the network, so this denoiser does not listen to it."""
    monkeypatch.setattr(f"{__name__}.denoise", lambda x, timestep: 0.7 * torch.tanh(1.3 * x))
    scheduler = peer(name, use_karras_sigmas=True, prediction_type="sample")
    ours = sampler(
        denoise,
        noise(),
        schedule(),
        num_steps=20,
        spacing="karras",
        offset=0,
        end="clean",
        lower_order_final=True,
    )
    same(ours, run(scheduler, 20))


def flow(shift=1.0):
    return Flow(num_timesteps=1000, shift=shift, base_tokens=None)


def run_flow(scheduler, x):
    sigmas = scheduler.timesteps.double() / 1000
    for timestep, sigma in zip(scheduler.timesteps, sigmas, strict=True):
        clean = denoise(x, torch.full((len(x),), timestep.item(), dtype=torch.float64))
        x = scheduler.step((x - clean) / sigma, timestep, x).prev_sample
    return x


@pytest.mark.parametrize("num_steps", [1, 4, 30])
@pytest.mark.parametrize("shift", [1.0, 3.0])
def test_euler(shift, num_steps):
    scheduler = schedulers.FlowMatchEulerDiscreteScheduler(shift=shift)
    scheduler.set_timesteps(sigmas=torch.linspace(1, 1 / num_steps, num_steps).tolist())
    ours = euler(denoise, noise(), flow(shift), num_steps=num_steps, spacing="trailing")
    same(ours, run_flow(scheduler, noise()))


@pytest.mark.parametrize(("name", "sampler"), [("Euler", euler), ("Heun", heun)])
@pytest.mark.parametrize("num_steps", [2, 20])
def test_flow_over_the_whole_line(name, sampler, num_steps):
    scheduler = getattr(schedulers, f"FlowMatch{name}DiscreteScheduler")()
    scheduler.set_timesteps(num_steps)
    ours = sampler(denoise, noise(), flow(), num_steps=num_steps, spacing="linspace")
    same(ours, run_flow(scheduler, noise()))


@pytest.mark.parametrize("shift", [1.0, 3.0])
def test_unipc_on_a_flow(shift, monkeypatch):
    """Theirs stops just short of pure noise and cuts the timesteps to whole ones: told neither, it agrees."""
    monkeypatch.setattr(f"{__name__}.denoise", lambda x, timestep: 0.7 * torch.tanh(1.3 * x))
    settings = {"use_flow_sigmas": True, "flow_shift": shift, "prediction_type": "flow_prediction"}
    scheduler = schedulers.UniPCMultistepScheduler(**settings)
    scheduler.set_timesteps(20)
    x = noise()
    for timestep, sigma in zip(scheduler.timesteps, scheduler.sigmas.double(), strict=False):
        x = scheduler.step((x - denoise(x, timestep)) / sigma, timestep, x).prev_sample
    settings = {"num_steps": 20, "spacing": "linspace", "offset": 0, "end": "clean", "lower_order_final": True}
    same(unipc(denoise, noise(), flow(shift), **settings), x)
