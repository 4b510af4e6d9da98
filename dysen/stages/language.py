"""stage=language: the small decoder learns to plan captions, and to look up verbs it does not know in its demonstrations."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from dysen.action_plan import Plan
from dysen.icl.rewards import is_exact
from dysen.tiny.decoder import Decoder
from dysen.tiny.lessons import HINTS, IGNORED, LessonBatch, batch_of
from dysen.tiny.vocabulary import CAPTION, PLAN, Tokens, plan_of
from dysen.tiny.writing import write
from vdm.bounds import NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt
from vdm.stages.base import Stage

ROOM = 128  # tokens of an answer in validation


class LanguageStage(Stage):
    """Reads sequences of lessons, `batch["extras"]["lessons"]`; the last one of each is the query in validation."""

    def __init__(
        self,
        *,
        name: str,
        language: Decoder,
        hint_weight: NonNegativeFloat,
        optimizer: Callable[[Iterable], Optimizer],
        scheduler: Callable[[Optimizer], LRScheduler] | None,
        grad_clip: PositiveFloat | None,
        accumulate: PositiveInt,
        max_skipped: PositiveInt,
        seed: NonNegativeInt,
    ):
        super().__init__(
            name=name,
            optimizer=optimizer,
            scheduler=scheduler,
            grad_clip=grad_clip,
            accumulate=accumulate,
            max_skipped=max_skipped,
            seed=seed,
        )
        self.language, self.hint_weight = language, hint_weight
        width = language.embed.embedding_dim
        self.hints = nn.Linear(width, HINTS * width, bias=False)  # only for training

    def averaged(self) -> dict[str, nn.Module]:
        return {"language": self.language}

    def parameter_groups(self) -> list[dict[str, Any]]:
        """Embeddings and the head are tables of words, no matrices."""
        inner = list(self.language.layers.parameters())
        chosen = {id(p) for p in inner}
        tables = [p for p in self.parameters() if id(p) not in chosen]
        return [{"params": inner, "matrices": True}, {"params": tables, "weight_decay": 0.0}]

    def losses(self, batch: dict[str, Any]) -> dict[str, Tensor]:
        lessons = batch_of(batch["extras"]["lessons"], self.language.length).to(self.device)
        wanted = lessons.wanted[:, 1:]
        layers, counted = self.language.after_layers(lessons.ids, lessons.forms)  # b n d each
        scores = self.language.scores(layers, lessons.ids)[:, :-1][wanted]
        true = lessons.ids[:, 1:][wanted]
        right = (scores.argmax(-1) == true).float()
        new = lessons.explained[:, 1:][wanted].float()
        middle = self.language.middle
        hints = self._hint_loss(layers[middle - 1], lessons.hints)
        verbs = self._verb_loss(layers[middle - 1], lessons.verbs)
        terms = torch.stack([F.cross_entropy(scores, true), hints, verbs, _count_loss(counted.scores, lessons)])
        plans, hints, verbs, counts = terms * self._shares(lessons, like=terms)
        return {
            "loss": plans + self.hint_weight * (hints + verbs + counts),
            "plans": plans,
            "hints": hints,
            "verbs": verbs,
            "counts": counts,
            "tokens_right": right.mean(),
            "new_verbs_right": (right * new).sum() / new.sum().clamp(min=1),  # of those that a demonstration explains
        }

    def _shares(self, lessons: LessonBatch, like: Tensor) -> Tensor:
        """What the means of this process, over so many tokens, count in those of all: their mean is then one over all tokens."""
        if not self.training or self._trainer is None or self._trainer.world_size == 1:
            return torch.ones_like(like)
        sizes = (
            lessons.wanted[:, 1:].sum(),
            (lessons.hints[:, 2:] != IGNORED).sum(),
            len(lessons.verbs),
            _inside(lessons).sum(),
        )
        own = torch.tensor([float(size) for size in sizes], device=like.device)
        return own / self.trainer.strategy.reduce(own.clone(), reduce_op="mean").clamp(min=1e-6)

    def _hint_loss(self, read: Tensor, hints: Tensor) -> Tensor:
        """At each verb of a caption its event is known, except what a new verb means. Without this, finding the event that
        belongs to a part of a plan is learned late.
        """
        guessed = self.hints(read[hints[:, 0], hints[:, 1]]).unflatten(-1, (HINTS, -1))  # k hints d
        scores = self.language.head(guessed).float().flatten(0, 1)
        return F.cross_entropy(scores, hints[:, 2:].flatten(), ignore_index=IGNORED)

    def _verb_loss(self, read: Tensor, verbs: Tensor) -> Tensor:
        """Before each predicate of a plan the verb that tells it is known: by it a new one is looked up."""
        scores = self.language.head(self.language.lookup.name(read[verbs[:, 0], verbs[:, 1]])).float()
        return F.cross_entropy(scores, verbs[:, 2], reduction="sum") / max(len(verbs), 1)

    @torch.no_grad()
    def validation_losses(self, batch: dict[str, Any]) -> dict[str, Tensor]:
        """The loss, and whether the query of each sequence is planned exactly."""
        plans = self.plans(batch["extras"]["lessons"])
        gold = [Plan.from_json(lessons[-1]["plan"]) for lessons in batch["extras"]["lessons"]]
        exact = [is_exact(plan, true) for plan, true in zip(plans, gold, strict=True)]
        return self.losses(batch) | {"exact": torch.tensor(exact, dtype=torch.float32, device=self.device)}

    def plans(self, sequences: list[list[dict[str, Any]]]) -> list[Plan | None]:
        """What is planned for the last caption of each sequence, with the lessons before it as demonstrations."""
        prompts = []
        for lessons in sequences:
            tokens = Tokens()
            for lesson in lessons[:-1]:
                tokens.caption(lesson["caption"])
                tokens.plan(Plan.from_json(lesson["plan"]))
            tokens.caption(lessons[-1]["caption"])
            prompts.append(tokens)
        room = min(ROOM, self.language.length - max(map(len, prompts)))
        return [
            plan_of(ids, prompt.slots)
            for ids, prompt in zip(write(self.language, prompts, max(room, 1)), prompts, strict=True)
        ]


def _count_loss(scores: Tensor, lessons: LessonBatch) -> Tensor:
    """Which tokens of a caption are verbs that tell an event."""
    is_verb = torch.zeros_like(scores)
    is_verb[lessons.hints[:, 0], lessons.hints[:, 1]] = 1.0
    inside = _inside(lessons)
    return 10 * F.binary_cross_entropy_with_logits(scores[inside], is_verb[inside])


def _inside(lessons: LessonBatch) -> Tensor:
    """b n: tokens of captions."""
    return (lessons.ids == CAPTION).cumsum(1) > (lessons.ids == PLAN).cumsum(1)
