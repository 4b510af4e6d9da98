"""The caption, in the base stream of tokens and, if asked, as one vector. Said nothing, it says what the encoder makes of
the empty caption."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from vdm.bounds import Fraction
from vdm.conditions.base import Condition
from vdm.conditions.encoders.base import TextEncoder
from vdm.errors import ConfigError, DataError
from vdm.layers.attention import TEXT
from vdm.types import Controls, LatentShape, Tokens, VideoBatch


class TextCondition(Condition):
    """Cached, it is `extras[name]` (b n d) and, where the encoder hides padding, `extras[name + "_mask"]` (b n).

    Args:
        pooled: the sum of the tokens also joins the timestep embedding, and so reaches every layer at once. A sum,
            because a word should count as much in a long caption as in a short one.
    """

    def __init__(self, *, encoder: TextEncoder, pooled: bool, drop_prob: Fraction):
        super().__init__(streams={TEXT: encoder.width}, embed_width=encoder.width * pooled, drop_prob=drop_prob)
        self.pooled = pooled
        if encoder.is_trained:
            self.encoder = encoder
        else:
            self.keep_frozen("encoder", encoder)
        self._null: Tokens | None = None

    def encode(self, batch: VideoBatch, shape: LatentShape) -> Controls:
        cached = batch.get("extras", {}).get(self.name)
        return self.say(batch["caption"]) if cached is None else self._from_cache(batch["extras"])

    def say(self, captions: Sequence[str]) -> Controls:
        """What is said about captions. Each distinct one is read once."""
        distinct = list(dict.fromkeys(captions))
        tokens = _seen(*self.encoder(distinct))
        if len(distinct) < len(captions):
            tokens = tokens[
                torch.tensor([distinct.index(caption) for caption in captions], device=tokens.values.device)
            ]
        return self._controls(tokens)

    def null(self, count: int, shape: LatentShape) -> Controls:
        null = self._null
        if null is None:
            null = _seen(*self.encoder([""]))
            if not self.encoder.is_trained:
                self._null = null
        return self._controls(null.repeat(count))

    def cache(self, batch: VideoBatch, shape: LatentShape) -> dict[str, Tensor]:
        if self.encoder.is_trained:
            return {}
        values, mask = self.encoder(batch["caption"])
        return {self.name: values} | ({} if mask is None else {f"{self.name}_mask": mask})

    def fingerprint(self) -> dict[str, Any]:
        return {} if self.encoder.is_trained else self.encoder.fingerprint()

    def _from_cache(self, extras: dict[str, Any]) -> Controls:
        if self.encoder.is_trained:
            remedy = f"leave {self.name} out of the cache, or freeze the encoder"
            raise ConfigError(
                "a text encoder that is trained cannot be cached", key=f"condition.{self.name}", remedy=remedy
            )
        values, mask = extras[self.name], extras.get(f"{self.name}_mask")
        if not isinstance(values, Tensor) or values.dim() != 3 or values.shape[-1] != self.encoder.width:
            got = f"shape {tuple(values.shape)}" if isinstance(values, Tensor) else type(values).__name__
            raise DataError(
                "the cached text is not of this encoder",
                key=f"extras.{self.name}",
                got=got,
                allowed=f"one shape for all clips, (clips, tokens, {self.encoder.width})",
                remedy="cache it again with the encoder of this run",
            )
        return self._controls(_seen(values, None if mask is None else mask.bool()))

    def _controls(self, tokens: Tokens) -> Controls:
        return Controls(tokens={TEXT: tokens}, embed=_sum(tokens) if self.pooled else None)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> TextCondition:
        self._null = None
        return super()._apply(fn, recurse)


def _seen(values: Tensor, mask: Tensor | None) -> Tokens:
    return Tokens(values, None if mask is None else mask[:, None])  # b n d, b 1 n


def _sum(tokens: Tokens) -> Tensor:
    if tokens.visible is None:
        return tokens.values.sum(1)  # b d
    return (tokens.values * tokens.visible[:, 0, :, None].to(tokens.values)).sum(1)
