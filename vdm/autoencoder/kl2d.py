"""The 2D KL autoencoder of latent diffusion (Stable Diffusion's), applied to each frame.

Modules carry the names of diffusers' `AutoencoderKL`, so a public folder loads as it is; only the attention of old
folders has other names. Frames are independent: `frames_per_slice` bounds the memory and changes no number.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from einops import rearrange
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn import functional as F

from vdm.autoencoder.base import VideoAutoencoder
from vdm.autoencoder.published import WEIGHTS, read_config, settings_from_diffusers
from vdm.bounds import PositiveInt
from vdm.checkpoint import LoadReport, load_weights
from vdm.errors import ConfigError, RunError
from vdm.layers.lean import group_norm, linear_add, norm_conv
from vdm.layers.subpixel import upsampled_conv

log = logging.getLogger(__name__)

# Names before and after diffusers unified its attention.
RENAMED = {"query": "to_q", "key": "to_k", "value": "to_v", "proj_attn": "to_out.0"}

IN_CACHE = 2  # frames at once on a CPU: more of them leave its caches between two layers


def _norm(channels: int, groups: int) -> nn.GroupNorm:
    return nn.GroupNorm(groups, channels, eps=1e-6)


def _conv(x: Tensor, conv: nn.Module) -> Tensor:
    """Of frames `b h w c`: a view of them is a channels-last image."""
    return conv(x.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)


class ResidualBlock(nn.Module):
    def __init__(self, channels_in: int, channels_out: int, groups: int):
        super().__init__()
        self.norm1, self.conv1 = _norm(channels_in, groups), nn.Conv2d(channels_in, channels_out, 3, padding=1)
        self.norm2, self.conv2 = _norm(channels_out, groups), nn.Conv2d(channels_out, channels_out, 3, padding=1)
        same = channels_in == channels_out
        self.conv_shortcut = None if same else nn.Conv2d(channels_in, channels_out, 1)

    def forward(self, x: Tensor) -> Tensor:
        y = norm_conv(x, self.norm1, self.conv1)
        skip = x if self.conv_shortcut is None else _conv(x, self.conv_shortcut)
        return norm_conv(y, self.norm2, self.conv2, add=skip)


class Attention(nn.Module):
    """One head over all positions of a frame."""

    def __init__(self, channels: int, groups: int):
        super().__init__()
        self.group_norm = _norm(channels, groups)
        self.to_q, self.to_k, self.to_v = (nn.Linear(channels, channels) for _ in range(3))
        self.to_out = nn.ModuleList([nn.Linear(channels, channels)])

    def forward(self, x: Tensor) -> Tensor:
        rows = x.flatten(1, 2)[:, None]  # b 1 (h w) c
        y = group_norm(rows, self.group_norm)
        y = F.scaled_dot_product_attention(self.to_q(y), self.to_k(y), self.to_v(y))
        return linear_add(y, self.to_out[0], add=x)


class Middle(nn.Module):
    def __init__(self, channels: int, groups: int, attention: bool):
        super().__init__()
        self.resnets = nn.ModuleList([ResidualBlock(channels, channels, groups) for _ in range(2)])
        self.attentions = nn.ModuleList([Attention(channels, groups)] if attention else [])

    def forward(self, x: Tensor) -> Tensor:
        x = self.resnets[0](x)
        for attention in self.attentions:
            x = attention(x)
        return self.resnets[1](x)


class Downsample(nn.Module):
    def __init__(self, channels: int):
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, stride=2)

    def forward(self, x: Tensor) -> Tensor:
        return _conv(F.pad(x, (0, 0, 0, 1, 0, 1)), self.conv)  # the published networks pad right and bottom only


class Upsample(nn.Module):
    def __init__(self, channels: int):
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return upsampled_conv(x, self.conv)


class Level(nn.Module):
    """Residual blocks at one resolution, then a change of resolution (none at the last level)."""

    def __init__(self, channels_in: int, channels_out: int, blocks: int, groups: int, resample: type | None, name: str):
        super().__init__()
        widths = [channels_in] + [channels_out] * blocks
        self.resnets = nn.ModuleList([ResidualBlock(a, b, groups) for a, b in zip(widths, widths[1:], strict=False)])
        self.resample_name = name
        self.add_module(name, nn.ModuleList([resample(channels_out)] if resample else []))

    def forward(self, x: Tensor) -> Tensor:
        for block in [*self.resnets, *getattr(self, self.resample_name)]:
            x = block(x)
        return x


class Encoder(nn.Module):
    def __init__(self, widths: Sequence[int], blocks: int, groups: int, channels_out: int, attention: bool):
        super().__init__()
        self.conv_in = nn.Conv2d(3, widths[0], 3, padding=1)
        pairs = list(zip([widths[0], *widths[:-1]], widths, strict=True))
        steps = [Downsample] * (len(pairs) - 1) + [None]
        self.down_blocks = nn.ModuleList(
            [Level(a, b, blocks, groups, step, "downsamplers") for (a, b), step in zip(pairs, steps, strict=True)]
        )
        self.mid_block = Middle(widths[-1], groups, attention)
        self.conv_norm_out = _norm(widths[-1], groups)
        self.conv_out = nn.Conv2d(widths[-1], channels_out, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        x = _conv(x, self.conv_in)
        for level in self.down_blocks:
            x = level(x)
        return norm_conv(self.mid_block(x), self.conv_norm_out, self.conv_out)


class Decoder(nn.Module):
    def __init__(self, widths: Sequence[int], blocks: int, groups: int, channels_in: int, attention: bool):
        super().__init__()
        widths = list(reversed(widths))
        self.conv_in = nn.Conv2d(channels_in, widths[0], 3, padding=1)
        self.mid_block = Middle(widths[0], groups, attention)
        pairs = list(zip([widths[0], *widths[:-1]], widths, strict=True))
        steps = [Upsample] * (len(pairs) - 1) + [None]
        self.up_blocks = nn.ModuleList(
            [Level(a, b, blocks + 1, groups, step, "upsamplers") for (a, b), step in zip(pairs, steps, strict=True)]
        )
        self.conv_norm_out = _norm(widths[-1], groups)
        self.conv_out = nn.Conv2d(widths[-1], 3, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.mid_block(_conv(x, self.conv_in))
        for level in self.up_blocks:
            x = level(x)
        return norm_conv(x, self.conv_norm_out, self.conv_out)


class KL2dAutoencoder(VideoAutoencoder):
    """Stride is (1, 2**(levels - 1), 2**(levels - 1)) for `len(multipliers)` levels."""

    frames_are_independent = True

    def __init__(
        self,
        *,
        latent_channels: PositiveInt,
        channels: PositiveInt,
        multipliers: Sequence[int],
        blocks: PositiveInt,
        norm_groups: PositiveInt,
        attention: bool,
        quant_conv: bool,
        post_quant_conv: bool,
        frames_per_slice: PositiveInt | None,
        pretrained: str | None,
    ):
        factor = 2 ** (len(multipliers) - 1)
        super().__init__(stride=(1, factor, factor), latent_channels=latent_channels, tiling=None)
        widths = [channels * m for m in multipliers]
        if any(width % norm_groups for width in widths):
            raise ConfigError(
                f"widths {widths} do not divide into {norm_groups} groups",
                key="autoencoder.norm_groups",
                got=norm_groups,
                allowed="a divisor of every channels * multiplier",
                remedy="change autoencoder.norm_groups or autoencoder.channels",
            )
        self.frames_per_slice = frames_per_slice
        self.encoder = Encoder(widths, blocks, norm_groups, 2 * latent_channels, attention)
        self.decoder = Decoder(widths, blocks, norm_groups, latent_channels, attention)
        double = 2 * latent_channels
        self.quant_conv = nn.Conv2d(double, double, 1) if quant_conv else nn.Identity()
        self.post_quant_conv = nn.Conv2d(latent_channels, latent_channels, 1) if post_quant_conv else nn.Identity()
        if pretrained is not None:
            log.info("autoencoder starts from %s: %s", pretrained, self.load_diffusers(pretrained))

    @property
    def last_layer(self) -> nn.Parameter:
        return self.decoder.conv_out.weight

    def _encode(self, video: Tensor) -> Tensor:
        return self._by_frame(video, lambda x: _conv(self.encoder(x), self.quant_conv))

    def _decode(self, raw: Tensor) -> Tensor:
        return self._by_frame(raw, lambda x: self.decoder(_conv(x, self.post_quant_conv)))

    def _by_frame(self, video: Tensor, function: Callable[[Tensor], Tensor]) -> Tensor:
        frames = rearrange(video, "b c t h w -> (b t) h w c").contiguous()
        size = self.frames_per_slice
        if video.device.type == "cpu":
            size = min(size or IN_CACHE, IN_CACHE)
        if size is None or torch.is_grad_enabled():  # slices save nothing when a graph is kept
            out = function(frames)
        else:
            out = torch.cat([function(part) for part in frames.split(size)])
        return rearrange(out, "(b t) h w c -> b c t h w", b=video.shape[0])

    @classmethod
    def from_diffusers(cls, folder: str | Path, *, frames_per_slice: int | None = None) -> KL2dAutoencoder:
        """The network a diffusers `AutoencoderKL` folder describes, with its weights and its latent scale."""
        return cls(**settings_from_diffusers(folder), frames_per_slice=frames_per_slice)

    def load_diffusers(self, folder: str | Path) -> LoadReport:
        """Weights and latent scale of a folder, all or nothing: a tensor too many or too few is an error."""
        folder = Path(folder)
        config = read_config(folder)
        try:
            state = {_renamed(name): value for name, value in load_file(folder / WEIGHTS).items()}
        except (OSError, SafetensorError) as error:
            raise RunError(
                f"cannot read the weights: {error}",
                key="autoencoder.pretrained",
                got=str(folder / WEIGHTS),
                remedy="download the folder again",
            ) from error
        own = self.state_dict()
        # Old attention weights are 1x1 convolutions, b c 1 1.
        state = {k: v[..., 0, 0] if k in own and own[k].dim() == 2 and v.dim() == 4 else v for k, v in state.items()}
        report = load_weights(self, state, source="autoencoder.pretrained", allow_missing=["latent_"])
        # shift_factor is subtracted first, then scaling_factor multiplies: as our buffers do.
        self.latent_shift.fill_(config.get("shift_factor") or 0.0)
        self.latent_scale.fill_(config.get("scaling_factor", 0.18215))
        return report


def _renamed(name: str) -> str:
    parts = name.split(".")
    if "attentions" in parts:
        parts = [RENAMED.get(part, part) for part in parts]
    return ".".join(parts)
