"""What knowing the order of events is worth: the shares of clips that show what their caption tells, in its order.

Captions tell two or three events in another order than they happen, most of them in words that only demonstrations explain
(data=shapes_new_verbs). For every seed two models of equal size are trained for equally many steps: one hears captions
alone (a), one also hears scene graphs. The second is measured with the true graphs (b), and with those that a small
language model planned from the captions, with demonstrations chosen by the trained policy (c) or at random (d).

After the quickstart (shellscripts/quickstart.sh), whose text-to-video model both start from:
  python benchmarks/claim.py --outputs outputs --datasets datasets/quickstart --seeds 0 1 2
Every step is a command that continues where it stopped.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import statistics
import subprocess
import sys
from pathlib import Path

DATA = "shapes_new_verbs"
SHOTS = 6  # demonstrations a caption
TICKS = 7  # of the clips: no caption says how long an event lasts, and a graph a tick is what the model has learned
GUIDANCE = 1.5  # strong guidance moves things where no graph tells them to be
SCORES = ("colour", "shape", "action", "timing", "order")
EVENTS = ("2", "3")  # in the captions of DATA
T_95 = {2: 12.706, 3: 4.303, 4: 3.182, 5: 2.776}  # two-sided, by the number of seeds
ARMS = {
    "a: captions alone": ("text", "none", None),
    "b: true graphs": ("graphs", "gold", None),
    "c: planned, demonstrations by the policy": ("graphs", "planned", "policy"),
    "d: planned, random demonstrations": ("graphs", "planned", "policy_random"),
}
PARENTS = ["init.autoencoder=quickstart-autoencoder", "init.backbone=quickstart-vdm", "init.conditions=quickstart-vdm"]
MODELS = {  # equal networks: the one that hears captions alone has the others' parameters, and never any graph
    "text": ["condition.scene_graph.drop_prob=1.0"],
    "graphs": ["condition.scene_graph.drop_prob=0.1"],
    "rgnn": ["condition.scene_graph.drop_prob=0.1", "scene_encoder=rgnn"],  # for benchmarks/ablations.py
}


def command(program: list[str], *arguments: str) -> None:
    print("$ python", *program, *arguments, flush=True)
    subprocess.run([sys.executable, *program, *arguments], check=True, env=os.environ)


def train(model: str, seed: int, steps: int, paths: list[str], changes: list[str]) -> str:
    run = f"claim-{model}-{seed}"
    command(
        ["train.py"], "experiment=quickstart_graphs", f"run.id={run}", f"seed={seed}", f"trainer.max_steps={steps}",
        *MODELS[model], *PARENTS, "trainer=cpu", "trainer.precision=bf16-mixed", *paths, *changes,
    )  # fmt: skip
    return run


def plan(selector: str, clips: int, outputs: Path, paths: list[str]) -> Path:
    folder = outputs / f"claim-plans-{selector}-{clips}"
    command(
        ["-m", "dysen.plan"], f"data={DATA}", "split=test", "captions=all", f"limit={clips}", "planner=plain", "llm=tiny",
        f"selector={selector}", f"selector.shots={SHOTS}", f"planner.ticks={TICKS}", f"output={folder}",
        "max_fallbacks=1.0", *paths,
    )  # fmt: skip
    return folder


def measure(run: str, graphs: str, name: str, plans: Path | None, clips: int, outputs: Path, paths: list[str]) -> dict:
    ending = "" if graphs == "gold" else f"-{graphs}"
    place = outputs / run / "evaluation" / f"{name}{ending}" / "metrics.json"
    # Always: samples that were made are kept, and numbers of other weights or captions are not taken for these.
    command(
        ["evaluate.py"], "protocol=shapes", f"protocol.name={name}", f"run={run}", f"protocol.graphs={graphs}",
        f"protocol.clips={clips}", f"protocol.guidance={GUIDANCE}",
        *([] if plans is None else [f"protocol.plans.folder={plans}"]), *paths,
    )  # fmt: skip
    result = json.loads(place.read_text())
    numbers = result["metrics"]
    by_events = {row["bin"]: row["metrics"].get("order", math.nan) for row in result["breakdowns"]["events"]}
    numbers |= {_of_events(count): by_events[count] for count in EVENTS}
    if numbers.get("without_plan"):
        raise SystemExit(
            f"{place}: {numbers['without_plan']} of {clips} captions have no plan, so these numbers are of none"
        )
    return numbers


def _of_events(count: str) -> str:
    return f"order of {count} events"


def interval(values: list[float]) -> str:
    mean = statistics.mean(values)
    if len(values) < 2:
        return f"{mean:.3f}"
    half = T_95[len(values)] * statistics.stdev(values) / math.sqrt(len(values))
    return f"{mean:.3f} ± {half:.3f}"


def table(title: str, found: dict[str, list[dict]]) -> None:
    columns = (*SCORES, *map(_of_events, EVENTS))
    print(f"| {title} |", " | ".join(columns), "|")
    print("|---" * (len(columns) + 1) + "|")
    for name, rows in found.items():
        print(f"| {name} |", " | ".join(interval([row[column] for row in rows]) for column in columns), "|")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--outputs", type=Path, required=True)
    parser.add_argument("--datasets", type=Path, required=True)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2], help="at most five")
    parser.add_argument("--steps", type=int, default=1500)
    parser.add_argument("--clips", type=int, default=256)
    parser.add_argument("--arms", nargs="+", choices=[arm[0] for arm in ARMS], default=[arm[0] for arm in ARMS])
    parser.add_argument("--graphs", help="a run that was trained so, for the one seed: (b), (c) and (d) take it")
    parser.add_argument("changes", nargs="*", help="settings of every training")
    options = parser.parse_args()
    paths = [f"paths.output_root={options.outputs}", f"paths.data_root={options.datasets}"]
    arms = {name: arm for name, arm in ARMS.items() if name[0] in options.arms}
    chosen = {selector for _, _, selector in arms.values() if selector is not None}
    plans = {selector: plan(selector, options.clips, options.outputs, paths) for selector in sorted(chosen)}
    found: dict[str, list[dict]] = {name: [] for name in arms}
    for seed in options.seeds:
        for model in dict.fromkeys(model for model, _, _ in arms.values()):
            if model == "graphs" and options.graphs:
                run = options.graphs
            else:
                run = train(model, seed, options.steps, paths, options.changes)
            for name, (hears, graphs, selector) in arms.items():
                if hears == model:
                    protocol = f"claim_{selector or graphs}"
                    numbers = measure(run, graphs, protocol, plans.get(selector), options.clips, options.outputs, paths)
                    found[name].append(numbers)
    table(f"{options.steps} steps, {options.clips} captions, {len(options.seeds)} seeds", found)


if __name__ == "__main__":
    main()
