"""Captions to plans and dynamic scene graphs through a language model: steps I to III of Dysen-VDM.

Captions go in lockstep, so that the model gets the questions of all of them as one batch. An answer that cannot be read is
repaired, then asked for again with the problem named, then replaced by the fallback; everything that was done is recorded.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Generator, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal, TypeVar

from dysen import prompts
from dysen.action_plan import Plan
from dysen.demonstrations import Demonstration, Selector
from dysen.imagination import Imagination, Imagined, Question
from dysen.llm.base import Answer, LanguageModel
from dysen.llm.rules import Rules
from dysen.names import clean, shorten
from dysen.parsing_answers import parse_plan
from dysen.prompts import MAX_CAPTION
from dysen.replies import MAX_REPLY_TICK, PlanReply
from dysen.scene_graph import DynamicSceneGraph, event_to_dsg
from vdm.bounds import NonNegativeInt, PositiveInt
from vdm.errors import ConfigError, PlanError

Source = Literal["model", "rules", "caption"]
Result = TypeVar("Result")


@dataclass(frozen=True)
class Planned:
    """What became of a caption. `source` says who made the plan; "caption": nobody, there is none."""

    caption: str
    plan: Plan | None
    dsg: DynamicSceneGraph | None
    source: Source
    repairs: tuple[str, ...] = ()
    failures: tuple[str, ...] = ()  # errors that no retry mended: of the plan, then of the imagination
    shown: tuple[str, ...] = ()  # ids of the demonstrations, the most relevant last
    calls: int = 0
    cached: int = 0  # of the calls
    errors: int = 0  # calls that came back without any answer
    prompt_tokens: int = 0
    answer_tokens: int = 0

    def to_json(self) -> dict[str, Any]:
        """All but `cached`, which tells of one run and not of the plan."""
        return {
            "caption": self.caption,
            "plan": None if self.plan is None else self.plan.to_json(),
            "scene_graphs": None if self.dsg is None else self.dsg.to_json(),
            "source": self.source,
            "repairs": list(self.repairs),
            "failures": list(self.failures),
            "shown": list(self.shown),
            "calls": self.calls,
            "prompt_tokens": self.prompt_tokens,
            "answer_tokens": self.answer_tokens,
        }


class Planner:
    """Plans captions.

    Args:
        llm: who is asked.
        selector: chooses the demonstrations that a caption is planned with.
        imagination: how step III asks; None leaves it out.
        form: what answers look like.
        retries: further tries of a plan that could not be read.
        max_tick: later times are squeezed into so many ticks, so that imagination stays bounded.
        ticks: shorter plans are stretched to so many, those of the clips that the video model has learned from; None: a plan
            keeps its own.
        fallback: what a caption gets whose plan failed: rules (a plan of the general rules), caption (no graphs at all) or
            error (a `PlanError` that shows the answer).
    """

    def __init__(
        self,
        *,
        llm: LanguageModel,
        selector: Selector,
        imagination: Imagination | None,
        form: Literal["json", "tuples"],
        retries: NonNegativeInt,
        max_tick: PositiveInt,
        ticks: PositiveInt | None,
        fallback: Literal["rules", "caption", "error"],
    ):
        if max_tick > MAX_REPLY_TICK:
            raise ConfigError("beyond what an answer may hold", key="planner.max_tick", got=max_tick,
                              allowed=f"1 to {MAX_REPLY_TICK}")  # fmt: skip
        if ticks is not None and ticks > max_tick:
            raise ConfigError(
                "more ticks than a plan may have", key="planner.ticks", got=ticks, allowed=f"1 to {max_tick}"
            )
        self.ticks = ticks
        self.llm, self.selector, self.imagination = llm, selector, imagination
        self.form, self.retries, self.max_tick, self.fallback = form, retries, max_tick, fallback
        self._rules = Rules(parser=None, details=None)

    def plan(self, captions: Sequence[str]) -> list[Planned]:
        """One result for each caption, in their order."""
        chosen = self.selector.choose(captions)
        runs = []
        for caption, positions in zip(captions, chosen, strict=True):
            shown = [self.selector.pool[i] for i in positions] if clean(caption) else []
            # A demonstration of the caption itself would be the answer.
            runs.append(self._steps(caption, [one for one in shown if one.caption != caption]))
        return lockstep(runs, self.llm)

    def fingerprint(self) -> dict[str, Any]:
        """Everything that decides what comes of a caption."""
        return {
            "llm": self.llm.fingerprint(),
            "selector": self.selector.fingerprint(),
            "imagination": None if self.imagination is None else asdict(self.imagination),
            "form": self.form,
            "retries": self.retries,
            "max_tick": self.max_tick,
            "ticks": self.ticks,
            "fallback": self.fallback,
            "prompts": prompts.fingerprint(),
        }

    @property
    def name(self) -> str:
        """Short for the fingerprint."""
        return hashlib.sha256(json.dumps(self.fingerprint(), sort_keys=True).encode()).hexdigest()[:12]

    def _steps(self, caption: str, shown: Sequence[Demonstration]) -> Generator[Question, Answer, Planned]:
        tally: Counter[str] = Counter()
        repairs: list[str] = ["cut a long caption"] if len(caption) > MAX_CAPTION else []
        failures: list[str] = []
        source: Source = "model"
        if clean(caption):
            plan = yield from self._plan(caption, shown, tally, repairs, failures)
        else:
            plan = None
            failures.append("the caption says nothing")
        if plan is None:
            plan, source = self._instead(caption, failures)
        if plan is not None and self.ticks is not None:
            plan = plan.stretched(self.ticks)
        dsg = None if plan is None else event_to_dsg(plan)
        # With the model out of reach, imagination would only add errors to the list.
        if dsg is not None and self.imagination is not None and not tally["errors"]:
            imagined = yield from self._imagine(caption, dsg, shown, tally)
            dsg = imagined.dsg
            repairs += imagined.repairs
            failures += imagined.failures
        return Planned(
            caption, plan, dsg, source, tuple(repairs), tuple(failures), tuple(one.id for one in shown), **tally
        )

    def _plan(
        self,
        caption: str,
        shown: Sequence[Demonstration],
        tally: Counter[str],
        repairs: list[str],
        failures: list[str],
    ) -> Generator[Question, Answer, Plan | None]:
        """Step I; None where all tries failed."""
        asked = prompt = prompts.plan_prompt(
            caption, demonstrations=[s.for_plan(self.form) for s in shown], form=self.form
        )
        for attempt in range(self.retries + 1):
            answer = yield from _ask(Question(asked, PlanReply), tally)
            if answer.error is not None:
                failures.append(f"no answer: {shorten(answer.error, 300)}")
                return None
            try:
                parsed = parse_plan(answer.text, max_tick=self.max_tick)
            except PlanError as error:
                asked = prompts.again(prompt, f"{error.what}: {error.got}")
                if attempt == self.retries:
                    failures.append(str(error))
            else:
                repairs.extend(["asked again for the plan"] * attempt)
                repairs.extend(parsed.repairs)
                return parsed.plan
        return None

    def _instead(self, caption: str, failures: list[str]) -> tuple[Plan | None, Source]:
        """The fallback."""
        if self.fallback == "error":
            what = "a caption could not be planned"
            remedy = "choose planner.fallback=rules or planner.fallback=caption, or another llm"
            raise PlanError(what, got=f"{shorten(caption)!r}: {failures[-1]}", remedy=remedy)
        plan = self._rules.plan_of(caption, max_tick=self.max_tick) if self.fallback == "rules" else None
        return (plan, "rules") if plan is not None else (None, "caption")

    def _imagine(
        self, caption: str, dsg: DynamicSceneGraph, shown: Sequence[Demonstration], tally: Counter[str]
    ) -> Generator[Question, Answer, Imagined]:
        """Step III. A question without an answer costs its enrichment."""
        settings = self.imagination
        assert settings is not None, "imagination is on"
        known = [one for one in shown if one.dsg is not None]
        questions = settings.ask(
            caption,
            dsg,
            demonstrations=[one.for_scene(settings.form, settings.window) for one in known],
            scenes_demonstrations=[one.for_scenes(settings.form) for one in known],
        )
        try:
            question = next(questions)
            while True:
                answer = yield from _ask(question, tally)
                if answer.error is None:
                    question = questions.send(answer.text)
                else:
                    question = questions.throw(PlanError(f"no answer: {shorten(answer.error, 300)}"))
        except StopIteration as stop:
            return stop.value


def _ask(question: Question, tally: Counter[str]) -> Generator[Question, Answer, Answer]:
    answer = yield question
    tally.update(calls=1, cached=int(answer.cached), errors=int(answer.error is not None))
    tally.update(prompt_tokens=answer.prompt_tokens, answer_tokens=answer.answer_tokens)
    return answer


def lockstep(runs: Sequence[Generator[Question, Answer, Result]], llm: LanguageModel) -> list[Result]:
    """Runs all of them to their ends; in each round the model gets the questions of those that still go on."""
    results: dict[int, Result] = {}
    waiting: dict[int, Question] = {}

    def advance(i: int, answer: Answer | None) -> None:
        try:
            waiting[i] = next(runs[i]) if answer is None else runs[i].send(answer)
        except StopIteration as stop:
            waiting.pop(i, None)
            results[i] = stop.value

    for i in range(len(runs)):
        advance(i, None)
    while waiting:
        order = list(waiting)
        answers = llm.answer([waiting[i] for i in order])
        assert len(answers) == len(order), "a language model answers every question"
        for i, answer in zip(order, answers, strict=True):
            advance(i, answer)
    return [results[i] for i in range(len(runs))]
