"""Decoding that can only write what a reply's json schema allows, and that is done when its tokens are spent.

llguidance says which tokens may come next. That alone leaves a model free to fill its budget with one long name, so an
answer also has to close in time: a token is taken only if the shortest way to a complete reply still fits behind it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from dysen.replies import Reply
from vdm.errors import ConfigError

COMPACT = {"whitespace_flexible": False, "item_separator": ",", "key_separator": ":"}  # as pydantic writes json
# What closes a reply, tried in this order. A name ends as soon as it may; "a" fills one that may not be empty.
CLOSERS = ('"', "a", "]", "}", ",", "0")
SLACK = 16  # tokens: an open escape or an open character of several bytes takes a few more than the schema tells


class Schemas:
    """The grammars of one tokenizer: compiled once for each kind of reply, copied for each answer."""

    def __init__(self, *, tokenizer: Any, vocab_size: int, stop_tokens: Sequence[int], max_tokens: int):
        """`vocab_size` is the width of the logits, which may be padded beyond the tokenizer."""
        self._guidance = _guidance()
        self.vocab_size = vocab_size
        self.max_tokens = max_tokens
        try:
            self.tokenizer = self._guidance.hf.from_tokenizer(
                tokenizer, n_vocab=vocab_size, eos_token=list(stop_tokens), slices=None
            )
        except (ValueError, RuntimeError) as error:
            remedy = "use a model with a fast tokenizer and at least as many outputs, or constrained=false"
            raise ConfigError(
                "this tokenizer cannot constrain decoding", key="llm.model", got=str(error)[:200], remedy=remedy
            ) from None
        self._matchers: dict[type[Reply], Any] = {}
        pieces = (self.tokenizer.greedy_tokenize(text) for text in CLOSERS)
        self._closers = [ids[0] for ids in pieces if len(ids) == 1]

    def constraint(self, reply: type[Reply]) -> Constraint:
        """For one answer."""
        if reply not in self._matchers:
            self._matchers[reply] = self._compile(reply)
        matcher, reserve = self._matchers[reply]
        return Constraint(self, matcher.deep_copy(), reserve)

    def masks(self, constraints: Sequence[Constraint]) -> np.ndarray:
        """Which tokens each answer may take next: b vocab."""
        bits = self._guidance.numpy.allocate_token_bitmask(len(constraints), self.vocab_size)
        for row, constraint in enumerate(constraints):
            self._guidance.numpy.fill_next_token_bitmask(constraint.matcher, bits, row)
        return self.unpack(bits)

    def unpack(self, bits: np.ndarray) -> np.ndarray:
        """A bit for each token, in words of 32, as booleans."""
        return np.unpackbits(bits.view(np.uint8), axis=-1, bitorder="little")[..., : self.vocab_size].astype(bool)

    def closing_token(self, matcher: Any) -> int:
        """The token that brings an open reply nearer to its end."""
        bits = self._guidance.numpy.allocate_token_bitmask(1, self.vocab_size)
        self._guidance.numpy.fill_next_token_bitmask(matcher, bits, 0)
        for token in self._closers:
            if bits[0, token >> 5] >> (token & 31) & 1:
                return token
        allowed = self.unpack(bits)[0]
        assert allowed.any(), "a reply that is open can be gone on with"
        return int(allowed.argmax())

    def _compile(self, reply: type[Reply]) -> tuple[Any, int]:
        schema = reply.model_json_schema()
        grammar = self._guidance.LLMatcher.grammar_from_json_schema(schema, overrides=COMPACT)
        matcher = self._guidance.LLMatcher(self.tokenizer, grammar)
        assert not matcher.is_error(), f"{reply.__name__}: {matcher.get_error()}"
        needed = Constraint(self, matcher.deep_copy(), 0).tokens_to_close()
        if needed > self.max_tokens:
            raise ConfigError(
                f"no {reply.__name__} is as short as this", key="llm.max_tokens", got=self.max_tokens,
                allowed=f">= {needed} with this tokenizer", remedy="allow more tokens: 256 hold a plan",
            )  # fmt: skip
        return matcher, characters(schema, schema.get("$defs", {})) + SLACK


class Constraint:
    """Where one answer stands in its grammar."""

    def __init__(self, schemas: Schemas, matcher: Any, reserve: int):
        self.schemas, self.matcher, self.reserve = schemas, matcher, reserve

    @property
    def is_complete(self) -> bool:
        """Nothing can follow."""
        return self.matcher.is_stopped()

    def take(self, token: int, remaining: int) -> int:
        """Takes the wanted token, or what closes the reply where it would not fit into `remaining` tokens any more."""
        if remaining <= self.reserve:
            ahead = self.matcher.deep_copy()
            assert ahead.consume_token(token), f"token {token} was masked"
            if Constraint(self.schemas, ahead, 0).tokens_to_close() > remaining - 1:
                token = self.schemas.closing_token(self.matcher)
        assert self.matcher.consume_token(token), self.matcher.get_error()
        return token

    def forced(self) -> list[int]:
        """The tokens that have to come next, taken: keys and punctuation need no model."""
        tokens = self.matcher.compute_ff_tokens()
        assert self.matcher.consume_tokens(tokens), self.matcher.get_error()
        return list(tokens)

    def tokens_to_close(self) -> int:
        """How many tokens the shortest way to a complete reply takes."""
        ahead = self.matcher.deep_copy()
        count = 0
        while not ahead.is_stopped():
            tokens = ahead.compute_ff_tokens() or [self.schemas.closing_token(ahead)]
            ahead.consume_tokens(tokens)
            count += len(tokens)
            assert count < 10_000, "a reply closes"
        assert not ahead.is_error(), ahead.get_error()
        return count


def characters(schema: Mapping[str, Any], definitions: Mapping[str, Any]) -> int:
    """An upper bound of what closes a reply of this schema wherever it stands: an object with one item in every list."""
    if "$ref" in schema:
        return characters(definitions[schema["$ref"].rpartition("/")[2]], definitions)
    if "anyOf" in schema:
        return max(characters(option, definitions) for option in schema["anyOf"])
    match schema.get("type"):
        case "object":
            properties = schema["properties"].items()
            return 2 + sum(len(name) + 4 + characters(value, definitions) for name, value in properties)
        case "array":
            return 2 + characters(schema["items"], definitions)
        case "string":
            return 2 + schema.get("minLength", 0)
        case _:
            return 5


def _guidance() -> Any:
    try:
        import llguidance
        import llguidance.hf
        import llguidance.numpy
    except ImportError:
        remedy = "pip install -e .[llm], or constrained=false"
        raise ConfigError("constrained decoding needs llguidance", key="llm.constrained", remedy=remedy) from None
    return llguidance
