"""Optical flow without weights or further packages: dense Lucas-Kanade from coarse to fine, on all three colours.

It is weaker than a trained network: good for smooth motion of textured things, 0 where nothing can be seen to move. Numbers
made with it have `lk` in their names.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

WINDOW = 9  # pixels that are taken to move together
SIGMA = 2.0
SMALLEST = 12  # shorter side of the coarsest picture
ROUNDS = 5  # at each size
DAMPING = 2e-4  # of the sum of squared slopes, for pixels in [0, 1]: below it nothing is seen to move
LONGEST = 1.0  # step of a round, in pixels of its size


def optical_flow(first: Tensor, second: Tensor) -> Tensor:
    """b 2 H W (dx, dy) in pixels: what is at x in `first` is at x + flow in `second`. Frames are b 3 H W in [0, 1]."""
    pyramid = [(first, second)]
    while min(pyramid[-1][0].shape[-2:]) >= 2 * SMALLEST:
        pyramid.append(tuple(F.avg_pool2d(_blurred(x, 3, 0.8), 2) for x in pyramid[-1]))
    flow = first.new_zeros(len(first), 2, *pyramid[-1][0].shape[-2:])
    for a, b in reversed(pyramid):
        if flow.shape[-2:] != a.shape[-2:]:
            ratio = flow.new_tensor([a.shape[-1] / flow.shape[-1], a.shape[-2] / flow.shape[-2]]).view(1, 2, 1, 1)
            flow = F.interpolate(flow, size=a.shape[-2:], mode="bilinear", align_corners=False) * ratio
        flow = _refined(a, b, flow)
    return flow


def warped(frames: Tensor, flow: Tensor) -> Tensor:
    """Frames b k H W looked up at x + flow; the border goes on outside."""
    height, width = frames.shape[-2:]
    size = flow.new_tensor([width - 1, height - 1]).clamp_min(1).view(1, 2, 1, 1)
    grid = (_places(flow) * 2 / size - 1).permute(0, 2, 3, 1)  # b H W 2
    return F.grid_sample(frames, grid, mode="bilinear", padding_mode="border", align_corners=True)


def visible(forward: Tensor, backward: Tensor) -> Tensor:
    """b 1 H W, True where going there and back again ends nearly where it began."""
    back = warped(backward, forward)
    error = (forward + back).square().sum(1, keepdim=True)
    length = forward.square().sum(1, keepdim=True) + back.square().sum(1, keepdim=True)
    return error < 0.01 * length + 0.5


def _refined(first: Tensor, second: Tensor, flow: Tensor) -> Tensor:
    across, down = _slopes(first)
    products = torch.cat([(a * b).sum(1, keepdim=True) for a, b in ((across, across), (down, down), (across, down))], 1)
    height, width = first.shape[-2:]
    for _ in range(ROUNDS):
        place = _places(flow)
        inside = (place >= 0) & (place <= place.new_tensor([width - 1, height - 1]).view(1, 2, 1, 1))
        change = (warped(second, flow) - first) * inside.all(1, keepdim=True)  # what left the picture tells nothing
        slopes = torch.cat([(slope * change).sum(1, keepdim=True) for slope in (across, down)], 1)
        xx, yy, xy = _blurred(products * inside.all(1, keepdim=True), WINDOW, SIGMA).split(1, dim=1)
        x, y = _blurred(slopes, WINDOW, SIGMA).split(1, dim=1)
        xx, yy = xx + DAMPING, yy + DAMPING
        step = torch.cat([xy * y - yy * x, xy * x - xx * y], dim=1) / (xx * yy - xy.square())
        length = step.norm(dim=1, keepdim=True).clamp_min(1e-9)
        flow = flow + step * (LONGEST / length).clamp_max(1.0)
    return flow


def _places(flow: Tensor) -> Tensor:
    """b 2 H W (x, y): where each pixel is looked up."""
    down, across = (torch.arange(n, device=flow.device, dtype=flow.dtype) for n in flow.shape[-2:])
    return torch.stack([across + flow[:, 0], down[:, None] + flow[:, 1]], dim=1)


def _slopes(x: Tensor) -> tuple[Tensor, Tensor]:
    """Central differences, b 3 H W each."""
    padded = F.pad(x, (1, 1, 1, 1), mode="replicate")
    across = (padded[..., 1:-1, 2:] - padded[..., 1:-1, :-2]) / 2
    return across, (padded[..., 2:, 1:-1] - padded[..., :-2, 1:-1]) / 2


def _blurred(x: Tensor, window: int, sigma: float) -> Tensor:
    """With a Gaussian, one axis after the other."""
    places = torch.arange(window, device=x.device, dtype=x.dtype) - window // 2
    weights = torch.exp(-places.square() / (2 * sigma**2))
    weights = weights / weights.sum()
    channels, half = x.shape[1], window // 2
    x = F.pad(x, (half, half, half, half), mode="replicate")
    x = F.conv2d(x, weights.view(1, 1, 1, -1).expand(channels, 1, 1, -1), groups=channels)
    return F.conv2d(x, weights.view(1, 1, -1, 1).expand(channels, 1, -1, 1), groups=channels)
