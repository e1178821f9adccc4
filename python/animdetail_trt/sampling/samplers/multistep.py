"""Samplers that use what earlier steps found."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Sequence
from itertools import pairwise

import numpy as np
from torch import Tensor

from animdetail_trt.sampling.samplers.interface import Run
from animdetail_trt.sampling.samplers.single_step import slope

DEIS_ORDER = 3
DEIS_POINTS = 10_000
# The VP process whose time DEIS interpolates in: sigma from 0.002 at t = 0.001 to 80 at t = 1.
_DEIS_FIRST, _DEIS_SPAN = math.log(0.002**2 + 1) / 0.001, math.log(80**2 + 1)
_DEIS_BETA_RISE = 2 * (_DEIS_SPAN - _DEIS_FIRST) / (1 - 0.001)
_DEIS_BETA = _DEIS_SPAN - _DEIS_BETA_RISE / 2
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
    polynomial through them. It is evaluated in float32 like the reference's: where long steps follow upon short ones,
    the weights are thousands of times larger than their sum, and its rounding shows."""
    from scipy.integrate import quad

    known = np.array(sigmas, dtype=np.float32)

    def weight(k: int) -> float:
        others = np.delete(known, k)
        integral = quad(
            lambda sigma: np.prod((np.float32(sigma) - others) / (known[k] - others)),
            known[0],
            np.float32(sigma_next),
            epsrel=1e-4,
            full_output=True,  # says in the result what it would warn of
        )[0]
        return float(integral)

    return [weight(k) for k in range(len(known))]


def sample_lms(run: Run, x: Tensor) -> Tensor:
    """Linear multistep: Adams-Bashforth of order four over the sigmas as they are (after k-diffusion)."""
    return _adams(run, x, adams_bashforth)


def sample_ipndm_v(run: Run, x: Tensor) -> Tensor:
    """Improved PNDM for unequal steps (Zhang & Chen 2023, arXiv:2204.13902, app. H.2)."""
    return _adams(run, x, _ipndm_weights)


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

    return _adams(run, x, weights)


def sample_deis(run: Run, x: Tensor) -> Tensor:
    """DEIS of order three, tAB (Zhang & Chen 2023, arXiv:2204.13902, sec. 3): Adams-Bashforth for a polynomial in the
    time of a VP process instead of sigma."""
    return _adams(run, x, _deis_weights, order=DEIS_ORDER)


def _deis_weights(sigmas: Sequence[float], sigma_next: float) -> list[float]:
    """As ``adams_bashforth``, by a sum over points, since the integral has no closed form."""
    if len(sigmas) == 1:
        return [sigma_next - sigmas[0]]
    *known, end = (_vp_time(sigma) for sigma in (*sigmas, sigma_next))
    times = np.linspace(known[0], end, DEIS_POINTS)
    signal = np.exp(-_DEIS_BETA_RISE / 2 * times**2 - _DEIS_BETA * times)
    dsigma = (
        (_DEIS_BETA_RISE * times + _DEIS_BETA) / 2 / np.sqrt(signal * (1 - signal)) * (end - known[0]) / DEIS_POINTS
    )
    weights = []
    for time in known:
        others = [other for other in known if other != time]
        basis = math.prod((times - other) / (time - other) for other in others)
        weights.append(float(np.sum(dsigma * basis)))
    return weights


def _vp_time(sigma: float) -> float:
    return (math.sqrt(_DEIS_BETA**2 + 2 * _DEIS_BETA_RISE * math.log(sigma**2 + 1)) - _DEIS_BETA) / _DEIS_BETA_RISE


def _adams(run: Run, x: Tensor, weights_of: Callable[[Sequence[float], float], list[float]], order: int = 4) -> Tensor:
    """weights_of: (up to ``order`` last sigmas, newest first; the next one) -> weights of their slopes"""
    slopes: deque[Tensor] = deque(maxlen=order)
    for i, (sigma, sigma_next) in enumerate(pairwise(run.sigmas)):
        denoised = run.denoise(x, sigma)
        run.on_step(i, denoised)
        if sigma_next == 0:
            return denoised
        slopes.appendleft(slope(x, denoised, sigma))
        known = run.sigmas[i + 1 - len(slopes) : i + 1][::-1]
        x = x + sum(weight * d for weight, d in zip(weights_of(known, sigma_next), slopes, strict=True))
    return x


def sample_gradient_estimation(run: Run, x: Tensor, *, cfg_pp: bool = False, gamma: float = 2.0) -> Tensor:
    """Euler along the slope and its change since the last step (Permenter & Yuan 2023, arXiv:2306.04848).

    cfg_pp: as ``Run.estimates`` has it
    """
    previous: Tensor | None = None
    for i, (sigma, sigma_next) in enumerate(pairwise(run.sigmas)):
        denoised, centre = run.estimates(x, sigma, cfg_pp=cfg_pp)
        run.on_step(i, denoised)
        if sigma_next == 0:
            return denoised
        d = slope(x, centre, sigma)
        x = denoised + d * sigma_next
        if previous is not None:
            x = x + (gamma - 1) * (d - previous) * (sigma_next - sigma)
        previous = d
    return x
