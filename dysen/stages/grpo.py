"""stage=planner planner.tune=grpo: a LoRA of a local language model learns to plan, by group-relative policy optimisation."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
import torch.distributed as distributed
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from dysen.demonstrations import Selector
from dysen.icl.grpo import Group, clipped_loss, graded, group_advantages, mean_of_answers, with_gradients
from dysen.icl.rewards import Outcome, RewardTerm
from dysen.imagination import Question
from dysen.llm.adapter import Adapter
from dysen.llm.base import Answer, LanguageModel
from dysen.llm.local import TransformersModel
from dysen.llm.log_probs import Drawn, distributions, divergence
from dysen.names import clean
from dysen.planner import Planner
from dysen.replies import PlanReply
from dysen.stages.planning import PlanningStage
from vdm.bounds import NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt
from vdm.diffusion.noise import generator_for
from vdm.errors import ConfigError, RunError


class Drawing(LanguageModel):
    """Asks a local model at a temperature, and keeps what was drawn for plans."""

    worth_caching = False

    def __init__(self, *, llm: TransformersModel):
        self.llm, self.temperature, self.seed = llm, 0.0, 0
        self.drawn: list[Drawn | None] = []

    def answer(self, questions: Sequence[Question]) -> list[Answer]:
        found = self.llm.draw(questions, temperature=self.temperature, seed=self.seed)
        self.drawn += [
            drawn for question, (_, drawn) in zip(questions, found, strict=True) if question.reply is PlanReply
        ]
        return [answer for answer, _ in found]

    def fingerprint(self) -> dict[str, Any]:
        return self.llm.fingerprint()


class GrpoStage(PlanningStage):
    """Trains the adapter and nothing else; with it switched off, the same model is the frozen one.

    Args:
        selector: of the demonstrations, which are those of planning and are not learned here.
        adapter: what is put into the model.
        group_size: plans that are drawn for each caption.
        temperature: at which they are drawn, and at which all probabilities are meant.
        clip: how far the probability of a draw may move from what it was drawn with, in the wanted direction.
        kl_weight: of the divergence of the frozen model from this one; 0 leaves it unmeasured.
        normalise: rewards in units of their spread in a group.
        reuse: further steps that learn from the plans of a step, each at another ratio.
        compare: measure the frozen model at the end.
    """

    def __init__(
        self,
        *,
        name: str,
        planner: Callable[..., Planner],
        selector: Selector,
        adapter: Callable[..., Adapter],
        terms: Mapping[str, RewardTerm | None],
        group_size: PositiveInt,
        temperature: PositiveFloat,
        clip: PositiveFloat,
        kl_weight: NonNegativeFloat,
        normalise: bool,
        reuse: NonNegativeInt,
        compare: bool,
        optimizer: Callable[[Iterable], Optimizer],
        scheduler: Callable[[Optimizer], LRScheduler] | None,
        grad_clip: PositiveFloat | None,
        accumulate: PositiveInt,
        max_skipped: PositiveInt,
        seed: NonNegativeInt,
    ):
        super().__init__(
            name=name,
            terms=terms,
            optimizer=optimizer,
            scheduler=scheduler,
            grad_clip=grad_clip,
            accumulate=accumulate,
            max_skipped=max_skipped,
            seed=seed,
        )
        self.planner = planner(selector=selector)
        self.drawing = self.planner.llm = Drawing(llm=_local(self.planner))
        if group_size < 2:
            raise ConfigError("plans are judged against each other", key="stage.group_size", got=group_size,
                              allowed=">= 2")  # fmt: skip
        if any(term.is_of_batch and term.weight for term in self.terms.values()):
            raise ConfigError("one score for a whole batch says nothing of a plan beside another", key="stage.terms",
                              got="frechet", allowed="scores of each plan, such as stage/terms=video")  # fmt: skip
        self.adapter = adapter(model=self.llm.model, base=self.llm.weights)
        self.group_size, self.temperature, self.clip = group_size, temperature, clip
        self.kl_weight, self.normalise, self.reuse, self.compare = kl_weight, normalise, reuse, compare
        self._kept: list[list[Group]] = []  # of the last batches, the newest at the end

    @property
    def llm(self) -> TransformersModel:
        return self.drawing.llm

    def averaged(self) -> dict[str, nn.Module]:
        return {"adapter": self.adapter}

    def on_fit_start(self) -> None:
        if self.device.type != self.llm.model.device.type:
            raise ConfigError("model and training are on two devices", key="llm.device", got=self.llm.model.device.type,
                              allowed=self.device.type, remedy="set llm.device or trainer alike")  # fmt: skip

    def losses(self, batch: dict[str, Any]) -> dict[str, Tensor]:
        fresh, logged = self._drawn(batch)
        again = [self._kept[-age] for age in self._ages() if age <= len(self._kept)]
        groups = [group for groups in (fresh, *again) for group in groups]
        self._kept = [*self._kept, fresh][-max(self._ages(), default=0) :] if self.reuse else []
        parameters = list(self.adapter.parameters())
        count = self.of_all_ranks(
            self.numbers([len(groups)])
        ).mean()  # the mean over ranks is then that over all groups
        total, gradients = torch.zeros((), device=self.device), [torch.zeros_like(p) for p in parameters]
        parts: dict[str, list[Tensor]] = {
            name: [] for name in self._of_groups()
        }  # ranks log the same, also without a group
        for group in groups:  # one graph at a time: they are large
            loss, of_group = self._group_loss(group)
            value, found = graded(loss / count, parameters)
            total = total + value
            for gradient, part in zip(gradients, found, strict=True):
                gradient += part
            for key, part in of_group.items():
                parts[key].append(part)
        loss = with_gradients(total, parameters, gradients)
        means = {
            key: torch.stack(values).mean() if values else torch.zeros_like(total) for key, values in parts.items()
        }
        return {"loss": loss} | logged | means

    def _of_groups(self) -> list[str]:
        """What is logged of them beside their rewards."""
        return ["clipped", "kl"] if self.kl_weight else ["clipped"]

    def _ages(self) -> list[int]:
        """How many batches ago were drawn what a batch learns from once more."""
        return [self.accumulate * (i + 1) for i in range(self.reuse)]

    @torch.no_grad()
    def _drawn(self, batch: dict[str, Any]) -> tuple[list[Group], dict[str, Tensor]]:
        """Plans for each caption, in groups, and what is logged of them."""
        captions = [caption for caption in batch["caption"] for _ in range(self.group_size)]
        seed = int(torch.randint(2**62, (), generator=generator_for("", self.seed, "plans", self.batches_seen)))
        outcomes, drawn = self._planned(batch, captions, temperature=self.temperature, seed=seed)
        total, parts = self.rewarded(outcomes)
        by_group = total.view(-1, self.group_size)
        groups = [
            Group(tuple(one), group_advantages(rewards, is_normalised=self.normalise))
            for one, rewards in zip(drawn, by_group, strict=True)
            if all(answer is not None for answer in one)
        ]
        self.note_epoch(self.of_all_ranks(by_group.mean(1)))
        valid = self.numbers([outcome.plan is not None for outcome in outcomes])
        lengths = self.numbers([length for group in groups for length in group.lengths] or [0])
        logged = {"reward": total, "spread": by_group.std(1, correction=0), "valid": valid, "draws": lengths}
        return groups, {name: values.mean() for name, values in (logged | parts).items()}

    def _group_loss(self, group: Group) -> tuple[Tensor, dict[str, Tensor]]:
        model, together = self.llm.model, self.llm.shares
        frozen = None
        if self.kl_weight:
            with torch.no_grad(), self.adapter.off():
                frozen = distributions(model, group.drawn, temperature=self.temperature, together=together)
        log_p = distributions(model, group.drawn, temperature=self.temperature, together=together)  # k v
        chosen = torch.cat([one.chosen for one in group.drawn]).to(log_p.device)
        log_prob = log_p.gather(1, chosen[:, None])[:, 0]
        drawn_with = torch.cat([one.log_prob for one in group.drawn]).to(log_p)
        lengths = group.lengths
        advantage = group.advantage.to(log_p).repeat_interleave(torch.tensor(lengths, device=log_p.device))
        loss = mean_of_answers(clipped_loss(log_prob, drawn_with, advantage, self.clip), lengths)
        with torch.no_grad():
            logged = {"clipped": (((log_prob - drawn_with).exp() - 1).abs() > self.clip).float().mean()}
        if frozen is not None:
            kl = mean_of_answers(divergence(log_p, frozen), lengths)
            loss = loss + self.kl_weight * kl
            logged["kl"] = kl.detach()
        return loss, logged

    @torch.no_grad()
    def validation_losses(self, batch: dict[str, Any]) -> dict[str, Tensor]:
        """The likeliest plan; `loss` is what is missing to the full reward."""
        return self.measured(self._planned(batch, batch["caption"], temperature=0.0, seed=0)[0])

    def finish(self, batches: Iterable[dict[str, Any]]) -> None:
        """The frozen model on the same captions; and the adapter in a folder that other programs read."""
        if self.trainer.datamodule is None:
            return
        if self.compare:
            with self.adapter.off():
                self.compared("frozen", self.validation_losses)
        if self.trainer.is_global_zero:
            self.adapter.export(Path(self.trainer.datamodule.run_folder) / "adapter", model=self.llm.name)

    def _planned(
        self, batch: dict[str, Any], captions: Sequence[str], *, temperature: float, seed: int
    ) -> tuple[list[Outcome], list[list[Drawn | None]]]:
        """Outcomes, and what was drawn for each caption of the batch."""
        self.llm.forget()  # the weights are others than at the last time
        self.drawing.temperature, self.drawing.seed, self.drawing.drawn = temperature, seed, []
        planned = self.planner.plan(captions)
        asked = iter(self.drawing.drawn)
        drawn = [
            next(asked) if clean(caption) else None for caption in captions
        ]  # nothing is asked where nothing is said
        size = len(captions) // len(batch["caption"])
        groups = [drawn[i : i + size] for i in range(0, len(drawn), size)]
        return self.outcomes(batch, planned, is_imagined=self.planner.imagination is not None), groups

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        super().on_save_checkpoint(checkpoint)
        kept = [[group.state() for group in groups] for groups in self._kept]
        checkpoint["kept"] = [kept]  # of each rank
        if self._trainer is not None and self.trainer.world_size > 1:
            checkpoint["kept"] = [None] * self.trainer.world_size
            distributed.all_gather_object(checkpoint["kept"], kept)

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        super().on_load_checkpoint(checkpoint)
        if not torch.equal(checkpoint["state_dict"]["adapter.base"], self.adapter.base.cpu()):
            raise RunError("this run tunes another language model, or another version of it", key="llm.model",
                           got=self.llm.name, remedy="restore the model, or start another run with run.id=<name>")  # fmt: skip
        world, rank = (1, 0) if self._trainer is None else (self.trainer.world_size, self.trainer.global_rank)
        self._kept = [[Group.from_state(one) for one in groups] for groups in dealt(checkpoint["kept"], world)[rank]]


def dealt(kept: Sequence[Sequence[Sequence[Any]]], world: int) -> list[list[list[Any]]]:
    """What ranks kept, by batch, for as many ranks as there are now."""
    if len(kept) == world:
        return [list(map(list, batches)) for batches in kept]
    together = [[one for groups in of_ranks for one in groups] for of_ranks in zip(*kept, strict=True)]
    bounds = [[rank * len(groups) // world for rank in range(world + 1)] for groups in together]
    return [
        [groups[at[rank] : at[rank + 1]] for groups, at in zip(together, bounds, strict=True)] for rank in range(world)
    ]


def _local(planner: Planner) -> TransformersModel:
    """The model of a planner that can be tuned with it."""
    llm = planner.llm
    if not isinstance(llm, TransformersModel):
        raise ConfigError("only the weights of a local model can be tuned", key="llm", got=type(llm).__name__,
                          allowed="llm=transformers, and no cache of answers before it")  # fmt: skip
    if planner.retries or planner.fallback != "caption":
        raise ConfigError("a reward belongs to the first answer, and to nobody else's plan", key="stage.planner",
                          got=f"retries={planner.retries}, fallback={planner.fallback}",
                          allowed="retries=0, fallback=caption")  # fmt: skip
    return llm
