"""Samplers that use nothing but the current step."""

from __future__ import annotations

import math
from itertools import pairwise

from torch import Tensor

from animdetail_trt.sampling.samplers.interface import Run


def slope(x: Tensor, denoised: Tensor, sigma: float) -> Tensor:
    """dx/dsigma of the probability-flow ODE (Karras et al. 2022, eq. 1 with s = 1)."""
    return (x - denoised) / sigma


def between(sigma: float, sigma_next: float, part: float) -> float:
    """The level at that part of the way in log sigma."""
    return math.exp((1 - part) * math.log(sigma) + part * math.log(sigma_next))


def geometric_mean(sigma: float, sigma_next: float) -> float:
    return between(sigma, sigma_next, 1 / 2)


def sample_euler(run: Run, x: Tensor) -> Tensor:
    """Integrate dx/dsigma = (x - denoised) / sigma with Euler steps (Karras et al. 2022, alg. 2 without churn)."""
    for i, (sigma, sigma_next) in enumerate(pairwise(run.sigmas)):
        denoised = run.denoise(x, sigma)
        run.on_step(i, denoised)
        x = x + slope(x, denoised, sigma) * (sigma_next - sigma)
    return x


def sample_heun(run: Run, x: Tensor) -> Tensor:
    """Heun's second-order steps (Karras et al. 2022, alg. 2 without churn); Euler where the next sigma is 0."""
    for i, (sigma, sigma_next) in enumerate(pairwise(run.sigmas)):
        denoised = run.denoise(x, sigma)
        run.on_step(i, denoised)
        d = slope(x, denoised, sigma)
        step = sigma_next - sigma
        if sigma_next == 0:
            x = x + d * step
            continue
        ahead = x + d * step
        d_ahead = slope(ahead, run.denoise(ahead, sigma_next), sigma_next)
        x = x + (d + d_ahead) / 2 * step
    return x


def sample_heunpp2(run: Run, x: Tensor) -> Tensor:
    """Heun++: slopes one and two steps ahead, weighed by their sigmas over that of the start; fewer near the end."""
    for i, (sigma, sigma_next) in enumerate(pairwise(run.sigmas)):
        denoised = run.denoise(x, sigma)
        run.on_step(i, denoised)
        d = slope(x, denoised, sigma)
        # The sigmas ahead whose slopes can be had: up to two, and none at the last sigma.
        ahead = [s for s in run.sigmas[i + 1 : i + 3] if s != run.sigmas[-1]]
        weights = [s / ((len(ahead) + 1) * run.sigmas[0]) for s in ahead]
        mixed = d * (1 - sum(weights))
        walker, walker_sigma, walker_d = x, sigma, d
        for s, weight in zip(ahead, weights, strict=True):
            walker = walker + walker_d * (s - walker_sigma)
            walker_sigma, walker_d = s, slope(walker, run.denoise(walker, s), s)
            mixed = mixed + walker_d * weight
        x = x + mixed * (sigma_next - sigma)
    return x


def sample_dpm_2(run: Run, x: Tensor) -> Tensor:
    """DPM-Solver-2 (Lu et al. 2022, arXiv:2206.00927): the slope at the geometric mean of both sigmas."""
    for i, (sigma, sigma_next) in enumerate(pairwise(run.sigmas)):
        denoised = run.denoise(x, sigma)
        run.on_step(i, denoised)
        d = slope(x, denoised, sigma)
        if sigma_next > 0:
            middle = geometric_mean(sigma, sigma_next)
            halfway = x + d * (middle - sigma)
            d = slope(halfway, run.denoise(halfway, middle), middle)
        x = x + d * (sigma_next - sigma)
    return x
