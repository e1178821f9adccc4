"""Sampling where a mask says: inside it the model paints, outside it the latent stays."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol, TypeAlias

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor

from animdetail_trt.sampling.context import repeated
from animdetail_trt.sampling.model_sampling import ModelSampling


class Denoiser(Protocol):
    """The model's estimate of the noise-free latent, of the shape of x (f, 4, lh, lw)."""

    def __call__(self, x: Tensor, sigma: float) -> Tensor: ...

    def both(self, x: Tensor, sigma: float) -> tuple[Tensor, Tensor]:
        """With it the estimate that ignores the prompt."""
        ...


MaskAt: TypeAlias = Callable[[float], Tensor]
"""The mask that holds at a sigma."""


def latent_mask(noise_mask: Tensor, latent: Tensor) -> Tensor:
    """noise_mask (n, h, w) in 0..1, n = 1 or f, resized bilinear to the latent's size -> (f or 1, 1, lh, lw)."""
    mask = F.interpolate(noise_mask.float()[:, None], size=latent.shape[-2:], mode="bilinear", align_corners=False)
    return (mask if len(mask) == 1 else repeated(mask, latent.shape[0])).to(latent.device)


@dataclass(frozen=True)
class DifferentialMask:
    """A grey value is the point of the schedule from which on its pixel is painted (Levin & Fried 2023,
    arXiv:2306.00950): white from the first step, black never. Binary at every sigma."""

    mask: Tensor
    model_sampling: ModelSampling
    sigmas: Sequence[float]

    def __call__(self, sigma: float) -> Tensor:
        timestep = self.model_sampling.timestep
        start = timestep(self.sigmas[0])
        end = timestep(max(self.sigmas[-1], self.model_sampling.sigma_min))
        if start == end:
            return torch.zeros_like(self.mask)  # 0 / 0 in the reference: NaN, which no mask reaches
        threshold = (timestep(sigma) - end) / (start - end)
        return (self.mask >= threshold).to(self.mask.dtype)


class Masked:
    """Hold what lies outside the mask at ``latent``: noised to the current sigma before the model, clean after."""

    def __init__(self, denoise: Denoiser, mask_at: MaskAt, latent: Tensor, noise: Tensor) -> None:
        self._denoise, self._mask_at, self._latent, self._noise = denoise, mask_at, latent, noise

    def __call__(self, x: Tensor, sigma: float) -> Tensor:
        mask = self._mask_at(sigma)
        return self._held(self._denoise(self._noised_outside(x, mask, sigma), sigma), mask)

    def both(self, x: Tensor, sigma: float) -> tuple[Tensor, Tensor]:
        """The estimate that ignores the prompt ignores the mask too, as in the reference."""
        mask = self._mask_at(sigma)
        denoised, uncond = self._denoise.both(self._noised_outside(x, mask, sigma), sigma)
        return self._held(denoised, mask), uncond

    def _noised_outside(self, x: Tensor, mask: Tensor, sigma: float) -> Tensor:
        return x * mask + (self._latent + sigma * self._noise) * (1 - mask)

    def _held(self, denoised: Tensor, mask: Tensor) -> Tensor:
        return denoised * mask + self._latent * (1 - mask)
