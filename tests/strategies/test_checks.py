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


def test_whole_weights():
    for strategy in ("auto", "ddp", "ddp_find_unused_parameters_true"):
        checks.keeps_weights_whole(strategy=strategy, stage="planner.tune=grpo")
    for strategy in (FSDP, ZERO):
        with pytest.raises(ConfigError, match=r"(?s)planner\.tune=grpo takes gradients.*trainer=ddp"):
            checks.keeps_weights_whole(strategy=strategy, stage="planner.tune=grpo")
