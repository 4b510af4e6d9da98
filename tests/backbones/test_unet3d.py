"""The U-Net as a network: shapes, options that must not change results, precision, and what is refused."""

import pytest
import torch

from tests.backbones.conftest import SMALL, randomise
from vdm.backbones.unet3d import UNet3D
from vdm.errors import ConfigError
from vdm.layers.embeddings import place_embedding
from vdm.types import Controls, Tokens

VARIANTS = {
    "plain": {},
    "heads_by_width": {"heads": None, "head_width": 4},
    "interleaved": {"temporal_attention": "interleaved", "temporal_position": "relative", "temporal_conv": 0},
    "no_time": {"temporal_attention": "none", "temporal_conv": 0, "temporal_in_heads": 0},
    "scale_shift": {"time_conditioning": "scale_shift"},
    "deep": {"multipliers": [1, 1, 2], "blocks": 2, "depth": 2, "attention_levels": [0, 2]},
    "one_level": {"multipliers": [2], "attention_levels": []},
    "coordinates": {"coordinates": 3},
    "moments": {"moments": 2, "time_conditioning": "scale_shift"},
}


@pytest.fixture
def text() -> Controls:
    return Controls(tokens={"text": Tokens(torch.randn(2, 5, 6, generator=torch.Generator().manual_seed(2)))})


@pytest.mark.parametrize("variant", VARIANTS)
def test_variants_read_everything_and_train_everything(build, variant, latent, timestep, text):
    network = build(**VARIANTS[variant], streams={"text": 6})
    if variant == "deep":
        latent = latent.repeat(1, 1, 1, 2, 1)  # 12 x 8: divisible by four
    out = network(latent, timestep, text)
    assert out.shape == latent.shape
    out.square().mean().backward()
    silent = [name for name, p in network.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0]
    assert not silent
    other_text = text.to("cpu").repeat(1)
    other_text.tokens["text"].values[0] += 1
    for changed in (
        network(latent + 0.1, timestep, text),
        network(latent, timestep + 50, text),
        network(latent, timestep, other_text),
    ):
        assert (changed[0] - out[0]).abs().max() > 1e-4


def test_permuting_a_batch_permutes_its_samples(build, timestep, text, latent):
    network = build(streams={"text": 6}).double()
    latent, text = latent.double(), text.to("cpu", torch.float64)
    swap = torch.tensor([1, 0])
    out = network(latent, timestep, text)
    torch.testing.assert_close(network(latent[swap], timestep[swap], text[swap]), out[swap], rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(network(latent[:1], timestep[:1], text[:1]), out[:1], rtol=1e-12, atol=1e-12)


def test_coordinates_tell_places_apart_at_any_size(build, timestep):
    network = build(coordinates=3, temporal_in_heads=0)
    still = torch.zeros(2, 3, 4, 8, 8)
    told = network(still, timestep)
    network.place_in.weight.data.zero_()
    assert (told - network(still, timestep)).abs().max() > 0.1 * told.std()
    assert network(torch.zeros(2, 3, 6, 4, 12), timestep).isfinite().all()
    places = place_embedding(2, 3, 5, 4, like=still)
    assert places.shape == (2, 3, 5, 124)
    assert len(places.flatten(0, 2).unique(dim=0)) == 2 * 3 * 5, "no two places are told the same"


def test_each_frame_may_be_told_something_else(build, latent, timestep):
    frames = latent.shape[2]
    settings = {"embed_width": 3, "temporal_conv": 0, "temporal_attention": "none", "temporal_in_heads": 0}
    said = torch.randn(2, 3, generator=torch.Generator().manual_seed(1))
    for moments in (0, 2):
        network = build(**settings, moments=moments)
        for_all = network(latent, timestep, Controls(embed=said))
        one_by_one = said[:, None].repeat(1, frames, 1)
        torch.testing.assert_close(network(latent, timestep, Controls(embed=one_by_one)), for_all)
        one_by_one[:, -1] += 1
        changed = network(latent, timestep, Controls(embed=one_by_one)) - for_all
        assert changed[:, :, :-1].abs().max() < 1e-5
        assert changed[:, :, -1].abs().max() > 1e-3
        prepared = network.prepare(Controls(embed=one_by_one))
        torch.testing.assert_close(network(latent, timestep, prepared) - for_all, changed)
    both = Controls(embed=said) + Controls(embed=one_by_one)
    torch.testing.assert_close(both.embed, said[:, None] + one_by_one)
    assert Controls.cat([Controls(embed=said), both]).embed.shape == (4, frames, 3)
    with pytest.raises(ConfigError, match="another number of frames"):
        network(latent, timestep, Controls(embed=one_by_one[:, : frames - 1]))


def test_a_fresh_network_predicts_nothing_and_frames_are_independent(latent, timestep):
    network = UNet3D(**SMALL)
    assert torch.count_nonzero(network(latent, timestep)) == 0
    torch.nn.init.normal_(network.conv_out.weight)
    first = network(latent[:, :, :1], timestep)
    assert (network(latent, timestep)[:, :, :1] - first).abs().max() < 1e-5  # layers along time start closed


@pytest.mark.parametrize("levels", [[0], [1], [0, 1]])
def test_checkpointing_changes_no_gradient(build, levels, latent, timestep, text):
    gradients = []
    for checkpoint_levels in ([], levels):
        network = build(streams={"text": 6}, checkpoint_levels=checkpoint_levels, temporal_dropout=0.3)
        torch.manual_seed(5)
        network(latent, timestep, text).square().sum().backward()
        gradients.append({name: p.grad for name, p in network.named_parameters()})
    for name, gradient in gradients[0].items():
        assert torch.equal(gradient, gradients[1][name]), name


def test_checkpointing_keeps_less(build, latent, timestep):
    kept = []
    for checkpoint_levels in ([], [0, 1]):
        network, storages = build(checkpoint_levels=checkpoint_levels), {}
        with torch.autograd.graph.saved_tensors_hooks(
            lambda x, storages=storages: storages.setdefault(x.untyped_storage().data_ptr(), x), lambda x: x
        ):
            network(latent, timestep)
        weights = {p.untyped_storage().data_ptr() for p in network.parameters()}
        kept.append(sum(x.numel() for pointer, x in storages.items() if pointer not in weights))
    assert kept[1] < 0.4 * kept[0]


@pytest.mark.parametrize("variant", ["plain", "interleaved", "scale_shift"])
@pytest.mark.parametrize("traced", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_compiled_cells_compute_the_same(build, variant, traced, latent, timestep, text, monkeypatch):
    """A compiler is given plain operations instead of the fused ones. What the compiler makes of them is not asked here."""
    network = build(**VARIANTS[variant], streams={"text": 6}).double()
    latent, text = latent.double(), text.to("cpu", torch.float64)

    def results():
        out = network(latent, timestep, text)
        return [out, *torch.autograd.grad(out.square().sum(), list(network.parameters()))]

    expected = results()
    if traced:
        network.compile_cells(backend="eager")
    else:
        monkeypatch.setattr(torch.compiler, "is_compiling", lambda: True)
    for got, fused in zip(results(), expected, strict=True):
        torch.testing.assert_close(got, fused, rtol=1e-8, atol=1e-8)


def test_mixed_precision_stays_close_and_trains_in_float32(build, latent, timestep, text):
    network = build(streams={"text": 6})
    exact = network(latent, timestep, text)
    with torch.autocast("cpu", torch.bfloat16):
        rough = network(latent, timestep, text)
    assert rough.dtype == torch.bfloat16
    assert (rough.float() - exact).abs().max() < 0.05 * exact.abs().max()
    rough.float().square().mean().backward()
    assert all(p.grad.dtype == torch.float32 and p.grad.isfinite().all() for p in network.parameters())
    half = network.bfloat16()(latent.bfloat16(), timestep, text)
    assert (half.float() - exact).abs().max() < 0.1 * exact.abs().max()


@pytest.mark.parametrize("frames", [1, 2, 7])
def test_any_number_of_frames(build, frames, timestep):
    for variant in ("plain", "interleaved"):
        assert build(**VARIANTS[variant])(torch.randn(2, 3, frames, 4, 4), timestep).isfinite().all()


def test_one_timestep_serves_the_batch(build, latent):
    network = build()
    both = network(latent, torch.tensor([40.0, 40.0]))
    assert torch.equal(network(latent, torch.tensor([40.0])), both)


@pytest.mark.parametrize(
    ("changes", "key"),
    [
        ({"norm_groups": 3}, "backbone.norm_groups"),
        ({"heads": 3}, "backbone.heads"),
        ({"head_width": 4}, "backbone.heads"),
        ({"heads": None}, "backbone.heads"),
        ({"attention_levels": [2]}, "backbone.attention_levels"),
        ({"checkpoint_levels": [-1]}, "backbone.checkpoint_levels"),
        ({"multipliers": []}, "backbone.multipliers"),
        ({"channels": 9, "norm_groups": 9, "heads": 9}, "backbone.channels"),
    ],
)
def test_settings_that_do_not_fit(changes, key):
    with pytest.raises(ConfigError) as caught:
        UNet3D(**(SMALL | changes))
    assert caught.value.key == key


@pytest.mark.parametrize(
    ("shape", "key"),
    [
        ((2, 3, 4, 7, 8), "backbone.multipliers"),
        ((2, 3, 4, 6, 5), "backbone.multipliers"),
        ((2, 4, 4, 6, 8), "backbone.latent_channels"),
    ],
)
def test_latents_that_do_not_fit(build, shape, key, timestep):
    with pytest.raises(ConfigError) as caught:
        build()(torch.zeros(shape), timestep)
    assert caught.value.key == key


def test_weights_are_deterministic_in_the_seed():
    def weights():
        torch.manual_seed(7)
        return UNet3D(**SMALL, streams={"text": 6}).state_dict()

    one, other = weights(), weights()
    assert all(torch.equal(one[name], other[name]) for name in one)
    assert randomise(UNet3D(**SMALL)).conv_out.weight.abs().sum() > 0


@pytest.mark.parametrize("arrangement", ["separate", "interleaved"])
@pytest.mark.parametrize("doors", [{}, {"concat_channels": 2}, {"embed_width": 5}], ids=["tokens", "concat", "embed"])
def test_branches_share_what_no_control_reaches(build, latent, timestep, arrangement, doors):
    network = build(temporal_attention=arrangement, streams={"text": 6, "graph": 4}, **doors).eval()
    visible = torch.rand(4, 4, 3) > 0.4
    controls = Controls(
        tokens={"text": Tokens(torch.randn(4, 5, 6)), "graph": Tokens(torch.randn(4, 3, 4), visible)},
        concat=torch.randn(4, 2, 4, 6, 8) if "concat_channels" in doors else None,
        embed=torch.randn(4, 5) if "embed_width" in doors else None,
    )
    with torch.no_grad():
        expected = network(latent.repeat(2, 1, 1, 1, 1), timestep.repeat(2), controls)
        for given in (controls, network.prepare(controls)):
            got = network(latent, timestep, given, branches=2)
            assert (got - expected).abs().max() < 1e-5
    with pytest.raises(ConfigError, match="different batches"):
        network(latent, timestep, controls)


def test_branches_without_anything_said_are_equal(build, latent, timestep):
    network = build().eval()
    with torch.no_grad():
        got = network(latent, timestep, branches=3)
        torch.testing.assert_close(got, network(latent, timestep).repeat(3, 1, 1, 1, 1))
