"""Checkpoints of LVDM and VideoCrafter, in the layout they published: every tensor finds its place or is named."""

import logging

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import save_file

from tests.backbones.conftest import SMALL, randomise
from tests.published_models import Layout
from vdm.backbones.initial import load_published
from vdm.backbones.lvdm import from_lvdm, lvdm_rules
from vdm.backbones.unet3d import UNet3D
from vdm.errors import ConfigError, RunError
from vdm.layers.embeddings import sinusoidal_embedding

COMMON = SMALL | {
    "latent_channels": 4, "channels": 32, "attention_levels": [0, 1], "feed_forward_ratio": 4, "norm_groups": 32,
    "temporal_max_distance": 16, "streams": {"text": 12},
}  # fmt: skip
CRAFTER = {"heads": None, "head_width": 16, "temporal_in_heads": 8, "temporal_in_head_width": 16}
NETWORKS = {
    "lvdm": (
        Layout("lvdm", relative=16),
        {"heads": 2, "temporal_conv": 0, "temporal_attention": "interleaved", "temporal_position": "relative",
         "temporal_in_heads": 0},
    ),
    "videocrafter1": (
        Layout("videocrafter", temporal_conv=False, relative=16),
        CRAFTER | {"temporal_conv": 0, "temporal_position": "relative"},
    ),
    "videocrafter2": (Layout("videocrafter"), CRAFTER | {"temporal_conv": 4}),
}  # fmt: skip


def network(name, **changes):
    return UNet3D(**(COMMON | NETWORKS[name][1] | changes))


def crafter(tmp_path, **parts):
    """A VideoCrafter 2 checkpoint and its tensors."""
    state = Layout("videocrafter", **parts).state()
    torch.save({"state_dict": state, "epoch": 3}, tmp_path / "model.ckpt")
    return tmp_path / "model.ckpt", state


@pytest.mark.parametrize("name", NETWORKS)
def test_every_tensor_of_the_layout_has_its_place(name):
    layout, ours = NETWORKS[name][0], network(name)
    state = layout.state(prefix="")
    rules = list(lvdm_rules(ours))
    assert sorted(rule.ours for rule in rules) == sorted(ours.state_dict())
    assert sorted(their for rule in rules for their in rule.theirs) == sorted(state)
    mapped = from_lvdm(state, ours)
    assert {k: v.shape for k, v in mapped.items()} == {k: v.shape for k, v in ours.state_dict().items()}
    assert sum(v.double().sum() for v in mapped.values()) == pytest.approx(
        sum(v.double().sum().item() for v in state.values())
    )


def test_names_that_they_published():
    shapes = NETWORKS["videocrafter2"][0].shapes
    assert shapes["input_blocks.1.0.temopral_conv.conv2.3.weight"] == (32, 32, 3, 1, 1)
    assert shapes["init_attn.0.proj_in.weight"] == (128, 32, 1)
    assert shapes["middle_block.2.transformer_blocks.0.attn2.to_k.weight"] == (64, 64)
    assert shapes["output_blocks.1.3.conv.weight"] == (64, 64, 3, 3)
    shapes = NETWORKS["lvdm"][0].shapes
    assert shapes["output_blocks.1.2.conv.weight"] == (64, 64, 1, 3, 3)
    assert shapes["input_blocks.1.1.transformer_blocks.0.attn1_tmp.relative_position_v.embeddings_table"] == (33, 16)


@pytest.mark.parametrize("ending", ["ckpt", "safetensors"])
def test_files_are_read_and_what_is_left_is_said(ending, tmp_path, caplog):
    caplog.set_level(logging.INFO)
    state = NETWORKS["lvdm"][0].state() | {
        "betas": torch.ones(9),
        "first_stage_model.encoder.conv_in.bias": torch.ones(2),
    }
    file = tmp_path / f"model.{ending}"
    save_file(state, file) if ending == "safetensors" else torch.save({"state_dict": state}, file)
    ours = network("lvdm", streams={"text": 12, "scene_graph": 5}, concat_channels=2)
    report = load_published(ours, str(file))
    assert len(report.matched) == len(network("lvdm").state_dict())
    assert all("scene_graph" in name or name.startswith("concat_in") for name in report.missing)
    assert report.missing
    assert "1 of betas, 1 of first_stage_model" in caplog.text
    assert ours.conv_in.weight.equal(state["model.diffusion_model.input_blocks.0.0.weight"][:, :, 0])
    q, k, v = (
        state[f"model.diffusion_model.middle_block.1.transformer_blocks.0.attn1_tmp.to_{c}.weight"] for c in "qkv"
    )
    packed = ours.mid[0].spatial.blocks[0].temporal1.to_qkv.weight.unflatten(0, (2, 3, 32))
    assert all(packed[:, i].flatten(0, 1).equal(part) for i, part in enumerate((q, k, v)))


def test_frame_rate_becomes_a_part_of_the_timestep(tmp_path, caplog):
    file, state = crafter(tmp_path, fps=True)
    plain, told = network("videocrafter2").eval(), network("videocrafter2").eval()
    report = load_published(plain, str(file))
    assert sorted(report.unexpected) == [f"fps_embedding.{i}.{kind}" for i in (0, 2) for kind in ("bias", "weight")]
    assert "init.fps" in caplog.text
    report = load_published(told, str(file), fps=8.0)
    assert not report.unexpected
    one, bias1, two, bias2 = (
        state[f"model.diffusion_model.fps_embedding.{i}.{k}"] for i in (0, 2) for k in ("weight", "bias")
    )
    expected = F.linear(F.silu(F.linear(sinusoidal_embedding(torch.tensor([8.0]), 32), one, bias1)), two, bias2)
    timestep = torch.tensor([5.0, 800.0])
    torch.testing.assert_close(told.time_embedding(timestep), plain.time_embedding(timestep) + expected)
    file, _ = crafter(tmp_path)
    with pytest.raises(ConfigError, match=r"no frame rate(.|\n)*init.fps"):
        load_published(told, str(file), fps=8.0)


def test_another_network_is_told_by_its_settings(tmp_path):
    file, _ = crafter(tmp_path)
    for changes, words in (
        ({"temporal_conv": 0}, "backbone.temporal_conv=4"),
        ({"temporal_in_heads": 0}, "backbone.temporal_in_heads=8"),
        ({"streams": {"text": 20}}, "a text encoder of width 12"),
    ):
        with pytest.raises(RunError, match=words):
            load_published(network("videocrafter2", **changes), str(file))
    state = NETWORKS["lvdm"][0].state()
    torch.save(state, file)
    with pytest.raises(RunError, match=r"backbone=lvdm(.|\n)*temporal_attention=interleaved"):
        load_published(network("videocrafter2"), str(file))
    torch.save(
        {k: v.repeat(1, 1, 3, 1, 1) if v.ndim == 5 else v for k, v in state.items()}, file
    )  # kernels of 3 frames
    with pytest.raises(RunError, match="misshapen: conv_in.weight"):
        load_published(network("lvdm"), str(file))


def test_files_that_hold_something_else(tmp_path):
    ours = randomise(network("lvdm"))
    file = tmp_path / "model.ckpt"
    file.write_bytes(b"half a file")
    with pytest.raises(RunError, match="cannot be read"):
        load_published(ours, str(file))
    torch.save({"state_dict": {"a": torch.ones(2)}}, file)
    with pytest.raises(ConfigError, match="no U-Net of LVDM or VideoCrafter"):
        load_published(ours, str(file))
    torch.save({"run": file}, file)  # a Path is code to a pickle
    with pytest.raises(RunError, match="state_dict alone"):
        load_published(ours, str(file))
