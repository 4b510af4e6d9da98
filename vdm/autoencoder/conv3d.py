"""The 3D KL autoencoder of Dysen-VDM (the LVDM/TATS family): strided 3D convolutions and residual blocks.

An axis is halved by the first stages of the encoder until its stride is reached, and doubled by the last stages of the
decoder, so with stride (4, 8, 8) two of three stages touch time. `patch` moves a part of the stride into the channels
before the first convolution: far cheaper, for small machines.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal

import torch
from einops import rearrange
from torch import Tensor, nn

from vdm.autoencoder.base import VideoAutoencoder
from vdm.autoencoder.tiling import GroupNorm, Tiling
from vdm.bounds import NonNegativeInt, PositiveInt
from vdm.errors import ConfigError

Size = Sequence[int]
INITIAL_LOGVAR = -6.0


class ChannelNorm(nn.Module):
    """Layer norm over the channels of each position: sees nothing around it, so tiles are exact."""

    def __init__(self, channels: int):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(channels))
        self.bias = nn.Parameter(torch.zeros(channels))

    def forward(self, x: Tensor) -> Tensor:
        last = x.permute(0, 2, 3, 4, 1)  # no copy for a tensor in channels_last_3d
        return nn.functional.layer_norm(last, last.shape[-1:], self.weight, self.bias, 1e-6).permute(0, 4, 1, 2, 3)


class Layers:
    """How this autoencoder's layers are made: the settings every layer shares."""

    def __init__(self, *, norm: str, norm_groups: int, padding: str, kernels: Sequence[Size]):
        self.norm_kind, self.norm_groups, self.padding, self.kernels = norm, norm_groups, padding, kernels

    def norm(self, channels: int) -> nn.Module:
        return GroupNorm(self.norm_groups, channels, eps=1e-6) if self.norm_kind == "group" else ChannelNorm(channels)

    def conv(self, channels_in: int, channels_out: int, kernel: Size, stride: Size = (1, 1, 1)) -> nn.Conv3d:
        padding = tuple((k - 1) // 2 for k in kernel)
        mode = self.padding if any(padding) else "zeros"
        conv = nn.Conv3d(channels_in, channels_out, tuple(kernel), tuple(stride), padding, padding_mode=mode)
        return _initialised(conv, inputs=channels_in * math.prod(kernel))


def _initialised(conv: nn.Module, *, inputs: int) -> nn.Module:
    """Keep the variance from end to end. PyTorch's default divides it by three at every layer: what a frame is then
    drowns in the biases before it reaches the latent, and training starts with a long plateau.
    """
    nn.init.normal_(conv.weight, std=inputs**-0.5)
    nn.init.zeros_(conv.bias)
    return conv


class ResidualBlock(nn.Module):
    def __init__(self, layers: Layers, channels_in: int, channels_out: int):
        super().__init__()
        first, second = layers.kernels
        self.branch = nn.Sequential(
            layers.norm(channels_in),
            nn.SiLU(),
            layers.conv(channels_in, channels_out, first),
            layers.norm(channels_out),
            nn.SiLU(),
            layers.conv(channels_out, channels_out, second),
        )
        same = channels_in == channels_out
        self.skip = nn.Identity() if same else layers.conv(channels_in, channels_out, (1, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        return self.skip(x) + self.branch(x)


def _downsample(layers: Layers, channels_in: int, channels_out: int, factor: Size) -> nn.Module:
    """Halves some axes. A stage that halves none only changes the width."""
    if max(factor) == 1:
        return nn.Identity() if channels_in == channels_out else layers.conv(channels_in, channels_out, (1, 1, 1))
    return layers.conv(channels_in, channels_out, [4 if f == 2 else 3 for f in factor], factor)


def _upsample(layers: Layers, channels_in: int, channels_out: int, factor: Size, kind: str) -> nn.Module:
    """Doubles some axes: by a transposed convolution, or by repetition and a convolution."""
    if max(factor) == 1:
        return nn.Identity() if channels_in == channels_out else layers.conv(channels_in, channels_out, (1, 1, 1))
    if kind == "nearest":
        repeat = nn.Upsample(scale_factor=tuple(map(float, factor)), mode="nearest")
        return nn.Sequential(repeat, layers.conv(channels_in, channels_out, (3, 3, 3)))
    kernel = tuple(4 if f == 2 else 3 for f in factor)
    # Transposed convolutions know zero padding only; k4 s2 p1 doubles, k3 s1 p1 keeps the size.
    conv = nn.ConvTranspose3d(channels_in, channels_out, kernel, tuple(factor), (1, 1, 1))
    return _initialised(conv, inputs=channels_in * math.prod(kernel) // math.prod(factor))


class Shortcut(nn.Module):
    """Linear path beside both networks, from averages of pixels to the latent and back (after DC-AE, Chen et al., 2024).

    The network then starts as a coarse autoencoder instead of having to find one through all its layers.
    """

    def __init__(self, stride: Size, latent_channels: int):
        super().__init__()
        pixels = 3 * math.prod(stride)
        self.down = nn.Conv3d(pixels, 2 * latent_channels, 1, bias=False)
        self.up = nn.Conv3d(latent_channels, pixels, 1, bias=False)
        groups = torch.arange(pixels) * latent_channels // pixels  # which latent channel a pixel belongs to
        averages = nn.functional.one_hot(groups, latent_channels).float()
        averages = averages / averages.norm(dim=0)  # orthonormal columns: up undoes down
        with torch.no_grad():
            self.down.weight.zero_()[:latent_channels, :, 0, 0, 0] = averages.T
            self.up.weight[:, :, 0, 0, 0] = averages


class Conv3dAutoencoder(VideoAutoencoder):
    """`multipliers` has one entry per stage; the widths are `channels * multiplier`."""

    def __init__(
        self,
        *,
        stride: Sequence[int],
        latent_channels: PositiveInt,
        channels: PositiveInt,
        multipliers: Sequence[int],
        encoder_blocks: NonNegativeInt,
        decoder_blocks: NonNegativeInt,
        kernels: Sequence[Sequence[int]],
        edge_kernel: Sequence[int],
        norm: Literal["group", "channel"],
        norm_groups: PositiveInt,
        padding: Literal["replicate", "zeros"],
        upsample: Literal["transposed", "nearest"],
        patch: Sequence[int],
        shortcut: bool,
        channels_last: bool,
        tiling: Tiling | None,
    ):
        super().__init__(stride=stride, latent_channels=latent_channels, tiling=tiling)
        self.patch, self.channels_last = tuple(patch), channels_last
        factors = _stage_factors(self.stride, self.patch, len(multipliers))
        widths = [channels * m for m in multipliers]
        _check_groups(norm, norm_groups, [channels, *widths])
        layers = Layers(norm=norm, norm_groups=norm_groups, padding=padding, kernels=kernels)
        pixels = 3 * math.prod(self.patch)

        encoder: list[nn.Module] = [layers.conv(pixels, channels, edge_kernel)]
        width = channels
        for factor, out in zip(factors, widths, strict=True):
            encoder.append(_downsample(layers, width, out, factor))
            encoder += [ResidualBlock(layers, out, out) for _ in range(encoder_blocks)]
            width = out
        encoder += [layers.norm(width), nn.SiLU(), layers.conv(width, 2 * latent_channels, edge_kernel)]
        self.encoder = nn.Sequential(*encoder)
        self.quant_conv = layers.conv(2 * latent_channels, 2 * latent_channels, (1, 1, 1))
        # A posterior as wide as the prior hides the means from the decoder, and a fast learner then gives up on them.
        nn.init.constant_(self.quant_conv.bias[latent_channels:], INITIAL_LOGVAR)

        self.post_quant_conv = layers.conv(latent_channels, latent_channels, (1, 1, 1))
        decoder: list[nn.Module] = [layers.conv(latent_channels, width, edge_kernel)]
        for factor, out in zip(reversed(factors), reversed(widths), strict=True):
            decoder.append(_upsample(layers, width, out, factor, upsample))
            decoder += [ResidualBlock(layers, out, out) for _ in range(decoder_blocks)]
            width = out
        decoder += [layers.norm(width), nn.SiLU(), layers.conv(width, pixels, edge_kernel)]
        self.decoder = nn.Sequential(*decoder)
        self.shortcut = Shortcut(self.stride, latent_channels) if shortcut else None
        if shortcut:
            with torch.no_grad():  # the networks start as small corrections
                self.quant_conv.weight.mul_(0.1)
                decoder[-1].weight.mul_(0.1)
        if channels_last:
            self.to(memory_format=torch.channels_last_3d)

    @property
    def last_layer(self) -> nn.Parameter:
        return self.decoder[-1].weight

    def _encode(self, video: Tensor) -> Tensor:
        moments = self.quant_conv(self.encoder(self._format(_to_channels(video, self.patch))))
        return moments if self.shortcut is None else moments + self.shortcut.down(_to_channels(video, self.stride))

    def _decode(self, raw: Tensor) -> Tensor:
        video = _to_pixels(self.decoder(self.post_quant_conv(self._format(raw))), self.patch)
        return video if self.shortcut is None else video + _to_pixels(self.shortcut.up(raw), self.stride)

    def _format(self, x: Tensor) -> Tensor:
        return x.contiguous(memory_format=torch.channels_last_3d) if self.channels_last else x.contiguous()


def _to_channels(video: Tensor, patch: Size) -> Tensor:
    pt, ph, pw = patch
    return rearrange(video, "b c (t pt) (h ph) (w pw) -> b (c pt ph pw) t h w", pt=pt, ph=ph, pw=pw)


def _to_pixels(x: Tensor, patch: Size) -> Tensor:
    pt, ph, pw = patch
    return rearrange(x, "b (c pt ph pw) t h w -> b c (t pt) (h ph) (w pw)", pt=pt, ph=ph, pw=pw)


def _stage_factors(stride: Size, patch: Size, stages: int) -> list[tuple[int, ...]]:
    """Per stage, 2 on the axes still to reduce."""
    halvings = []
    for total, first in zip(stride, patch, strict=True):
        rest = total // first if first > 0 else 0
        if rest < 1 or rest * first != total or rest & (rest - 1):
            raise ConfigError(
                "the stride divided by the patch must be a power of two on every axis",
                key="autoencoder.stride",
                got=f"stride {list(stride)}, patch {list(patch)}",
                allowed="stride = patch x 1, 2, 4, 8, ...",
                remedy="change autoencoder.stride or autoencoder.patch",
            )
        halvings.append(rest.bit_length() - 1)
    if stages < max(halvings):
        raise ConfigError(
            f"stride {list(stride)} with patch {list(patch)} needs {max(halvings)} stages, one per multiplier",
            key="autoencoder.multipliers",
            got=f"{stages} multipliers",
            allowed=f"at least {max(halvings)}",
            remedy="add multipliers, or reduce the stride",
        )
    return [tuple(2 if stage < n else 1 for n in halvings) for stage in range(stages)]


def _check_groups(norm: str, groups: int, widths: list[int]) -> None:
    wrong = [w for w in widths if w % groups]
    if norm == "group" and wrong:
        raise ConfigError(
            f"widths {wrong} do not divide into {groups} groups",
            key="autoencoder.norm_groups",
            got=groups,
            allowed=f"a divisor of {math.gcd(*widths)}",
            remedy=f"set autoencoder.norm_groups={math.gcd(groups, *widths)}, or autoencoder.norm=channel",
        )
