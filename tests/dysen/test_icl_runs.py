"""From runs back to selectors and models; and the two commands, one after the other."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from omegaconf import OmegaConf

from dysen.action_plan import Event, Plan
from dysen.demonstrations import Demonstration
from dysen.icl.features import HashedWords
from dysen.icl.policy import ExamplePolicy
from dysen.icl.selectors import PolicySelector, policy_of_run, pool_of_run
from dysen.tiny.decoder import Decoder
from dysen.tiny.model import TinyModel, tiny_of_run
from vdm import checkpoint, lineage
from vdm.errors import ConfigError, RunError
from vdm.runs import Run

ROOT = Path(__file__).resolve().parents[2]
PLAN = Plan((Event("ball", "rolls", None, 0, 1),))
POOL = tuple(
    Demonstration(str(i), f"A {word} ball rolls.", PLAN) for i, word in enumerate(("red", "blue", "big", "old"))
)
FEATURES = {"_target_": "dysen.icl.features.HashedWords", "width": 64, "longest": 1, "is_weighted": True}
DECODER = {"_target_": "dysen.tiny.decoder.Decoder", "width": 32, "depth": 1, "heads": 2, "length": 128}


def store(root, name, stage, network, tensors, settings):
    """A complete run."""
    folder = root / name
    weights = {f"{network}.{key}": value for key, value in tensors.items()}
    checkpoint.save(folder / "checkpoints" / "step-00000001", {"state_dict": weights}, step=1)
    OmegaConf.save(OmegaConf.create(settings), folder / "config.yaml")
    Run(folder).update(stage=stage, state="complete", data="shapes", finished=time.time())


def store_policy(root, name="chooser", features=FEATURES):
    torch.manual_seed(0)
    policy = ExamplePolicy(
        pool=POOL, features=HashedWords(width=64, longest=1, is_weighted=True), width=8, temperature=0.5, covered=0.0
    )
    with torch.no_grad():
        policy.project.weight.normal_()
    settings = {"stage": {"features": features, "width": 8, "temperature": 0.5, "shots": 2}}
    store(root, name, "planner", "policy", policy.state_dict(), settings)
    return policy


def test_a_selector_comes_back_from_its_run(tmp_path):
    policy = store_policy(tmp_path)
    found = policy_of_run(run="auto", output_root=str(tmp_path), shots=None)
    expected = PolicySelector(policy=policy, shots=2)
    captions = ["A red ball.", "An old big ball rolls.", POOL[1].caption]
    assert found.pool == POOL
    assert found.choose(captions) == expected.choose(captions)
    assert found.fingerprint() == expected.fingerprint()
    assert policy_of_run(run="choos", output_root=str(tmp_path), shots=3).shots == 3
    assert list(pool_of_run(run="auto", output_root=str(tmp_path))) == list(found.pool)
    with pytest.raises(RunError, match="planner"):
        policy_of_run(run=None, output_root=str(tmp_path / "empty"), shots=None)


def test_a_run_builds_nothing_but_features(tmp_path):
    store_policy(tmp_path, features={"_target_": "dysen.demonstrations.write_pool", "path": str(tmp_path / "x")})
    with pytest.raises(ConfigError, match="may not be named"):
        policy_of_run(run=None, output_root=str(tmp_path), shots=None)
    assert not (tmp_path / "x").exists()


def test_a_model_comes_back_from_its_run(tmp_path):
    torch.manual_seed(0)
    decoder = Decoder(**{key: value for key, value in DECODER.items() if key != "_target_"})
    store(tmp_path, "speaker", "language", "language", decoder.state_dict(), {"language": DECODER})
    found = tiny_of_run(run=None, output_root=str(tmp_path), max_tokens=30, batch_tokens=999)
    assert found.fingerprint() == TinyModel(decoder=decoder, max_tokens=30, batch_tokens=999).fingerprint()
    with pytest.raises(RunError, match="language"):
        tiny_of_run(run=None, output_root=str(tmp_path / "empty"), max_tokens=30, batch_tokens=999)


def test_auto_becomes_the_name_of_the_newest_run(tmp_path, caplog):
    def adopted(**more):
        cfg = OmegaConf.create(
            {"paths": {"output_root": str(tmp_path)}, "llm": {"run": "auto"}, "selector": {"run": "auto"}} | more
        )
        lineage.adopt(cfg)
        return cfg

    with pytest.raises(RunError, match="stage=language"):
        adopted()
    store(tmp_path, "first", "language", "language", {"x": torch.zeros(1)}, {})
    store_policy(tmp_path)
    with caplog.at_level("INFO"):
        cfg = adopted()
    assert (cfg.llm.run, cfg.selector.run) == ("first", "chooser")
    assert "first" in caplog.text
    # A planner run with a chosen name keeps the model that it began with.
    store(tmp_path, "mine", "planner", "policy", {"x": torch.zeros(1)}, {"llm": {"run": "first"}})
    store(tmp_path, "second", "language", "language", {"x": torch.zeros(1)}, {})
    more = {"run": {"id": "mine"}, "stage": {"name": "planner"}, "resume": "auto", "selector": {}}
    assert adopted(**more).llm.run == "first"
    assert adopted(**{**more, "run": {"id": "other"}}).llm.run == "second"
    assert adopted(llm={"run": "other"}, selector={}).llm.run == "other"


# ---- commands ---------------------------------------------------------------------------------------------------------

SMALL = ["data=shapes", "trainer=cpu", "trainer.log_every_n_steps=1", "callbacks.samples.every=0"]
LANGUAGE = ["stage=language", "language.width=32", "language.depth=1", "texts.source.num_val=4", "texts.batch_size=2"]
PLANNER = [
    "stage=planner", "texts.batch_size=4", "texts.source.num_train=8", "texts.source.num_val=4", "llm.max_tokens=16",
    "callbacks.checkpoint.every=1", "callbacks.validation.every=2",
]  # fmt: skip


def train(output, *words, check=True):
    command = [sys.executable, "train.py", *SMALL, f"paths.output_root={output}", *words]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=600, check=check, env=environment)


@pytest.mark.slow
@pytest.mark.timeout(900)  # five commands, of which each imports for ten seconds, or many more beside others
def test_the_chain_from_commands(tmp_path):
    assert "stage=language" in train(tmp_path, *PLANNER, "trainer.max_steps=1", check=False).stderr
    train(tmp_path, *LANGUAGE, "trainer.max_steps=3", "run.id=speaker")
    done = train(tmp_path, *PLANNER, "trainer.max_steps=4", "run.id=whole")
    assert "newest complete run of stage=language is speaker" in done.stderr
    info = json.loads((tmp_path / "whole" / "run.json").read_text())
    assert info["lineage"] == [{"network": "language", "run": "speaker"}]
    assert {"val/exact", "val/nearest_exact", "val/random_exact", "epoch/reward"} <= info["metrics"].keys()
    # Stopped and continued, it is the same run.
    train(tmp_path, *PLANNER, "trainer.max_steps=2", "run.id=halves")
    train(tmp_path, *PLANNER, "trainer.max_steps=4", "run.id=halves")
    for network in ("policy", "baseline", "epoch"):
        parts = [
            checkpoint.network_weights(Run(tmp_path / name).last_checkpoint(), network) for name in ("whole", "halves")
        ]
        assert parts[0].keys() == parts[1].keys()
        assert all(torch.equal(parts[0][key], parts[1][key]) for key in parts[0]), network
    assert policy_of_run(run="whole", output_root=str(tmp_path), shots=None).choose(["It grows."])
