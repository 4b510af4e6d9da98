"""Loss of a KL autoencoder with an adversarial term (VQGAN, latent diffusion).

Generator and discriminator are trained by one backward pass: the generator's term sees the discriminator's weights as
constants, the discriminator's term sees the reconstruction as data, so the sum has both gradients of the usual two
passes and needs no second optimizer.
"""

from __future__ import annotations

from typing import Literal

import torch
import torch.distributed as distributed
from einops import rearrange
from torch import Tensor, nn

from vdm.autoencoder.base import DiagonalGaussian
from vdm.autoencoder.discriminator import call_frozen, hinge
from vdm.bounds import NonNegativeFloat, NonNegativeInt


class Adversarial(nn.Module):
    """Hinge GAN from `start_step` on; `weight` multiplies the ratio of gradient norms at the decoder's last layer."""

    def __init__(self, *, discriminator: nn.Module, weight: NonNegativeFloat, start_step: NonNegativeInt):
        super().__init__()
        self.discriminator, self.weight, self.start_step = discriminator, weight, start_step

    def forward(self, video: Tensor, reconstruction: Tensor, objective: Tensor, last: Tensor) -> dict[str, Tensor]:
        """The generator's weighted term, the discriminator's loss, and what to log."""
        generator = -call_frozen(self.discriminator, reconstruction).mean()
        adaptive = adaptive_weight(objective, generator, last)
        real, fake = self.discriminator(video), self.discriminator(reconstruction.detach())
        return {
            "generator": self.weight * adaptive * generator,
            "discriminator": hinge(real, fake),
            "adaptive_weight": adaptive,
            "logits_real": real.mean(),
            "logits_fake": fake.mean(),
        }


def adaptive_weight(objective: Tensor, generator: Tensor, last: Tensor) -> Tensor:
    """Norm of the objective's gradient over the norm of the generator's, at the last layer (VQGAN, Eq. 7): of the gradients of
    all processes, so that their number does not matter.
    """
    gradients = torch.stack([torch.autograd.grad(loss, last, retain_graph=True)[0] for loss in (objective, generator)])
    if distributed.is_initialized():
        distributed.all_reduce(gradients)
        gradients /= distributed.get_world_size()
    ours, theirs = (gradient.norm() for gradient in gradients)
    return (ours / (theirs + 1e-4)).clamp(0.0, 1e4).detach()


class AutoencoderLoss(nn.Module):
    """Weighted sum of reconstruction, KL, perceptual and adversarial terms.

    `reduction="frame"` sums over the values of a frame and averages over frames, as the paper does; `"mean"` averages
    over all values. Every term is divided by the same number, so the weights mean the same in both, and that of the KL
    does not depend on the size of a clip.
    """

    def __init__(
        self,
        *,
        reduction: Literal["frame", "mean"],
        l1_weight: NonNegativeFloat,
        l2_weight: NonNegativeFloat,
        kl_weight: NonNegativeFloat,
        perceptual_weight: NonNegativeFloat,
        perceptual: nn.Module | None,
        adversarial: Adversarial | None,
    ):
        super().__init__()
        self.reduction = reduction
        self.l1_weight, self.l2_weight, self.kl_weight = l1_weight, l2_weight, kl_weight
        self.perceptual_weight, self.perceptual, self.adversarial = perceptual_weight, perceptual, adversarial

    def terms(self, video: Tensor, reconstruction: Tensor, posterior: DiagonalGaussian) -> dict[str, Tensor]:
        """Means over all values, before weights: `l1`, `l2`, `kl` and, where it is on, `perceptual`."""
        difference = reconstruction.float() - video.float()
        terms = {"l1": difference.abs().mean(), "l2": difference.square().mean()}
        if self.perceptual is not None and self.perceptual_weight:
            frames = (rearrange(x, "b c t h w -> (b t) c h w") for x in (video, reconstruction))
            terms["perceptual"] = self.perceptual(*frames).mean()
        return terms | {"kl": posterior.kl().mean() / video[0].numel()}  # nats per pixel value

    def weighted(self, terms: dict[str, Tensor], video: Tensor) -> tuple[Tensor, Tensor]:
        """The reconstruction's part of the loss, and that of the KL."""
        scale = video[0, :, 0].numel() if self.reduction == "frame" else 1
        reconstruction = self.l1_weight * terms["l1"] + self.l2_weight * terms["l2"]
        reconstruction = reconstruction + self.perceptual_weight * terms.get("perceptual", 0.0)
        return scale * reconstruction, scale * self.kl_weight * terms["kl"]

    def forward(
        self, video: Tensor, reconstruction: Tensor, posterior: DiagonalGaussian, *, step: int, last_layer: Tensor
    ) -> dict[str, Tensor]:
        """Terms by name; `loss` is their weighted sum."""
        terms = self.terms(video, reconstruction, posterior)
        objective, kl = self.weighted(terms, video)
        loss = objective + kl
        if self.adversarial is not None and step >= self.adversarial.start_step:
            terms |= self.adversarial(video, reconstruction, objective, last_layer)
            loss = loss + terms["generator"] + terms["discriminator"]
        return {"loss": loss} | terms
