"""Arrays that come from outside, checked at the door: float32 tensors on the CPU from here on."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from animdetail_trt.errors import InputError

Span = tuple[float, float]
"""The smallest and the largest value."""

OVERSHOOT: Span = (-0.5, 2.0)
"""Values of 0..1 lie between these however they were sharpened or brightened, and are then taken as they are. What was
meant as 8 bits, labels or -1..1 does not: frames of -1..1 have a pixel darker than a quarter."""


def float_tensor(array: Any, name: str, between: Span = OVERSHOOT) -> Tensor:
    """A torch or NumPy array of floats as a float32 CPU tensor, of its own memory where that is possible.

    Raises InputError where it is no array of floats or bools, holds NaN or infinity, or a value not ``between`` two.
    """
    dtype = str(getattr(array, "dtype", "float"))
    if "float" not in dtype and "bool" not in dtype:
        raise InputError(f"{name} must be floats in 0..1, not {dtype}. Divide 8-bit values by 255")
    tensor = _tensor(array, name)
    low, high = _span(tensor)
    if not np.isfinite([low, high]).all():
        raise InputError(f"{name} holds NaN or infinity{_where(tensor)}")
    if not (between[0] < low and high < between[1]):
        remedy = "Divide 8-bit values by 255" if high >= OVERSHOOT[1] else "Clip them, or bring -1..1 to 0..1"
        raise InputError(f"{name} must be floats in 0..1, and spans {low:g}..{high:g}. {remedy}")
    return tensor


def mask_tensor(array: Any, name: str, between: Span = OVERSHOOT) -> Tensor:
    """``float_tensor`` of a mask, which may also be integers: 0 and 1, or 0..255, which are divided by 255.

    Which of the two, the largest value says: one of at most 1 is taken as it is.
    """
    if not holds_integers(array):
        return float_tensor(array, name, between)
    tensor = _tensor(array, name)
    low, high = _span(tensor)
    if low < 0 or high > 255:
        raise InputError(f"{name} of {array.dtype} spans {low:g}..{high:g}. Give integers in 0..255, or floats in 0..1")
    return tensor / 255 if high > 1 else tensor


def holds_integers(array: Any) -> bool:
    return "int" in str(getattr(array, "dtype", ""))


def _tensor(array: Any, name: str) -> Tensor:
    if isinstance(array, np.ndarray) and (not array.flags.writeable or min(array.strides, default=0) < 0):
        array = array.copy()  # torch borrows neither
    try:
        return torch.as_tensor(array).detach().float().cpu()
    except (TypeError, ValueError, RuntimeError):
        raise InputError(f"{name} must be an array of numbers, not {type(array).__name__}") from None


def _span(tensor: Tensor) -> Span:
    """NaN where an element is."""
    if not tensor.numel():
        return 0.0, 0.0
    # With the axes in the order of memory, as ComfyUI's frames may not have them: otherwise it takes 20 times longer.
    axes = sorted(range(tensor.ndim), key=tensor.stride, reverse=True)
    low, high = torch.aminmax(tensor.permute(axes))
    return float(low), float(high)


def _where(tensor: Tensor) -> str:
    if tensor.ndim < 4:
        return ""
    bad = [i for i, frame in enumerate(tensor) if not torch.isfinite(frame).all()]
    return f", first in frame {bad[0]} ({len(bad)} frames in all)"
