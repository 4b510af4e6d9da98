"""stage=planner by two processes: each asks its own language model, and what is learned is what one process learns."""

import pytest
import ranks
import torch

from dysen.stages import planning
from dysen.stages.grpo import dealt
from tests.dysen.random_language_model import save
from vdm import checkpoint


@pytest.fixture(scope="module")
def language_model(tmp_path_factory):
    for package in ("transformers", "llguidance", "peft"):
        pytest.importorskip(package)
    return save(tmp_path_factory.mktemp("language_model"))


def worth_their_letters(rank):
    """Plans of random weights are never right, and equal rewards teach nothing."""

    def rewards(terms, outcomes):
        found = [0.0 if one.plan is None else len(str(one.plan)) % 7 / 6 for one in outcomes]
        return found, dict.fromkeys(terms, found)

    planning.rewards = rewards


def tuned(model, folder, processes, *words):
    settings = [
        "stage=planner", "planner.tune=grpo", "llm=transformers", f"llm.model={model}", "llm.max_tokens=40", "data=shapes",
        "trainer=ddp", "trainer.accelerator=cpu", f"trainer.devices={processes}", "trainer.precision=32-true",
        "trainer.log_every_n_steps=1", "texts.source.num_train=6", "texts.source.num_val=1", "texts.source.num_pool=6",
        f"texts.batch_size={2 // processes}", "stage.selector.shots=1", "stage.group_size=3", "stage.adapter.rank=2",
        "stage.reuse=1", "stage.optimizer.lr=0.002", "callbacks.checkpoint.every=2", "callbacks.checkpoint.keep=9",
        "callbacks.validation.every=2", "callbacks.samples.every=0", "callbacks.progress=null", "callbacks.watchdog=null",
        "trainer.max_steps=4", *words,
    ]  # fmt: skip
    return ranks.train(settings, folder, processes, worth_their_letters)


def adapter(run, step=4):
    return checkpoint.load(run.folder / "checkpoints" / f"step-{step:08d}")["state_dict"]


def assert_alike(run, reference):
    ours, theirs, before = adapter(run), adapter(reference), adapter(reference, 2)
    assert ours.keys() == theirs.keys()
    for name, tensor in theirs.items():
        torch.testing.assert_close(ours[name], tensor, rtol=0, atol=1e-5, msg=lambda m, n=name: f"{n}: {m}")
    assert max((theirs[name].float() - before[name].float()).abs().max().item() for name in theirs) > 1e-3


def test_a_language_model_is_tuned_by_two_as_by_one(language_model, tmp_path):
    one, two = (tuned(language_model, tmp_path / str(processes), processes) for processes in (1, 2))
    assert_alike(two, one)
    (kept,), of_ranks = (checkpoint.load(run.last_checkpoint())["kept"] for run in (one, two))
    assert [len(groups) for groups in kept] == [2]
    assert [[len(groups) for groups in one] for one in of_ranks] == [[1], [1]]
    for number, groups in enumerate(of_ranks):
        assert torch.equal(groups[0][0]["drawn"][0]["tokens"], kept[0][number]["drawn"][0]["tokens"])
    # From two to one, with the plans that both have kept.
    start = two.folder / "checkpoints" / "step-00000002"
    assert_alike(tuned(language_model, tmp_path / "again", 1, f"resume={start}"), one)


def test_what_was_kept_is_dealt_to_other_ranks():
    kept = [[["a", "b"], ["c"]], [["d"], []]]  # rank, batch, group
    assert dealt(kept, 2) == kept
    assert dealt(kept, 1) == [[["a", "b", "d"], ["c"]]]
    assert dealt(kept, 3) == [[["a"], []], [["b"], []], [["d"], ["c"]]]
    assert dealt([[]], 2) == [[], []]
