"""What the two ways of stage=planner share: plans are compared with the truth, rewarded, and counted by epochs."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from dysen.action_plan import Plan
from dysen.demonstrations import Demonstration, Pool, load_pool
from dysen.icl.reinforce import RunningMean
from dysen.icl.rewards import Outcome, RewardTerm, is_exact, order_accuracy, plan_f1, rewards
from dysen.planner import Planned
from dysen.scene_graph import DynamicSceneGraph
from vdm.bounds import PositiveFloat, PositiveInt
from vdm.errors import ConfigError
from vdm.stages.base import Stage


class PlanningStage(Stage):
    """Batches bring `caption` and, as extras, the true `plan`; where they have them, `scene_graphs` and the `video` serve as
    truths of their terms.
    """

    def __init__(
        self,
        *,
        name: str,
        terms: Mapping[str, RewardTerm | None],
        optimizer: Callable[[Iterable], Optimizer],
        scheduler: Callable[[Optimizer], LRScheduler] | None,
        grad_clip: PositiveFloat | None,
        accumulate: PositiveInt,
        max_skipped: PositiveInt,
        seed: int,
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
        self.epoch = RunningMean()

    def outcomes(self, batch: dict[str, Any], planned: Sequence[Planned], *, is_imagined: bool) -> list[Outcome]:
        """Plans of the captions of a batch beside the truth; where there are more plans than captions, a caption's own
        stand together.
        """
        times = len(planned) // len(batch["caption"])
        extras, nothing = batch["extras"], [None] * len(batch["caption"])
        graphs, videos = extras.get("scene_graphs") or nothing, batch.get("video", nothing)
        truths = [
            truth for truth in zip(extras["plan"], graphs, videos, batch["key"], strict=True) for _ in range(times)
        ]
        return [
            Outcome(
                caption=one.caption,
                gold=Plan.from_json(plan),
                plan=one.plan,
                gold_dsg=None if graph is None else DynamicSceneGraph.from_json(graph),
                dsg=one.dsg if is_imagined else None,
                video=video,
                key=key,
                extras={name: values[i // times] for name, values in extras.items()},
            )
            for i, (one, (plan, graph, video, key)) in enumerate(zip(planned, truths, strict=True))
        ]

    def rewarded(self, outcomes: Sequence[Outcome]) -> tuple[Tensor, dict[str, Tensor]]:
        """b: the reward, and each of its terms."""
        total, parts = rewards(self.terms, outcomes)
        return self.numbers(total), {name: self.numbers(values) for name, values in parts.items()}

    def of_all_ranks(self, values: Tensor) -> Tensor:
        """What each rank has as many of, rank by rank."""
        alone = self._trainer is None or self.trainer.world_size == 1
        return values if alone else self.all_gather(values).flatten(0, 1)

    def measured(self, outcomes: Sequence[Outcome]) -> dict[str, Tensor]:
        """b each: reward, terms and metrics; `loss` is what is missing to the full reward."""
        total, parts = self.rewarded(outcomes)
        metrics = {"exact": is_exact, "f1": plan_f1, "order": order_accuracy}
        found = {key: self.numbers([score(o.plan, o.gold) for o in outcomes]) for key, score in metrics.items()}
        return {"loss": 1 - total, "reward": total} | parts | found

    def compared(self, name: str, measure: Callable[[dict[str, Any]], dict[str, Tensor]]) -> None:
        """Reports what is measured on the validation captions under `val/<name>_`."""
        means = self.means(self.batches(self.trainer.datamodule.val_dataloader()), measure)
        self.report({f"val/{name}_{key}": value for key, value in means.items()}, reduce=False)

    def note_epoch(self, reward: Tensor) -> None:
        """The mean reward of each pass over the training captions, where they end. One number for each caption of all ranks."""
        self.epoch.add(reward)
        source = getattr(getattr(self.trainer, "datamodule", None), "source", None)
        size = getattr(source, "sizes", {}).get("train")  # clips come without an end
        if size and int(self.epoch.count) >= size:
            self.report({"epoch/reward": self.epoch.value})
            self.epoch.clear()

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        super().on_save_checkpoint(checkpoint)
        checkpoint["terms"] = {name: term.state() for name, term in self.terms.items()}

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        super().on_load_checkpoint(checkpoint)
        for name, term in self.terms.items():
            term.load_state(checkpoint.get("terms", {}).get(name, {}))

    def numbers(self, values: Sequence[float]) -> Tensor:
        return torch.tensor(values, dtype=torch.float32, device=self.device)


def pool_of(*, source: Any, path: str | None) -> Pool:
    """The candidates of a source of captions, `source.pool()`, or of a jsonl file."""
    if path is not None:
        return load_pool(path)
    if source is None:
        remedy = "name a file: python -m dysen.plan data=<data> write_pool=<number> writes one"
        raise ConfigError("clips bring no pool of demonstrations", key="stage.pool.path", got="null", remedy=remedy)
    return tuple(Demonstration.from_json(one) for one in source.pool())
