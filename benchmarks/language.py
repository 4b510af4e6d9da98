"""How many captions llm=tiny plans exactly: known verbs, new ones that a demonstration explains, and new ones that none does.

    python benchmarks/language.py --run outputs/quickstart-language

Each caption comes with 4 demonstrations of one or two events, of the same world and lexicon: 12 actions have a new verb, in
every caption another one. `known`: no new verbs and no demonstrations.
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
import time
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import numpy as np

from data.shapes.lessons import Lesson, Lexicon, draw_script, nonsense, tell_lesson
from data.shapes.script import ACTIONS, TARGETED, ScriptSettings
from data.shapes.timeline import Chances
from dysen.action_plan import Plan
from dysen.icl.rewards import is_exact, order_accuracy
from dysen.tiny.decoder import Decoder
from dysen.tiny.vocabulary import Tokens, plan_of
from dysen.tiny.writing import write
from vdm import restore

SHOTS, NEW, BATCH, ROOM = 4, 12, 20, 64
KINDS = ("known", "explained", "unexplained")


def asked(kind: str, events: int, things: int, number: int) -> list[Lesson]:
    """Demonstrations, and last the query; a function of its arguments."""
    chances = Chances(np.random.default_rng([7, things, events, number]))
    lexicon: Lexicon = {}
    if kind != "known":
        new = chances.shuffled([action for action in ACTIONS if things > 1 or action not in TARGETED])[:NEW]
        lexicon = dict(zip(new, nonsense(chances, NEW), strict=True))

    def told(fewest: int, most: int) -> Lesson:
        return tell_lesson(draw_script(chances, ScriptSettings(8, 1, things, fewest, most, 0.0)), chances, lexicon)

    query = told(events, events)
    while kind != "known" and not any(query.new):
        query = told(events, events)
    needed, shown = {verb for verb in query.new if verb}, []
    if kind == "explained":
        for verb in sorted(needed):
            shown.append(told(1, 2))
            while verb not in shown[-1].new:
                shown[-1] = told(1, 2)
    while kind != "known" and len(shown) < SHOTS:
        one = told(1, 2)
        if kind == "explained" or not needed & set(one.new):
            shown.append(one)
    return [*chances.shuffled(shown), query]


def prompt(lessons: list[Lesson]) -> Tokens:
    tokens = Tokens()
    for lesson in lessons[:-1]:
        tokens.caption(lesson.caption)
        tokens.plan(gold(lesson))
    tokens.caption(lessons[-1].caption)
    return tokens


def gold(lesson: Lesson) -> Plan:
    return Plan.from_json(lesson.to_json()["plan"])


def measured(decoder: Decoder, kind: str, events: int, given: argparse.Namespace) -> str:
    sequences = [asked(kind, events, given.things, number) for number in range(given.captions)]
    plans: list[Plan | None] = []
    for first in range(0, len(sequences), BATCH):
        prompts = [prompt(lessons) for lessons in sequences[first : first + BATCH]]
        written = write(decoder, prompts, ROOM)
        plans += [plan_of(ids, one.slots) for ids, one in zip(written, prompts, strict=True)]
    pairs = [(plan, gold(lessons[-1])) for plan, lessons in zip(plans, sequences, strict=True)]
    exact = statistics.mean(float(is_exact(*pair)) for pair in pairs)
    order = statistics.mean(float(order_accuracy(*pair)) for pair in pairs)
    acts = statistics.mean(float(plan is not None and _acts(plan) == _acts(true)) for plan, true in pairs)
    return f"{exact:7.2f}{acts:7.2f}{order:7.2f}"


def _acts(plan: Plan) -> list[tuple[str, str, str | None]]:
    return [(event.agent, event.predicate, event.target) for event in plan.events]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--run", required=True, help="the folder of a run of stage=language")
    parser.add_argument("--captions", type=int, default=100, help="of each kind and number of events")
    parser.add_argument("--things", type=int, default=1)
    parser.add_argument("--events", type=int, nargs="*", default=[1, 2, 3, 4])
    given = parser.parse_args()
    run = restore.chosen_run("outputs", given.run, stage="language")
    decoder = restore.load_network(run, restore.settings_of(run, needs=("language",)), "language").eval()
    began = time.process_time()
    print(f"{given.captions} captions each of up to {given.things} things; exact plans, right acts, order of events")
    print(f"  {'events':14}" + "".join(f"{events:18}   " for events in given.events))
    for kind in KINDS:
        print(f"  {kind:14}" + "".join(measured(decoder, kind, events, given) for events in given.events), flush=True)
    print(f"  {time.process_time() - began:.0f} s of one core")


if __name__ == "__main__":
    main()
