import pytest
import torch

from vdm.autoencoder.tiling import GroupNorm, Tiling
from vdm.errors import ConfigError

# One convolution each way beside the edges: a small receptive field, so that tiles can be small too.
SHALLOW = {"stride": (1, 2, 2), "multipliers": (1,), "encoder_blocks": 1, "decoder_blocks": 1, "edge_kernel": (1, 1, 1)}


def video(frames, size, batch=1):
    return torch.rand(batch, 3, frames, size, size, generator=torch.Generator().manual_seed(0)) * 2 - 1


def reach(function, x):
    """How many positions on either side of a value it depends on, by axis."""
    x = x.detach().clone().requires_grad_()
    y = function(x)
    middle = [s // 2 for s in y.shape[2:]]
    y[0, :, middle[0], middle[1], middle[2]].sum().backward()
    touched = x.grad[0].abs().sum(0).nonzero()
    ratio = [a / b for a, b in zip(x.shape[2:], y.shape[2:], strict=True)]
    centre = torch.tensor([(m + 0.5) * r - 0.5 for m, r in zip(middle, ratio, strict=True)])
    return (touched - centre).abs().amax(0)


def outside_overlaps(size, tile, overlap):
    """True where one tile alone decides; (size - tile) must be a multiple of (tile - overlap)."""
    covered = torch.zeros(size, dtype=torch.int)
    for start in range(0, size - tile + 1, tile - overlap):
        covered[start : start + tile] += 1
    assert covered.min() >= 1
    return covered == 1


@pytest.mark.parametrize("padding", ["replicate", "zeros"])
def test_tiles_equal_the_whole_outside_the_overlaps(conv3d, padding):
    model = conv3d(norm="channel", padding=padding, upsample="nearest", **SHALLOW)
    x = video(12, 36)
    whole = model.encode(x)
    field = reach(model._encode, video(12, 36))
    assert (field <= torch.tensor([4, 12, 12])).all()  # what the overlap below must cover
    tiling = Tiling(tile=(8, 24, 24), overlap=(4, 12, 12), exact_norm=False)
    model.tiling = tiling
    tiled = model.encode(x)
    t, h = outside_overlaps(12, 8, 4), outside_overlaps(18, 12, 6)
    assert t.sum() == 8
    assert h.sum() == 12
    torch.testing.assert_close(
        tiled[:, :, t][:, :, :, h][..., h], whole[:, :, t][:, :, :, h][..., h], atol=1e-5, rtol=0
    )

    tiled = model.decode(whole)
    model.tiling = None
    reference = model.decode(whole)
    assert (reach(model._decode, whole) <= torch.tensor([4, 6, 6])).all()
    h = outside_overlaps(36, 24, 12)
    torch.testing.assert_close(
        tiled[:, :, t][:, :, :, h][..., h], reference[:, :, t][:, :, :, h][..., h], atol=1e-5, rtol=0
    )


def test_group_norm_is_exact_with_the_statistics_of_the_whole_clip(conv3d):
    model = conv3d(norm="group", upsample="nearest", **SHALLOW)
    x = video(4, 96, batch=2)
    whole = model.encode(x)
    reference = model.decode(whole)
    t, h, H = slice(None), outside_overlaps(48, 32, 16), outside_overlaps(96, 64, 32)
    errors = {}
    for exact in (True, False):
        model.tiling = Tiling(tile=(4, 64, 64), overlap=(0, 32, 32), exact_norm=exact)
        latent, decoded = model.encode(x), model.decode(whole)
        errors[exact] = (
            (latent - whole)[:, :, t][:, :, :, h][..., h].abs().max(),
            (decoded - reference)[:, :, t][:, :, :, H][..., H].abs().max(),
        )
    assert max(errors[True]) < 1e-5
    assert min(errors[False]) > 1e-4  # which is why the option exists
    assert all(m.fixed is None and m.measuring is None for m in model.modules() if isinstance(m, GroupNorm))


def test_group_norm_with_given_statistics_is_group_norm():
    norm = GroupNorm(2, 6, eps=1e-6)
    with torch.no_grad():
        norm.weight.normal_(generator=torch.Generator().manual_seed(0))
        norm.bias.normal_(generator=torch.Generator().manual_seed(1))
    x = video(4, 8, batch=2).repeat(1, 2, 1, 1, 1) * torch.arange(1, 7).view(1, 6, 1, 1, 1)
    want = torch.nn.functional.group_norm(x, 2, norm.weight, norm.bias, 1e-6)
    torch.testing.assert_close(norm(x), want)
    parts = x.reshape(2, 2, -1)
    norm.fixed = (parts.mean(-1), (parts.var(-1, unbiased=False) + 1e-6).rsqrt())
    torch.testing.assert_close(norm(x), want, atol=1e-5, rtol=1e-5)


def test_blending_is_a_partition_of_unity_even_where_three_tiles_meet(conv3d):
    model = conv3d(
        norm="channel", patch=(1, 4, 4), multipliers=(1,), kernels=((1, 1, 1), (1, 1, 1)), edge_kernel=(1, 1, 1)
    )
    x = video(9, 52)  # nothing reaches beyond its own patch, so any tiles must agree everywhere
    whole = model.encode(x)
    reference = model.decode(whole)
    model.tiling = Tiling(tile=(4, 16, 24), overlap=(3, 12, 8), exact_norm=False)
    torch.testing.assert_close(model.encode(x), whole, atol=1e-5, rtol=0)
    torch.testing.assert_close(model.decode(whole), reference, atol=1e-5, rtol=0)


def test_small_clips_and_training_are_not_tiled(conv3d, monkeypatch):
    model = conv3d(tiling=Tiling(tile=(4, 16, 16), overlap=(0, 8, 8), exact_norm=False))
    calls = []
    encode = model._encode
    monkeypatch.setattr(model, "_encode", lambda x: calls.append(x.shape) or encode(x))
    model.encode(video(4, 16))
    assert len(calls) == 1
    model.encode(video(4, 32))
    assert len(calls) == 1 + 9
    assert {tuple(shape[2:]) for shape in calls} == {(4, 16, 16)}
    model.train()
    model(video(4, 32))
    assert len(calls) == 1 + 9 + 1


@pytest.mark.parametrize(
    ("tile", "overlap"), [((4, 18, 16), (0, 8, 8)), ((4, 16, 16), (0, 16, 8)), ((4, 16, 16), (0, 6, 8))]
)
def test_tiles_that_do_not_fit_the_stride_are_refused(conv3d, tile, overlap):
    with pytest.raises(ConfigError, match="tiling"):
        conv3d(tiling=Tiling(tile=tile, overlap=overlap, exact_norm=False))


def test_a_failing_tile_leaves_no_statistics_behind(conv3d, monkeypatch):
    model = conv3d(norm="group", tiling=Tiling(tile=(4, 16, 16), overlap=(0, 8, 8), exact_norm=True))
    monkeypatch.setattr(model.quant_conv, "forward", lambda x: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        model.encode(video(4, 32))
    assert all(m.fixed is None and m.measuring is None for m in model.modules() if isinstance(m, GroupNorm))
