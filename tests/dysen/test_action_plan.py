"""Plans: the paper's example, valid data only, and round trips of 10,000 plans."""

import json
import random

import pytest
import random_graphs

from dysen.action_plan import MAX_EVENTS, MAX_TICK, Event, Plan
from dysen.names import clean, identity, label, shorten
from dysen.parsing_answers import parse_plan
from dysen.replies import plan_reply
from dysen.text_form import plan_from_text, plan_to_text
from vdm.errors import PlanError

PAPER = Plan(
    (
        Event("lady", "sitting on", "chair", 0, 5),
        Event("lady", "drinking", "coffee", 1, 2),
        Event("lady", "meeting", "friend", 3, 4),
        Event("lady", "greeting", "friend", 3, 4),
        Event("lady", "looking out", "window", 3, 5),
    )
)


def test_the_example_of_the_paper():
    text = (
        "(lady, sitting on, chair, (0v, 5v)), (lady, drinking, coffee, (1v, 2v)), (lady, meeting, friend, (3v, 4v)), "
        "(lady, greeting, friend, (3v, 4v)), (lady, looking out, window, (3v, 5v))"
    )
    assert plan_to_text(PAPER) == text
    assert plan_from_text(text) == PAPER
    assert PAPER.to_json()[1] == ["lady", "drinking", "coffee", [1, 2]]
    assert (PAPER.last, PAPER.num_ticks) == (5, 6)
    assert PAPER.objects == ("lady", "chair", "coffee", "friend", "window")


def test_ten_thousand_plans_survive_json_and_text():
    rng = random.Random(0)
    for _ in range(10_000):
        plan = random_graphs.plan(rng)
        assert Plan.from_json(json.loads(json.dumps(plan.to_json()))) == plan
        assert plan_from_text(plan_to_text(plan)) == plan


def test_the_tolerant_reader_reads_what_we_write():
    rng = random.Random(1)
    for _ in range(1_000):
        plan = random_graphs.plan(rng)
        # It takes these for nobody, and drops articles.
        changed = {"-", "none", "null", "The Lady", 'the "big" one'}
        events = [e for e in plan.events if not changed & {*e.triplet.names, e.predicate}]
        if not events:
            continue
        plan = Plan(tuple(events))
        if len({identity(name) for name in plan.objects}) == len(plan.objects):
            assert parse_plan(plan_to_text(plan)).plan == plan
            assert parse_plan(json.dumps(plan.to_json())).plan == plan
            parsed = parse_plan(plan_reply(plan))
            assert (parsed.plan, parsed.repairs) == (plan, ())


@pytest.mark.parametrize(
    "data",
    [
        [],
        None,
        {},
        "lady",
        [["lady", "sits", None]],
        [["lady", "sits", None, [0]]],
        [["lady", "sits", None, [1, 1]]],
        [["lady", "sits", None, [-1, 1]]],
        [["lady", "sits", None, [0, MAX_TICK + 1]]],
        [["lady", "sits", None, [0.0, 1]]],
        [["lady", "sits", None, [False, True]]],
        [["lady", "sits", 3, [0, 1]]],
        [["", "sits", None, [0, 1]]],
        [[" lady", "sits", None, [0, 1]]],
        [["la\ndy", "sits", None, [0, 1]]],
        [["l" * 81, "sits", None, [0, 1]]],
        [["lady", "sits", None, [0, 1]]] * 2,
        [["lady", f"does {i}", None, [0, 1]] for i in range(MAX_EVENTS + 1)],
    ],
)
def test_what_is_no_plan(data):
    with pytest.raises(PlanError):
        Plan.from_json(data)


@pytest.mark.parametrize(
    "text",
    ["", "(a, b, c)", "(a, b, c, (0v, 1v)", "*(a, b, c, (0v, 1v))", "(a, b, c, (0, 1))", "and (a, b, c, (0v, 1v))"],
)
def test_what_is_no_text_of_a_plan(text):
    with pytest.raises(PlanError):
        plan_from_text(text)


def test_stretched_plans_keep_their_proportions():
    plan = Plan.from_json([["a", "b", None, [0, 1]], ["a", "c", None, [1, 2]], ["d", "e", None, [0, 3]]])
    assert plan.stretched(7).to_json() == [["a", "b", None, [0, 2]], ["a", "c", None, [2, 5]], ["d", "e", None, [0, 7]]]
    assert plan.stretched(3) is plan
    assert plan.stretched(1) is plan, "longer plans stay as they are"
    for last in range(3, 30):
        times = {t for event in plan.stretched(last).events for t in (event.start, event.end)}
        assert (len(times), max(times)) == (4, last), "no two times become one"


def test_a_plan_cannot_be_changed():
    with pytest.raises(AttributeError):
        PAPER.events[0].end = 9
    assert hash(PAPER) == hash(plan_from_text(plan_to_text(PAPER)))


def test_names():
    assert clean("  a\tb\u2028c\x00\u202ed ") == "a b cd"
    assert clean("e\u0301") == "\u00e9"
    assert clean("\ud800x") == "x"
    assert identity("The Lady") == identity("lady")
    assert identity("a") == "a"
    assert (label("person #2"), label("#2"), label("person 2")) == ("person", "#2", "person 2")
    assert shorten("x" * 1000) == "x" * 77 + " ... " + "x" * 77
