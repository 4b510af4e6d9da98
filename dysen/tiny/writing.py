"""Greedy answers of the small language model, many prompts at once, and nothing but valid plans."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from dysen.tiny.decoder import Decoder
from dysen.tiny.vocabulary import (
    END,
    FIRST_NUMBER,
    FIRST_ORDINAL,
    FIRST_SLOT,
    FIRST_WORD,
    NUM_TOKENS,
    NUMBERS,
    ORDINALS,
    PAD,
    PART,
    STOP,
    WORDS,
    Tokens,
)

# agent ordinal predicate [PART target] start end STOP ... END: (state, kind of token) -> state
WORD, NUMBER, ORDINAL = -1, -2, -3
GRAMMAR = {
    (0, WORD): 1,
    (1, WORD): 1,
    (1, ORDINAL): 2,
    (2, WORD): 3,
    (3, WORD): 3,
    (3, PART): 4,
    (3, NUMBER): 6,
    (4, WORD): 5,
    (5, WORD): 5,
    (5, NUMBER): 6,
    (6, NUMBER): 7,
    (7, STOP): 8,
    (8, WORD): 1,
    (8, END): 9,
    (9, PAD): 9,
}
DONE, LATER = 9, 6  # LATER: a number above the one before


def _tables() -> tuple[Tensor, Tensor]:
    """states x tokens: what may follow, and the state after it."""
    follows = torch.full((DONE + 1, NUM_TOKENS), -1)
    words = [FIRST_WORD + i for i, word in enumerate(WORDS) if word[0].isalnum()]
    kinds = {
        WORD: words,
        NUMBER: list(range(FIRST_NUMBER, FIRST_ORDINAL)),
        ORDINAL: list(range(FIRST_ORDINAL, FIRST_SLOT)),
    }
    for (state, kind), after in GRAMMAR.items():
        follows[state, kinds.get(kind, [kind])] = after
    follows[[3, 5], FIRST_NUMBER + NUMBERS - 1] = -1  # nothing would be left to end at
    return follows >= 0, follows.clamp(min=0)


ALLOWED, FOLLOWS = _tables()


@torch.no_grad()
def write(decoder: Decoder, prompts: Sequence[Tokens], max_tokens: int) -> list[list[int]]:
    """The likeliest valid answer, token by token; one that is not complete after `max_tokens` is cut."""
    device = decoder.embed.weight.device
    lengths = torch.tensor([len(prompt) for prompt in prompts], device=device)
    ids = torch.full((len(prompts), int(lengths.max())), PAD, device=device)
    forms, slots = torch.zeros_like(ids), torch.zeros(len(prompts), NUM_TOKENS, dtype=torch.bool, device=device)
    for row, prompt in enumerate(prompts):
        ids[row, : len(prompt)] = torch.tensor(prompt.ids, device=device)
        forms[row, : len(prompt)] = torch.tensor(prompt.forms, device=device)
        slots[row, list(prompt.slots.values())] = True
    allowed, follows = ALLOWED.to(device), FOLLOWS.to(device)
    numbers = torch.arange(NUM_TOKENS, device=device)
    is_ordinal = (numbers >= FIRST_ORDINAL) & (numbers < FIRST_SLOT)
    state, last, done, written = *(torch.zeros_like(lengths) for _ in range(3)), []
    scores, memory = decoder.read(ids, forms, lengths, max_tokens)
    for count in range(max_tokens):
        says_words = allowed[state, FIRST_WORD]  # where a word may stand, a word of this prompt may
        may = allowed[state] | (slots & says_words[:, None])
        may &= (state != LATER)[:, None] | (numbers > last[:, None])
        may &= ~(is_ordinal & (numbers != (FIRST_ORDINAL + done)[:, None]))
        token = scores.float().masked_fill(~may, -torch.inf).argmax(-1)
        written.append(token)
        is_slot = (token >= FIRST_SLOT) & (token < FIRST_WORD)
        state = follows[state, torch.where(is_slot, FIRST_WORD, token)]
        last, done = token, (done + (token == STOP)).clamp(max=ORDINALS - 1)
        if count + 1 == max_tokens or bool((state == DONE).all()):
            break
        scores = decoder.step(token, lengths + count, memory)
    return torch.stack(written, dim=1).tolist()
