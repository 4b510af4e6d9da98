"""sample.py plan=true: prompts are planned, the graphs reach the model and stay beside the video; the ablations."""

import json
import logging

import hydra
import numpy as np
import pytest
import torch
from omegaconf import OmegaConf
from sampling_runs import ask, run_settings, write_run

from dysen.demonstrations import Demonstration, write_pool
from dysen.drawing import read
from dysen.planner import Planner
from dysen.prompt_planning import PromptPlanner
from vdm.errors import ConfigError, DataError, RunError
from vdm.launch import CONF, plain_errors
from vdm.sampling.model import TextToVideo

PROMPT = "A red circle moves left, then a blue star spins."
SHORT = ("sampler.num_steps=2", "device=cpu", "format=npz")


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """A model that hears scene graphs, of stage=dysen, and an older one that does not."""
    root = tmp_path_factory.mktemp("outputs")
    settings = run_settings("v")
    write_run(root / "deaf", settings, finished=1.0)
    with hydra.initialize_config_dir(str(CONF), version_base="1.3"):
        cfg = hydra.compose("train", overrides=["stage=vdm", "data=shapes", "condition=[text,scene_graph]",
                            "condition.scene_graph.encoder.width=16", "scene_encoder.width=16"])  # fmt: skip
    graphs = OmegaConf.to_container(cfg.condition, resolve=True)["scene_graph"]
    run = write_run(
        root / "model", settings | {"condition": settings["condition"] | {"scene_graph": graphs}}, finished=2.0
    )
    run.update(stage="dysen")
    return root


@pytest.fixture
def told(monkeypatch):
    """What the model hears besides the text, call by call."""
    calls, latents = [], TextToVideo.latents

    def spy(self, prompts, keys, *, extras, **how):
        calls.append(dict(zip(prompts, extras, strict=True)))
        return latents(self, prompts, keys, extras=extras, **how)

    monkeypatch.setattr(TextToVideo, "latents", spy)
    return calls


def record_of(path):
    return json.loads(path.with_suffix(".json").read_text())


def test_a_prompt_is_planned_and_its_plan_is_kept(root, told, tmp_path):
    (path,) = ask(root, f"prompt={PROMPT}", "plan=true", *SHORT)
    assert path.parents[1].parent.name == "model", "the newest run of stage=vdm or stage=dysen"
    record = record_of(path)
    graphs = told[0][PROMPT]["scene_graph"]
    assert record["scene_graph"] == graphs
    assert [one["name"] for one in graphs[0]["objects"]] == ["circle"]
    assert (record["planned"]["source"], record["planned"]["repairs"]) == ("model", [])
    assert record["planned"]["plan"][0][:2] == ["circle", "move left"]
    assert record["planner"]["llm"]["_target_"] == "dysen.llm.rules.Rules"
    plan, dsg, caption = read(path.with_suffix(".plan.json"))
    assert plan.to_json() == record["planned"]["plan"]
    assert dsg.to_json() == graphs
    assert caption == PROMPT
    assert path.with_suffix(".plan.svg").read_text().startswith("<svg")
    (silent,) = ask(root, f"prompt={PROMPT}", *SHORT)
    assert not np.array_equal(np.load(path)["arr_0"], np.load(silent)["arr_0"]), "the graphs are heard"
    assert not {"planner", "planned", "scene_graph", "ablate"} & set(record_of(silent))
    # Its record makes the same video again, without a planner.
    (again,) = ask(root, f"prompts={path.with_suffix('.json')}", f"scene_graph='{path.with_suffix('.json')}'", *SHORT,
                   f"output={tmp_path}")  # fmt: skip
    assert np.array_equal(np.load(path)["arr_0"], np.load(again)["arr_0"])
    assert f"scene_graph={path.with_suffix('.json')}" in record["command"]


def test_only_what_is_missing_is_planned_and_made(root, told, tmp_path, monkeypatch):
    (tmp_path / "prompts.txt").write_text(f"{PROMPT}\nA green square grows.\n\n")
    given = (f"prompts={tmp_path / 'prompts.txt'}", "plan=true", "num=2", f"output={tmp_path / 'out'}", *SHORT)
    asked, whole = [], Planner.plan
    monkeypatch.setattr(Planner, "plan", lambda self, captions: asked.append(list(captions)) or whole(self, captions))
    first = ask(root, *given)
    assert asked == [[PROMPT, "A green square grows."]], "copies of a prompt share their plan"
    before = [path.read_bytes() for path in first]
    ask(root, *given)
    assert len(asked) == 1
    first[3].with_suffix(".json").unlink()
    ask(root, *given)
    assert asked[1:] == [["A green square grows."]]
    assert [path.read_bytes() for path in first] == before
    with pytest.raises(RunError, match="made with another planner"):
        ask(root, *given, "planner=fast")
    with pytest.raises(RunError, match="made with another"):
        ask(root, *[one for one in given if one != "plan=true"])


def test_ablations(root, told, tmp_path, monkeypatch):
    made, whole = [], Planner.plan
    monkeypatch.setattr(Planner, "plan", lambda self, captions: made.append(self) or whole(self, captions))
    write_pool(str(tmp_path / "pool.jsonl"), [Demonstration.from_json(one) for one in POOL])
    given = (f"prompt={PROMPT}", "plan=true", *SHORT)
    pool = ("selector=nearest", "selector.shots=2", f"pool={tmp_path / 'pool.jsonl'}")
    folders = set()
    for part, more in (("dysen", ()), ("imagination", ()), ("window", ()), ("policy", pool)):
        (path,) = ask(root, *given, f"ablate={part}", *more)
        assert record_of(path)["ablate"] == part
        folders.add(path.parent)
    assert len(folders) == 4, "each has its own folder"
    assert not told[0][PROMPT], "dysen: nothing is said besides the prompt, and nobody plans"
    imagination, window, policy = made
    assert imagination.imagination is None
    assert (window.imagination.window, window.imagination.polish) == (0, True)
    assert (type(policy.selector).__name__, policy.selector.shots, len(policy.selector.pool)) == (
        "RandomSelector",
        2,
        3,
    )


POOL = [{"id": str(i), "caption": f"A dog runs {i} times.", "plan": [["dog", "run", None, [0, 1]]]} for i in range(3)]


def test_a_file_wins(root, told, tmp_path, caplog):
    file = tmp_path / "plan.json"
    file.write_text(json.dumps([["red circle", "spinning", None, [0, 3]]]))
    with caplog.at_level(logging.INFO):
        (path,) = ask(root, f"prompt={PROMPT}", "plan=true", f"scene_graph='{file}'", *SHORT)
    assert told[0][PROMPT] == {"scene_graph": [["red circle", "spinning", None, [0, 3]]]}
    assert "nothing is planned" in caplog.text
    assert "planner" not in record_of(path)


def test_a_prompt_without_a_plan_says_nothing(root, told):
    (path,) = ask(root, "prompt='...'", "plan=true", *SHORT)
    record = record_of(path)
    assert told[0]["..."] == {"scene_graph": None}
    assert (record["planned"]["source"], record["scene_graph"]) == ("caption", None)
    assert not path.with_suffix(".plan.svg").exists()


@pytest.mark.parametrize(
    ("overrides", "key", "said"),
    [
        (("run=deaf", "plan=true"), "plan", "hears no scene graphs"),
        (("ablate=window",), "ablate", "from plans that are made here"),
        (("plan=true", "ablate=policy"), "ablate", "no demonstrations are chosen"),
        (("plan=true", "ablate=window", "planner=plain"), "ablate", "nothing is imagined"),
        (("plan=true", "ablate=window", "planner=fast"), "ablate", "look at no window"),
        (("plan=true", "selector=random", "pool=absent.jsonl"), "pool", "no pool of demonstrations"),
        (("plan=perhaps",), "plan", "cannot take this value"),
    ],
)
def test_mistakes(root, overrides, key, said):
    with pytest.raises((ConfigError, DataError), match=said) as caught, plain_errors():
        ask(root, f"prompt={PROMPT}", *SHORT, *overrides)
    assert caught.value.key.endswith(key)


def test_without_plan_no_planner_is_built(root, monkeypatch):
    def refuse(*_, **__):
        raise AssertionError("built")

    monkeypatch.setattr(PromptPlanner, "__init__", refuse)
    assert ask(root, "run=deaf", f"prompt={PROMPT}", *SHORT)
    assert ask(root, f"prompt={PROMPT}", "plan=true", "ablate=dysen", "guidance_scene_graph=2", *SHORT)
    with torch.random.fork_rng(), pytest.raises(Exception, match="built"):
        ask(root, "prompt=another", "plan=true", *SHORT)
