import math

import pytest
import torch

from vdm.autoencoder.base import DiagonalGaussian
from vdm.errors import ConfigError


@pytest.mark.parametrize(
    ("mean", "std", "nats"), [(0.0, 1.0, 0.0), (1.0, 1.0, 0.5), (0.0, 2.0, 0.80685282), (2.0, 0.5, 2.31814718)]
)
def test_kl_in_nats(mean, std, nats):
    moments = torch.tensor([mean, 2 * math.log(std)]).view(1, 2, 1, 1, 1)
    assert DiagonalGaussian(moments).kl().item() == pytest.approx(nats, abs=1e-6)
    clip = moments.expand(3, 2, 2, 4, 5)
    torch.testing.assert_close(DiagonalGaussian(clip).kl(), torch.full((3,), nats * 40), atol=1e-3, rtol=1e-5)


def test_samples_have_the_posteriors_mean_and_deviation():
    moments = torch.tensor([1.5, 2 * math.log(0.3)]).view(1, 2, 1, 1, 1).expand(1, 2, 10, 40, 40)
    posterior = DiagonalGaussian(moments)
    sample = posterior.sample(torch.Generator().manual_seed(0))
    assert sample.mean().item() == pytest.approx(1.5, abs=0.01)
    assert sample.std().item() == pytest.approx(0.3, abs=0.01)
    assert torch.equal(posterior.mode(), moments[:, :1])


def test_log_variance_is_bounded():
    moments = torch.full((1, 2, 1, 1, 1), 1e4)
    assert torch.isfinite(DiagonalGaussian(moments).sample()).all()


@pytest.mark.parametrize(("size", "key", "near"), [((8, 30, 32), "height", "28 or 32"), ((8, 32, 2), "width", "4")])
def test_a_clip_that_does_not_divide_is_refused_with_the_remedy(conv3d, size, key, near):
    model = conv3d(stride=(1, 4, 4), patch=(1, 4, 4), multipliers=[1])
    with pytest.raises(ConfigError) as error:
        model.encode(torch.zeros(1, 3, *size))
    message = str(error.value)
    assert f"data.clip.{key}={near}" in message
    assert "x".join(map(str, size)) in message
    assert "1x4x4" in message


def test_posterior_statistics_include_the_variance(conv3d):
    model = conv3d()
    video = torch.rand(4, 3, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        model.quant_conv.bias[model.latent_channels :] = 2.0  # a wide posterior
    model.normalise(model.latent_sums([video]))
    assert (model.encode(video).std((0, 2, 3, 4)) < 0.9).all()  # the means alone have less than unit variance
    generator = torch.Generator().manual_seed(0)
    samples = torch.cat([model.encode(video, generator=generator) for _ in range(20)])
    torch.testing.assert_close(samples.std((0, 2, 3, 4)), torch.ones(4), atol=0.05, rtol=0)


def test_sums_add_up_over_batches(conv3d):
    model = conv3d()
    video = torch.rand(6, 3, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    whole = model.latent_sums([video])
    torch.testing.assert_close(model.latent_sums([video[:2]]) + model.latent_sums([video[2:]]), whole)
    assert whole[0, 0] == 6 * 4 * 2 * 2
