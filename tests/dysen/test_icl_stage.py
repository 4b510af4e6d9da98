"""stage=planner with a language model that plans well exactly when it was shown the verbs: the policy finds that out."""

import types

import pytest
import torch

from data.shapes.lessons import NewVerbs
from data.texts import StoredCaptions, TextData, TextLoader
from dysen.action_plan import Event, Plan
from dysen.demonstrations import write_pool
from dysen.icl.features import HashedWords
from dysen.icl.reinforce import MovingBaseline, RunningMean
from dysen.icl.rewards import PlanReliability, TripletRecall
from dysen.llm.base import Answer, LanguageModel
from dysen.planner import Planner
from dysen.stages.planner import PlannerStage
from dysen.stages.planning import pool_of
from dysen.text_form import plan_to_text
from dysen.tiny.model import read_prompt
from vdm.errors import ConfigError, DataError


def source(**changes):
    given = {"seed": 0, "num_new": 4, "num_pool": 24, "num_train": 60, "num_val": 20, "ticks": 7, "max_things": 2}
    return NewVerbs(**{**given, "min_events": 1, "max_events": 2, "pool_events": 1, **changes})


class Shown(LanguageModel):
    """Knows every plan, but not what a verb means that none of the demonstrations has."""

    def __init__(self, texts):
        items = [texts.item(split, i) for split, size in texts.sizes.items() for i in range(size)]
        self.items = {item["caption"]: item for item in items}
        self.asked = 0

    def answer(self, questions):
        self.asked += len(questions)
        return [Answer(self._plan(question.prompt)) for question in questions]

    def _plan(self, prompt):
        shown, caption = read_prompt(prompt)
        known = {event.predicate for _, plan in shown for event in plan.events}
        item = self.items[caption]
        rows = zip(Plan.from_json(item["plan"]).events, item["new"], strict=True)
        events = [e if verb is None or e.predicate in known else Event(e.agent, "wait", None, e.start, e.end)
                  for e, verb in rows]  # fmt: skip
        return plan_to_text(Plan(tuple(dict.fromkeys(events))))

    def fingerprint(self):
        return {"model": "shown"}


def stage(texts, llm, **changes):
    torch.manual_seed(0)
    given = {
        "name": "planner", "pool": pool_of(source=texts, path=None), "width": 64, "temperature": 0.1, "covered": 0.0, "shots": 2,
        "planner": lambda selector: Planner(llm=llm, selector=selector, imagination=None, form="tuples", retries=0,
                                            max_tick=15, ticks=None, fallback="caption"),
        "features": HashedWords(width=512, longest=1, is_weighted=True),
        "terms": {"reliability": PlanReliability(weight=1.0), "recall": TripletRecall(weight=1.0), "video": None},
        "baseline": MovingBaseline(decay=0.9), "normalise": True, "entropy_weight": 0.0, "compare": True,
        "optimizer": torch.optim.Adam, "scheduler": None, "grad_clip": None, "accumulate": 1, "max_skipped": 3, "seed": 0,
    }  # fmt: skip
    return PlannerStage(**{**given, **changes})


def loader(texts):
    return TextLoader(source=texts, batch_size=20, seed=0, fingerprint="f", rank=0, world_size=1)


def measured(part, texts):
    part.trainer_batches = TextData(source=texts, batch_size=20, seed=0).val_dataloader()
    values = [part.validation_losses(batch)["exact"] for batch in part.trainer_batches]
    return torch.cat(values).mean().item()


def trained(part, texts, steps, monkeypatch):
    monkeypatch.setattr(PlannerStage, "trainer", types.SimpleNamespace(world_size=1, global_rank=0, datamodule=None))
    optimizer, rewards = torch.optim.Adam(part.parameters(), lr=1e-2), []
    torch.manual_seed(0)
    for _, batch in zip(range(steps), loader(texts), strict=False):
        losses = part.losses(batch)
        optimizer.zero_grad()
        losses["loss"].backward()
        optimizer.step()
        rewards.append(losses["reward"].item())
    return rewards


def test_reward_rises_and_the_policy_plans_better_than_it_did(monkeypatch):
    texts = source()
    part = stage(texts, Shown(texts))
    before = measured(part, texts)
    rewards = trained(part, texts, 60, monkeypatch)
    assert sum(rewards[-15:]) / 15 > sum(rewards[:15]) / 15 + 0.1
    assert measured(part, texts) > before


def test_what_is_logged(monkeypatch):
    texts = source()
    part = stage(texts, Shown(texts))
    trained(part, texts, 2, monkeypatch)
    losses = part.losses(next(iter(loader(texts))))
    assert {"loss", "reward", "baseline", "entropy", "reliability", "recall"} <= losses.keys()
    assert all(value.isfinite() for value in losses.values())
    expected = (losses["reliability"] + losses["recall"]) / 2
    assert losses["reward"].item() == pytest.approx(expected.item(), abs=1e-6)
    assert losses["loss"].requires_grad
    assert not losses["reward"].requires_grad
    assert part.epoch.count == 60


def test_only_the_policy_is_trained_and_saved():
    texts = source()
    part = stage(texts, Shown(texts))
    assert [p.shape for group in part.parameter_groups() for p in group["params"]] == [(64, 512)]
    assert {name.split(".")[0] for name in part.state_dict()} == {"policy", "baseline", "epoch"}
    assert part.policy.pool == pool_of(source=texts, path=None)


def test_the_most_relevant_demonstration_is_the_last_in_the_prompt():
    texts = source()
    prompts = []

    class Listening(Shown):
        def answer(self, questions):
            prompts.extend(question.prompt for question in questions)
            return super().answer(questions)

    part = stage(texts, Listening(texts))
    batch = next(iter(loader(texts)))
    part.validation_losses(batch)
    best = part.policy.best(batch["caption"], 2)
    for prompt, row in zip(prompts, best.tolist(), strict=True):
        shown, _ = read_prompt(prompt)
        assert [caption for caption, _ in shown] == [part.policy.pool[i].caption for i in reversed(row)]


def test_a_failed_plan_is_worth_nothing():
    texts = source()

    class Silent(Shown):
        def _plan(self, prompt):
            return "I do not know."

    found = stage(texts, Silent(texts)).validation_losses(next(iter(loader(texts))))
    assert not found["reward"].any()
    assert found["loss"].eq(1).all()


def test_a_stage_without_a_reward_is_refused():
    texts = source()
    with pytest.raises(ConfigError, match="reward"):
        stage(texts, Shown(texts), terms={"reliability": PlanReliability(weight=0.0), "video": None})


# ---- texts ------------------------------------------------------------------------------------------------------------


def test_texts_come_in_an_order_that_a_position_decides():
    texts = source()
    whole = [batch["key"] for _, batch in zip(range(6), loader(texts), strict=False)]
    assert sorted(key for keys in whole[:3] for key in keys) == sorted(f"train-{i}" for i in range(60))
    assert whole[:3] != whole[3:]
    again = loader(texts)
    again.load_state_dict({**loader(texts).state_dict(), "consumed": 40})
    assert [batch["key"] for _, batch in zip(range(4), again, strict=False)] == whole[2:]
    with pytest.raises(DataError):
        again.load_state_dict({**again.state_dict(), "fingerprint": "g"})
    ranks = [TextLoader(source=texts, batch_size=10, seed=0, fingerprint="f", rank=r, world_size=2) for r in range(2)]
    assert [key for one in ranks for key in next(iter(one))["key"]] == whole[0]


def test_stored_captions(tmp_path):
    texts = source()
    path = str(tmp_path / "pool.jsonl")
    write_pool(path, pool_of(source=texts, path=None))
    stored = StoredCaptions(path=path, num_pool=10, num_train=8, num_val=6)
    assert pool_of(source=stored, path=None) == pool_of(source=texts, path=None)[:10]
    assert stored.item("val", 0)["caption"] == pool_of(source=texts, path=None)[18].caption
    for number in (7, 1):
        with pytest.raises(DataError):
            StoredCaptions(path=path if number == 7 else str(tmp_path / "x"), num_pool=10, num_train=8, num_val=number)


def test_the_mean_of_an_epoch():
    mean = RunningMean()
    mean.add(torch.tensor([1.0, 2.0]))
    mean.add(torch.tensor([6.0]))
    assert mean.value == 3
    mean.clear()
    assert mean.value == 0


def test_one_number_for_a_batch_wants_one_process(monkeypatch):
    texts = source()
    whole = PlanReliability(weight=1.0)
    whole.is_of_batch = True
    for world, terms, is_refused in ((1, {"frechet": whole}, False), (2, {"frechet": whole}, True),
                                     (2, {"reliability": PlanReliability(weight=1.0)}, False)):  # fmt: skip
        part = stage(texts, Shown(texts), terms=terms)
        monkeypatch.setattr(PlannerStage, "trainer", types.SimpleNamespace(world_size=world, global_rank=0))
        if is_refused:
            with pytest.raises(ConfigError, match="(?s)one score for a whole batch.*frechet"):
                part.on_fit_start()
        else:
            part.on_fit_start()
