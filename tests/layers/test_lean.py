"""The fused layers against the plain composition in float64: values, all gradients, and what they keep in memory."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from vdm.layers.lean import drop_mask, geglu_linear, linear_add, norm_conv, norm_linear

torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def _doubles():
    torch.manual_seed(0)
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


def randomised(module: nn.Module) -> nn.Module:
    for parameter in module.parameters():
        nn.init.normal_(parameter, std=0.5)
    return module


def agree(fused, plain, inputs, parameters):
    everything = [*inputs, *parameters]
    one, other = fused(*inputs), plain(*inputs)
    torch.testing.assert_close(one, other, rtol=1e-10, atol=1e-10)
    direction = torch.randn_like(one)
    gradients = [torch.autograd.grad((out * direction).sum(), everything) for out in (one, other)]
    for a, b in zip(*gradients, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize(("kernel", "padding"), [((3, 3), (1, 1)), ((3, 1), (1, 0))])
@pytest.mark.parametrize("modulated", [False, True])
def test_norm_conv_is_its_composition(kernel, padding, modulated):
    norm, conv = randomised(nn.GroupNorm(2, 6)), randomised(nn.Conv2d(6, 4, kernel, padding=padding))
    x, shift = torch.randn(3, 5, 4, 6, requires_grad=True) + 2, torch.randn(3, 1, 1, 4, requires_grad=True)
    scale_shift = torch.randn(3, 12, requires_grad=True)

    def plain(x, shift, scale_shift):
        normal = norm(x.permute(0, 3, 1, 2))
        if modulated:
            scale, offset = scale_shift[..., None, None].chunk(2, dim=1)
            normal = normal * (1 + scale) + offset
        return conv(F.silu(normal)).permute(0, 2, 3, 1) + shift + 0 * scale_shift.sum()

    def fused(x, shift, scale_shift):
        out = norm_conv(x, norm, conv, scale_shift=scale_shift if modulated else None, add=shift)
        return out + 0 * scale_shift.sum()

    agree(fused, plain, (x, shift, scale_shift), [*norm.parameters(), *conv.parameters()])


@pytest.mark.parametrize("norm", [nn.LayerNorm(6), nn.GroupNorm(3, 6, eps=1e-6)], ids=["layer", "group"])
def test_norm_linear_is_its_composition(norm):
    norm, linear = randomised(norm.double()), randomised(nn.Linear(6, 5))
    x = torch.randn(2, 4, 6, requires_grad=True)

    def plain(x):
        return linear(norm(x) if isinstance(norm, nn.LayerNorm) else norm(x.transpose(1, 2)).transpose(1, 2))

    agree(lambda x: norm_linear(x, norm, linear), plain, (x,), [*norm.parameters(), *linear.parameters()])


def test_geglu_and_residual_are_their_compositions():
    linear = randomised(nn.Linear(6, 4))
    x, residual = torch.randn(2, 3, 12, requires_grad=True), torch.randn(2, 3, 4, requires_grad=True)

    def plain(x, residual):
        value, gate = x.chunk(2, dim=-1)
        return linear(value * F.gelu(gate)) + residual

    agree(lambda x, r: geglu_linear(x, linear, add=r), plain, (x, residual), list(linear.parameters()))
    narrow = torch.randn(2, 3, 6, requires_grad=True)
    agree(lambda x, r: linear_add(x, linear, add=r), lambda x, r: linear(x) + r, (narrow, residual), [linear.weight])


def test_dropout_gradient_is_of_the_mask_that_was_drawn():
    norm, conv = randomised(nn.GroupNorm(1, 2)), randomised(nn.Conv2d(2, 2, (3, 1), padding=(1, 0)))

    def seeded(x):
        torch.manual_seed(3)
        return norm_conv(x, norm, conv, dropout=0.4)

    x = torch.randn(1, 3, 2, 2, requires_grad=True)
    assert torch.autograd.gradcheck(seeded, (x,))
    assert not torch.equal(seeded(x), norm_conv(x, norm, conv))


@pytest.mark.parametrize("dropout", [0.1, 0.5, 0.9])
def test_drop_mask_keeps_the_right_share(dropout):
    mask = drop_mask(torch.Size((400, 500)), dropout, torch.device("cpu"))
    assert mask.dtype == torch.bool
    assert abs(mask.double().mean().item() - (1 - dropout)) < 0.005  # five standard deviations
    assert abs((mask[:, 1:] & mask[:, :-1]).double().mean().item() - (1 - dropout) ** 2) < 0.005  # independent


def test_frozen_weights_get_no_gradient_and_pass_one_on():
    norm, conv, linear = nn.GroupNorm(2, 4), nn.Conv2d(4, 4, 3, padding=1), nn.Linear(4, 4)
    for module in (norm, conv, linear):
        module.requires_grad_(False)
    x = torch.randn(1, 3, 3, 4, requires_grad=True)
    norm_linear(norm_conv(x, norm, conv), nn.LayerNorm(4), linear).sum().backward()
    assert x.grad.abs().sum() > 0
    assert conv.weight.grad is None
    assert linear.weight.grad is None


def test_only_the_input_is_kept():
    norm, conv = nn.GroupNorm(2, 8), nn.Conv2d(8, 8, 3, padding=1)
    x, kept = torch.randn(2, 16, 16, 8, requires_grad=True), {}

    def note(tensor):
        kept[tensor.untyped_storage().data_ptr()] = tensor.numel()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        norm_conv(x, norm, conv)
    assert sum(kept.values()) < 1.5 * x.numel()


def test_reduced_precision_keeps_its_statistics_in_float32():
    torch.set_default_dtype(torch.float32)
    norm, conv = nn.GroupNorm(2, 8), nn.Conv2d(8, 8, 3, padding=1)
    x = torch.randn(2, 16, 16, 8) + 5  # a mean far from zero cancels in bfloat16
    exact, rough = norm_conv(x, norm, conv), norm_conv(x.bfloat16(), norm, conv)
    assert rough.dtype == torch.bfloat16
    assert (rough.float() - exact).abs().max() < 0.1 * exact.abs().max()
