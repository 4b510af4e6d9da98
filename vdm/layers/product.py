"""Matrix products of a layer, without autograd: what the custom functions of this package are made of. They read the
weights of a layer instead of calling it, which is right for plain layers only.

`F.linear` hands float32 on a CPU to MKL. oneDNN's kernels are a tenth to a half faster at the sizes of a U-Net, and add a
residual on the way, so they are taken where torch has them.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

try:
    _onednn = torch.ops.mkldnn._linear_pointwise
except AttributeError:  # torch was built without
    _onednn = None
_SMALL = 64  # rows: below, a call of oneDNN costs more than it saves


def is_plain(layer: nn.Module) -> bool:
    """Whether its weight and bias say all that it computes. Something put around a layer has the type of another."""
    return type(layer) in (nn.Linear, nn.Conv2d)


def product(x: Tensor, weight: Tensor, bias: Tensor | None = None, *, add: Tensor | None = None) -> Tensor:
    """`x @ weight.T + bias + add` for x `... k` and weight `n k`; in the shape of `add`, which has as many rows as x."""
    rows = x.reshape(-1, x.shape[-1])
    shape = (*x.shape[:-1], len(weight)) if add is None else add.shape
    if not _has_kernel(rows):
        out = F.linear(rows, weight, bias)
        return (out if add is None else out.add_(add.reshape(out.shape))).view(shape)
    if add is None:
        return _onednn(rows, weight, bias, "none", [], "").view(shape)
    return _onednn.binary(rows, add.reshape(len(rows), len(weight)), weight, bias, "add").view(shape)


def _has_kernel(rows: Tensor) -> bool:
    return (
        _onednn is not None
        and rows.dtype == torch.float32
        and rows.device.type == "cpu"
        and len(rows) >= _SMALL
        and not torch.is_autocast_enabled("cpu")
    )
