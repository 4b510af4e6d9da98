"""Normalisation, activation and the convolution or linear layer behind them as one operation that keeps only its input.

Autograd would keep the input of each of the three for the backward pass. The normalised and the activated tensor cost a
few passes over memory to make again, and they are most of what a U-Net keeps. So each function here saves its input and
a few statistics, and repeats the cheap part; the convolutions and matrix products are never repeated. A compiler finds
this trade by itself: inside `torch.compile` the plain composition runs. It also runs where something else stands in the
place of a layer, such as a LoRA around it: what that computes is its own affair.

All tensors are channels-last: `b ... c`, contiguous. The custom functions return no views, so that a residual may be added
to their results in place.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from vdm.layers.product import is_plain, product

aten = torch.ops.aten


def norm_conv(
    x: Tensor,
    norm: nn.GroupNorm,
    conv: nn.Conv2d,
    *,
    scale_shift: Tensor | None = None,
    dropout: float = 0.0,
    add: Tensor | None = None,
) -> Tensor:
    """`conv(dropout(silu(norm(x)))) + add` for x `b h w c`. `scale_shift`, `b 2c`, modulates what the norm gives."""
    gain, offset = _affine(norm, scale_shift)
    if not is_plain(conv):
        activated = F.dropout(F.silu(_normalise(x, gain, offset, norm.num_groups, norm.eps)), dropout)
        out = conv(activated.permute(0, 3, 1, 2)).permute(0, 2, 3, 1).contiguous()
        return out if add is None else out + add
    weight, bias = _cast(conv.weight, x), _cast(conv.bias, x)
    if dropout:
        weight = weight / (1 - dropout)  # what is kept grows, here instead of in every activation
    if torch.compiler.is_compiling():
        activated = F.silu(_normalise(x, gain, offset, norm.num_groups, norm.eps))
        if dropout:
            activated = activated * (torch.rand_like(activated) >= dropout)
        out = F.conv2d(activated.permute(0, 3, 1, 2), weight, bias, padding=conv.padding)
    else:
        out = _GroupNormThen.apply(
            x, gain, offset, weight, bias, norm.num_groups, norm.eps, conv.padding, dropout, True
        )
    return (out if add is None else out.add_(add.permute(0, 3, 1, 2))).permute(0, 2, 3, 1)


def norm_linear(x: Tensor, norm: nn.GroupNorm | nn.LayerNorm, linear: nn.Linear) -> Tensor:
    """`linear(norm(x))`, without an activation in between. A group norm counts every axis but the first and last."""
    if not is_plain(linear):
        return linear(_layer_norm(x, norm) if isinstance(norm, nn.LayerNorm) else group_norm(x, norm))
    weight, bias = _cast(linear.weight, x), _cast(linear.bias, x)
    if isinstance(norm, nn.LayerNorm):
        if torch.compiler.is_compiling():
            return F.linear(_layer_norm(x, norm), weight, bias)
        gain, offset = _cast(norm.weight, x), _cast(norm.bias, x)
        return _LayerNormLinear.apply(x, gain, offset, weight, bias, norm.eps)
    gain, offset = _affine(norm, None)
    if torch.compiler.is_compiling():
        return F.linear(_normalise(x, gain, offset, norm.num_groups, norm.eps), weight, bias)
    return _GroupNormThen.apply(x, gain, offset, weight, bias, norm.num_groups, norm.eps, None, 0.0, False)


def group_norm(x: Tensor, norm: nn.GroupNorm) -> Tensor:
    """The norm by itself, over every axis but the first and last."""
    return _normalise(x, *_affine(norm, None), norm.num_groups, norm.eps)


def geglu_linear(x: Tensor, linear: nn.Linear, *, add: Tensor) -> Tensor:
    """`linear(value * gelu(gate)) + add` where x holds value and gate side by side (Shazeer, 2020)."""
    if torch.compiler.is_compiling() or not is_plain(linear):
        value, gate = x.chunk(2, dim=-1)
        return _called(linear, value * F.gelu(gate)) + add
    weight, bias = _cast(linear.weight, x), _cast(linear.bias, x)
    return _GegluLinear.apply(x, weight, bias, add)


def linear_add(x: Tensor, linear: nn.Linear, *, add: Tensor) -> Tensor:
    """`linear(x) + add`. `add` may have its rows in other axes than x."""
    if torch.compiler.is_compiling() or not is_plain(linear):
        return _called(linear, x).reshape(add.shape) + add
    weight, bias = _cast(linear.weight, x), _cast(linear.bias, x)
    return _LinearAdd.apply(x, weight, bias, add)


def drop_mask(shape: torch.Size, dropout: float, device: torch.device) -> Tensor:
    """True where a value is kept. Sixteen random bits decide each: several times faster than drawing a float on a CPU."""
    numel = math.prod(shape)
    bits = torch.empty((numel + 3) // 4, dtype=torch.int64, device=device).random_(-(2**63), None).view(torch.int16)
    return (bits[:numel] >= round(dropout * 2**16) - 2**15).view(shape)


class _GroupNormThen(torch.autograd.Function):
    """Group norm, optional SiLU and dropout, then a 2D convolution (4D weight) or a linear layer (2D weight)."""

    @staticmethod
    def forward(ctx, x, gain, offset, weight, bias, groups, eps, padding, dropout, silu):
        scale, shift, mean, rstd = _group_statistics(x, gain, offset, groups, eps)
        mask = drop_mask(x.shape, dropout, x.device) if dropout else None
        activated = _apply(x, scale, shift)
        if silu:
            F.silu(activated, inplace=True)
        if mask is not None:
            activated.mul_(mask)
        ctx.save_for_backward(x, gain, scale, shift, mean, rstd, mask, weight)
        ctx.settings = (groups, padding, silu, bias is not None)
        return _conv_or_linear(activated, weight, bias, padding)

    @staticmethod
    @once_differentiable
    def backward(ctx, grad):
        x, gain, scale, shift, mean, rstd, mask, weight = ctx.saved_tensors
        groups, padding, silu, has_bias = ctx.settings
        normalised = _apply(x, scale, shift)
        activated = F.silu(normalised) if silu else normalised
        if mask is not None:
            activated.mul_(mask)
        d_activated, d_weight, d_bias = _product_backward(
            grad, activated, weight, padding, ctx.needs_input_grad[3], has_bias
        )
        del activated
        if mask is not None:
            d_activated.mul_(mask)
        d_normalised = aten.silu_backward(d_activated, normalised) if silu else d_activated
        d_x, d_gain, d_offset = _group_norm_backward(d_normalised, x, gain, scale, mean, rstd, groups)
        return d_x, d_gain, d_offset, d_weight, d_bias, None, None, None, None, None


class _LayerNormLinear(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, gain, offset, weight, bias, eps):
        normalised, mean, rstd = aten.native_layer_norm(x, x.shape[-1:], gain, offset, eps)
        ctx.save_for_backward(x, gain, offset, weight, mean, rstd)
        ctx.settings = (eps, bias is not None)
        return product(normalised, weight, bias)

    @staticmethod
    @once_differentiable
    def backward(ctx, grad):
        x, gain, offset, weight, mean, rstd = ctx.saved_tensors
        eps, has_bias = ctx.settings
        normalised, _, _ = aten.native_layer_norm(x, x.shape[-1:], gain, offset, eps)
        d_normalised, d_weight, d_bias = _product_backward(
            grad, normalised, weight, None, ctx.needs_input_grad[3], has_bias
        )
        del normalised
        shape = list(x.shape[-1:])
        masks = [True, True, True]
        d_x, d_gain, d_offset = aten.native_layer_norm_backward(d_normalised, x, shape, mean, rstd, gain, offset, masks)
        return d_x, d_gain, d_offset, d_weight, d_bias, None


class _GegluLinear(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, weight, bias, add):
        value, gate = x.chunk(2, dim=-1)
        ctx.save_for_backward(x, weight)
        ctx.has_bias = bias is not None
        return product(F.gelu(gate).mul_(value), weight, bias, add=add)

    @staticmethod
    @once_differentiable
    def backward(ctx, grad):
        x, weight = ctx.saved_tensors
        value, gate = x.chunk(2, dim=-1)
        activated = F.gelu(gate)
        hidden = activated * value
        d_hidden, d_weight, d_bias = _product_backward(
            grad, hidden, weight, None, ctx.needs_input_grad[1], ctx.has_bias
        )
        del hidden
        d_x = torch.empty_like(x)
        d_value, d_gate = d_x.chunk(2, dim=-1)
        torch.mul(d_hidden, activated, out=d_value)
        aten.gelu_backward.grad_input(d_hidden.mul_(value), gate, grad_input=d_gate)
        return d_x, d_weight, d_bias, grad


class _LinearAdd(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, weight, bias, add):
        ctx.save_for_backward(x, weight)
        ctx.has_bias = bias is not None
        return product(x, weight, bias, add=add)

    @staticmethod
    @once_differentiable
    def backward(ctx, grad):
        x, weight = ctx.saved_tensors
        d_x, d_weight, d_bias = _product_backward(grad, x, weight, None, ctx.needs_input_grad[1], ctx.has_bias)
        return d_x, d_weight, d_bias, grad


def _layer_norm(x: Tensor, norm: nn.LayerNorm) -> Tensor:
    return F.layer_norm(x, norm.normalized_shape, _cast(norm.weight, x), _cast(norm.bias, x), norm.eps)


def _called(linear: nn.Module, x: Tensor) -> Tensor:
    if not is_plain(linear):
        return linear(x)
    return F.linear(x, _cast(linear.weight, x), _cast(linear.bias, x))


def _conv_or_linear(x: Tensor, weight: Tensor, bias: Tensor | None, padding: tuple[int, int] | None) -> Tensor:
    if padding is None:
        return product(x, weight, bias)
    return F.conv2d(x.permute(0, 3, 1, 2), weight, bias, padding=padding)


def _product_backward(
    grad: Tensor, x: Tensor, weight: Tensor, padding: tuple[int, int] | None, trained: bool, biased: bool
):
    """Gradients of input, weight and bias; the last two None where the weight is frozen."""
    biased = biased and trained
    if padding is None:
        rows = grad.reshape(-1, grad.shape[-1])
        d_x = product(rows, weight.T).view(x.shape)
        return d_x, rows.T @ x.reshape(-1, x.shape[-1]) if trained else None, rows.sum(0) if biased else None
    sizes = [weight.shape[0]] if biased else None
    d_x, d_weight, d_bias = aten.convolution_backward(
        grad, x.permute(0, 3, 1, 2), weight, sizes, (1, 1), padding, (1, 1), False, (0, 0), 1,
        [True, trained, biased],
    )  # fmt: skip
    return d_x.permute(0, 2, 3, 1), d_weight, d_bias


def _affine(norm: nn.GroupNorm, scale_shift: Tensor | None) -> tuple[Tensor, Tensor]:
    """Gain and offset of the norm, `1 c`, or `b c` when modulated; at least float32, like the statistics."""
    gain, offset = norm.weight[None], norm.bias[None]
    gain, offset = gain.to(_precise(gain)), offset.to(_precise(offset))
    if scale_shift is None:
        return gain, offset
    scale, shift = scale_shift.to(gain.dtype).chunk(2, dim=-1)
    return gain * (1 + scale), offset * (1 + scale) + shift


def _group_statistics(x: Tensor, gain: Tensor, offset: Tensor, groups: int, eps: float):
    """Group norm as one multiplication and addition per channel: `x * scale + shift`, with what its gradient needs."""
    rows, (b, c), precise = x.flatten(1, -2), (x.shape[0], x.shape[-1]), _precise(x)  # b p c
    sums = torch.stack([rows.sum(1, dtype=precise), rows.to(precise).square().sum(1)])  # 2 b c
    count = rows.shape[1] * (c // groups)
    mean, square = (sums.view(2, b, groups, -1).sum(3, keepdim=True) / count).unbind(0)  # b g 1
    variance = torch.addcmul(square, mean, mean, value=-1).clamp(min=0)
    rstd = (variance + eps).rsqrt()
    scale = gain.view(-1, groups, c // groups) * rstd  # b g c/g
    shift = torch.addcmul(offset.view(-1, groups, c // groups), scale, mean, value=-1)
    return scale.view(b, c), shift.view(b, c), mean, rstd


def _apply(x: Tensor, scale: Tensor, shift: Tensor) -> Tensor:
    shape = (x.shape[0], *[1] * (x.ndim - 2), x.shape[-1])
    return torch.addcmul(shift.view(shape).to(x.dtype), x, scale.view(shape).to(x.dtype))


def _normalise(x: Tensor, gain: Tensor, offset: Tensor, groups: int, eps: float) -> Tensor:
    scale, shift, _, _ = _group_statistics(x, gain, offset, groups, eps)
    return _apply(x, scale, shift)


def _group_norm_backward(grad: Tensor, x: Tensor, gain: Tensor, scale: Tensor, mean: Tensor, rstd: Tensor, groups: int):
    """Derivatives of `x * scale + shift` where scale and shift depend on x through mean and variance of its group."""
    rows, d_rows, (b, c), precise = x.flatten(1, -2), grad.flatten(1, -2), scale.shape, _precise(x)  # b p c
    sums = torch.stack([d_rows.sum(1, dtype=precise), (d_rows * rows).sum(1, dtype=precise)])  # 2 b c
    d_shift, d_scale = sums.view(2, b, groups, -1).unbind(0)  # b g c/g
    d_scale = torch.addcmul(d_scale, d_shift, mean, value=-1)
    count = rows.shape[1] * (c // groups)
    # What the group statistics add, b g 1: d_variance times 2 / count, and d_mean over count.
    linear = (d_scale * gain.view(-1, groups, c // groups)).sum(2, keepdim=True) * rstd.pow(3) * (-1 / count)
    constant = (d_shift * scale.view(b, groups, -1)).sum(2, keepdim=True) * (-1 / count) - mean * linear
    d_x = _apply(x, *torch.stack([linear, constant]).expand(2, b, groups, c // groups).reshape(2, b, c).unbind(0))
    d_x.addcmul_(grad, scale.view(b, *[1] * (x.ndim - 2), c).to(x.dtype))
    d_gain, d_offset = (d_scale * rstd).view(b, c), d_shift.reshape(b, c)
    if gain.shape[0] == 1:
        d_gain, d_offset = d_gain.sum(0, keepdim=True), d_offset.sum(0, keepdim=True)
    return d_x, d_gain, d_offset


def _precise(x: Tensor) -> torch.dtype:
    """What sums are kept in."""
    return torch.promote_types(x.dtype, torch.float32)


def _cast(parameter: Tensor | None, x: Tensor) -> Tensor | None:
    """Parameters follow the data, as under autocast."""
    return parameter if parameter is None or parameter.dtype == x.dtype else parameter.to(x.dtype)
