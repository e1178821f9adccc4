"""Arrays that come from outside, checked at the door: float32 tensors on the CPU from here on."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from animdetail_trt.errors import InputError


def float_tensor(array: Any, name: str) -> Tensor:
    """A torch or NumPy array as a float32 CPU tensor, of its own memory where that is possible.

    Raises InputError where it is no array of numbers, or holds NaN or infinity.
    """
    if isinstance(array, np.ndarray) and (not array.flags.writeable or min(array.strides, default=0) < 0):
        array = array.copy()  # torch borrows neither
    dtype = str(getattr(array, "dtype", "float"))
    if "float" not in dtype and "bool" not in dtype:
        raise InputError(f"{name} must be floats in 0..1, not {dtype}. Divide 8-bit values by 255")
    try:
        tensor = torch.as_tensor(array).detach().float().cpu()
    except (TypeError, ValueError, RuntimeError):
        raise InputError(f"{name} must be an array of numbers, not {type(array).__name__}") from None
    # The sum is NaN or infinite where an element is; it may also overflow, so only then every element is asked.
    if not torch.isfinite(tensor.sum()) and not torch.isfinite(tensor).all():
        raise InputError(f"{name} holds NaN or infinity{_where(tensor)}")
    return tensor


def _where(tensor: Tensor) -> str:
    if tensor.ndim < 4:
        return ""
    bad = [i for i, frame in enumerate(tensor) if not torch.isfinite(frame).all()]
    return f", first in frame {bad[0]} ({len(bad)} frames in all)"
