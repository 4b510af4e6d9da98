"""Equality with diffusers' UNet3DConditionModel, and the key map at the published size."""

import pytest
import torch

from tests.backbones.conftest import SMALL, randomise
from vdm.backbones.modelscope import (
    from_diffusers,
    load_diffusers,
    rules,
    save_diffusers,
    settings_to_diffusers,
    to_diffusers,
)
from vdm.backbones.published import read_config, settings_from_diffusers
from vdm.backbones.unet3d import UNet3D
from vdm.checkpoint import load_weights
from vdm.errors import ConfigError, RunError
from vdm.types import Controls, Tokens

diffusers = pytest.importorskip("diffusers")

# Published: text-to-video-ms-1.7b/unet/config.json
PUBLISHED = {
    "block_out_channels": (320, 640, 1280, 1280),
    "layers_per_block": 2,
    "cross_attention_dim": 1024,
    "attention_head_dim": 64,
    "sample_size": 32,
}
TWO_LEVELS = {
    "block_out_channels": (16, 32),
    "down_block_types": ("CrossAttnDownBlock3D", "DownBlock3D"),
    "up_block_types": ("UpBlock3D", "CrossAttnUpBlock3D"),
}
REDUCED = {
    "four_levels": {
        "block_out_channels": (16, 32, 48, 48),
        "layers_per_block": 1,
        "cross_attention_dim": 24,
        "attention_head_dim": 8,
        "norm_num_groups": 8,
    },
    "two_levels": {
        **TWO_LEVELS,
        "layers_per_block": 2,
        "cross_attention_dim": 12,
        "attention_head_dim": 16,
        "norm_num_groups": 16,
    },
    "attention_everywhere": {
        "block_out_channels": (16, 16, 32),
        "down_block_types": ("CrossAttnDownBlock3D",) * 3,
        "up_block_types": ("CrossAttnUpBlock3D",) * 3,
        "layers_per_block": 1,
        "cross_attention_dim": 20,
        "attention_head_dim": 4,
        "norm_num_groups": 4,
        "in_channels": 3,
        "out_channels": 3,
    },
}
SHAPES = [(2, 1, 8, 8), (1, 5, 16, 8), (2, 3, 8, 16)]  # b t h w
RUNTIME = {"checkpoint_levels": [], "compile": False}


def pair(config):
    peer = randomise(diffusers.UNet3DConditionModel(**config)).eval()
    ours = UNet3D(**settings_from_diffusers(dict(peer.config)), **RUNTIME).eval()
    ours.load_state_dict(from_diffusers(peer.state_dict(), ours))
    return peer, ours


@pytest.mark.parametrize("name", REDUCED)
def test_outputs_are_equal(name):
    peer, ours = pair(REDUCED[name])
    generator = torch.Generator().manual_seed(0)
    for b, t, h, w in SHAPES:
        x = torch.randn(b, ours.latent_channels, t, h, w, generator=generator)
        timestep = torch.randint(0, 1000, (b,), generator=generator)
        tokens = torch.randn(b, 7, ours.streams["text"], generator=generator)
        with torch.no_grad():
            expected = peer(x, timestep, tokens).sample
            got = ours(x, timestep, Controls(tokens={"text": Tokens(tokens)}))
        assert expected.std() > 0.1
        assert (got - expected).abs().max() < 1e-4


def test_gradients_are_equal_in_float64():
    peer, ours = (network.double() for network in pair(REDUCED["two_levels"]))
    x, tokens, timestep = torch.randn(2, 4, 3, 4, 4).double(), torch.randn(2, 5, 12).double(), torch.tensor([5, 800])
    expected = dict(peer.named_parameters())
    gradients = torch.autograd.grad(peer(x, timestep, tokens).sample.square().sum(), list(expected.values()))
    expected = dict(zip(expected, gradients, strict=True))
    got = dict(ours.named_parameters())
    loss = ours(x, timestep, Controls(tokens={"text": Tokens(tokens)})).square().sum()
    got = to_diffusers(dict(zip(got, torch.autograd.grad(loss, list(got.values())), strict=True)), ours)
    for name, gradient in expected.items():
        # The peer's sinusoids are float32 in both, so eight digits are what can agree.
        assert (got[name] - gradient).abs().max() <= 1e-8 * gradient.abs().max() + 1e-12, name


def test_every_published_key_and_shape_maps_both_ways():
    with torch.device("meta"):
        peer = diffusers.UNet3DConditionModel(**PUBLISHED)
        ours = UNet3D(**settings_from_diffusers(dict(peer.config)), **RUNTIME)
    theirs, own = peer.state_dict(), ours.state_dict()
    assert len(theirs) == 1480
    assert sum(p.numel() for p in own.values()) == sum(p.numel() for p in theirs.values()) == 1_411_233_860
    mapped = from_diffusers(theirs, ours)
    assert {k: v.shape for k, v in mapped.items()} == {k: v.shape for k, v in own.items()}
    back = to_diffusers(own, ours)
    assert {k: v.shape for k, v in back.items()} == {k: v.shape for k, v in theirs.items()}
    assert sorted(rule.ours for rule in rules(ours)) == sorted(own)  # each tensor once
    config = settings_to_diffusers(ours)
    assert all(
        tuple(config[k]) == v if isinstance(v, tuple) else config[k] == v
        for k, v in PUBLISHED.items()
        if k != "sample_size"
    )


def test_the_map_and_its_inverse_are_exact():
    peer, ours = pair(REDUCED["four_levels"])
    back = to_diffusers(ours.state_dict(), ours)
    assert all(torch.equal(back[name], tensor) for name, tensor in peer.state_dict().items())


def test_folders_go_both_ways(tmp_path):
    peer, ours = pair(REDUCED["two_levels"])
    save_diffusers(ours, tmp_path / "ours")
    loaded = diffusers.UNet3DConditionModel.from_pretrained(tmp_path / "ours")
    assert all(torch.equal(loaded.state_dict()[name], tensor) for name, tensor in peer.state_dict().items())
    peer.save_pretrained(tmp_path / "theirs")
    again = UNet3D(**settings_from_diffusers(read_config(tmp_path / "theirs")), **RUNTIME)
    report = load_diffusers(again, tmp_path / "theirs")
    assert len(report.matched) == len(again.state_dict())
    assert all(torch.equal(again.state_dict()[name], tensor) for name, tensor in ours.state_dict().items())


def test_doors_that_a_folder_does_not_know_may_stay(tmp_path):
    _, ours = pair(REDUCED["two_levels"])
    save_diffusers(ours, tmp_path)
    ours.open_doors(streams={"scene_graph": 5}, concat_channels=8, embed_width=0)
    with pytest.raises(RunError, match="missing"):
        load_diffusers(ours, tmp_path)
    report = load_diffusers(ours, tmp_path, doors=["concat", "scene_graph"])
    assert report.missing
    assert all("scene_graph" in name or name.startswith("concat_in") for name in report.missing)


def test_unexpected_and_misshapen_tensors_are_reported(tmp_path):
    peer, ours = pair(REDUCED["two_levels"])
    state = peer.state_dict()
    own = from_diffusers({**state, "odd.weight": torch.zeros(1)}, ours)
    with pytest.raises(RunError, match="unexpected: odd.weight"):
        load_weights(ours, own, source="test")
    own = from_diffusers({**state, "conv_in.bias": torch.zeros(3)}, ours)
    with pytest.raises(RunError, match="misshapen: conv_in.bias"):
        load_weights(ours, own, source="test")
    with pytest.raises(RunError, match="cannot read"):
        load_diffusers(ours, tmp_path)
    with pytest.raises(RunError, match="not a diffusers folder"):
        read_config(tmp_path)


@pytest.mark.parametrize(
    "changes",
    [
        {"temporal_attention": "interleaved"},
        {"temporal_conv": 2},
        {"heads": 4, "head_width": None},
        {"streams": {}},
        {"concat_channels": 4},
    ],
)
def test_what_diffusers_cannot_express_is_refused(changes):
    fitting = {"heads": None, "head_width": 4, "feed_forward_ratio": 4, "temporal_conv": 4, "temporal_in_heads": 8}
    network = UNet3D(**(SMALL | fitting | {"streams": {"text": 6}}))
    assert settings_to_diffusers(network)["cross_attention_dim"] == 6
    with pytest.raises(ConfigError, match="cannot express"):
        settings_to_diffusers(UNet3D(**(SMALL | fitting | {"streams": {"text": 6}} | changes)))


@pytest.mark.parametrize(
    "changes",
    [
        {"act_fn": "gelu"},
        {"_class_name": "UNet2DConditionModel"},
        {"out_channels": 8},
        {"block_out_channels": (32, 48)},
        {"up_block_types": ("UpBlock3D", "UpBlock3D")},
        {"attention_head_dim": (8, 8)},
    ],
)
def test_folders_of_other_networks_are_refused(changes):
    with pytest.raises(ConfigError, match="parts that UNet3D has not"):
        settings_from_diffusers({**TWO_LEVELS, "in_channels": 4, "out_channels": 4, **changes})
