"""Two language models that share the work: one plans (step I), another imagines the scenes (step III)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from dysen.imagination import Question
from dysen.llm.base import Answer, LanguageModel
from dysen.replies import PlanReply


class Divided(LanguageModel):
    """A small model plans where a large one imagines, or rules imagine where a model that only plans has nothing to say.

    Args:
        plans: who is asked for plans.
        scenes: who is asked for everything else.
    """

    worth_caching = False  # as a whole: `cached` asks each of the two

    def __init__(self, *, plans: LanguageModel, scenes: LanguageModel):
        self.plans, self.scenes = plans, scenes

    def answer(self, questions: Sequence[Question]) -> list[Answer]:
        answers: dict[int, Answer] = {}
        for model, is_plan in ((self.plans, True), (self.scenes, False)):
            asked = [i for i, question in enumerate(questions) if (question.reply is PlanReply) == is_plan]
            if asked:
                answers.update(zip(asked, model.answer([questions[i] for i in asked]), strict=True))
        return [answers[i] for i in range(len(questions))]

    def fingerprint(self) -> dict[str, Any]:
        return {"model": "divided", "plans": self.plans.fingerprint(), "scenes": self.scenes.fingerprint()}

    def close(self) -> None:
        self.plans.close()
        self.scenes.close()
