"""What every autoencoder of conf/ has to keep, at reduced width. A new yaml is tested unasked."""

import copy
from pathlib import Path

import hydra
import pytest
import torch
from omegaconf import OmegaConf

from vdm.types import LatentShape

CONF = Path(__file__).parents[2] / "conf"
NAMES = sorted(p.stem for p in (CONF / "autoencoder").glob("*.yaml") if not p.stem.startswith("_"))


def build(name, **overrides):
    with hydra.initialize_config_dir(str(CONF / "autoencoder"), version_base="1.3"):
        config = hydra.compose(name)
    config = OmegaConf.to_container(config, resolve=True)
    narrow = {"channels": 8, "norm_groups": 4, "blocks": 1}
    config |= {key: value for key, value in narrow.items() if key in config} | overrides
    torch.manual_seed(0)
    return hydra.utils.instantiate(config).eval()


def clip(model, seed=0, batch=2):
    generator = torch.Generator().manual_seed(seed)
    return torch.rand(batch, 3, *(2 * s for s in model.stride), generator=generator) * 2 - 1


@pytest.fixture(params=NAMES)
def model(request):
    return build(request.param)


def test_shapes_are_those_announced(model):
    video = clip(model)
    latent = model.encode(video)
    assert model.latent_shape(*video.shape[2:]) == LatentShape(model.latent_channels, 2, 2, 2)
    assert latent.shape == (2, model.latent_channels, 2, 2, 2)
    assert model.decode(latent).shape == video.shape
    assert torch.isfinite(model.decode(latent)).all()


def test_encode_is_deterministic_and_samples_follow_the_generator(model):
    video = clip(model)
    draw = lambda seed: model.encode(video, generator=torch.Generator().manual_seed(seed))  # noqa: E731
    assert torch.equal(model.encode(video), model.encode(video))
    assert torch.equal(draw(1), draw(1))
    assert not torch.equal(draw(1), draw(2))
    assert torch.equal(model.decode(draw(1)), model.decode(draw(1)))


def test_every_parameter_gets_a_gradient(model):
    model.train()
    reconstruction, posterior = model(clip(model), generator=torch.Generator().manual_seed(0))
    (reconstruction.square().mean() + 1e-3 * posterior.kl().mean()).backward()
    silent = [name for name, p in model.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0]
    # The bias of keys cancels in the softmax.
    assert [name for name in silent if not name.endswith("to_k.bias")] == []


def test_clips_of_a_batch_do_not_see_each_other(model):
    video, order = clip(model, batch=3), [2, 0, 1]
    latent = model.encode(video)
    torch.testing.assert_close(model.encode(video[order]), latent[order], atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(model.decode(latent)[order], model.decode(latent[order]), atol=1e-5, rtol=1e-4)


def test_measured_latents_have_unit_variance_and_decode_to_the_same(model):
    video = clip(model, batch=4)
    before = model.decode(model.encode(video))
    model.normalise(model.latent_sums(video.split(2)))
    latent, axes = model.encode(video), (0, 2, 3, 4)
    noise = model.posterior(video).logvar.exp().mean(axes) * model.latent_scale**2
    torch.testing.assert_close(latent.mean(axes), torch.zeros_like(noise), atol=1e-4, rtol=0)
    torch.testing.assert_close(latent.var(axes, unbiased=False) + noise, torch.ones_like(noise), atol=1e-4, rtol=0)
    torch.testing.assert_close(model.decode(latent), before, atol=1e-4, rtol=1e-4)


def test_state_dict_carries_everything_even_the_scale(model, request):
    model.normalise(model.latent_sums([clip(model)]))
    twin = build(request.node.callspec.params["model"])
    with torch.no_grad():
        for p in twin.parameters():
            p.add_(1.0)
    twin.load_state_dict(model.state_dict())
    video = clip(model)
    assert torch.equal(twin.encode(video), model.encode(video))
    assert torch.equal(twin.decode(model.encode(video)), model.decode(model.encode(video)))


def test_last_layer_is_the_last(model):
    x = clip(model)
    model.reconstruct(model.posterior(x).mode()).sum().backward()
    assert model.last_layer.grad is not None
    assert any(p is model.last_layer for p in model.parameters())


@torch.no_grad()
def test_a_latent_does_not_depend_on_its_batch(model):
    video = clip(model, batch=5)
    whole = model.latents(video)
    assert torch.equal(whole[1:3], model.latents(video[1:3]))
    assert whole.is_contiguous()
    torch.testing.assert_close(whole, model.encode(video))


@torch.no_grad()
def test_only_independent_frames_are_said_to_be(model):
    """A cache cuts such latents in time."""
    t = model.stride[0]
    video = torch.rand(1, 3, 6 * t, 2 * model.stride[1], 2 * model.stride[2]) * 2 - 1
    torch.manual_seed(0)
    for parameter in model.parameters():  # some begin as zero
        torch.nn.init.normal_(parameter, std=0.2)
    whole, part = model.encode(video)[:, :, 2:4], model.encode(video[:, :, 2 * t : 4 * t])
    assert torch.allclose(whole, part, rtol=1e-4, atol=1e-5) == model.frames_are_independent


def test_the_fingerprint_is_that_of_the_weights(model):
    before = model.fingerprint()
    assert before == build_like(model).fingerprint()
    with torch.no_grad():
        model.latent_scale[0] += 1e-6
    assert model.fingerprint() != before


def build_like(model):
    other = copy.deepcopy(model)
    for parameter in other.parameters():
        parameter.data = parameter.data.contiguous(memory_format=torch.contiguous_format)
    return other
