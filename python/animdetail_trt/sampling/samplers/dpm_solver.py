"""DPM-Solver (Lu et al. 2022, arXiv:2206.00927): steps of order one to three between levels of their own choice."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from animdetail_trt.errors import SamplingError
from animdetail_trt.sampling.samplers.exponential import phi
from animdetail_trt.sampling.samplers.interface import Run
from animdetail_trt.sampling.samplers.single_step import between, slope

RELATIVE_TOLERANCE, ABSOLUTE_TOLERANCE = 0.05, 0.0078
FIRST_H = 0.05
ACCEPTED_FACTOR = 0.81
CLOSE = 1e-5  # what is left of the way, in log sigma, when an adaptive run is done


class _Step:
    """The step in lambda = -log sigma that starts at (x, sigma), where the slope is d."""

    def __init__(self, run: Run, x: Tensor, sigma: float, d: Tensor) -> None:
        self.run, self.x, self.sigma, self.d = run, x, sigma, d

    def first(self, sigma_next: float) -> Tensor:
        return self.x + (sigma_next - self.sigma) * self.d

    def second(self, sigma_next: float, r: float, d_r: Tensor) -> Tensor:
        """d_r: the slope at part r of the way (alg. 4)"""
        return self.first(sigma_next) + (sigma_next - self.sigma) / (2 * r) * (d_r - self.d)

    def third(self, sigma_next: float, d_third: Tensor) -> Tensor:
        """d_third: the slope at a third of the way (alg. 5)"""
        two_thirds = between(self.sigma, sigma_next, 2 / 3)
        ahead = self._bent(two_thirds, d_third, 1 / 3, 2 / 3)
        d_two_thirds = slope(ahead, self.run.denoise(ahead, two_thirds), two_thirds)
        return self._bent(sigma_next, d_two_thirds, 2 / 3, 1.0)

    def slope_at(self, sigma_next: float, r: float) -> Tensor:
        middle = between(self.sigma, sigma_next, r)
        halfway = self.first(middle)
        return slope(halfway, self.run.denoise(halfway, middle), middle)

    def _bent(self, sigma: float, d_r: Tensor, r: float, part: float) -> Tensor:
        """At ``sigma``, ``part`` of the step, along slopes that change in proportion from d to d_r at r."""
        h = math.log(self.sigma / sigma)
        return self.first(sigma) - sigma * part / r * h * phi(2, h) * (d_r - self.d)


def _bounds(run: Run) -> tuple[float, float]:
    """From the first sigma to the last above 0: log sigma has no 0."""
    return run.sigmas[0], run.sigmas[-1] if run.sigmas[-1] > 0 else run.sigmas[-2]


def sample_dpm_fast(run: Run, x: Tensor) -> Tensor:
    """DPM-Solver-fast (sec. 3.4): as many model calls as the schedule has steps, three a step, at equal steps in log
    sigma from its first sigma to its last above 0. What lies between them is not asked."""
    high, low = _bounds(run)
    calls = len(run.sigmas) - 1
    orders = [3] * (calls // 3 - 1) + [2, 1] if calls % 3 == 0 else [3] * (calls // 3) + [calls % 3]
    levels = [between(high, low, i / len(orders)) for i in range(len(orders) + 1)]
    for i, (order, sigma, sigma_next) in enumerate(zip(orders, levels[:-1], levels[1:], strict=True)):
        denoised = run.denoise(x, sigma)
        run.on_step(i, denoised)
        step = _Step(run, x, sigma, slope(x, denoised, sigma))
        if order == 1:
            x = step.first(sigma_next)
        elif order == 2:
            x = step.second(sigma_next, 1 / 2, step.slope_at(sigma_next, 1 / 2))
        else:
            x = step.third(sigma_next, step.slope_at(sigma_next, 1 / 3))
    return x


def sample_dpm_adaptive(run: Run, x: Tensor) -> Tensor:
    """DPM-Solver-23 with a step size that follows the error (app. C): of the schedule only the first sigma and the last
    above 0 are asked. Where they are one, as with a single step to 0, x stays as it is."""
    high, low = _bounds(run)
    sigma, h, x_low = high, FIRST_H, x
    i = 0
    while math.log(sigma / low) > CLOSE:
        sigma_next = max(low, sigma * math.exp(-h))
        denoised = run.denoise(x, sigma)
        step = _Step(run, x, sigma, slope(x, denoised, sigma))
        d_third = step.slope_at(sigma_next, 1 / 3)
        second, third = step.second(sigma_next, 1 / 3, d_third), step.third(sigma_next, d_third)
        allowed = (RELATIVE_TOLERANCE * torch.maximum(second.abs(), x_low.abs())).clamp(min=ABSOLUTE_TOLERANCE)
        error = float(((second - third) / allowed).square().mean().sqrt())
        if not math.isfinite(error):
            raise SamplingError(f"dpm_adaptive met NaN or infinity at sigma {sigma:g}. Load the models in float32")
        run.on_step(i, denoised)
        factor = 1 + math.atan((error + 1e-8) ** (-1 / 3) - 1)
        h *= factor
        if factor >= ACCEPTED_FACTOR:
            x_low, x, sigma = second, third, sigma_next
        i += 1
    return x
