"""Paths over the frames of a clip: gaps filled, shakes taken out."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]


def fill_path(path: Floats) -> Floats:
    """Frames without a value (NaN) on the line between their neighbours; at the ends the nearest value."""
    frames, known = np.arange(len(path)), np.isfinite(path)
    filled: Floats = np.interp(frames, frames[known], path[known])
    return filled


def smooth_path(path: Floats, period: float) -> Floats:
    """The path p that minimises ``sum (p - path)^2 + k sum (second difference of p)^2`` (Whittaker 1923).

    Straight paths stay as they are up to their ends, and no frame lags. k is such that of a swing of ``period`` frames
    half remains; slower ones are followed, faster ones flattened.
    """
    from scipy import sparse
    from scipy.sparse.linalg import spsolve

    count = len(path)
    if count < 3:
        return path
    k = (2 * math.sin(math.pi / period)) ** -4
    bend = sparse.diags([1.0, -2.0, 1.0], [0, 1, 2], shape=(count - 2, count))
    smooth: Floats = spsolve((sparse.eye(count) + k * bend.T @ bend).tocsc(), path)
    return smooth
