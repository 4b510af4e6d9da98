"""The caption as a condition: what nothing is, what a cache gives back, what a checkpoint holds."""

import copy
import logging

import pytest
import torch
from condition_fakes import CAPTIONS, SHAPE, WIDTH, make_batch, small_text
from torch import nn

from vdm.conditions.base import ConditionSet
from vdm.conditions.encoders.base import TextEncoder, TextTokens
from vdm.conditions.encoders.small import SmallEncoder
from vdm.conditions.text import TextCondition
from vdm.errors import ConfigError, DataError, RunError


class Letters(TextEncoder):
    """A frozen encoder that counts its calls: one vector a letter."""

    def __init__(self, length=8, has_mask=True):
        super().__init__(width=WIDTH, length=length, is_trained=False)
        self.table, self.has_mask, self.read = nn.Embedding(256, WIDTH), has_mask, []

    def to_ids(self, captions):
        self.read += captions
        ids = torch.zeros(len(captions), self.length, dtype=torch.long)
        for row, caption in zip(ids, captions, strict=True):
            letters = [1, *caption.encode()][: self.length]
            row[: len(letters)] = torch.tensor(letters)
        cut = tuple(i for i, caption in enumerate(captions) if len(caption.encode()) >= self.length)
        return TextTokens(ids, ids != 0 if self.has_mask else None, cut)

    def embed(self, ids, mask):
        return self.table(ids)


def frozen(**settings):
    torch.manual_seed(0)
    return TextCondition(encoder=Letters(**settings), pooled=False, drop_prob=0.5)


def of(condition):
    return ConditionSet(members={"text": condition}, joint_drop_prob=0.0, joint_keep_prob=0.0)


@pytest.fixture(params=[small_text, frozen], ids=["trained", "frozen"])
def conditions(request):
    return of(request.param())


def test_nothing_said_is_the_empty_caption_in_training_and_in_sampling(conditions):
    text, batch = conditions.members["text"], make_batch()
    values, mask = text.encoder([""])
    n = values.shape[1]
    for phase in (conditions.train(), conditions.eval()):
        unsaid = phase.controls_for(batch, SHAPE)(frozenset()).tokens["text"]
        assert unsaid.values.equal(values.expand(4, -1, -1))
        assert unsaid.visible.equal(mask[:, None].expand(4, -1, -1))
    dropped = conditions.encode(batch, SHAPE, dropped={"text": torch.ones(4, dtype=torch.bool)}).tokens["text"]
    assert dropped.values[:, :n].equal(values.expand(4, -1, -1))
    said = text.say([""]).tokens["text"]  # an empty prompt is the same as none
    assert said.values.equal(values)
    assert mask.any(), "there is always something to look at"


def test_the_null_of_a_trained_encoder_follows_its_weights_and_trains_them():
    text = small_text()
    before = text.null(1, SHAPE).tokens["text"].values
    before.sum().backward()
    assert all(p.grad is not None for p in text.encoder.parameters())
    with torch.no_grad():
        text.encoder.positions.add_(1.0)
    assert not text.null(1, SHAPE).tokens["text"].values.equal(before)


def test_the_null_of_a_frozen_encoder_is_read_once():
    text = frozen()
    for count in (1, 3, 2):
        assert len(text.null(count, SHAPE)) == count
    assert text.encoder.read == [""]


def test_a_prompt_that_comes_several_times_is_read_once():
    text = frozen()
    said = text.say(["b", "a", "b", "b"]).tokens["text"]
    assert text.encoder.read == ["b", "a"]
    assert said.values.equal(torch.cat([text.encoder([c])[0] for c in ("b", "a", "b", "b")]))
    assert said.visible.shape == (4, 1, 8)


def test_without_a_mask_there_is_none():
    text = frozen(has_mask=False)
    assert text.say(["a", "b", "a"]).tokens["text"].visible is None
    mixed = of(text).encode(make_batch(), SHAPE, dropped={"text": torch.tensor([True, False] * 2)}).tokens["text"]
    assert mixed.visible is None, "dropping keeps attention without masks"


# ---- frozen networks ------------------------------------------------------------------------------------------------


def test_pooled_text_is_the_same_in_a_longer_batch_and_from_a_cache():
    torch.manual_seed(0)
    text = TextCondition(encoder=Letters(), pooled=True, drop_prob=0.5)
    batch = make_batch()
    said = of(text).encode(batch, SHAPE).embed
    assert said.shape == (4, WIDTH)
    assert not said[0].equal(said[1])
    alone = text.say(batch["caption"][1:2]).embed
    torch.testing.assert_close(alone, said[1:2])
    cached = text.encode({**batch, "extras": text.cache(batch, SHAPE)}, SHAPE).embed
    assert cached.equal(said)
    unsaid = of(text).controls_for(batch, SHAPE)(frozenset()).embed
    assert unsaid.equal(text.say([""]).embed.expand(4, -1))


def test_a_frozen_encoder_is_in_no_checkpoint_and_no_optimizer():
    conditions = of(frozen())
    assert list(conditions.parameters()) == []
    assert conditions.state_dict() == {}
    assert conditions.trained_modules() == {}
    assert not any(p.requires_grad for p in conditions.members["text"].encoder.parameters())
    assert not conditions.train().members["text"].encoder.training
    assert not conditions(make_batch(), SHAPE, seed=0, step=0).tokens["text"].values.requires_grad


def test_a_trained_encoder_is_in_all_of_them():
    conditions = of(small_text())
    assert set(conditions.trained_modules()) == {"text"}
    assert "members.text.encoder.positions" in conditions.state_dict()
    fresh = of(
        TextCondition(encoder=SmallEncoder(width=WIDTH, depth=2, heads=2, length=24), pooled=False, drop_prob=0.5)
    )
    fresh.load_state_dict(conditions.state_dict())
    one, other = (c.eval().encode(make_batch(), SHAPE).tokens["text"].values for c in (conditions, fresh))
    assert one.equal(other)


def test_a_frozen_encoder_follows_the_device_in_its_own_precision():
    text = frozen()
    text.null(1, SHAPE)
    text.to(torch.float64)
    assert text.encoder.table.weight.dtype == torch.float32
    text.null(1, SHAPE)
    assert text.encoder.read == ["", ""], "the stored null does not stay behind"
    text.to("meta")
    assert text.encoder.table.weight.device.type == "meta"


def test_a_frozen_encoder_computes_the_same_under_mixed_precision():
    class Product(Letters):
        def embed(self, ids, mask):
            x = self.table(ids)
            return x @ x.transpose(1, 2) @ x

    torch.manual_seed(0)
    text = TextCondition(encoder=Product(), pooled=False, drop_prob=0.1)
    plain = text.say(CAPTIONS).tokens["text"].values
    with torch.autocast("cpu", torch.bfloat16):
        assert text.say(CAPTIONS).tokens["text"].values.equal(plain)


def test_copies_are_independent():
    text = frozen()
    copied = copy.deepcopy(text)
    assert copied.encoder is not text.encoder
    copied.to("meta")
    assert copied.encoder.table.weight.device.type == "meta"
    assert text.encoder.table.weight.device.type == "cpu"


# ---- cached ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("has_mask", [True, False])
def test_what_was_cached_comes_back_bit_for_bit(has_mask):
    conditions, batch = of(frozen(has_mask=has_mask)), make_batch()
    kept = conditions.cache(batch, SHAPE)
    assert set(kept) == ({"text", "text_mask"} if has_mask else {"text"})
    online = conditions(batch, SHAPE, seed=0, step=5).tokens["text"]
    read = len(conditions.members["text"].encoder.read)
    cached = conditions(batch | {"extras": kept, "caption": ["something else"] * 4}, SHAPE, seed=0, step=5).tokens[
        "text"
    ]
    assert cached.values.equal(online.values)
    assert (cached.visible is None) == (online.visible is None) == (not has_mask)
    assert not has_mask or cached.visible.equal(online.visible)
    assert len(conditions.members["text"].encoder.read) == read, "no caption was read again"


def test_a_cache_of_another_encoder_is_refused():
    conditions, batch = of(frozen()), make_batch()
    for wrong in (torch.zeros(4, 8, WIDTH + 1), torch.zeros(4, WIDTH), ["ragged"] * 4):
        with pytest.raises(DataError, match="extras.text"):
            conditions.encode(batch | {"extras": {"text": wrong}}, SHAPE)


def test_a_trained_encoder_is_not_cached():
    conditions, batch = of(small_text()), make_batch()
    assert conditions.cache(batch, SHAPE) == {}
    assert conditions.fingerprint() == {}
    with pytest.raises(ConfigError, match="cannot be cached"):
        conditions.encode(batch | {"extras": {"text": torch.zeros(4, 8, WIDTH)}}, SHAPE)


def test_the_fingerprint_changes_with_all_that_changes_the_vectors():
    prints = [of(frozen()).fingerprint() for _ in range(2)]
    assert prints[0] == prints[1]
    assert set(prints[0]) == {"text"}
    other_length = of(frozen(length=9)).fingerprint()["text"]
    assert other_length["length"] != prints[0]["text"]["length"]
    moved = frozen()
    with torch.no_grad():
        moved.encoder.table.weight[200, 0] += 1e-6
    assert moved.fingerprint()["weights"] != prints[0]["text"]["weights"]
    assert moved.fingerprint()["tokenizer"] == prints[0]["text"]["tokenizer"]


# ---- any text -------------------------------------------------------------------------------------------------------

ODD = [
    "",
    " ",
    "x" * 10_000,
    "a red circle " * 800,
    "🦉🔴👩‍👩‍👧",
    "\x00\u202e\ud83e",
    "移动的红色圆圈",
    "a\n\tb",
    "<|endoftext|>",
]


@pytest.mark.parametrize("odd", ODD, ids=lambda text: repr(text[:12]))
def test_any_prompt_is_read(odd):
    tokens = small_text().say([odd, "a"]).tokens["text"]
    assert tokens.values.isfinite().all()
    assert tokens.values.shape[1] <= 24
    assert tokens.visible[:, :, :2].all(), "a start and an end"


def test_a_cut_caption_is_reported_once(caplog):
    text = small_text()
    with caplog.at_level(logging.WARNING):
        text.say(["red " * 22])
        assert caplog.records == [], "22 words, a start and an end fit into 24"
        text.say(["short", "red " * 23])
        text.say(["red " * 24])
    assert len(caplog.records) == 1
    assert "24 tokens" in caplog.text


def test_what_is_cut_is_the_end():
    text = small_text()
    whole, cut = text.say(["red " * 22, "red " * 22 + "blue green"]).tokens["text"].values
    assert whole.equal(cut)


# ---- the small encoder ----------------------------------------------------------------------------------------------


@torch.no_grad()
def test_vectors_do_not_depend_on_the_other_captions_of_a_batch():
    encoder = small_text().encoder
    together, mask = encoder(CAPTIONS + ["a very long one " * 5])
    for row, caption in enumerate(CAPTIONS):
        alone, seen = encoder([caption])
        n = int(seen.sum())
        assert mask[row].sum() == n
        torch.testing.assert_close(together[row, :n], alone[0, :n], rtol=0, atol=1e-6)


def test_settings_that_do_not_fit_are_refused():
    with pytest.raises(ConfigError, match="divisors of 16"):
        SmallEncoder(width=16, depth=1, heads=3, length=8)
    with pytest.raises(ConfigError, match="length"):
        SmallEncoder(width=16, depth=1, heads=4, length=1)


def test_weights_of_other_words_are_refused():
    weights = small_text().encoder.state_dict()
    weights["digest"] = weights["digest"].flip(0)
    with pytest.raises(RunError, match="other words"):
        small_text().encoder.load_state_dict(weights)


def test_word_order_can_be_learned():
    """Which of two colours comes first: no bag of words can tell."""
    torch.manual_seed(0)
    colours = ["red", "green", "blue", "yellow"]
    pairs = [(a, b) for a in colours for b in colours if a != b]
    captions = [f"the {a} circle approaches the {b} star" for a, b in pairs]
    first = torch.tensor([colours.index(a) for a, _ in pairs])
    encoder, head = SmallEncoder(width=32, depth=2, heads=2, length=16), nn.Linear(32, 4)
    optimizer = torch.optim.Adam([*encoder.parameters(), *head.parameters()], lr=3e-3)
    for _ in range(60):
        loss = nn.functional.cross_entropy(head(encoder(captions)[0][:, 0]), first)  # read at the start token
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert loss.item() < 0.05


def test_words_stay_apart_when_the_blocks_drift():
    """A constant that the first steps of training add to all tokens must not swamp what tells them apart."""
    torch.manual_seed(0)
    encoder = SmallEncoder(width=32, depth=2, heads=2, length=16)
    with torch.no_grad():
        for block in encoder.blocks:
            block.out.bias += 0.2 * torch.linspace(-1, 1, 32).sign()  # the last norm takes away what all channels share
        tokens, _ = encoder(["red blue"])
        word, other = tokens[0, 1:3]
    assert torch.cosine_similarity(word, other, dim=0) < 0.6
