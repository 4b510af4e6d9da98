"""stage=planner: the example policy learns by REINFORCE which demonstrations make a frozen language model plan well."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from dysen.demonstrations import Pool, RandomSelector, Selector
from dysen.icl.features import TextFeatures
from dysen.icl.policy import ExamplePolicy
from dysen.icl.reinforce import MovingBaseline, advantages, policy_loss
from dysen.icl.rewards import Outcome, RewardTerm
from dysen.icl.selectors import NearestSelector, PolicySelector
from dysen.planner import Planner
from dysen.stages.planning import PlanningStage
from vdm.bounds import Fraction, NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt
from vdm.diffusion.noise import generator_for
from vdm.errors import ConfigError


class Drawn(Selector):
    """Shows what was drawn for each caption, which is not the same every time."""

    def __init__(self, *, pool: Pool, shots: NonNegativeInt):
        super().__init__(pool=pool, shots=shots)
        self.drawn: list[tuple[int, ...]] = []

    def choose(self, captions: Sequence[str]) -> list[tuple[int, ...]]:
        assert len(captions) == len(self.drawn), "a choice for each caption"
        return self.drawn


class PlannerStage(PlanningStage):
    """Trains the policy and nothing else."""

    def __init__(
        self,
        *,
        name: str,
        planner: Callable[..., Planner],
        pool: Pool,
        features: TextFeatures,
        width: PositiveInt,
        temperature: PositiveFloat,
        covered: Fraction,
        shots: PositiveInt,
        terms: Mapping[str, RewardTerm | None],
        baseline: MovingBaseline,
        normalise: bool,
        entropy_weight: NonNegativeFloat,
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
        self.policy = ExamplePolicy(pool=pool, features=features, width=width, temperature=temperature, covered=covered)
        self.drawn = Drawn(pool=pool, shots=shots)
        self.planner = planner(selector=self.drawn)
        self.baseline, self.normalise, self.entropy_weight = baseline, normalise, entropy_weight
        self.compare = compare

    def on_fit_start(self) -> None:
        parts = [name for name, term in self.terms.items() if term.is_of_batch and term.weight]
        if parts and self.trainer.world_size > 1:
            raise ConfigError("one score for a whole batch is of the batch of one process", key="stage.terms", got=parts,
                              remedy="set trainer.devices=1, or take scores of each plan, such as stage/terms=video")  # fmt: skip

    @property
    def shots(self) -> int:
        return self.drawn.shots

    def parameter_groups(self) -> list[dict[str, Any]]:
        return [{"params": list(self.policy.parameters())}]

    def averaged(self) -> dict[str, nn.Module]:
        return {"policy": self.policy}

    def losses(self, batch: dict[str, Any]) -> dict[str, Tensor]:
        captions = batch["caption"]
        # Of the clip and the step, so that several processes draw what one does.
        random = [generator_for(key, self.seed, "shots", self.batches_seen) for key in batch["key"]]
        choice = self.policy.draw(captions, self.shots, random)
        outcomes = self._planned(batch, [tuple(reversed(row)) for row in choice.positions.tolist()])
        total, parts = self.rewarded(outcomes)
        entropy = self.policy.entropy(captions).mean()
        everyone = self.of_all_ranks(total)
        advantage = advantages(everyone, self.baseline.value, is_normalised=self.normalise)
        advantage = advantage.view(self.trainer.world_size, -1)[self.trainer.global_rank]
        loss = policy_loss(choice.log_prob, advantage) - self.entropy_weight * entropy
        logged = {"reward": total.mean(), "baseline": self.baseline.value.clone(), "entropy": entropy}
        self.baseline.update(everyone)
        self.note_epoch(everyone)
        return {"loss": loss} | logged | {name: values.mean() for name, values in parts.items()}

    @torch.no_grad()
    def validation_losses(self, batch: dict[str, Any]) -> dict[str, Tensor]:
        """The greedy choice; `loss` is what is missing to the full reward."""
        return self._measured(batch, PolicySelector(policy=self.policy, shots=self.shots))

    def finish(self, batches: Iterable[dict[str, Any]]) -> None:
        """The same captions with the nearest and with random demonstrations, for comparison."""
        if not self.compare or self.trainer.datamodule is None:
            return
        pool, shots, features = self.drawn.pool, self.shots, self.policy.features
        nearest = NearestSelector(pool=pool, shots=shots, features=features)
        self.compared("nearest", lambda batch: self._measured(batch, nearest))
        anything = RandomSelector(pool=pool, shots=shots, seed=self.seed)
        self.compared("random", lambda batch: self._measured(batch, anything))

    def _planned(self, batch: dict[str, Any], chosen: list[tuple[int, ...]]) -> list[Outcome]:
        """What is planned for the captions of a batch with these demonstrations, beside the truth."""
        self.drawn.drawn = chosen
        planned = self.planner.plan(batch["caption"])
        return self.outcomes(batch, planned, is_imagined=self.planner.imagination is not None)

    def _measured(self, batch: dict[str, Any], selector: Selector) -> dict[str, Tensor]:
        """b each."""
        return self.measured(self._planned(batch, selector.choose(batch["caption"])))
