"""The scene graph condition: who sees which nodes, what is dropped, and what the settings may be."""

import copy

import hydra
import pytest
import torch
from hydra.utils import instantiate
from omegaconf import OmegaConf

from dysen.action_plan import Event, Plan, Triplet
from dysen.condition import SCENE, SceneGraphCondition, scenes_of, tick_spans
from dysen.graph_encoder import RecurrentGraphNetwork, RecurrentGraphTransformer
from dysen.labels import WordEncoder
from dysen.scene_graph import DynamicSceneGraph, SceneGraph, SceneObject, event_to_dsg
from vdm import config, restore
from vdm.conditions.base import ConditionSet
from vdm.conditions.encoders.base import TextEncoder, TextTokens
from vdm.conditions.encoders.small import SmallEncoder
from vdm.conditions.text import TextCondition
from vdm.diffusion.guidance import guided, instruct_pix2pix
from vdm.errors import ConfigError, DataError
from vdm.launch import CONF
from vdm.runs import Run
from vdm.types import Controls, LatentShape, Tokens

WIDTH = 16
CUP = SceneObject("cup", ("red",))
DRINKING, SITTING = Triplet("lady", "drinking from", "cup"), Triplet("lady", "sitting", None)
DSG = DynamicSceneGraph((
    SceneGraph.build([CUP], [DRINKING]),  # lady, cup, red, drinking from
    SceneGraph(),
    SceneGraph.build(actions=[SITTING]),  # lady, sitting
    SceneGraph.build([CUP]),  # cup, red
))  # fmt: skip
NODES = (4, 0, 2, 2)
SHAPE = LatentShape(4, 4, 4, 4)


def condition(**changes):
    torch.manual_seed(0)
    settings = {
        "reads": "scene_graphs",
        "times": None,
        "clip_frames": 4,
        "window": 0,
        "tokens": "nodes",
        "embed_width": 0,
        "drop_prob": 0.5,
    }
    settings["encoder"] = changes.pop("encoder", None) or WordEncoder(width=8, length=32)
    settings["scene_encoder"] = changes.pop("scene_encoder", None) or RecurrentGraphTransformer(
        width=WIDTH, heads=2, depth=1, recurrent_depth=1, cells=2, dropout=0.0
    )
    made = SceneGraphCondition(**settings | changes)
    made.name = "scene_graph"
    return made


def batch_of(*clips, **extras):
    count = len(clips)
    stored = [None if clip is None else clip.to_json() for clip in clips]
    return {
        "key": [f"clip-{i}" for i in range(count)],
        "caption": ["a lady"] * count,
        "fps": torch.full((count,), 8.0),
        "extras": {"scene_graphs": stored} | extras,
    }


def seen_ticks(tokens, clip=0):
    """For each frame, which tokens it sees; DSG's nodes are eight in a row."""
    return [torch.nonzero(row).flatten().tolist() for row in tokens.visible[clip]]


def test_what_a_frame_sees_may_join_its_timestep_embedding():
    told = condition(embed_width=6).eval()
    controls = told.encode(batch_of(DSG, None), SHAPE)
    assert controls.embed.shape == (2, 4, 6)
    assert torch.count_nonzero(controls.embed[1]) == 0, "nothing is said of the second clip"
    assert torch.count_nonzero(controls.embed[0, 1]) == 0, "nor of the second tick of the first"
    assert (controls.embed[0, 2] - controls.embed[0, 3]).abs().max() > 1e-3
    tokens = controls.tokens["scene"]
    third = tokens.values[0, tokens.visible[0, 2]].sum(0)
    torch.testing.assert_close(controls.embed[0, 2], told.to_embed(third))
    null = told.null(3, SHAPE)
    assert null.embed.shape == (3, 1, 6)
    assert torch.count_nonzero(null.embed) == 0
    mixed = Controls.cat([controls, null])
    assert mixed.embed.shape == (5, 4, 6)


# ---- who sees what ------------------------------------------------------------------------------------------------------


def test_each_frame_sees_exactly_the_nodes_of_its_tick():
    tokens = condition().encode(batch_of(DSG), SHAPE).tokens[SCENE]
    assert tokens.values.shape == (1, sum(NODES), WIDTH)
    assert seen_ticks(tokens) == [[0, 1, 2, 3], [], [4, 5], [6, 7]]
    eight = condition().encode(batch_of(DSG), LatentShape(4, 8, 4, 4)).tokens[SCENE]
    assert seen_ticks(eight) == [[0, 1, 2, 3]] * 2 + [[]] * 2 + [[4, 5]] * 2 + [[6, 7]] * 2


def test_where_frames_are_fewer_than_ticks_no_graph_is_lost():
    tokens = condition().encode(batch_of(DSG), LatentShape(4, 2, 4, 4)).tokens[SCENE]
    assert seen_ticks(tokens) == [[0, 1, 2, 3], [4, 5, 6, 7]]
    assert tick_spans(3, 8, None) == [(0, 1), (2, 4), (5, 7)]
    assert tick_spans(3, 2, None) == [(0, 0), (0, 0), (1, 1)]


@pytest.mark.parametrize(
    ("window", "third"), [(0, [4, 5]), (1, [4, 5, 6, 7]), (2, list(range(8))), (None, list(range(8)))]
)
def test_the_window(window, third):
    assert seen_ticks(condition(window=window).encode(batch_of(DSG), SHAPE).tokens[SCENE])[2] == third


def test_tokens_of_graphs():
    graphs = condition(tokens="graphs").encode(batch_of(DSG), SHAPE).tokens[SCENE]
    assert graphs.values.shape == (1, 4, WIDTH)
    assert seen_ticks(graphs) == [[0], [1], [2], [3]]
    both = condition(tokens="both").encode(batch_of(DSG), SHAPE).tokens[SCENE]
    assert seen_ticks(both) == [[0, 1, 2, 3, 8], [9], [4, 5, 10], [6, 7, 11]]
    torch.testing.assert_close(both.values[:, 8:], graphs.values)
    torch.testing.assert_close(both.values[0, :4].mean(0), graphs.values[0, 0])


def test_a_part_of_a_clip_sees_the_ticks_of_its_own_frames():
    """Frames 3, 5, 7, 9 of 12 stored ones, three of which make a tick."""
    times = [frame / 3 for frame in range(12)]
    batch = batch_of(DSG, DSG, frame_ticks=[times, times], window=torch.tensor([[3, 2], [0, 1]]))
    tokens = condition(times="frame_ticks").encode(batch, SHAPE).tokens[SCENE]
    assert seen_ticks(tokens) == [[], [], [4, 5], [6, 7]]
    assert seen_ticks(tokens, 1) == [[0, 1, 2, 3]] * 3 + [[]]
    batch["video"] = torch.zeros(2, 3, 2, 8, 8)  # frames 3 and 5 alone, and the first two
    tokens = condition(times="frame_ticks").encode(batch, LatentShape(4, 1, 4, 4)).tokens[SCENE]
    assert seen_ticks(tokens) == [[]]
    assert seen_ticks(tokens, 1) == [[0, 1, 2, 3]]


def test_times_of_frames_that_a_latent_frame_holds():
    assert tick_spans(2, 4, [0.0, 1.0, 2.0, 3.0]) == [(0, 1), (2, 3)]
    assert tick_spans(4, 4, [0.5, 1.5]) == [(0, 0), (0, 0), (1, 1), (1, 1)]


def test_a_clip_beside_others_is_the_same():
    plan = Plan((Event("dog", "barking", None, 0, 2), Event("cat", "watching", "dog", 1, 5)))
    given = [DSG, None, event_to_dsg(plan)]
    made = condition()
    together = made.encode(batch_of(*given), SHAPE).tokens[SCENE]
    for i, clip in enumerate(given):
        alone = made.encode(batch_of(clip), SHAPE).tokens[SCENE]
        for frame in range(SHAPE.frames):
            one, many = (t.values[j][t.visible[j, frame]] for t, j in ((alone, 0), (together, i)))
            torch.testing.assert_close(one, many, atol=1e-5, rtol=1e-4)
    assert not together.visible[1].any(), "no graph: nothing is said"


def test_plans_and_what_is_made_for_the_batch():
    plan = Plan((Event("dog", "barking", None, 0, 2), Event("cat", "watching", "dog", 1, 3)))
    made = condition(reads="plan")
    batch = batch_of(DSG, plan=[plan.to_json()])
    expected = condition().encode(batch_of(event_to_dsg(plan)), SHAPE).tokens[SCENE]
    torch.testing.assert_close(made.encode(batch, SHAPE).tokens[SCENE].values, expected.values)
    batch["extras"]["scene_graph"] = [DSG]
    assert seen_ticks(made.encode(batch, SHAPE).tokens[SCENE]) == [[0, 1, 2, 3], [], [4, 5], [6, 7]]
    graphs = event_to_dsg(plan)
    for form in (graphs, plan, plan.to_json(), graphs.to_json(), {"plan": plan.to_json(), "caption": "x"},
                 {"extras": {"plan": plan.to_json(), "scene_graphs": graphs.to_json()}}):  # fmt: skip
        assert scenes_of(form) == graphs


@pytest.mark.parametrize("wrong", [3, "a plan", [], [["dog"]], [{"tick": 1}], {"graphs": []}])
def test_what_is_no_graph_names_the_clip(wrong):
    with pytest.raises(DataError, match=r"extras\.scene_graphs(.|\n)*clip-0"):
        condition().encode(batch_of(DSG) | {"extras": {"scene_graphs": [wrong]}}, SHAPE)


def test_clips_without_the_extras_are_said():
    with pytest.raises(DataError, match=r"data\.extras=\[scene_graphs\]"):
        condition().encode({**batch_of(DSG), "extras": {}}, SHAPE)
    for times in ([0.0], "soon", [None] * 9):
        with pytest.raises(DataError, match=r"extras\.frame_ticks(.|\n)*clip-0"):
            condition(times="frame_ticks").encode(batch_of(DSG, frame_ticks=[times]), SHAPE)


class FrozenEncoder(TextEncoder):
    """Shows its padding, as CLIP does: 9 begins, 7 ends and fills."""

    def __init__(self):
        super().__init__(width=6, length=10, is_trained=False)
        self.embedding = torch.nn.Embedding(64, 6)
        self.calls = []

    def to_ids(self, captions):
        self.calls += captions
        rows = [[9, *(10 + ord(c) % 50 for c in caption[:8])] for caption in captions]
        return TextTokens(torch.tensor([row + [7] * (10 - len(row)) for row in rows]), None, ())

    def embed(self, ids, mask):
        return self.embedding(ids)


def test_a_frozen_encoder_reads_each_label_once():
    encoder = FrozenEncoder()
    made = condition(encoder=encoder)
    first = made.encode(batch_of(DSG), SHAPE).tokens[SCENE].values
    calls = len(encoder.calls)
    assert torch.equal(made.encode(batch_of(DSG), SHAPE).tokens[SCENE].values, first)
    assert len(encoder.calls) == calls
    (first**3).sum().backward()  # the sum of what was normed is constant
    assert not any("encoder.embedding" in name for name in made.state_dict())
    assert encoder.embedding.weight.grad is None
    assert made.from_label.weight.grad.abs().max() > 0


# ---- dropping, gate, guidance -------------------------------------------------------------------------------------------


def conditions(drop_prob=0.5, **changes):
    torch.manual_seed(0)
    text = TextCondition(encoder=SmallEncoder(width=WIDTH, depth=1, heads=2, length=16), pooled=False, drop_prob=0.0)
    members = {"text": text, "scene_graph": condition(drop_prob=drop_prob, **changes)}
    return ConditionSet(members=members, joint_drop_prob=0.0, joint_keep_prob=0.0)


def test_dropping_by_clip():
    members, batch = conditions(), batch_of(*[DSG] * 16)
    dropped = members.dropped(batch["key"], 3, 7)["scene_graph"]
    assert dropped.any()
    assert not dropped.all()
    tokens = members(batch, SHAPE, seed=3, step=7).tokens[SCENE]
    full = members.encode(batch, SHAPE).tokens[SCENE]
    for i, is_dropped in enumerate(dropped.tolist()):
        assert tokens.visible[i].any() != is_dropped
        if not is_dropped:
            assert torch.equal(tokens.visible[i], full.visible[i])
    null = members.members["scene_graph"].null(3, SHAPE).tokens[SCENE]
    assert not null.visible.any()


def backbone(streams, weights=None):
    torch.manual_seed(1)
    with hydra.initialize_config_dir(str(CONF), version_base="1.3"):
        settings = ["stage=vdm", "backbone.channels=16", "backbone.head_width=8", "backbone.norm_groups=4"]
        node = hydra.compose("train", overrides=[*settings, "backbone.latent_channels=4"]).backbone
    made = instantiate(OmegaConf.to_container(node, resolve=True), _convert_="all")
    made.open_doors(streams=streams, concat_channels=0, embed_width=0)
    if weights is None:
        for parameter in made.parameters():
            torch.nn.init.normal_(parameter, std=0.1)
    else:
        made.load_state_dict(weights, strict=False)
    return made


@torch.no_grad()
def test_a_closed_gate_is_bit_equal_to_no_scene_graph():
    members, batch = conditions(), batch_of(DSG, DSG)
    x, timestep = torch.randn(2, *SHAPE), torch.tensor([10.0, 900.0])
    controls = members.encode(batch, SHAPE)
    plain = backbone({"text": WIDTH})
    without = plain(x, timestep, controls=type(controls)(tokens={"text": controls.tokens["text"]}))
    attached = backbone(members.streams, plain.state_dict())
    assert torch.equal(attached(x, timestep, controls=controls), without)
    for name, parameter in attached.named_parameters():
        if name.endswith("scene.gate"):
            parameter.fill_(1.0)
    opened = attached(x, timestep, controls=controls)
    assert not torch.equal(opened, without)
    other = copy.copy(controls)
    object.__setattr__(other, "tokens", {**controls.tokens, SCENE: members.encode(
        batch_of(DynamicSceneGraph(DSG.graphs[::-1]), DSG), SHAPE).tokens[SCENE]})  # fmt: skip
    changed = attached(x, timestep, controls=other)
    assert (changed[0] - opened[0]).abs().max() > 1e-4, "another graph, another video"
    torch.testing.assert_close(changed[1], opened[1])


@torch.no_grad()
def test_guidance_has_a_weight_of_its_own():
    members, batch = conditions(), batch_of(DSG)
    network = backbone(members.streams)
    x, timestep = torch.randn(1, *SHAPE), torch.tensor([500.0])
    controls_for = members.controls_for(batch, SHAPE)
    table = instruct_pix2pix(["text"], ["scene_graph"], 5.0, 2.0, rescale=0.0, interval=(0.0, 1.0))
    predict = guided(lambda c: lambda x, t: network(x, t, controls=c), controls_for, table, num_timesteps=1000)
    both, text, nothing = (
        network(x, timestep, controls=controls_for(frozenset(said)))
        for said in (("text", "scene_graph"), ("text",), ())
    )
    torch.testing.assert_close(predict(x, timestep), 2 * both + 3 * text - 4 * nothing, atol=1e-4, rtol=1e-4)
    assert (both - text).abs().max() > 1e-4


# ---- settings -----------------------------------------------------------------------------------------------------------

CHOSEN = ("stage=vdm", "condition=[text,scene_graph]")


def composed(*overrides):
    with hydra.initialize_config_dir(str(CONF), version_base="1.3"):
        return hydra.compose("train", overrides=list(overrides))


@pytest.mark.parametrize(("choice", "kind"), [("rgtrm", RecurrentGraphTransformer), ("rgnn", RecurrentGraphNetwork)])
def test_the_choice_of_the_encoder(choice, kind):
    cfg = composed(*CHOSEN, f"scene_encoder={choice}", "scene_encoder.width=32")
    made = instantiate(cfg.condition, _convert_="all")["scene_graph"]
    assert isinstance(made.scene_encoder, kind)
    assert made.streams == {SCENE: 32}
    assert list(cfg.data.extras) == ["scene_graphs", "frame_ticks"]
    assert cfg.condition.text.encoder.width == 128, "the other condition is as it was"


def test_clips_bring_what_is_read():
    config.check_resolved({"checks": {"scene_graph": config.resolve(composed(*CHOSEN))["checks"]["scene_graph"]}})
    changed = config.resolve(composed(*CHOSEN, "data.extras=[plan]"))["checks"]["scene_graph"]
    with pytest.raises(ConfigError, match=r"set data\.extras=\[plan,scene_graphs,frame_ticks\]"):
        config.call_check(changed)
    from_plans = composed(*CHOSEN, "condition.scene_graph.reads=plan")
    assert list(from_plans.data.extras) == ["plan", "frame_ticks"]
    assert "scene_graph" not in composed("stage=vdm").checks
    assert not composed("stage=vdm").data.extras


@pytest.mark.parametrize(
    "target", ["dysen.drawing.main", "dysen.condition.collate", "dysen.graph_encoder.nn.Linear", "dysen.conditions.X"]
)
def test_a_run_may_name_nothing_else_of_this_package(target, tmp_path):
    settings = config.resolve(composed(*CHOSEN))
    restore.checked(settings, "condition", Run(tmp_path))
    settings["condition"]["scene_graph"]["scene_encoder"] = {"_target_": target}
    with pytest.raises(ConfigError, match="may not be named by a run"):
        restore.checked(settings, "condition", Run(tmp_path))


def test_tokens_are_what_the_backbone_reads():
    tokens = condition().encode(batch_of(DSG, None), SHAPE).tokens[SCENE]
    assert isinstance(tokens, Tokens)
    assert tokens.visible.shape == (2, SHAPE.frames, tokens.values.shape[1])
    assert tokens.visible.dtype == torch.bool
