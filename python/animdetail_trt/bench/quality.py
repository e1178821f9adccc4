"""How close one output is to another. benchmarks/README.md says what the figures mean."""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

BLACK = 1 / 255
"""A frame whose brightest value is no more than this is black."""
LEAST_PSNR_DB = {"float32": 40.0, "float16": 25.0, "bfloat16": 15.0}
"""Below, a type's rounding does not explain the difference: noise of the truth's range has about 8."""


@dataclass(frozen=True)
class Quality:
    """Against float32 torch, in parts of the value range (``range``: 1 for pictures).

    psnr_db: None where both are equal; ssim: -1..1
    max_difference: the largest
    flicker, flicker_added: mean change from one frame to the next, of the output and of its difference, in 255ths; None
        for a single frame
    """

    range: float
    psnr_db: float | None
    ssim: float
    max_difference: float
    flicker: float | None
    flicker_added: float | None


def compare(output: Tensor, truth: Tensor, value_range: float | None = None) -> Quality:
    """Of (f, c, h, w) or (f, h, w, c) alike, but for SSIM, whose windows lie in the last two axes of (f, c, h, w).

    value_range: by default that of ``truth``: its largest value less its smallest
    """
    given = float(truth.max() - truth.min()) or 1.0 if value_range is None else value_range
    error = (output - truth) / given
    mean_square = float(error.double().square().mean())
    return Quality(
        range=given,
        psnr_db=None if mean_square == 0 else -10 * math.log10(mean_square),
        ssim=ssim(output, truth, given),
        max_difference=float(error.abs().max()),
        flicker=flicker(output / given),
        flicker_added=flicker(error),
    )


def flicker(frames: Tensor) -> float | None:
    """The mean absolute change between neighbouring frames, in 255ths, as VBench measures temporal flickering (Huang et
    al. 2024, arXiv:2311.17982, which then tells 1 less it over 255)."""
    if len(frames) < 2:
        return None
    changes = [float((b - a).abs().double().mean()) for a, b in pairwise(frames)]
    return 255 * sum(changes) / len(changes)


def ssim(output: Tensor, truth: Tensor, value_range: float) -> float:
    """The mean structural similarity (Wang et al. 2004, doi:10.1109/TIP.2003.819861) of (f, c, h, w): Gaussian windows
    of sigma 1.5 and 11 pixels, K1 0.01, K2 0.03. As scikit-image's with gaussian_weights and without
    use_sample_covariance, but for its cut edges."""
    from scipy.ndimage import gaussian_filter

    def mean(values: NDArray[np.float64]) -> NDArray[np.float64]:
        blurred: NDArray[np.float64] = gaussian_filter(values, 1.5, radius=5, axes=(-2, -1))
        return blurred

    c1, c2 = (0.01 * value_range) ** 2, (0.03 * value_range) ** 2
    total = 0.0
    for x, y in zip(output.double().numpy(), truth.double().numpy(), strict=True):
        mx, my = mean(x), mean(y)
        vx, vy, covariance = mean(x * x) - mx * mx, mean(y * y) - my * my, mean(x * y) - mx * my
        total += float(
            np.mean((2 * mx * my + c1) * (2 * covariance + c2) / ((mx * mx + my * my + c1) * (vx + vy + c2)))
        )
    return total / len(truth)


def fault_of(output: Tensor, truth: Tensor | None, *, pictures: bool) -> str | None:
    """Why an output (f, ...) cannot be right, whatever its speed; None where nothing is wrong with it.

    A picture is black where the truth is not; without a truth black frames are a fault in any case. What is no picture
    (eps, latents) is never all 0.
    """
    for index, frame in enumerate(output):
        if not torch.isfinite(frame).all():
            return f"frame {index} holds NaN or infinity"
        limit = BLACK if pictures else 0.0
        if float(frame.max() if pictures else frame.abs().max()) <= limit:
            known = truth is not None and float(truth[index].max() if pictures else truth[index].abs().max()) <= limit
            if not known:
                return f"frame {index} is {'black' if pictures else 'all 0'}"
    return None


def far_from_truth(quality: Quality, dtype: str) -> str | None:
    """Why an output of models in ``dtype`` cannot be right; None where it can."""
    least = LEAST_PSNR_DB[dtype]
    if quality.psnr_db is None or quality.psnr_db >= least:
        return None
    return f"{quality.psnr_db:.0f} dB from float32 torch, which {dtype} does not explain: it keeps {least:.0f} or more"
