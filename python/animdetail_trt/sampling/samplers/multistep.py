"""Samplers that use what earlier steps found."""

from __future__ import annotations

import math
from itertools import pairwise

from torch import Tensor

from animdetail_trt.sampling.samplers.interface import Run


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
