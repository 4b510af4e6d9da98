"""Log-probabilities of drawn answers: those of the distributions that the sampler drew from, whoever computes them."""

import pytest
import torch

pytest.importorskip("transformers")
pytest.importorskip("llguidance")

from dysen.imagination import Question
from dysen.llm.local import TransformersModel
from dysen.llm.log_probs import Drawn, distributions, divergence
from dysen.prompts import plan_prompt
from dysen.replies import PlanReply, SceneReply
from tests.dysen.random_language_model import save


def build(folder, **settings):
    defaults = {"device": "cpu", "dtype": "float32", "max_tokens": 48, "temperature": 0.0, "seed": 0, "constrained": True,
                "chat": None, "batch_tokens": 4096, "share_prefix": True, "adapter": None, "output_root": ""}  # fmt: skip
    return TransformersModel(model=str(folder), **defaults | settings)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return save(tmp_path_factory.mktemp("language_model"))


def questions(copies, reply=PlanReply, captions=("A dog runs.", "Two cats chase a lady.")):
    return [Question(plan_prompt(caption, form="json"), reply) for caption in captions for _ in range(copies)]


def drawn(llm, asked, temperature=1.0, seed=3):
    found = llm.draw(asked, temperature=temperature, seed=seed)
    assert not [answer.error for answer, _ in found if answer.error]
    return [one for _, one in found]


def chosen(log_p, answers):
    return log_p.gather(1, torch.cat([one.chosen for one in answers])[:, None])[:, 0]


@pytest.mark.parametrize("temperature", [0.7, 1.0])
@pytest.mark.parametrize("reply", [PlanReply, SceneReply])
def test_a_full_forward_finds_what_the_sampler_found(folder, temperature, reply):
    llm = build(folder)
    answers = drawn(llm, questions(3, reply), temperature)
    recorded = [torch.cat([one.log_prob for one in group]) for group in (answers[:3], answers[3:])]
    for group, expected in zip((answers[:3], answers[3:]), recorded, strict=True):
        for together in (True, False):
            log_p = distributions(llm.model, group, temperature=temperature, together=together)
            torch.testing.assert_close(chosen(log_p, group), expected, atol=2e-4, rtol=1e-4)
            torch.testing.assert_close(log_p.exp().sum(-1), torch.ones(len(log_p)), atol=1e-4, rtol=0)
    assert torch.cat(recorded).min() < -0.5  # there was something to choose


@pytest.mark.parametrize(
    ("family", "settings"),
    [
        ("llama", {"constrained": False}),
        ("llama", {"share_prefix": False}),
        ("mistral", {"sliding_window": 64}),
        ("gpt_neox", {}),
        ("llama", {"dtype": "bfloat16"}),
    ],
)
def test_other_models_and_ways(tmp_path, family, settings):
    own = {name: settings.pop(name) for name in ("sliding_window",) if name in settings}
    llm = build(save(tmp_path, family=family, **own), **settings)
    group = drawn(llm, questions(3)[:3])
    log_p = distributions(llm.model, group, temperature=1.0, together=llm.shares)
    within = {"atol": 0.2, "rtol": 0.1} if "dtype" in settings else {"atol": 2e-4, "rtol": 1e-4}
    torch.testing.assert_close(chosen(log_p, group), torch.cat([one.log_prob for one in group]), **within)


def test_by_hand(folder):
    """Each draw again: logits behind what stands before it, what its grammar allows there, and nothing for the rest."""
    llm = build(folder, max_tokens=40)  # so short that tokens have to be put in the place of others
    answers, replaced = drawn(llm, questions(4)), 0
    for one in answers:
        logits = llm.model(input_ids=torch.cat([one.prompt, one.tokens])[None]).logits[0].double()
        constraint, tokens, expected, stood = llm.schemas.constraint(PlanReply), [], [], []
        while not constraint.is_complete:
            allowed = torch.from_numpy(llm.schemas.masks([constraint])[0])
            behind = logits[len(one.prompt) + len(tokens) - 1].masked_fill(~allowed, -torch.inf)
            token = int(one.chosen[len(expected)])
            expected.append(behind.log_softmax(-1)[token])
            stood.append(len(tokens))
            taken = constraint.take(token, 40 - len(tokens))
            replaced += taken != token
            tokens += [taken, *constraint.forced()]
        assert tokens == one.tokens.tolist()
        assert stood == one.positions.tolist()
        torch.testing.assert_close(one.log_prob.double(), torch.stack(expected).detach(), atol=2e-4, rtol=1e-4)
    assert replaced


def test_a_seed_decides_what_is_drawn(folder):
    llm = build(folder)
    first, again, other = (drawn(llm, questions(2), seed=seed) for seed in (1, 1, 2))
    same = [torch.equal(a.tokens, b.tokens) for a, b in zip(first, again, strict=True)]
    assert all(same)
    assert not torch.equal(first[0].tokens, first[1].tokens)
    assert not torch.equal(first[0].tokens, other[0].tokens)
    assert llm.draw(questions(1), temperature=0.0, seed=1)[0][1] is None
    assert llm.answer(questions(1)) == [answer for answer, _ in llm.draw(questions(1), temperature=0.0, seed=5)]


def test_what_a_checkpoint_holds_is_enough(folder, tmp_path):
    for llm in (build(folder), build(folder, constrained=False)):
        one = drawn(llm, questions(1))[0]
        torch.save(one.state(), tmp_path / "state.pt")
        back = Drawn.from_state(torch.load(tmp_path / "state.pt", weights_only=True))
        assert (back.allowed is None) == (one.allowed is None) == (llm.schemas is None)
        a, b = (distributions(llm.model, [drawn], temperature=1.0, together=True) for drawn in (one, back))
        assert torch.equal(a, b)


def test_divergence_by_hand():
    p, q = torch.tensor([[0.5, 0.5, 0.0], [0.25, 0.75, 0.0]]), torch.tensor([[0.25, 0.75, 0.0], [0.25, 0.75, 0.0]])
    found = divergence(p.log().requires_grad_(), q.log())
    torch.testing.assert_close(found, torch.tensor([0.5 * torch.tensor(4 / 3).log(), 0.0]))
    logits = torch.randn(50, 7, generator=torch.Generator().manual_seed(0))
    assert (divergence(logits.log_softmax(-1), logits.flip(0).log_softmax(-1)) > 0).all()
    # Behind a mask, gradients stay numbers.
    free = torch.randn(3, 4, requires_grad=True)
    masked = free.masked_fill(torch.tensor([False, True, False, False]), -torch.inf).log_softmax(-1)
    divergence(masked, masked.detach().roll(1, 0)).sum().backward()
    assert free.grad.isfinite().all()
    assert not free.grad[:, 1].any()
