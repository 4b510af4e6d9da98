"""Language models on this machine: constrained decoding, the shared prefix, batches, and what a user gets wrong."""

import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

pytest.importorskip("transformers")
pytest.importorskip("llguidance")

from dysen.imagination import Question
from dysen.llm import generation
from dysen.llm.batching import batches, group
from dysen.llm.local import TransformersModel, load
from dysen.parsing_answers import parse_plan
from dysen.prompts import plan_prompt, plan_query
from dysen.replies import PlanReply, SceneReply, ScenesReply
from tests.dysen.random_language_model import save
from vdm.errors import ConfigError, RunError

REPLIES = (PlanReply, SceneReply, ScenesReply)
SHOWN = [plan_query(f"A {who} runs.", f'{{"events":[{{"agent":"{who}"}}]}}') for who in ("dog", "cat", "lady")]
CAPTIONS = [
    "A dog runs.",
    "Two cats, one red, chase a lady around the old town.",
    "b",
    "A lady drinks coffee.",
    "Ünder",
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return save(tmp_path_factory.mktemp("language_model"))


def build(folder, **settings):
    defaults = {"device": "cpu", "dtype": "float32", "max_tokens": 64, "temperature": 0.0, "seed": 0, "constrained": True,
                "chat": None, "batch_tokens": 4096, "share_prefix": True,
                "adapter": None, "output_root": ""}  # fmt: skip
    return TransformersModel(model=str(folder), **defaults | settings)


def questions(*, shown=SHOWN, replies=REPLIES):
    return [Question(plan_prompt(c, demonstrations=shown, form="json"), reply) for c in CAPTIONS for reply in replies]


def texts(answers):
    assert not [answer.error for answer in answers if answer.error]
    return [answer.text for answer in answers]


# ---- constrained decoding ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("temperature", [0.0, 1.0, 30.0])
def test_random_weights_write_valid_replies(folder, temperature):
    asked = questions(shown=[])
    for question, answer in zip(asked, build(folder, temperature=temperature).answer(asked), strict=True):
        question.reply.model_validate_json(answer.text)
        assert answer.answer_tokens <= 64
        if question.reply is PlanReply:
            assert parse_plan(answer.text).plan.events


def test_a_reply_closes_within_any_number_of_tokens_that_can_hold_it(folder):
    with pytest.raises(ConfigError) as error:
        build(folder, max_tokens=2).answer(questions()[:1])
    least = int(str(error.value.allowed).split()[1])
    for max_tokens in range(least, least + 3):
        asked = [Question(prompt, PlanReply) for prompt in ("a", "A dog", "Plan:")]
        for answer in build(folder, max_tokens=max_tokens, temperature=1.0, seed=max_tokens).answer(asked):
            PlanReply.model_validate_json(answer.text)
            assert answer.answer_tokens <= max_tokens


def test_outputs_beyond_the_tokenizer_are_never_chosen(tmp_path):
    model = build(save(tmp_path, padding=200), temperature=30.0)
    width = model.schemas.vocab_size
    assert width == len(model.tokenizer) + 200
    mask = model.schemas.masks([model.schemas.constraint(PlanReply)])
    assert mask.shape == (1, width)
    assert not mask[:, len(model.tokenizer) :].any()


# ---- one prefix, any batch --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", ["llama", "qwen2", "gpt_neox"])
def test_sharing_the_prefix_changes_no_token(tmp_path, family):
    folder = save(tmp_path, family=family)
    shared, whole = build(folder), build(folder, share_prefix=False)
    assert shared.shares
    assert not whole.shares
    asked = questions(replies=[PlanReply, SceneReply])
    assert texts(shared.answer(asked)) == texts(whole.answer(asked))
    assert max(len(kept.ids) for kept in shared._prefixes) > 100


def test_logits_behind_a_shared_prefix_are_those_of_the_whole_prompt(folder):
    _, model = load(Path(folder), "cpu", "float32")
    rows = [list(range(20, 60)) + own for own in ([5, 6, 7], [9] * 11, [300])]
    whole = torch.cat([model(torch.tensor([ids])).logits[:, -1] for ids in rows])
    assert generation.can_share(model)
    prefix = generation.read_prefix(model, rows[0][:40])
    decoder = generation.SharedDecoder(model, rows=3, capacity=4, prefix=prefix)
    torch.testing.assert_close(generation.feed_all(decoder, [ids[40:] for ids in rows]), whole, atol=2e-5, rtol=0)
    decoder.keep(torch.tensor([2, 0]))
    more = generation.feed_all(decoder, [[8, 9, 10, 11], [12]])  # beyond the capacity it began with
    whole = [model(torch.tensor([ids])).logits[0, -1] for ids in ([*rows[2], 8, 9, 10, 11], [*rows[0], 12])]
    torch.testing.assert_close(more, torch.stack(whole), atol=2e-5, rtol=0)


def test_unconstrained_answers_are_those_of_transformers(folder):
    model = build(folder, constrained=False, max_tokens=30)
    prompt = questions()[3].prompt
    ids = model.encode(prompt)
    model.model.set_attn_implementation("sdpa")
    written = model.model.generate(torch.tensor([ids]), max_new_tokens=30, do_sample=False, pad_token_id=0)
    expected = model.tokenizer.decode(written[0, len(ids) :], skip_special_tokens=True)
    model.model.set_attn_implementation(generation.ATTENTION)
    assert model.answer([questions()[3]])[0].text == expected.lstrip().split("\n\n")[0]


@pytest.mark.parametrize("temperature", [0.0, 0.7])
def test_an_answer_does_not_depend_on_its_batch(folder, temperature):
    asked = questions(replies=[PlanReply, SceneReply])
    model = build(folder, temperature=temperature)
    together = texts(model.answer(asked))
    assert len(set(together)) > 3
    assert together[:2] == [model.answer([question])[0].text for question in asked[:2]]
    assert together[:2:-1] == texts(model.answer(asked[:2:-1]))


def test_drawn_tokens_follow_the_seed_and_the_time_of_asking(folder):
    question = questions()[0]
    model = build(folder, temperature=1.0)
    first, second = texts(model.answer([question, question]))
    assert first != second
    assert texts(model.answer([question, question])) == [first, second]
    assert texts(build(folder, temperature=1.0, seed=1).answer([question]))[0] != first


def test_the_prefix_is_read_once(folder, monkeypatch):
    model = build(folder, batch_tokens=400)
    read = []
    monkeypatch.setattr(generation, "read_prefix", lambda *a, f=generation.read_prefix: read.append(len(a[1])) or f(*a))
    asked = questions(replies=[PlanReply])
    model.answer(asked[:3])
    model.answer(asked[1:])
    model.answer(asked[:1])
    assert len(read) == 1, "the next calls begin with what is known"


@pytest.mark.parametrize("family", ["mistral"])
def test_a_model_whose_attention_slides_reads_each_prompt_whole(tmp_path, family):
    model = build(save(tmp_path, family=family, sliding_window=16))
    assert not model.shares
    asked = questions()[:2]
    assert texts(model.answer(asked)) == [model.answer([question])[0].text for question in asked]


def test_groups_share_what_saves_tokens():
    long, other = list(range(1000)), list(range(500, 1500))
    prompts = [[*long, 2000 + i] for i in range(20)] + [[*other, 2000 + i] for i in range(20)] + [[7]]
    found = {(part.common, frozenset(part.members)) for part in group(prompts)}
    assert (1000, frozenset(range(20))) in found
    assert (1000, frozenset(range(20, 40))) in found
    assert group([[1, 2, 3], [1, 2, 4], [1, 9, 9]])[0].common == 1  # little to save: one batch
    assert group([[5, 6], [5, 6]])[0].common == 1, "the last token is fed, not shared"
    assert group([]) == []


def test_batches_keep_to_their_budget():
    prompts = {i: [0] * length for i, length in enumerate([5, 50, 7, 49, 6])}
    assert batches(prompts, answer=10, budget=120) == [[1, 3], [2, 4, 0]]
    assert batches(prompts, answer=10, budget=1) == [[1], [3], [2], [4], [0]]


# ---- prompts ----------------------------------------------------------------------------------------------------------


def test_the_chat_template_is_used_where_there_is_one(tmp_path, folder):
    model = build(save(tmp_path, chat=True))
    assert model.tokenizer.decode(model.encode("hello")) == "<user>hello<end><reply>"
    assert build(tmp_path, chat=False).encode("hello") == build(folder).encode("hello")
    with pytest.raises(ConfigError, match="chat template"):
        build(folder, chat=True)


def test_a_caption_cannot_end_its_turn(folder):
    model = build(folder)
    assert model.stop_tokens[0] in model.tokenizer("A <end> dog")["input_ids"]
    assert model.stop_tokens[0] not in model.encode("A <end> dog")


def test_a_long_prompt_loses_its_first_demonstrations(folder, tmp_path, caplog):
    short = save(tmp_path, context=400)
    model, question = build(short), Question(plan_prompt("A dog.", demonstrations=SHOWN * 8, form="json"), PlanReply)
    with caplog.at_level("WARNING"):
        answer = model.answer([question])[0]
    assert answer.error is None
    assert answer.prompt_tokens + 64 <= 400
    assert "1 of 1 prompts lost" in caplog.text
    ids, dropped = model._fitting(question.prompt)
    kept = plan_prompt("A dog.", demonstrations=(SHOWN * 8)[dropped:], form="json")
    assert model.tokenizer.decode(ids) == kept
    assert len(model.encode(plan_prompt("A dog.", demonstrations=(SHOWN * 8)[dropped - 1 :], form="json"))) > 400 - 64
    alone, fine = model.answer([Question("x" * 3000, PlanReply), question])
    assert "3000 tokens" in alone.error
    assert fine.text == answer.text


def test_any_text_can_be_asked(folder):
    prompts = ["", "\ud83d", "\0", "<end>", "\n\n", "\n\n\n\n"]
    for answer in build(folder).answer([Question(prompt, PlanReply) for prompt in prompts]):
        PlanReply.model_validate_json(answer.text)
    assert build(folder).answer([]) == []


# ---- what a user gets wrong -------------------------------------------------------------------------------------------


def test_errors_name_what_is_wrong(folder, tmp_path, monkeypatch):
    with pytest.raises(ConfigError, match="no language model is here"):
        build(tmp_path)
    broken = shutil.copytree(folder, tmp_path / "broken")
    (broken / "model.safetensors").write_bytes(b"not weights")
    with pytest.raises(ConfigError, match="cannot be read"):
        build(broken)
    with pytest.raises(ConfigError, match="context"):
        build(folder, max_tokens=4096)
    if not torch.cuda.is_available():
        with pytest.raises(ConfigError, match="GPU"):
            build(folder, device="cuda")
    monkeypatch.setitem(sys.modules, "llguidance", None)
    with pytest.raises(ConfigError, match=r"\.\[llm\]"):
        build(folder)


def test_outputs_that_are_not_numbers_are_said(folder):
    model = build(folder)
    model.model.lm_head.weight.fill_(torch.nan)
    with pytest.raises(RunError, match="not numbers"):
        model.answer(questions()[:2])


def test_the_fingerprint_is_of_the_weights_not_of_their_place(folder, tmp_path):
    moved = shutil.copytree(folder, tmp_path / "place" / Path(folder).name)
    one = build(moved)
    assert one.fingerprint() == build(folder).fingerprint()
    assert str(tmp_path) not in str(one.fingerprint())
    weights = moved / "model.safetensors"
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(content)
    assert build(moved).fingerprint() != one.fingerprint()
    assert build(folder, temperature=0.5).fingerprint() != build(folder).fingerprint()


def test_masks_are_read_from_words_of_bits(folder):
    schemas = build(folder).schemas
    bits = np.zeros((1, (schemas.vocab_size + 31) // 32), dtype=np.int32)
    bits[0, 2] = np.int32(-(2**31))  # the highest bit
    assert np.flatnonzero(schemas.unpack(bits)[0]).tolist() == [95]
