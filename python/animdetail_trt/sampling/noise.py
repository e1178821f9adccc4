"""Where randomness comes from: seeded generators only, so that a run can be repeated to the bit."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeAlias

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
