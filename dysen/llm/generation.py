"""Batched decoding with a key-value cache whose common beginning is kept once, not once a row.

A `Decoder` is fed columns of tokens and gives the logits behind the last one. `SharedDecoder` attends to the prefix of the
batch as one matrix product over all rows and to each row's own tokens beside it, in one softmax: the numbers are those of
the whole prompt. `PlainDecoder` leaves the cache to transformers, for models whose attention cannot be replaced.
"""

from __future__ import annotations

import inspect
import math
from collections import defaultdict
from collections.abc import Callable, Sequence
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.cache_utils import Cache
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from dysen.llm.constrained import Constraint, Schemas
from vdm.errors import RunError

ATTENTION = "dysen_shared_prefix"
# Tokens that are fed at once for about the price of one, since reading the weights is what costs.
FREE = defaultdict(lambda: 16, cuda=512)
FEW = 16  # columns, as of rows that write; more, as of prompts, are what fused attention is good at
CHUNK = 4096  # tokens of all rows fed at once, which bounds the memory of attention weights


@dataclass(frozen=True)
class Prefix:
    """Tokens that many prompts begin with, and their keys and values: a (g p w, g p w) for each layer."""

    ids: tuple[int, ...]
    layers: tuple[tuple[Tensor, Tensor], ...]


class Decoder(Protocol):
    """One batch being decoded."""

    can_shrink: bool  # rows can be dropped
    can_pad: bool  # rows may take different numbers of tokens at a time

    def feed(self, ids: Tensor, is_real: Tensor) -> Tensor:
        """Columns of tokens, b n, some of them padding; logits behind the last column, b vocab."""

    def keep(self, rows: Tensor) -> None:
        """Goes on with these rows only."""


# Set while a SharedDecoder is fed; attention outside of it is that of transformers.
_prefix: ContextVar[tuple[tuple[Tensor, Tensor] | None, ...] | None] = ContextVar("prefix", default=None)


def _attend(
    module: Any, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None, *,
    scaling: float | None = None, **others: Any,
) -> tuple[Tensor, None]:  # fmt: skip
    layers = _prefix.get()
    if layers is None:
        return sdpa_attention_forward(module, query, key, value, attention_mask, scaling=scaling, **others)
    past = layers[module.layer_idx]
    b, heads, n, w = query.shape
    g = key.shape[1]  # heads share keys in g groups
    if n > FEW:
        if past is not None:
            key, value = (torch.cat([a.expand(b, *a.shape), own], 2) for a, own in zip(past, (key, value), strict=True))
            sees_prefix = attention_mask.new_ones(b, 1, n, past[0].shape[1])
            attention_mask = torch.cat([sees_prefix, attention_mask], 3)
        return sdpa_attention_forward(module, query, key, value, attention_mask, scaling=scaling)
    scale = w**-0.5 if scaling is None else scaling
    query = (query * scale).reshape(b, g, -1, w)  # b g rn w
    scores = (query @ key.mT).view(b, g, -1, n, key.shape[2])  # b g r n m
    scores = scores.masked_fill(~attention_mask[:, :, None], torch.finfo(scores.dtype).min).flatten(2, 3)
    if past is None:
        attended = scores.softmax(-1, dtype=torch.float32).to(value.dtype) @ value
    else:
        keys, values = past  # g p w
        rows = query.transpose(0, 1).reshape(g, -1, w)  # g brn w
        before = (rows @ keys.mT).view(g, b, -1, keys.shape[1]).transpose(0, 1)  # b g rn p
        weights = torch.cat([before, scores], -1).softmax(-1, dtype=torch.float32).to(value.dtype)
        before, scores = weights.split([keys.shape[1], key.shape[2]], -1)
        common = before.transpose(0, 1).reshape(g, -1, keys.shape[1]) @ values  # g brn w
        attended = scores @ value + common.view(g, b, -1, w).transpose(0, 1)
    return attended.reshape(b, heads, n, w).transpose(1, 2).contiguous(), None


AttentionInterface.register(ATTENTION, _attend)
AttentionMaskInterface.register(ATTENTION, sdpa_mask)


class _Suffix(Cache):
    """Keys and values of the rows' own tokens, allocated once."""

    def __init__(self, num_layers: int, capacity: int):
        super().__init__(layers=[])
        self.capacity, self.length = capacity, 0
        self.stored: list[tuple[Tensor, Tensor] | None] = [None] * num_layers

    def update(self, key_states: Tensor, value_states: Tensor, layer_idx: int, *_: Any, **__: Any):
        end = self.length + key_states.shape[2]
        if self.stored[layer_idx] is None:
            self.stored[layer_idx] = tuple(
                states.new_empty(*states.shape[:2], self.capacity, states.shape[3])
                for states in (key_states, value_states)
            )
        if end > self.stored[layer_idx][0].shape[2]:  # forced tokens of rows out of step pad each other
            room = [0, 0, 0, end - self.stored[layer_idx][0].shape[2] + self.capacity // 2]
            self.stored[layer_idx] = tuple(nn.functional.pad(states, room) for states in self.stored[layer_idx])
        keys, values = self.stored[layer_idx]
        keys[:, :, self.length : end] = key_states
        values[:, :, self.length : end] = value_states
        return keys[:, :, :end], values[:, :, :end]

    def get_seq_length(self, layer_idx: int = 0) -> int:
        return self.length


class SharedDecoder:
    """Attends to a prefix that all rows have in common."""

    can_shrink = can_pad = True

    def __init__(self, model: Any, *, rows: int, capacity: int, prefix: Prefix | None = None):
        num_layers = model.config.get_text_config().num_hidden_layers
        self.model, self.cache = model, _Suffix(num_layers, capacity)
        self.layers = (None,) * num_layers if prefix is None else prefix.layers
        self.is_real = torch.zeros(rows, 0, dtype=torch.bool, device=model.device)
        self.position = torch.full((rows,), 0 if prefix is None else len(prefix.ids), device=model.device)

    @torch.inference_mode()
    def feed(self, ids: Tensor, is_real: Tensor) -> Tensor:
        begin, end = self.cache.length, self.cache.length + ids.shape[1]
        self.is_real = torch.cat([self.is_real, is_real], 1)  # b m
        positions = (self.position[:, None] + is_real.cumsum(1) - 1).clamp(min=0)  # b n
        slots = torch.arange(end, device=ids.device)
        is_past = slots[None, :] <= slots[begin:, None]  # n m
        token = _prefix.set(self.layers)
        try:
            output = self.model(
                input_ids=ids, attention_mask=self.is_real[:, None, None] & is_past,
                position_ids=positions, past_key_values=self.cache, use_cache=True, **_last_only(self.model),
            )  # fmt: skip
        finally:
            _prefix.reset(token)
        self.cache.length = end
        self.position = positions[:, -1] + 1
        return output.logits[:, -1]

    def keep(self, rows: Tensor) -> None:
        self.is_real, self.position = self.is_real[rows], self.position[rows]
        self.cache.stored = [layer and (layer[0][rows], layer[1][rows]) for layer in self.cache.stored]


class PlainDecoder:
    """The cache and the attention of transformers."""

    can_pad = False  # a sliding window would count the padding

    def __init__(self, model: Any, *, rows: int):
        self.model, self.cache = model, None
        self.is_real = torch.zeros(rows, 0, dtype=torch.long, device=model.device)

    @property
    def can_shrink(self) -> bool:
        return hasattr(self.cache, "batch_select_indices")

    @torch.inference_mode()
    def feed(self, ids: Tensor, is_real: Tensor) -> Tensor:
        self.is_real = torch.cat([self.is_real, is_real.long()], 1)
        positions = (self.is_real.cumsum(1) - 1).clamp(min=0)[:, -ids.shape[1] :]
        output = self.model(
            input_ids=ids, attention_mask=self.is_real, position_ids=positions, past_key_values=self.cache,
            use_cache=True, **_last_only(self.model),
        )  # fmt: skip
        self.cache = output.past_key_values
        return output.logits[:, -1]

    def keep(self, rows: Tensor) -> None:
        self.is_real = self.is_real[rows]
        self.cache.batch_select_indices(rows)


def _last_only(model: Any) -> dict[str, int]:
    return {"logits_to_keep": 1} if "logits_to_keep" in inspect.signature(model.forward).parameters else {}


def num_outputs(model: Any) -> int:
    """The width of the logits, which may be padded beyond the tokenizer."""
    return model.get_output_embeddings().weight.shape[0]


def read_prefix(model: Any, ids: Sequence[int]) -> Prefix:
    """The keys and values of tokens that many prompts begin with."""
    decoder = SharedDecoder(model, rows=1, capacity=len(ids))
    feed_all(decoder, [ids])
    return Prefix(tuple(ids), tuple((keys[0], values[0]) for keys, values in decoder.cache.stored))


def can_share(model: Any) -> bool:
    """Whether the model's attention can be replaced: tried, by answering a short prompt in both ways."""
    config = model.config.get_text_config()
    kinds = set(getattr(config, "layer_types", None) or ["full_attention"])
    window = getattr(config, "sliding_window", None) or math.inf
    sees_all = kinds == {"full_attention"} or window >= config.max_position_embeddings
    if not sees_all or not getattr(model, "_supports_attention_backend", False):
        return False
    ids = [i % config.vocab_size for i in range(7, 27)]
    plain = feed_all(PlainDecoder(model, rows=1), [ids])
    used = model.config._attn_implementation
    try:
        model.set_attn_implementation(ATTENTION)
        prefix = read_prefix(model, ids[:11])
        shared = feed_all(SharedDecoder(model, rows=1, capacity=len(ids), prefix=prefix), [ids[11:]])
    except (TypeError, ValueError, AttributeError, KeyError, IndexError, RuntimeError):
        model.set_attn_implementation(used)
        return False
    is_same = bool((plain - shared).abs().max() <= 0.05 * plain.abs().max())  # half precision differs by about 0.01
    if not is_same:
        model.set_attn_implementation(used)
    return is_same


def feed_all(decoder: Decoder, prompts: Sequence[Sequence[int]]) -> Tensor:
    """Left-padded prompts, some columns at a time; logits behind their last tokens."""
    n = max(map(len, prompts))
    ids = torch.zeros(len(prompts), n, dtype=torch.long)
    is_real = torch.zeros(len(prompts), n, dtype=torch.bool)
    for row, prompt in enumerate(prompts):
        ids[row, n - len(prompt) :] = torch.as_tensor(prompt)
        is_real[row, n - len(prompt) :] = True
    device = decoder.model.device
    columns = max(CHUNK // len(prompts), 16)
    for begin in range(0, n, columns):
        some = slice(begin, begin + columns)
        logits = decoder.feed(ids[:, some].to(device), is_real[:, some].to(device))
    return logits


@dataclass(frozen=True)
class Choice:
    """A token that was drawn: after how many tokens of its answer, which, out of which, and how probable it was."""

    position: int
    token: int  # the constraint may have taken another one in its place, so that the answer ends in time
    allowed: np.ndarray | None  # a bit for each output of the model; None: any
    log_prob: float


@dataclass
class Writing:
    """One answer as it grows. `random` is its own, so that it does not depend on what is written beside it."""

    prompt: Sequence[int]  # what follows the prefix
    constraint: Constraint | None
    random: np.random.Generator
    tokens: list[int] = field(default_factory=list)
    pending: list[int] = field(default_factory=list)  # the last of the tokens, which the model has not read yet
    is_done: bool = False
    choices: list[Choice] | None = None  # kept where somebody wants to know

    def add(self, token: int, max_tokens: int, *, forced: bool, is_over: Callable[[Sequence[int]], bool]) -> None:
        """Takes a token and, if wanted, what has to follow it."""
        if self.constraint is None:
            self.pending = [token]
        else:
            self.pending = [self.constraint.take(token, max_tokens - len(self.tokens))]
            self.pending += self.constraint.forced() if forced else []
        self.tokens += self.pending
        is_complete = is_over(self.tokens) if self.constraint is None else self.constraint.is_complete
        if is_complete or len(self.tokens) >= max_tokens:
            self.is_done, self.pending = True, []

    def next(self, count: int) -> list[int]:
        """So many of the tokens that the model has not read yet."""
        read, self.pending = self.pending[:count], self.pending[count:]
        return read


def write(
    decoder: Decoder, answers: Sequence[Writing], *, schemas: Schemas | None, max_tokens: int, temperature: float,
    is_over: Callable[[Sequence[int]], bool],
) -> None:  # fmt: skip
    """Writes all answers to their ends. `is_over` tells of an unconstrained one, from its tokens so far."""
    free = FREE[decoder.model.device.type]
    logits = feed_all(decoder, [answer.prompt for answer in answers])
    rows = list(answers)
    while True:
        turn = [row for row, answer in enumerate(rows) if not answer.pending and not answer.is_done]
        chosen = _choose(logits[turn], [rows[row] for row in turn], schemas, temperature)
        for row, token in zip(turn, chosen, strict=True):
            rows[row].add(token, max_tokens, forced=decoder.can_pad, is_over=is_over)
        open_rows = [row for row, answer in enumerate(rows) if not answer.is_done]
        if not open_rows:
            return
        if decoder.can_shrink and len(open_rows) <= 0.75 * len(rows):
            decoder.keep(torch.tensor(open_rows, device=logits.device))
            rows = [rows[row] for row in open_rows]
        waiting = [len(answer.pending) for answer in rows if not answer.is_done]
        columns = max(min(waiting), min(max(waiting), free // len(rows)))  # rows with fewer are padded
        logits = feed_all(decoder, [answer.next(columns) for answer in rows])


def _choose(logits: Tensor, rows: Sequence[Writing], schemas: Schemas | None, temperature: float) -> list[int]:
    """A token for each row."""
    logits, masks = logits.float(), None
    if schemas is not None:
        masks = schemas.masks([answer.constraint for answer in rows])
        logits = logits.masked_fill(~torch.from_numpy(masks).to(logits.device), -torch.inf)
    if temperature == 0:
        best, chosen = logits.max(-1)
    else:
        levels = (logits.double() / temperature).softmax(-1).cumsum(-1)  # b vocab
        draws = torch.tensor([[answer.random.random()] for answer in rows], dtype=torch.float64, device=logits.device)
        chosen = torch.searchsorted(levels, draws * levels[:, -1:], right=True).clamp(max=logits.shape[1] - 1)
        best, chosen = logits.gather(1, chosen)[:, 0], chosen[:, 0]
    if not best.isfinite().all():
        remedy = "load it in another dtype (float16 overflows in many models), or check its weights"
        raise RunError("the language model's outputs are not numbers", key="llm.dtype", remedy=remedy)
    _keep_choices(logits, rows, chosen, masks, temperature)
    return chosen.tolist()


def _keep_choices(
    logits: Tensor, rows: Sequence[Writing], chosen: Tensor, masks: np.ndarray | None, temperature: float
) -> None:
    """Notes what was drawn, for those who want to know."""
    if temperature == 0 or all(answer.choices is None for answer in rows):
        return
    log_probs = (logits / temperature).log_softmax(-1).gather(1, chosen[:, None])[:, 0].tolist()
    for row, (answer, token) in enumerate(zip(rows, chosen.tolist(), strict=True)):
        if answer.choices is not None:
            allowed = None if masks is None else np.packbits(masks[row], bitorder="little")
            answer.choices.append(Choice(len(answer.tokens), token, allowed, log_probs[row]))
