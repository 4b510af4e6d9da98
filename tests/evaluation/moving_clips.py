"""Clips with smooth textures that move, batches of them, and feature networks as TorchScript files."""

import torch
from torch import nn

from vdm.evaluation.networks import TorchScript
from vdm.video import to_float


def texture(seed, size=40):
    """3 size size in [0, 1]: waves of several lengths."""
    generator = torch.Generator().manual_seed(seed)
    y, x = torch.meshgrid(torch.arange(size), torch.arange(size), indexing="ij")
    total = torch.zeros(3, size, size)
    for _ in range(6):
        a, b, phase = (torch.rand(3, 1, 1, generator=generator) for _ in range(3))
        total = total + torch.sin((a - 0.5) * x + (b - 0.5) * y + 6.28 * phase)
    return (total / 12 + 0.5).clamp(0, 1)


def clips(count, *, frames=6, size=24, speed=1, seed=0):
    """count 3 T size size in uint8: a window that moves over a texture by `speed` pixels a frame."""
    found = []
    for i in range(count):
        picture = texture(seed * 1000 + i, size + frames * max(1, speed))
        found.append(torch.stack([picture[:, :size, f * speed : f * speed + size] for f in range(frames)], dim=1))
    return (torch.stack(found) * 255).round().to(torch.uint8)


def noisy(video, sigma, seed=1):
    noise = torch.randn(video.shape, generator=torch.Generator().manual_seed(seed)) * sigma
    return (video.float() + noise).round().clamp(0, 255).to(torch.uint8)


def batch(video, keys=None, captions=None):
    keys = [f"clip-{i}" for i in range(len(video))] if keys is None else keys
    captions = [f"a picture of {key}" for key in keys] if captions is None else captions
    return {"video": to_float(video), "key": keys, "caption": captions, "fps": torch.full((len(video),), 8.0)}


class ClipNetwork(nn.Module):
    """Called as the published I3D is."""

    def forward(self, x: torch.Tensor, rescale: bool = False, resize: bool = False, return_features: bool = False):
        x = x.float() / 255
        grid = torch.nn.functional.adaptive_avg_pool3d(x, (2, 2, 1)).flatten(1)
        change = (x[:, :, 1:] - x[:, :, :-1]).abs().mean((2, 3, 4))
        assert x.shape[2] > 3, "too short"
        return torch.cat([grid, 10 * change], dim=1)


class FrameNetwork(nn.Module):
    def forward(self, x: torch.Tensor, return_features: bool = False):
        x = x.float() / 255
        grain = (x[..., 1:] - x[..., :-1]).abs().mean((2, 3))
        return torch.cat([torch.nn.functional.adaptive_avg_pool2d(x, 2).flatten(1), 10 * grain], dim=1)


class Classes(nn.Module):
    """Probabilities of eight classes, of frames or clips: which colour is there, and how sure it is."""

    def forward(self, x: torch.Tensor):
        x = x.float().flatten(2) / 255
        grain = (x[..., 1:] - x[..., :-1]).abs().mean((1, 2))
        mean = x.mean(2) - x.mean((1, 2))[:, None]
        scores = torch.cat([mean, -mean, mean[:, :2] - mean[:, 1:]], dim=1)
        return torch.softmax(scores * (200 / (1 + 100 * grain))[:, None], dim=1)


def script(network, path, **changed):
    """A TorchScript file as `TorchScript` reads one."""
    torch.jit.script(network.eval()).save(str(path))
    given = {"sha256": None, "origin": "a test", "licence": "none", "arguments": {}, "resize": "none", "batch_size": 5}
    return TorchScript(file=str(path), **(given | changed))
