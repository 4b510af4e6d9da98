"""Who chooses the demonstrations of a caption by their likeness, or by what a policy has learned from rewards.

The others, none and random ones, need no features and live in `dysen.demonstrations`.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from hydra.utils import instantiate

from dysen.demonstrations import Pool, Selector
from dysen.icl.features import TextFeatures
from dysen.icl.policy import ExamplePolicy, from_bytes
from vdm import checkpoint, restore
from vdm.bounds import NonNegativeInt
from vdm.errors import ConfigError
from vdm.runs import Run


class NearestSelector(Selector):
    """The demonstrations whose captions are most like the caption; never the caption itself."""

    def __init__(self, *, pool: Pool, shots: NonNegativeInt, features: TextFeatures):
        super().__init__(pool=pool, shots=shots)
        self.features = features
        captions = [one.caption for one in self.pool]
        features.fit(captions)
        self._candidates = features(captions)
        self._same = [caption.casefold().split() for caption in captions]

    @torch.no_grad()
    def choose(self, captions: Sequence[str]) -> list[tuple[int, ...]]:
        likeness = self.features(captions) @ self._candidates.T  # b c
        found = []
        for caption, row in zip(captions, likeness, strict=True):
            own = caption.casefold().split()
            # Rounded, so that equal ones stay in the order of the pool on every machine.
            ranked = sorted(
                (-round(float(value), 5), i) for i, value in enumerate(row) if self._same[i] != own
            )  # fmt: skip
            if self.shots > len(ranked):
                raise ConfigError("more demonstrations than the pool has for a caption", key="selector.shots",
                                  got=self.shots, allowed=f"<= {len(ranked)}")  # fmt: skip
            found.append(tuple(i for _, i in reversed(ranked[: self.shots])))
        return found

    def fingerprint(self) -> dict[str, Any]:
        return super().fingerprint() | self.features.fingerprint()


class PolicySelector(Selector):
    """The most probable demonstrations of a trained policy."""

    def __init__(self, *, policy: ExamplePolicy, shots: NonNegativeInt):
        super().__init__(pool=policy.pool, shots=shots)
        self.policy = policy.eval()

    def choose(self, captions: Sequence[str]) -> list[tuple[int, ...]]:
        if not captions:
            return []
        return [tuple(reversed(row)) for row in self.policy.best(captions, self.shots).tolist()]

    def fingerprint(self) -> dict[str, Any]:
        weights = checkpoint.digest({"project": self.policy.project.weight})
        own = {"policy": weights, "covered": self.policy.covered}
        return super().fingerprint() | self.policy.features.fingerprint() | own


def policy_of_run(*, run: str | None, output_root: str, shots: NonNegativeInt | None) -> PolicySelector:
    """The policy of a run of stage=planner with its pool: the newest complete one, or the one that is named.

    Args:
        run: null or auto for the newest.
        output_root: where runs are.
        shots: null for as many as it was trained with.
    """
    found = _planner_run(run, output_root)
    settings = restore.settings_of(found, needs=("stage",))["stage"]
    described = {name: settings[name] for name in ("features", "width", "temperature", "shots")}
    features = restore.checked({"features": described["features"]}, "features", found)
    tensors = checkpoint.network_weights(found.last_checkpoint(), "policy")
    policy = ExamplePolicy(
        pool=from_bytes(tensors["stored_pool"]),
        features=instantiate(features, _convert_="all"),
        width=described["width"],
        temperature=described["temperature"],
        covered=settings.get("covered", 0.0),  # older runs: as published
    )
    checkpoint.load_weights(policy, tensors, source=str(found.folder))
    return PolicySelector(policy=policy, shots=described["shots"] if shots is None else shots)


def pool_of_run(*, run: str | None, output_root: str) -> Pool:
    """The demonstrations that a policy chooses from, for others to choose from as well. `run` as in `policy_of_run`."""
    return from_bytes(
        checkpoint.network_weights(_planner_run(run, output_root).last_checkpoint(), "policy")["stored_pool"]
    )


def _planner_run(run: str | None, output_root: str) -> Run:
    return restore.chosen_run(Path(output_root), None if run in (None, "auto") else run, stage="planner")
