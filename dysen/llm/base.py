"""What a language model is to the planner: it answers a list of questions, each with text, and says who it is."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from dysen.imagination import Question


@dataclass(frozen=True)
class Answer:
    """`text` as it came. `error` says why there is none (a server that gave up); tokens are 0 where nobody counts."""

    text: str
    prompt_tokens: int = 0
    answer_tokens: int = 0
    cached: bool = False
    error: str | None = None


class LanguageModel(ABC):
    """Models may keep weights, connections and caches; they are made once and asked often."""

    worth_caching = True  # False where looking an answer up costs as much as making it

    @abstractmethod
    def answer(self, questions: Sequence[Question]) -> list[Answer]:
        """One answer to each question, in their order. Never raises for a single question: `Answer.error` tells."""

    @abstractmethod
    def fingerprint(self) -> dict[str, Any]:
        """What decides an answer besides the prompt: the model, its weights, the parameters of decoding."""

    def cost(self, prompt_tokens: int, answer_tokens: int) -> float | None:
        """What so many tokens cost in money. None: nothing, or nobody knows."""
        return None

    def close(self) -> None:  # noqa: B027 - most have nothing to let go
        """Let go of connections and processes."""
