"""Between 8-bit pictures and IMAGE floats."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor


def to_float(pictures: list[np.ndarray]) -> Tensor:
    """uint8 (h, w, c) pictures of one size -> float32 (f, h, w, c) in 0..1, value / 255. Empties ``pictures``.

    Each picture is let go as soon as it is copied, so that the peak is one clip in float and one in uint8.
    """
    frames = torch.empty((len(pictures), *pictures[0].shape), dtype=torch.float32)
    into = frames.numpy()
    for index in reversed(range(len(pictures))):
        into[index] = pictures.pop()
    return frames.div_(255)


def to_uint8(picture: Tensor) -> np.ndarray:
    """float (..., c) in 0..1 -> uint8, rounded half up: ``floor(255 x + 0.5)``, clipped."""
    return (picture.detach().cpu() * 255 + 0.5).clamp_(0, 255).to(torch.uint8).numpy()
