"""Scene imagination (Dysen-VDM, step III) without the language model: which questions to ask and what to make of answers.

Round 1 goes scene by scene with a sliding window, enriched graphs before and planned ones after it, or asks for all scenes
in one call; round 2 polishes all graphs together. An answer that cannot be read costs its enrichment, never the plan.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal, TypeVar

from dysen.parsing_answers import parse_graph, parse_graphs
from dysen.prompts import again, prompt, scene_query, scenes_query
from dysen.replies import Reply, SceneReply, ScenesReply
from dysen.scene_graph import DynamicSceneGraph, SceneGraph, enrich
from vdm.bounds import NonNegativeInt
from vdm.errors import PlanError

Read = TypeVar("Read")


@dataclass(frozen=True)
class Question:
    """A prompt and the form its answer should have."""

    prompt: str
    reply: type[Reply]


@dataclass(frozen=True)
class Imagined:
    """The enriched graphs, what was repaired in the answers, and the answers' errors that no retry mended."""

    dsg: DynamicSceneGraph
    repairs: tuple[str, ...]
    failures: tuple[str, ...]


@dataclass(frozen=True)
class Imagination:
    """How step III asks. `window` graphs on each side of a scene are shown; 0 shows the scene alone."""

    window: NonNegativeInt
    calls: Literal["each", "batched"]
    polish: bool
    retries: NonNegativeInt  # further tries of a question whose answer could not be read
    form: Literal["json", "tuples"]  # spelled out, so that settings are checked before anything is imported

    def num_questions(self, num_ticks: int) -> int:
        """Questions for one plan when no answer fails."""
        return (num_ticks if self.calls == "each" else 1) + self.polish

    def ask(
        self,
        caption: str,
        planned: DynamicSceneGraph,
        *,
        demonstrations: Sequence[str] = (),
        scenes_demonstrations: Sequence[str] = (),
    ) -> Generator[Question, str, Imagined]:
        """Yields questions, is sent answers (or, where there is none, thrown a `PlanError`), returns the enriched graphs.

        Being a generator, many captions can go in lockstep and their questions form one batch. A question whose answer
        could not be read is asked again with the problem named, so that a cache does not repeat the answer.
        """
        repairs: list[str] = []
        failures: list[str] = []
        enriched: list[SceneGraph] = []

        def settle(
            question: Question, read: Callable[[str], tuple[Read, tuple[str, ...]]], otherwise: Read
        ) -> Generator[Question, str, Read]:
            asked = question
            for attempt in range(self.retries + 1):
                try:
                    answer = yield asked
                except PlanError as error:  # thrown in: there is no answer, and asking again is not our business
                    failures.append(str(error))
                    return otherwise
                try:
                    result, changes = read(answer)
                except PlanError as error:
                    asked = Question(again(question.prompt, f"{error.what}: {error.got}"), question.reply)
                    if attempt == self.retries:
                        failures.append(str(error))
                else:
                    repairs.extend(changes)
                    return result
            return otherwise

        def read_all(answer: str) -> tuple[tuple[SceneGraph, ...], tuple[str, ...]]:
            parsed = parse_graphs(answer, len(planned))
            return parsed.graphs, parsed.repairs

        def read_one(answer: str) -> tuple[SceneGraph, tuple[str, ...]]:
            parsed = parse_graph(answer)
            return parsed.graphs[0], parsed.repairs

        nothing = (SceneGraph(),) * len(planned)
        if self.calls == "batched":
            text = prompt("imagine_all", self.form, scenes_demonstrations, scenes_query(caption, planned))
            additions = yield from settle(Question(text, ScenesReply), read_all, nothing)
            enriched = [enrich(graph, addition) for graph, addition in zip(planned, additions, strict=True)]
        else:
            for tick, graph in enumerate(planned):
                query = scene_query(caption, *windowed(enriched, planned, tick, self.window))
                text = prompt("imagine", self.form, demonstrations, query)
                addition = yield from settle(Question(text, SceneReply), read_one, SceneGraph())
                enriched.append(enrich(graph, addition))
        dsg = DynamicSceneGraph(tuple(enriched))
        if self.polish:
            text = prompt("polish", self.form, scenes_demonstrations, scenes_query(caption, dsg))
            polished = yield from settle(Question(text, ScenesReply), read_all, nothing)
            dsg = polish(dsg, polished)
        return Imagined(dsg, tuple(repairs), tuple(failures))


def windowed(
    enriched: Sequence[SceneGraph], planned: DynamicSceneGraph, tick: int, window: int
) -> tuple[list[SceneGraph], SceneGraph, list[SceneGraph]]:
    """Enriched graphs before a tick, its own and the planned ones after it; empty graphs beyond both ends."""
    before = [enriched[i] if i >= 0 else SceneGraph() for i in range(tick - window, tick)]
    after = [planned[i] if i < len(planned) else SceneGraph() for i in range(tick + 1, tick + 1 + window)]
    return before, planned[tick], after


def polish(dsg: DynamicSceneGraph, polished: Sequence[SceneGraph]) -> DynamicSceneGraph:
    """Round 2 may take back what round 1 imagined, but no action; a scene it says nothing about stays as it was."""
    return DynamicSceneGraph(
        tuple(
            enrich(graph.planned(), answer) if answer.objects else graph
            for graph, answer in zip(dsg, polished, strict=True)
        )
    )


def answer_all(
    questions: Generator[Question, str, Imagined], answers: Callable[[Question], str] | Iterator[str]
) -> Imagined:
    """Runs one imagination to its end with a function that answers a question."""
    respond = answers if callable(answers) else lambda question: next(answers)
    try:
        question = next(questions)
        while True:
            question = questions.send(respond(question))
    except StopIteration as stop:
        return stop.value
