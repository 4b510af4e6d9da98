"""What of a model is trained when it goes on from a parent: all of it, its layers along time, or small matrices beside it.

What the parent did not have, such as a condition that is named on top, is trained in every case.
"""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from fnmatch import fnmatchcase

import torch
from torch import nn

from vdm.backbones.stable_diffusion import temporal_keys
from vdm.bounds import Fraction, PositiveFloat, PositiveInt
from vdm.errors import ConfigError

Networks = Mapping[str, nn.Module]
New = Mapping[str, Sequence[str]]  # by network, how the names of tensors begin that the parent did not have


class Tuning(ABC):
    """`scale` of low-rank matrices, where the checkpoints of a run hold these and not the weights beside them."""

    needs_parent = True  # also when a run goes on
    scale: float | None = None

    @abstractmethod
    def apply(self, networks: Networks, new: New) -> None:
        """Leave gradients to what is trained. The networks hold the weights of the parent."""


class Full(Tuning):
    """Everything: backbone, and what is trained of the conditions."""

    needs_parent = False

    def apply(self, networks: Networks, new: New) -> None:
        pass


class Temporal(Tuning):
    """The layers along time. How a single frame looks stays, to the bit, what the parent made of it."""

    def apply(self, networks: Networks, new: New) -> None:
        backbone = networks["backbone"]
        along_time = temporal_keys(backbone)
        if not along_time:
            raise ConfigError("this backbone has no layers along time", key="stage.tuning", got="temporal",
                              remedy="set stage/tuning=full or stage/tuning=lora")  # fmt: skip
        for network in networks.values():
            network.requires_grad_(False)
        _learn(networks, new)
        _learn({"backbone": backbone}, {"backbone": along_time})


class Lora(Tuning):
    """Low-rank matrices beside linear layers and convolutions (Hu et al., 2022).

    Args:
        layers: patterns of names as `backbone.down.0.cells.0.spatial.proj_in`; * stands for anything. Those of conditions
            begin with `conditions.members.<name>`.
        rank: of the matrices.
        alpha: their product counts alpha / rank times.
        dropout: of what they read.
    """

    def __init__(self, *, layers: Sequence[str], rank: PositiveInt, alpha: PositiveFloat, dropout: Fraction):
        self.layers, self.rank, self.alpha, self.dropout = tuple(layers), rank, alpha, dropout
        self.scale = alpha / rank

    def apply(self, networks: Networks, new: New) -> None:
        chosen = self._chosen(networks, new)
        for name, network in networks.items():
            network.requires_grad_(False)
            if chosen[name]:
                self._put_into(network, chosen[name])
        _learn(networks, new)

    def _chosen(self, networks: Networks, new: New) -> dict[str, list[str]]:
        """Names of layers, by network. A pattern that means nothing is an error."""
        layers = {
            f"{name}.{layer}": (name, layer)
            for name, network in networks.items()
            for layer, module in network.named_modules()
            if type(module) in (nn.Linear, nn.Conv2d) and not f"{layer}.weight".startswith(tuple(new.get(name, ())))
        }
        matches = {pattern: [full for full in layers if fnmatchcase(full, pattern)] for pattern in self.layers}
        lost = [pattern for pattern, found in matches.items() if not found]
        if lost or not self.layers:
            allowed = f"patterns of {len(layers)} names, such as {', '.join(list(layers)[::97][:4])}"
            raise ConfigError(
                "no layer has such a name", key="stage.tuning.layers", got=lost[0] if lost else "none", allowed=allowed
            )
        wanted = {full for found in matches.values() for full in found}
        chosen = [pair for full, pair in layers.items() if full in wanted]
        return {network: [layer for name, layer in chosen if name == network] for network in networks}

    def _put_into(self, network: nn.Module, layers: Sequence[str]) -> None:
        try:
            from peft import LoraConfig, inject_adapter_in_model
        except ImportError:
            remedy = "pip install -e .[llm], or set stage/tuning=full"
            raise ConfigError("a LoRA needs the package peft", key="stage.tuning", remedy=remedy) from None
        config = LoraConfig(
            r=self.rank,
            lora_alpha=self.alpha,
            lora_dropout=self.dropout,
            # One pattern is matched with whole names, a list would be with their ends.
            target_modules="|".join(map(re.escape, layers)),
            bias="none",
        )
        inject_adapter_in_model(config, network)


def _learn(networks: Networks, names: New) -> None:
    """Gradients for the tensors whose names begin so."""
    for name, network in networks.items():
        starts = tuple(names.get(name, ()))
        for key, parameter in network.named_parameters():
            if starts and key.startswith(starts):
                parameter.requires_grad_(True)


def trained(networks: Networks) -> dict[str, torch.Tensor]:
    """What has gradients, by `<network>.<name>`."""
    everything = {f"{n}.{key}": p for n, network in networks.items() for key, p in network.named_parameters()}
    return {name: p for name, p in everything.items() if p.requires_grad}
