"""A small transformer that writes plans: rotary positions, and a short convolution over the last tokens before attention.

Captions are read in both directions, since "before it grows, the square moves" is clear at its end only; plans are written
from left to right.
The convolution lets a token know its predecessors at once. What a transformer learns last, to find the place where a word
stood before and to continue as it was continued there, is built in: `Lookup`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dysen.tiny.vocabulary import CAPTION, FIRST_ORDINAL, NUM_FORMS, NUM_TOKENS, PLAN
from vdm.bounds import PositiveInt
from vdm.errors import ConfigError

REACH = 4  # tokens the convolution sees
BESIDE = 0.5  # of the token before, at first
NOTHING = 6.0  # a match weaker than this is none
TRUST = 4.0  # at first, in what followed a match
COPIED = 0.3  # of what a layer looks at, at first
BASE = 10_000.0  # of the rotary positions


@dataclass
class LayerMemory:
    """What one layer has read: keys and values `b heads n d` with room for more, and the inputs before the next one `b 3 d`."""

    keys: Tensor
    values: Tensor
    recent: Tensor


@dataclass
class Memory:
    """What was read: of each layer, and for the lookup the names `b n d` and the tokens `b n` themselves."""

    layers: list[LayerMemory]
    names: Tensor
    ids: Tensor
    heard: Tensor  # b n d in the middle, of the prompt
    verbs: Verbs


class Layer(nn.Module):
    """Attention over what came before, then a layer for each token by itself."""

    def __init__(self, *, width: int, heads: int):
        super().__init__()
        self.heads = heads
        self.norm1, self.norm2 = nn.RMSNorm(width), nn.RMSNorm(width)
        self.taps = nn.Parameter(torch.zeros(REACH, width))  # weights of the token itself and of those before it
        nn.init.ones_(self.taps[0])
        nn.init.constant_(self.taps[1], BESIDE)
        self.to_qkv = nn.Linear(width, 3 * width, bias=False)
        self.to_out = nn.Linear(width, width, bias=False)
        self.hidden = nn.Linear(width, 4 * width, bias=False)
        self.out = nn.Linear(4 * width, width, bias=False)
        self._begin_with_copies(width)

    @torch.no_grad()
    def _begin_with_copies(self, width: int) -> None:
        """At first half of the heads look at the same word elsewhere, and what is looked at is handed on as it is."""
        query, key, value = (nn.init.orthogonal_(torch.empty(width, width)) for _ in range(3))
        key[: width // 2] = query[: width // 2]
        self.to_qkv.weight.copy_(torch.cat([query, key, value]))
        self.to_out.weight.copy_(COPIED * value.T)

    def forward(self, x: Tensor, turn: Tensor, seen: Tensor) -> Tensor:
        """x `b n d`; turn `n d_head`; seen `b 1 n n`."""
        y = self._mixed(F.pad(self.norm1(x), (0, 0, REACH - 1, 0)))
        q, k, v = self._qkv(y, turn)
        return self._rest(x, attended(q, k, v, seen))

    def remember(self, x: Tensor, turn: Tensor, seen: Tensor, lengths: Tensor, room: int) -> tuple[Tensor, LayerMemory]:
        """As `forward`, and what is needed to go on behind the `lengths` `b` tokens of each row."""
        padded = F.pad(self.norm1(x), (0, 0, REACH - 1, 0))
        q, k, v = self._qkv(self._mixed(padded), turn)
        last = lengths[:, None] + torch.arange(REACH - 1, device=x.device)  # positions in `padded`
        recent = padded.gather(1, last[..., None].expand(-1, -1, x.shape[-1]))
        memory = LayerMemory(F.pad(k, (0, 0, 0, room)), F.pad(v, (0, 0, 0, room)), recent)
        return self._rest(x, attended(q, k, v, seen)), memory

    def step(self, x: Tensor, turn: Tensor, positions: Tensor, seen: Tensor, memory: LayerMemory) -> Tensor:
        """One more token of each row: x `b 1 d` at `positions` `b`; seen `b 1 1 n`."""
        window = torch.cat([memory.recent, self.norm1(x)], dim=1)  # b REACH d
        memory.recent = window[:, 1:]
        q, k, v = self._qkv(self._mixed(window), turn)
        rows = torch.arange(len(x), device=x.device)
        memory.keys[rows, :, positions] = k[:, :, 0]
        memory.values[rows, :, positions] = v[:, :, 0]
        return self._rest(x, attended(q, memory.keys, memory.values, seen))

    def _mixed(self, padded: Tensor) -> Tensor:
        """b (REACH - 1 + n) d -> b n d."""
        n = padded.shape[1] - REACH + 1
        return sum(self.taps[i] * padded[:, REACH - 1 - i : REACH - 1 - i + n] for i in range(REACH))

    def _qkv(self, y: Tensor, turn: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        q, k, v = self.to_qkv(y).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)  # b heads n d_head
        return rotated(q, turn), rotated(k, turn), v

    def _rest(self, x: Tensor, found: Tensor) -> Tensor:
        x = x + self.to_out(found.transpose(1, 2).flatten(2))
        return x + self.out(F.gelu(self.hidden(self.norm2(x))))


class Counter(nn.Module):
    """Counts the verbs of a caption, so that an ordinal in its plan finds the verb it belongs to: what attention learns late,
    a sum has at once. Which tokens count is learned; stage=language says which.
    """

    def __init__(self, *, width: int):
        super().__init__()
        self.counts = nn.Linear(width, 1)

    def forward(self, x: Tensor, ids: Tensor) -> Verbs:
        """x b n d after the first layer."""
        scores = self.counts(x)[..., 0].float()
        captions = (ids == CAPTION).cumsum(1)
        verbs = scores.sigmoid() * (captions > (ids == PLAN).cumsum(1))
        before = F.pad(verbs.cumsum(1), (1, -1))  # none that stand here
        begins = torch.where(ids == CAPTION, before, 0.0).cummax(1).values
        return Verbs(scores, verbs, before - begins, captions)


class Verbs(NamedTuple):
    """For each token `b n`: the score of being a verb, the probability, verbs before it in its caption, and its caption."""

    scores: Tensor
    chances: Tensor
    before: Tensor
    captions: Tensor

    def found(self, x: Tensor, ids: Tensor, captions: Tensor) -> Tensor:
        """x b n d of the verb that belongs to each ordinal among ids `b q`, nothing for other tokens -> b q d."""
        which = (ids - FIRST_ORDINAL)[..., None]
        near = (1 - (self.before[:, None] - which).abs()).clamp(min=0) * (self.captions[:, None] == captions[..., None])
        return (near * self.chances[:, None]).to(x.dtype) @ x


class Lookup(nn.Module):
    """Where something like this was about to be said before, the token that followed there is the more likely now.

    In the middle of the decoder each place names a word: before a predicate, the verb of the caption that tells it
    (stage=language sees to that). So a new verb is looked up where a demonstration had it.
    """

    def __init__(self, *, width: int):
        super().__init__()
        self.name = nn.Linear(width, width, bias=False)
        nn.init.eye_(self.name.weight)  # a word that was copied is said at once
        self.trust = nn.Linear(width, 1)
        nn.init.zeros_(self.trust.weight)
        nn.init.constant_(self.trust.bias, TRUST)

    def forward(self, x: Tensor, names: Tensor, earlier: Tensor, after: Tensor, seen: Tensor) -> Tensor:
        """What to add to the scores: x `b q d` at the end, names `b q d`, those of places before `b n d`, the tokens `b n`
        that follow these, and which of them are seen `b q n` -> b q v.
        """
        match = (names @ earlier.mT).float() * names.shape[-1] ** -0.5
        match = match.masked_fill(~seen, -1e4)
        nothing = torch.full_like(match[..., :1], NOTHING)
        weights = torch.cat([match, nothing], dim=-1).softmax(-1)[..., :-1] * self.trust(x).float()
        says = torch.zeros(*weights.shape[:2], NUM_TOKENS, device=x.device)
        return says.scatter_add_(2, after[:, None].expand_as(weights), weights)


class Decoder(nn.Module):
    """Tokens to scores of the next token.

    Args:
        width, depth, heads: of the transformer.
        length: the most tokens of a prompt with its answer.
    """

    def __init__(self, *, width: PositiveInt, depth: PositiveInt, heads: PositiveInt, length: PositiveInt):
        super().__init__()
        if width % (2 * heads):
            raise ConfigError("heads share the width, each an even part of it", key="language.heads", got=heads,
                              allowed=f"divisors of {width} / 2")  # fmt: skip
        self.length = length
        self.embed = nn.Embedding(NUM_TOKENS, width)
        self.embed_form = nn.Embedding(NUM_FORMS, width)
        nn.init.normal_(self.embed.weight, std=0.5)  # apart from each other from the start: slots are never confused
        nn.init.normal_(self.embed_form.weight, std=0.1)
        self.layers = nn.ModuleList([Layer(width=width, heads=heads) for _ in range(depth)])
        for layer in self.layers:
            nn.init.normal_(layer.out.weight, std=0.5 * (width * depth) ** -0.5)
        self.norm = nn.RMSNorm(width)
        self.counter = Counter(width=width)
        self.lookup, self.middle = Lookup(width=width), depth // 2 + 1  # layers before a verb is found
        self.register_buffer("turns", rotation(length, width // heads // 4 * 2), persistent=False)

    def forward(self, ids: Tensor, forms: Tensor) -> Tensor:
        """b n -> scores b n v."""
        layers, _ = self.after_layers(ids, forms)
        return self.scores(layers, ids)

    def scores(self, layers: list[Tensor], ids: Tensor) -> Tensor:
        """b n v, of what comes after each token, from `after_layers`."""
        names = self.lookup.name(layers[self.middle - 1])
        n = ids.shape[1]
        seen = torch.ones(n, n, dtype=torch.bool, device=ids.device).tril(-1).expand(len(ids), n, n)
        after = F.pad(ids[:, 1:], (0, 1))
        return self.head(layers[-1]).float() + self.lookup(layers[-1], names, names, after, seen)

    def after_layers(self, ids: Tensor, forms: Tensor) -> tuple[list[Tensor], Verbs]:
        """b n d after each layer, as the head would read it."""
        x, seen, found = self._embedded(ids, forms), sight(ids), []
        for layer in self.layers:
            x = layer(x, self.turns[: ids.shape[1]], seen)
            if not found:
                verbs = self.counter(self.norm(x), ids)
            if len(found) == self.middle - 1:
                x = x + verbs.found(x, ids, verbs.captions)
            found.append(self.norm(x))
        return found, verbs

    def head(self, x: Tensor) -> Tensor:
        """Scores `... v`. A word is said by the vector that it is read by, so a layer can copy what it has not met."""
        return F.linear(x, self.embed.weight) * x.shape[-1] ** -0.5

    def read(self, ids: Tensor, forms: Tensor, lengths: Tensor, room: int) -> tuple[Tensor, Memory]:
        """Prompts `b n` of `lengths` `b`, filled up at the end: scores `b v` of the next token, and a memory."""
        x, seen, layers, names = self._embedded(ids, forms), sight(ids), [], None
        for number, layer in enumerate(self.layers, start=1):
            x, memory = layer.remember(x, self.turns[: ids.shape[1]], seen, lengths, room)
            layers.append(memory)
            if number == 1:
                verbs = self.counter(self.norm(x), ids)
            if number == self.middle:
                heard = x
                x = x + verbs.found(x, ids, verbs.captions)
                names = self.lookup.name(self.norm(x))
        rows = torch.arange(len(x), device=x.device)
        memory = Memory(layers, F.pad(names, (0, 0, 0, room)), F.pad(ids, (0, room)), heard, verbs)
        return self._next(x[rows, lengths - 1], names[rows, lengths - 1], lengths - 1, memory), memory

    def step(self, ids: Tensor, positions: Tensor, memory: Memory) -> Tensor:
        """The scores `b v` after one more token `b` at `positions` `b`."""
        x = self._embedded(ids[:, None], torch.zeros_like(ids)[:, None])
        n = memory.ids.shape[1]
        rows = torch.arange(len(ids), device=ids.device)
        memory.ids[rows, positions] = ids
        seen = (torch.arange(n, device=ids.device) <= positions[:, None])[:, None, None]  # b 1 1 n
        name = None
        for number, (layer, own) in enumerate(zip(self.layers, memory.layers, strict=True), start=1):
            x = layer.step(x, self.turns[positions][:, None, None], positions, seen, own)
            if number == self.middle:
                x = x + memory.verbs.found(memory.heard, ids[:, None], memory.verbs.captions[:, -1:])
                name = self.lookup.name(self.norm(x[:, 0]))
        memory.names[rows, positions] = name
        return self._next(x[:, 0], name, positions, memory)

    def _next(self, x: Tensor, name: Tensor, positions: Tensor, memory: Memory) -> Tensor:
        """Scores b v behind the tokens at `positions`: x b d after the last layer, name b d."""
        x, after = self.norm(x), F.pad(memory.ids[:, 1:], (0, 1))
        seen = torch.arange(after.shape[1], device=x.device) < positions[:, None]
        found = self.lookup(x[:, None], name[:, None], memory.names, after, seen[:, None])
        return self.head(x).float() + found[:, 0]

    def _embedded(self, ids: Tensor, forms: Tensor) -> Tensor:
        return self.embed(ids) + self.embed_form(forms)


def sight(ids: Tensor) -> Tensor:
    """b 1 n n: a token sees those before it, and one of a caption sees all of the caption."""
    n = ids.shape[1]
    begins, ends = (ids == CAPTION).cumsum(1), (ids == PLAN).cumsum(1)
    caption = torch.where(
        begins > ends, begins, -torch.arange(1, n + 1, device=ids.device)
    )  # alone outside of captions
    causal = torch.ones(n, n, dtype=torch.bool, device=ids.device).tril()
    return (causal | (caption[:, :, None] == caption[:, None]))[:, None]


def attended(q: Tensor, k: Tensor, v: Tensor, seen: Tensor) -> Tensor:
    """By hand: for sequences this short the fused kernel's backward pass takes three times as long on a CPU."""
    scores = (q @ k.transpose(-1, -2)) * q.shape[-1] ** -0.5
    return scores.masked_fill(~seen, -1e4).softmax(-1).to(v.dtype) @ v


def rotation(length: int, width: int) -> Tensor:
    """n d: cosines, then sines, of the angles of each position."""
    speeds = BASE ** (-torch.arange(width // 2) * 2 / width)
    angles = torch.arange(length)[:, None] * speeds
    return torch.cat([angles.cos(), angles.sin()], dim=-1)


def rotated(x: Tensor, turn: Tensor) -> Tensor:
    """x `... n d` with pairs of its last numbers turned by the angles of their position; the first ones compare words
    wherever they stand.
    """
    cos, sin = turn.to(x.dtype).chunk(2, dim=-1)
    still, a, b = x.split([x.shape[-1] - 2 * cos.shape[-1], cos.shape[-1], cos.shape[-1]], dim=-1)
    return torch.cat([still, a * cos - b * sin, a * sin + b * cos], dim=-1)
