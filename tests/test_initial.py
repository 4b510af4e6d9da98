"""`init` of stage=vdm with published weights: one key for a model folder, single parts, and what is refused before torch."""

import json
import logging
import subprocess
import sys
from pathlib import Path

import hydra
import pytest
import torch
from omegaconf import OmegaConf
from safetensors.torch import save_file

from tests.published_models import LENGTH, UNET, WIDTH, Layout, write_text_to_video
from vdm import config, lineage
from vdm.errors import ConfigError, RunError
from vdm.launch import CONF
from vdm.runs import Run
from vdm.sampling.model import TextToVideo
from vdm.training import train

pytest.importorskip("diffusers")
ROOT = Path(__file__).resolve().parents[1]
NARROW = ["backbone=modelscope", "backbone.channels=16", "backbone.multipliers=[1,2,2]", "backbone.blocks=1",
          "backbone.attention_levels=[0,1]", "backbone.head_width=8", "backbone.norm_groups=8",
          "backbone.temporal_in_head_width=8"]  # fmt: skip


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """The folder, and the pipeline that it holds."""
    folder = tmp_path_factory.mktemp("weights") / "text-to-video"
    return folder, write_text_to_video(folder)


@pytest.fixture
def composed(shapes_root, tmp_path):
    def compose(*overrides):
        words = ["stage=vdm", "data=shapes", "trainer=cpu", f"paths.data_root={shapes_root}",
                 f"paths.output_root={tmp_path}", "data.clip.frames=4", "run.id=it", *overrides]  # fmt: skip
        with hydra.initialize_config_dir(str(CONF), version_base="1.3"):
            cfg = hydra.compose("train", overrides=words)
        lineage.adopt(cfg)
        return cfg

    return compose


def checked(cfg):
    resolved = config.resolve(cfg)
    config.check_resolved(resolved)
    return resolved


def test_one_key_takes_a_whole_model_apart(composed, model):
    folder, pipeline = model
    resolved = checked(composed(f"init.diffusers={folder}", "backbone.checkpoint_levels=[1]"))
    assert resolved["init"]["backbone"] == f"{folder}/unet"
    assert resolved["init"]["autoencoder"] is None
    backbone = resolved["backbone"]
    assert [backbone["channels"] * m for m in backbone["multipliers"]] == list(UNET["block_out_channels"])
    assert (backbone["head_width"], backbone["temporal_conv"], backbone["checkpoint_levels"]) == (8, 4, [1])
    assert resolved["autoencoder"]["pretrained"] == f"{folder}/vae"
    assert resolved["autoencoder"]["multipliers"] == [1, 2, 2, 2]
    encoder = resolved["condition"]["text"]["encoder"]
    assert (encoder["folder"], encoder["layer"], encoder["length"]) == (str(folder), "last", LENGTH)


def test_what_the_command_names_itself_stays(composed, model):
    folder, _ = model
    cfg = composed(f"init.diffusers={folder}", "condition=[text_clip_l]", "condition.text.encoder.length=12")
    assert cfg.condition.text.encoder.length == 12
    before = OmegaConf.to_container(cfg)
    lineage.adopt(cfg)
    assert OmegaConf.to_container(cfg) == before, "adopting twice is adopting once"


def test_training_begins_with_these_weights(composed, model, caplog):
    folder, pipeline = model
    caplog.set_level(logging.INFO)
    cfg = composed(
        f"init.diffusers={folder}", "objective=epsilon", "trainer.max_steps=1", "stage.optimizer.lr=0",
        "stage.optimizer.weight_decay=0", "stage.scheduler=null", "data.batch_size=2", "data.val_clips=2", "data.num_workers=0",
        "callbacks.samples.every=0", "callbacks.validation.every=1",
    )  # fmt: skip
    checked(cfg)
    train(cfg)
    run = Run(Path(cfg.paths.output_root) / "it")
    assert "backbone starts from" in caplog.text
    assert "autoencoder starts from" in caplog.text
    assert "matched, 0 missing, 0 unexpected" in caplog.text
    assert run.info["lineage"] == [{"network": "backbone", "source": f"{folder}/unet"}]
    made = TextToVideo.of_run(run, run.last_checkpoint(), averaged=True, device=torch.device("cpu"), precision=None)
    x, text = torch.randn(1, 4, 2, 8, 8), torch.randn(1, 7, WIDTH)
    with torch.no_grad():
        expected = pipeline.unet(x, 30, text).sample
        from vdm.types import Controls, Tokens

        got = made.backbone(x, torch.tensor([30.0]), Controls(tokens={"text": Tokens(text)}))
        torch.testing.assert_close(got, expected, rtol=0, atol=1e-4)
        expected = pipeline.decode_latents(x)
        torch.testing.assert_close(made.autoencoder.decode(x), expected, rtol=0, atol=1e-4)


def test_single_parts_must_fit_the_command(composed, model, shapes_root):
    folder, _ = model
    parts = [f"autoencoder.pretrained={folder}/vae", "init.autoencoder=null", "autoencoder=kl2d", "autoencoder.channels=8",
             "autoencoder.multipliers=[1,2,2,2]", "autoencoder.blocks=1", "autoencoder.norm_groups=4"]  # fmt: skip
    text = [
        "condition=[text_clip_l]",
        f"condition.text.encoder.folder={folder}",
        f"condition.text.encoder.length={LENGTH}",
    ]
    unet = f"init.backbone={folder}/unet"
    checked(composed(*parts, *NARROW, *text, unet))
    with pytest.raises(
        ConfigError, match=r"another width(.|\n)*128, of condition.text(.|\n)*condition=\[text_clip_l\]"
    ):
        checked(composed(*parts, *NARROW, unet))
    with pytest.raises(ConfigError, match=r"backbone.head_width(.|\n)*got: +64(.|\n)*set backbone.head_width=8"):
        checked(composed(*parts, *NARROW, *text, unet, "backbone.head_width=64", "backbone.norm_groups=16"))
    with pytest.raises(ConfigError, match="init.diffusers="):
        checked(composed(*parts, *NARROW, *text, f"init.backbone={folder}"))
    with pytest.raises(ConfigError, match="hear a caption"):
        checked(composed(*parts, *NARROW, "condition=[]", unet))


def test_stable_diffusion_gives_the_layers_within_a_frame(composed, model, tmp_path):
    import diffusers

    folder, _ = model
    image = tmp_path / "sd" / "unet"
    peer = diffusers.UNet2DConditionModel(
        block_out_channels=(16, 32), down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"), layers_per_block=1, cross_attention_dim=WIDTH,
        norm_num_groups=8, attention_head_dim=4,
    )  # fmt: skip
    peer.save_pretrained(image)
    text = ["condition=[text_clip_l]", f"condition.text.encoder.folder={folder}", "condition.text.encoder.length=9"]
    own = ["backbone=tiny", "backbone.channels=16", "backbone.attention_levels=[0]", "backbone.feed_forward_ratio=4",
           "backbone.heads=4", "backbone.head_width=null", "backbone.norm_groups=8", "backbone.time_conditioning=add",
           f"init.backbone={image}", "init.autoencoder=null",
           "autoencoder=kl2d", f"autoencoder.pretrained={folder}/vae"]  # fmt: skip
    checked(composed(*own, *text))
    with pytest.raises(ConfigError, match=r"set backbone.heads=4 backbone.head_width=null"):
        checked(composed(*own, *text, "backbone.heads=null", "backbone.head_width=8"))
    with pytest.raises(ConfigError, match=r"backbone.blocks(.|\n)*set backbone.blocks=1"):
        checked(composed(*own, *text, "backbone.blocks=2"))
    from vdm.backbones.initial import load_published
    from vdm.backbones.unet3d import UNet3D

    node = checked(composed(*own, *text))["backbone"]
    network = UNet3D(**{k: v for k, v in node.items() if k != "_target_"}, streams={"text": WIDTH})
    report = load_published(network, str(image))
    assert report.missing
    assert all("temporal" in name for name in report.missing)
    with pytest.raises(ConfigError, match=r"init.fps"):
        load_published(network, str(image), fps=8)


def test_checkpoints_of_lvdm_are_named_by_their_file(composed, model, tmp_path):
    folder, _ = model
    file = tmp_path / "model.safetensors"
    save_file(Layout("videocrafter", text=WIDTH, head_width=8).state(), file)
    given = [f"init.diffusers={folder}", f"init.backbone={file}"]
    assert checked(composed(*given))["init"]["backbone"] == str(file)
    with pytest.raises(RunError, match=r"file is not there(.|\n)*init.backbone"):
        checked(composed(*given[:1], "init.backbone=lost.ckpt"))
    with pytest.raises(RunError, match=r"folder is not there(.|\n)*init.backbone"):
        checked(composed(*given[:1], "init.backbone=some/where"))
    with pytest.raises(RunError, match="no such run"):
        composed(*given[:1], "init.backbone=some-run")


def test_folders_of_other_things(composed, model, tmp_path):
    with pytest.raises(ConfigError, match=r"nothing is downloaded(.|\n)*init.diffusers(.|\n)*no folder"):
        composed(f"init.diffusers={tmp_path}/nowhere")
    with pytest.raises(ConfigError, match="without unet, vae, text_encoder, tokenizer"):
        composed(f"init.diffusers={tmp_path}")
    for part in ("unet", "vae", "text_encoder", "tokenizer"):
        (tmp_path / part).mkdir()
    with pytest.raises(RunError, match=r"not a diffusers folder(.|\n)*init.diffusers"):
        composed(f"init.diffusers={tmp_path}")
    (tmp_path / "unet" / "config.json").write_text(json.dumps({"_class_name": "Transformer2DModel"}))
    with pytest.raises(ConfigError, match=r"another network(.|\n)*Transformer2DModel"):
        composed(f"init.diffusers={tmp_path}")


def test_mistakes_are_said_without_torch(tmp_path):
    code = "import sys; from vdm import lineage; from vdm.backbones import published; print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"
    command = [
        sys.executable,
        "train.py",
        "stage=vdm",
        "data=shapes",
        f"init.diffusers={tmp_path}/no",
        "init.autoencoder=null",
    ]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert "Traceback" not in done.stderr
    assert "init.diffusers" in done.stderr
