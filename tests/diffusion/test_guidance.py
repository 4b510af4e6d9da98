"""Guidance: three published formulas as tables, computed in one call, with nothing computed in vain."""

import math

import pytest
import torch

from vdm.diffusion.guidance import Guidance, alchemist, classifier_free, guided, instruct_pix2pix, rescaled
from vdm.errors import ConfigError
from vdm.types import Controls, Tokens

WHOLE = {"rescale": 0.0, "interval": (0.0, 1.0)}
BATCH = 3
STREAMS = {"text": 1.0, "image": 10.0, "depth": 100.0}


def controls_for(said):
    """A stand-in for a set of conditions: a token per condition, a door for each kind, null when not said."""
    base = torch.arange(1, BATCH + 1).view(BATCH, 1, 1).float()
    length = 3 if "text" in said else 2  # null captions may be shorter
    text = base.expand(BATCH, length, 4) if "text" in said else torch.zeros(BATCH, length, 4)
    image = base[:, :, 0] * STREAMS["image"] * ("image" in said)
    depth = base.view(BATCH, 1, 1, 1, 1).expand(BATCH, 1, 2, 2, 2) * STREAMS["depth"] * ("depth" in said)
    return Controls(image, depth, {"text": Tokens(text)})


class Backbone:
    """Answers with what it was told, and counts what it was asked."""

    def __init__(self, nonlinear=False):
        self.calls, self.nonlinear = [], nonlinear

    def __call__(self, x, timestep, controls):
        assert len(x) == len(timestep) == len(controls)
        self.calls.append(len(x))
        text = controls.tokens["text"]
        seen = torch.ones(text.values.shape[:2]) if text.visible is None else text.visible[:, 0].float()
        told = (text.values.mean(dim=2) * seen).sum(dim=1) / seen.sum(dim=1)
        told = told + controls.embed[:, 0] + controls.concat.mean(dim=(1, 2, 3, 4))
        told = told.view(-1, 1, 1, 1, 1)
        return torch.sin(x * told) + told if self.nonlinear else x + told

    def predictor(self, controls):
        return lambda x, timestep: self(x, timestep, controls)


X = torch.randn(BATCH, 2, 2, 2, 2, generator=torch.Generator().manual_seed(0))
TIMESTEP = torch.full((BATCH,), 500.0)


def apply(guidance, *, backbone=None, timestep=TIMESTEP, **settings):
    backbone = backbone or Backbone(nonlinear=True)
    return guided(backbone.predictor, controls_for, guidance, num_timesteps=1000, **settings)(X, timestep)


def branch(*said):
    return Backbone(nonlinear=True)(X, TIMESTEP, controls_for(frozenset(said)))


def test_classifier_free():
    found = apply(classifier_free(["text", "depth"], 7.5, **WHOLE))
    torch.testing.assert_close(found, branch() + 7.5 * (branch("text", "depth") - branch()), rtol=1e-5, atol=1e-3)


def test_classifier_free_that_keeps_a_condition():
    """VideoComposer: the structure stays in both branches."""
    found = apply(classifier_free(["text", "depth"], 9.0, dropped=["text"], **WHOLE))
    expected = branch("depth") + 9 * (branch("text", "depth") - branch("depth"))
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-3)


def test_instruct_pix2pix():
    found = apply(instruct_pix2pix(["image"], ["text"], 1.5, 7.5, **WHOLE))
    none, image, both = branch(), branch("image"), branch("image", "text")
    torch.testing.assert_close(found, none + 1.5 * (image - none) + 7.5 * (both - image), rtol=1e-5, atol=1e-4)


def test_alchemist():
    found = apply(alchemist(["image"], ["text"], 3.0, 8.0, **WHOLE))
    both = branch("image", "text")
    expected = both + 8 * (both - branch("image")) + 3 * (both - branch("text"))
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-4)


def test_published_tables():
    """As they are written in the papers."""
    none, image, text, both = (frozenset(names) for names in ((), ("image",), ("text",), ("image", "text")))
    assert dict(instruct_pix2pix(["image"], ["text"], 1.5, 7.5, **WHOLE).terms) == {both: 7.5, image: -6.0, none: -0.5}
    assert dict(alchemist(["image"], ["text"], 3.0, 8.0, **WHOLE).terms) == {both: 12.0, image: -8.0, text: -3.0}
    assert dict(classifier_free(["text"], 7.5, **WHOLE).terms) == {text: 7.5, none: -6.5}


@pytest.mark.parametrize("a", [0.0, 0.5, 1.0, 6.5, 14.0])
def test_alchemist_with_one_scale_is_instruct_pix2pix(a):
    one = alchemist(["image"], ["text"], 0.0, a, **WHOLE)
    other = instruct_pix2pix(["image"], ["text"], 1.0, 1 + a, **WHOLE)
    assert dict(one.terms) == pytest.approx(dict(other.terms))


@pytest.mark.parametrize("batched", [True, False])
def test_weights_zero_and_one_are_exactly_the_branches(batched):
    for scale, said in ((0.0, ()), (1.0, ("text", "depth"))):
        backbone = Backbone(nonlinear=True)
        found = apply(classifier_free(["text", "depth"], scale, **WHOLE), backbone=backbone, batched=batched)
        assert found.equal(branch(*said))
        assert backbone.calls == [BATCH], "the other branch is not computed"
    assert apply(instruct_pix2pix(["image"], ["text"], 0.0, 0.0, **WHOLE)).equal(branch())
    assert apply(instruct_pix2pix(["image"], ["text"], 1.0, 0.0, **WHOLE)).equal(branch("image"))
    assert apply(instruct_pix2pix(["image"], ["text"], 1.0, 1.0, **WHOLE)).equal(branch("image", "text"))
    assert apply(alchemist(["image"], ["text"], 0.0, 0.0, **WHOLE)).equal(branch("image", "text"))


def test_exact_branches_do_not_depend_on_rescale_and_interval():
    for scale, said in ((0.0, ()), (1.0, ("text",))):
        found = apply(classifier_free(["text"], scale, rescale=0.7, interval=(0.2, 0.4)))
        assert found.equal(branch(*said))


def test_all_branches_share_one_call():
    backbone = Backbone()
    apply(instruct_pix2pix(["image"], ["text"], 1.5, 7.5, **WHOLE), backbone=backbone)
    assert backbone.calls == [3 * BATCH]


def test_a_term_without_weight_is_not_computed():
    backbone = Backbone()
    apply(instruct_pix2pix(["image"], ["text"], 7.5, 7.5, **WHOLE), backbone=backbone)  # the middle one is left out
    assert backbone.calls == [2 * BATCH]
    assert Guidance([(["a"], 1 - 0.9), ([], 0.9), (["b"], 1 - 0.9 - 0.1)], **WHOLE).subsets == (
        frozenset("a"),
        frozenset(),
    )


@pytest.mark.parametrize("rescale", [0.0, 0.7])
def test_one_after_the_other_is_the_same(rescale):
    guidance, backbone = alchemist(["image"], ["text"], 3.0, 8.0, rescale=rescale, interval=(0.0, 1.0)), Backbone()
    apart = apply(guidance, backbone=backbone, batched=False)
    assert backbone.calls == [BATCH] * 3
    torch.testing.assert_close(apart, apply(guidance, backbone=Backbone()), rtol=1e-5, atol=1e-4)


def test_permuting_a_batch_permutes_its_predictions():
    guidance, order = classifier_free(["text", "depth"], 5.0, rescale=0.5, interval=(0.0, 1.0)), torch.tensor([2, 0, 1])
    backbone = Backbone(nonlinear=True)
    permuted = guided(backbone.predictor, lambda said: controls_for(said)[order], guidance, num_timesteps=1000)
    torch.testing.assert_close(permuted(X[order], TIMESTEP), apply(guidance)[order], rtol=0, atol=0)


def test_interval():
    guidance = classifier_free(["text"], 7.5, rescale=0.0, interval=(0.2, 0.8))
    everywhere = apply(classifier_free(["text"], 7.5, **WHOLE))
    for timestep, acts in ((0, False), (199, False), (200, True), (800, True), (801, False), (999, False)):
        backbone = Backbone(nonlinear=True)
        found = apply(guidance, backbone=backbone, timestep=torch.full((BATCH,), float(timestep)))
        assert found.equal(everywhere if acts else branch("text"))
        assert backbone.calls == [2 * BATCH if acts else BATCH]


def test_outside_the_interval_the_most_is_said():
    three = alchemist(["image"], ["text"], 3.0, 8.0, rescale=0.0, interval=(0.5, 0.5))
    assert three.full == frozenset(("image", "text"))
    assert apply(three, timestep=torch.full((BATCH,), 100.0)).equal(branch("image", "text"))
    two_of_a_size = Guidance([(["image"], -4.0), (["text"], 5.0)], **WHOLE)
    assert two_of_a_size.full == frozenset(["text"])


def test_rescale_restores_the_spread_of_the_conditioned_prediction():
    guidance = classifier_free(["text"], 7.5, rescale=1.0, interval=(0.0, 1.0))
    found, conditioned = apply(guidance), branch("text")
    torch.testing.assert_close(found.flatten(1).std(dim=1), conditioned.flatten(1).std(dim=1))
    plain = apply(classifier_free(["text"], 7.5, **WHOLE))
    half = apply(classifier_free(["text"], 7.5, rescale=0.5, interval=(0.0, 1.0)))
    torch.testing.assert_close(half, (found + plain) / 2)


def test_rescale_is_the_written_formula():
    """Lin et al. 2024, Eq. 15 and 16, sample by sample."""
    combined, conditioned = torch.randn(2, BATCH, 2, 2, 2, 2, generator=torch.Generator().manual_seed(1))
    for one, other, found in zip(combined, conditioned, rescaled(combined, conditioned, 0.7), strict=True):
        torch.testing.assert_close(found, 0.7 * one * other.std() / one.std() + 0.3 * one)


def test_controls_are_made_once_for_all_steps():
    """So that a backbone can keep the keys and values it made of them."""
    made, predicted = [], []

    def predictor(controls):
        made.append(controls)
        return lambda x, timestep: predicted.append(controls) or x

    predict = guided(predictor, controls_for, classifier_free(["text"], 7.5, **WHOLE), num_timesteps=1000)
    for timestep in (900.0, 500.0, 100.0):
        predict(X, torch.full((BATCH,), timestep))
    assert len(made) == 1
    assert all(controls is made[0] for controls in predicted)


def test_half_precision_branches_are_summed_in_float32():
    def predictor(controls):
        return lambda x, timestep: torch.cat([torch.full_like(x[:BATCH], 1.0), torch.full_like(x[BATCH:], 1.0078125)])

    predict = guided(predictor, controls_for, classifier_free(["text"], 101.0, **WHOLE), num_timesteps=1000)
    found = predict(X.bfloat16(), TIMESTEP)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, torch.full_like(found, 101 - 100 * 1.0078125))


def test_terms_come_from_a_configuration():
    """Lists of lists, as yaml has them; a subset may be split over several terms."""
    guidance = Guidance([[["text", "image"], 4.0], [["image", "text"], 1.0], [[], -4.0]], rescale=0.0, interval=[0, 1])
    assert dict(guidance.terms) == {frozenset(("text", "image")): 5.0, frozenset(): -4.0}
    assert guidance.interval == (0, 1)
    assert hash(guidance) == hash(Guidance(guidance.terms, 0.0, (0, 1)))


@pytest.mark.parametrize(
    ("settings", "key"),
    [
        ({"terms": [(["text"], 7.5)]}, "guidance.terms"),
        ({"terms": []}, "guidance.terms"),
        ({"terms": [(["text"], math.nan), ([], 1.0)]}, "guidance.terms"),
        ({"terms": [("text", 1.0)]}, "guidance.terms"),
        ({"rescale": 1.1}, "guidance.rescale"),
        ({"rescale": -0.1}, "guidance.rescale"),
        ({"interval": (0.5, 0.2)}, "guidance.interval"),
        ({"interval": (0.0, 2.0)}, "guidance.interval"),
        ({"interval": (0.0,)}, "guidance.interval"),
    ],
)
def test_impossible_tables_are_refused(settings, key):
    with pytest.raises(ConfigError, match=key):
        Guidance(**({"terms": [(["text"], 7.5), ([], -6.5)]} | WHOLE | settings))


@pytest.mark.parametrize("scale", [-1.0, math.inf, math.nan])
def test_scales_below_zero_are_refused(scale):
    for make in (
        lambda: classifier_free(["text"], scale, **WHOLE),
        lambda: instruct_pix2pix(["image"], ["text"], scale, 1.0, **WHOLE),
        lambda: alchemist(["image"], ["text"], 1.0, scale, **WHOLE),
    ):
        with pytest.raises(ConfigError, match="guidance"):
            make()
