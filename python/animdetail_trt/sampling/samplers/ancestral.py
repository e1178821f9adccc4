"""Samplers that step past the next noise level and add fresh noise back up to it."""

from __future__ import annotations

import math
from itertools import pairwise

import torch
from torch import Tensor

from animdetail_trt.sampling.samplers.interface import Run
from animdetail_trt.sampling.samplers.single_step import geometric_mean, slope


def ancestral_step(sigma: float, sigma_next: float) -> tuple[float, float]:
    """(sigma_down, sigma_up): the level to step down to, and the noise to add, so that the variances sum up."""
    if sigma_next == 0:
        return 0.0, 0.0
    # In torch's float32 like the reference: a long fall leaves of sigma_down not much more than what the rounding left.
    high, low = torch.tensor([sigma, sigma_next], dtype=torch.float32)
    # Where sigma rises there is none to add: such a step only stretches the noise that is there.
    sigma_up = min(low, (low**2 * (high**2 - low**2) / high**2).clamp(min=0) ** 0.5)
    return float((low**2 - sigma_up**2) ** 0.5), float(sigma_up)


def sample_euler_ancestral(run: Run, x: Tensor) -> Tensor:
    """Euler steps to sigma_down, then noise of sigma_up (Song et al. 2021's ancestral sampling, after k-diffusion)."""
    noise = run.step_noise(x)
    for i, (sigma, sigma_next) in enumerate(pairwise(run.sigmas)):
        denoised = run.denoise(x, sigma)
        run.on_step(i, denoised)
        sigma_down, sigma_up = ancestral_step(sigma, sigma_next)
        if sigma_down == 0:
            x = denoised
        else:
            x = x + slope(x, denoised, sigma) * (sigma_down - sigma) + noise(sigma, sigma_next) * sigma_up
    return x


def sample_dpm_2_ancestral(run: Run, x: Tensor) -> Tensor:
    """As ``dpm_2`` down to sigma_down, then noise of sigma_up."""
    noise = run.step_noise(x)
    for i, (sigma, sigma_next) in enumerate(pairwise(run.sigmas)):
        denoised = run.denoise(x, sigma)
        run.on_step(i, denoised)
        sigma_down, sigma_up = ancestral_step(sigma, sigma_next)
        d = slope(x, denoised, sigma)
        if sigma_down == 0:
            x = x + d * (sigma_down - sigma)
            continue
        middle = geometric_mean(sigma, sigma_down)
        halfway = x + d * (middle - sigma)
        d = slope(halfway, run.denoise(halfway, middle), middle)
        x = x + d * (sigma_down - sigma) + noise(sigma, sigma_next) * sigma_up
    return x


def sample_dpmpp_2s_ancestral(run: Run, x: Tensor) -> Tensor:
    """DPM-Solver++(2S) (Lu et al. 2022, arXiv:2211.01095, alg. 1) to sigma_down, then noise of sigma_up."""
    noise = run.step_noise(x)
    for i, (sigma, sigma_next) in enumerate(pairwise(run.sigmas)):
        denoised = run.denoise(x, sigma)
        run.on_step(i, denoised)
        sigma_down, sigma_up = ancestral_step(sigma, sigma_next)
        if sigma_down == 0:
            x = denoised
        else:
            h = math.log(sigma / sigma_down)
            middle = geometric_mean(sigma, sigma_down)
            halfway = middle / sigma * x - math.expm1(-h / 2) * denoised
            x = sigma_down / sigma * x - math.expm1(-h) * run.denoise(halfway, middle)
        if sigma_next > 0:
            x = x + noise(sigma, sigma_next) * sigma_up
    return x


def sample_ddpm(run: Run, x: Tensor) -> Tensor:
    """DDPM's own steps (Ho et al. 2020, arXiv:2006.11239, alg. 2), on x / sqrt(1 + sigma^2)."""
    noise = run.step_noise(x)
    for i, (sigma, sigma_next) in enumerate(pairwise(run.sigmas)):
        denoised = run.denoise(x, sigma)
        run.on_step(i, denoised)
        alpha_bar, alpha_bar_next = 1 / (sigma**2 + 1), 1 / (sigma_next**2 + 1)
        alpha = alpha_bar / alpha_bar_next
        eps = slope(x, denoised, sigma)
        noisy, noisy_next = sigma**2 * alpha_bar, sigma_next**2 * alpha_bar_next  # 1 - alpha_bar without its rounding
        x = (x * math.sqrt(alpha_bar) - (1 - alpha) / math.sqrt(noisy) * eps) / math.sqrt(alpha)
        if sigma_next > 0:
            spread = math.sqrt(max(0.0, 1 - alpha) * noisy_next / noisy)
            x = (x + spread * noise(sigma, sigma_next)) / math.sqrt(alpha_bar_next)
    return x


def sample_lcm(run: Run, x: Tensor) -> Tensor:
    """Multistep consistency sampling (Luo et al. 2023, arXiv:2310.04378, alg. 3): each estimate is noised anew."""
    noise = run.step_noise(x)
    for i, (sigma, sigma_next) in enumerate(pairwise(run.sigmas)):
        x = run.denoise(x, sigma)
        run.on_step(i, x)
        if sigma_next > 0:
            x = x + noise(sigma, sigma_next) * sigma_next
    return x
