import functools
from pathlib import Path

import hydra
import pytest
import pytorch_lightning as pl
import torch
from torch.utils.data import DataLoader

from vdm.autoencoder.conv3d import Conv3dAutoencoder
from vdm.autoencoder.discriminator import PatchDiscriminator
from vdm.autoencoder.loss import Adversarial, AutoencoderLoss
from vdm.stages.autoencoder import AutoencoderStage, psnr

CONF = Path(__file__).parents[2] / "conf"


def stage(*, start_step=0, discriminator_lr=None, optimizer=None):
    torch.manual_seed(0)
    autoencoder = Conv3dAutoencoder(
        stride=(1, 4, 4),
        latent_channels=4,
        channels=8,
        multipliers=(1,),
        encoder_blocks=1,
        decoder_blocks=1,
        kernels=((1, 3, 3), (3, 1, 1)),
        edge_kernel=(1, 1, 1),
        norm="channel",
        norm_groups=1,
        padding="zeros",
        upsample="nearest",
        patch=(1, 4, 4),
        shortcut=True,
        channels_last=False,
        tiling=None,
    )
    net = PatchDiscriminator(dims=2, channels=4, layers=1, norm="group")
    loss = AutoencoderLoss(
        reduction="mean",
        l1_weight=1.0,
        l2_weight=0.0,
        kl_weight=1e-3,
        perceptual_weight=0.0,
        perceptual=None,
        adversarial=Adversarial(discriminator=net, weight=0.5, start_step=start_step),
    )
    return AutoencoderStage(
        name="autoencoder",
        autoencoder=autoencoder,
        loss=loss,
        discriminator_lr=discriminator_lr,
        # Weight decay and momentum move weights even without a gradient signal, if they are given a zero gradient.
        optimizer=optimizer or functools.partial(torch.optim.AdamW, lr=1e-2, weight_decay=0.1),
        scheduler=None,
        grad_clip=1.0,
        accumulate=1,
        max_skipped=2,
        seed=0,
    )


def samples(count=8):
    generator = torch.Generator().manual_seed(0)
    colours = torch.rand(count, 3, 1, 1, 1, generator=generator) * 2 - 1
    noise = torch.rand(count, 3, 4, 16, 16, generator=generator) - 0.5
    return [
        {"video": (c + 0.2 * n).clamp(-1, 1), "caption": "", "fps": 8.0, "key": f"k{i}"}
        for i, (c, n) in enumerate(zip(colours, noise, strict=True))
    ]


def batch(count=4):
    return next(iter(DataLoader(samples(count), batch_size=count)))


class Snapshots(pl.Callback):
    """The discriminator's weights after every step."""

    def __init__(self):
        self.weights, self.losses = [], []

    def on_train_batch_end(self, trainer, module, *_):
        self.weights.append({n: p.detach().clone() for n, p in module.loss.named_parameters()})


def fit(module, steps, **settings):
    snapshots = Snapshots()
    trainer = pl.Trainer(
        accelerator="cpu",
        max_steps=steps,
        max_epochs=-1,
        logger=False,
        callbacks=[snapshots],
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        **settings,
    )
    trainer.fit(module, DataLoader(samples(), batch_size=4))
    return snapshots


def test_the_discriminator_is_untouched_until_its_start_step():
    module = stage(start_step=3)
    initial = {n: p.detach().clone() for n, p in module.loss.named_parameters()}
    first = {n: p.detach().clone() for n, p in module.autoencoder.named_parameters()}
    snapshots = fit(module, 5)
    for weights in snapshots.weights[:3]:
        assert all(torch.equal(weights[name], value) for name, value in initial.items())
    assert not all(torch.equal(snapshots.weights[3][name], value) for name, value in initial.items())
    moved = [name for name, p in module.autoencoder.named_parameters() if not torch.equal(p, first[name])]
    assert len(moved) == len(first)


def test_groups_cover_every_parameter_once():
    groups = stage(discriminator_lr=1e-5).parameter_groups()
    assert [g["name"] for g in groups] == ["autoencoder", "discriminator"]
    assert [g.get("lr") for g in groups] == [None, 1e-5]
    ours = [id(p) for g in groups for p in g["params"]]
    assert len(ours) == len(set(ours))
    module = stage()
    counted = sum(len(list(g["params"])) for g in module.parameter_groups())
    assert counted == len(list(module.parameters()))


def test_training_lowers_the_loss():
    module, data = stage(start_step=10**9), batch()
    before = module.validation_losses(data)["psnr"].mean()
    fit(module, 40)
    assert module.validation_losses(data)["psnr"].mean() > before + 2


def test_validation_is_per_clip_and_of_the_mean():
    module, data = stage(), batch()
    terms = module.validation_losses(data)
    assert terms["psnr"].shape == (4,)
    assert {"l1", "l2", "kl"} < terms.keys()
    torch.testing.assert_close(terms["loss"], terms["l1"] + 1e-3 * terms["kl"])  # the discriminator is on and not in it
    again = module.validation_losses(data)
    assert torch.equal(terms["psnr"], again["psnr"])
    with torch.no_grad():
        module.autoencoder.quant_conv.bias[4:] = 3.0  # a wide posterior changes samples, not means
    torch.testing.assert_close(module.validation_losses(data)["psnr"], terms["psnr"])


def test_finish_measures_the_latents_and_the_state_dict_carries_them():
    module = stage(start_step=10**9)
    fit(module, 3)
    module.finish(DataLoader(samples(), batch_size=4))
    assert module.training or not module.autoencoder.training
    latent = torch.cat([module.autoencoder.encode(b["video"]) for b in DataLoader(samples(), batch_size=4)])
    torch.testing.assert_close(latent.mean((0, 2, 3, 4)), torch.zeros(4), atol=1e-4, rtol=0)
    state = module.state_dict()
    assert not torch.equal(state["autoencoder.latent_scale"], torch.ones(4))
    twin = stage()
    twin.load_state_dict(state)
    torch.testing.assert_close(twin.preview(batch())["reconstruction"], module.preview(batch())["reconstruction"])


def test_preview_shows_input_beside_output():
    data = batch()
    videos = stage().preview(data)
    assert list(videos) == ["video", "reconstruction"]
    assert torch.equal(videos["video"], data["video"])
    assert videos["reconstruction"].shape == data["video"].shape
    assert videos["reconstruction"].abs().max() <= 1


def test_psnr():
    reference = torch.zeros(2, 3, 1, 4, 4)
    video = reference + torch.tensor([0.2, 0.02]).view(2, 1, 1, 1, 1)
    torch.testing.assert_close(psnr(video, reference), torch.tensor([20.0, 40.0]))  # in [0, 1] errors of 0.1 and 0.01
    torch.testing.assert_close(psnr(reference + 5.0, reference + 1.0), psnr(reference, reference))  # clipped


@pytest.mark.parametrize("name", sorted(p.stem for p in (CONF / "autoencoder").glob("[!_]*.yaml")))
def test_stage_is_built_from_its_yaml(name, tmp_path):
    small = [f"autoencoder.{key}" for key in ("channels=8", "norm_groups=4")]
    with hydra.initialize_config_dir(str(CONF), version_base="1.3"):
        config = hydra.compose("train", [f"autoencoder={name}", f"paths.weights={tmp_path}", *small])
    module = hydra.utils.instantiate(config.stage)
    assert isinstance(module, AutoencoderStage)
    assert module.loss.adversarial.start_step == 50001
    optimizer = module.make_optimizer(module.parameter_groups())
    assert [(g["name"], g["lr"], tuple(g["betas"])) for g in optimizer.param_groups] == [
        ("autoencoder", 3.6e-5, (0.5, 0.9)),
        ("discriminator", 3.6e-5, (0.5, 0.9)),
    ]
    assert module.averaged() == {"autoencoder": module.autoencoder}
