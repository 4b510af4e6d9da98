import itertools
import re
import time
from collections import Counter

import numpy as np
import pytest

from data.shapes.claims import RELATIONS, Claim, Consequences, holds
from data.shapes.grammar import Caption, captions, describe, label, scene_captions, scenes, tell, text_order
from data.shapes.parse import ParsedPlan, parse
from data.shapes.phrases import CLIQUES, HOSTS, PAIRS, SEQUENCES, pattern
from data.shapes.sampling import sample_script
from data.shapes.script import (
    ACTIONS,
    CHANNELS,
    COLOURS,
    ROTATABLE,
    SHADES,
    SHAPES,
    SIZES,
    TARGETED,
    TEXTURES,
    Background,
    Event,
    Script,
    ScriptSettings,
    Thing,
    precedes,
)
from data.shapes.syntax import read_introduction, read_sentence, words_of
from data.shapes.words import COLOUR_WORDS, SHAPE_WORDS, SIZE_WORDS, VERB_PHRASES, conjugate
from vdm.errors import DataError

GROUND = Background("stripes", "dark", 0.0, 0.0)
RED, BLUE, GREEN = (
    Thing("red square", "red", "square", "small"),
    Thing("blue circle", "blue", "circle", "large"),
    Thing("green ring", "green", "ring", "medium"),
)


def script_of(*events: tuple, things=(RED, BLUE, GREEN), seed=0) -> Script:
    made = sorted((Event(*event) for event in events), key=lambda e: (e.start, e.end, e.agent))
    used = max(max(e.agent, e.target or 0) for e in made) + 1
    return Script(things[:used], (), tuple(made), GROUND, 7, seed)


def wild_script(seed: int) -> Script:
    """Any events that may overlap at all, with things that only their size tells apart: harder than the world's."""
    rng = np.random.default_rng([seed, 77])
    looks = list(itertools.product(COLOURS[:3], SHAPES[:3], SIZES))
    count, ticks = int(rng.integers(1, 4)), int(rng.choice([7, 15, 30]))
    things = tuple(Thing("", *looks[i]) for i in rng.choice(len(looks), count, replace=False))
    events: list[Event] = []
    for _ in range(int(rng.integers(1, 10))):
        agent, action = int(rng.integers(count)), ACTIONS[rng.integers(len(ACTIONS))]
        others = [i for i in range(count) if i != agent]
        if action in TARGETED and not others:
            continue
        target = int(rng.choice(others)) if action in TARGETED else None
        start = int(rng.integers(ticks))
        end = min(ticks, start + int(rng.integers(1, 9)))
        taken = {CHANNELS[e.action] for e in events if e.agent == agent and e.start < end and start < e.end}
        if CHANNELS[action] not in taken and "all" not in taken | ({CHANNELS[action]} if taken else set()):
            events.append(Event(agent, action, target, start, end))
    events = events or [Event(0, "grow", None, 0, ticks)]
    ground = Background(TEXTURES[rng.integers(len(TEXTURES))], SHADES[rng.integers(len(SHADES))], 0.0, 0.0)
    return Script(things, (), tuple(sorted(events, key=lambda e: (e.start, e.end, e.agent))), ground, ticks, seed)


@pytest.fixture(scope="module")
def scripts() -> list[Script]:
    world = [
        sample_script(3, i, ScriptSettings(ticks, 1, 3, 1, 7, 0.5), split)
        for ticks, split, count in ((7, "train", 200), (15, "train", 100), (7, "heldout", 50))
        for i in range(count)
    ]
    return world + [wild_script(seed) for seed in range(650)]


def assert_inverts(script: Script, caption: Caption) -> ParsedPlan:
    """The parser finds the same things, acts and claims, and from them the true order of every pair."""
    plan = parse(caption.text)
    order = caption.events_in_text_order
    told = [script.events[i] for i in order]
    which = []
    for thing in plan.things:
        fitting = [
            i
            for i, true in enumerate(script.things)
            if (true.colour, true.shape) == (thing.colour, thing.shape) and thing.size in (None, true.size)
        ]
        assert len(fitting) == 1, (caption.text, thing)
        which += fitting
    assert sorted(which) == list(range(len(script.things))), caption.text
    acts = [(which[e.agent], e.action, None if e.target is None else which[e.target]) for e in plan.events]
    assert acts == [(e.agent, e.action, e.target) for e in told], caption.text
    assert all(holds(claim, told) for claim in plan.claims), caption.text
    for i, j in itertools.combinations(range(len(told)), 2):
        a, b = told[i], told[j]
        true = "before" if precedes(a, b) else "after" if precedes(b, a) else "overlap"
        assert plan.order(i, j) == true, (caption.text, i, j)
    place = {event: i for i, event in enumerate(order)}
    mine = {Claim(c.relation, place[c.first], place[c.second]) for c in caption.claims}
    assert {_unordered(c) for c in mine} == {_unordered(c) for c in plan.claims}, caption.text
    if plan.background is not None:
        assert plan.background == (script.background.shade, script.background.texture)
    return plan


def _unordered(claim: Claim):
    return (claim.relation, frozenset((claim.first, claim.second))) if claim.relation in ("overlap", "equal") else claim


def test_parse_inverts_captions(scripts):
    for script in scripts:
        for number in range(2):
            assert_inverts(script, describe(script, seed=4, number=number))


def test_timelines_of_parsed_plans_satisfy_the_claims(scripts):
    for script in scripts[::5]:
        plan = parse(describe(script, seed=5).text)
        times = plan.consequences.timeline()
        events = [Event(e.agent, e.action, e.target, *t) for e, t in zip(plan.events, times, strict=True)]
        assert all(holds(claim, events) for claim in plan.claims)
        assert all(e.start < e.end for e in events)
        assert min(e.start for e in events) == 0
        assert [row[3] for row in plan.plan()] == sorted(map(list, times))


def test_half_of_the_captions_are_reordered(scripts):
    chosen = [s for s in scripts if any(precedes(a, b) for a in s.events for b in s.events)]
    found = Counter(text_order(c) for s in chosen for c in tell(s, seed=0, count=4))
    assert found["free"] == 0
    assert 0.42 < found["different"] / found.total() < 0.55


@pytest.mark.parametrize(("share", "expected"), [(0.0, 0), (0.25, 2), (0.5, 4), (1.0, 8)])
def test_share_of_reordered_captions_is_exact(share, expected):
    script = script_of((0, "grow", None, 0, 2), (1, "move_left", None, 2, 4), (2, "blink", None, 4, 7))
    for seed in range(10):
        found = tell(script, seed, count=8, reordered_share=share)
        assert sum(caption.reordered for caption in found) == expected
        for caption in found:
            events = [script.events[i] for i in caption.events_in_text_order]
            turned = any(precedes(b, a) for a, b in itertools.combinations(events, 2))
            assert caption.reordered == turned
            assert text_order(caption) == ("different" if turned else "same")


def test_free_text_order():
    assert text_order(describe(script_of((0, "grow", None, 0, 3)), 0)) == "free"
    assert text_order(describe(script_of((0, "grow", None, 0, 3), (1, "blink", None, 2, 4)), 0)) == "free"


def test_reading_text_order_as_time_order_fails_where_it_should():
    """What a model scores that ignores the connectives: right on half of the captions with one ordered pair."""
    script = script_of((0, "grow", None, 0, 3), (1, "move_left", None, 3, 7))
    right = [caption.events_in_text_order == (0, 1) for caption in tell(script, 0, 40)]
    assert sum(right) == 20


def test_swapped_events_contradict_the_caption():
    script = script_of((0, "grow", None, 0, 3), (1, "move_left", None, 3, 7))
    swapped = (Event(1, "move_left", None, 0, 3), Event(0, "grow", None, 3, 7))
    for caption in tell(script, 1, 40):
        plan = parse(caption.text)
        names = [(plan.things[e.agent].colour, e.action) for e in plan.events]
        by_act = {("red", "grow"): swapped[1], ("blue", "move_left"): swapped[0]}
        assert not all(holds(claim, [by_act[name] for name in names]) for claim in plan.claims), caption.text


def test_captions_are_deterministic_distinct_and_nested(scripts):
    for script in scripts[::20]:
        few, many = captions(script, 7, 3), captions(script, 7, 6)
        assert few == many[:3] == captions(script, 7, 3)
        assert len(set(many)) == 6
        assert captions(script, 8, 6) != many


def test_golden_captions():
    script = script_of((0, "grow", None, 0, 2), (1, "move_left", None, 2, 4), (0, "approach", 1, 4, 7))
    assert captions(script, 0, 4) == GOLDEN


GOLDEN = (
    "After the red square becomes bigger, the blue disc travels to the left. Later on, the square heads "
    "for the blue disc.",
    "Before a small red square gets closer to a blue circle, first the red square grows and then the "
    "blue circle moves to the left.",
    "A red square becomes bigger. At the very end, a large blue disc glides to the left, after which the "
    "square moves towards it.",
    "The tiny red square moves towards the big blue disc. At the very beginning, the red square grows, "
    "then the blue disc travels leftward.",
)


def test_mentions_are_where_they_say(scripts):
    for script in scripts[::3]:
        caption = describe(script, seed=9)
        first: dict[int, str] = {}
        end = 0
        for mention in caption.mentions:
            words = caption.text[mention.start : mention.end].lower()
            assert mention.start >= end
            end = mention.end
            assert words == "it" or words.split()[0] in ("a", "an", "the"), words
            if words != "it":
                first.setdefault(mention.thing, words)
        assert set(first) == set(range(len(script.things)))
        for thing, words in first.items():
            true = script.things[thing]
            assert any(f"{c} {s}" in words for c in COLOUR_WORDS[true.colour] for s in SHAPE_WORDS[true.shape])


def test_captions_are_written_properly(scripts):
    for script in scripts:
        text = describe(script, seed=10).text
        assert re.fullmatch(r"([A-Z][a-z,;: -]*[a-z]\.)( [A-Z][a-z,;: -]*[a-z]\.)*", text), text
        assert "  " not in text
        assert " ," not in text
        assert not re.search(r"\ba [aeiou]|\ban [^aeiou]", text.lower()), text
        assert not re.search(r"\b(\w+) \1\b", text), text


def test_long_scripts_take_few_sentences():
    settings = ScriptSettings(15, 1, 3, 7, 7, 0.0)
    counts = [describe(sample_script(0, i, settings), 0).text.count(".") for i in range(40)]
    assert np.mean(counts) < 3.6
    assert max(counts) <= 7


def test_every_usual_pattern_is_used(scripts):
    used = set()
    for script in scripts[:350]:
        for number in range(4):
            sentences = [words_of(s) for s in describe(script, 12, number).text.split(".") if s]
            for words in sentences[bool(read_introduction(sentences[0])) :]:
                used |= {reading.pattern.text for _, reading in read_sentence(words)}
    usual = {p.text for group in (*SEQUENCES.values(), PAIRS, *HOSTS.values()) for p in group}
    usual |= {p.text for p in CLIQUES[3] if not p.one_action}
    rare = {p.text for group in (*SEQUENCES.values(), PAIRS) for p in group if p.one_agent or p.one_action}
    assert usual - used <= rare | {p.text for p in HOSTS[1, 4]}


SEQUENTIAL = (
    "Before the blue disc moves left, the red square grows.",
    "After the red square grows, the blue disc moves left.",
    "The blue disc moves left after the red square grows.",
    "The blue circle slides to the left once a small red square has got bigger.",
    "A blue disc drifts left, but only after a red square expands.",
    "At the end, the blue disc moves left. Before this, the red square becomes larger.",
    "First the red square grows, and then the blue disc moves left.",
    "The red square expands, after which the blue disc moves left.",
)


@pytest.mark.parametrize("text", SEQUENTIAL)
def test_understands_order(text):
    plan = parse(text)
    at = {(plan.things[e.agent].name, e.action): i for i, e in enumerate(plan.events)}
    assert set(at) == {("red square", "grow"), ("blue circle", "move_left")}
    assert plan.order(at["red square", "grow"], at["blue circle", "move_left"]) == "before"
    assert [row[:2] for row in plan.plan()] == [["red square", "grow"], ["blue circle", "move_left"]]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Before it vanishes, the red bar grows.", [["red bar", "grow", None], ["red bar", "vanish", None]]),
        (
            "The red bar follows the blue ring as the ring moves up and to the right.",
            [["red bar", "follow", "blue ring"], ["blue ring", "move_up_right", None]],
        ),
        (
            "A red bar shrinks. Then a pink bar approaches it.",
            [["red bar", "shrink", None], ["pink bar", "approach", "red bar"]],
        ),
        ("After blinking, the red bar spins.", [["red bar", "blink", None], ["red bar", "rotate", None]]),
    ],
)
def test_understands_who(text, expected):
    assert [row[:3] for row in parse(text).plan()] == expected


@pytest.mark.parametrize(
    "text",
    [
        "",
        "The video shows a red square.",
        "The red square sings.",
        "The square grows.",  # of which colour?
        "It grows.",
        "The red square grows before the blue disc.",
        "The red square and the blue disc grow.",  # at the same time, or not?
        "The red square grows as the blue ring spins. It shrinks.",
        "At the end, the red square grows. At the end, the blue ring spins.",
        "A red ring spins. Meanwhile, the red ring, the red ring.",
        "First the red square grows, then the blue disc moves left after the ring vanishes and spins.",
    ],
)
def test_refuses_what_is_not_clear(text):
    with pytest.raises(DataError):
        parse(text)


def test_scenes_and_their_captions(scripts):
    for script in scripts[::4]:
        found = scenes(script)
        assert sorted(i for scene in found for i in scene.events) == list(range(len(script.events)))
        for a, b in itertools.pairwise(found):
            assert a.end <= b.start
        texts = scene_captions(script)
        assert texts == scene_captions(script)
        for scene, text in zip(found, texts, strict=True):
            plan = parse(text)  # so it makes sense without the others
            true = Counter(script.events[i].action for i in scene.events)
            assert Counter(e.action for e in plan.events) == true


def test_label():
    assert label(RED) == "red square"


def test_json():
    made = describe(script_of((0, "grow", None, 0, 2)), 0).to_json()
    assert made["mentions"][0]["thing"] == 0
    assert made["reordered"] is False


def _clauses(colour: str) -> set[str]:
    """Every "the [size] <colour> <shape> <act>" with an act that has no target."""
    sizes = ["", *(f"{word} " for words in SIZE_WORDS.values() for word in words)]
    return {
        f"the {size}{colour_word} {noun} {phrase}"
        for size in sizes
        for colour_word in COLOUR_WORDS[colour]
        for shape, nouns in SHAPE_WORDS.items()
        for noun in nouns
        for action in ACTIONS
        if action not in TARGETED and (action != "rotate" or shape in ROTATABLE)
        for phrase in VERB_PHRASES[action, "now"]
    }


def test_more_than_a_million_captions():
    """A lower bound by counting those of one pattern, "<clause>, then <clause>.", about two things of different colour.

    The two clauses of such a caption can be read off it, so different pairs of clauses are different captions.
    """
    clauses = {colour: _clauses(colour) for colour in COLOURS}
    assert not any("," in clause for found in clauses.values() for clause in found)
    assert len(set().union(*clauses.values())) == sum(map(len, clauses.values()))
    count = sum(len(clauses[a]) * len(clauses[b]) for a, b in itertools.permutations(COLOURS, 2))
    assert count > 10**6
    assert count == BOUND
    rng = np.random.default_rng(0)
    listed = {colour: sorted(found) for colour, found in clauses.items()}
    for _ in range(200):  # and they are captions: the parser takes them
        a, b = rng.choice(COLOURS, 2, replace=False)
        first, second = (listed[colour][rng.integers(len(listed[colour]))] for colour in (a, b))
        text = f"{first}, then {second}."
        assert parse(text[0].upper() + text[1:]).order(0, 1) == "before"


BOUND = 8572502016


def test_few_duplicates_among_many_draws():
    settings = ScriptSettings(7, 1, 3, 1, 5, 0.5)
    drawn = [text for i in range(150) for text in captions(sample_script(2, i, settings), 0, 20)]
    assert len(drawn) > 2900
    assert len(set(drawn)) > 0.98 * len(drawn)


def test_a_simple_script_has_hundreds_of_captions():
    assert len(captions(script_of((0, "rotate", None, 0, 3), things=(RED,)), 0, 200)) == 200


def test_speed():
    settings = ScriptSettings(7, 1, 3, 1, 7, 0.5)
    made = [sample_script(5, i, settings) for i in range(50)]
    start = time.process_time()
    for script in made:
        captions(script, 0, 8)
    assert 400 / (time.process_time() - start) > 1000  # 5000 on one core of 2023; this catches a tenfold loss


@pytest.mark.parametrize(
    ("phrase", "forms"),
    [
        ("move left", ("moves left", "moved left", "moving left")),
        ("flash", ("flashes", "flashed", "flashing")),
        ("get bigger", ("gets bigger", "got bigger", "getting bigger")),
        ("approach {T}", ("approaches {T}", "approached {T}", "approaching {T}")),
        ("spin", ("spins", "spun", "spinning")),
        ("stay still", ("stays still", "stayed still", "staying still")),
    ],
)
def test_conjugation(phrase, forms):
    assert conjugate(phrase)[1:] == forms


def test_patterns_are_read_off_their_letters():
    late = pattern("{Y+}, but only after {X}")
    assert not late.chronological
    assert late.letters == ("Y", "X")
    assert [slot.wide for slot in late.slots] == [True, False]
    assert pattern("{Y} as soon as {X:perfect}").successive == "meets"
    assert pattern("{A} and {B} at exactly the same time").simultaneous == "equal"


@pytest.mark.parametrize("relation", RELATIONS)
def test_claims_agree_with_all_pairs_of_intervals(relation):
    def means(a: Event, b: Event) -> bool:
        return {
            "before": a.end <= b.start,
            "meets": a.end == b.start,
            "overlap": a.start < b.end and b.start < a.end,
            "joins": a.start <= b.start < a.end,
            "equal": (a.start, a.end) == (b.start, b.end),
        }[relation]

    spans = [(s, e) for s in range(4) for e in range(s + 1, 5)]
    for (s, e), (u, v) in itertools.product(spans, spans):
        a, b = Event(0, "grow", None, s, e), Event(1, "grow", None, u, v)
        assert holds(Claim(relation, 0, 1), [a, b]) == means(a, b)


def test_consequences():
    claims = [Claim("before", 0, 1), Claim("joins", 1, 2), Claim("meets", 2, 3)]
    found = Consequences(4, claims)
    assert found.is_consistent()
    assert found.order(0, 2) == "before"  # over before 1 begins, and 2 begins later than 1
    assert found.order(3, 0) == "after"
    assert found.order(1, 2) == "overlap"
    assert found.order(1, 3) is None
    assert not found.is_complete()
    assert not Consequences(2, [Claim("before", 0, 1), Claim("overlap", 0, 1)]).is_consistent()
