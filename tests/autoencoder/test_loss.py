import pytest
import torch
from torch import nn

from vdm.autoencoder.discriminator import PatchDiscriminator
from vdm.autoencoder.loss import Adversarial, AutoencoderLoss, adaptive_weight

PLAIN = {
    "reduction": "mean",
    "l1_weight": 1.0,
    "l2_weight": 0.0,
    "kl_weight": 0.01,
    "perceptual_weight": 0.0,
    "perceptual": None,
    "adversarial": None,
}


class Distance(nn.Module):
    """Stands for LPIPS: one value a frame."""

    def forward(self, first, second):
        assert first.shape[1] == 3
        assert first.dim() == 4
        return (first - second).square().mean((1, 2, 3))


def gan(norm="group", start_step=0):
    torch.manual_seed(1)
    net = PatchDiscriminator(dims=2, channels=8, layers=2, norm=norm)
    return Adversarial(discriminator=net, weight=0.5, start_step=start_step)


def clip(batch=2):
    return torch.rand(batch, 3, 4, 16, 16, generator=torch.Generator().manual_seed(0)) * 2 - 1


def run(model, loss, video, step=10):
    reconstruction, posterior = model(video, generator=torch.Generator().manual_seed(3))
    return loss(video, reconstruction, posterior, step=step, last_layer=model.last_layer)


def test_the_papers_sum_over_a_frame(conv3d):
    """|x - y| + LPIPS in every pixel value, summed, divided by the number of frames."""
    model, video = conv3d(), clip()
    settings = {"reduction": "frame", "perceptual": Distance(), "perceptual_weight": 1.0, "kl_weight": 0.0}
    got = run(model, AutoencoderLoss(**PLAIN | settings), video)["loss"]
    y, _ = model(video, generator=torch.Generator().manual_seed(3))
    per_frame = (video - y).square().mean((1, 3, 4), keepdim=True)
    torch.testing.assert_close(got, ((video - y).abs() + per_frame).sum() / (2 * 4))


def test_both_reductions_differ_by_the_values_of_a_frame(conv3d):
    model, video = conv3d(), clip()
    settings = PLAIN | {"perceptual": Distance(), "perceptual_weight": 0.7, "l2_weight": 0.3}
    mean, frame = (run(model, AutoencoderLoss(**settings | {"reduction": r}), video) for r in ("mean", "frame"))
    torch.testing.assert_close(frame["loss"], mean["loss"] * 3 * 16 * 16)
    assert {k: v for k, v in frame.items() if k != "loss"} == {k: v for k, v in mean.items() if k != "loss"}


def test_kl_is_nats_per_pixel_value(conv3d):
    model, video = conv3d(), clip()
    terms = run(model, AutoencoderLoss(**PLAIN), video)
    torch.testing.assert_close(terms["kl"], model.posterior(video).kl().mean() / (3 * 4 * 16 * 16))
    torch.testing.assert_close(terms["loss"], terms["l1"] + 0.01 * terms["kl"])


def test_adaptive_weight_is_the_clamped_ratio_of_norms():
    last = torch.tensor([3.0, 4.0], requires_grad=True)
    assert adaptive_weight(10 * last.sum(), last.sum(), last).item() == pytest.approx(10, rel=1e-3)
    assert adaptive_weight(last.sum(), 0.0 * last.sum(), last).item() == pytest.approx(1e4, rel=1e-3)
    assert adaptive_weight(1e9 * last.sum(), last.sum(), last).item() == 1e4


@pytest.mark.parametrize("norm", ["group", "batch"])
def test_one_backward_gives_the_gradients_of_the_two_classic_phases(conv3d, norm):
    video, loss = clip(), AutoencoderLoss(**PLAIN | {"adversarial": gan(norm)})
    model, net = conv3d(), loss.adversarial.discriminator
    run(model, loss, video)["loss"].backward()
    ours = {n: p.grad.clone() for part in (model, net) for n, p in part.named_parameters(prefix=type(part).__name__)}

    # Generator phase: the discriminator's parameters collect a gradient that is thrown away.
    model.zero_grad()
    net.zero_grad()
    y, posterior = model(video, generator=torch.Generator().manual_seed(3))
    objective = (video - y).abs().mean()
    generator = -net(y).mean()
    ratio = [torch.autograd.grad(x, model.last_layer, retain_graph=True)[0].norm() for x in (objective, generator)]
    weight = (ratio[0] / (ratio[1] + 1e-4)).clamp(0, 1e4).detach()
    (objective + 0.01 * posterior.kl().mean() / video[0].numel() + 0.5 * weight * generator).backward()
    # Discriminator phase: the reconstruction is data.
    net.zero_grad()
    real, fake = net(video), net(y.detach())
    (0.5 * ((1 - real).relu().mean() + (1 + fake).relu().mean())).backward()
    theirs = {n: p.grad for part in (model, net) for n, p in part.named_parameters(prefix=type(part).__name__)}

    assert ours.keys() == theirs.keys()
    for name, gradient in theirs.items():
        assert gradient.abs().max() > 0 or "bias" in name, name
        torch.testing.assert_close(ours[name], gradient, atol=1e-7, rtol=1e-4, msg=name)


def test_before_the_start_step_the_discriminator_is_not_even_called(conv3d):
    loss, model = AutoencoderLoss(**PLAIN | {"adversarial": gan(start_step=5)}), conv3d()
    terms = run(model, loss, clip(), step=4)
    terms["loss"].backward()
    assert "generator" not in terms
    assert all(p.grad is None for p in loss.parameters())
    terms = run(model, loss, clip(), step=5)
    terms["loss"].backward()
    assert {"generator", "discriminator", "adaptive_weight", "logits_real", "logits_fake"} < terms.keys()
    assert all(p.grad is not None for p in loss.parameters())
