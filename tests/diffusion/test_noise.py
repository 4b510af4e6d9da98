"""Noise belongs to a sample: not to its batch, its place in it, or what was drawn before."""

import pytest
import torch

from vdm.diffusion.noise import generator_for, noise_for, training_noise

SHAPE = (4, 2, 8, 8)
KEYS = [f"clip-{i}" for i in range(6)]


def test_a_sample_has_its_noise_in_any_company():
    together = noise_for(KEYS, 7, SHAPE)
    assert together.shape == (6, *SHAPE)
    assert together.dtype == torch.float32
    order = [4, 0, 5]
    assert noise_for([KEYS[i] for i in order], 7, SHAPE).equal(together[order])
    halves = torch.cat([noise_for(KEYS[0::2], 7, SHAPE), noise_for(KEYS[1::2], 7, SHAPE)])  # two ranks
    assert halves.equal(together[[0, 2, 4, 1, 3, 5]])


def test_global_random_state_is_neither_read_nor_written():
    torch.manual_seed(1)
    first, state = noise_for(KEYS, 7, SHAPE), torch.get_rng_state()
    torch.rand(3)
    assert noise_for(KEYS, 7, SHAPE).equal(first)
    torch.manual_seed(1)
    assert torch.get_rng_state().equal(state)


def test_everything_that_names_a_draw_changes_it():
    base = noise_for(["a"], 0, SHAPE)
    others = [noise_for(["b"], 0, SHAPE), noise_for(["a"], 1, SHAPE), noise_for(["a"], 0, SHAPE, step=1)]
    others.append(training_noise(["a"], 0, 0, SHAPE)[1])
    for i, one in enumerate([base, *others]):
        for other in [base, *others][:i]:
            assert (one - other).abs().mean() > 0.5


def test_parts_do_not_run_together():
    assert generator_for("1", 1, "x").initial_seed() != generator_for("", 11, "x").initial_seed()
    assert generator_for("b", 0, "a").initial_seed() != generator_for("ab", 0).initial_seed()
    assert generator_for("1", 0, 11).initial_seed() != generator_for("11", 0, 1).initial_seed()


def test_keys_may_be_any_text():
    keys = ["", " ", "ein Hund 🐕", "a" * 10_000, "a\x00b"]
    assert len({generator_for(key, 0).initial_seed() for key in keys}) == len(keys)


def test_a_draw_is_the_same_for_ever():
    """Written down: if this changes, or differs between processes, old samples can no longer be made again."""
    assert generator_for("clip-0", 0, "sample", 0).initial_seed() == 3921615634125803223
    first = noise_for(["clip-0"], 0, SHAPE)[0, 0, 0, 0, :3]
    torch.testing.assert_close(first, torch.tensor([-0.9752, 0.2951, -0.9591]), rtol=0, atol=1e-4)


def test_noise_is_standard_normal():
    noise = noise_for([f"{i}" for i in range(64)], 0, SHAPE)
    assert noise.mean().item() == pytest.approx(0, abs=0.02)
    assert noise.std().item() == pytest.approx(1, abs=0.02)
    correlation = torch.corrcoef(noise.flatten(1)).fill_diagonal_(0)
    assert correlation.abs().max() < 0.25, "samples do not share their noise"


def test_training_draws_are_even_and_independent_of_the_step():
    keys = [f"{i}" for i in range(2000)]
    quantile, _ = training_noise(keys, 0, 3, (1,))
    assert quantile.dtype == torch.float64
    assert quantile.min() > 0
    assert quantile.max() < 1
    assert torch.histc(quantile, 10, 0, 1).min() > 150
    other, _ = training_noise(keys, 0, 4, (1,))
    assert abs(torch.corrcoef(torch.stack([quantile, other]))[0, 1]) < 0.08
    some, noise = training_noise(keys[5:7], 0, 3, (1,))
    assert some.equal(quantile[5:7])
    assert noise.shape == (2, 1)


def test_offset_noise_is_one_number_per_channel():
    keys = [f"{i}" for i in range(500)]
    _, plain = training_noise(keys, 0, 0, SHAPE)
    quantile, offset = training_noise(keys, 0, 0, SHAPE, offset=0.3)
    added = offset - plain
    assert quantile.equal(training_noise(keys, 0, 0, SHAPE)[0]), "the rest of the draw stays"
    torch.testing.assert_close(added, added[:, :, :1, :1, :1].expand_as(added))
    assert added[:, :, 0, 0, 0].std().item() == pytest.approx(0.3, abs=0.02)


@pytest.mark.parametrize("shared", [0.3, 1.0])
def test_frames_share_a_part_of_the_noise(shared):
    """Unit variance everywhere, and a covariance of `shared` between the frames of a clip, in training and in sampling."""
    keys = [f"{i}" for i in range(200)]
    for noise in (training_noise(keys, 0, 0, SHAPE, shared=shared)[1], noise_for(keys, 0, SHAPE, shared=shared)):
        assert noise.var().item() == pytest.approx(1, abs=0.03)
        assert (noise[:, :, 0] * noise[:, :, 1]).mean().item() == pytest.approx(shared, abs=0.03)
    assert noise_for(keys[3:5], 0, SHAPE, shared=shared).equal(noise[3:5])
    assert noise_for(keys, 0, SHAPE, shared=0.0).equal(noise_for(keys, 0, SHAPE))
