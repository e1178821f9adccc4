"""Solvers whose model calls serve twice: to correct the step that led there, and to predict the next one."""

from __future__ import annotations

import math
from collections.abc import Callable
from itertools import pairwise

import torch
from torch import Tensor

from animdetail_trt.sampling.samplers.exponential import exponential_step
from animdetail_trt.sampling.samplers.interface import Run
from animdetail_trt.sampling.samplers.sde import fresh

UNIPC_ORDER = 3
UNIPC_LAST_SIGMA = 0.001  # in place of 0, which has no logarithm
SA_PREDICTOR_ORDER, SA_CORRECTOR_ORDER = 3, 4
SA_NOISY_PART = 0.2, 0.8  # of the way from pure noise to none


def sample_uni_pc(run: Run, x: Tensor) -> Tensor:
    """UniPC with B(h) = h (Zhao et al. 2023, arXiv:2302.04867)."""
    return _uni_pc(run, x, lambda h: h)


def sample_uni_pc_bh2(run: Run, x: Tensor) -> Tensor:
    """UniPC with B(h) = e^h - 1 (Zhao et al. 2023, arXiv:2302.04867), on estimates of the clean latent: h < 0."""
    return _uni_pc(run, x, math.expm1)


def _uni_pc(run: Run, x: Tensor, b: Callable[[float], float]) -> Tensor:
    """B(h) shows only where a weight is not solved for but set to 1/2: two points to predict from, one to correct."""
    sigmas = [*run.sigmas[:-1], run.sigmas[-1] or UNIPC_LAST_SIGMA]
    steps = len(sigmas) - 1
    known = [run.denoise(x, sigmas[0])]  # the newest first
    run.on_step(0, known[0])
    if steps == 1:  # The reference takes no step then, and scales its x of variance 1 back by the other sigma.
        return x * math.sqrt((1 + sigmas[1] ** 2) / (1 + sigmas[0] ** 2))
    for i in range(1, steps + 1):
        order = min(i, UNIPC_ORDER, steps - 1, steps + 1 - i)
        estimates = known[:order]
        offsets = [math.log(sigmas[i - 1] / sigma) for sigma in sigmas[i - order : i][::-1]]
        h = math.log(sigmas[i - 1] / sigmas[i])
        first_order = exponential_step(x, estimates[:1], offsets[:1], h)
        if order == 2:
            predicted = first_order - b(-h) / 2 * (h / offsets[1]) * (estimates[1] - estimates[0])
        else:
            predicted = exponential_step(x, estimates, offsets, h)
        if i == steps:
            return predicted
        denoised = run.denoise(predicted, sigmas[i])
        run.on_step(i, denoised)
        if order == 1:
            x = first_order - b(-h) / 2 * (denoised - estimates[0])
        else:
            x = exponential_step(x, [*estimates, denoised], [*offsets, h], h)
        known = [denoised, *known[: UNIPC_ORDER - 1]]
    return x


def sample_sa_solver(run: Run, x: Tensor, *, pece: bool = False) -> Tensor:
    """Stochastic Adams solver (Xue et al. 2023, arXiv:2309.05019): an SDE in the middle of the schedule, with tau = 1,
    and an ODE at its ends. As in the reference the last latent that was corrected is the result.

    pece: evaluate the corrected latent too
    """
    noise = run.step_noise(x)
    noisy_from, noisy_to = map(run.percent_to_sigma, SA_NOISY_PART)
    sigmas, last = run.sigmas, len(run.sigmas) - 1
    levels = -torch.tensor(sigmas, dtype=torch.float32).log()
    known: list[Tensor] = []  # the newest last

    def adams_step(x: Tensor, start: int, newest: int, order: int, rate: float) -> Tensor:
        """From ``start`` one step on, through the estimates at ``newest`` and before; rate: 1 + tau^2"""
        weights = _sa_weights(levels[newest + 1 - order : newest + 1], levels[start], levels[start + 1], rate)
        x = (sigmas[start + 1] / sigmas[start]) ** rate * x
        for weight, estimate in zip(weights.tolist(), known[-order:], strict=True):
            x = x + weight * estimate
        return x

    predicted, rate = x, 1.0
    added: Tensor | float = 0.0
    for i, (sigma, sigma_next) in enumerate(pairwise(sigmas)):
        denoised = run.denoise(predicted, sigma)
        run.on_step(i, denoised)
        known = [*known[1 - SA_CORRECTOR_ORDER :], denoised]
        points = min(len(known), last - i) if sigmas[-1] == 0 else len(known)  # fewer towards the end, where it is 0
        if i == 0 or (sigma_next == 0 and not pece):
            x = predicted
        else:
            x = adams_step(x, i - 1, i, points, rate) + added
            if pece:
                denoised = known[-1] = run.denoise(x, sigma)
        if sigma_next == 0:
            return denoised
        noisy = noisy_from >= sigma_next >= noisy_to
        rate, added = (2.0, fresh(noise, sigma, sigma_next)) if noisy else (1.0, 0.0)
        points = min(SA_PREDICTOR_ORDER, len(known), last - 1 - i if sigmas[-1] == 0 else last)
        predicted = adams_step(x, i, i, points, rate) + added
    return x


def _sa_weights(levels: Tensor, start: Tensor, end: Tensor, rate: float) -> Tensor:
    """Weights of estimates at ``levels``: the integral over l from ``start`` to ``end`` of rate * e^(rate (l - end))
    times the polynomial through them. In float32 like the reference: with many steps the equations are so
    ill-conditioned that its rounding shows."""
    powers = torch.arange(len(levels), dtype=torch.float32)
    bounds = end**powers - start**powers * (-rate * (end - start)).exp()
    # Of l^p, by parts, p times: the terms are (-1)^k p! / (p - k)! / rate^k l^(p - k).
    times = powers[:, None] - powers
    factorials = (powers + 1).lgamma()
    sizes = (factorials[:, None] - factorials - times * math.log(rate)).exp()
    moments = torch.where(times % 2 == 0, sizes, -sizes).tril() @ bounds
    weights: Tensor = torch.linalg.solve(torch.vander(levels, len(levels), increasing=True).T, moments)
    return weights
