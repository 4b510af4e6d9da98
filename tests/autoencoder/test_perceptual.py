import hashlib
import importlib.util
import logging
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from vdm.autoencoder import perceptual
from vdm.autoencoder.perceptual import BLOCKS, BUNDLE, LPIPS, PUBLISHED, WIDTHS, load_lpips
from vdm.errors import ConfigError, RunError


@pytest.fixture(scope="module")
def weights():
    """Random weights under the names of the two published files."""
    generator, state, width = torch.Generator().manual_seed(0), {}, 3
    for block, out in zip(BLOCKS, WIDTHS, strict=True):
        for i in block:
            state[f"features.{i}.weight"] = (
                torch.randn(out, width, 3, 3, generator=generator) * (2 / (9 * width)) ** 0.5
            )
            state[f"features.{i}.bias"] = torch.randn(out, generator=generator) * 0.1
            width = out
    for i, out in enumerate(WIDTHS):
        state[f"lin{i}.model.1.weight"] = torch.rand(1, out, 1, 1, generator=generator)
    return state


def frames(seed):
    return torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(seed)) * 2 - 1


def reference(weights, x, y):
    """The formula of the paper, over torchvision's layout of VGG16 written out as a list of layers."""
    plan = [64, 64, "M", 128, 128, "M", 256, 256, 256, "M", 512, 512, 512, "M", 512, 512, 512]
    layers, width = [], 3
    for entry in plan:
        layers += [nn.MaxPool2d(2, 2)] if entry == "M" else [nn.Conv2d(width, entry, 3, padding=1), nn.ReLU()]
        width = width if entry == "M" else entry
    net = nn.Sequential(*layers)
    net.load_state_dict({k.removeprefix("features."): v for k, v in weights.items() if k.startswith("features")})
    mean, deviation = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])

    def taps(image):
        image = ((image + 1) / 2 - mean.view(3, 1, 1)) / deviation.view(3, 1, 1)
        out = []
        for number, layer in enumerate(net):
            image = layer(image)
            if number in (3, 8, 15, 22, 29):
                out.append(image / (image.norm(dim=1, keepdim=True) + 1e-10))
        return out

    total = 0
    for i, (a, b) in enumerate(zip(taps(x), taps(y), strict=True)):
        head = weights[f"lin{i}.model.1.weight"][0, :, 0, 0]
        total = total + torch.einsum("bchw,c->bhw", (a - b) ** 2, head).mean((1, 2))
    return total.detach()


def test_the_formula(weights):
    # Shift and scale are published with three digits, hence the tolerance.
    x, y = frames(0), frames(1)
    torch.testing.assert_close(LPIPS(weights)(x, y), reference(weights, x, y), rtol=5e-3, atol=1e-4)


def test_equal_is_zero_and_farther_is_more(weights):
    net, x = LPIPS(weights), frames(0)
    assert torch.equal(net(x, x), torch.zeros(2))
    near, far = (net(x, x + amount * frames(1)) for amount in (0.05, 0.5))
    assert (near > 0).all()
    assert (near < far).all()


def test_it_is_frozen_and_in_no_checkpoint(weights):
    net, x = LPIPS(weights), frames(0).requires_grad_()
    net(x, frames(1)).sum().backward()
    assert x.grad.abs().max() > 0
    assert list(net.parameters()) == []
    assert net.state_dict() == {}


def test_bundle_and_published_files_give_the_same(weights, tmp_path, monkeypatch):
    bundle, pair = tmp_path / "bundle", tmp_path / "pair"
    bundle.mkdir()
    pair.mkdir()
    save_file(weights, bundle / BUNDLE)
    vgg, heads = PUBLISHED
    classifier = {"classifier.0.weight": torch.zeros(2, 2)}  # torchvision's file has more than is needed
    torch.save({k: v for k, v in weights.items() if k.startswith("features")} | classifier, pair / vgg)
    torch.save({k: v for k, v in weights.items() if k.startswith("lin")}, pair / heads)
    with pytest.raises(ConfigError, match="sha256"):  # these are not the published weights
        load_lpips(folder=str(pair), sha256=None)
    digests = {name: hashlib.sha256((pair / name).read_bytes()).hexdigest() for name in PUBLISHED}
    monkeypatch.setattr(perceptual, "PUBLISHED", digests)
    x, y = frames(0), frames(1)
    results = [load_lpips(folder=str(f), sha256=None)(x, y) for f in (bundle, pair)]
    assert torch.equal(*results)
    digest = hashlib.sha256((bundle / BUNDLE).read_bytes()).hexdigest()
    assert load_lpips(folder=str(bundle), sha256=digest.upper()) is not None
    with pytest.raises(ConfigError, match="sha256"):
        load_lpips(folder=str(bundle), sha256="0" * 64)


def test_incomplete_weights_are_refused(weights, tmp_path):
    save_file({k: v for k, v in weights.items() if k != "lin3.model.1.weight"}, tmp_path / BUNDLE)
    with pytest.raises(RunError, match="lin3"):
        load_lpips(folder=str(tmp_path), sha256=None)


def test_absent_weights_switch_it_off_and_say_so_once(tmp_path, caplog):
    with caplog.at_level(logging.WARNING):
        assert load_lpips(folder=str(tmp_path / "nowhere"), sha256=None) is None
    (record,) = caplog.records
    for word in ("OFF", "vgg16-397923af.pth", "vgg.pth", BUNDLE, "BSD"):
        assert word in record.getMessage()


def test_published_heads_are_known_by_their_checksum():
    """torchmetrics ships a copy of the linear heads."""
    torchmetrics = importlib.util.find_spec("torchmetrics")
    if torchmetrics is None:
        pytest.skip("torchmetrics is not installed")
    path = Path(torchmetrics.origin).parent / "functional/image/lpips_models/vgg.pth"
    state = perceptual._read(path, PUBLISHED["vgg.pth"])
    assert [tuple(state[f"lin{i}.model.1.weight"].shape) for i in range(5)] == [(1, w, 1, 1) for w in WIDTHS]
