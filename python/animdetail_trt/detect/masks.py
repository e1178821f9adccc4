"""Masks over a crop_region, float32 (h, w) in 0..1: of a box, of the oval in it, of a silhouette."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from animdetail_trt.detect.boxes import Detection, whole_pixels
from animdetail_trt.segs import CropRegion

MaskShape = Literal["oval", "box", "silhouette"]

_SOFT_EDGE = 0.15
"""Part of an oval's radius over which its mask falls from 1 to 0."""


def region_mask(bbox: Sequence[float], crop_region: CropRegion, shape: Literal["oval", "box"]) -> Tensor:
    """``bbox`` itself, or the oval in it with a soft edge."""
    left, top, right, bottom = crop_region
    x1, y1, x2, y2 = bbox
    across = (torch.arange(left, right) + 0.5 - (x1 + x2) / 2) / ((x2 - x1) / 2)  # -1..1 inside the bbox
    down = (torch.arange(top, bottom) + 0.5 - (y1 + y2) / 2) / ((y2 - y1) / 2)
    if shape == "box":
        return ((down.abs() <= 1)[:, None] & (across.abs() <= 1)[None, :]).float()
    radius = (down[:, None] ** 2 + across[None, :] ** 2).sqrt()
    return _smoothstep(((1 - radius) / _SOFT_EDGE).clamp(0, 1)).float()


def draw_silhouette(seen: Detection, moved: tuple[int, int], crop_region: CropRegion) -> Tensor:
    """Bools (h, w) over ``crop_region``: the silhouette, moved by (x, y) pixels from where it was seen."""
    assert seen.silhouette is not None
    left, top, _, _ = whole_pixels(seen.bbox)
    x, y = left + moved[0] - crop_region[0], top + moved[1] - crop_region[1]
    height, width = seen.silhouette.shape
    drawn = torch.zeros(region_size(crop_region), dtype=torch.bool)
    part = drawn[max(y, 0) : max(y + height, 0), max(x, 0) : max(x + width, 0)]
    over_top, over_left = max(-y, 0), max(-x, 0)
    part.copy_(torch.from_numpy(seen.silhouette[over_top:, over_left:][: part.shape[0], : part.shape[1]]))
    return drawn


def region_size(region: CropRegion) -> tuple[int, int]:
    """(h, w)"""
    return region[3] - region[1], region[2] - region[0]


def soft_mask(covered: Tensor, soft_px: float) -> Tensor:
    """1 where ``covered``, bools (h, w), and around it falling to 0 at a distance of ``soft_px`` pixels."""
    from scipy import ndimage

    mask = covered.float()
    rows, columns = (torch.nonzero(covered.any(axis)).flatten().tolist() for axis in (1, 0))
    if soft_px <= 0 or not rows:
        return mask
    reach = int(np.ceil(soft_px))
    near = (
        slice(max(rows[0] - reach, 0), rows[-1] + reach + 1),
        slice(max(columns[0] - reach, 0), columns[-1] + reach + 1),
    )
    distance = torch.from_numpy(ndimage.distance_transform_edt(~covered[near].numpy()))
    mask[near] = _smoothstep((1 - distance / soft_px).clamp(0, 1)).float()
    return mask


def _smoothstep(rising: Tensor) -> Tensor:
    """0..1 to 0..1, level at both ends: no visible rim."""
    return rising * rising * (3 - 2 * rising)
