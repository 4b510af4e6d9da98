"""A tokenizer that needs no file and fails on no text: known words, pieces of words, and bytes for everything else.

A word that is not known is read from its longest known beginning on, piece by piece (as WordPiece does); where no piece
fits, a byte of UTF-8 is taken. Pieces and bytes that begin a word are other tokens than those within one, so words stay
apart without tokens for spaces.
"""

from __future__ import annotations

import hashlib
import re
import unicodedata
from collections.abc import Iterator

from vdm.conditions.encoders.words import PIECES, WORDS

PAD, START, END = range(3)
BYTE, INNER_BYTE = 3, 3 + 256  # ids of byte 0, at the beginning of a word and within one
TOKEN = INNER_BYTE + 256  # id of the first word

UNITS = re.compile(r"[^\W\d_]+|\S")  # runs of letters; digits and signs one by one


class Vocabulary:
    """Text to ids and back. Upper and lower case are one, and so are spaces of any length."""

    def __init__(self):
        self.tokens = tuple(dict.fromkeys((*WORDS.split(), *PIECES.split())))
        self._ids = {token: TOKEN + index for index, token in enumerate(self.tokens)}
        self._longest = max(len(token.removeprefix("##")) for token in self.tokens)

    def __len__(self) -> int:
        return TOKEN + len(self.tokens)

    def ids(self, text: str) -> Iterator[int]:
        """One after the other, so that a long text is read no further than it is heard."""
        for unit in UNITS.finditer(unicodedata.normalize("NFKC", text).lower()):
            yield from self._pieces(unit[0])

    def text(self, ids: list[int]) -> str:
        """The words of ids, with one space between them."""
        out = bytearray()
        for token in ids:
            if token < BYTE:
                continue
            inner = INNER_BYTE <= token < TOKEN or (token >= TOKEN and self.tokens[token - TOKEN].startswith("##"))
            if out and not inner:
                out += b" "
            if token >= TOKEN:
                out += self.tokens[token - TOKEN].removeprefix("##").encode()
            else:
                out.append((token - BYTE) % 256)
        return out.decode("utf-8", "replace")

    def digest(self) -> bytes:
        """Of everything that decides which id a text gets."""
        return hashlib.sha256("\n".join((*self.tokens, UNITS.pattern)).encode()).digest()

    def _pieces(self, word: str) -> Iterator[int]:
        known = self._ids.get(word)
        if known is not None:
            yield known
            return
        position = 0
        while position < len(word):
            mark = "##" if position else ""
            for end in range(min(len(word), position + self._longest), position, -1):
                known = self._ids.get(mark + word[position:end])
                if known is not None:
                    yield known
                    position = end
                    break
            else:
                first, *rest = word[position].encode("utf-8", "replace")
                yield (INNER_BYTE if position else BYTE) + first
                yield from (INNER_BYTE + byte for byte in rest)
                position += 1
