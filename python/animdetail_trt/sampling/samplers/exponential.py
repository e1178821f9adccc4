"""Exponential integrators over lambda = -log sigma, where a denoiser that stands still is followed exactly."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise

import numpy as np
from torch import Tensor

from animdetail_trt.sampling.samplers.ancestral import ancestral_step
from animdetail_trt.sampling.samplers.interface import Run


def phi(k: int, h: float) -> float:
    """phi_0 = exp and phi_k(h) = (phi_(k-1)(h) - 1 / (k-1)!) / h (Hochbruck & Ostermann 2010, eq. 2.10)."""
    if abs(h) < 1:  # where the differences would cancel
        return math.fsum(h**j / math.factorial(j + k) for j in range(18))
    value = math.exp(h)
    for j in range(k):
        value = (value - 1 / math.factorial(j)) / h
    return value


def exponential_adams(offsets: Sequence[float], h: float) -> list[float]:
    """Weights of values at ``offsets`` from the start of a step: the integral over l from 0 to ``h`` of e^(l - h) times
    the polynomial through them."""
    order = len(offsets)
    moments = [h ** (p + 1) * math.factorial(p) * phi(p + 1, -h) for p in range(order)]
    weights: list[float] = np.linalg.solve(np.vander(offsets, order, increasing=True).T, moments).tolist()
    return weights


def exponential_step(x: Tensor, estimates: Sequence[Tensor], offsets: Sequence[float], h: float) -> Tensor:
    """x after a step of ``h`` in lambda; ``estimates`` of the clean latent lie ``offsets`` from its start."""
    stepped = math.exp(-h) * x
    for weight, estimate in zip(exponential_adams(offsets, h), estimates, strict=True):
        stepped = stepped + weight * estimate
    return stepped


def sample_res_multistep(run: Run, x: Tensor, *, ancestral: bool = False, cfg_pp: bool = False) -> Tensor:
    """Refined exponential solver of two steps (Zhang et al. 2023, arXiv:2308.02157).

    ancestral: step to sigma_down, then add noise of sigma_up; cfg_pp: as ``Run.estimates`` has it
    """
    noise = run.step_noise(x)
    previous: Tensor | None = None
    previous_offset = 0.0
    for i, (sigma, sigma_next) in enumerate(pairwise(run.sigmas)):
        denoised, centre = run.estimates(x, sigma, cfg_pp=cfg_pp)
        run.on_step(i, denoised)
        if sigma_next == 0:
            return denoised
        sigma_down, sigma_up = ancestral_step(sigma, sigma_next) if ancestral else (sigma_next, 0.0)
        if previous is None or sigma_down == 0:
            x = denoised + (x - centre) * (sigma_down / sigma)
        else:
            offsets = [0.0, previous_offset]
            x = exponential_step(x + (denoised - centre), [centre, previous], offsets, math.log(sigma / sigma_down))
        if ancestral:
            x = x + noise(sigma, sigma_next) * sigma_up
        # Back from where the noiseless part of this step ends, not from where its noise leads, as in the reference.
        previous = centre if sigma_down > 0 else None
        previous_offset = math.log(sigma_down / sigma) if sigma_down > 0 else 0.0
    return x
