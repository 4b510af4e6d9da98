"""Attention: visibility, packing, and what happens where there is nothing to see."""

import torch
import torch.nn.functional as F
from torch import nn

from vdm.layers.attention import CrossAttention, SelfAttention, per_head, sight
from vdm.layers.embeddings import sinusoidal_embedding
from vdm.layers.temporal import TemporalAttention, TemporalConv

torch.set_num_threads(1)


def randomised(module: nn.Module) -> nn.Module:
    for parameter in module.parameters():
        nn.init.normal_(parameter, std=0.5)
    return module.double()


def plain_attention(q, k, v, visible=None):
    scores = q @ k.transpose(-1, -2) / q.shape[-1] ** 0.5
    if visible is not None:
        scores = scores.masked_fill(~visible, -torch.inf)
    return scores.softmax(-1) @ v


def test_sinusoidal_embedding_golden():
    embedding = sinusoidal_embedding(torch.tensor([0.0, 2.5]), 4)
    cosines, sines = torch.tensor([2.5, 0.025]).cos(), torch.tensor([2.5, 0.025]).sin()
    torch.testing.assert_close(embedding, torch.stack([torch.tensor([1.0, 1, 0, 0]), torch.cat([cosines, sines])]))


def test_packing_keeps_heads_together():
    packed = torch.arange(2 * 3 * 12.0).view(2, 3, 12)
    q, k, v = per_head(packed, 2, 3)  # b p (heads 3 d) with two heads, d = 2
    assert q.shape == (2, 2, 3, 2)
    assert k[1, 1, 2].tolist() == packed[1, 2, 8:10].tolist()
    assert v[0, 0, 1].tolist() == packed[0, 1, 4:6].tolist()
    assert q.untyped_storage().data_ptr() == packed.untyped_storage().data_ptr()


def test_self_attention_is_the_formula():
    torch.manual_seed(0)
    layer, x = randomised(SelfAttention(width=8, heads=2, head_width=4)), torch.randn(3, 5, 8).double()
    q, k, v = per_head(layer.to_qkv(layer.norm(x)), 2, 3)
    expected = layer.to_out(plain_attention(q, k, v).transpose(1, 2).flatten(2)) + x
    torch.testing.assert_close(layer(x), expected)


def test_temporal_attention_looks_along_time_only():
    torch.manual_seed(0)
    layer = randomised(TemporalAttention(width=8, heads=2, head_width=4, position="none", max_distance=1))
    x = torch.randn(2, 5, 6, 8).double()  # b t p c
    one = SelfAttention(width=8, heads=2, head_width=4).double()
    one.load_state_dict(layer.state_dict())
    expected = one(x.transpose(1, 2).flatten(0, 1)).unflatten(0, (2, 6)).transpose(1, 2)
    torch.testing.assert_close(layer(x), expected)


def test_relative_positions_are_shaws_formula():
    torch.manual_seed(0)
    layer = randomised(TemporalAttention(width=8, heads=2, head_width=4, position="relative", max_distance=2))
    x = torch.randn(1, 5, 1, 8).double()
    q, k, v = (part[0] for part in per_head(layer.to_qkv(layer.norm(x[:, :, 0])), 2, 3))  # heads t d
    rows = []
    for i in range(5):
        near = [max(-2, min(2, j - i)) + 2 for j in range(5)]
        keys, values = k + layer.position_k.table[near], v + layer.position_v.table[near]
        weights = ((q[:, i : i + 1] * keys).sum(-1) / 2).softmax(-1)  # heads t
        rows.append((weights[..., None] * values).sum(1).flatten())
    expected = layer.to_out(torch.stack(rows)[None, :, None]) + x
    torch.testing.assert_close(layer(x), expected)


def test_temporal_conv_starts_as_nothing_and_is_a_3d_convolution():
    torch.manual_seed(0)
    layer, x = TemporalConv(width=4, layers=2, groups=2, dropout=0.0), torch.randn(2, 5, 3, 3, 4)
    assert torch.equal(layer(x), x)
    layer, x = randomised(layer), x.double()
    y = x.permute(0, 4, 1, 2, 3)
    for norm, conv in zip(layer.norms, layer.convs, strict=True):
        y = F.conv3d(F.silu(norm(y)), conv.weight[..., None], conv.bias, padding=(1, 0, 0))
    torch.testing.assert_close(layer(x), y.permute(0, 2, 3, 4, 1) + x)


def cross(streams: dict[str, int]) -> CrossAttention:
    layer = CrossAttention(width=8, heads=2, head_width=4)
    for stream, width in streams.items():
        layer.attach(stream, width)
    return randomised(layer)


def test_each_frame_sees_its_own_tokens():
    torch.manual_seed(0)
    layer, x, tokens = cross({"text": 6}), torch.randn(2, 3 * 4, 8).double(), torch.randn(2, 5, 6).double()
    visible = torch.rand(2, 3, 5) < 0.6
    visible[:, :, 0] = True
    out = layer(x, {"text": tokens}, {"text": sight(visible, 4, torch.float64)})
    for b in range(2):
        for t in range(3):
            rows, seen = x[b : b + 1, 4 * t : 4 * t + 4], tokens[b : b + 1, visible[b, t]]
            torch.testing.assert_close(out[b : b + 1, 4 * t : 4 * t + 4], layer(rows, {"text": seen}, {}))


def test_nothing_to_see_is_the_same_as_no_stream():
    torch.manual_seed(0)
    layer, x, tokens = cross({"text": 6, "graph": 6}), torch.randn(2, 4, 8).double(), torch.randn(2, 5, 6).double()
    nothing = sight(torch.zeros(2, 1, 5, dtype=torch.bool), 4, torch.float64)
    blind = layer(x, {"text": tokens, "graph": tokens}, {"text": nothing, "graph": nothing})
    torch.testing.assert_close(blind, layer(x, {}, {}))
    torch.testing.assert_close(blind, x + layer.to_out.bias)


def test_keys_and_values_are_computed_once_per_token():
    layer, rows = cross({"text": 6}), []
    layer.streams["text"].to_kv.register_forward_hook(lambda module, inputs, out: rows.append(inputs[0].shape))
    layer(torch.randn(2, 16 * 4, 8).double(), {"text": torch.randn(2, 5, 6).double()}, {})
    assert rows == [(2, 5, 6)]  # 16 frames, each token once
