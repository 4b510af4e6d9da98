"""Faults over a short chain, autoencoder -> vdm -> samples: is anything lost, damaged, or silently other than it would have been?

    python benchmarks/chaos.py                       50 faults of all kinds; exit code 1 when one of them did harm
    python benchmarks/chaos.py --faults 17           one of each kind
    python benchmarks/chaos.py --only "full disk"    one kind
    python benchmarks/chaos.py --sabotage            with the check of checkpoints switched off: the table must not stay clean

Every fault hits a process of its own, at a moment that the seed draws. What the fault took away is put back, the same command is
given again, as a person or a scheduler would, and what comes out is compared with a run that nothing happened to: weights and
moving average bit for bit, every logged number, every checkpoint against its manifest.
"""

from __future__ import annotations

import argparse
import importlib
import json
import random
import sys
import tempfile
import time
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch  # noqa: E402

from benchmarks.chaos_faults import KINDS  # noqa: E402
from benchmarks.chaos_trial import HARM, HARMLESS, STAGES, Trial, World  # noqa: E402
from vdm import checkpoint  # noqa: E402

PARTS = ("vdm.training", "vdm.stages.autoencoder", "vdm.stages.diffusion", "vdm.autoencoder.conv3d", "vdm.backbones.unet3d",
         "vdm.sampling.command", "data.module", "data.shapes.source")  # what every process would import again  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--faults", type=int, default=50)
    parser.add_argument(
        "--first", type=int, default=0, help="number of the first of them, to share them between processes"
    )
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", choices=sorted(KINDS))
    parser.add_argument("--folder", type=Path, help="where to work; what harmed stays there to be looked at")
    parser.add_argument("--sabotage", action="store_true")
    options = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as temporary:
        folder, kinds = options.folder or Path(temporary), [options.only] if options.only else None
        with blind() if options.sabotage else nullcontext():
            outcomes = unleash(folder, options.faults, options.seed, first=options.first, kinds=kinds)
    print(table(outcomes))
    sys.exit(1 if harm(outcomes) else 0)


def unleash(
    folder: Path,
    faults: int,
    seed: int,
    *,
    first: int = 0,
    kinds: Sequence[str] | None = None,
    stages: Sequence[str] = tuple(STAGES),
) -> dict[str, Counter[str]]:
    """Outcomes by kind, of which there are 17."""
    for module in PARTS:
        importlib.import_module(module)
    world = World(folder)
    if not world.data.exists():
        world.prepare()
    kinds = kinds or list(KINDS)
    outcomes: dict[str, Counter[str]] = defaultdict(Counter)
    for number in range(first, first + faults):
        kind = kinds[number % len(kinds)]
        draw = random.Random(f"{seed}/{number}")
        began = time.monotonic()
        trial = Trial(world, folder / f"{number:03d}", draw.choice(stages))
        outcome = KINDS[kind](trial, draw)
        outcomes[kind][outcome] += 1
        seconds = time.monotonic() - began
        print(f"{number:3d} {kind:30} {trial.stage:11} {trial.codes!s:15} {outcome}, {seconds:.0f} s", flush=True)
        if outcome in HARM:
            print("    " + trial.said()[-4000:].replace("\n", "\n    "), flush=True)
    return outcomes


@contextmanager
def blind() -> Iterator[None]:
    """Checkpoints are believed: damage must then show in the outcomes, or these are worth nothing."""
    damage, load, fact = checkpoint.damage, checkpoint.load, checkpoint._fact

    def believing(folder: Path) -> Any:
        manifest = json.loads((folder / "manifest.json").read_text())["files"]
        checkpoint._fact = lambda path: manifest[str(path.relative_to(folder))]
        try:
            return load(folder)
        finally:
            checkpoint._fact = fact

    checkpoint.damage, checkpoint.load = lambda folder: None, believing
    try:
        yield
    finally:
        checkpoint.damage, checkpoint.load = damage, load


def table(outcomes: dict[str, Counter[str]]) -> str:
    """Kind x outcome."""
    columns = [*HARMLESS, *[name for name in HARM if any(name in found for found in outcomes.values())]]
    rows = [["fault", "faults", *columns]]
    rows += [[kind, found.total(), *[found[name] or "" for name in columns]] for kind, found in outcomes.items()]
    total = sum(outcomes.values(), Counter())
    rows.append(["together", total.total(), *[total[name] for name in columns]])
    widths = [max(len(str(row[place])) for row in rows) for place in range(len(rows[0]))]
    lines = [" | ".join(str(cell).ljust(width) for cell, width in zip(row, widths, strict=True)) for row in rows]
    return "\n".join(["| " + lines[0] + " |", "|" + "|".join("-" * (width + 2) for width in widths) + "|",
                      *(f"| {line} |" for line in lines[1:])])  # fmt: skip


def harm(outcomes: dict[str, Counter[str]]) -> int:
    """How many faults did what none may do."""
    return sum(count for found in outcomes.values() for name, count in found.items() if name not in HARMLESS)


if __name__ == "__main__":
    main()
