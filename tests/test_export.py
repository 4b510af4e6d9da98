"""A run as a diffusers folder: its pipeline makes the frames of sample.py, to one step of 255."""

import json
import os
import subprocess
import sys
from pathlib import Path

import hydra
import numpy as np
import pytest
import torch
from omegaconf import OmegaConf

from tests.published_models import LENGTH, write_text_to_video
from tests.sampling_runs import ask, write_run
from vdm import checkpoint, config
from vdm.autoencoder.kl2d import KL2dAutoencoder
from vdm.diffusion.noise import noise_for
from vdm.errors import ConfigError, RunError
from vdm.export.command import export
from vdm.export.parts import in_their_scale, scheduler_config
from vdm.launch import CONF
from vdm.types import LatentShape

diffusers = pytest.importorskip("diffusers")
ROOT = Path(__file__).resolve().parents[1]
PROMPT = "a red circle, ok"
SMALL = [
    "autoencoder=kl2d", "autoencoder.channels=8", "autoencoder.multipliers=[1,2,2]", "autoencoder.blocks=1",
    "autoencoder.norm_groups=4", "backbone=modelscope", "backbone.channels=16", "backbone.multipliers=[1,2,2]",
    "backbone.blocks=1", "backbone.attention_levels=[0,1]", "backbone.head_width=8", "backbone.norm_groups=8",
    "backbone.temporal_in_head_width=8", "condition=[text_clip_l]", f"condition.text.encoder.length={LENGTH}",
    "data.clip.frames=3", "data.clip.height=32", "data.clip.width=32",
]  # fmt: skip


def settings(text, *overrides, objective="v"):
    words = [*SMALL, f"condition.text.encoder.folder={text}", f"objective={objective}", *overrides]
    with hydra.initialize_config_dir(str(CONF), version_base="1.3"):
        cfg = hydra.compose("train", overrides=words)
    groups = ("autoencoder", "backbone", "objective", "condition", "data")
    return {name: OmegaConf.to_container(cfg[name], resolve=True) for name in groups} | {
        "stage": {"name": "vdm"},
        "seed": 0,
    }


def write(folder, *overrides):
    """As the command line does: composed, checked, run."""
    with hydra.initialize_config_dir(str(CONF), version_base="1.3"):
        cfg = hydra.compose("export", overrides=[f"paths.output_root={folder}", *overrides])
    config.check(cfg, set(cfg))
    return export(cfg)


def enlarge(run):
    """Random weights of one size make flat pictures: normalisations that keep the scale, latents shifted by channel."""
    folder = run.last_checkpoint()
    state = checkpoint.load(folder)
    tensors = state.pop("state_dict")
    for name, tensor in tensors.items():
        if "norm" in name and name.endswith("weight"):
            tensor += 1
        if name.startswith("autoencoder.decoder.conv_out.weight"):
            tensor *= 3
    tensors["autoencoder.latent_shift"] = torch.tensor([0.3, -0.2, 0.0, 0.5])
    tensors["autoencoder.latent_scale"] = torch.tensor([0.7, 1.3, 0.9, 1.1])
    checkpoint.save(folder, state | {"state_dict": tensors, "ema": {"backbone.conv_out.bias": torch.ones(4)}}, step=10)
    return run


@pytest.fixture(scope="module")
def text(tmp_path_factory):
    folder = tmp_path_factory.mktemp("weights") / "text-to-video"
    write_text_to_video(folder)
    return folder


@pytest.fixture(scope="module", params=["v", "epsilon"])
def run(request, text, tmp_path_factory):
    folder = tmp_path_factory.mktemp(request.param) / f"vdm-{request.param}"
    return enlarge(write_run(folder, settings(text, objective=request.param)))


SAMPLERS = {
    "ddim": ["sampler=ddim", "sampler.num_steps=8"],
    "ddim of ModelScope": [
        "sampler=ddim", "sampler.num_steps=8", "sampler.spacing=leading", "sampler.offset=1", "sampler.end=first",
    ],
    "dpm_solver": ["sampler=dpm_solver", "sampler.num_steps=7"],
    "dpm_solver first": ["sampler=dpm_solver", "sampler.num_steps=16", "sampler.spacing=linspace", "sampler.end=first"],
}  # fmt: skip


CASES = [*((name, 6.0, None) for name in SAMPLERS), ("dpm_solver", 4.0, "ok")]


@pytest.mark.parametrize(("name", "guidance", "negative"), CASES)
def test_the_pipeline_makes_the_frames_of_sample(run, name, guidance, negative, tmp_path):
    if run.name == "vdm-v" and "leading" in str(SAMPLERS[name]):
        pytest.skip("a model that ends in pure noise is not sampled from its last but one step")
    sampler = SAMPLERS[name]
    said = [f"negative_prompt={negative}"] if negative else []
    (file,) = ask(run.folder.parent, f"run={run.name}", f"prompt={PROMPT}", "format=npz", "seed=3", f"guidance={guidance}",
                  f"output={tmp_path}/samples", *sampler, *said)  # fmt: skip
    ours = np.load(file)["arr_0"].astype(int)
    key = json.loads(file.with_suffix(".json").read_text())["key"]
    folder = write(run.folder.parent, f"run={run.name}", f"to={tmp_path}/model", *sampler)
    pipeline = diffusers.TextToVideoSDPipeline.from_pretrained(folder)
    pipeline.set_progress_bar_config(disable=True)
    noise = noise_for([key], 3, LatentShape(4, 3, 8, 8), torch.device("cpu"))
    call = json.loads((folder / "export.json").read_text())["call"]
    made = pipeline(PROMPT, latents=noise, guidance_scale=guidance, negative_prompt=negative, output_type="np", **call)
    theirs = (made.frames[0] * 255).round().astype(int)
    assert theirs.shape == ours.shape == (3, 32, 32, 3)
    assert ours.std() > 8, "a flat picture proves nothing"
    assert abs(ours - theirs).max() <= 1


def test_averaged_weights_are_exported_unless_asked(run, tmp_path):
    biases = []
    for ema in ("true", "false"):
        folder = write(run.folder.parent, f"run={run.name}", f"to={tmp_path}/{ema}", f"ema={ema}")
        biases.append(diffusers.UNet3DConditionModel.from_pretrained(folder / "unet").conv_out.bias)
    assert biases[0].eq(1).all()
    assert not biases[1].eq(1).any()


def test_latents_are_theirs_in_one_factor(run):
    """Encoded and decoded, with a shift and a scale for each channel, with and without the convolutions they go into."""
    for convolutions in (True, False):
        torch.manual_seed(0)
        ours = KL2dAutoencoder(
            latent_channels=4, channels=8, multipliers=[1, 2], blocks=1, norm_groups=4, attention=True,
            quant_conv=convolutions, post_quant_conv=convolutions, frames_per_slice=None, pretrained=None,
        )  # fmt: skip
        state, factor = in_their_scale(ours)
        assert factor == 1.0
        assert state.keys() == {name for name in ours.state_dict() if not name.startswith("latent_")}
        ours.latent_shift.copy_(torch.tensor([0.3, -0.2, 0.0, 0.5]))
        ours.latent_scale.copy_(torch.tensor([0.7, 1.3, 0.9, 1.1]))
        state, factor = in_their_scale(ours)
        peer = diffusers.AutoencoderKL(
            block_out_channels=(8, 16), down_block_types=("DownEncoderBlock2D",) * 2, norm_num_groups=4,
            up_block_types=("UpDecoderBlock2D",) * 2, layers_per_block=1, latent_channels=4,
        )  # fmt: skip
        peer.load_state_dict(state)
        video = torch.randn(1, 3, 1, 16, 16)
        with torch.no_grad():
            there = peer.encode(video[:, :, 0]).latent_dist
            latent = there.mean * factor
            torch.testing.assert_close(latent[:, :, None], ours.encode(video), rtol=0, atol=1e-5)
            torch.testing.assert_close(there.std[:, :, None], (0.5 * ours.posterior(video).logvar).exp()
                                       * ours.latent_scale.view(1, 4, 1, 1, 1), rtol=0, atol=1e-5)  # fmt: skip
            back = peer.decode(latent / factor).sample
            torch.testing.assert_close(back[:, :, None], ours.decode(latent[:, :, None]), rtol=0, atol=1e-5)


@pytest.mark.parametrize("schedule", ["linear", "scaled_linear", "cosine"])
@pytest.mark.parametrize("name", ["ddim", "dpm_solver"])
def test_schedules_are_theirs(schedule, name, text):
    from hydra.utils import instantiate

    objective = settings(text)["objective"]
    node = {"_target_": f"vdm.diffusion.schedule.{schedule}", "num_timesteps": 1000, "zero_terminal_snr": True}
    betas = {"offset": 0.008, "max_beta": 0.999} if schedule == "cosine" else {"beta_start": 0.001, "beta_end": 0.01}
    with hydra.initialize_config_dir(str(CONF), version_base="1.3"):
        sampler = OmegaConf.to_container(hydra.compose("sample", overrides=[f"sampler={name}"]).sampler)
    given = scheduler_config(objective | {"schedule": node | betas}, sampler)
    peer = getattr(diffusers, given["_class_name"]).from_config(json.loads(json.dumps(given)))
    ours = instantiate(node | betas).alphas ** 2
    assert (peer.alphas_cumprod[:-1].double() - ours[:-1]).abs().max() < 1e-4
    assert peer.config.prediction_type == "v_prediction"


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (["autoencoder=tiny"], ["autoencoder", "Conv3dAutoencoder", "autoencoder=kl2d", "sample.py"]),
        (["condition=[text]"], ["condition", "SmallEncoder", "condition=[text_clip_l]"]),
        (["condition=[text_t5]"], ["condition", "T5Encoder", "condition=[text_clip_l]"]),
        (["condition=[]"], ["condition", "no caption"]),
        (["backbone.temporal_attention=interleaved"], ["backbone.temporal_attention", "interleaved", "separate"]),
        (["backbone.temporal_conv=2"], ["backbone.temporal_conv", "backbone=modelscope"]),
        (["objective=flow"], ["objective.schedule", "Flow", "objective=v"]),
        (["objective.shared_noise=0.5"], ["objective.shared_noise", "0.5"]),
        (["objective.prediction=velocity"], ["objective.prediction", "velocity"]),
    ],
    ids=lambda x: " ".join(x) if isinstance(x, list) and "=" in x[0] else "",
)
def test_what_diffusers_cannot_hold_is_said_before_anything_is_built(overrides, words, text, tmp_path):
    folder = tmp_path / "vdm-it"
    group = overrides[0].partition("=")[0]
    if "." in group:
        node = settings(text, *overrides)
    else:  # another choice of a whole group
        with hydra.initialize_config_dir(str(CONF), version_base="1.3"):
            cfg = hydra.compose("train", overrides=["stage=vdm", *overrides])
        node = settings(text) | {group: OmegaConf.to_container(cfg[group], resolve=True)}
    (folder / "checkpoints" / "step-00000001").mkdir(parents=True)
    (folder / "config.yaml").write_text(OmegaConf.to_yaml(OmegaConf.create(node)))
    (folder / "run.json").write_text(json.dumps({"stage": "vdm", "state": "complete"}))
    with pytest.raises(ConfigError) as error:
        write(tmp_path, f"to={tmp_path}/model")
    assert all(word in str(error.value) for word in ("cannot hold this run", *words)), str(error.value)
    assert not (tmp_path / "model").exists()


def test_nothing_is_replaced_unasked_and_nothing_half_is_left(run, tmp_path, monkeypatch):
    given = [f"run={run.name}", f"to={tmp_path}/model"]
    write(run.folder.parent, *given)
    with pytest.raises(RunError, match=r"there already(.|\n)*overwrite=true"):
        write(run.folder.parent, *given)
    (tmp_path / "model" / "mine.txt").write_text("x")
    write(run.folder.parent, *given, "overwrite=true")
    assert not (tmp_path / "model" / "mine.txt").exists()
    (tmp_path / "home").mkdir()
    with pytest.raises(RunError, match="only a model folder is replaced"):
        write(run.folder.parent, given[0], f"to={tmp_path}/home", "overwrite=true")

    def full(*args, **kwargs):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("vdm.export.command.write_text_encoder", full)
    with pytest.raises(RunError, match=r"could not be written(.|\n)*No space left"):
        write(run.folder.parent, given[0], f"to={tmp_path}/other")
    with pytest.raises(RunError, match="could not be written"):
        write(run.folder.parent, *given, "overwrite=true")
    assert sorted(os.listdir(tmp_path)) == ["home", "model"]
    assert (tmp_path / "model" / "unet" / "config.json").is_file()


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ([], ["key:     to", "to=<folder>"]),
        (["to=x", "sampler=unipc"], ["key:     sampler", "ddim", "dpm_solver"]),
        (["to=x", "sampler=ddim", "sampler.spacing=linspace"], ["sampler.spacing", "trailing"]),
        (["to=x", "ema=maybe"], ["ema", "true or false"]),
        (["to=x", "step=-1"], ["key:     step"]),
        (["to=x", "run=nothing"], ["no such run"]),
    ],
    ids=lambda x: " ".join(x)[:30],
)
def test_requests_are_checked(run, words, said):
    with pytest.raises((ConfigError, RunError)) as error:
        write(run.folder.parent, *words)
    assert all(word in str(error.value) for word in said)


def test_the_command_says_mistakes_in_one_message(tmp_path):
    command = [sys.executable, "-m", "vdm.export", "to=x", f"paths.output_root={tmp_path}"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert "there is no complete vdm run" in done.stderr
    assert "Traceback" not in done.stderr
