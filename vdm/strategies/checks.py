"""What a strategy cannot do, said before anything is built. Named by `checks` in conf/. Light: nothing is imported."""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping
from typing import Any

from vdm.errors import ConfigError

OURS = "vdm.strategies."
ZERO = "vdm.strategies.zero.Zero"
PRECISIONS = ("32-true", "bf16-mixed")
WHOLE_MATRICES = ("vdm.stages.muon.Muon", "torch.optim.Muon")


def strategy_fits(*, strategy: Any, precision: str | int, optimizer: Mapping[str, Any]) -> None:
    """With the precision, and with the optimizer of the stage."""
    target = str(strategy.get("_target_")) if isinstance(strategy, Mapping) else str(strategy)
    if target.startswith("deepspeed") or target == "fsdp":
        remedy = (
            "set trainer=fsdp, or trainer=deepspeed_zero1, deepspeed_zero2 or deepspeed_zero3, without trainer.strategy"
        )
        raise ConfigError("this strategy keeps checkpoints of its own form", key="trainer.strategy", got=target,
                          remedy=remedy)  # fmt: skip
    if isinstance(strategy, str) and not strategy.startswith(("auto", "ddp")):
        raise ConfigError("there is no such strategy", key="trainer.strategy", got=strategy,
                          allowed="auto, ddp, ddp_find_unused_parameters_true",
                          remedy="choose trainer=ddp, fsdp, deepspeed_zero1, deepspeed_zero2 or deepspeed_zero3")  # fmt: skip
    if target.startswith(OURS) and str(precision) not in PRECISIONS:
        raise ConfigError("this strategy does not know the precision", key="trainer.precision", got=precision,
                          allowed=PRECISIONS)  # fmt: skip
    if target.startswith(OURS) and strategy.get("gather") == "bfloat16" and precision != "bf16-mixed":
        remedy = "set trainer.precision=bf16-mixed, or trainer.strategy.gather=float32"
        raise ConfigError("weights in bfloat16 compute with numbers of another kind", key="trainer.strategy.gather",
                          got=f"bfloat16, precision {precision}", remedy=remedy)  # fmt: skip
    if target == ZERO and optimizer.get("_target_") in WHOLE_MATRICES:
        remedy = "set stage.optimizer._target_=torch.optim.AdamW without what only Muon knows, or trainer=fsdp or ddp"
        raise ConfigError("ZeRO cuts matrices into pieces, and Muon needs whole ones", key="stage.optimizer._target_",
                          got=optimizer["_target_"], remedy=remedy)  # fmt: skip


def packages_are_there(*, strategy: Any) -> None:
    is_zero = isinstance(strategy, Mapping) and strategy.get("_target_") == ZERO
    if is_zero and importlib.util.find_spec("deepspeed") is None:
        remedy = "pip install -c constraints.txt -e .[deepspeed], or use trainer=fsdp"
        raise ConfigError("ZeRO needs the package deepspeed", key="trainer.strategy", got=ZERO, remedy=remedy)


def keeps_weights_whole(*, strategy: Any, stage: str) -> None:
    """Of stages that take gradients of parts of a batch by themselves."""
    target = str(strategy.get("_target_")) if isinstance(strategy, Mapping) else str(strategy)
    if target.startswith(OURS):
        raise ConfigError(f"{stage} takes gradients of whole weights", key="trainer.strategy", got=target,
                          allowed="auto, ddp", remedy="set trainer=ddp: what it learns is small")  # fmt: skip
