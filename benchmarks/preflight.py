"""How far is what preflight predicts from the memory a run takes? Six configurations of three stages, on a CPU.

    python benchmarks/preflight.py                       all of them: a quarter of an hour on one core
    python benchmarks/preflight.py --only vdm autoencoder

Each prediction and each run has a process of its own. Both numbers are bytes above what the process had before it built
anything (interpreter, libraries, the reader of the data is built after that): the peak of the resident memory as the system
counts it, over three steps with validation and a checkpoint. `whole` is the error of the process as a whole.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

COMMON = [
    "trainer=cpu", "trainer.max_steps=3", "trainer.log_every_n_steps=1", "callbacks.validation.every=3",
    "callbacks.checkpoint.every=3", "callbacks.checkpoint.finish_batches=1", "callbacks.samples.every=0",
    "data.num_workers=0", "data.val_clips=4", "stage.accumulate=1",
]  # fmt: skip
SMALL, LARGE = "small", "large"  # 8x32x32 and 16x64x64
AUTOENCODER = ["stage=autoencoder", "stage.loss.perceptual=null", "stage.loss.adversarial.start_step=0"]
WIDE = ["backbone=unet3d", "backbone.channels=64", "backbone.multipliers=[1,2,4]"]
OF_TINY = ["init.autoencoder=tiny", "sampler.num_steps=2"]
PARENTS = {  # one step each
    "tiny": (
        SMALL,
        ["stage=autoencoder", "autoencoder=tiny", "stage.loss.perceptual=null", "stage.loss.adversarial=null"],
    ),
    "wide": (SMALL, ["stage=vdm", *OF_TINY, *WIDE, "data.batch_size=1"]),
}
CONFIGURATIONS = {
    "autoencoder": (SMALL, [*AUTOENCODER, "autoencoder=tiny", "data.batch_size=16"]),
    "autoencoder, 3D": (LARGE, [*AUTOENCODER, "autoencoder=conv3d", "autoencoder.channels=16", "autoencoder.norm_groups=8",
                                "data.batch_size=2"]),
    "vdm": (SMALL, ["stage=vdm", *OF_TINY, "data.batch_size=16"]),
    "vdm, wide": (SMALL, ["stage=vdm", *OF_TINY, *WIDE, "data.batch_size=4"]),
    "vdm, wide, checkpointing": (
        SMALL, ["stage=vdm", *OF_TINY, *WIDE, "backbone.checkpoint_levels=[0,1,2]", "data.batch_size=8"]
    ),
    "finetune, LoRA": (
        SMALL, ["stage=finetune", "init.vdm=wide", "stage/tuning=lora", "data.batch_size=4", "sampler.num_steps=2"]
    ),
}  # fmt: skip


def child(kind: str, words: list[str]) -> None:
    """Prints one line of JSON."""
    import hydra
    import torch

    from vdm import lineage, training
    from vdm.launch import CONF
    from vdm.watching.devices import resident_peak

    torch.set_num_threads(1)
    with hydra.initialize_config_dir(str(CONF), version_base="1.3"):
        cfg = hydra.compose("train", overrides=words)
    lineage.adopt(cfg)
    found: dict[str, int | str] = {}
    if kind == "predict":

        def full(self):
            (bucket,) = self.buckets(others=False)
            found.update(above=bucket.bytes - self.before, before=self.before, phase=bucket.usage.worst_phase)
            return ""

        training.Preflight.full = full
        training.preflight(cfg)
    else:
        built = training._built

        def noted(*arguments):
            found["before"] = training.resident()
            return built(*arguments)

        training._built = noted
        training.train(cfg)
        found["above"] = resident_peak() - found["before"]
    print("\n" + json.dumps(found), flush=True)


def run(arguments: list[str]) -> dict:
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "PASSIVE"}
    done = subprocess.run([sys.executable, *arguments], cwd=ROOT, env=environment, capture_output=True, text=True)
    if done.returncode:
        sys.exit(f"{' '.join(arguments)}\n{done.stderr[-4000:]}")
    line = done.stdout.strip().splitlines()[-1:] or ["null"]
    return json.loads(line[0]) if line[0].startswith("{") else {}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="*", default=list(CONFIGURATIONS), choices=list(CONFIGURATIONS), metavar="NAME")
    parser.add_argument("--keep", help="a folder for data and parents, to use them again")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as made:
        folder = Path(given.keep or made)
        for size, words in (
            (SMALL, []),
            (LARGE, ["data.source.height=64", "data.source.frames=16", "data.source.ticks=15"]),
        ):
            if not (folder / size).exists():
                counts = [f"data.source.num_{split}={count}" for split, count in
                          (("train", 64), ("val", 8), ("test", 4), ("heldout", 4))]  # fmt: skip
                run(["-m", "data.prepare", "data=shapes", f"paths.data_root={folder / size}", *words, *counts])
        outputs = f"paths.output_root={folder / 'outputs'}"

        def words_of(name: str, size: str, words: list[str]) -> list[str]:
            shape = ["data.source.height=64", "data.source.frames=16", "data.source.ticks=15"] * (size == LARGE)
            return [
                *words,
                "data=shapes",
                *shape,
                f"paths.data_root={folder / size}",
                outputs,
                *COMMON,
                f"run.id={name}",
            ]

        for name, (size, words) in PARENTS.items():
            if not (folder / "outputs" / name / "checkpoints").exists():
                run(["train.py", *words_of(name, size, words), "trainer.max_steps=1"])
        print(
            f"{'configuration':26} {'predicted':>10} {'measured':>10} {'error':>7} {'whole':>7}  worst in", flush=True
        )
        for name in given.only:
            size, words = CONFIGURATIONS[name]
            identity = "".join(letter if letter.isalnum() else "-" for letter in name)
            words = words_of(f"{identity}-{os.getpid()}", size, words)
            guess = run([__file__, "child", "predict", *words])
            truth = run([__file__, "child", "measure", *words])
            error = guess["above"] / truth["above"] - 1
            whole = (guess["above"] + guess["before"]) / (truth["above"] + truth["before"]) - 1
            print(f"{name:26} {guess['above'] / 1e6:7.0f} MB {truth['above'] / 1e6:7.0f} MB {error:+7.1%} {whole:+7.1%}"
                  f"  {guess['phase']}", flush=True)  # fmt: skip


if __name__ == "__main__":
    if sys.argv[1:2] == ["child"]:
        child(sys.argv[2], sys.argv[3:])
    else:
        main()
