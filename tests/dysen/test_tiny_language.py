"""The small language model: its tokens, its cache, its grammar, and how it reads prompts."""

import pytest
import torch

from data.shapes.lessons import NewVerbs, Sequences
from data.shapes.parse import parse
from data.shapes.script import ACTIONS
from dysen.action_plan import Event, Plan
from dysen.demonstrations import Demonstration
from dysen.imagination import Question
from dysen.parsing_answers import parse_graph, parse_plan
from dysen.prompts import plan_prompt
from dysen.replies import PlanReply, SceneReply
from dysen.tiny.decoder import Decoder, Lookup
from dysen.tiny.lessons import IGNORED, batch_of, encode
from dysen.tiny.model import TinyModel, read_prompt
from dysen.tiny.vocabulary import CAPTION, FIRST_SLOT, FIRST_WORD, IDS, PLAN, SLOTS, UNKNOWN, WORDS, Tokens, plan_of
from dysen.tiny.writing import write
from vdm.errors import ConfigError


def sequences(**changes):
    given = {
        "seed": 0,
        "num_lessons": (2, 5),
        "ticks": 7,
        "max_things": 3,
        "max_events": 4,
        "ramp": 0,
        "new_share": 0.7,
    }
    return Sequences(**{**given, "num_val": 4, **changes})


def new_verbs(**changes):
    given = {"seed": 0, "num_new": 12, "num_pool": 40, "num_train": 50, "num_val": 20, "ticks": 7, "max_things": 3}
    return NewVerbs(**{**given, "min_events": 1, "max_events": 3, "pool_events": 2, **changes})


def decoder(**changes):
    torch.manual_seed(0)
    return Decoder(**{"width": 32, "depth": 2, "heads": 2, "length": 256, **changes}).eval()


# ---- lessons ----------------------------------------------------------------------------------------------------------


def test_a_lesson_says_what_the_parser_of_captions_understands():
    source = sequences(new_share=0.0)
    for index in range(60):
        for lesson in source.item("train", index)["lessons"]:
            assert sorted(lesson["plan"], key=str) == sorted(parse(lesson["caption"]).plan(), key=str)


def test_new_verbs_are_in_the_caption_and_the_verbs_they_replace_are_not():
    source, plain = new_verbs(), new_verbs(num_new=1)
    for index in range(20):
        item = source.item("val", index)
        told = [row[1] for row in item["plan"]]
        assert [source.lexicon.get(action) for action in told] == item["new"]
        assert any(item["new"])
        assert all(verb in item["caption"].lower() for verb in item["new"] if verb)
    assert source.item("val", 3) == new_verbs().item("val", 3) != source.item("train", 3)
    assert set(source.lexicon) <= set(ACTIONS)
    assert len(set(source.lexicon.values())) == 12
    assert len(plain.lexicon) == 1


def test_the_place_of_each_verb_is_known():
    for index in range(40):
        for lesson in sequences().item("train", index)["lessons"]:
            for verb, place in zip(lesson["new"], lesson["verbs"], strict=True):
                if verb is not None and place is not None:
                    assert lesson["caption"][place:].startswith(verb), lesson


def test_a_pool_shows_every_new_verb_about_equally_often():
    source = new_verbs()
    shown = [source.lexicon.get(row[1]) for one in source.pool() for row in one["plan"]]
    assert min(shown.count(verb) for verb in source.lexicon.values()) >= 40 // 12
    pool = [Demonstration.from_json(one) for one in source.pool()]
    assert len({one.id for one in pool}) == 40


def test_a_verb_that_no_candidate_can_have_is_never_new():
    """Nobody follows or rests in a caption of one event, and looking for one would never end."""
    source = new_verbs(num_new=13, pool_events=1, max_things=2)
    assert not {"follow", "stay"} & set(source.lexicon)
    assert len(source.pool()) == 40
    alone = new_verbs(num_new=14, max_things=1, max_events=1, pool_events=1)
    assert len(alone.lexicon) == 14
    for changes in ({"num_new": 15, "max_things": 1, "max_events": 1}, {"num_new": 18}):
        with pytest.raises(ConfigError, match="new verbs"):
            new_verbs(**{"pool_events": 1, **changes})


def test_sequences_differ_and_give_new_words_to_what_returns():
    items = [sequences().item("train", index) for index in range(40)]
    assert len({item["caption"] for item in items}) > 35
    explained = guessed = 0
    for item in items:
        known = set()
        for lesson in item["lessons"]:
            for verb in filter(None, lesson["new"]):
                explained, guessed = explained + (verb in known), guessed + (verb not in known)
                known.add(verb)
    assert explained > 40


def test_guessing_the_most_frequent_action_is_of_no_use():
    """Where few actions returned, a model said the one it had seen most often and never looked anything up."""
    source, right, count = sequences(max_things=1, max_events=1, num_lessons=(8, 8)), 0, 0
    for index in range(60):
        told = [lesson["plan"][0][1] for lesson in source.item("train", index)["lessons"]]
        returned = [action for place, action in enumerate(told[:-1]) if told[-1] in told[:-1]]
        count += bool(returned)
        right += bool(returned) and max(returned, key=returned.count) == told[-1]
    assert count > 40
    assert right / count < 0.5


def test_captions_tell_at_most_four_events_of_a_thing():
    one = {"max_things": 1, "ticks": 8}
    longest = [len(new_verbs(**one, min_events=4, max_events=4).item("val", i)["plan"]) for i in range(5)]
    assert longest == [4] * 5
    for changes in ({"max_events": 5, "ticks": 12}, {"max_events": 4, "ticks": 7}):
        with pytest.raises(ConfigError, match="events"):
            new_verbs(**{**one, **changes})


# ---- tokens -----------------------------------------------------------------------------------------------------------


def test_every_word_of_the_shapes_world_is_known():
    for index in range(150):
        for lesson in sequences(new_share=0.0).item("train", index)["lessons"]:
            tokens, *_ = encode([lesson])
            assert not tokens.slots, lesson["caption"]
            assert UNKNOWN not in tokens.ids
    assert set(ACTIONS) <= set(IDS)
    assert len(set(WORDS)) == len(WORDS)


def test_an_unknown_word_is_one_token_in_all_its_forms():
    tokens = Tokens()
    tokens.words("It blicks, is blicking and has BLICKED beside a wug. It moves, moving.")
    slots = [token for token in tokens.ids if FIRST_SLOT <= token < FIRST_WORD]
    assert slots[0] == slots[1] == slots[2] == tokens.slots["blick"]
    assert len(set(slots)) == len(tokens.slots) == 3  # blick, beside, wug
    assert [f for token, f in zip(tokens.ids, tokens.forms, strict=True) if token == slots[0]] == [1, 3, 2]
    assert [f for token, f in zip(tokens.ids, tokens.forms, strict=True) if token == IDS["move"]] == [1, 3]
    again = Tokens()
    again.words("wug")
    assert again.ids == [tokens.slots["wug"]], "the slot depends on the word"


def test_more_unknown_words_than_slots():
    tokens = Tokens()
    tokens.words(" ".join(f"word{i}x" for i in range(SLOTS + 5)))
    assert len(set(tokens.slots.values())) == SLOTS
    assert tokens.ids[-5:] == [UNKNOWN] * 5


def test_plans_come_back_from_tokens():
    plan = Plan((Event("red square", "move_left", None, 0, 2), Event("old lady", "sitting on", "wooden chair", 1, 30)))
    tokens = Tokens()
    places = tokens.plan(plan)
    assert [tokens.ids[place] for place in places] == [IDS["move_left"], tokens.slots["sitt"]]
    found = plan_of(tokens.ids, tokens.slots)
    assert found.events[0] == plan.events[0]
    assert (found.events[1].agent, found.events[1].target) == ("old lady", "wooden chair")
    cut = tokens.ids[: tokens.ids.index(5) + 4]  # in the second event
    assert plan_of(cut, tokens.slots) == Plan(plan.events[:1])
    assert plan_of([], {}) is None


def test_what_is_to_be_learned_leaves_out_what_would_be_guessed():
    lessons = [
        {"caption": "It blicks.", "plan": [["red bar", "grow", None, [0, 1]]], "new": ["blick"], "verbs": [3]},
        {"caption": "It is blicking.", "plan": [["red bar", "grow", None, [0, 1]]], "new": ["blick"], "verbs": [6]},
    ]
    tokens, wanted, explained, hints, verbs = encode(lessons)
    said = [i for i, token in enumerate(tokens.ids) if token == IDS["grow"]]
    assert [wanted[i] for i in said] == [False, True]
    assert explained == said[1:]
    assert sum(wanted) == 2 * 8 - 1  # red bar 0 grow 0 1 STOP END
    assert [tokens.ids[hint[0]] for hint in hints] == [tokens.slots["blick"]] * 2
    assert [hint[4] for hint in hints] == [IGNORED, IGNORED], "that is looked up later"
    assert verbs == [[place - 1, tokens.slots["blick"]] for place in said]
    batch = batch_of([lessons, lessons[:1]], length=20)
    assert batch.hints[:, :2].tolist() == [[0, 2], [0, 16], [1, 2]]
    assert batch.ids.shape == (2, 20)
    assert not batch.wanted[1, 13:].any()


# ---- decoder ----------------------------------------------------------------------------------------------------------


def prompt(index):
    tokens = Tokens()
    item = sequences().item("train", index)
    for lesson in item["lessons"][:-1]:
        tokens.caption(lesson["caption"])
        tokens.plan(Plan.from_json(lesson["plan"]))
    tokens.caption(item["caption"])
    return tokens


@torch.no_grad()
def test_step_by_step_is_as_all_at_once():
    net, prompts = decoder(), [prompt(1), prompt(2)]
    lengths = torch.tensor([len(p) for p in prompts])
    assert lengths[0] != lengths[1]
    more = torch.randint(FIRST_WORD, FIRST_WORD + 50, (2, 5))
    ids, forms = (
        torch.zeros(2, int(lengths.max()), dtype=torch.long),
        torch.zeros(2, int(lengths.max()), dtype=torch.long),
    )
    for row, p in enumerate(prompts):
        ids[row, : len(p)], forms[row, : len(p)] = torch.tensor(p.ids), torch.tensor(p.forms)
    scores, memory = net.read(ids, forms, lengths, 5)
    for i in range(6):
        for row, p in enumerate(prompts):
            whole = torch.tensor([p.ids + more[row, :i].tolist()]), torch.tensor([p.forms + [0] * i])
            expected = net(*whole)[0, -1]
            assert torch.allclose(scores[row], expected, atol=1e-4), (i, row)
        if i < 5:
            scores = net.step(more[:, i], lengths + i, memory)


@torch.no_grad()
def test_plans_are_written_forwards_and_captions_read_both_ways():
    net, p = decoder(), prompt(3)
    ids, forms = torch.tensor([p.ids]), torch.tensor([p.forms])
    plan, caption = p.ids.index(PLAN), p.ids.index(CAPTION, 1)  # the first plan, the second caption
    heard = net(ids, forms)

    def differs(position, token=IDS["red"]):
        changed = ids.clone()
        changed[0, position] = token
        return (net(changed, forms) - heard)[0].abs().sum(-1) > 1e-4

    later = differs(plan + 4)
    assert not later[: plan + 4].any()
    assert later[plan + 4 :].all()
    whole = differs(caption + 3)
    assert not whole[:caption].any()
    assert whole[caption + 1]


@torch.no_grad()
def test_a_lookup_continues_as_it_was_continued_where_the_same_was_named():
    lookup, names = Lookup(width=64), torch.randn(2, 6, 64, generator=torch.Generator().manual_seed(0))
    names[0, 4] = names[0, 1]
    after, seen = torch.arange(100, 112).view(2, 6), torch.ones(6, 6, dtype=torch.bool).tril(-1).expand(2, 6, 6)
    said = lookup(torch.zeros(2, 6, 64), names, names, after, seen)
    assert said[0, 4].argmax() == after[0, 1]
    assert said[0, 4].max() > 3.5
    assert said[1].max() < 1.0, "nothing like it was named"
    assert not said[:, 0].any()


def test_every_parameter_learns():
    net = decoder().train()
    lessons = [sequences().item("train", i)["lessons"] for i in range(4)]
    batch = batch_of(lessons, net.length)
    net(batch.ids, batch.forms).square().mean().backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in net.parameters())


@pytest.mark.parametrize("seed", range(4))
def test_whatever_it_writes_is_a_valid_plan(seed):
    net = decoder()
    torch.manual_seed(seed)
    for parameter in net.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    prompts = [prompt(i) for i in range(6)]
    for ids, asked in zip(write(net, prompts, 40), prompts, strict=True):
        slots = [token for token in ids if FIRST_SLOT <= token < FIRST_WORD]
        assert set(slots) <= set(asked.slots.values())
        complete = ids[: len(ids) - ids[::-1].index(5)] if 5 in ids else []
        plan = plan_of(complete, asked.slots)
        assert (plan is None) == (not complete)


# ---- the model --------------------------------------------------------------------------------------------------------

GROWS = Plan((Event("red bar", "grow", None, 0, 1), Event("red bar", "follow", "blue ring", 1, 3)))
SHOWN = Demonstration("a", 'A "red" bar grows.\nPlan: none', GROWS)


@pytest.mark.parametrize("form", ["json", "tuples"])
def test_prompts_are_read_in_both_forms(form):
    text = plan_prompt("It blicks.", demonstrations=[SHOWN.for_plan(form)] * 2, form=form)
    demonstrations, caption = read_prompt(text)
    assert caption == "It blicks."
    assert [plan for _, plan in demonstrations] == [GROWS, GROWS]
    assert demonstrations[0][0] == 'A "red" bar grows. Plan: none'
    assert read_prompt(plan_prompt("It blicks.", form=form)) == ([], "It blicks.")
    assert read_prompt("no prompt\nSentence: {\nSentence: 3") == ([], "")


def test_answers_do_not_depend_on_the_batch_and_are_always_plans():
    model = TinyModel(decoder=decoder(), max_tokens=40, batch_tokens=600)
    questions = [
        Question(plan_prompt(caption, demonstrations=[SHOWN.for_plan("json")] * n, form="json"), PlanReply)
        for n in (0, 2, 9) for caption in ("The red bar wugs a ring.", "word " * 400)
    ]  # fmt: skip
    together = model.answer(questions)
    assert [model.answer([question])[0].text for question in questions] == [answer.text for answer in together]
    assert all(answer.prompt_tokens <= 216 for answer in together)
    for answer in together:
        assert not answer.text or parse_plan(answer.text).repairs == ()
    [imagined] = model.answer([Question("Scenes", SceneReply)])
    assert parse_graph(imagined.text).graphs[0].objects == ()
    assert model.answer([]) == []


def test_the_last_demonstrations_stay_when_all_are_too_many():
    model = TinyModel(decoder=decoder(), max_tokens=40, batch_tokens=600)
    shown = [Demonstration(str(i), f"A shape{i} grows.", GROWS).for_plan("tuples") for i in range(20)]
    tokens = model._prompt(plan_prompt("The end.", demonstrations=shown, form="tuples"))
    assert "shape19" in tokens.slots
    assert "shape0" not in tokens.slots


def test_other_weights_are_another_model():
    one, other = (TinyModel(decoder=decoder(), max_tokens=40, batch_tokens=600) for _ in range(2))
    assert one.fingerprint() == other.fingerprint()
    with torch.no_grad():
        other.decoder.embed.weight[0, 0] += 1
    assert one.fingerprint() != other.fingerprint()
