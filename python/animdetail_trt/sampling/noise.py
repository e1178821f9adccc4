"""Where randomness comes from: seeded generators only, so that a run can be repeated to the bit."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TypeAlias

import numpy as np
import torch
from torch import Tensor

NoiseSampler: TypeAlias = Callable[[float, float], Tensor]
"""``noise(sigma, sigma_next)`` -> standard normal noise for that step."""


def initial_noise(shape: torch.Size, seed: int) -> Tensor:
    """Float32 on the CPU, the whole batch from one generator: frame i differs from a run of frame i alone."""
    return torch.randn(shape, generator=torch.Generator("cpu").manual_seed(int(seed)))


def step_noise(like: Tensor, seed: int) -> NoiseSampler:
    """Fresh noise for each step of an ancestral sampler, drawn on the latent's own device."""
    generator = torch.Generator(like.device).manual_seed(int(seed))
    return lambda sigma, sigma_next: torch.randn(like.shape, dtype=like.dtype, device=like.device, generator=generator)


def brownian_noise(like: Tensor, lowest: float, highest: float, seed: int, *, on_cpu: bool) -> NoiseSampler:
    """The increments of one Brownian path over the sigmas from ``lowest`` to ``highest``, each scaled to variance 1:
    steps of any length walk the same path (Li et al. 2020, arXiv:2001.01328, alg. 3).

    on_cpu: draw there, so that the path does not depend on the device
    """
    from torchsde import BrownianTree

    start = torch.zeros(like.shape, dtype=like.dtype, device="cpu" if on_cpu else like.device)
    path = BrownianTree(_float32(lowest), start, _float32(highest), entropy=int(seed))

    def noise(sigma: float, sigma_next: float) -> Tensor:
        above, below = _float32(sigma), _float32(sigma_next)
        fall: Tensor = path(round(below, 6), round(above, 6)).to(like.device)
        return fall / -math.sqrt(above - below)

    return noise


def _float32(sigma: float) -> float:
    """The tree rounds its times to six digits: a float64 sigma may fall on another one than the reference's float32."""
    return float(np.float32(sigma))
