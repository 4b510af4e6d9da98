import pytest
import torch
from torch import nn

from vdm.autoencoder.discriminator import PatchDiscriminator, call_frozen, hinge


def discriminator(dims=2, norm="group"):
    torch.manual_seed(0)
    return PatchDiscriminator(dims=dims, channels=8, layers=3, norm=norm)


def video(batch=2):
    return torch.rand(batch, 3, 4, 32, 32, generator=torch.Generator().manual_seed(0)) * 2 - 1


def test_the_papers_discriminator():
    """Three layers: strides 2, 2, 2, 1, 1 and a field of 70 pixels, so 256 pixels give 30 x 30 patches."""
    net = PatchDiscriminator(dims=2, channels=64, layers=3, norm="batch")
    convolutions = [m for m in net.modules() if isinstance(m, nn.Conv2d)]
    assert [m.out_channels for m in convolutions] == [64, 128, 256, 512, 1]
    assert [m.stride[0] for m in convolutions] == [2, 2, 2, 1, 1]
    assert discriminator()(torch.zeros(1, 3, 2, 256, 256)).shape == (2, 1, 30, 30)


def test_frames_are_judged_alone_and_clips_are_not():
    x, changed = video(1), video(1)
    changed[:, :, 3] += 0.5
    flat = discriminator(2)(x) - discriminator(2)(changed)
    assert torch.equal(flat[:3], torch.zeros_like(flat[:3]))
    assert flat[3].abs().max() > 0
    deep = discriminator(3)(x) - discriminator(3)(changed)
    assert deep[:, :, 2].abs().max() > 0


def test_hinge_is_zero_beyond_the_margin():
    real, fake = torch.tensor([1.0, 3.0]), torch.tensor([-1.0, -2.0])
    assert hinge(real, fake) == 0
    assert hinge(fake, real) == pytest.approx(0.5 * (2.5 + 3.0))


@pytest.mark.parametrize("norm", ["batch", "group"])
@pytest.mark.parametrize("dims", [2, 3])
def test_frozen_call_is_the_same_function_with_the_gradient_to_the_input_only(dims, norm):
    net = discriminator(dims, norm)
    before = {name: value.clone() for name, value in net.state_dict().items()}
    a, b = video().requires_grad_(), video().requires_grad_()
    frozen = call_frozen(net, a)
    frozen.mean().backward()
    assert all(p.grad is None for p in net.parameters())
    assert all(torch.equal(before[name], value) for name, value in net.state_dict().items())
    plain = net(b)
    plain.mean().backward()
    torch.testing.assert_close(frozen, plain)
    torch.testing.assert_close(a.grad, b.grad)
