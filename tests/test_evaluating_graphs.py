"""protocol=shapes for models that hear scene graphs: the true ones, those of a planner, or none; nothing is mixed up."""

import json

import hydra
import pytest
from omegaconf import OmegaConf
from sampling_runs import run_settings, write_run

from dysen.plan import main as plan
from dysen.planning_corpus import PlannedGraphs
from vdm import config
from vdm.errors import ConfigError, DataError, RunError
from vdm.evaluating.command import evaluate
from vdm.launch import CONF
from vdm.sampling.model import TextToVideo

SMALL = ["condition.scene_graph.encoder.width=16", "scene_encoder.width=16"]


def compose(name, *overrides):
    with hydra.initialize_config_dir(str(CONF), version_base="1.3"):
        return hydra.compose(name, overrides=list(overrides))


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    root = tmp_path_factory.mktemp("outputs")
    cfg = compose("train", "stage=vdm", "data=shapes", "condition=[text,scene_graph]", *SMALL)
    settings = run_settings("v") | {"data": OmegaConf.to_container(cfg.data, resolve=True)}
    write_run(root / "deaf", settings, finished=1.0)
    graphs = OmegaConf.to_container(cfg.condition, resolve=True)["scene_graph"]
    both = settings["condition"] | {"scene_graph": graphs}
    write_run(root / "model", settings | {"condition": both}, finished=2.0).update(stage="dysen")
    return root


@pytest.fixture
def told(monkeypatch):
    """Per key: what is said, and which branches guidance has."""
    calls, latents = {}, TextToVideo.latents

    def spy(self, prompts, keys, *, extras, guidance, **how):
        calls.update({key: (said, guidance.full) for key, said in zip(keys, extras, strict=True)})
        return latents(self, prompts, keys, extras=extras, guidance=guidance, **how)

    monkeypatch.setattr(TextToVideo, "latents", spy)
    return calls


def ask(root, shapes_root, *overrides):
    given = [f"paths.output_root={root}", f"paths.data_root={shapes_root}", "protocol=shapes", "protocol.clips=3"]
    cfg = compose("evaluate", *given, "protocol.sampler.num_steps=1", "protocol.shown=0", "num_workers=0", *overrides)
    config.check(cfg, set(cfg))
    return evaluate(cfg)


def test_graphs_are_said_by_their_source(root, shapes_root, told):
    gold = ask(root, shapes_root)
    assert gold["clips"] == 3
    truths = dict(told)
    for said, full in truths.values():
        assert full == {"text", "scene_graph"}
        assert said["scene_graphs"][0]["objects"]
        assert len(said["frame_ticks"]) == 8
    told.clear()
    assert ask(root, shapes_root) == gold
    assert not told, "the samples are there"
    ask(root, shapes_root, "protocol.graphs=none")
    assert all(said == ({}, {"text"}) for said in told.values())
    told.clear()
    with pytest.raises(RunError, match=r"python -m dysen\.plan data=shapes split=test"):
        ask(root, shapes_root, "protocol.graphs=planned")
    plans = root / "plans"
    plan(compose("plan", "data=shapes", "split=test", "planner=plain", "limit=2", f"output={plans}",
                 f"paths.data_root={shapes_root}", f"paths.output_root={root}"))  # fmt: skip
    planned = ask(root, shapes_root, "protocol.graphs=planned", f"protocol.plans.folder={plans}")
    assert planned["without_plan"] == 1
    known = PlannedGraphs(str(plans))
    for key, (said, full) in told.items():
        assert full == {"text", "scene_graph"}
        graphs = said["scene_graph"]
        assert graphs is None if key not in known else graphs[0]["objects"]
    folder = root / "model" / "evaluation"
    assert {path.parent.name for path in folder.glob("*/metrics.json")} == {"shapes", "shapes-none", "shapes-planned"}
    results = {
        name: json.loads((folder / name / "metrics.json").read_text())
        for name in ("shapes", "shapes-planned", "shapes-none")
    }
    assert results["shapes-planned"]["protocol"]["graphs"] == "planned"
    assert len(results["shapes-planned"]["graphs"]["plans"]) == 16
    # What was planned from a caption is the method's own; to be told the truth is another protocol.
    assert results["shapes-planned"]["id"] == results["shapes-none"]["id"] != results["shapes"]["id"]


def test_plans_are_drawn(root, shapes_root):
    ask(root, shapes_root, "protocol.shown=1")
    folder = root / "model" / "evaluation" / "shapes"
    cases = [json.loads(line) for line in (folder / "cases.jsonl").read_text().splitlines()]
    shown = [case for case in cases if case["video"] is not None]
    assert len(shown) == 1
    for name, start in (
        ("video", b"\0\0\0"),
        ("original", b"\0\0\0"),
        ("timeline", b"<svg"),
        ("graph", b"<svg"),
        ("plan", b"{"),
    ):
        assert (folder / shown[0][name]).read_bytes().startswith(start), name
    plan = json.loads((folder / shown[0]["plan"]).read_text())
    assert plan["caption"] == shown[0]["caption"]
    assert plan["plan"]
    assert plan["scene_graphs"][0]["objects"]
    assert "<svg" in (folder / "report.html").read_text()


def test_a_model_that_hears_none(root, shapes_root, told):
    ask(root, shapes_root, "run=deaf")
    assert all(said == ({}, {"text"}) for said in told.values())
    with pytest.raises(RunError, match="hears no scene graphs"):
        ask(root, shapes_root, "run=deaf", "protocol.graphs=planned")


def test_mistakes(root, shapes_root, tmp_path):
    with pytest.raises(DataError, match="no plans in this folder"):
        ask(root, shapes_root, "protocol.graphs=planned", f"protocol.plans.folder={tmp_path}")
    with pytest.raises(ConfigError, match="cannot take this value"):
        ask(root, shapes_root, "protocol.graphs=silver")
