import copy
import os
import shutil
import subprocess
import sys
from pathlib import Path

import hydra
import pytest
import torch
from omegaconf import OmegaConf
from torch.utils.data import DataLoader

from vdm import checkpoint, config, lineage, runs, training
from vdm.errors import ConfigError, RunError
from vdm.launch import CONF
from vdm.runs import Run
from vdm.stages.base import pl
from vdm.types import LatentShape

ROOT = Path(__file__).parents[2]
AUTOENCODER = [
    "autoencoder=tiny", "autoencoder.channels=16", "autoencoder.encoder_blocks=1", "autoencoder.decoder_blocks=1",
]  # fmt: skip
SHARED = [
    "data=shapes", "trainer=cpu", "data.num_workers=0", "data.batch_size=4", "data.val_clips=4", "stage.accumulate=1",
    "trainer.log_every_n_steps=1", "callbacks.checkpoint.finish_batches=1", "callbacks.samples.count=2",
]  # fmt: skip
SMALL = [
    "stage=vdm", "backbone=tiny", "backbone.channels=16", "backbone.norm_groups=4", "backbone.head_width=8",
    "condition.text.encoder.width=16", "condition.text.encoder.depth=1", "condition.text.encoder.heads=2",
    "sampler.num_steps=2",
]  # fmt: skip


def compose(*overrides):
    with hydra.initialize_config_dir(str(CONF), version_base="1.3"):
        return hydra.compose("train", overrides=list(overrides))


def stage(*overrides):
    torch.manual_seed(0)
    return hydra.utils.instantiate(compose(*AUTOENCODER, *SMALL, *overrides).stage, _convert_="all")


def batch(count=4, first=0):
    generator = torch.Generator().manual_seed(0)
    video = torch.rand(16, 3, 4, 16, 16, generator=generator)[first : first + count] * 2 - 1
    words = ["a red circle", "a blue square", "a green ring", ""]
    return {
        "video": video,
        "caption": [words[(first + i) % 4] for i in range(count)],
        "fps": torch.full((count,), 8.0),
        "key": [f"k{first + i}" for i in range(count)],
    }


def fit(module, data, steps, **settings):
    module.make_scheduler = None
    trainer = pl.Trainer(
        accelerator="cpu",
        max_steps=steps,
        max_epochs=-1,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        **settings,
    )
    trainer.fit(module, DataLoader(data, batch_size=None))
    return module


def test_it_learns_one_batch_and_the_autoencoder_stays_as_it_was():
    module = stage("stage.optimizer.lr=5e-3")
    before = copy.deepcopy(module.autoencoder.state_dict())
    first = module.validation_losses(batch())["loss"].mean()
    fit(module, [batch()] * 150, 150)
    module.eval()
    own = module.validation_losses(batch())["loss"].mean()
    assert own < 0.7 * first
    other = batch() | {"caption": batch()["caption"][1:] + batch()["caption"][:1]}
    assert module.validation_losses(other)["loss"].mean() > 1.1 * own, "it hears the captions"
    after = module.autoencoder.state_dict()
    assert all(torch.equal(after[name], value) for name, value in before.items())


def test_the_autoencoder_is_frozen_and_in_eval():
    module = stage().train()
    assert not module.autoencoder.training
    assert module.backbone.training
    trained = {id(p) for group in module.parameter_groups() for p in group["params"]}
    assert not trained & {id(p) for p in module.autoencoder.parameters()}
    assert len(trained) == len(list(module.backbone.parameters())) + len(list(module.conditions.parameters()))
    module.losses(batch())["loss"].backward()
    assert all(p.grad is None for p in module.autoencoder.parameters())


@torch.no_grad()
def test_a_sample_has_its_own_noise_and_dropping_whatever_is_beside_it():
    module = stage("condition.text.drop_prob=0.5").eval()
    torch.nn.init.normal_(module.backbone.conv_out.weight, std=0.1)

    def per_sample(given):
        latent = module.latent_of(given)
        shape = LatentShape(*latent.shape[1:])
        draw = module.objective.draw(given["key"], module.seed, module.step, shape, "cpu")
        controls = module.conditions(given, shape, seed=module.seed, step=module.step)
        return module.objective(module.backbone, latent, controls, noise=draw.noise, timestep=draw.timestep)

    together = per_sample(batch(8))
    apart = torch.cat([per_sample(batch(3)), per_sample(batch(5, first=3))])
    torch.testing.assert_close(together, apart)
    torch.testing.assert_close(module.losses(batch(8))["loss"], together.mean())
    drops = module.conditions.dropped(batch(8)["key"], module.seed, module.step)["text"]
    assert drops.any()
    assert not drops.all()


@torch.no_grad()
def test_validation_is_the_same_whenever_and_however_it_is_asked():
    module = stage("condition.text.drop_prob=1.0").eval()
    torch.nn.init.normal_(module.backbone.conv_out.weight, std=0.1)
    losses = module.validation_losses(batch(6))
    assert losses["loss"].shape == (6,)
    assert {f"loss_level_{i}" for i in range(4)} < losses.keys()
    parts = [module.validation_losses(batch(2, first=i))["loss"] for i in (0, 2, 4)]
    torch.testing.assert_close(losses["loss"], torch.cat(parts))
    module.seed = 5
    assert torch.equal(module.validation_losses(batch(6))["loss"], losses["loss"])


def test_latents_of_the_batch_are_taken_as_they_are():
    module = stage().eval()
    given = batch()
    latent = module.latent_of(given)
    cached = {name: value for name, value in given.items() if name != "video"} | {"latent": latent}
    assert torch.equal(module.losses(cached)["loss"], module.losses(given)["loss"])
    assert module.preview(cached)["sample"].shape == given["video"].shape
    with pytest.raises(Exception, match="not of this autoencoder"):
        module.latent_of({"latent": latent[:, :3]})


def test_losses_by_noise_level_are_running_means():
    module = stage("stage.noise_levels=2")
    module._note_levels(torch.tensor([1.0, 3.0]), torch.tensor([0, 0]))
    assert module.level_losses[0] == 2.0
    assert module.level_losses[1] != module.level_losses[1]  # nothing so far
    module._note_levels(torch.tensor([4.0]), torch.tensor([0]))
    assert module.level_losses[0] == pytest.approx(0.95 * 2 + 0.05 * 4)


def test_mixed_precision_is_finite_and_used_in_validation_too():
    module = fit(stage(), [batch()] * 2, 2, precision="bf16-mixed")
    module.eval()
    assert torch.isfinite(module.losses(batch())["loss"])
    mixed = module.validation_losses(batch())["loss"]
    module._trainer = None
    assert not torch.equal(mixed, module.validation_losses(batch())["loss"])


@pytest.mark.parametrize("objective", ["epsilon", "v", "flow"])
@pytest.mark.parametrize("sampler", ["ddim", "dpm_solver", "euler"])
def test_previews_of_every_objective(objective, sampler):
    module = stage(f"objective={objective}", f"sampler={sampler}").eval()
    videos = module.preview(batch(2))
    assert list(videos) == ["video", "sample"]
    assert videos["sample"].shape == videos["video"].shape
    assert torch.isfinite(videos["sample"]).all()
    assert videos["sample"].abs().max() <= 1
    again = module.preview(batch(1, first=1))["sample"]
    torch.testing.assert_close(videos["sample"][1:], again, atol=1e-4, rtol=0)


def test_without_conditions_it_is_an_unconditional_model():
    module = hydra.utils.instantiate(
        compose(*AUTOENCODER, *SMALL[:5], "condition=[]", "sampler.num_steps=2").stage, _convert_="all"
    )
    assert torch.isfinite(module.losses(batch())["loss"])
    assert [group["name"] for group in module.parameter_groups()] == ["backbone"]
    assert torch.isfinite(module.preview(batch(2))["sample"]).all()


def test_another_number_of_latent_channels_is_refused():
    with pytest.raises(Exception, match="backbone.latent_channels") as error:
        stage("backbone.latent_channels=4")
    assert isinstance(error.value.__cause__ or error.value, ConfigError)


def test_one_stage_shows_nothing_of_another():
    assert not {"backbone", "objective", "condition", "sampler"} & set(compose("stage=autoencoder"))
    assert {"backbone", "objective", "condition", "sampler"} <= set(compose("stage=vdm"))


def test_previews_do_not_name_a_run():
    plain, other = (
        runs.run_id(OmegaConf.to_container(compose(*AUTOENCODER, *SMALL, *more), resolve=True))
        for more in ([], ["sampler.num_steps=7", "stage.previews.guidance=2"])
    )
    assert plain == other


@pytest.fixture(scope="module")
def chain(shapes_root, tmp_path_factory):
    """Both stages by the commands a user types."""
    output = tmp_path_factory.mktemp("chain")
    places = [f"paths.data_root={shapes_root}", f"paths.output_root={output}"]
    first = ["stage=autoencoder", *AUTOENCODER, "stage.loss.perceptual=null", "stage.loss.adversarial=null"]
    every = ["callbacks.checkpoint.every=2", "callbacks.validation.every=2", "callbacks.samples.every=2"]
    for arguments in (first, SMALL):
        command = [sys.executable, "train.py", *arguments, *SHARED, *every, *places, "trainer.max_steps=4"]
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300, env=dict(os.environ))
        assert done.returncode == 0, done.stderr
    return output, places, done.stderr


def test_the_second_stage_finds_the_first(chain):
    output, _, said = chain
    (parent,) = output.glob("autoencoder-shapes-*")
    (child,) = output.glob("vdm-shapes-*")
    assert f"the newest complete run of stage=autoencoder is {parent.name}" in said
    run, settings = Run(child), OmegaConf.load(child / "config.yaml")
    assert run.state == "complete"
    assert run.info["lineage"][0]["run"] == parent.name == settings.init.autoencoder
    assert settings.autoencoder == OmegaConf.load(parent / "config.yaml").autoencoder  # not the group's default
    assert settings.backbone.latent_channels == settings.autoencoder.latent_channels == 8
    ours, theirs = (
        checkpoint.network_weights(folder, "autoencoder")
        for folder in (run.last_checkpoint(), Run(parent).last_checkpoint())
    )
    assert all(torch.equal(ours[name], tensor) for name, tensor in theirs.items())
    files = checkpoint.read_manifest(run.last_checkpoint())["files"]
    assert {"ema/backbone.safetensors", "ema/conditions.safetensors"} <= files.keys()
    assert "ema/autoencoder.safetensors" not in files
    assert "val/loss_level_3" in (child / "metrics.csv").read_text().splitlines()[0]
    assert (child / "samples" / "step-00000004" / "sheet.png").exists()


def test_a_named_run_keeps_its_parent_when_there_is_a_newer_one(chain):
    output, places, _ = chain
    (parent,) = output.glob("autoencoder-shapes-*")
    training.train(compose(*SMALL, *SHARED, *places, "run.id=kept", "trainer.max_steps=1"))
    newer = output / "newer"
    try:
        shutil.copytree(parent, newer)
        Run(newer).update(finished=Run(parent).info["finished"] + 1)
        for name, expected in (("kept", parent.name), ("fresh", "newer")):
            cfg = compose(*SMALL, *SHARED, *places, f"run.id={name}", "trainer.max_steps=2")
            lineage.adopt(cfg)
            assert cfg.init.autoencoder == expected
    finally:
        shutil.rmtree(newer)


def test_no_parent_is_said_before_anything_is_built(tmp_path):
    with pytest.raises(RunError, match="train one first: python train.py stage=autoencoder data=shapes"):
        lineage.adopt(compose("stage=vdm", f"paths.output_root={tmp_path}"))
    cfg = compose("stage=vdm", "init.autoencoder=null")
    lineage.adopt(cfg)
    assert cfg.init.autoencoder is None
    with pytest.raises(ConfigError, match="needs a trained autoencoder"):
        config.call_check(OmegaConf.to_container(cfg.checks.autoencoder, resolve=True))
