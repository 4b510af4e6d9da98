"""Several conditions at one backbone: doors, dropping, guidance subsets."""

import itertools

import pytest
import torch
from condition_fakes import (
    SHAPE,
    WIDTH,
    Map,
    Pace,
    Style,
    doors,
    every_door,
    make_batch,
    pick,
    same,
    small_text,
)

from vdm.backbones.unet3d import UNet3D
from vdm.conditions.base import ConditionSet
from vdm.diffusion.guidance import Guidance, classifier_free, guided
from vdm.errors import ConfigError
from vdm.types import Controls


def of(joint_drop_prob=0.0, joint_keep_prob=0.0, **members):
    return ConditionSet(members=members, joint_drop_prob=joint_drop_prob, joint_keep_prob=joint_keep_prob)


@pytest.fixture
def conditions():
    return every_door().eval()


@pytest.fixture
def batch():
    return make_batch()


def test_doors_are_what_all_members_need(conditions):
    assert conditions.streams == {"text": WIDTH, "scenes": WIDTH, "reference": WIDTH}
    assert (conditions.concat_channels, conditions.embed_width) == (8, 6)
    assert conditions.names == ("text", "depth", "sketch", "style", "scenes", "reference", "pace")


def test_members_know_their_name_and_speak_through_one_controls(conditions, batch):
    controls = conditions.encode(batch, SHAPE)
    alone = {name: member.encode(batch, SHAPE) for name, member in conditions.members.items()}
    assert controls.concat.equal(alone["depth"].concat + alone["sketch"].concat)
    text = controls.tokens["text"]
    assert text.values[:, -1:].equal(batch["extras"]["style"]), "the style token comes behind the caption"
    assert text.visible[:, :, -1].all()
    assert text.visible[:, :, :-1].equal(alone["text"].tokens["text"].visible)
    assert controls.tokens["scenes"].visible[0].sum(1).tolist() == [5, 5, 5]
    assert controls.tokens["reference"].visible[0].sum(1).tolist() == [16, 16, 16]
    assert controls.embed.equal(alone["pace"].embed)


def test_permuting_the_batch_permutes_everything(conditions, batch):
    order = [2, 0, 3, 1]
    plain, permuted = conditions(batch, SHAPE, seed=1, step=3), conditions(pick(batch, order), SHAPE, seed=1, step=3)
    same(plain[torch.tensor(order)], permuted)


def test_a_dropped_condition_says_its_null_to_that_clip_only(conditions, batch):
    for name, member in conditions.members.items():
        dropped = {n: torch.zeros(4, dtype=torch.bool) for n in conditions.names} | {
            name: torch.tensor([0, 1, 0, 1]).bool()
        }
        mixed = of(**{name: member}).encode(batch, SHAPE, dropped=dropped)
        said, null = member.encode(batch, SHAPE), member.null(4, SHAPE)
        length = {s: t.values.shape[1] for s, t in mixed.tokens.items()}
        for row, source in enumerate((said, null, said, null)):
            for door, tensor in doors(mixed[row : row + 1]).items():
                expected = doors(source[row : row + 1]).get(door)
                if door.endswith(".visible"):  # what fills up a shorter one is not seen
                    n = source.tokens[door.split(".")[0]].values.shape[1]
                    seen = torch.ones(1, 1, n) if expected is None else expected
                    assert tensor[..., :n].equal(seen.bool().expand(-1, tensor.shape[1], -1)), (name, row)
                    assert not tensor[..., n:].any(), (name, row)
                elif door.endswith(".values"):
                    n = expected.shape[1]
                    assert n <= length[door.split(".")[0]]
                    torch.testing.assert_close(tensor[:, :n], expected, rtol=0, atol=1e-6)
                else:
                    torch.testing.assert_close(tensor, expected, rtol=0, atol=1e-6)


def test_dropping_everything_is_the_unconditional_branch(conditions, batch):
    everything = {name: torch.ones(4, dtype=torch.bool) for name in conditions.names}
    dropped, unconditional = (
        conditions.encode(batch, SHAPE, dropped=everything),
        conditions.controls_for(batch, SHAPE)(frozenset()),
    )
    for stream in ("text", "scenes", "reference"):
        n = unconditional.tokens[stream].values.shape[1]
        assert dropped.tokens[stream].values[:, :n].equal(unconditional.tokens[stream].values)
    assert dropped.concat.equal(unconditional.concat)
    assert dropped.embed.equal(unconditional.embed)


def test_draws_belong_to_the_clip():
    conditions = every_door(0.5, 0.1, 0.1)
    keys = [f"clip-{i}" for i in range(64)]
    whole = conditions.dropped(keys, seed=3, step=7)
    one_by_one = [conditions.dropped([key], seed=3, step=7) for key in keys]
    for name, drops in whole.items():
        assert drops.tolist() == [single[name].item() for single in one_by_one]
        assert drops.tolist() != conditions.dropped(keys, seed=3, step=8)[name].tolist()
        assert drops.tolist() != conditions.dropped(keys, seed=4, step=7)[name].tolist()
    assert conditions.dropped([], seed=0, step=0)["text"].shape == (0,)


def test_draws_of_a_condition_do_not_depend_on_which_others_there_are():
    keys = [f"clip-{i}" for i in range(64)]
    alone = of(text=small_text(0.5)).dropped(keys, 0, 0)["text"]
    assert alone.equal(every_door(0.5).dropped(keys, 0, 0)["text"])


def test_rates_of_dropping_together_and_apart():
    members = {"text": small_text(0.3), "style": Style(0.6), "pace": Pace(0.0)}
    conditions = ConditionSet(members=members, joint_drop_prob=0.1, joint_keep_prob=0.2)
    drops = conditions.dropped([str(i) for i in range(20000)], seed=0, step=0)
    text, style, pace = (drops[name].double() for name in members)
    # Of the 0.7 in between each is drawn by itself.
    for got, expected in (
        (text, 0.1 + 0.7 * 0.3),
        (style, 0.1 + 0.7 * 0.6),
        (pace, 0.1),
        (text * style, 0.1 + 0.7 * 0.18),
    ):
        assert got.mean().item() == pytest.approx(expected, abs=0.012)
    assert (pace <= text * style).all(), "the common draw drops all"


def test_nothing_is_dropped_with_probability_zero_nor_kept_with_one():
    keys = [str(i) for i in range(500)]
    assert not of(text=small_text(0.0)).dropped(keys, 0, 0)["text"].any()
    assert of(text=small_text(1.0)).dropped(keys, 0, 0)["text"].all()
    assert not of(joint_keep_prob=1.0, text=small_text(1.0)).dropped(keys, 0, 0)["text"].any()


def test_a_learned_null_takes_part_in_every_step(batch):
    """Otherwise data-parallel training waits for a gradient that does not come."""
    conditions = of(style=Style(1e-12))
    conditions(batch, SHAPE, seed=0, step=0).tokens["text"].values.sum().backward()
    assert conditions.members["style"].nothing.grad.eq(0).all()


def test_every_subset_is_said_and_null_by_hand(conditions, batch):
    controls_for = conditions.controls_for(batch, SHAPE)
    for size in (0, 1, 3, 7):
        for subset in itertools.islice(itertools.combinations(conditions.names, size), 8):
            expected = Controls()
            for name, member in conditions.members.items():
                expected = expected + (member.encode(batch, SHAPE) if name in subset else member.null(4, SHAPE))
            same(controls_for(frozenset(subset)), expected)


def test_each_condition_is_encoded_once_and_only_if_said(batch):
    conditions = every_door()
    fakes = [member for name, member in conditions.members.items() if name != "text"]
    for member in fakes:
        member.calls = 0
    controls_for = conditions.controls_for(batch, SHAPE)
    controls_for(frozenset())
    assert {member.calls for member in fakes} == {0}
    for subset in (conditions.names, ("depth", "style"), conditions.names):
        controls_for(frozenset(subset))
    assert {member.calls for member in fakes} == {1}
    conditions(batch, SHAPE, seed=0, step=0)
    assert {member.calls for member in fakes} == {2}


def test_another_prompt_can_stand_for_the_null(conditions, batch):
    negative = conditions.members["text"].say(["blurred"] * 4)
    controls_for = conditions.controls_for(batch, SHAPE, instead={"text": negative})
    said = controls_for(frozenset({"text"})).tokens["text"].values
    assert said.equal(conditions.controls_for(batch, SHAPE)(frozenset({"text"})).tokens["text"].values)
    n = negative.tokens["text"].values.shape[1]
    assert controls_for(frozenset()).tokens["text"].values[:, :n].equal(negative.tokens["text"].values)


def test_unknown_names_list_the_known_ones(conditions, batch):
    with pytest.raises(ConfigError, match=r"graph(.|\n)*allowed: text, depth"):
        conditions.controls_for(batch, SHAPE)(frozenset({"text", "graph"}))
    with pytest.raises(ConfigError, match="graph"):
        conditions.controls_for(batch, SHAPE, instead={"graph": Controls()})


@pytest.mark.parametrize(
    "members",
    [
        {"text": small_text(), "style": Style(width=WIDTH + 1)},
        {"depth": Map(), "mask": Map(channels=4)},
        {"pace": Pace(), "motion": Pace(width=7)},
    ],
    ids=["stream", "concat", "embed"],
)
def test_widths_at_one_door_must_agree(members):
    with pytest.raises(ConfigError, match=f"condition.{list(members)[1]}"):
        of(**members)


@pytest.mark.parametrize("settings", [(0.6, 0.6)])
def test_impossible_probabilities_are_refused(settings):
    with pytest.raises(ConfigError, match="at most 1"):
        of(*settings)
    with pytest.raises(ConfigError, match="drop_prob"):
        Pace(drop_prob=1.5)


def test_a_condition_that_breaks_its_promise_is_caught(batch):
    class Liar(Pace):
        def null(self, count, shape):
            return Controls(embed=torch.zeros(count, 5))

    with pytest.raises(AssertionError, match="pace declared"):
        of(pace=Liar()).controls_for(batch, SHAPE)(frozenset())


def test_no_condition_at_all(batch):
    empty = of()
    assert doors(empty(batch, SHAPE, seed=0, step=0)) == {}
    assert doors(empty.controls_for(batch, SHAPE)(frozenset())) == {}
    assert (empty.names, empty.streams, empty.concat_channels, empty.embed_width) == ((), {}, 0, 0)
    assert empty.trained_modules() == {}


def backbone():
    torch.manual_seed(0)
    net = UNet3D(
        latent_channels=4, channels=16, multipliers=[1, 2], blocks=1, attention_levels=[0, 1], heads=2, head_width=None,
        depth=1, feed_forward_ratio=2, norm_groups=4, dropout=0.0, time_conditioning="add", temporal_conv=1,
        temporal_dropout=0.0, temporal_attention="separate", temporal_position="none", temporal_max_distance=16,
        temporal_in_heads=0, temporal_in_head_width=8, coordinates=0, moments=0, checkpoint_levels=[], compile=False,
    ).eval()  # fmt: skip
    torch.nn.init.normal_(net.conv_out.weight, std=0.1)
    return net


@torch.no_grad()
def test_a_backbone_opens_the_doors_of_the_set_and_guidance_mixes_its_branches(conditions, batch):
    net, x, timestep = backbone(), torch.randn(4, *SHAPE), torch.full((4,), 500.0)
    before = net(x, timestep)
    net.open_doors(
        streams=conditions.streams, concat_channels=conditions.concat_channels, embed_width=conditions.embed_width
    )
    controls_for = conditions.controls_for(batch, SHAPE)
    full, none = controls_for(frozenset(conditions.names)), controls_for(frozenset())
    assert net(x, timestep, full).equal(before), "freshly opened doors change nothing"
    for parameter in net.parameters():
        parameter.add_(0.02 * torch.randn_like(parameter))
    branches = {subset: net(x, timestep, controls) for subset, controls in (("full", full), ("none", none))}
    assert not torch.allclose(branches["full"], branches["none"])
    assert branches["none"].isfinite().all()

    def run(table):
        predict = guided(lambda c: lambda x, t: net(x, t, c), controls_for, table, num_timesteps=1000)
        return predict(x, timestep)

    names, rest = conditions.names, {"rescale": 0.0, "interval": (0.0, 1.0)}
    assert run(classifier_free(names, 1.0, **rest)).equal(branches["full"])
    assert run(classifier_free(names, 0.0, **rest)).equal(branches["none"])
    some = net(x, timestep, controls_for(frozenset({"text", "pace"})))
    mixed = run(Guidance([(names, 2.0), ({"text", "pace"}, 0.5), ((), -1.5)], **rest))
    torch.testing.assert_close(mixed, 2 * branches["full"] + 0.5 * some - 1.5 * branches["none"], rtol=1e-4, atol=1e-5)
