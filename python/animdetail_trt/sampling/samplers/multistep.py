"""Samplers that use what earlier steps found."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Sequence
from itertools import pairwise

import numpy as np
from numpy.polynomial.polynomial import polyfromroots
from torch import Tensor

from animdetail_trt.sampling.samplers.interface import Run
from animdetail_trt.sampling.samplers.single_step import slope

ADAMS_ORDER = 4
# Adams-Bashforth coefficients for equal steps, the newest slope first, for 1 to 4 slopes.
_EQUAL_STEPS = ((1,), (3 / 2, -1 / 2), (23 / 12, -16 / 12, 5 / 12), (55 / 24, -59 / 24, 37 / 24, -9 / 24))


def sample_dpmpp_2m(run: Run, x: Tensor) -> Tensor:
    """DPM-Solver++(2M) (Lu et al. 2022, arXiv:2211.01095, alg. 2), in lambda = -log sigma."""
    previous: Tensor | None = None
    previous_h = 0.0
    for i, (sigma, sigma_next) in enumerate(pairwise(run.sigmas)):
        denoised = run.denoise(x, sigma)
        run.on_step(i, denoised)
        if sigma_next == 0:
            x = denoised
            break
        h = math.log(sigma / sigma_next)
        estimate = denoised
        if previous is not None:
            r = previous_h / h
            estimate = (1 + 1 / (2 * r)) * denoised - 1 / (2 * r) * previous
        x = sigma_next / sigma * x - math.expm1(-h) * estimate
        previous, previous_h = denoised, h
    return x


def adams_bashforth(sigmas: Sequence[float], sigma_next: float) -> list[float]:
    """Weights of the slopes at ``sigmas``, newest first: the integral from the newest sigma to ``sigma_next`` of the
    polynomial through them."""
    weights = []
    for sigma in sigmas:
        others = [other for other in sigmas if other != sigma]
        basis = np.polynomial.Polynomial(polyfromroots(others)) / math.prod(sigma - other for other in others)
        integral = basis.integ()
        weights.append(float(integral(sigma_next) - integral(sigmas[0])))
    return weights


def sample_lms(run: Run, x: Tensor) -> Tensor:
    """Linear multistep: Adams-Bashforth of order four over the sigmas as they are (after k-diffusion)."""
    return _adams(run, x, adams_bashforth, jump=False)


def sample_ipndm_v(run: Run, x: Tensor) -> Tensor:
    """Improved PNDM for unequal steps (Zhang & Chen 2023, arXiv:2204.13902, app. H.2)."""
    return _adams(run, x, _ipndm_weights, jump=True)


def _ipndm_weights(sigmas: Sequence[float], sigma_next: float) -> list[float]:
    """As ``adams_bashforth``, but with the corrections of third and fourth order as they were published."""
    h, *past = [b - a for a, b in pairwise([*sigmas[::-1], sigma_next])][::-1]
    weights = [1.0, 0.0, 0.0, 0.0]
    if past:
        h1 = past[0]
        weights[:2] = 1 + h / h1 / 2, -h / h1 / 2
    if len(past) >= 2:
        h2 = past[1]
        third = (1 - h / (3 * (h + h1)) * (h * (h + h1)) / (h1 * (h1 + h2))) / 2
        for k, part in enumerate((1, -(1 + h1 / h2), h1 / h2)):
            weights[k] += part * third
    if len(past) >= 3:
        h3 = past[2]
        fourth = (1 - h / (3 * (h + h1))) / 2 + (1 - h / (2 * (h + h1))) * h / (6 * (h + h1 + h2))
        fourth *= h * (h + h1) * (h + h1 + h2) / (h1 * (h1 + h2) * (h1 + h2 + h3))
        ratio = h1 * (h1 + h2) / (h2 * (h2 + h3))
        for k, part in enumerate((1, -(1 + h1 / h2 + ratio), h1 / h2 + ratio * (1 + h2 / h3), -ratio * h1 / h2)):
            weights[k] += part * fourth
    return [h * weight for weight in weights[: len(sigmas)]]


def sample_ipndm(run: Run, x: Tensor) -> Tensor:
    """Improved PNDM (Zhang & Chen 2023, arXiv:2204.13902): Adams-Bashforth as if all steps were equal."""

    def weights(sigmas: Sequence[float], sigma_next: float) -> list[float]:
        return [(sigma_next - sigmas[0]) * weight for weight in _EQUAL_STEPS[len(sigmas) - 1]]

    return _adams(run, x, weights, jump=True)


def _adams(run: Run, x: Tensor, weights_of: Callable[[Sequence[float], float], list[float]], *, jump: bool) -> Tensor:
    """weights_of: (the last sigmas, newest first; the next one) -> weights of their slopes
    jump: a step to 0 lands on the denoised latent; else it is a step like the others"""
    slopes: deque[Tensor] = deque(maxlen=ADAMS_ORDER)
    for i, (sigma, sigma_next) in enumerate(pairwise(run.sigmas)):
        denoised = run.denoise(x, sigma)
        run.on_step(i, denoised)
        slopes.appendleft(slope(x, denoised, sigma))
        if sigma_next == 0 and jump:
            return denoised
        known = run.sigmas[i + 1 - len(slopes) : i + 1][::-1]
        for weight, d in zip(weights_of(known, sigma_next), slopes, strict=True):
            x = x + weight * d
    return x


def sample_gradient_estimation(run: Run, x: Tensor, gamma: float = 2.0) -> Tensor:
    """Euler along the slope and its change since the last step (Permenter & Yuan 2023, arXiv:2306.04848)."""
    previous: Tensor | None = None
    for i, (sigma, sigma_next) in enumerate(pairwise(run.sigmas)):
        denoised = run.denoise(x, sigma)
        run.on_step(i, denoised)
        d = slope(x, denoised, sigma)
        if sigma_next == 0:
            return denoised
        ahead = d if previous is None else gamma * d + (1 - gamma) * previous
        x = x + ahead * (sigma_next - sigma)
        previous = d
    return x
