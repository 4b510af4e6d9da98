"""`llm=tiny`: the small decoder of a run of stage=language behind the interface of all language models.

It reads the captions and plans out of a prompt, in whichever form they are written, and answers with tuples. It only plans:
asked to imagine, it adds nothing.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from dysen.action_plan import Plan
from dysen.imagination import Question
from dysen.llm.base import Answer, LanguageModel
from dysen.parsing_answers import parse_plan
from dysen.replies import PlanReply
from dysen.text_form import NOTHING, plan_to_text
from dysen.tiny.decoder import Decoder
from dysen.tiny.vocabulary import Tokens, plan_of
from dysen.tiny.writing import write
from vdm import checkpoint, restore
from vdm.bounds import PositiveInt
from vdm.errors import PlanError

log = logging.getLogger(__name__)


class TinyModel(LanguageModel):
    """Answers with the likeliest plan.

    Args:
        decoder: trained by stage=language.
        max_tokens: of an answer; an event takes about 8.
        batch_tokens: tokens of the prompts and answers that are read at once.
    """

    def __init__(self, *, decoder: Decoder, max_tokens: PositiveInt, batch_tokens: PositiveInt):
        self.decoder, self.max_tokens, self.batch_tokens = decoder.eval(), max_tokens, batch_tokens

    def answer(self, questions: Sequence[Question]) -> list[Answer]:
        answers = [Answer(NOTHING)] * len(questions)
        asked = {i: self._prompt(question.prompt) for i, question in enumerate(questions) if _is_plan(question)}
        for group in self._groups({i: len(prompt) for i, prompt in asked.items()}):
            written = write(self.decoder, [asked[i] for i in group], self.max_tokens)
            for i, ids in zip(group, written, strict=True):
                plan = plan_of(ids, asked[i].slots)
                text = "" if plan is None else plan_to_text(plan)
                answers[i] = Answer(text, prompt_tokens=len(asked[i]), answer_tokens=sum(token > 0 for token in ids))
        return answers

    def fingerprint(self) -> dict[str, Any]:
        return {
            "model": "tiny",
            "weights": checkpoint.digest(self.decoder.state_dict()),
            "heads": self.decoder.layers[0].heads,
            "max_tokens": self.max_tokens,
        }

    def _prompt(self, text: str) -> Tokens:
        """Without the first demonstrations where all of them are too long: the last ones are the most relevant."""
        demonstrations, caption = read_prompt(text)
        room = self.decoder.length - self.max_tokens
        while True:
            tokens = Tokens()
            for shown, plan in demonstrations:
                tokens.caption(shown)
                tokens.plan(plan)
            tokens.caption(caption)
            if len(tokens) <= room:
                return tokens
            if not demonstrations:
                return Tokens(tokens.ids[: room - 1] + tokens.ids[-1:], tokens.forms[: room - 1] + [0], tokens.slots)
            demonstrations = demonstrations[1:]

    def _groups(self, lengths: dict[int, int]) -> list[list[int]]:
        """Prompts of like length together."""
        groups: list[list[int]] = []
        for i in sorted(lengths, key=lambda i: (lengths[i], i)):
            if not groups or (len(groups[-1]) + 1) * (lengths[i] + self.max_tokens) > self.batch_tokens:
                groups.append([])
            groups[-1].append(i)
        return groups


def read_prompt(text: str) -> tuple[list[tuple[str, Plan]], str]:
    """The demonstrations of a prompt, and the caption that is to be planned. What cannot be read is left out."""
    demonstrations: list[tuple[str, Plan]] = []
    caption = ""
    for line in text.split("\n"):
        name, _, rest = line.partition(":")
        if name == "Sentence":
            try:
                said = json.loads(rest)
            except ValueError:
                continue
            caption = said if isinstance(said, str) else ""
        elif name == "Plan" and rest.strip():
            try:
                demonstrations.append((caption, parse_plan(rest).plan))
            except PlanError:
                log.debug("a demonstration cannot be read: %.200s", rest)
    return demonstrations, caption


def tiny_of_run(*, run: str | None, output_root: str, max_tokens: PositiveInt, batch_tokens: PositiveInt) -> TinyModel:
    """The model of a run of stage=language: the newest complete one, or the one that is named."""
    wanted = None if run in (None, "auto") else run
    found = restore.chosen_run(Path(output_root), wanted, stage="language")
    settings = restore.settings_of(found, needs=("language",))
    decoder = restore.load_network(found, settings, "language")
    return TinyModel(decoder=decoder, max_tokens=max_tokens, batch_tokens=batch_tokens)


def _is_plan(question: Question) -> bool:
    return question.reply is PlanReply
