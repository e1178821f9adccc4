"""Samplers that step past the next noise level and add fresh noise back up to it."""

from __future__ import annotations

from itertools import pairwise

from torch import Tensor

from animdetail_trt.sampling.samplers.interface import Run


def ancestral_step(sigma: float, sigma_next: float) -> tuple[float, float]:
    """(sigma_down, sigma_up): the level to step down to, and the noise to add, so that the variances sum up."""
    if sigma_next == 0:
        return 0.0, 0.0
    sigma_up = min(sigma_next, (sigma_next**2 * (sigma**2 - sigma_next**2) / sigma**2) ** 0.5)
    return (sigma_next**2 - sigma_up**2) ** 0.5, sigma_up


def sample_euler_ancestral(run: Run, x: Tensor) -> Tensor:
    """Euler steps to sigma_down, then noise of sigma_up (Song et al. 2021's ancestral sampling, after k-diffusion)."""
    noise = run.make_noise(x)
    for i, (sigma, sigma_next) in enumerate(pairwise(run.sigmas)):
        denoised = run.denoise(x, sigma)
        run.on_step(i, denoised)
        sigma_down, sigma_up = ancestral_step(sigma, sigma_next)
        if sigma_down == 0:
            x = denoised
        else:
            x = x + (x - denoised) / sigma * (sigma_down - sigma) + noise(sigma, sigma_next) * sigma_up
    return x
