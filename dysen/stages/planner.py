"""stage=planner: the example policy learns by REINFORCE which demonstrations make a frozen language model plan well."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from dysen.action_plan import Plan
from dysen.demonstrations import Demonstration, Pool, RandomSelector, Selector
from dysen.icl.features import TextFeatures
from dysen.icl.policy import ExamplePolicy
from dysen.icl.reinforce import MovingBaseline, RunningMean, advantages, policy_loss
from dysen.icl.rewards import Outcome, RewardTerm, is_exact, order_accuracy, plan_f1, rewards
from dysen.icl.selectors import NearestSelector, PolicySelector
from dysen.planner import Planner
from dysen.scene_graph import DynamicSceneGraph
from vdm.bounds import NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt
from vdm.errors import ConfigError
from vdm.stages.base import Stage


class Drawn(Selector):
    """Shows what was drawn for each caption, which is not the same every time."""

    def __init__(self, *, pool: Pool, shots: NonNegativeInt):
        super().__init__(pool=pool, shots=shots)
        self.drawn: list[tuple[int, ...]] = []

    def choose(self, captions: Sequence[str]) -> list[tuple[int, ...]]:
        assert len(captions) == len(self.drawn), "a choice for each caption"
        return self.drawn


class PlannerStage(Stage):
    """Trains the policy and nothing else. Batches bring `caption` and, as extras, the true `plan`; where they have them,
    `scene_graphs` and the `video` serve as truths of their terms.
    """

    def __init__(
        self,
        *,
        name: str,
        planner: Callable[..., Planner],
        pool: Pool,
        features: TextFeatures,
        width: PositiveInt,
        temperature: PositiveFloat,
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
            optimizer=optimizer,
            scheduler=scheduler,
            grad_clip=grad_clip,
            accumulate=accumulate,
            max_skipped=max_skipped,
            seed=seed,
        )
        self.terms = {key: term for key, term in terms.items() if term is not None}
        if not sum(term.weight for term in self.terms.values()) > 0:
            remedy = "give one of them a weight, such as stage.terms.reliability.weight=1"
            raise ConfigError("no reward has a weight", key="stage.terms", got=sorted(self.terms), remedy=remedy)
        self.policy = ExamplePolicy(pool=pool, features=features, width=width, temperature=temperature)
        self.drawn = Drawn(pool=pool, shots=shots)
        self.planner = planner(selector=self.drawn)
        self.baseline, self.normalise, self.entropy_weight = baseline, normalise, entropy_weight
        self.epoch = RunningMean()
        self.compare = compare

    @property
    def shots(self) -> int:
        return self.drawn.shots

    def parameter_groups(self) -> list[dict[str, Any]]:
        return [{"params": list(self.policy.parameters())}]

    def averaged(self) -> dict[str, nn.Module]:
        return {"policy": self.policy}

    def losses(self, batch: dict[str, Any]) -> dict[str, Tensor]:
        captions = batch["caption"]
        choice = self.policy.draw(captions, self.shots)
        outcomes = self.outcomes(batch, [tuple(reversed(row)) for row in choice.positions.tolist()])
        total, parts = self._rewards(outcomes)
        entropy = self.policy.entropy(captions).mean()
        advantage = advantages(total, self.baseline.value, is_normalised=self.normalise)
        loss = policy_loss(choice.log_prob, advantage) - self.entropy_weight * entropy
        logged = {"reward": total.mean(), "baseline": self.baseline.value.clone(), "entropy": entropy}
        self.baseline.update(total)
        self._note_epoch(total)
        return {"loss": loss} | logged | {name: values.mean() for name, values in parts.items()}

    def _note_epoch(self, reward: Tensor) -> None:
        """The mean reward of each pass over the training captions, where they end."""
        self.epoch.add(reward)
        source = getattr(getattr(self.trainer, "datamodule", None), "source", None)
        size = source.sizes["train"] if source is not None else None
        if size and int(self.epoch.count) * self.trainer.world_size >= size:
            self.report({"epoch/reward": self.epoch.value})
            self.epoch.clear()

    @torch.no_grad()
    def validation_losses(self, batch: dict[str, Any]) -> dict[str, Tensor]:
        """The greedy choice; `loss` is what is missing to the full reward."""
        return self._measured(batch, PolicySelector(policy=self.policy, shots=self.shots))

    def finish(self, batches: Iterable[dict[str, Any]]) -> None:
        """The same captions with the nearest and with random demonstrations, for comparison."""
        if not self.compare or self.trainer.datamodule is None:
            return
        pool, shots, features = self.drawn.pool, self.shots, self.policy.features
        others = {
            "nearest": NearestSelector(pool=pool, shots=shots, features=features),
            "random": RandomSelector(pool=pool, shots=shots, seed=self.seed),
        }
        for name, selector in others.items():
            found: dict[str, list[Tensor]] = {}
            for batch in self.batches(self.trainer.datamodule.val_dataloader()):
                for key, values in self._measured(batch, selector).items():
                    found.setdefault(key, []).append(values)
            self.report({f"val/{name}_{key}": torch.cat(values).mean() for key, values in found.items()})

    def outcomes(self, batch: dict[str, Any], chosen: list[tuple[int, ...]]) -> list[Outcome]:
        """What is planned for the captions of a batch with these demonstrations, beside the truth."""
        self.drawn.drawn = chosen
        planned = self.planner.plan(batch["caption"])
        extras = batch["extras"]
        graphs = extras.get("scene_graphs") or [None] * len(planned)
        videos = batch.get("video", [None] * len(planned))
        return [
            Outcome(
                caption=one.caption,
                gold=Plan.from_json(plan),
                plan=one.plan,
                gold_dsg=None if graph is None else DynamicSceneGraph.from_json(graph),
                dsg=one.dsg if self.planner.imagination is not None else None,
                video=video,
            )
            for one, plan, graph, video in zip(planned, extras["plan"], graphs, videos, strict=True)
        ]

    def _rewards(self, outcomes: Sequence[Outcome]) -> tuple[Tensor, dict[str, Tensor]]:
        total, parts = rewards(self.terms, outcomes)
        return self._tensor(total), {name: self._tensor(values) for name, values in parts.items()}

    def _measured(self, batch: dict[str, Any], selector: Selector) -> dict[str, Tensor]:
        """b each."""
        outcomes = self.outcomes(batch, selector.choose(batch["caption"]))
        total, parts = self._rewards(outcomes)
        metrics = {"exact": is_exact, "f1": plan_f1, "order": order_accuracy}
        measured = {key: self._tensor([score(o.plan, o.gold) for o in outcomes]) for key, score in metrics.items()}
        return {"loss": 1 - total, "reward": total} | parts | measured

    def _tensor(self, values: Sequence[float]) -> Tensor:
        return torch.tensor(values, dtype=torch.float32, device=self.device)


def pool_of(*, source: Any) -> Pool:
    """The candidates of a source of captions, `source.pool()`."""
    return tuple(Demonstration.from_json(one) for one in source.pool())
