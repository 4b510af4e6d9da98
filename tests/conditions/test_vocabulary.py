"""The embedded tokenizer: no text fails, and the words of the embedded world are words."""

import itertools
import re
import unicodedata

from hypothesis import given, settings
from hypothesis import strategies as st

from data.shapes.grammar import captions
from data.shapes.sampling import sample_script
from data.shapes.script import ScriptSettings
from vdm.conditions.encoders.vocabulary import BYTE, INNER_BYTE, PAD, TOKEN, UNITS, Vocabulary

VOCABULARY = Vocabulary()


def read(text):
    return list(VOCABULARY.ids(text))


def pieces(text):
    return [VOCABULARY.text([i]) for i in read(text)]


@settings(max_examples=120, deadline=None)
@given(st.text())
def test_any_text_comes_back_but_for_case_and_spaces(text):
    normal = unicodedata.normalize("NFKC", text).lower()
    words = " ".join(UNITS.findall(normal)).encode("utf-8", "replace").decode()
    ids = read(text)
    assert VOCABULARY.text(ids) == words
    assert all(BYTE <= i < len(VOCABULARY) for i in ids)


def test_words_pieces_and_bytes():
    assert pieces("A red  CIRCLE, 12") == ["a", "red", "circle", ",", "1", "2"]
    assert pieces("reddish")[0] == "red"
    assert pieces("fishes") == ["fish", "es"]
    assert len(read("qqq")) == 3
    assert read("ab cd") != read("abcd"), "words stay apart"
    first, *rest = read("🦉")
    assert BYTE <= first < INNER_BYTE
    assert all(INNER_BYTE <= i < TOKEN for i in rest)
    assert len(rest) == 3


def test_empty_text_has_no_ids():
    assert read("") == read(" \n\t ") == []


def test_half_a_surrogate_pair_is_read():
    assert len(read("a \ud83e b")) == 3


def test_a_long_text_is_read_no_further_than_asked():
    assert len(list(itertools.islice(VOCABULARY.ids("red " * 1_000_000), 5))) == 5


def test_ids_are_distinct_and_padding_is_none_of_them():
    assert len(set(VOCABULARY.tokens)) == len(VOCABULARY.tokens)
    assert not set(read("".join(map(chr, range(0x250))))) & {PAD}
    used = {i for token in VOCABULARY.tokens if not token.startswith("##") for i in read(token)}
    known = {TOKEN + i for i, token in enumerate(VOCABULARY.tokens) if not token.startswith("##")}
    assert used == known, "no word is spelled in another way"


def test_ids_stay_what_checkpoints_were_trained_with():
    """Golden: changing the words or the rules makes trained small encoders useless. If it must be, change this too."""
    assert VOCABULARY.digest().hex()[:16] == "5545ddd5348474da"
    assert read("A red circle drifts to the upper left, then it vanishes.") == [
        515,
        699,
        734,
        855,
        552,
        517,
        827,
        820,
        47,
        590,
        522,
        925,
        49,
    ]


def test_words_of_the_embedded_world_are_single_tokens():
    known, settings_ = set(VOCABULARY.tokens), ScriptSettings(7, 1, 3, 1, 7, 0.5)
    for index in range(300):
        for caption in captions(sample_script(0, index, settings_), 0, 4):
            unknown = [word for word in re.findall("[a-z]+", caption.lower()) if word not in known]
            assert not unknown, caption
