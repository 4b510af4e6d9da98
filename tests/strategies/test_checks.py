"""What a strategy cannot do is said at once."""

import pytest

from vdm.errors import ConfigError
from vdm.strategies import checks

ADAMW, MUON = {"_target_": "torch.optim.AdamW"}, {"_target_": "vdm.stages.muon.Muon"}
ZERO, FSDP = {"_target_": checks.ZERO, "stage": 2}, {"_target_": "vdm.strategies.fsdp.FSDP"}


@pytest.mark.parametrize("strategy", ["auto", "ddp", ZERO, FSDP])
def test_what_fits(strategy):
    checks.strategy_fits(strategy=strategy, precision="bf16-mixed", optimizer=ADAMW)


@pytest.mark.parametrize("strategy", ["ddp", FSDP])
def test_whole_matrices(strategy):
    checks.strategy_fits(strategy=strategy, precision="32-true", optimizer=MUON)
    with pytest.raises(ConfigError, match="trainer=fsdp or ddp"):
        checks.strategy_fits(strategy=ZERO, precision="32-true", optimizer=MUON)


def test_precision():
    checks.strategy_fits(strategy="auto", precision="16-mixed", optimizer=ADAMW)
    with pytest.raises(ConfigError, match="bf16-mixed"):
        checks.strategy_fits(strategy=FSDP, precision="bf16-true", optimizer=ADAMW)


def test_gathered_in_half():
    half = FSDP | {"gather": "bfloat16"}
    checks.strategy_fits(strategy=half, precision="bf16-mixed", optimizer=ADAMW)
    with pytest.raises(ConfigError, match="gather=float32"):
        checks.strategy_fits(strategy=half, precision="32-true", optimizer=ADAMW)


@pytest.mark.parametrize("strategy", ["deepspeed_stage_3_offload", "fsdp"])
def test_strategies_with_checkpoints_of_their_own(strategy):
    with pytest.raises(ConfigError, match="trainer=fsdp"):
        checks.strategy_fits(strategy=strategy, precision="32-true", optimizer=ADAMW)


def test_without_deepspeed(monkeypatch):
    monkeypatch.setattr(checks.importlib.util, "find_spec", lambda name: None)
    checks.packages_are_there(strategy=FSDP)
    with pytest.raises(ConfigError, match=r"\[deepspeed\]"):
        checks.packages_are_there(strategy=ZERO)


def test_one_process(monkeypatch):
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    asked = {"stage": "planner", "accelerator": "cpu", "num_nodes": 1}
    checks.one_process(**asked, devices=1)
    with pytest.raises(ConfigError, match="stage=planner is trained by one process"):
        checks.one_process(**asked, devices=2)
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(ConfigError, match="one process"):
        checks.one_process(**asked, devices=1)
