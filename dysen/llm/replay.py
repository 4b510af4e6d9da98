"""Recorded answers: a jsonl file with a prompt, the form of its answer and the answer in each line, and who writes one."""

from __future__ import annotations

import hashlib
import json
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from dysen.imagination import Question
from dysen.llm.base import Answer, LanguageModel
from dysen.names import shorten
from dysen.prompts import queried_sentence
from vdm.errors import DataError


class Replay(LanguageModel):
    """Answers what was recorded; a question that nobody asked then is an error."""

    worth_caching = False

    def __init__(self, *, path: str):
        self.path = path
        self._answers, digest = {}, hashlib.sha256()
        try:
            with open(path, "rb") as file:
                for number, line in enumerate(file, start=1):
                    digest.update(line)
                    self._add(number, line)
        except OSError as error:
            remedy = "record some: python -m dysen.plan ... record=<file>"
            raise DataError("no recorded answers", key="llm.path", got=f"{path}: {error}", remedy=remedy) from error
        self._digest = digest.hexdigest()

    def _add(self, number: int, line: bytes) -> None:
        if not line.strip():
            return
        try:
            match json.loads(line):
                case {"prompt": str(prompt), "reply": str(reply), "answer": str(text), **rest}:
                    counts = [int(rest.get(name) or 0) for name in ("prompt_tokens", "answer_tokens")]
                    self._answers[prompt, reply] = Answer(text, *counts)
                    return
            reason = "no prompt, reply and answer"
        except (ValueError, TypeError, RecursionError) as error:
            reason = str(error)
        raise DataError("this line is no recorded answer", key="llm.path", got=f"{self.path}:{number}: {reason}")

    def answer(self, questions: Sequence[Question]) -> list[Answer]:
        return [self._one(question) for question in questions]

    def fingerprint(self) -> dict[str, Any]:
        return {"model": "replay", "answers": self._digest}

    def _one(self, question: Question) -> Answer:
        found = self._answers.get((question.prompt, question.reply.__name__))
        if found is not None:
            return found
        about = f"{question.reply.__name__} for {shorten(queried_sentence(question.prompt))!r}"
        return Answer("", error=f"no recorded answer in {self.path}: {about}")


class Recorder(LanguageModel):
    """Asks `llm` and appends its answers to a file that `Replay` reads. Errors are not recorded."""

    def __init__(self, *, llm: LanguageModel, path: str):
        self.llm, self.path = llm, Path(path)
        self.worth_caching = llm.worth_caching
        self._lock = threading.Lock()

    def answer(self, questions: Sequence[Question]) -> list[Answer]:
        answers = self.llm.answer(questions)
        lines = [
            json.dumps({
                "prompt": question.prompt, "reply": question.reply.__name__, "answer": answer.text,
                "prompt_tokens": answer.prompt_tokens, "answer_tokens": answer.answer_tokens,
            })
            for question, answer in zip(questions, answers, strict=True) if answer.error is None
        ]  # fmt: skip
        try:
            with self._lock:
                self.path.parent.mkdir(parents=True, exist_ok=True)
                with open(self.path, "a", encoding="ascii") as file:
                    file.write("".join(f"{line}\n" for line in lines))
        except OSError as error:
            raise DataError("answers cannot be recorded", key="record", got=f"{self.path}: {error}") from error
        return answers

    def fingerprint(self) -> dict[str, Any]:
        return self.llm.fingerprint()

    def cost(self, prompt_tokens: int, answer_tokens: int) -> float | None:
        return self.llm.cost(prompt_tokens, answer_tokens)

    def close(self) -> None:
        self.llm.close()


def recorded(llm: LanguageModel, path: str | None) -> LanguageModel:
    """The model, its answers written to `path` where there is one."""
    return llm if path is None else Recorder(llm=llm, path=path)
