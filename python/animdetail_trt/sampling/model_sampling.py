"""The noise levels that a model was trained on, the way between sigma and timestep, and what its output means.

x_sigma = x_0 + sigma * noise (Karras et al. 2022, arXiv:2206.00364); sigma_t^2 = (1 - abar_t) / abar_t of DDPM.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Literal, get_args

import numpy as np
import torch
from torch import Tensor

from animdetail_trt.errors import InputError

BetaSchedule = Literal[
    "linear",
    "sqrt_linear",
    "avg(sqrt_linear,linear)",
    "lcm",
    "lcm[100_ots]",
    "lcm >> sqrt_linear",
    "lcm avg(sqrt_linear,linear)",
    "sqrt",
    "cosine",
]
BETA_SCHEDULES: tuple[str, ...] = get_args(BetaSchedule)

# AnimateDiff-Evolved's labels that say more than its names.
_ALIASES: dict[str, BetaSchedule] = {
    "sqrt_linear (AnimateDiff)": "sqrt_linear",
    "linear (HotshotXL/default)": "linear",
}
TRAINING_STEPS = 1000
BETA_START, BETA_END = 0.00085, 0.012
LCM_SIGMA_DATA = 0.5
LCM_TIMESTEP_SCALING = 10.0


def _cosine(offset: float = 0.008) -> Tensor:
    """betas whose abar is cos^2 (Nichol & Dhariwal 2021, arXiv:2102.09672, eq. 17)."""
    angles = (torch.arange(TRAINING_STEPS + 1, dtype=torch.float64) / TRAINING_STEPS + offset) / (1 + offset)
    alphas_bar = torch.cos(angles * math.pi / 2) ** 2
    return (1 - alphas_bar[1:] / alphas_bar[:-1]).clamp(0, 0.999)


# The names are ComfyUI's, and misleading: "linear" is Stable Diffusion's, linear in the square root of beta;
# "sqrt_linear" is AnimateDiff's, linear in beta itself.
_BETAS: dict[str, Callable[[], Tensor]] = {
    "linear": lambda: torch.linspace(BETA_START**0.5, BETA_END**0.5, TRAINING_STEPS, dtype=torch.float64) ** 2,
    "sqrt_linear": lambda: torch.linspace(BETA_START, BETA_END, TRAINING_STEPS, dtype=torch.float64),
    "sqrt": lambda: torch.linspace(BETA_START, BETA_END, TRAINING_STEPS, dtype=torch.float64) ** 0.5,
    "cosine": _cosine,
}


def check_beta_schedule(name: str) -> BetaSchedule:
    """The schedule of that name; AnimateDiff-Evolved's own labels are understood too."""
    name = _ALIASES.get(name, name) if isinstance(name, str) else name
    if name not in BETA_SCHEDULES:
        raise InputError(f"unknown beta_schedule {name!r}. Choose one of: autoselect, {', '.join(BETA_SCHEDULES)}")
    return name  # type: ignore[return-value]


def _trained_sigmas(schedule: str) -> Tensor:
    """(1000,), rising: float64, but an average is float32 like the reference's."""
    if "avg(" in schedule:
        return (_trained_sigmas("linear").float() + _trained_sigmas("sqrt_linear").float()) / 2
    base = {"lcm": "linear", "lcm[100_ots]": "linear", "lcm >> sqrt_linear": "sqrt_linear"}.get(schedule, schedule)
    alphas_bar = torch.cumprod(1 - _BETAS[base](), dim=0)
    return ((1 - alphas_bar) / alphas_bar) ** 0.5


class ModelSampling:
    """Of a model that predicts noise, or of one distilled to jump (Luo et al. 2023, latent consistency models,
    arXiv:2310.04378): such a model knows every 20th (or 10th) of the 1000 timesteps only.

    sigmas: float32 (1000,), or (50,) or (100,) distilled, rising with the timestep
    """

    def __init__(self, schedule: BetaSchedule) -> None:
        self.schedule = schedule
        self.distilled = schedule.startswith("lcm")
        self._stride = 1 if not self.distilled else 10 if "100" in schedule else 20
        trained = _trained_sigmas(schedule)
        if self.distilled:
            trained = trained.float()[self._stride - 1 :: self._stride]
        self.sigmas = trained.float()
        # Of the float64 sigmas where the reference has them, and rounded once: torch's own float32 logarithm differs
        # between processors, and a schedule can ask for the very middle of two trained levels, where the last bit
        # decides between them.
        self._log_sigmas = np.log(trained.double().numpy()).astype(np.float32)

    @property
    def sigma_min(self) -> float:
        return float(self.sigmas[0])

    @property
    def sigma_max(self) -> float:
        return float(self.sigmas[-1])

    def timestep(self, sigma: float) -> float:
        """The trained timestep whose log sigma is nearest; the first for sigma 0."""
        nearest = 0
        if sigma > 0:
            nearest = int(np.abs(np.float32(math.log(np.float32(sigma))) - self._log_sigmas).argmin())
        return float(nearest * self._stride + (self._stride - 1))

    def sigma(self, timestep: float) -> float:
        """Sigma, a float32, at a timestep between the trained ones: linear in log sigma."""
        position = (np.float32(timestep) - np.float32(self._stride - 1)) / np.float32(self._stride)
        position = np.clip(position, np.float32(0), np.float32(len(self.sigmas) - 1))
        low = int(position)
        high = min(low + 1, len(self.sigmas) - 1)
        weight = position - np.float32(low)
        log_sigma = (1 - weight) * self._log_sigmas[low] + weight * self._log_sigmas[high]
        return float(np.float32(math.exp(log_sigma)))

    def percent_to_sigma(self, percent: float) -> float:
        """The sigma that is reached when this part (0..1) of all timesteps is done; infinity at 0, 0 at 1."""
        if percent <= 0:
            return math.inf
        if percent >= 1:
            return 0.0
        return self.sigma((1 - percent) * (TRAINING_STEPS - 1))

    def input_scale(self, sigma: float) -> float:
        """What a latent at ``sigma`` is divided by for the UNet, which was trained on unit variance.

        A float32, with torch's power of it, as the reference computes it: its last bit is not that of a square root.
        """
        return float((torch.tensor(sigma, dtype=torch.float32) ** 2 + 1) ** 0.5)

    def denoised(self, x: Tensor, eps: Tensor, sigma: float) -> Tensor:
        """The clean latent that the model's output ``eps`` for ``x`` at ``sigma`` stands for."""
        clean = x - eps * sigma
        if not self.distilled:
            return clean
        scaled = self.timestep(sigma) * LCM_TIMESTEP_SCALING
        total = scaled**2 + LCM_SIGMA_DATA**2
        return clean * (scaled / math.sqrt(total)) + x * (LCM_SIGMA_DATA**2 / total)
