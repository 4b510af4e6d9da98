"""What a condition is, and how several of them speak to one backbone.

A condition turns a part of the batch into `Controls` and declares the doors it needs. A set of them is encoded once per
clip; which of them a clip hears, in training (dropping) and in sampling (guidance), is decided here and nowhere else.
"""

from __future__ import annotations

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from vdm.bounds import Fraction
from vdm.errors import ConfigError
from vdm.types import Controls, LatentShape, VideoBatch


class Condition(nn.Module, ABC):
    """One thing a clip can be told. `name` is its name in the set, and that of its signal in `batch["extras"]`.

    Args:
        streams: token streams it speaks in, with the width of a token.
        concat_channels: of the map it joins to the latent, 0 for none.
        embed_width: of the vector it adds to the timestep embedding, 0 for none.
        drop_prob: share of training clips that do not hear it, drawn for each condition by itself.
    """

    def __init__(
        self,
        *,
        streams: Mapping[str, int] | None = None,
        concat_channels: int = 0,
        embed_width: int = 0,
        drop_prob: Fraction,
    ):
        super().__init__()
        if not 0 <= drop_prob <= 1:
            raise ConfigError("a share of clips", key="condition.*.drop_prob", got=drop_prob, allowed="0 to 1")
        self.name = ""
        self.streams, self.concat_channels, self.embed_width = dict(streams or {}), concat_channels, embed_width
        self.drop_prob = drop_prob
        self._frozen: list[nn.Module] = []

    @property
    def doors(self) -> tuple[str, ...]:
        """The doors of the backbone it speaks through: its streams, `concat`, `embed`."""
        return (*self.streams, *["concat"] * bool(self.concat_channels), *["embed"] * bool(self.embed_width))

    @abstractmethod
    def encode(self, batch: VideoBatch, shape: LatentShape) -> Controls:
        """What it says about each clip of the batch."""

    @abstractmethod
    def null(self, count: int, shape: LatentShape) -> Controls:
        """What it says when it says nothing, to `count` clips: the same doors, the same widths."""

    def cache(self, batch: VideoBatch, shape: LatentShape) -> dict[str, Tensor]:
        """What can be kept on disk instead of encoding again: arrays `b ...` that `encode` takes from `extras`."""
        return {}

    def fingerprint(self) -> dict[str, Any]:
        """What decides the arrays of `cache`."""
        return {}

    def keep_frozen(self, name: str, network: nn.Module) -> None:
        """Make a network an attribute that no optimizer, average, sharding or checkpoint sees; it follows the device."""
        network.requires_grad_(False).eval()
        object.__setattr__(self, name, network)  # not as nn.Module would, which registers it
        self._frozen.append(network)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Condition:
        super()._apply(fn, recurse)
        for network in self._frozen:  # in its own precision
            network.to(fn(torch.empty(0, device=_device_of(network))).device)
        return self


class ConditionSet(nn.Module):
    """The conditions of a run, by name.

    In training each condition is dropped for each clip with its own probability, after two common draws: a share
    `joint_drop_prob` of the clips hears nothing, a share `joint_keep_prob` hears everything (VideoComposer, Wang et al.
    2023: 0.1 and 0.1). The draws belong to (seed, step, key), not to a batch.
    """

    def __init__(self, *, members: Mapping[str, Condition], joint_drop_prob: Fraction, joint_keep_prob: Fraction):
        super().__init__()
        if joint_drop_prob + joint_keep_prob > 1:
            raise ConfigError(
                "a clip cannot both hear everything and nothing",
                key="joint_drop_prob + joint_keep_prob",
                got=joint_drop_prob + joint_keep_prob,
                allowed="at most 1",
            )
        self.joint_drop_prob, self.joint_keep_prob = joint_drop_prob, joint_keep_prob
        self.members = nn.ModuleDict(dict(members))
        for name, member in self.members.items():
            member.name = name
        self.streams: dict[str, int] = {}
        for name, member in self.members.items():
            for stream, width in member.streams.items():
                _agree(f"the {stream} stream", self.streams.setdefault(stream, width), width, name)
        self.concat_channels = self._common("concat_channels")
        self.embed_width = self._common("embed_width")

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(self.members)

    def trained_modules(self) -> dict[str, nn.Module]:
        """The conditions with something to learn: these alone are averaged and written to checkpoints."""
        return {
            name: member
            for name, member in self.members.items()
            if any(parameter.requires_grad for parameter in member.parameters())
        }

    def forward(self, batch: VideoBatch, shape: LatentShape, *, seed: int, step: int) -> Controls:
        """For training: everything that is said, less what is dropped at this step."""
        return self.encode(batch, shape, dropped=self.dropped(batch["key"], seed, step))

    def encode(self, batch: VideoBatch, shape: LatentShape, *, dropped: Mapping[str, Tensor] | None = None) -> Controls:
        """Every condition once. `dropped` says, by condition, which clips (b) hear its null instead."""
        controls, device = Controls(), _device(batch)
        for name, member in self.members.items():
            said = self._said(name, batch, shape)
            drops = dropped is not None and max(member.drop_prob, self.joint_drop_prob) > 0
            # By what may happen, not by what did: a null that is learned takes part in every step.
            controls = controls + (self._choose(name, said, shape, dropped[name].to(device)) if drops else said)
        return controls

    def dropped(self, keys: Sequence[str], seed: int, step: int) -> dict[str, Tensor]:
        """Which clips do not hear a condition at a training step: `b`, by condition."""
        shared = [draw(key, seed, step) for key in keys]
        drops = {
            name: [
                self._drops(member, both, draw(key, seed, step, name)) for both, key in zip(shared, keys, strict=True)
            ]
            for name, member in self.members.items()
        }
        return {name: torch.tensor(each, dtype=torch.bool) for name, each in drops.items()}

    def controls_for(
        self, batch: VideoBatch, shape: LatentShape, *, instead: Mapping[str, Controls] | None = None
    ) -> Callable[[frozenset[str]], Controls]:
        """For guidance: the controls with only a subset of the conditions said, the others null.

        Each condition is encoded once, when first needed. `instead` replaces the null of a condition, for a negative prompt.
        """
        count, device = len(batch["key"]), _device(batch)
        self._check_names(instead or {})
        said: dict[str, Controls] = {}
        unsaid = {name: self._checked(name, given, count) for name, given in (instead or {}).items()}

        def part(name: str, is_said: bool) -> Controls:
            if is_said:
                if name not in said:
                    said[name] = self._said(name, batch, shape)
                return said[name]
            if name not in unsaid:
                unsaid[name] = self._null(name, count, shape).to(device)
            return unsaid[name]

        def controls(subset: frozenset[str]) -> Controls:
            self._check_names(subset)
            return sum((part(name, name in subset) for name in self.members), Controls())

        return controls

    def cache(self, batch: VideoBatch, shape: LatentShape) -> dict[str, Tensor]:
        """Arrays `b ...` that may be kept and given back in `extras`."""
        parts = [member.cache(batch, shape) for member in self.members.values()]
        return {name: array for part in parts for name, array in part.items()}

    def fingerprint(self) -> dict[str, dict[str, Any]]:
        """What decides the arrays of `cache`, by condition."""
        prints = {name: member.fingerprint() for name, member in self.members.items()}
        return {name: found for name, found in prints.items() if found}

    def _said(self, name: str, batch: VideoBatch, shape: LatentShape) -> Controls:
        return self._checked(name, self.members[name].encode(batch, shape), len(batch["key"]))

    def _null(self, name: str, count: int, shape: LatentShape) -> Controls:
        return self._checked(name, self.members[name].null(count, shape), count)

    def _choose(self, name: str, said: Controls, shape: LatentShape, dropped: Tensor) -> Controls:
        """One null row behind the others, for all that are dropped."""
        both = Controls.cat([said, self._null(name, 1, shape).to(dropped.device)])
        rows = torch.arange(len(dropped), device=dropped.device)
        return both[torch.where(dropped, len(dropped), rows)]

    def _drops(self, member: Condition, shared: float, own: float) -> bool:
        if shared < self.joint_drop_prob:
            return True
        return shared < 1 - self.joint_keep_prob and own < member.drop_prob

    def _common(self, door: str) -> int:
        """Conditions that share a door add up there, so they must be of one width."""
        widths = {name: getattr(member, door) for name, member in self.members.items() if getattr(member, door)}
        for name, width in widths.items():
            _agree(door, next(iter(widths.values())), width, name)
        return next(iter(widths.values()), 0)

    def _check_names(self, names: Iterable[str]) -> None:
        unknown = sorted(set(names) - set(self.members))
        if unknown:
            raise ConfigError(
                "guidance names a condition this model does not have",
                key="guidance",
                got=", ".join(unknown),
                allowed=list(self.members) or "none: the model is unconditional",
            )

    def _checked(self, name: str, controls: Controls, count: int) -> Controls:
        member = self.members[name]
        declared = (member.streams, member.concat_channels, member.embed_width)
        given = (
            {stream: tokens.values.shape[-1] for stream, tokens in controls.tokens.items()},
            0 if controls.concat is None else controls.concat.shape[1],
            0 if controls.embed is None else controls.embed.shape[-1],
        )
        assert given == declared, f"{name} declared the doors {declared} and speaks through {given}"
        assert len(controls) == count, f"{name} speaks to {len(controls)} clips of {count}"
        return controls


def draw(key: str, seed: int, step: int, name: str = "") -> float:
    """A number in [0, 1) that belongs to a clip, a step and a condition (or to all of them, without a name)."""
    parts = "".join(f"{len(str(part))}:{part}" for part in ("drop", seed, step, name, key))
    digest = hashlib.blake2b(parts.encode("utf-8", "surrogatepass"), digest_size=8).digest()
    return (int.from_bytes(digest, "big") >> 11) / (1 << 53)


def _agree(door: str, first: int, width: int, name: str) -> None:
    if first != width:
        raise ConfigError(
            f"two conditions speak through {door} in different widths",
            key=f"condition.{name}",
            got=width,
            allowed=str(first),
        )


def _device(batch: VideoBatch) -> torch.device:
    found = [batch[name].device for name in ("latent", "video", "fps") if name in batch]
    return found[0] if found else torch.device("cpu")


def _device_of(network: nn.Module) -> torch.device:
    return next((tensor.device for tensor in (*network.parameters(), *network.buffers())), torch.device("cpu"))
