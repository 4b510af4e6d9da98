"""Two processes end with the weights of one, whatever is cut into pieces."""

import pytest
from small_stages import STAGES, assert_alike

TRAINERS = ("ddp", "fsdp", "deepspeed_zero1", "deepspeed_zero2", "deepspeed_zero3")
FEW = [("autoencoder", "deepspeed_zero2"), ("vdm", "deepspeed_zero3"), ("autoencoder", "fsdp")]
REST = [(stage, trainer) for stage in STAGES for trainer in TRAINERS if (stage, trainer) not in FEW]


@pytest.mark.parametrize(("stage", "trainer"), FEW)
def test_two_processes_end_as_one(trained, stage, trainer):
    assert_alike(trained(stage, trainer, 2), trained(stage))


@pytest.mark.slow
@pytest.mark.parametrize(("stage", "trainer"), REST)
def test_every_stage_under_every_strategy(trained, stage, trainer):
    assert_alike(trained(stage, trainer, 2), trained(stage))
