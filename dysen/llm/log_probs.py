"""How probable a model finds answers that were drawn from it, with gradients.

An answer is a chain of draws and of things that follow without one. Drawn is where the model had a choice: among what the
grammar of the reply allows, at a temperature. Not drawn are tokens that the grammar forces, and those that take the place
of a drawn one so that the answer ends in time. So the log-probability of an answer is the sum over its draws of that of
the distribution each of them was drawn from: masked by the grammar, tempered, and of the token that was drawn.
"""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from dysen.llm.generation import Writing


@dataclass(frozen=True)
class Drawn:
    """An answer, and what was drawn for it: `k` draws, at least one."""

    prompt: Tensor  # n: tokens
    tokens: Tensor  # of the answer
    positions: Tensor  # k: how many tokens of the answer stood before each draw
    chosen: Tensor  # k: what was drawn
    log_prob: Tensor  # k: as it was when it was drawn
    allowed: Tensor | None  # k v/8: a bit for each output; None where everything was allowed

    def state(self) -> dict[str, Tensor]:
        """What a checkpoint holds of it."""
        return {name: value for name, value in vars(self).items() if value is not None}

    @classmethod
    def from_state(cls, state: dict[str, Tensor]) -> Drawn:
        return cls(**{"allowed": None, **state})


def drawn(prompt: Sequence[int], written: Writing) -> Drawn:
    """Of an answer that was written with its choices kept."""
    choices = written.choices
    assert choices, "an answer begins with a draw"
    bits = [choice.allowed for choice in choices if choice.allowed is not None]
    return Drawn(
        prompt=torch.tensor(prompt),
        tokens=torch.tensor(written.tokens),
        positions=torch.tensor([choice.position for choice in choices]),
        chosen=torch.tensor([choice.token for choice in choices]),
        log_prob=torch.tensor([choice.log_prob for choice in choices], dtype=torch.float32),
        allowed=torch.from_numpy(np.stack(bits)) if bits else None,
    )


def distributions(model: Any, answers: Sequence[Drawn], *, temperature: float, together: bool) -> Tensor:
    """What each draw of the answers to one prompt is drawn from: log-probabilities `k v`, -inf where nothing was allowed.

    Args:
        model: of transformers.
        together: the prompt is read once for all answers, for which the model has to take a mask of its own.
    """
    rows = [list(answers)] if together else [[one] for one in answers]
    logits = torch.cat([_logits(model, row) for row in rows]).float() / temperature
    if answers[0].allowed is not None:
        bits = torch.cat([one.allowed for one in answers]).to(logits.device)  # k v/8
        shifts = torch.arange(8, dtype=torch.uint8, device=logits.device)
        allowed = (bits[..., None] >> shifts & 1).flatten(-2)[:, : logits.shape[1]].bool()
        logits = logits.masked_fill(~allowed, -torch.inf)
    return logits.log_softmax(-1)


def divergence(log_p: Tensor, log_q: Tensor) -> Tensor:
    """k: the Kullback-Leibler divergence of q from p, both log-probabilities `k v`, exact."""
    differences = (log_p - log_q).masked_fill(log_p == -torch.inf, 0)  # 0 log 0 is 0
    return (log_p.exp() * differences).sum(-1)


def _logits(model: Any, answers: Sequence[Drawn]) -> Tensor:
    """k v: behind what stands before each draw. One row: the prompt, then each answer, which sees the prompt and itself."""
    prompt = answers[0].prompt
    assert all(torch.equal(one.prompt, prompt) for one in answers), "answers to one prompt"
    parts, places, owners, positions = [prompt], [], [torch.zeros_like(prompt)], [torch.arange(len(prompt))]
    begin = len(prompt)
    for number, one in enumerate(answers, start=1):
        own = one.tokens[: int(one.positions[-1])]  # nothing depends on what follows the last draw
        parts.append(own)
        owners.append(torch.full_like(own, number))
        positions.append(len(prompt) + torch.arange(len(own)))
        places.append(torch.where(one.positions == 0, len(prompt) - 1, begin + one.positions - 1))
        begin += len(own)
    ids, at = torch.cat(parts).to(model.device)[None], torch.cat(places).to(model.device)
    given: dict[str, Any] = {}
    if len(answers) > 1:
        owner = torch.cat(owners).to(model.device)
        is_seen = (owner == 0) | (owner == owner[:, None])  # n m
        given["attention_mask"] = is_seen.tril()[None, None]
        given["position_ids"] = torch.cat(positions).to(model.device)[None]
    if "logits_to_keep" in inspect.signature(model.forward).parameters:
        return model(input_ids=ids, use_cache=False, logits_to_keep=at, **given).logits[0]
    return model(input_ids=ids, use_cache=False, **given).logits[0, at]
