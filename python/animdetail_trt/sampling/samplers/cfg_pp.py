"""CFG++ (Chung et al. 2024, arXiv:2406.08070): to the guided estimate, along the noise of the unconditional one."""

from __future__ import annotations

import math
from itertools import pairwise

from torch import Tensor

from animdetail_trt.sampling.samplers.ancestral import ancestral_step
from animdetail_trt.sampling.samplers.interface import Run
from animdetail_trt.sampling.samplers.single_step import geometric_mean, slope


def sample_euler_cfg_pp(run: Run, x: Tensor) -> Tensor:
    """``euler`` as CFG++ (Chung et al. 2024, arXiv:2406.08070, alg. 1, in k-diffusion's scale)."""
    for i, (sigma, sigma_next) in enumerate(pairwise(run.sigmas)):
        denoised, uncond = run.estimates(x, sigma, cfg_pp=True)
        run.on_step(i, denoised)
        x = denoised + slope(x, uncond, sigma) * sigma_next
    return x


def sample_euler_ancestral_cfg_pp(run: Run, x: Tensor) -> Tensor:
    """``euler_ancestral`` as CFG++ (Chung et al. 2024): to the estimate, along the unconditional one's noise."""
    noise = run.step_noise(x)
    for i, (sigma, sigma_next) in enumerate(pairwise(run.sigmas)):
        denoised, uncond = run.estimates(x, sigma, cfg_pp=True)
        run.on_step(i, denoised)
        if sigma_next == 0:
            return denoised
        sigma_down, sigma_up = ancestral_step(sigma, sigma_next)
        x = denoised + slope(x, uncond, sigma) * sigma_down + noise(sigma, sigma_next) * sigma_up
    return x


def sample_dpmpp_2s_ancestral_cfg_pp(run: Run, x: Tensor) -> Tensor:
    """``dpmpp_2s_ancestral`` as CFG++ (Chung et al. 2024): the difference that guidance makes is added to x before each
    of the two stages."""
    noise = run.step_noise(x)
    for i, (sigma, sigma_next) in enumerate(pairwise(run.sigmas)):
        denoised, uncond = run.estimates(x, sigma, cfg_pp=True)
        run.on_step(i, denoised)
        sigma_down, sigma_up = ancestral_step(sigma, sigma_next)
        if sigma_down == 0:
            x = denoised
        else:
            h = math.log(sigma / sigma_down)
            middle = geometric_mean(sigma, sigma_down)
            halfway = middle / sigma * (x + (denoised - uncond)) - math.expm1(-h / 2) * denoised
            denoised_halfway, uncond = run.estimates(halfway, middle, cfg_pp=True)
            x = sigma_down / sigma * (x + (denoised - uncond)) - math.expm1(-h) * denoised_halfway
        if sigma_next > 0:
            x = x + noise(sigma, sigma_next) * sigma_up
    return x


def sample_dpmpp_2m_cfg_pp(run: Run, x: Tensor) -> Tensor:
    """``dpmpp_2m`` as CFG++ (Chung et al. 2024): to the estimate, along the unconditional one's noise."""
    previous: Tensor | None = None
    previous_h = 0.0
    for i, (sigma, sigma_next) in enumerate(pairwise(run.sigmas)):
        denoised, uncond = run.estimates(x, sigma, cfg_pp=True)
        run.on_step(i, denoised)
        if sigma_next == 0:
            return denoised
        h = math.log(sigma / sigma_next)
        x = denoised + slope(x, uncond, sigma) * sigma_next
        if previous is not None:
            x = x - math.expm1(-h) * h / (2 * previous_h) * (denoised - previous)
        previous, previous_h = uncond, h
    return x
