"""Self-attention, cross-attention to token streams, and the gated feed-forward. Each is pre-norm and adds its residual.

Projections that are used together are one matrix, packed per head (q, k, v of head 0, then of head 1, ...), so that
every view attention needs is a view and not a copy. Tokens are projected to K and V once per sample: all frames of a clip
attend to the same tensors, and `visible` decides what each frame may look at.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vdm.layers.lean import geglu_linear, linear_add, norm_linear

TEXT = "text"  # the base stream: it has no gate
FEW = 32  # keys


class KeysValues(NamedTuple):
    """Projected tokens of one stream for one block."""

    keys: Tensor  # b heads n d
    values: Tensor  # b heads n d


class Sight(NamedTuple):
    """What the rows of a frame may look at, in the form attention reads."""

    bias: Tensor  # b 1 (t h w) n, or b 1 1 n: 0 or -inf
    sees: Tensor  # b (t h w) 1, or b 1 1: whether there is anything to see


def per_head(packed: Tensor, heads: int, parts: int) -> list[Tensor]:
    """`b p (heads parts d)` as `parts` views `b heads p d`. Unbound before they are turned, so that their gradients are
    stacked in the layout of `packed`."""
    return [part.transpose(1, 2) for part in packed.unflatten(-1, (heads, parts, -1)).unbind(3)]


def attend(q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None = None) -> Tensor:
    """Attention `b heads p d` over rows. On a CPU the fused kernel learns slowly where there are few keys."""
    if q.device.type != "cpu" or k.shape[-2] > FEW or not torch.is_grad_enabled():
        return F.scaled_dot_product_attention(q, k, v, attn_mask=bias)
    scores = (q * q.shape[-1] ** -0.5) @ k.mT
    return (scores if bias is None else scores + bias).softmax(dim=-1) @ v


def sight(visible: Tensor, positions: int, dtype: torch.dtype) -> Sight:
    """From `visible` (b t n): a row that sees nothing looks at everything, and its result is multiplied by zero."""
    rows = visible.repeat_interleave(positions, dim=1) if visible.shape[1] > 1 else visible  # b (t h w) n
    sees = rows.any(dim=2, keepdim=True)
    bias = torch.zeros(rows.shape, dtype=dtype, device=rows.device).masked_fill_(sees & ~rows, -torch.inf)
    return Sight(bias[:, None], sees.to(dtype))


class SelfAttention(nn.Module):
    """Attention of the rows `b p c` of each sample to each other."""

    def __init__(self, *, width: int, heads: int, head_width: int):
        super().__init__()
        self.heads, self.head_width = heads, head_width
        self.norm = nn.LayerNorm(width)
        self.to_qkv = nn.Linear(width, 3 * heads * head_width, bias=False)
        self.to_out = nn.Linear(heads * head_width, width)

    def forward(self, x: Tensor) -> Tensor:
        qkv = norm_linear(x, self.norm, self.to_qkv)  # b p (heads 3 d)
        q, k, v = per_head(qkv, self.heads, 3)  # b heads p d
        attended = attend(q, k, v)
        return linear_add(attended.transpose(1, 2).flatten(2), self.to_out, add=x)  # b p c


class StreamProjection(nn.Module):
    """K and V of one token stream. The base stream starts with V = 0, every other one with a closed gate, so that
    attaching either changes nothing."""

    def __init__(self, *, token_width: int, inner: int, gated: bool):
        super().__init__()
        self.to_kv = nn.Linear(token_width, 2 * inner, bias=False)
        self.gate = nn.Parameter(torch.zeros(())) if gated else None

    def reset_values(self, head_width: int) -> None:
        with torch.no_grad():
            self.to_kv.weight.unflatten(0, (-1, 2, head_width))[:, 1].zero_()


class CrossAttention(nn.Module):
    """One query, and per stream its own K and V: `out(A(q, text) + sum_s tanh(gate_s) A(q, s))`."""

    def __init__(self, *, width: int, heads: int, head_width: int):
        super().__init__()
        self.heads, self.head_width = heads, head_width
        inner = heads * head_width
        self.norm = nn.LayerNorm(width)
        self.to_q = nn.Linear(width, inner, bias=False)
        self.to_out = nn.Linear(inner, width)
        nn.init.zeros_(self.to_out.bias)  # with nothing to look at, nothing is added
        self.streams = nn.ModuleDict()

    def attach(self, stream: str, token_width: int) -> None:
        weight = self.to_q.weight
        projection = StreamProjection(token_width=token_width, inner=weight.shape[0], gated=stream != TEXT)
        if stream == TEXT:
            projection.reset_values(self.head_width)
        self.streams[stream] = projection.to(weight.device, weight.dtype)

    def project(self, stream: str, tokens: Tensor) -> KeysValues:
        kv = self.streams[stream].to_kv(tokens)  # b n (heads 2 d)
        return KeysValues(*per_head(kv, self.heads, 2))

    def forward(self, x: Tensor, tokens: Mapping[str, Tensor | KeysValues], sights: Mapping[str, Sight]) -> Tensor:
        """x is `b (t h w) c`: the rows of all frames. A stream comes as tokens `b n d`, or as projected before."""
        if not tokens:
            return x + self.to_out.bias
        (q,) = per_head(norm_linear(x, self.norm, self.to_q), self.heads, 1)
        attended = None
        for stream, given in tokens.items():
            keys, values = self.project(stream, given) if isinstance(given, Tensor) else given
            seen = sights.get(stream)
            bias = None if seen is None else seen.bias
            part = attend(q, keys.to(q.dtype), values.to(q.dtype), bias)
            part = part.transpose(1, 2).flatten(2)  # b (t h w) (heads d)
            if seen is not None:
                part = part * seen.sees
            gate = self.streams[stream].gate
            if gate is not None:
                part = part * gate.tanh()
            attended = part if attended is None else attended + part
        return linear_add(attended, self.to_out, add=x)


class FeedForward(nn.Module):
    def __init__(self, *, width: int, ratio: int):
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.to_hidden = nn.Linear(width, 2 * ratio * width)
        self.to_out = nn.Linear(ratio * width, width)

    def forward(self, x: Tensor) -> Tensor:
        return geglu_linear(norm_linear(x, self.norm, self.to_hidden), self.to_out, add=x)
