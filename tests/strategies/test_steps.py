"""What else a step does, under strategies that cut: steps that are not finite, going back, memory of the host, half precision."""

import pytest
from small_stages import assert_alike, content

from vdm.stages.diffusion import DiffusionStage

SHARDED = ("fsdp", "deepspeed_zero1", "deepspeed_zero2", "deepspeed_zero3")


def not_finite(*batches):
    """In these batches, on the last rank alone."""

    def before(rank):
        losses = DiffusionStage.losses

        def broken(self, batch):
            found = losses(self, batch)
            last = self.global_rank == self.trainer.world_size - 1
            return found | {"loss": found["loss"] * float("nan")} if self.batches_seen in batches and last else found

        DiffusionStage.losses = broken

    return before


@pytest.mark.slow
def test_a_step_that_is_not_finite_changes_nothing(trained):
    reference = trained("vdm", before=not_finite(2, 3))
    run = trained("vdm", "deepspeed_zero3", 2, before=not_finite(2, 3))
    assert content(run)["stage"]["skipped"] == content(reference)["stage"]["skipped"] == 2
    assert_alike(run, reference)


@pytest.mark.slow
@pytest.mark.parametrize("trainer", [*SHARDED[:3], "deepspeed_zero2_offload", "deepspeed_zero3_offload"])
def test_skipped_under_every_strategy(trained, trainer):
    assert_alike(trained("vdm", trainer, 2, before=not_finite(2, 3)), trained("vdm", before=not_finite(2, 3)))


@pytest.mark.slow
@pytest.mark.parametrize("trainer", SHARDED)
def test_going_back(trained, trainer):
    """To the checkpoint of step 5, in the middle of training."""
    more = ("stage.max_skipped=2",)
    reference = trained("vdm", "cpu", 1, *more, before=not_finite(7, 8))
    assert content(reference)["stage"]["skipped"] == 2
    assert_alike(trained("vdm", trainer, 2, *more, before=not_finite(7, 8)), reference)


@pytest.mark.slow
@pytest.mark.parametrize("stage", ["autoencoder", "vdm"])
@pytest.mark.parametrize("trainer", ["deepspeed_zero2_offload", "deepspeed_zero3_offload"])
def test_memory_of_the_host(trained, stage, trainer):
    assert_alike(trained(stage, trainer, 2), trained(stage))


HALF = "trainer.precision=bf16-mixed"


def distance(first, second):
    """Of all weights together."""
    ours, theirs = (content(run)["state_dict"] for run in (first, second))
    return sum((ours[name] - theirs[name]).double().square().sum().item() for name in theirs) ** 0.5


@pytest.mark.slow
@pytest.mark.parametrize("trainer", SHARDED[:3])
def test_half_precision_is_autocast_everywhere(trained, trainer):
    """The same numbers as under DDP, whose processes round the same halves of a batch."""
    run, reference = trained("vdm", trainer, 2, HALF), trained("vdm", "ddp", 2, HALF)
    assert_alike(run, reference)
    assert (
        content(run)["state_dict"]["backbone.conv_in.weight"].dtype
        is content(reference)["ema"]["backbone.conv_in.weight"].dtype
    )


@pytest.mark.slow
def test_half_precision_differs_by_rounding_alone(trained):
    """A sum of two rounded gradients is not that of all clips, and ZeRO-3 rounds a product before its bias is added: what
    comes of it is no farther apart than half precision is from full."""
    one, two, full = trained("vdm", "cpu", 1, HALF), trained("vdm", "ddp", 2, HALF), trained("vdm")
    zero3 = trained("vdm", "deepspeed_zero3", 2, HALF)
    rounding = distance(one, full)
    assert 0 < distance(two, one) <= 1.2 * rounding
    assert 0 < distance(zero3, two) <= 1.2 * rounding


@pytest.mark.slow
def test_units_are_given_up_and_gathered_again(trained):
    """By its own settings DeepSpeed keeps what is so small."""
    few = ("trainer.strategy.max_live_parameters=1000", "trainer.strategy.prefetch_bucket_size=500")
    assert_alike(trained("vdm", "deepspeed_zero3", 2, *few), trained("vdm"))


@pytest.mark.slow
@pytest.mark.parametrize("trainer", ["fsdp", "deepspeed_zero3"])
def test_activations_that_are_computed_again(trained, trainer):
    assert_alike(trained("vdm", trainer, 2, "backbone.checkpoint_levels=[0,1]"), trained("vdm"))


@pytest.mark.slow
@pytest.mark.parametrize("trainer", ["fsdp", "deepspeed_zero2"])
def test_checkpoints_written_beside_training(trained, trainer):
    assert_alike(trained("vdm", trainer, 2, "callbacks.checkpoint.background=true"), trained("vdm"))


@pytest.mark.slow
def test_weights_gathered_in_half(trained):
    """Only what autocast would not round, such as norms, is rounded as well."""
    run, reference = trained("vdm", "fsdp", 2, HALF, "trainer.strategy.gather=bfloat16"), trained("vdm", "ddp", 2, HALF)
    rounding = distance(reference, trained("vdm"))
    assert 0 < distance(run, reference) <= 0.25 * rounding


@pytest.mark.slow
def test_muon_under_fsdp(trained):
    matrices = (
        "stage.optimizer._target_=vdm.stages.muon.Muon", "+stage.optimizer.matrix_lr=0.01", "+stage.optimizer.momentum=0.9",
        "+stage.optimizer.min_width=8", "+stage.optimizer.max_width=null", "+stage.optimizer.fused=false",
        "~stage.optimizer.eps",
    )  # fmt: skip
    assert_alike(trained("vdm", "fsdp", 2, *matrices), trained("vdm", "cpu", 1, *matrices), tolerance=1e-4)


@pytest.mark.slow
def test_one_process_under_a_strategy_for_many(trained):
    for trainer in ("fsdp", "deepspeed_zero3"):
        assert_alike(trained("vdm", trainer, 1), trained("vdm"))
