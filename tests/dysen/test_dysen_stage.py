"""stage=dysen: which graphs a clip comes with, what it starts from, how it goes on, and what is said where something lacks."""

import csv
import json
import logging
from pathlib import Path

import hydra
import pytest
import torch
from hydra.core.global_hydra import GlobalHydra
from hydra.utils import instantiate
from omegaconf import OmegaConf
from test_scene_training import MODEL, SMALL, build_shapes, composed, write_autoencoder

from dysen.plan import main as plan
from dysen.planning_corpus import PlannedGraphs
from dysen.stages.dysen import DysenStage, PlannedShare
from vdm import checkpoint, config, lineage, restore, training
from vdm.errors import ConfigError, DataError, RunError
from vdm.launch import CONF
from vdm.runs import Run
from vdm.stages.planned import ENOUGH
from vdm.types import LatentShape

GRAPH = {"objects": [{"name": "ball", "attributes": []}], "actions": [], "relations": []}
STEPS = ["stage.share.steps=4", "stage.accumulate=1", "sampler.num_steps=2", "trainer.log_every_n_steps=1",
         "callbacks.samples.every=100"]  # fmt: skip
DYSEN = ["stage=dysen", *SMALL[6:], *STEPS]


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """Clips with plans of their training captions, and the parent: a few steps of stage=vdm."""
    root = tmp_path_factory.mktemp("dysen")
    build_shapes(root / "datasets")
    places = [f"paths.data_root={root / 'datasets'}", f"paths.output_root={root / 'outputs'}"]
    write_autoencoder(root / "outputs" / "first", *SMALL, *places)
    training.train(composed(*SMALL, *MODEL, *places, "run.id=parent", "trainer.max_steps=2"))
    make_plans(places)
    return root, places


def make_plans(places, *overrides):
    with hydra.initialize_config_dir(str(CONF), version_base="1.3"):
        plan(hydra.compose("plan", overrides=["data=shapes", "planner=plain", *places, *overrides]))


def weights(run, network="backbone"):
    return checkpoint.network_weights(run.last_checkpoint(), network, averaged=False)


# ---- which graphs


class Rows(dict):
    """Plans by (key, caption)."""

    folder = "here"

    def get(self, key, caption):
        return dict.get(self, (key, caption))


class Alone:
    """What `with_plans` needs of a stage."""

    heard = type("Heard", (), {"reads": "scene_graphs", "times": "frame_ticks"})
    with_plans, is_planned, is_true = DysenStage.with_plans, DysenStage.is_planned, DysenStage.is_true

    def __init__(self, rows, share, step=0, seed=0, agreement=0):
        self.planned, self.step, self.seed, self.agreement = Rows(rows), step, seed, agreement
        self.share = PlannedShare(start=share, end=share, steps=1)
        self.asked = self.without_plan = self.contradicted = 0


def batch_of(count, times=True):
    keys = [f"clip-{i}" for i in range(count)]
    extras = {"scene_graphs": [[GRAPH, {"of": key}] for key in keys]}
    extras |= {"frame_ticks": [[0, 1, 2]] * count} if times else {}
    return {"key": keys, "caption": ["a"] * count, "extras": extras}


def test_the_share_is_a_line():
    share = PlannedShare(start=0.2, end=1.0, steps=4)
    assert [round(share.at(step), 6) for step in (0, 1, 2, 4, 100)] == [0.2, 0.4, 0.6, 1.0, 1.0]


def test_planned_graphs_take_the_place_of_gold_ones_and_have_their_own_ticks():
    batch = batch_of(3)
    rows = {("clip-0", "a"): {"scene_graphs": [GRAPH]}, ("clip-1", "another caption"): {"scene_graphs": [GRAPH]},
            ("clip-2", "a"): {"scene_graphs": None}}  # fmt: skip
    stage = Alone(rows, 1.0)
    told, share = stage.with_plans(batch)
    assert told["extras"]["scene_graphs"] == [[GRAPH], *batch["extras"]["scene_graphs"][1:]]
    assert told["extras"]["frame_ticks"] == [None, [0, 1, 2], [0, 1, 2]]
    assert (share, stage.asked, stage.without_plan) == (1 / 3, 3, 2)
    assert batch["extras"]["frame_ticks"][0] == [0, 1, 2], "the batch itself is as it was"
    untouched, none = Alone(rows, 0.0).with_plans(batch)
    assert untouched == batch
    assert none == 0


def test_the_draw_belongs_to_clip_and_step():
    keys = [f"clip-{i}" for i in range(2000)]
    drawn = {step: [Alone({}, 0.3, step).is_planned(key) for key in keys] for step in (0, 1)}
    for chosen in drawn.values():
        assert 0.27 < sum(chosen) / len(keys) < 0.33
    assert drawn[0] != drawn[1]
    assert [Alone({}, 0.3, 1, seed=1).is_planned(key) for key in keys] != drawn[1]
    more = [Alone({}, 0.6, 1).is_planned(key) for key in keys]
    assert all(after or not before for before, after in zip(drawn[1], more, strict=True))


def test_plans_of_other_clips_are_said():
    stage = Alone({}, 1.0)
    with pytest.raises(DataError, match="has a plan of its caption here"):
        stage.with_plans(batch_of(ENOUGH))
    stage = Alone({("clip-0", "a"): {"scene_graphs": [GRAPH]}}, 1.0)
    stage.with_plans(batch_of(3 * ENOUGH))
    assert stage.without_plan == 3 * ENOUGH - 1


def told(*events):
    return [[who, does, None, [start, end]] for who, does, start, end in events]


def test_plans_that_the_truth_contradicts_are_not_told():
    truth = told(("ball", "grows", 0, 1), ("ball", "spins", 1, 4), ("box", "blinks", 4, 6))
    plans = {
        "other times": told(("ball", "grows", 0, 3), ("ball", "spins", 3, 4), ("box", "blinks", 4, 5)),
        "other order": told(("ball", "spins", 0, 3), ("ball", "grows", 3, 4), ("box", "blinks", 4, 5)),
        "something more": told(
            ("ball", "grows", 0, 1), ("ball", "spins", 1, 2), ("box", "falls", 2, 3), ("box", "blinks", 3, 4)
        ),
        "something less": told(("ball", "grows", 0, 1), ("ball", "spins", 1, 2)),
        "no truth": told(("box", "falls", 0, 1)),
    }
    batch = batch_of(len(plans))
    batch["extras"]["scene_graphs"] = [truth] * 4 + [None]
    rows = {(f"clip-{i}", "a"): {"scene_graphs": plan} for i, plan in enumerate(plans.values())}

    def of_planned(agreement):
        stage = Alone(rows, 1.0, agreement=agreement)
        given, share = stage.with_plans(batch)
        right = [g == plan for g, plan in zip(given["extras"]["scene_graphs"], plans.values(), strict=True)]
        kept = [g == truth for g in given["extras"]["scene_graphs"]]
        assert [a or b for a, b in zip(right, kept, strict=True)] == [True] * 5
        placed = [at is None for at in given["extras"]["frame_ticks"]]
        assert (placed, sum(right) / 5, stage.without_plan) == (right, share, 0)
        assert stage.contradicted == 5 - sum(right)
        return [name for name, is_told in zip(plans, right, strict=True) if is_told]

    assert of_planned(1.0) == ["other times", "no truth"]
    assert of_planned(0.7) == ["other times", "other order", "something more", "no truth"], "one tick of a few is wrong"
    assert of_planned(0.0) == list(plans)


# ---- training


@pytest.fixture(scope="module")
def trained(world):
    _, places = world
    training.train(composed(*DYSEN, *places, "run.id=whole"))
    return Run(world[0] / "outputs" / "whole")


def test_it_starts_from_the_parent_and_says_so(world, trained):
    root, places = world
    settings, parent = restore.settings_of(trained), restore.settings_of(Run(root / "outputs" / "parent"))
    for group in lineage.FOLLOWED:
        assert settings[group] == parent[group], group
    assert settings["backbone"]["channels"] == 16
    assert settings["data"]["extras"] == ["scene_graphs", "frame_ticks"]
    assert {(entry["network"], entry["run"]) for entry in trained.info["lineage"]} == {
        (network, "parent") for network in ("autoencoder", "backbone", "conditions")
    }
    assert (trained.state, trained.info["stage"]) == ("complete", "dysen")
    cfg = composed(*DYSEN, *places)
    lineage.adopt(cfg)
    config.check(cfg, set(cfg))
    before = OmegaConf.to_container(cfg)
    lineage.adopt(cfg)
    assert OmegaConf.to_container(cfg) == before, "adopting twice is adopting once"
    stage = instantiate(cfg.stage, _convert_="all")
    training._load_parents(stage, config.resolve(cfg))
    averaged = checkpoint.network_weights(Run(root / "outputs" / "parent").last_checkpoint(), "backbone")
    for name, tensor in stage.backbone.state_dict().items():
        assert torch.equal(tensor, averaged[name]), name


def test_every_clip_meets_its_own_plan(world, trained):
    root, places = world
    cfg = composed(*DYSEN, *places, "stage.share.start=1.0")
    lineage.adopt(cfg)
    stage = instantiate(cfg.stage, _convert_="all")
    stage.__class__ = type("Stepless", (DysenStage,), {"step": 0})
    data = instantiate(cfg.data, _convert_="all")
    data.run_folder = root
    data.setup("fit")
    batch = next(iter(data.train_dataloader()))
    told, share = stage.with_plans(batch)
    assert share == 1.0
    assert stage.without_plan == 0
    plans = PlannedGraphs(cfg.stage.planned.folder)
    for key, caption, graphs in zip(batch["key"], batch["caption"], told["extras"]["scene_graphs"], strict=True):
        assert graphs == plans.get(key, caption)["scene_graphs"]
    stage.conditions.encode(told, LatentShape(8, 8, 16, 16))


def test_a_resumed_run_is_the_same_run(world, trained):
    root, places = world
    cut = ["run.id=cut", "callbacks.checkpoint.finish_batches=1"]
    training.train(composed(*DYSEN, *places, *cut, "trainer.max_steps=2"))
    make_plans(places, "planner=fast")  # newer plans do not change what the run goes on with
    training.train(composed(*DYSEN, *places, *cut))
    run = Run(root / "outputs" / "cut")
    assert restore.settings_of(run)["stage"]["planned"] == restore.settings_of(trained)["stage"]["planned"]
    for network in ("backbone", "conditions"):
        other = weights(run, network)
        for name, tensor in weights(trained, network).items():
            assert torch.equal(tensor, other[name]), name


def test_plans_change_the_training(world, trained):
    root, places = world
    training.train(composed(*DYSEN, *places, "run.id=gold", "stage.share.start=0.0", "stage.share.end=0.0"))
    pairs = zip(weights(trained, "conditions").values(), weights(Run(root / "outputs" / "gold"), "conditions").values(),
                strict=True)  # fmt: skip
    assert any(not torch.equal(one, other) for one, other in pairs)
    with open(trained.folder / "metrics.csv", newline="") as file:
        rows = [row for row in csv.DictReader(file) if row.get("train/loss")]
    assert [float(row["train/without_plan"]) for row in rows] == [0.0] * 4
    assert float(rows[-1]["train/planned_share"]) > 0


# ---- what lacks


def test_no_plans_no_parent_a_deaf_parent(world, tmp_path, caplog):
    root, places = world
    elsewhere = [f"paths.data_root={tmp_path}", places[1]]
    with pytest.raises(RunError, match=r"python -m dysen\.plan data=shapes split=train"):
        lineage.adopt(composed(*DYSEN, *elsewhere))
    empty = [places[0], f"paths.output_root={tmp_path}"]
    with pytest.raises(RunError, match=r"python train\.py stage=vdm condition=\[text,scene_graph\] data=shapes"):
        lineage.adopt(composed(*DYSEN, *empty))
    with pytest.raises(RunError, match="hears no scene graphs"):
        lineage.adopt(composed(*DYSEN, *places, "init.vdm=first"))
    with pytest.raises(ConfigError, match="are of one run"):
        lineage.adopt(composed(*DYSEN, *places, "init.vdm=parent", "init.autoencoder=first"))
    named = composed(*DYSEN, *places, f"stage.planned.folder={tmp_path}")
    lineage.adopt(named)
    with pytest.raises(DataError, match="no plans in this folder"):
        config.check(named, set(named))
    with caplog.at_level(logging.INFO):
        lineage.adopt(composed(*DYSEN, *places))
    assert "that hears scene graphs is parent" in caplog.text


def test_a_trial_is_no_plan_of_the_split(world, tmp_path):
    plans = tmp_path / "shapes" / "train" / "plans"
    for name, limit in (("trial", 5), ("whole", None)):
        (plans / name).mkdir(parents=True)
        (plans / name / "planner.json").write_text(json.dumps({"limit": limit}))
        if name == "trial":
            (plans / name / "report.json").write_text("{}")
    cfg = composed(*DYSEN, f"paths.data_root={tmp_path}", world[1][1])
    with pytest.raises(RunError, match="there are none of this split"):
        lineage.adopt(cfg)  # one is a trial, the other unfinished
    (plans / "whole" / "report.json").write_text("{}")
    (plans / "trial" / "report.json").write_text("{} ")
    lineage.adopt(cfg)
    assert Path(cfg.stage.planned.folder) == plans / "whole"


def test_what_the_command_says_of_the_parents_networks(world, monkeypatch):
    _, places = world
    given = ["condition.scene_graph.drop_prob=0.25"]
    monkeypatch.setattr(lineage, "_given", lambda: ["condition.scene_graph.drop_prob"])
    cfg = composed(*DYSEN, *places, *given)
    lineage.adopt(cfg)
    assert cfg.condition.scene_graph.drop_prob == 0.25
    assert cfg.condition.scene_graph.encoder.width == 16
    for key, override in (("backbone", "backbone=small"), ("scene_encoder.width", "scene_encoder.width=32")):
        monkeypatch.setattr(lineage, "_given", [key].copy)
        with pytest.raises(ConfigError, match="this is as in the parent parent"):
            lineage.adopt(composed(*DYSEN, *places, override))
    assert not GlobalHydra.instance().is_initialized()
