"""Features, selectors and the policy: exact probabilities, gradients of the right sign, the same choice everywhere."""

import itertools

import pytest
import torch

from dysen.action_plan import Event, Plan
from dysen.demonstrations import Demonstration
from dysen.icl.features import EncodedText, HashedWords
from dysen.icl.policy import ExamplePolicy, from_bytes, to_bytes
from dysen.icl.reinforce import MovingBaseline, advantages, policy_loss
from dysen.icl.selectors import NearestSelector, PolicySelector
from vdm.conditions.encoders.small import SmallEncoder
from vdm.errors import ConfigError

CAPTIONS = ("A red ball rolls.", "A blue ball jumps.", "A dog barks at a red ball.", "Ein Hund bellt ünd läuft.")
PLAN = Plan((Event("ball", "rolls", None, 0, 1),))
POOL = tuple(Demonstration(f"d{i}", caption, PLAN) for i, caption in enumerate(CAPTIONS))


def words(**changes):
    return HashedWords(**{"width": 512, "longest": 2, "is_weighted": True, **changes})


def policy(pool=POOL, temperature=1.0, covered=0.0, **changes):
    torch.manual_seed(0)
    return ExamplePolicy(pool=pool, features=words(**changes), width=128, temperature=temperature, covered=covered)


def randoms(count, seed=0):
    return [torch.Generator().manual_seed(1_000_000 * seed + i) for i in range(count)]


def test_hashed_words():
    features = words(is_weighted=False)
    vectors = features([*CAPTIONS, "", "ROLLS red ball, a!"])
    assert vectors.shape == (6, 512)
    assert torch.allclose(vectors.norm(dim=-1), torch.tensor([1.0] * 4 + [0.0, 1.0]))
    assert vectors[0] @ vectors[5] > vectors[0] @ vectors[1] > vectors[0] @ vectors[3]
    turned = words(longest=1, is_weighted=False)(["a dog chases a cat", "a cat chases a dog"])
    assert torch.equal(turned[0], turned[1])
    turned = features(["a dog chases a cat", "a cat chases a dog"])
    assert not torch.equal(turned[0], turned[1])


def test_rare_words_count_for_more():
    pool = ["a red ball rolls", "a red ball jumps", "a red ball spins", "a dog spins"]
    query = "a red ball zips as a dog spins"
    likeness = {}
    for is_weighted in (False, True):
        features = words(longest=1, is_weighted=is_weighted)
        features.fit(pool)
        likeness[is_weighted] = features([query])[0] @ features(pool).T
    assert likeness[True][3] / likeness[True][0] > likeness[False][3] / likeness[False][0]


def test_features_of_a_text_encoder():
    torch.manual_seed(0)
    features = EncodedText(encoder=SmallEncoder(width=16, depth=1, heads=2, length=16))
    alone, beside = features(CAPTIONS[:1]), features(CAPTIONS[:3])
    assert features.width == 16
    assert torch.allclose(alone[0], beside[0], atol=1e-5)
    assert not features.encoder.training
    assert not any(p.requires_grad for p in features.encoder.parameters())


def test_nearest_leaves_out_the_caption_itself_and_shows_the_nearest_last():
    selector = NearestSelector(pool=POOL, shots=2, features=words())
    chosen, other = selector.choose([" a RED  ball rolls.", "The dog barks."])
    assert 0 not in chosen
    assert other[-1] == 2
    assert selector.choose(["The dog barks."]) == [other]
    assert NearestSelector(pool=POOL, shots=0, features=words()).choose(["x"]) == [()]
    with pytest.raises(ConfigError, match="<= 3"):
        NearestSelector(pool=POOL, shots=4, features=words()).choose([CAPTIONS[0]])
    with pytest.raises(ConfigError):
        NearestSelector(pool=POOL, shots=5, features=words())
    prints = [NearestSelector(pool=POOL, shots=2, features=words(width=w)).fingerprint() for w in (512, 256)]
    assert prints[0] != prints[1]


def test_the_probability_of_a_choice_without_replacement_is_exact():
    chooser = policy().double()
    query = ["The dog barks."]
    p = chooser.logits(query).softmax(-1)[0]
    a, b = 3, 0
    found = chooser.log_prob(query, torch.tensor([[a, b]])).exp()
    assert found.item() == pytest.approx((p[a] * p[b] / (1 - p[a])).item())


@pytest.mark.parametrize("covered", [0.0, 1.0])
def test_the_probabilities_of_all_choices_sum_to_one(covered):
    chooser = policy(covered=covered).double()
    query = [CAPTIONS[2]]  # never its own demonstration
    everything = torch.tensor(list(itertools.permutations((0, 1, 3), 2)))
    total = chooser.log_prob(query * len(everything), everything).exp().sum()
    assert total.item() == pytest.approx(1)


@pytest.mark.parametrize("covered", [0.0, 0.7])
def test_draws_follow_their_probability(covered):
    chooser = policy(temperature=0.2, covered=covered)
    query = ["A red dog jumps."]
    choice = chooser.draw(query * 20_000, 2, randoms(20_000, seed=3))
    keys = choice.positions[:, 0] * 4 + choice.positions[:, 1]
    for key in keys.unique():
        rows = keys == key
        p = choice.log_prob[rows][0].exp().item()
        again = chooser.log_prob(query, choice.positions[rows][:1])
        assert again.exp().item() == pytest.approx(p, rel=1e-5)
        assert rows.float().mean().item() == pytest.approx(p, abs=4 * (p / 20_000) ** 0.5 + 1e-3)
    assert (choice.positions[:, 0] != choice.positions[:, 1]).all()


def test_a_caption_is_never_its_own_demonstration():
    chooser = policy()
    drawn = chooser.draw([CAPTIONS[1].upper()] * 200, 3, randoms(200)).positions
    assert not (drawn == 1).any()
    assert 1 not in chooser.best([CAPTIONS[1]], 3)[0]
    entropy = chooser.entropy([CAPTIONS[1], "anything"])
    assert entropy.isfinite().all()
    assert entropy[0] <= torch.tensor(3.0).log() + 1e-5
    with pytest.raises(ConfigError, match="<= 3"):
        chooser.draw([CAPTIONS[1]], 4, randoms(1))


def test_an_untrained_policy_ranks_nearly_as_its_features():
    chooser = ExamplePolicy(pool=POOL, features=words(), width=4096, temperature=1.0, covered=0.0)
    likeness = words()(["The dog barks."]) @ words()(CAPTIONS).T
    logits = chooser.logits(["The dog barks."])
    assert logits.argmax() == 2
    assert (logits - likeness).abs().max() < 0.2


def test_a_shot_is_chosen_for_what_is_not_explained_yet():
    said = ("the red ball zonks", "a red ball zonks", "red balls zonk", "a blue cube plimmers")
    pool = tuple(Demonstration(f"d{i}", caption, PLAN) for i, caption in enumerate(said))
    query = ["the red ball zonks before a cube plimmers"]
    torch.manual_seed(0)
    features = words(longest=1)
    chosen = {}
    for covered in (0.0, 1.0):
        chooser = ExamplePolicy(pool=pool, features=features, width=4096, temperature=1.0, covered=covered)
        chosen[covered] = chooser.best(query, 2)[0].tolist()
    assert chosen == {0.0: [0, 1], 1.0: [0, 3]}


def test_planning_is_greedy_and_the_most_relevant_is_last():
    chooser = policy()
    selector = PolicySelector(policy=chooser, shots=3)
    logits = chooser.logits(["The dog barks."])[0]
    assert selector.choose(["The dog barks."]) == [tuple(reversed(logits.topk(3).indices.tolist()))]
    before = selector.fingerprint()
    with torch.no_grad():
        chooser.project.weight.add_(0.1)
    assert selector.fingerprint() != before
    assert selector.choose([]) == []


def test_the_pool_comes_back_from_a_checkpoint():
    assert from_bytes(to_bytes(POOL)) == POOL
    assert from_bytes(policy().state_dict()["stored_pool"]) == POOL


def two_candidates():
    pool = tuple(Demonstration(name, name, PLAN) for name in ("good", "bad"))
    torch.manual_seed(0)
    return ExamplePolicy(pool=pool, features=words(longest=1), width=16, temperature=1.0, covered=0.0)


@pytest.mark.parametrize("better", [0, 1])
def test_the_gradient_raises_the_better_candidate(better):
    chooser = two_candidates()
    query = ["good and bad"]
    with torch.no_grad():
        before = chooser.logits(query).softmax(-1)[0, better]
    for drawn in (0, 1):  # whichever was drawn, with its own reward
        chooser.zero_grad()
        log_p = chooser.log_prob(query, torch.tensor([[drawn]]))
        reward = torch.tensor([float(drawn == better)])
        policy_loss(log_p, advantages(reward, torch.tensor(0.5), is_normalised=False)).backward()
        with torch.no_grad():
            weight = chooser.project.weight
            weight -= 0.01 * weight.grad
            after = chooser.logits(query).softmax(-1)[0, better]
            weight += 0.01 * weight.grad
        assert after > before


@pytest.mark.parametrize("is_normalised", [False, True])
def test_reinforce_finds_the_better_candidate(is_normalised):
    chooser, baseline = two_candidates(), MovingBaseline(decay=0.9)
    optimizer = torch.optim.Adam(chooser.parameters(), lr=1e-2)
    for step in range(150):
        choice = chooser.draw(["good and bad"] * 8, 1, randoms(8, seed=step))
        reward = (choice.positions[:, 0] == 0).float()
        loss = policy_loss(choice.log_prob, advantages(reward, baseline.value, is_normalised=is_normalised))
        baseline.update(reward)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert chooser.logits(["good and bad"]).softmax(-1)[0, 0] > 0.95
    assert baseline.value > 0.9


def test_the_baseline_is_an_average_without_bias():
    baseline = MovingBaseline(decay=0.9)
    baseline.update(torch.tensor([0.5, 0.7]))
    assert baseline.value.item() == pytest.approx(0.6)
    for _ in range(100):
        baseline.update(torch.tensor([0.2]))
    assert baseline.value.item() == pytest.approx(0.2, abs=1e-4)
    again = MovingBaseline(decay=0.9)
    again.load_state_dict(baseline.state_dict())
    assert torch.equal(again.value, baseline.value)
    equal = advantages(torch.full((4,), 0.3), torch.tensor(0.3), is_normalised=True)
    assert torch.equal(equal, torch.zeros(4))
