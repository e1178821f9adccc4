"""Samplers of the reverse-time SDE: each step forgets some of the noise and draws as much anew.

With as much noise as the forward SDE has (eta = 1), a step from sigma to sigma_next keeps (sigma_next / sigma)^2 of x.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from torch import Tensor

from animdetail_trt.sampling.noise import NoiseSampler
from animdetail_trt.sampling.samplers.ancestral import ancestral_step
from animdetail_trt.sampling.samplers.exponential import phi
from animdetail_trt.sampling.samplers.interface import Run
from animdetail_trt.sampling.samplers.single_step import between, geometric_mean

ER_SDE_POINTS = 200


def towards(x: Tensor, denoised: Tensor, sigma: float, sigma_next: float) -> Tensor:
    """The mean of the step for an estimate that stands still."""
    kept = (sigma_next / sigma) ** 2
    return kept * x + (1 - kept) * denoised


def fresh(noise: NoiseSampler, sigma: float, sigma_next: float) -> Tensor:
    """The noise of the step."""
    return ancestral_step(sigma, sigma_next)[1] * noise(sigma, sigma_next)


def sample_dpmpp_sde(run: Run, x: Tensor, *, on_cpu: bool = True) -> Tensor:
    """DPM-Solver++ as an SDE, single step (Lu et al. 2022, arXiv:2211.01095; after k-diffusion): the estimate of the
    step's middle takes the whole step."""
    noise = run.whole_path(x, on_cpu=on_cpu)
    for i, (sigma, sigma_next) in enumerate(pairwise(run.sigmas)):
        denoised = run.denoise(x, sigma)
        run.on_step(i, denoised)
        if sigma_next == 0:
            return denoised
        middle = log_middle(sigma, sigma_next)
        halfway = towards(x, denoised, sigma, middle) + fresh(noise, sigma, middle)
        denoised = run.denoise(halfway, middle)
        x = towards(x, denoised, sigma, sigma_next) + fresh(noise, sigma, sigma_next)
    return x


def log_middle(sigma: float, sigma_next: float) -> float:
    """Their geometric mean, in float32 at each operation like the reference: the Brownian path is asked at it."""
    near, far = (-torch.tensor(level, dtype=torch.float32).log() for level in (sigma, sigma_next))
    return float((-(near + 0.5 * (far - near))).exp())


def sample_dpmpp_2m_sde(run: Run, x: Tensor, *, on_cpu: bool = True) -> Tensor:
    """DPM-Solver++(2M) as an SDE (Lu et al. 2022, arXiv:2211.01095, eq. 16; after k-diffusion)."""
    return _dpmpp_2m_sde(run, x, run.whole_path(x, on_cpu=on_cpu), lambda h: -math.expm1(-h) / 2)


def sample_dpmpp_2m_sde_heun(run: Run, x: Tensor, *, on_cpu: bool = True) -> Tensor:
    """As ``dpmpp_2m_sde``, the line through the last two estimates integrated exactly. The reference gives it a
    Brownian path over no more than the run's own sigmas."""
    return _dpmpp_2m_sde(run, x, run.own_path(x, on_cpu=on_cpu), lambda h: h * phi(2, -h))


def _dpmpp_2m_sde(run: Run, x: Tensor, noise: NoiseSampler, weight: Callable[[float], float]) -> Tensor:
    """weight: of the change of the estimate over a step, given twice the step's length in log sigma"""
    previous: Tensor | None = None
    previous_h = 0.0
    for i, (sigma, sigma_next) in enumerate(pairwise(run.sigmas)):
        denoised = run.denoise(x, sigma)
        run.on_step(i, denoised)
        if sigma_next == 0:
            return denoised
        h = math.log(sigma / sigma_next)
        x = towards(x, denoised, sigma, sigma_next) + fresh(noise, sigma, sigma_next)
        if previous is not None:
            x = x + weight(2 * h) * (h / previous_h) * (denoised - previous)
        previous, previous_h = denoised, h
    return x


def sample_dpmpp_3m_sde(run: Run, x: Tensor, *, on_cpu: bool = True) -> Tensor:
    """DPM-Solver++(3M) as an SDE (after k-diffusion): the parabola through the last three estimates, whose square term
    has half the weight that its integral would give it."""
    noise = run.whole_path(x, on_cpu=on_cpu)
    estimates: list[Tensor] = []  # the newest first, as are the steps between them
    steps: list[float] = []
    for i, (sigma, sigma_next) in enumerate(pairwise(run.sigmas)):
        denoised = run.denoise(x, sigma)
        run.on_step(i, denoised)
        if sigma_next == 0:
            return denoised
        h = math.log(sigma / sigma_next)
        estimates = [denoised, *estimates[:2]]
        x = towards(x, denoised, sigma, sigma_next) + fresh(noise, sigma, sigma_next)
        slopes = [(new - old) / (step / h) for (new, old), step in zip(pairwise(estimates), steps, strict=True)]
        if len(slopes) == 2:
            r0, r1 = steps[0] / h, steps[1] / h
            bend = (slopes[0] - slopes[1]) / (r0 + r1)
            x = x + 2 * h * (phi(2, -2 * h) * (slopes[0] + r0 * bend) + phi(3, -2 * h) * bend)
        elif slopes:
            x = x + 2 * h * phi(2, -2 * h) * slopes[0]
        steps = [h, *steps[:1]]
    return x


def sample_seeds_2(run: Run, x: Tensor) -> Tensor:
    """SEEDS-2 (Gonzalez et al. 2023, arXiv:2305.14267): as ``dpmpp_sde``, both stages on one path of fresh noise."""
    noise = run.step_noise(x)
    for i, (sigma, sigma_next) in enumerate(pairwise(run.sigmas)):
        denoised = run.denoise(x, sigma)
        run.on_step(i, denoised)
        if sigma_next == 0:
            return denoised
        middle = geometric_mean(sigma, sigma_next)
        drawn = fresh(noise, sigma, middle)
        denoised = run.denoise(towards(x, denoised, sigma, middle) + drawn, middle)
        drawn = _carried(drawn, middle, sigma_next) + fresh(noise, middle, sigma_next)
        x = towards(x, denoised, sigma, sigma_next) + drawn
    return x


def sample_seeds_3(run: Run, x: Tensor) -> Tensor:
    """SEEDS-3 (Gonzalez et al. 2023, arXiv:2305.14267): stages at one and two thirds of the step in log sigma."""
    noise = run.step_noise(x)
    for i, (sigma, sigma_next) in enumerate(pairwise(run.sigmas)):
        denoised = run.denoise(x, sigma)
        run.on_step(i, denoised)
        if sigma_next == 0:
            return denoised
        third, two_thirds = between(sigma, sigma_next, 1 / 3), between(sigma, sigma_next, 2 / 3)
        h = 2 * math.log(sigma / sigma_next)
        drawn = fresh(noise, sigma, third)
        change = run.denoise(towards(x, denoised, sigma, third) + drawn, third) - denoised
        drawn = _carried(drawn, third, two_thirds) + fresh(noise, third, two_thirds)
        ahead = towards(x, denoised, sigma, two_thirds) + 2 * (2 / 3 * h * phi(2, -2 / 3 * h)) * change
        change = run.denoise(ahead + drawn, two_thirds) - denoised
        drawn = _carried(drawn, two_thirds, sigma_next) + fresh(noise, two_thirds, sigma_next)
        x = towards(x, denoised, sigma, sigma_next) + 3 / 2 * (h * phi(2, -h)) * change + drawn
    return x


def _carried(drawn: Tensor, sigma: float, sigma_next: float) -> Tensor:
    """Noise that was drawn earlier in a step, further on in it."""
    return (sigma_next / sigma) ** 2 * drawn


def sample_er_sde(run: Run, x: Tensor) -> Tensor:
    """Extended reverse-time SDE solver 3 (Cui et al. 2023, arXiv:2309.06169, alg. 3), with the noise scale of its
    authors' code: integrals by the left rectangle rule over 200 points."""
    noise = run.step_noise(x)
    previous: Tensor | None = None
    previous_rise: Tensor | None = None
    for i, (sigma, sigma_next) in enumerate(pairwise(run.sigmas)):
        denoised = run.denoise(x, sigma)
        run.on_step(i, denoised)
        if sigma_next == 0:
            return denoised
        kept = _noise_scale(sigma_next) / _noise_scale(sigma)
        x = kept * x + (1 - kept) * denoised
        if previous is not None:
            step = sigma_next - sigma
            at = sigma_next - np.arange(ER_SDE_POINTS) * (step / ER_SDE_POINTS)
            scale = -step / ER_SDE_POINTS * _noise_scale(sigma_next)
            rise = (denoised - previous) / (sigma - run.sigmas[i - 1])
            x = x + (step + scale * float(np.sum(1 / _noise_scale(at)))) * rise
            if previous_rise is not None:
                bend = (rise - previous_rise) / ((sigma - run.sigmas[i - 2]) / 2)
                x = x + (step**2 / 2 + scale * float(np.sum((at - sigma) / _noise_scale(at)))) * bend
            previous_rise = rise
        x = x + math.sqrt(max(0.0, sigma_next**2 - (sigma * kept) ** 2)) * noise(sigma, sigma_next)
        previous = denoised
    return x


def _noise_scale(sigma: Any) -> Any:
    """Of a float or an array of them."""
    return sigma * (np.exp(sigma**0.3) + 10)
