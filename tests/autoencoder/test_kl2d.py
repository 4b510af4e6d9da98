import json

import pytest
import torch
from safetensors.torch import load_file, save_file

from vdm.autoencoder.kl2d import WEIGHTS, KL2dAutoencoder
from vdm.errors import ConfigError, RunError

CONFIG = {
    "_class_name": "AutoencoderKL",
    "down_block_types": ["DownEncoderBlock2D"] * 3,
    "up_block_types": ["UpDecoderBlock2D"] * 3,
    "block_out_channels": [8, 16, 16],
    "layers_per_block": 1,
    "norm_num_groups": 4,
    "latent_channels": 3,
    "scaling_factor": 0.5,
}


@pytest.fixture(scope="module")
def published(tmp_path_factory):
    """A folder in diffusers' form with random weights; that the form is theirs is tested below."""
    torch.manual_seed(0)
    sizes = {"latent_channels": 3, "channels": 8, "multipliers": [1, 2, 2], "blocks": 1, "norm_groups": 4}
    switches = {"attention": True, "quant_conv": True, "post_quant_conv": True}
    network = KL2dAutoencoder(**sizes, **switches, frames_per_slice=None, pretrained=None)
    with torch.no_grad():
        for p in network.parameters():
            p.add_(0.05 * torch.randn_like(p))  # no norm stays at one and zero
    folder = tmp_path_factory.mktemp("vae")
    save_file({k: v for k, v in network.state_dict().items() if not k.startswith("latent_")}, folder / WEIGHTS)
    (folder / "config.json").write_text(json.dumps(CONFIG))
    return folder


@pytest.fixture
def folder(published, tmp_path):
    """A copy that a test may damage."""
    for name in ("config.json", WEIGHTS):
        (tmp_path / name).write_bytes((published / name).read_bytes())
    return tmp_path


def edit(folder, **changes):
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | changes))


def test_numbers_and_names_are_those_of_diffusers(published, tmp_path):
    pytest.importorskip("diffusers")
    from diffusers import AutoencoderKL

    theirs = AutoencoderKL(**{k: v for k, v in CONFIG.items() if not k.startswith("_")}).eval()
    theirs.load_state_dict(load_file(published / WEIGHTS))
    theirs.save_pretrained(tmp_path)
    ours = KL2dAutoencoder.from_diffusers(tmp_path).eval()
    video = torch.rand(2, 3, 3, 16, 24, generator=torch.Generator().manual_seed(0)) * 2 - 1
    frames = video.transpose(1, 2).flatten(0, 1)
    with torch.no_grad():
        posterior = theirs.encode(frames).latent_dist
        moments = torch.cat([posterior.mean, posterior.logvar], 1).unflatten(0, (2, 3)).transpose(1, 2)
        gaussian = ours.posterior(video)
        torch.testing.assert_close(torch.cat([gaussian.mean, gaussian.logvar], 1), moments, atol=1e-5, rtol=1e-5)
        latent = ours.encode(video)
        torch.testing.assert_close(latent, gaussian.mean * 0.5)
        decoded = theirs.decode(posterior.mean).sample.unflatten(0, (2, 3)).transpose(1, 2)
        torch.testing.assert_close(ours.decode(latent), decoded, atol=1e-5, rtol=1e-5)


def test_report_says_every_tensor_matched(published):
    ours = KL2dAutoencoder.from_diffusers(published)
    report = ours.load_diffusers(published)
    assert len(report.matched) == len(load_file(published / WEIGHTS))
    assert report.unexpected == []
    assert report.missing == ["latent_scale", "latent_shift"]


def test_old_attention_names_and_shapes(published, folder):
    state = load_file(folder / WEIGHTS)
    old = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}
    renamed = {}
    for name, value in state.items():
        for ours, theirs in old.items():
            if f".{ours}." in name:
                name = name.replace(ours, theirs)
                value = value[..., None, None] if value.dim() == 2 else value
        renamed[name] = value
    assert renamed.keys() != state.keys()
    save_file({k: v.contiguous() for k, v in renamed.items()}, folder / WEIGHTS)
    video = torch.rand(1, 3, 1, 16, 16)
    ours, reference = (KL2dAutoencoder.from_diffusers(f).encode(video) for f in (folder, published))
    assert torch.equal(ours, reference)


def test_shift_factor(folder):
    edit(folder, shift_factor=0.25)
    model = KL2dAutoencoder.from_diffusers(folder)
    video = torch.rand(1, 3, 1, 16, 16)
    torch.testing.assert_close(model.encode(video), (model.posterior(video).mode() - 0.25) * 0.5)


@pytest.mark.parametrize(("damage", "word"), [("drop", "missing"), ("add", "unexpected"), ("shape", "misshapen")])
def test_one_wrong_tensor_is_refused_and_changes_nothing(folder, damage, word):
    state = load_file(folder / WEIGHTS)
    if damage == "drop":
        del state["decoder.conv_out.bias"]
    elif damage == "add":
        state["decoder.odd.bias"] = torch.zeros(3)
    else:
        state["decoder.conv_out.bias"] = torch.zeros(4)
    save_file(state, folder / WEIGHTS)
    with pytest.raises(RunError, match=word):
        KL2dAutoencoder.from_diffusers(folder)


@pytest.mark.parametrize(
    "changes",
    [
        {"_class_name": "AutoencoderTiny"},
        {"act_fn": "relu"},
        {"in_channels": 4},
        {"down_block_types": ["AttnDownEncoderBlock2D"] * 3},
        {"latents_mean": [0.0, 0.0, 0.0]},
    ],
)
def test_foreign_networks_are_refused(folder, changes):
    edit(folder, **changes)
    with pytest.raises(ConfigError, match="autoencoder.pretrained"):
        KL2dAutoencoder.from_diffusers(folder)


def test_a_folder_that_is_none(tmp_path):
    with pytest.raises(ConfigError, match="AutoencoderKL folder"):
        KL2dAutoencoder.from_diffusers(tmp_path)


def test_unreadable_weights(folder):
    (folder / WEIGHTS).write_bytes(b"not safetensors at all")
    with pytest.raises(RunError, match="cannot read"):
        KL2dAutoencoder.from_diffusers(folder)


def test_slices_change_no_number(published):
    video = torch.rand(2, 3, 5, 16, 16)
    whole = KL2dAutoencoder.from_diffusers(published)
    sliced = KL2dAutoencoder.from_diffusers(published, frames_per_slice=1)
    seen = []
    sliced.encoder.register_forward_pre_hook(lambda _, args: seen.append(len(args[0])))
    with torch.no_grad():
        latent = whole.encode(video)
        torch.testing.assert_close(sliced.encode(video), latent, atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(sliced.decode(latent), whole.decode(latent), atol=1e-5, rtol=1e-5)
    assert seen == [1] * 10
    seen.clear()
    sliced.frames_per_slice = 16
    with torch.no_grad():
        sliced.encode(video)
    assert seen == [2] * 5, "a CPU keeps two frames in its cache"
