"""Every objective with every sampler, as conf/ has them: built, trained on for a moment, sampled from."""

import functools
import inspect
from pathlib import Path

import hydra
import pytest
import torch
from omegaconf import OmegaConf

from vdm import config
from vdm.diffusion.guidance import classifier_free, guided
from vdm.diffusion.noise import noise_for
from vdm.errors import ConfigError
from vdm.types import Controls, LatentShape

CONF = Path(__file__).resolve().parents[2] / "conf"
OBJECTIVES = sorted(path.stem for path in (CONF / "objective").glob("*.yaml"))
SAMPLERS = sorted(path.stem for path in (CONF / "sampler").glob("*.yaml"))
SHAPE = LatentShape(2, 2, 4, 4)
KEYS = ["a", "b", "c"]


def load(group, name, **changes):
    return {**OmegaConf.to_container(OmegaConf.load(CONF / group / f"{name}.yaml")), **changes}


def make(group, name, **changes):
    return hydra.utils.instantiate(load(group, name, **changes))


def test_the_choices():
    assert OBJECTIVES == ["epsilon", "flow", "v"]
    assert SAMPLERS == ["ddim", "ddpm", "dpm_solver", "euler", "heun", "unipc"]


@pytest.mark.parametrize(("group", "name"), [("objective", o) for o in OBJECTIVES] + [("sampler", s) for s in SAMPLERS])
def test_a_default_lives_in_the_yaml_only(group, name):
    node = load(group, name)
    config.check_resolved({group: node})
    module, _, attribute = node["_target_"].rpartition(".")
    parameters = inspect.signature(getattr(__import__(module, fromlist=[attribute]), attribute)).parameters
    defaults = {name for name, p in parameters.items() if p.default is not inspect.Parameter.empty}
    assert not defaults & set(node)
    required = {name for name, p in parameters.items() if p.default is inspect.Parameter.empty}
    assert required - {"denoise", "noise", "schedule"} <= set(node)


@pytest.mark.parametrize(
    ("group", "name", "change"),
    [
        ("objective", "epsilon", {"prediction": "noise"}),
        ("objective", "flow", {"loss": "l3"}),
        ("objective", "v", {"min_snr_gamma": 0}),
        ("sampler", "ddim", {"eta": -1.0}),
        ("sampler", "ddim", {"spacing": "even"}),
        ("sampler", "dpm_solver", {"end": "zero"}),
        ("sampler", "unipc", {"num_steps": 0}),
        ("sampler", "euler", {"steps": 20}),
    ],
)
def test_wrong_settings_are_found_before_anything_is_built(group, name, change):
    with pytest.raises(ConfigError, match=f"{group}.{next(iter(change))}"):
        config.check_resolved({group: load(group, name, **change)})


class Backbone(torch.nn.Module):
    """As small as a backbone can be that reads its latent, its timestep and its text."""

    def __init__(self):
        super().__init__()
        self.mix = torch.nn.Linear(SHAPE.channels, SHAPE.channels)

    def forward(self, x, timestep, controls):
        told = controls.embed.mean(dim=1).view(-1, 1, 1, 1, 1) + timestep.view(-1, 1, 1, 1, 1) / 1000
        return self.mix(x.movedim(1, -1)).movedim(-1, 1) + told


@pytest.mark.parametrize("objective", OBJECTIVES)
@pytest.mark.parametrize("sampler", SAMPLERS)
def test_train_then_sample(objective, sampler):
    torch.manual_seed(0)
    objective, sampler, backbone = make("objective", objective), make("sampler", sampler, num_steps=6), Backbone()
    latent, controls = torch.randn(3, *SHAPE), Controls(embed=torch.randn(3, 4))
    draw = objective.draw(KEYS, 0, 0, SHAPE, "cpu")
    loss = objective(backbone, latent, controls, noise=draw.noise, timestep=draw.timestep)
    loss.mean().backward()
    assert loss.shape == (3,)
    assert backbone.mix.weight.grad.isfinite().all()

    def sample(keys, controls):
        predict = guided(
            lambda controls: functools.partial(backbone, controls=controls),
            lambda said: controls if said else Controls(embed=torch.zeros_like(controls.embed)),
            classifier_free(["text"], 3.0, rescale=0.5, interval=(0.1, 0.9)),
            num_timesteps=objective.schedule.num_timesteps,
        )
        return sampler(
            objective.denoiser_of(predict),
            noise_for(keys, 1, SHAPE),
            objective.schedule.at_resolution(SHAPE),
            step_noise=lambda step: noise_for(keys, 1, SHAPE, step=step),
        )

    together = sample(KEYS, controls)
    assert together.shape == (3, *SHAPE)
    assert together.isfinite().all()
    assert not together.requires_grad
    torch.testing.assert_close(sample(["c"], controls[2:]), together[2:], rtol=1e-4, atol=1e-4)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("sampler", SAMPLERS)
def test_a_gpu_samples_the_same(sampler):
    objective, sampler = make("objective", "v"), make("sampler", sampler, num_steps=6)
    controls = Controls(embed=torch.ones(3, 4))
    torch.manual_seed(0)
    backbone = Backbone()
    found = [
        sampler(
            objective.denoiser(backbone.to(device), controls.to(device)),
            noise_for(KEYS, 1, SHAPE, device),
            objective.schedule,
            step_noise=lambda step, device=device: noise_for(KEYS, 1, SHAPE, device, step=step),
        ).cpu()
        for device in ("cpu", "cuda")
    ]
    torch.testing.assert_close(*found, rtol=1e-4, atol=1e-4)
