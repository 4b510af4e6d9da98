"""The three doors as values: combining conditions, choosing samples, stacking batches."""

import pytest
import torch

from vdm.types import Controls, Tokens


def tokens(b=2, n=3, d=4, frames=None, seed=0):
    g = torch.Generator().manual_seed(seed)
    visible = None if frames is None else torch.rand(b, frames, n, generator=g) > 0.5
    return Tokens(torch.randn(b, n, d, generator=g), visible)


def test_adding_sums_embeddings_and_maps_and_joins_tokens_of_a_stream():
    a = Controls(torch.ones(2, 5), None, {"text": tokens(n=3), "graph": tokens(n=1)})
    b = Controls(torch.ones(2, 5), torch.ones(2, 8, 4, 2, 2), {"text": tokens(n=2, frames=4, seed=1)})
    both = a + b
    assert both.embed.eq(2).all()
    assert both.concat is b.concat
    assert both.tokens["graph"] is a.tokens["graph"]
    assert both.tokens["text"].values.shape == (2, 5, 4)
    assert both.tokens["text"].visible.shape == (2, 4, 5)
    assert both.tokens["text"].visible[:, :, :3].all(), "tokens without a mask stay seen by every frame"
    assert both.tokens["text"].visible[:, :, 3:].equal(b.tokens["text"].visible)


def test_adding_keeps_the_fast_path_without_masks():
    assert (tokens() + tokens()).visible is None


def test_indexing_takes_samples_out_of_every_door():
    whole = Controls(torch.randn(3, 5), torch.randn(3, 1, 2, 2, 2), {"text": tokens(b=3, frames=2)})
    order = torch.tensor([2, 0])
    some = whole[order]
    assert len(some) == 2
    assert some.embed.equal(whole.embed[order])
    assert some.concat.equal(whole.concat[order])
    assert some.tokens["text"].visible.equal(whole.tokens["text"].visible[order])
    assert len(whole[1:]) == 2


def test_stacking_and_cutting_are_inverse():
    parts = [Controls(torch.randn(2, 5), None, {"text": tokens(frames=2, seed=i)}) for i in range(3)]
    stacked = Controls.cat(parts)
    assert len(stacked) == 6
    for i, part in enumerate(parts):
        back = stacked[2 * i : 2 * i + 2]
        assert back.embed.equal(part.embed)
        assert back.tokens["text"].values.equal(part.tokens["text"].values)
        assert back.tokens["text"].visible.equal(part.tokens["text"].visible)


def test_repeating_is_stacking_with_oneself():
    one = Controls(torch.randn(2, 5), torch.randn(2, 1, 2, 2, 2), {"text": tokens(frames=2)})
    twice, stacked = one.repeat(2), Controls.cat([one, one])
    assert twice.embed.equal(stacked.embed)
    assert twice.concat.equal(stacked.concat)
    assert twice.tokens["text"].values.equal(stacked.tokens["text"].values)
    assert twice.tokens["text"].visible.equal(stacked.tokens["text"].visible)


def test_shorter_tokens_are_filled_with_unseen_ones():
    short, long = tokens(n=2), tokens(n=5, seed=1)
    both = Tokens.cat([short, long])
    assert both.values.shape == (4, 5, 4)
    assert both.values[:2, :2].equal(short.values)
    assert both.visible[:2, :, :2].all()
    assert not both.visible[:2, :, 2:].any()
    assert both.visible[2:].all()


def test_a_mask_for_one_frame_spreads_over_frames_when_joined():
    joined = Tokens.cat([tokens(frames=1), tokens(frames=4, seed=1)])
    assert joined.visible.shape == (4, 4, 3)


def test_controls_with_other_doors_do_not_share_a_batch():
    with pytest.raises(AssertionError, match="other doors"):
        Controls.cat([Controls(torch.ones(1, 2)), Controls(None, torch.ones(1, 1, 1, 1, 1))])


def test_empty_controls_combine_but_have_no_batch():
    one = Controls(torch.ones(1, 2))
    assert (Controls() + one).embed is one.embed
    with pytest.raises(AssertionError, match="no batch"):
        len(Controls())


def test_moving_keeps_masks_boolean():
    moved = Controls(torch.ones(1, 2), None, {"text": tokens(b=1, frames=1)}).to("cpu", torch.bfloat16)
    assert moved.embed.dtype == moved.tokens["text"].values.dtype == torch.bfloat16
    assert moved.tokens["text"].visible.dtype == torch.bool
