"""What saving, averaging, waiting for data and sharing a model cost in a step, by `perf/*` of short runs of the quickstart.

    python benchmarks/scaling.py --datasets datasets/quickstart --outputs outputs

Needs the data, the autoencoder and the cache of latents of shellscripts/quickstart.sh. Shares are means over all steps but
the first ones, in which caches fill and kernels are chosen. Strategies share the batch of one process between two.
"""

from __future__ import annotations

import argparse
import csv
import os
import statistics
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
EVERY, STEPS, LOG, WARM = 20, 120, 10, 20
LIMITS = {"ema": 0.03, "data wait": 0.05}
VIDEO_MODEL = ["experiment=quickstart_vdm", "init.autoencoder=quickstart-autoencoder"]
RUNS = {
    "videos -> autoencoder": ["experiment=quickstart"],
    "cached latents -> video model": VIDEO_MODEL,
    "videos -> video model": [*VIDEO_MODEL, "stage.cached=null"],
}
# An optimizer that every strategy can cut, and the precision in which their arithmetic is the same.
CUT = ["stage.optimizer._target_=torch.optim.AdamW", "trainer.precision=32-true",
       *(f"~stage.optimizer.{name}" for name in ("matrix_lr", "momentum", "min_width", "max_width"))]  # fmt: skip
STRATEGIES = ("ddp", "fsdp", "deepspeed_zero1", "deepspeed_zero2", "deepspeed_zero3")


@dataclass(frozen=True)
class Costs:
    """Seconds of a step, shares of it, and seconds that a step waits when a checkpoint is written."""

    step: float
    ema: float
    data_wait: float
    stall: float
    megabytes: float


def measure(words: list[str], datasets: Path, outputs: Path) -> Costs:
    """Train for a short while in a folder of its own, beside the runs it begins with."""
    with tempfile.TemporaryDirectory(dir=outputs, prefix="scaling-") as folder:
        name = Path(folder).name
        settings = [
            f"run.id={name}", "resume=auto", f"trainer.max_steps={STEPS}", f"trainer.log_every_n_steps={LOG}",
            f"callbacks.checkpoint.every={EVERY}", "callbacks.checkpoint.monitor=null", "callbacks.validation.every=0",
            "callbacks.samples.every=0", f"paths.data_root={datasets}", f"paths.output_root={outputs}",
        ]  # fmt: skip
        subprocess.run([sys.executable, "train.py", *words, *settings], cwd=ROOT, check=True, env=os.environ)
        newest = max((Path(folder) / "checkpoints").iterdir())
        size = sum(path.stat().st_size for path in newest.rglob("*") if path.is_file())
        with (Path(folder) / "metrics.csv").open(encoding="utf-8") as file:
            rows = [row for row in csv.DictReader(file) if row.get("perf/time_step") and int(row["step"]) > WARM]

    def seconds(phase: str) -> float:
        return sum(float(row.get(f"perf/time_{phase}") or 0.0) * LOG for row in rows)

    # What is written at a step that is logged as well is counted in the row that follows.
    saves = len(rows) * LOG / EVERY
    between = seconds("checkpoint")
    step = seconds("step") - between
    return Costs(
        step=step / (len(rows) * LOG), ema=seconds("ema") / step, data_wait=seconds("data_wait") / step,
        stall=between / saves, megabytes=size / 1e6,
    )  # fmt: skip


def measure_saving(names: list[str], datasets: Path, outputs: Path) -> None:
    print(
        "| run | step, ms | moving average | data wait | checkpoint, MB | a step waits for it, ms | in the background, ms |"
    )
    print("|---|---|---|---|---|---|---|")
    for name in names:
        found = measure(RUNS[name], datasets, outputs)
        beside = measure([*RUNS[name], "callbacks.checkpoint.background=true"], datasets, outputs)
        print(f"| {name} | {found.step * 1e3:.1f} | {found.ema:.2%} | {found.data_wait:.2%} | {found.megabytes:.1f} | "
              f"{found.stall * 1e3:.0f} | {beside.stall * 1e3:.0f} |", flush=True)  # fmt: skip
    print(f"limits: moving average {LIMITS['ema']:.0%}, data wait from a cache {LIMITS['data wait']:.0%}")


def measure_strategies(turns: int, datasets: Path, outputs: Path) -> None:
    """Times of a step, and the ratio to DDP of the same turn: medians of alternating turns."""
    found: dict[str, list[Costs]] = {"one process": []} | {name: [] for name in STRATEGIES}
    for _ in range(turns):
        for name in found:
            machine = ["trainer=cpu"] if name == "one process" else [f"trainer={name}", "trainer.devices=2"]
            batch = 16 if name == "one process" else 8
            settings = ["trainer.accelerator=cpu", f"data.batch_size={batch}", "data.num_workers=0"]
            found[name].append(measure([*VIDEO_MODEL, *machine, *CUT, *settings], datasets, outputs))
    print("| strategy | step, ms | beside DDP | a step waits for a checkpoint, ms |")
    print("|---|---|---|---|")
    for name, costs in found.items():
        ratios = [one.step / ddp.step for one, ddp in zip(costs, found["ddp"], strict=True)]
        print(f"| {name} | {statistics.median(one.step for one in costs) * 1e3:.1f} | {statistics.median(ratios):.2f} | "
              f"{statistics.median(one.stall for one in costs) * 1e3:.0f} |", flush=True)  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--datasets", type=Path, default=Path("datasets/quickstart"))
    parser.add_argument("--outputs", type=Path, default=Path("outputs"))
    parser.add_argument("--only", choices=[*RUNS, "strategies"])
    parser.add_argument("--turns", type=int, default=3, help="of the strategies")
    options = parser.parse_args()
    datasets, outputs = options.datasets.absolute(), options.outputs.absolute()
    if options.only != "strategies":
        measure_saving([name for name in RUNS if options.only in (None, name)], datasets, outputs)
    if options.only in (None, "strategies"):
        measure_strategies(options.turns, datasets, outputs)


if __name__ == "__main__":
    main()
