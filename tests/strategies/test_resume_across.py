"""A run goes on under another strategy and on another number of processes, and ends as if nothing had happened."""

import json
import shutil

import pytest
from small_stages import assert_alike, content

from vdm import checkpoint, restore
from vdm.runs import Run

SLOW = [
    ("vdm", [("ddp", 2), ("deepspeed_zero3", 2)]),
    ("vdm", [("deepspeed_zero3", 2), ("ddp", 2)]),
    ("vdm", [("fsdp", 2), ("deepspeed_zero2", 2)]),
    ("autoencoder", [("deepspeed_zero1", 2), ("fsdp", 2)]),
    ("autoencoder", [("cpu", 1), ("deepspeed_zero2", 2)]),
    ("lora", [("deepspeed_zero3", 2), ("cpu", 1)]),
    ("dysen", [("fsdp", 2), ("cpu", 1)]),
    ("vdm", [("deepspeed_zero2_offload", 2), ("deepspeed_zero3_offload", 2)]),
    ("vdm", [("deepspeed_zero3", 1), ("fsdp", 1)]),
]


def at_step_five(reference, output):
    """The run as it was when its first checkpoint had been written."""
    shutil.copytree(reference.folder, output / "it")
    shutil.rmtree(output / "it" / "checkpoints" / "step-00000010")
    info = json.loads((output / "it" / "run.json").read_text())
    (output / "it" / "run.json").write_text(json.dumps(info | {"state": "interrupted", "step": 5}))
    return Run(output / "it")


def test_one_two_one(trained, tmp_path):
    """From one process to two with pieces of everything, and back."""
    reference = trained("vdm")
    at_step_five(reference, tmp_path)
    run = trained("vdm", "deepspeed_zero3", 2, "trainer.max_steps=8", output=tmp_path)
    assert [path.name for path in run.checkpoints()][-1] == "step-00000008"
    assert_alike(trained("vdm", "cpu", 1, output=tmp_path), reference)


@pytest.mark.slow
@pytest.mark.parametrize(("stage", "way"), SLOW, ids=str)
def test_from_one_to_the_other(trained, tmp_path, stage, way):
    (first, second), reference = way, trained(stage)
    run = trained(stage, *first, "trainer.max_steps=5", output=tmp_path)
    assert_alike(run, reference, step=5)
    assert_alike(trained(stage, *second, output=tmp_path), reference)


def test_what_is_written_is_what_one_process_writes(trained):
    """The same files, each of the same tensors; and what reads a run reads this one."""
    run, reference = trained("vdm", "deepspeed_zero3", 2), trained("vdm")
    ours, theirs = (
        {p.relative_to(r.last_checkpoint()) for p in r.last_checkpoint().rglob("*")} for r in (run, reference)
    )
    assert ours == theirs
    assert content(run).keys() == content(reference).keys()
    for name in ("backbone", "conditions", "autoencoder"):
        shapes = [
            {key: t.shape for key, t in checkpoint.network_weights(r.last_checkpoint(), name).items()}
            for r in (run, reference)
        ]
        assert shapes[0] == shapes[1]
    settings = restore.settings_of(run)
    backbone = restore.load_network(run, settings, "autoencoder")
    assert sum(p.numel() for p in backbone.parameters()) > 0
    assert (
        len(list((run.folder / "samples").rglob("*.mp4")))
        == len(list((reference.folder / "samples").rglob("*.mp4")))
        > 0
    )
