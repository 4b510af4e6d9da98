"""The convolution of an enlarged image against the plain composition in float64: values and all gradients."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from vdm.layers.subpixel import upsampled_conv

torch.set_num_threads(1)


@pytest.mark.parametrize("size", [(1, 1), (3, 4), (5, 2)])
@pytest.mark.parametrize("bias", [True, False])
def test_it_is_the_convolution_of_the_enlarged_image(size, bias):
    torch.manual_seed(0)
    conv = nn.Conv2d(5, 6, 3, padding=1, bias=bias).double()
    x = torch.randn(2, *size, 5, dtype=torch.float64, requires_grad=True)

    def plain(x):
        return conv(F.interpolate(x.permute(0, 3, 1, 2), scale_factor=2.0)).permute(0, 2, 3, 1)

    one, other = upsampled_conv(x, conv), plain(x)
    torch.testing.assert_close(one, other, rtol=1e-12, atol=1e-12)
    direction = torch.randn_like(one)
    everything = [x, *conv.parameters()]
    gradients = [torch.autograd.grad((out * direction).sum(), everything) for out in (one, other)]
    for a, b in zip(*gradients, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-12)


def test_float32_is_as_exact_as_the_convolution():
    torch.manual_seed(0)
    conv, x = nn.Conv2d(64, 64, 3, padding=1), torch.randn(2, 16, 16, 64)
    double = nn.Conv2d(64, 64, 3, padding=1).double()
    double.load_state_dict(conv.state_dict())
    exact = upsampled_conv(x.double(), double)
    assert (upsampled_conv(x, conv) - exact).abs().max() < 5e-6


def test_a_frozen_layer_gets_no_gradient_and_passes_one_on():
    conv = nn.Conv2d(4, 4, 3, padding=1).requires_grad_(False)
    x = torch.randn(1, 3, 3, 4, requires_grad=True)
    upsampled_conv(x, conv).sum().backward()
    assert x.grad.abs().sum() > 0
    assert conv.weight.grad is None


def test_autocast_computes_in_its_precision():
    conv, x = nn.Conv2d(8, 8, 3, padding=1), torch.randn(1, 4, 4, 8)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        out = upsampled_conv(x, conv)
    assert out.dtype == torch.bfloat16
    assert (out.float() - upsampled_conv(x, conv)).abs().max() < 0.05
