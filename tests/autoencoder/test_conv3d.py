import pytest
import torch
from torch import nn

from vdm.autoencoder.conv3d import ChannelNorm
from vdm.errors import ConfigError


def convolutions(model):
    return [m for m in model.modules() if isinstance(m, nn.Conv3d | nn.ConvTranspose3d)]


def test_the_papers_network(conv3d):
    model = conv3d(stride=(4, 8, 8), channels=32, multipliers=(2, 4, 8), decoder_blocks=2, norm_groups=32)
    assert model.latent_shape(16, 256, 256) == (4, 4, 32, 32)
    latent = model.encode(torch.zeros(1, 3, 8, 16, 8))
    assert latent.shape == (1, 4, 2, 2, 1)
    assert model.decode(latent).shape == (1, 3, 8, 16, 8)
    resampling = [
        (m.in_channels, m.out_channels, m.stride, m.kernel_size) for m in convolutions(model) if max(m.stride) > 1
    ]
    assert resampling == [
        (32, 64, (2, 2, 2), (4, 4, 4)),
        (64, 128, (2, 2, 2), (4, 4, 4)),
        (128, 256, (1, 2, 2), (3, 4, 4)),  # time has reached its stride
        (256, 256, (1, 2, 2), (3, 4, 4)),
        (256, 128, (2, 2, 2), (4, 4, 4)),
        (128, 64, (2, 2, 2), (4, 4, 4)),
    ]
    assert model.quant_conv.weight.shape == (8, 8, 1, 1, 1)
    assert model.post_quant_conv.weight.shape == (4, 4, 1, 1, 1)


@pytest.mark.parametrize("upsample", ["transposed", "nearest"])
@pytest.mark.parametrize("stride", [(1, 1, 1), (1, 2, 4), (2, 4, 4), (4, 2, 1), (8, 2, 2)])
def test_any_power_of_two(conv3d, stride, upsample):
    model = conv3d(stride=stride, multipliers=(1, 1, 1), upsample=upsample)
    x = torch.zeros(1, 3, 2 * stride[0], 2 * stride[1], 4 * stride[2])
    assert model.encode(x).shape == (1, 4, 2, 2, 4)
    assert model.decode(model.encode(x)).shape == x.shape


def test_stride_is_what_the_patch_leaves(conv3d):
    model = conv3d(stride=(2, 8, 8), patch=(2, 4, 4), multipliers=(1,))
    assert [m.stride for m in convolutions(model) if max(m.stride) > 1] == [(1, 2, 2), (1, 2, 2)]


@pytest.mark.parametrize(
    ("settings", "key"),
    [
        ({"stride": (1, 3, 4)}, "autoencoder.stride"),
        ({"stride": (1, 4, 4), "patch": (1, 8, 4)}, "autoencoder.stride"),
        ({"stride": (1, 0, 4)}, "autoencoder.stride"),
        ({"stride": (1, 16, 16)}, "autoencoder.multipliers"),
        ({"norm_groups": 3}, "autoencoder.norm_groups"),
    ],
)
def test_impossible_settings_are_refused(conv3d, settings, key):
    with pytest.raises(ConfigError) as error:
        conv3d(**settings)
    assert error.value.key == key
    assert error.value.remedy


def test_the_shortcut_alone_is_a_projection(conv3d):
    model = conv3d(shortcut=True, latent_channels=8)
    with torch.no_grad():
        for part in (model.encoder, model.decoder, model.quant_conv, model.post_quant_conv):
            for p in part.parameters():
                p.zero_()
    x = torch.rand(2, 3, 2, 8, 8, generator=torch.Generator().manual_seed(0))
    once = model.decode(model.encode(x))
    assert not torch.allclose(once, x, atol=0.1)
    torch.testing.assert_close(model.decode(model.encode(once)), once)  # averages of averages
    torch.testing.assert_close(once.mean(), x.mean())


def test_variance_reaches_the_latent_through_many_layers(conv3d):
    x = torch.randn(2, 3, 8, 32, 32, generator=torch.Generator().manual_seed(0))
    model = conv3d(stride=(4, 8, 8), multipliers=(2, 2, 2), encoder_blocks=3)
    across = model.posterior(x).mean.std((0, 2, 3, 4))
    assert (across > 0.1).all()  # PyTorch's own initialisation leaves about 0.01


def test_a_still_video_stays_still_with_replicated_borders(conv3d):
    """Zero padding would darken the first and the last frames."""
    frame = torch.rand(1, 3, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    spread = {}
    for padding in ("replicate", "zeros"):
        latent = conv3d(padding=padding, norm="channel", upsample="nearest").encode(frame.repeat(1, 1, 6, 1, 1))
        spread[padding] = (latent - latent[:, :, :1]).abs().max()
    assert spread["replicate"] < 1e-5 < 1e-3 < spread["zeros"]


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last_3d])
def test_channel_norm(memory_format):
    x = torch.randn(2, 6, 2, 3, 3, generator=torch.Generator().manual_seed(0)) * 5 + 2
    y = ChannelNorm(6)(x.contiguous(memory_format=memory_format))
    torch.testing.assert_close(y.mean(1), torch.zeros(2, 2, 3, 3), atol=1e-5, rtol=0)
    torch.testing.assert_close(y.var(1, unbiased=False), torch.ones(2, 2, 3, 3), atol=1e-3, rtol=0)


def test_memory_format_changes_no_number(conv3d):
    x = torch.randn(2, 3, 4, 16, 16, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(conv3d(channels_last=True).encode(x), conv3d().encode(x), atol=1e-5, rtol=1e-4)
