"""Samplers that use nothing but the current step."""

from __future__ import annotations

from itertools import pairwise

from torch import Tensor

from animdetail_trt.sampling.samplers.interface import Run


def sample_euler(run: Run, x: Tensor) -> Tensor:
    """Integrate dx/dsigma = (x - denoised) / sigma with Euler steps (Karras et al. 2022, alg. 2 without churn)."""
    for i, (sigma, sigma_next) in enumerate(pairwise(run.sigmas)):
        denoised = run.denoise(x, sigma)
        run.on_step(i, denoised)
        x = x + (x - denoised) / sigma * (sigma_next - sigma)
    return x
