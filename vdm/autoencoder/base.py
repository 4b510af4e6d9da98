"""What every video autoencoder is: a diagonal Gaussian posterior over latents, and latents that leave it with zero
mean and unit variance per channel (the shift and the scale are measured after training and travel with the weights).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence

import torch
from torch import Tensor, nn

from vdm.autoencoder.tiling import Tiling, run_tiled
from vdm.checkpoint import digest
from vdm.errors import ConfigError
from vdm.types import LatentShape


class DiagonalGaussian:
    """The posterior of a clip, from the encoder's `b 2c t h w` (means, then log variances)."""

    def __init__(self, moments: Tensor):
        self.mean, logvar = moments.float().chunk(2, dim=1)
        self.logvar = logvar.clamp(-30.0, 20.0)

    def mode(self) -> Tensor:
        return self.mean

    def sample(self, generator: torch.Generator | None = None) -> Tensor:
        noise = torch.randn(self.mean.shape, generator=generator, device=self.mean.device, dtype=self.mean.dtype)
        return self.mean + noise * (0.5 * self.logvar).exp()

    def kl(self) -> Tensor:
        """KL to the standard normal distribution in nats, summed over each clip: `b`."""
        return 0.5 * (self.mean**2 + self.logvar.exp() - 1.0 - self.logvar).flatten(1).sum(1)


class VideoAutoencoder(nn.Module, ABC):
    """Subclasses write `_encode` and `_decode` on raw latents; normalisation, checks and tiling are here."""

    latent_shift: Tensor
    latent_scale: Tensor
    frames_are_independent = False  # True: the latent of a part of a clip is a part of its latent

    def __init__(self, *, stride: Sequence[int], latent_channels: int, tiling: Tiling | None):
        super().__init__()
        self.stride = tuple(stride)
        self.latent_channels = latent_channels
        self.tiling = tiling
        if tiling is not None:
            tiling.check(self.stride)
        self.register_buffer("latent_shift", torch.zeros(latent_channels))
        self.register_buffer("latent_scale", torch.ones(latent_channels))

    @abstractmethod
    def _encode(self, video: Tensor) -> Tensor:
        """`b 3 T H W` -> moments `b 2c t h w`."""

    @abstractmethod
    def _decode(self, raw: Tensor) -> Tensor:
        """Raw latent `b c t h w` -> `b 3 T H W`."""

    @property
    @abstractmethod
    def last_layer(self) -> nn.Parameter:
        """The decoder's last weight, where the adversarial weight compares gradients."""

    def posterior(self, video: Tensor) -> DiagonalGaussian:
        """Posterior over raw latents, before shift and scale."""
        self.latent_shape(*video.shape[2:])
        if self.tiling is None or self.training or not self.tiling.covers(video.shape[2:]):
            return DiagonalGaussian(self._encode(video))
        down = [(1, s) for s in self.stride]
        return DiagonalGaussian(run_tiled(self, self._encode, video, tiling=self.tiling, unit=self.stride, ratio=down))

    def reconstruct(self, raw: Tensor) -> Tensor:
        """Video of a raw latent, as the posterior gives it."""
        if self.tiling is None or self.training or not self.tiling.covers(self._pixels(raw)):
            return self._decode(raw)
        up = [(s, 1) for s in self.stride]
        tiling = self.tiling.divided(self.stride)
        return run_tiled(self, self._decode, raw, tiling=tiling, unit=(1, 1, 1), ratio=up)

    def encode(self, video: Tensor, *, generator: torch.Generator | None = None) -> Tensor:
        """Normalised latent `b c t h w`: the posterior's mean, or a sample when a generator is given."""
        posterior = self.posterior(video)
        raw = posterior.mode() if generator is None else posterior.sample(generator)
        return (raw - _per_channel(self.latent_shift)) * _per_channel(self.latent_scale)

    def decode(self, latent: Tensor) -> Tensor:
        """Normalised latent -> video `b 3 T H W`, not clipped."""
        return self.reconstruct(latent / _per_channel(self.latent_scale) + _per_channel(self.latent_shift))

    @torch.no_grad()
    def latents(self, video: Tensor) -> Tensor:
        """What a diffusion model is trained on: `encode`, one clip after the other in full precision. A latent is then
        the same, to the last bit, in every batch, in a cache and whatever the trainer computes in.
        """
        with torch.autocast(video.device.type, enabled=False):
            return torch.cat([self.encode(clip[None]) for clip in video]).contiguous()

    def fingerprint(self) -> dict[str, str]:
        """What decides the latents."""
        return {"network": type(self).__name__, "weights": digest(self.state_dict())}

    def forward(self, video: Tensor, *, generator: torch.Generator | None = None) -> tuple[Tensor, DiagonalGaussian]:
        """Reconstruction from a posterior sample, and the posterior: what training needs."""
        posterior = self.posterior(video)
        return self.reconstruct(posterior.sample(generator)), posterior

    def latent_shape(self, frames: int, height: int, width: int) -> LatentShape:
        """Shape of one clip's latent; a ConfigError when the stride does not divide the clip."""
        for name, size, step in zip(("frames", "height", "width"), (frames, height, width), self.stride, strict=True):
            if size < step or size % step:
                low = size // step * step
                near = f"{low} or {low + step}" if low else f"{step}"
                raise ConfigError(
                    f"a clip of {frames}x{height}x{width} (frames, height, width) does not divide by the "
                    f"autoencoder's stride {'x'.join(map(str, self.stride))}",
                    key=f"data.clip.{name}",
                    got=size,
                    allowed=f"multiples of {step}",
                    remedy=f"set data.clip.{name}={near}, or an autoencoder.stride that divides it",
                )
        t, h, w = (size // step for size, step in zip((frames, height, width), self.stride, strict=True))
        return LatentShape(self.latent_channels, t, h, w)

    @torch.no_grad()
    def latent_sums(self, videos: Iterable[Tensor]) -> Tensor:
        """Count, sum and sum of squares of posterior samples by channel, `3 c`: adds up over batches and ranks.

        The square of a sample is expected to be mean squared plus variance, so no noise is drawn.
        """
        sums = self.latent_shift.new_zeros(3, self.latent_channels, dtype=torch.float64)
        for video in videos:
            posterior = self.posterior(video)
            mean, variance = posterior.mean.double(), posterior.logvar.double().exp()
            for row, values in enumerate((torch.ones_like(mean), mean, mean**2 + variance)):
                sums[row] += values.sum((0, 2, 3, 4))
        return sums

    @torch.no_grad()
    def normalise(self, sums: Tensor) -> None:
        """Set shift and scale so that the latents of these sums get zero mean and unit variance per channel."""
        count, total, square = sums
        assert (count > 0).all(), "no latent was measured"
        mean = total / count
        self.latent_shift.copy_(mean)
        self.latent_scale.copy_((square / count - mean**2).clamp_min(1e-12).rsqrt())

    def _pixels(self, raw: Tensor) -> tuple[int, ...]:
        return tuple(size * step for size, step in zip(raw.shape[2:], self.stride, strict=True))


def _per_channel(values: Tensor) -> Tensor:
    return values.view(1, -1, 1, 1, 1)
