"""A 3 x 3 convolution of an image twice its size, without making that image.

In a row that repeats every value, the three taps w0 w1 w2 meet two values only, and with S = w0 + w1 + w2 and differences
D[i] = x[i] - x[i - 1] (zeros around x) the even and odd results are

    out[2i] = S x[i] - w0 D[i]        out[2i + 1] = S x[i] + w2 D[i + 1]

Three products make two results where the convolution takes six; in two dimensions that is a fourth of the work. The
numbers are those of the convolution up to rounding. On a GPU, where memory and not arithmetic sets the pace, inside
`torch.compile` and where something is put around the convolution, the plain composition runs.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from vdm.layers.product import is_plain, product

TAPS = ((-1.0, 0.0, 0.0), (1.0, 1.0, 1.0), (0.0, 0.0, 1.0))  # what D[i], x[i] and D[i + 1] are multiplied by


def upsampled_conv(x: Tensor, conv: nn.Conv2d) -> Tensor:
    """`conv` of x `b h w c` with every pixel repeated in both directions: `b 2h 2w c`."""
    is_elsewhere = x.device.type != "cpu" or torch.is_autocast_enabled("cpu") or torch.compiler.is_compiling()
    if is_elsewhere or not is_plain(conv):
        larger = F.interpolate(x.permute(0, 3, 1, 2), scale_factor=2.0, mode="nearest")
        return conv(larger).permute(0, 2, 3, 1)
    return _UpsampledConv.apply(x, conv.weight, conv.bias)


class _UpsampledConv(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, weight, bias):
        ctx.save_for_backward(x, weight)
        kernels = _kernels(weight)
        down, right, both = _differences(x)
        (h, w), o = x.shape[1:3], weight.shape[0]
        same = product(x, kernels[1, 1], bias)  # b h w o
        columns = product(right, kernels[1, ::2].flatten(0, 1)).chunk(2, dim=-1)  # b h w+1 o
        rows = product(down, kernels[::2, 1].flatten(0, 1)).chunk(2, dim=-1)  # b h+1 w o
        corners = product(both, kernels[::2, ::2].flatten(0, 2)).chunk(4, dim=-1)  # b h+1 w+1 o
        out = same.new_empty(len(x), h, 2, w, 2, o)
        for j, column in enumerate(columns):
            upright = same + column[:, :, j : j + w]
            for i, row in enumerate(rows):
                part = row[:, i : i + h] + corners[2 * i + j][:, i : i + h, j : j + w]
                torch.add(upright, part, out=out[:, :, i, :, j])
        return out.view(len(x), 2 * h, 2 * w, o)

    @staticmethod
    @once_differentiable
    def backward(ctx, grad):
        x, weight = ctx.saved_tensors
        (b, h, w, c), o = x.shape, weight.shape[0]
        grad = grad.reshape(b, h, 2, w, 2, o)
        d_rows, d_columns = grad.new_zeros(b, h + 1, w, 2, o), grad.new_zeros(b, h, w + 1, 2, o)
        d_corners = grad.new_zeros(b, h + 1, w + 1, 4, o)
        for i in range(2):
            torch.add(grad[:, :, i, :, 0], grad[:, :, i, :, 1], out=d_rows[:, i : i + h, :, i])
            torch.add(grad[:, :, 0, :, i], grad[:, :, 1, :, i], out=d_columns[:, :, i : i + w, i])
            for j in range(2):
                d_corners[:, i : i + h, j : j + w, 2 * i + j] = grad[:, :, i, :, j]
        d_same = d_rows[:, :h, :, 0] + d_rows[:, 1:, :, 1]
        grads = d_same, d_columns.flatten(3), d_rows.flatten(3), d_corners.flatten(3)
        kernels = _kernels(weight)
        flat = kernels[1, 1], *(k.reshape(-1, c) for k in (kernels[1, ::2], kernels[::2, 1], kernels[::2, ::2]))
        d_x, d_right, d_down, d_both = (product(g, k.T) for g, k in zip(grads, flat, strict=True))
        d_down += d_both[:, :, :-1] - d_both[:, :, 1:]
        d_x += (d_right[:, :, :-1] - d_right[:, :, 1:]).add_(d_down[:, :-1] - d_down[:, 1:])
        if not ctx.needs_input_grad[1]:
            return d_x, None, None
        down, right, both = _differences(x)
        d_kernels = torch.empty_like(kernels)
        places = d_kernels[1, 1], d_kernels[1, ::2], d_kernels[::2, 1], d_kernels[::2, ::2]
        for place, g, read in zip(places, grads, (x, right, down, both), strict=True):
            place.copy_((g.flatten(0, 2).T @ read.flatten(0, 2)).view(place.shape))
        d_weight = torch.mm(_taps(weight).T, d_kernels.view(9, -1)).view(3, 3, o, c).permute(2, 3, 0, 1)
        return d_x, d_weight, d_same.sum((0, 1, 2)) if ctx.needs_input_grad[2] else None


def _kernels(weight: Tensor) -> Tensor:
    """What each kind of row and column is multiplied by: `3 3 o c`."""
    o, c = weight.shape[:2]
    return torch.mm(_taps(weight), weight.permute(2, 3, 0, 1).reshape(9, -1)).view(3, 3, o, c)


def _taps(like: Tensor) -> Tensor:
    taps = torch.tensor(TAPS, dtype=like.dtype, device=like.device)
    return torch.kron(taps, taps)


def _differences(x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Between neighbours, zeros outside: downwards `b h+1 w c`, to the right `b h w+1 c`, and both `b h+1 w+1 c`."""
    right = _beside(x)
    down = F.pad(x, (0, 0, 0, 0, 0, 1))
    down[:, 1:] -= x
    return down, right, _beside(down)


def _beside(x: Tensor) -> Tensor:
    right = F.pad(x, (0, 0, 0, 1))
    right[:, :, 1:] -= x
    return right
