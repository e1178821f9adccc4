"""The noise levels that an eps-predicting model was trained on, and the way between sigma and timestep.

x_sigma = x_0 + sigma * noise (Karras et al. 2022, arXiv:2206.00364); sigma_t^2 = (1 - abar_t) / abar_t of DDPM.
"""

from __future__ import annotations

import math
from typing import Literal

import torch
from torch import Tensor

BetaSchedule = Literal["linear", "sqrt_linear"]
TRAINING_STEPS = 1000
BETA_START, BETA_END = 0.00085, 0.012


def betas(schedule: BetaSchedule) -> Tensor:
    """Float64 (1000,). ``linear`` is Stable Diffusion's: linear in the square root; ``sqrt_linear`` is AnimateDiff's:
    linear in beta itself. The names are ComfyUI's, and misleading."""
    if schedule == "linear":
        return torch.linspace(BETA_START**0.5, BETA_END**0.5, TRAINING_STEPS, dtype=torch.float64) ** 2
    return torch.linspace(BETA_START, BETA_END, TRAINING_STEPS, dtype=torch.float64)


class ModelSampling:
    """sigmas: float32 (1000,), rising with the timestep."""

    def __init__(self, schedule: BetaSchedule) -> None:
        self.schedule = schedule
        alphas_bar = torch.cumprod(1 - betas(schedule), dim=0)
        self.sigmas = (((1 - alphas_bar) / alphas_bar) ** 0.5).float()
        self._log_sigmas = self.sigmas.log()

    @property
    def sigma_min(self) -> float:
        return float(self.sigmas[0])

    @property
    def sigma_max(self) -> float:
        return float(self.sigmas[-1])

    def timestep(self, sigma: float) -> float:
        """The trained timestep whose log sigma is nearest; 0 for sigma 0."""
        if sigma <= 0:
            return 0.0
        return float((self._log_sigmas - math.log(sigma)).abs().argmin())

    def sigma(self, timestep: float) -> float:
        """Sigma at a timestep between the trained ones: linear in log sigma."""
        timestep = min(max(timestep, 0.0), len(self.sigmas) - 1.0)
        low = int(timestep)
        high = min(low + 1, len(self.sigmas) - 1)
        weight = timestep - low
        return math.exp((1 - weight) * float(self._log_sigmas[low]) + weight * float(self._log_sigmas[high]))
