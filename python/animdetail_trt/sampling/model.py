"""The model as sampling sees it."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from animdetail_trt.backends.interface import UNetRunner
from animdetail_trt.sampling.context import ContextOptions
from animdetail_trt.sampling.model_sampling import ModelSampling

LATENT_SCALE = 0.18215
"""SD 1.5's latents are multiplied by this inside the sampler (Rombach et al. 2022)."""


@dataclass(frozen=True)
class DiffusionModel:
    """A UNet with the noise levels that it was trained on and the windows that it is run in."""

    unet: UNetRunner
    model_sampling: ModelSampling
    context: ContextOptions | None = None

    @property
    def device(self) -> torch.device:
        return self.unet.device
