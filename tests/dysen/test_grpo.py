"""stage=planner planner.tune=grpo: the numbers by hand, a toy that is learned, a run that continues bit for bit."""

import csv
import json
import math
from pathlib import Path

import hydra
import pytest
import torch
from hydra.errors import MissingConfigException
from hydra.utils import instantiate

pytest.importorskip("transformers")
pytest.importorskip("llguidance")
pytest.importorskip("peft")

from dysen.demonstrations import NoSelector
from dysen.icl.grpo import Group, clipped_loss, graded, group_advantages, mean_of_answers, with_gradients
from dysen.icl.rewards import PlanReliability, RewardTerm
from dysen.llm.adapter import Adapter
from dysen.llm.cache import cached
from dysen.llm.log_probs import Drawn
from dysen.planner import Planner
from dysen.stages.grpo import GrpoStage
from tests.dysen.random_language_model import save
from tests.dysen.test_llm_log_probs import build
from vdm import checkpoint, config, training
from vdm.errors import ConfigError, RunError
from vdm.launch import CONF
from vdm.runs import Run

PLAN = [["dog", "runs", None, [0, 1]]]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return save(tmp_path_factory.mktemp("language_model"))


# ---- numbers ----------------------------------------------------------------------------------------------------------


def test_advantages_by_hand():
    found = group_advantages(torch.tensor([1.0, 0.0, 0.5, 0.5]), is_normalised=True)
    spread = math.sqrt((0.25 + 0.25) / 4)
    torch.testing.assert_close(found, torch.tensor([0.5, -0.5, 0.0, 0.0]) / (spread + 1e-4))
    torch.testing.assert_close(
        group_advantages(torch.tensor([1.0, 0.0]), is_normalised=False), torch.tensor([0.5, -0.5])
    )
    assert not group_advantages(torch.full((5,), 0.3), is_normalised=True).any()  # equal ones teach nothing
    # Differences far below epsilon are noise, and do not become large.
    assert group_advantages(torch.tensor([0.3, 0.3 + 1e-6]), is_normalised=True).abs().max() < 0.01


def test_loss_by_hand():
    ratio = torch.tensor([1.0, 1.5, 1.5, 0.5, 0.5, 1.1])
    advantage = torch.tensor([2.0, 2.0, -2.0, 2.0, -2.0, 1.0])
    log_prob = ratio.log().requires_grad_()
    loss = clipped_loss(log_prob, torch.zeros(6), advantage, 0.2)
    # Good and already likelier: 1.2 A. Bad and likelier: all of it. Good and less likely: all. Bad and less likely: 0.8 A.
    torch.testing.assert_close(loss.detach(), -torch.tensor([2.0, 2.4, -3.0, 1.0, -1.6, 1.1]))
    loss.sum().backward()
    torch.testing.assert_close(log_prob.grad, -torch.tensor([2.0, 0.0, -3.0, 1.0, 0.0, 1.1]))
    assert mean_of_answers(torch.tensor([1.0, 3.0, 5.0]), [2, 1]) == 3.5
    assert mean_of_answers(torch.tensor([1.0, 3.0, 5.0]), [1, 2]) == 2.5


def test_gradients_go_on_without_their_graph():
    a, b = torch.tensor([2.0, 3.0], requires_grad=True), torch.tensor(5.0, requires_grad=True)
    value, gradients = graded((a.square() * 3).sum(), [a, b])
    again = with_gradients(value, [a, b], gradients)
    assert again == value == 39
    (again / 2).backward()
    torch.testing.assert_close(a.grad, 3 * a.detach())
    assert b.grad == 0


# ---- the stage --------------------------------------------------------------------------------------------------------


class Alone(RewardTerm):
    """Worth the share of events that have no target."""

    def scores(self, outcomes):
        return [sum(e.target is None for e in o.plan.events) / len(o.plan.events) if o.plan else 0.0 for o in outcomes]


def stage(llm, **changes):
    torch.manual_seed(0)
    given = {
        "name": "planner_grpo", "selector": NoSelector(),
        "planner": lambda selector: Planner(llm=llm, selector=selector, imagination=None, form="json", retries=0,
                                            max_tick=15, ticks=None, fallback="caption"),
        "adapter": lambda model, base: Adapter(model=model, base=base, rank=4, alpha=8.0, targets="all-linear"),
        "terms": {"alone": Alone(weight=1.0)}, "group_size": 8, "temperature": 1.0, "clip": 0.2, "kl_weight": 0.02,
        "normalise": True, "reuse": 0, "compare": False, "optimizer": torch.optim.Adam, "scheduler": None,
        "grad_clip": None, "accumulate": 1, "max_skipped": 3, "seed": 0,
    }  # fmt: skip
    return GrpoStage(**{**given, **changes})


def batch(*captions):
    captions = captions or ("A dog runs.",)
    plans = [PLAN] * len(captions)
    return {"key": [str(i) for i in range(len(captions))], "caption": list(captions), "extras": {"plan": plans}}


@pytest.fixture
def untrained(monkeypatch):
    monkeypatch.setattr(GrpoStage, "trainer", None)


def learn(part, steps, lr=0.01):
    optimizer, found = torch.optim.Adam(part.parameters(), lr=lr), []
    for step in range(steps):
        torch.manual_seed(step)
        losses = part.losses(batch())
        optimizer.zero_grad()
        losses["loss"].backward()
        optimizer.step()
        found.append({name: value.item() for name, value in losses.items()})
    return found


@pytest.mark.parametrize("reuse", [0, pytest.param(1, marks=pytest.mark.slow)])
def test_a_toy_is_learned(folder, untrained, reuse):
    """Two ways to go on at one place of an answer, target or none: one of them is worth something."""
    part = stage(build(folder, max_tokens=48), reuse=reuse)
    found = learn(part, 16)
    assert found[0]["kl"] == pytest.approx(0, abs=1e-6)  # it begins as the frozen model
    assert found[0]["clipped"] == 0
    assert all(one["kl"] >= -1e-6 for one in found)
    assert found[-1]["kl"] > 1e-3
    assert sum(one["reward"] for one in found[-5:]) / 5 > sum(one["reward"] for one in found[:3]) / 3 + 0.25
    assert part.validation_losses(batch())["reward"].mean() == 1


def test_what_is_logged_and_trained(folder, untrained):
    part = stage(build(folder), terms={"reliability": PlanReliability(weight=1.0), "alone": Alone(weight=3.0)})
    losses = part.losses(batch("A dog runs.", "A cat sleeps."))
    assert {"loss", "reward", "spread", "valid", "draws", "kl", "clipped", "reliability", "alone"} == losses.keys()
    assert losses["reward"].item() == pytest.approx((losses["reliability"] + 3 * losses["alone"]).item() / 4)
    assert losses["valid"] == 1
    assert losses["loss"].requires_grad
    assert {name.split(".")[0] for name in part.state_dict()} == {"adapter", "epoch"}
    assert {id(p) for group in part.parameter_groups() for p in group["params"]} == {
        id(p) for p in part.llm.model.parameters() if p.requires_grad
    }
    assert part.epoch.count == 2


def test_the_gradient_is_that_of_the_loss_as_one_graph(folder, untrained):
    part = stage(build(folder), kl_weight=0.5, group_size=3)
    learn(part, 1)  # so that the divergence has a gradient
    part.zero_grad()
    torch.manual_seed(7)
    part.losses(batch("A dog runs.", "A cat sleeps."))["loss"].backward()
    found = [p.grad.clone() for p in part.parameters()]
    torch.manual_seed(7)
    groups, _ = part._drawn(batch("A dog runs.", "A cat sleeps."))
    part.zero_grad()
    (sum(part._group_loss(group)[0] for group in groups) / 2).backward()
    assert max(g.abs().max() for g in found) > 0
    for gradient, parameter in zip(found, part.parameters(), strict=True):
        torch.testing.assert_close(gradient, parameter.grad, atol=1e-7, rtol=1e-4)


def test_a_model_in_half_precision(folder, untrained):
    part = stage(build(folder, dtype="bfloat16"), group_size=3)
    assert part.llm.model.dtype == torch.bfloat16
    before = [p.clone() for p in part.adapter.parameters()]
    found = learn(part, 2, lr=1e-4)
    assert all(math.isfinite(value) for one in found for value in one.values())
    assert {p.dtype for p in part.adapter.parameters()} == {torch.float32}
    assert not all(torch.equal(a, b) for a, b in zip(before, part.adapter.parameters(), strict=True))


def test_without_a_weight_there_is_no_frozen_model(folder, untrained):
    part = stage(build(folder), kl_weight=0.0)
    part.adapter.off = None  # would be called
    assert "kl" not in part.losses(batch())


def test_captions_that_say_nothing_and_prompts_that_are_too_long(folder, untrained):
    part = stage(build(folder, max_tokens=64, batch_tokens=2048))
    losses = part.losses(batch(" ", "A dog runs."))
    assert losses["valid"] == 0.5
    assert losses["loss"].isfinite()
    assert part.losses(batch(" "))["loss"] == 0
    part.llm.context = 70  # nothing fits
    losses = part.losses(batch())
    assert (losses["reward"], losses["loss"]) == (0, 0)


def test_reused_plans_are_judged_by_the_probability_they_were_drawn_with(folder, untrained):
    part = stage(build(folder), reuse=2, accumulate=2, group_size=2)
    seen = []
    inner = part._group_loss
    part._group_loss = lambda group: seen.append(group) or inner(group)
    for number in range(6):
        torch.manual_seed(number)
        part.losses(batch())
    fresh = [seen[0], seen[1], seen[2], seen[4], seen[6], seen[9]]
    expected = [[0], [1], [2, 0], [3, 1], [4, 2, 0], [5, 3, 1]]
    assert [id(group) for group in seen] == [id(fresh[i]) for row in expected for i in row]
    assert len(part._kept) == 4
    # A group is the same after a checkpoint.
    state = {"stage": {}, "state_dict": {"adapter.base": part.adapter.base}}
    part.on_save_checkpoint(state)
    kept = part._kept
    part.on_load_checkpoint(state)
    for (a,), (b,) in zip(kept, part._kept, strict=True):
        assert isinstance(b, Group)
        assert torch.equal(a.advantage, b.advantage)
        assert [one.state().keys() for one in a.drawn] == [one.state().keys() for one in b.drawn]
        assert all(isinstance(one, Drawn) and torch.equal(one.tokens, two.tokens)
                   for one, two in zip(a.drawn, b.drawn, strict=True))  # fmt: skip
    with pytest.raises(RunError, match="another language model"):
        part.on_load_checkpoint(state | {"state_dict": {"adapter.base": torch.zeros(3, dtype=torch.uint8)}})


def test_what_cannot_be_tuned(folder, tmp_path):
    llm = build(folder)
    with pytest.raises(ConfigError, match="only the weights of a local model"):
        stage(cached(llm, str(tmp_path)))
    for changes in ({"retries": 1}, {"fallback": "rules"}):
        given = {"llm": llm, "imagination": None, "form": "json", "retries": 0, "max_tick": 15, "ticks": None,
                 "fallback": "caption"}  # fmt: skip
        with pytest.raises(ConfigError, match="first answer"):
            stage(llm, planner=lambda selector, given=given | changes: Planner(selector=selector, **given))
    with pytest.raises(ConfigError, match="group_size"):
        stage(llm, group_size=1)
    whole = Alone(weight=1.0)
    whole.is_of_batch = True
    with pytest.raises(ConfigError, match="beside another"):
        stage(llm, terms={"alone": whole})
    stage(llm)
    with pytest.raises(ConfigError, match="adapter already"):
        stage(llm)


# ---- runs -------------------------------------------------------------------------------------------------------------


def composed(*words, root="train"):
    with hydra.initialize_config_dir(str(CONF), version_base="1.3"):
        return hydra.compose(root, overrides=list(words))


def test_the_words_that_choose_it():
    assert composed("stage=planner").stage._target_ == "dysen.stages.planner.PlannerStage"
    tuned = ("stage=planner", "planner.tune=grpo")
    assert composed(*tuned).stage._target_ == "dysen.stages.grpo.GrpoStage"
    with pytest.raises(ConfigError, match="llm.model"):
        config.resolve(composed(*tuned))
    for choice in ("nearest", "random", "none", "policy"):
        cfg = composed(
            *tuned, "llm.model=x", f"stage/selector={choice}", *["stage.selector.run=x"] * (choice == "policy")
        )
        resolved = config.resolve(cfg)
        config.check_resolved(resolved | {"checks": {}})
        assert resolved["stage"]["selector"]["_target_"].startswith("dysen.")
    with pytest.raises(MissingConfigException):
        composed("stage=planner", "planner.tune=no")


def train(folder, output, *words):
    settings = [
        "stage=planner", "planner.tune=grpo", "llm=transformers", f"llm.model={folder}", "llm.max_tokens=48", "data=shapes",
        "trainer=cpu", "trainer.log_every_n_steps=1", f"paths.output_root={output}",
        "texts.source.num_val=2", "texts.source.num_pool=6", "texts.batch_size=1", "stage.selector.shots=1",
        "stage.group_size=3", "stage.adapter.rank=2", "stage.reuse=1", "stage.optimizer.lr=0.01",
        "callbacks.checkpoint.every=1", "callbacks.checkpoint.keep=9", "callbacks.validation.every=2",
        "callbacks.samples.every=0", "callbacks.progress=null", "trainer.max_steps=4", *words,
    ]  # fmt: skip
    training.train(composed(*settings))


def rows(run, columns):
    with (run.folder / "metrics.csv").open() as file:
        return {row["step"]: {k: v for k, v in row.items() if k.startswith(columns)} for row in csv.DictReader(file)}


@pytest.mark.parametrize("accumulate", [1, pytest.param(2, marks=pytest.mark.slow)])
def test_a_run_continues_bit_for_bit_and_is_used(folder, tmp_path, accumulate):
    words = [f"stage.accumulate={accumulate}", f"texts.source.num_train={3 * accumulate}"]
    train(folder, tmp_path, "run.id=whole", *words)
    whole = Run(tmp_path / "whole")
    third = whole.folder / "checkpoints" / "step-00000003"
    train(folder, tmp_path, "run.id=again", f"resume={third}", *words)
    again = Run(tmp_path / "again")
    kinds, columns = ("weights", "ema"), ("train", "val")
    manifests = [checkpoint.read_manifest(run.last_checkpoint())["files"] for run in (whole, again)]
    weights = [name for name in manifests[0] if name.endswith(".safetensors") and name.startswith(kinds)]
    assert f"{kinds[-1]}/adapter.safetensors" in weights
    assert {Path(name).stem for name in weights} == {"adapter", "epoch"}  # of the model nothing is kept
    assert {name: manifests[0][name] for name in weights} == {name: manifests[1][name] for name in weights}
    ours, theirs = checkpoint.load(whole.last_checkpoint()), checkpoint.load(again.last_checkpoint())
    assert torch.equal(ours["kept"][0][-1][0]["drawn"][0]["tokens"], theirs["kept"][0][-1][0]["drawn"][0]["tokens"])
    assert torch.equal(*(one["optimizer_states"][0]["state"][0]["exp_avg"] for one in (ours, theirs)))
    whole_rows, again_rows = rows(whole, columns), rows(again, columns)
    assert again_rows["4"] == whole_rows["4"]
    assert whole_rows["4"] != whole_rows["3"]
    metrics = whole.info["metrics"]
    assert {"val/exact", "val/frozen_exact", "epoch/reward", "train/kl", "train/clipped"} <= metrics.keys()
    # What came of it, by its name and as a folder.
    of_run = build(folder, adapter="whole", output_root=str(tmp_path))
    of_folder = build(folder, adapter=str(whole.folder / "adapter"))
    assert of_run.fingerprint() == of_folder.fingerprint() != build(folder).fingerprint()
    words = [
        "llm=transformers",
        f"llm.model={folder}",
        "llm.adapter=whole",
        f"paths.output_root={tmp_path}",
        "planner=plain",
    ]
    planner = instantiate(composed(*words, root="plan").planner, _convert_="all")
    assert planner.fingerprint()["llm"]["adapter"] == of_run.fingerprint()["adapter"]
    assert json.loads((whole.folder / "adapter" / "adapter_config.json").read_text())["r"] == 2
    assert not list(Path(whole.folder).glob(".adapter*"))
