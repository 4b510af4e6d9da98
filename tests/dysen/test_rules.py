"""The reader of English captions: golden plans, the shapes world, and texts that are no captions."""

import functools
import random
import string

import pytest

from data.shapes.parse import details_of, parse, plan_of
from data.shapes.sampling import sample_script
from dysen.action_plan import Plan, Triplet
from dysen.english.consequences import marked, marks, marks_of
from dysen.english.reading import read_caption
from dysen.english.timeline import Timeline
from dysen.english.words import verb
from dysen.imagination import Imagination, Question, answer_all
from dysen.llm.base import Answer
from dysen.llm.divided import Divided
from dysen.llm.rules import Rules
from dysen.parsing_answers import parse_plan
from dysen.prompts import plan_prompt, prompt, scene_query, scenes_query
from dysen.replies import PlanReply, SceneReply, ScenesReply
from dysen.scene_graph import SceneGraph, event_to_dsg
from dysen.text_form import plan_to_text
from tests.dysen.scripted_model import Scripted
from vdm.errors import DataError

GOLDEN = {
    "a lady sitting on the chair and drinking coffee, meeting a friend, greeting them, and then looking out window":
        "(lady, sit on, chair, (0v, 4v)), (lady, drink, coffee, (0v, 1v)), (lady, meet, friend, (1v, 2v)), "
        "(lady, greet, friend, (2v, 3v)), (lady, look out, window, (3v, 4v))",
    "A man is playing guitar.": "(man, play, guitar, (0v, 1v))",
    "A woman sits on a bench and reads a book.": "(woman, sit on, bench, (0v, 1v)), (woman, read, book, (0v, 1v))",
    "A dog runs across the field, chasing a ball.": "(dog, run across, field, (0v, 1v)), (dog, chase, ball, (0v, 1v))",
    "Two men are playing table tennis while a crowd watches them.":
        "(men, play, table tennis, (0v, 1v)), (crowd, watch, men, (0v, 1v))",
    "After washing his hands, a chef cuts vegetables and then puts them into a pot.":
        "(chef, wash, hands, (0v, 1v)), (chef, cut, vegetables, (1v, 2v)), (chef, put, vegetables, (2v, 3v))",
    "Before leaving the house, the boy hugs his mother.":
        "(boy, leave, house, (1v, 2v)), (boy, hug, mother, (0v, 1v))",
    "A girl opens the door, walks in and sits down.":
        "(girl, open, door, (0v, 1v)), (girl, walk in, -, (1v, 2v)), (girl, sit down, -, (2v, 3v))",
    "A ball is thrown by a boy and caught by a dog.": "(boy, throw, ball, (0v, 1v)), (dog, catch, ball, (1v, 2v))",
    "A young man in a red shirt is riding a bicycle down the street.": "(man, ride, bicycle, (0v, 1v))",
    "A cat jumps onto the table, then knocks over a glass of water.":
        "(cat, jump onto, table, (0v, 1v)), (cat, knock over, glass of water, (1v, 2v))",
    "Close up of a flower.": "(flower, appear, -, (0v, 1v))",
    "The sun rises over the mountains as birds fly in the sky.":
        "(sun, rise over, mountains, (0v, 1v)), (birds, fly in, sky, (0v, 1v))",
    "A man picks up a phone, dials a number and starts to talk.":
        "(man, pick up, phone, (0v, 1v)), (man, dial, number, (1v, 2v)), (man, talk, -, (2v, 3v))",
    "A red car overtakes a blue car. Then the blue car stops.":
        "(red car, overtake, blue car, (0v, 1v)), (blue car, stop, -, (1v, 2v))",
    "A man and a woman are dancing in the park. Meanwhile, a dog barks at them.":
        "(man, dance in, park, (0v, 1v)), (woman, dance in, park, (0v, 1v)), "
        "(dog, bark at, man, (0v, 1v)), (dog, bark at, woman, (0v, 1v))",
    "The boy kicks the ball after he runs to it.": "(boy, kick, ball, (1v, 2v)), (boy, run to, ball, (0v, 1v))",
    "A group of people are cheering while a player scores a goal, followed by fireworks.":
        "(people, cheer, -, (0v, 1v)), (player, score, goal, (0v, 1v)), (fireworks, appear, -, (1v, 2v))",
    "A woman who is wearing a hat walks into a shop, buys an apple and leaves.":
        "(woman, wear, hat, (0v, 3v)), (woman, walk into, shop, (0v, 1v)), (woman, buy, apple, (1v, 2v)), "
        "(woman, leave, -, (2v, 3v))",
    "First a chef mixes the dough, then he rolls it, and finally he bakes it.":
        "(chef, mix, dough, (0v, 1v)), (chef, roll, dough, (1v, 2v)), (chef, bake, dough, (2v, 3v))",
    "While the teacher writes on the board, the students take notes.":
        "(teacher, write on, board, (0v, 1v)), (students, take, notes, (0v, 1v))",
    "A toddler tries to stand up but falls down.":
        "(toddler, stand up, -, (0v, 1v)), (toddler, fall down, -, (1v, 2v))",
    "The video shows a man cooking in the kitchen.": "(man, cook in, kitchen, (0v, 1v))",
    "At the end, the dog sleeps. Before that, it eats.": "(dog, sleep, -, (1v, 2v)), (dog, eat, -, (0v, 1v))",
    "He throws the frisbee and the dog jumps to catch it.":
        "(man, throw, frisbee, (0v, 2v)), (dog, jump, -, (0v, 1v)), (dog, catch, frisbee, (1v, 2v))",
    "A bartender shakes a cocktail, pours it into a glass and adds a slice of lime.":
        "(bartender, shake, cocktail, (0v, 1v)), (bartender, pour, cocktail, (1v, 2v)), "
        "(bartender, add, slice of lime, (2v, 3v))",
    "A girl with long hair brushes her teeth before going to bed.":
        "(girl, brush, teeth, (0v, 1v)), (girl, go to, bed, (1v, 2v))",
    "A man starts a fire, sits down next to it and warms his hands.":
        "(man, start, fire, (0v, 1v)), (man, sit down next to, fire, (1v, 2v)), (man, warm, hands, (1v, 2v))",
    "Two boys are wrestling on the grass and laughing.":
        "(boys, wrestle on, grass, (0v, 1v)), (boys, laugh, -, (0v, 1v))",
    "A man is mowing the lawn while his wife waters the flowers.":
        "(man, mow, lawn, (0v, 1v)), (wife, water, flowers, (0v, 1v))",
    "A waiter carrying a tray of drinks trips and drops everything.":
        "(waiter, carry, tray of drinks, (0v, 2v)), (waiter, trip, -, (0v, 1v)), (waiter, drop, everything, (1v, 2v))",
    "A mother reads a book to her son before he falls asleep.":
        "(mother, read, book, (0v, 1v)), (son, fall asleep, -, (1v, 2v))",
    "A man bends down to pick up a coin.": "(man, bend down, -, (0v, 1v)), (man, pick up, coin, (1v, 2v))",
}  # fmt: skip


@pytest.mark.parametrize("caption", GOLDEN, ids=[caption[:40] for caption in GOLDEN])
def test_golden(caption):
    assert plan_to_text(read_caption(caption).plan) == GOLDEN[caption]


def test_case_and_final_stops_change_nothing():
    for caption in GOLDEN:
        plain = read_caption(caption).plan
        assert read_caption(caption.upper()).plan == plain
        assert read_caption("  " + caption.rstrip(".").replace(" ", "  ") + "!").plan == plain


@pytest.mark.parametrize("number", range(2))
def test_what_connectives_mean(number):
    """One story, told in every way that English has for it."""
    a, b = ("a dog barks", "a cat runs")[:: (-1) ** number]
    told = {
        "before": [f"{a}, then {b}", f"{a} and then {b}", f"{a} before {b}", f"after {a}, {b}", f"{b} after {a}",
                   f"before {b}, {a}", f"first {a}, then {b}",
                   f"{a}, followed by {b}", f"{a}. {b}", f"{a}. later, {b}", f"{b}, but first {a}",
                   f"{b}. before that, {a}", f"once {a}, {b}", f"{a}, and finally {b}", f"in the end, {b}. at first, {a}",
                   f"{a}, after which {b}", f"{b} only after {a}"],
        "same": [f"{a} while {b}", f"while {a}, {b}", f"{a} as {b}", f"{a}. meanwhile, {b}", f"{a} and {b} at the same time",
                 f"{a}, and at the same time {b}", f"when {a}, {b}", f"{a}. at the same time, {b}",
                 f"{a} and {b} simultaneously"],
    }  # fmt: skip
    for relation, captions in told.items():
        for caption in captions:
            events = {event.agent: event for event in read_caption(caption).plan.events}
            assert set(events) == {"dog", "cat"}, caption
            early, late = events[a.split()[1]], events[b.split()[1]]
            assert early.predicate == a.split()[2].rstrip("s"), caption
            if relation == "before":
                assert early.end <= late.start, caption
            else:
                assert early.start < late.end, caption
                assert late.start < early.end, caption


def test_attributes_and_places():
    details = read_caption("A young man in a red shirt rides a small horse. The horse is brown.").details
    assert {entry.name: entry.attributes for entry in details.objects} == {
        "man": ("young",), "shirt": ("red",), "horse": ("small", "brown")
    }  # fmt: skip
    assert details.relations == (Triplet("man", "in", "shirt"),)


@pytest.mark.parametrize(
    ("form", "base"),
    [("sitting", "sit"), ("lying", "lie"), ("riding", "ride"), ("writes", "write"), ("opened", "open"), ("tries", "try"),
     ("vlogging", "vlog"), ("ran", "run"), ("baking", "bake"), ("watches", "watch"), ("hugging", "hug")],
)  # fmt: skip
def test_forms_of_verbs(form, base):
    assert verb(form)[0] == base


def test_nouns_that_look_like_verbs():
    for caption, agent in {
        "The ring falls down.": "ring", "A building burns.": "building", "A swimming pool fills with water.": "pool",
        "The paint drips.": "paint", "A smiling baby claps.": "baby",
    }.items():  # fmt: skip
        assert [event.agent for event in read_caption(caption).plan.events] == [agent], caption


# ---- times


def test_timeline_keeps_the_first_of_two_contradicting_claims():
    timeline = Timeline(3)
    assert timeline.before(0, 1)
    assert timeline.before(1, 2)
    assert not timeline.before(2, 0)
    assert not timeline.overlap(0, 2)
    assert timeline.intervals() == [(0, 1), (1, 2), (2, 3)]
    assert timeline.overlap(0, 1) is False


def test_timeline_satisfies_what_it_accepts():
    rng = random.Random(0)
    for _ in range(200):
        count = rng.randint(1, 8)
        timeline, accepted = Timeline(count), []
        for _ in range(12):
            i, j, kind = rng.randrange(count), rng.randrange(count), rng.choice(["before", "overlap"])
            if i != j and getattr(timeline, kind)(i, j):
                accepted.append((kind, i, j))
        times = timeline.intervals()
        assert all(start < end for start, end in times)
        for kind, i, j in accepted:
            (a, b), (c, d) = times[i], times[j]
            assert b <= c if kind == "before" else (a < d and c < b)


# ---- the shapes world


@functools.cache
def shapes(count=500):
    """(caption, what it says) of clips nobody has rendered."""
    from data.shapes.grammar import captions
    from data.shapes.script import ScriptSettings

    settings = ScriptSettings(7, 1, 3, 1, 7, 0.5)
    found = []
    for index in range(count):
        script = sample_script(0, 50_000 + index, settings)
        found.append((captions(script, 0, 1)[0], script))
    return found


def agreement(plan, parsed):
    """(pairs whose order is as the caption says, pairs whose order the caption decides), by position of the events."""
    right = total = 0
    for j in range(len(parsed.events)):
        for i in range(j):
            order = parsed.order(i, j)
            if order is not None:
                a, b = plan[i], plan[j]
                found = "before" if a.end <= b.start else "after" if b.end <= a.start else "overlap"
                right, total = right + (found == order), total + 1
    return right, total


def test_shapes_captions_with_their_parser():
    """Where the caption decides, the plan is the truth."""
    rules, right, total = Rules(parser=plan_of, details=None), 0, 0
    for caption, script in shapes():
        plan = rules.plan_of(caption, max_tick=15)
        assert {e.triplet for e in plan.events} == {(e.triplet) for e in Plan.from_json(script.plan()).events}
        parsed = parse(caption)
        names = [thing.name for thing in parsed.things]
        rows = [(names[e.agent], e.action, None if e.target is None else names[e.target]) for e in parsed.events]
        found = [next(x for x in plan.events if (x.agent, x.predicate, x.target) == row) for row in rows]
        if len(set(rows)) == len(rows):
            hits, pairs = agreement(found, parsed)
            right, total = right + hits, total + pairs
    assert right == total > 3_000


def test_shapes_captions_by_the_general_rules():
    """The baseline without the grammar: number of events and their order, events taken in the order of the text."""
    whole = right = total = 0
    for caption, _ in shapes():
        parsed, plan = parse(caption), read_caption(caption).plan
        if plan is not None and len(plan.events) == len(parsed.events):
            whole += 1
            hits, pairs = agreement(plan.events, parsed)
            right, total = right + hits, total + pairs
    assert whole > 0.9 * len(shapes())
    assert right > 0.9 * total


def test_a_parser_that_refuses_leaves_the_caption_to_the_rules():
    rules = Rules(parser=plan_of, details=None)
    with pytest.raises(DataError):
        plan_of("A dog barks.")
    assert rules.plan_of("A dog barks.", max_tick=15).to_json() == [["dog", "bark", None, [0, 1]]]
    assert rules.fingerprint()["parser"] == "data.shapes.parse.plan_of"
    assert rules.fingerprint() == Rules(parser=functools.partial(plan_of), details=None).fingerprint()


# ---- the interface


@pytest.mark.parametrize("form", ["json", "tuples"])
def test_questions_are_answered_from_their_prompts(form):
    caption = "A young dog barks in a red house, then it sleeps."
    rules = Rules(parser=None, details=None)
    demonstrations = ['Sentence: "A cat sings."\nPlan: (cat, sing, -, (0v, 1v))\n']
    asked = Question(plan_prompt(caption, demonstrations=demonstrations, form=form), PlanReply)
    plan = read_caption(caption).plan
    assert parse_plan(rules.answer([asked])[0].text).plan == plan
    dsg = event_to_dsg(plan)
    one = Question(prompt("imagine", form, [], scene_query(caption, [dsg[1]], dsg[0], [dsg[1]])), SceneReply)
    every = Question(prompt("polish", form, [], scenes_query(caption, dsg)), ScenesReply)
    scene = SceneReply.model_validate_json(rules.answer([one])[0].text)
    assert [(a.object, a.attribute) for a in scene.attributes] == [("dog", "young"), ("house", "red")]
    scenes = ScenesReply.model_validate_json(rules.answer([every])[0].text).scenes
    assert len(scenes) == len(dsg) == 3
    assert [a.object for a in scenes[1].attributes] == ["dog"]


def scenes_of(caption: str, rows: list, rules: Rules, **settings) -> list[dict[str, tuple[str, ...]]]:
    """Attributes of things in each graph that is imagined for a plan."""
    imagination = Imagination(
        **{"window": 1, "calls": "each", "polish": False, "retries": 0, "form": "json"} | settings
    )
    asking = imagination.ask(caption, event_to_dsg(Plan.from_json(rows)))
    imagined = answer_all(asking, lambda question: rules.answer([question])[0].text)
    assert not imagined.failures
    return [{entry.name: entry.attributes for entry in graph.objects} for graph in imagined.dsg]


def test_what_happened_leaves_its_marks():
    caption = "A small dog sits down, then it disappears, then it appears, then it barks."
    plan = [["dog", verb, None, [i, i + 1]] for i, verb in enumerate(["sit down", "disappear", "appear", "bark"])]
    told = [{"dog": ("small",)}, {"dog": ("small", "seated")}, {"dog": ("small", "seated", "gone")}]
    told += [{"dog": ("small", "seated", "in sight")}] * 2
    scenes = functools.partial(scenes_of, caption, plan, Rules(parser=None, details=None))
    assert scenes() == scenes(calls="batched") == scenes(window=2) == told
    # Without its window a scene knows the caption alone, until the last question shows all scenes together.
    assert scenes(window=0) == [{"dog": ("small",)}] * 5
    assert scenes(window=0, polish=True) == told


def test_marks_of_shapes():
    assert marks("move_up_left") == ["farther left", "higher"]
    assert marks("grow") == ["larger"]
    assert marks("blink") == []
    assert marked(("red", "larger"), ["smaller", "turned"]) == ("red", "smaller", "turned")


def test_marks_are_left_on_whom_something_is_done_to():
    plan = [["girl", "open", "door", [0, 1]], ["girl", "sit on", "chair", [1, 2]], ["girl", "leave", "chair", [2, 3]]]
    plan += [["girl", "look at", "door", [3, 4]]]
    scenes = scenes_of("A girl opens a door.", plan, Rules(parser=None, details=None))
    assert scenes[1] == {"girl": (), "chair": ()}
    assert scenes[2] == {"girl": ("seated",), "chair": ()}
    assert scenes[3]["girl"] == ("seated",), "she is not gone: the one she leaves may be a thing beside her"
    assert marks_of(Triplet("girl", "open", "door"), "door") == ["open"]
    assert marks_of(Triplet("girl", "open", "door"), "girl") == []
    assert marks_of(Triplet("door", "open", None), "door") == ["open"]


def test_details_of_shapes_whose_verbs_are_new():
    assert details_of(
        "We see a mid-sized yellow rod. It wankolks, then the yellow bar krompets a big violet disc."
    ) == {
        "objects": [
            {"name": "yellow bar", "attributes": ["yellow", "medium", "bar"]},
            {"name": "purple circle", "attributes": ["purple", "large", "circle"]},
        ],
        "actions": [],
        "relations": [],
    }
    rules, plan = Rules(parser=None, details=details_of), [["red square", "grow", None, [0, 1]]]
    assert scenes_of("A tiny red square wankolks.", plan, rules) == [{"red square": ("red", "small", "square")}] * 2
    assert SceneGraph.from_json(details_of("🙂")) == SceneGraph()


def test_one_model_plans_and_another_imagines():
    class Mute(Scripted):
        worth_caching = True

    plans = Mute(lambda question: Answer(f"plan {question.prompt}"))
    scenes = Mute(lambda question: Answer(f"scene {question.prompt}"))
    both = Divided(plans=plans, scenes=scenes)
    asked = [Question("a", PlanReply), Question("b", SceneReply), Question("c", PlanReply), Question("d", ScenesReply)]
    assert [answer.text for answer in both.answer(asked)] == ["plan a", "scene b", "plan c", "scene d"]
    assert both.fingerprint()["plans"] == plans.fingerprint()
    assert both.answer([]) == []


def test_no_caption_is_an_error_of_that_question_alone():
    rules = Rules(parser=None, details=None)
    asked = [Question(plan_prompt(caption, form="json"), PlanReply) for caption in ("🙂", "A dog barks.")]
    answers = rules.answer([*asked, Question("no sentence at all", PlanReply)])
    assert [answer.error is None for answer in answers] == [False, True, False]


def test_thousands_of_texts_that_are_no_captions():
    """Always a valid plan or none, in bounded time."""
    rng = random.Random(1)
    words = [*" ".join(GOLDEN).split(), "then",  "while", ",", ".", "before", "after", "and", "who", "of", "to", "is", "the",
             "by", "'s", "-", "🙂", "\ud800", "all while", "but first", "first", "once", "1", "it", "them",
             "at the same time"]  # fmt: skip
    for number in range(3_000):
        if number % 10:
            caption = " ".join(rng.choices(words, k=rng.randint(0, 25)))
        else:
            caption = "".join(rng.choices(string.printable, k=rng.randint(0, 200)))
        plan = Rules(parser=None, details=None).plan_of(caption, max_tick=15)
        assert plan is None or plan.last <= 15
    for long in (
        "a dog runs and " * 1_000,
        "of " * 5_000,
        "a " * 5_000,
        "who " * 5_000,
        "x" * 10_000,
        "then a cat, " * 800,
    ):
        Rules(parser=None, details=None).plan_of(long, max_tick=15)
