"""The paper's ablation (its table 4) at the size of a laptop: what each part of Dysen is worth in clips that keep their order.

All rows start from the models of benchmarks/claim.py, which are trained here where they are not there yet, and go on for equally
many steps on planned graphs (stage=dysen). A part is taken away as `sample.py ablate=` takes it: the plans are others, the
weights are the same. "RGNN" has another encoder of graphs from its first step on, and "without Dysen" never hears a graph.

After the quickstart (shellscripts/quickstart.sh):
  python benchmarks/ablations.py --outputs outputs --datasets datasets/quickstart --seeds 0 1 2
Every step is a command that continues where it stopped.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.claim import DATA, SHOTS, TICKS, command, measure, table, train  # noqa: E402

# Rules imagine what the captions say of looks and what earlier scenes leave behind. A last look at all scenes together
# would show them what the window hides, so none of the rows has one.
IMAGINES = ["planner=default", "planner.imagination.polish=false"]
PLANS = {
    "dysen": [*IMAGINES, "selector=policy"],
    "without-imagination": ["planner=plain", "selector=policy"],
    "without-window": [*IMAGINES, "planner.imagination.window=0", "selector=policy"],
    "random-examples": [*IMAGINES, "selector=policy_random"],
}
ROWS = {  # row -> model, plans
    "Dysen-VDM": ("graphs", "dysen"),
    "without Dysen": ("text", None),
    "without scene imagination": ("graphs", "without-imagination"),
    "without the sliding window": ("graphs", "without-window"),
    "random examples": ("graphs", "random-examples"),
    "RGNN": ("rgnn", "dysen"),
}


def plan(name: str, settings: list[str], split: str, clips: int | None, outputs: Path, paths: list[str]) -> Path:
    folder = outputs / f"ablation-plans-{name}-{split}"
    command(
        ["-m", "dysen.plan"], f"data={DATA}", f"split={split}", "captions=all", f"limit={'null' if clips is None else clips}",
        "llm=tiny_rules", f"selector.shots={SHOTS}", f"planner.ticks={TICKS}", f"output={folder}", "max_fallbacks=1.0",
        *settings, *paths,
    )  # fmt: skip
    return folder


def go_on(model: str, seed: int, steps: int, plans: Path, paths: list[str]) -> str:
    run = f"ablation-{model}-{seed}"
    command(
        ["train.py"], "experiment=quickstart_dysen", f"run.id={run}", f"seed={seed}", f"init.vdm=claim-{model}-{seed}",
        f"stage.planned.folder={plans}", f"trainer.max_steps={steps}", "trainer=cpu", "trainer.precision=bf16-mixed", *paths,
    )  # fmt: skip
    return run


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--outputs", type=Path, required=True)
    parser.add_argument("--datasets", type=Path, required=True)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2], help="at most five")
    parser.add_argument("--steps", type=int, default=2400, help="of the models that the rows start from")
    parser.add_argument("--more", type=int, default=300, help="of every row, on planned graphs")
    parser.add_argument("--planned", type=int, help="clips of the training split that have plans; all of them")
    parser.add_argument("--clips", type=int, default=128)
    options = parser.parse_args()
    paths = [f"paths.output_root={options.outputs}", f"paths.data_root={options.datasets}"]
    # In one question a caption: the rules' answers are the same, and four captions of thousands of clips are many.
    quick = ["planner=fast", "selector=policy"]
    learned = plan("dysen", quick, "train", options.planned, options.outputs, paths)
    plans = {name: plan(name, how, "test", options.clips, options.outputs, paths) for name, how in PLANS.items()}
    found: dict[str, list[dict]] = {row: [] for row in ROWS}
    for seed in options.seeds:
        for model in dict.fromkeys(model for model, _ in ROWS.values()):
            train(model, seed, options.steps, paths, [])
            run = go_on(model, seed, options.more, learned, paths)
            for row, (its, name) in ROWS.items():
                if its == model:
                    heard = "none" if name is None else "planned"
                    folder = None if name is None else plans[name]
                    protocol = f"ablation_{name or 'none'}".replace("-", "_")
                    numbers = measure(run, heard, protocol, folder, options.clips, options.outputs, paths)
                    found[row].append(numbers)
    table(f"{options.steps} + {options.more} steps, {options.clips} captions, {len(options.seeds)} seeds", found)


if __name__ == "__main__":
    main()
