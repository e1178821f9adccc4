"""A window that follows a segment: of one size, inside the segment's crop_region, without jitter.

The sampler then sees a subject that stands still, as large as guide_size promises, however far it travels. Outside
the window nothing is sampled. Lengths are pixels of the crop_region's part inside the frame, here the ground.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from animdetail_trt.smoothing import Floats, fill_path, smooth_path

SMOOTHING_PERIOD = 12
"""Frames: of a swing this fast the track keeps half; slower ones it follows, faster ones it leaves to the crop."""
STILL = 0.1
"""Part of a window's side: a path shorter than this is no motion, and a window that followed it would only jitter."""
FAINTEST = 1 / 255
"""Fainter pixels of a mask are not part of the segment: 8 bits would not hold them."""


@dataclass(frozen=True)
class Track:
    """A window's way over the ground.

    ground, size: (width, height) of the ground and of the window, the same in all frames
    left_tops: its (x, y) in each frame, whole pixels, so that a crop is the frame's own pixels
    subject: (width, height) of the largest that the segment gets: what guide_size enlarges
    """

    ground: tuple[int, int]
    size: tuple[int, int]
    left_tops: tuple[tuple[int, int], ...]
    subject: tuple[int, int]

    def cut(self, ground: Tensor) -> Tensor:
        """The windows (f, h, w, ...) of frames or masks (f, H, W, ...) of the ground."""
        return torch.stack(self._windows(ground))

    def place(self, windows: Tensor, ground: Tensor) -> Tensor:
        """Put the windows (f, h, w, c) back into frames (f, H, W, c) of the ground, in place."""
        for into, window in zip(self._windows(ground), windows, strict=True):
            into.copy_(window)
        return ground

    def _windows(self, ground: Tensor) -> list[Tensor]:
        width, height = self.size
        places = zip(ground, self.left_tops, strict=True)
        return [frame[top : top + height, left : left + width] for frame, (left, top) in places]


def read_boxes(bbox: Any) -> Floats | None:
    """A SEG's bbox as (f, 4), NaN where a frame has none (given as None, NaN or without area); None where bbox is no
    sequence of boxes."""
    try:
        boxes = np.array([[np.nan] * 4 if box is None else [float(side) for side in box] for box in bbox])
    except (TypeError, ValueError):
        return None
    if boxes.ndim != 2 or boxes.shape[1] != 4 or np.isinf(boxes).any():
        return None
    boxes[~((boxes[:, 2] > boxes[:, 0]) & (boxes[:, 3] > boxes[:, 1]))] = np.nan
    return boxes if np.isfinite(boxes).any() else None


def find_track(masks: Tensor, boxes: Floats | None, soft_px: int) -> Track | None:
    """The track of a segment from its masks (f, h, w) over the ground; None where it stands still or is never seen.

    The window's centre is the mask's centre of mass in each frame, or the centre of the box (x1, y1, x2, y2) where
    boxes (f, 4) are given, NaN where there is none; unseen frames lie on the line between the seen ones. The path is
    smoothed without lag (``smooth_path``). The window is as much larger than the segment's largest extent as the
    ground is than all that the segment covers; it holds every frame's mask with ``soft_px`` of soft edge around, so
    that a feathered mask never meets its border.
    """
    seen = masks > FAINTEST
    if not seen.any():
        return None
    across = _follow_side(masks, seen, 2, None if boxes is None else boxes[:, 0::2].mean(1), soft_px)
    down = _follow_side(masks, seen, 1, None if boxes is None else boxes[:, 1::2].mean(1), soft_px)
    if not across.moves and not down.moves:
        return None
    left_tops = tuple(zip(across.offsets, down.offsets, strict=True))
    ground = masks.shape[2], masks.shape[1]
    return Track(ground, (across.length, down.length), left_tops, (across.extent, down.extent))


@dataclass(frozen=True)
class _Side:
    """One axis of a track."""

    length: int
    offsets: list[int]
    extent: int
    moves: bool


def _follow_side(masks: Tensor, seen: Tensor, axis: int, centres: Floats | None, soft_px: int) -> _Side:
    ground = masks.shape[axis]
    low, high = _extents(seen.any(3 - axis))
    if centres is None:
        centres = _centres_of_mass(torch.where(seen, masks, 0).sum(3 - axis))
    path = smooth_path(fill_path(centres), SMOOTHING_PERIOD)
    extent = np.nanmax(high - low)
    covered = np.nanmax(high) - np.nanmin(low)
    # The farthest that a mask reaches from the path, and half a pixel for its rounding.
    reach = np.nanmax(np.maximum(high - path, path - low)) + soft_px + 0.5
    length = min(ground, math.ceil(max(ground * extent / covered, 2 * reach)))
    if length == ground or np.ptp(path) < STILL * length:
        return _Side(ground, [0] * len(path), int(extent), moves=False)
    offsets = np.clip(np.floor(path - length / 2 + 0.5), 0, ground - length).astype(int)
    return _Side(length, offsets.tolist(), int(extent), moves=True)


def _extents(seen: Tensor) -> tuple[Floats, Floats]:
    """First and last (exclusive) of the pixels (f, n) that are seen; NaN in frames where none is."""
    flags = seen.numpy()
    empty = ~flags.any(1)
    low, high = flags.argmax(1).astype(float), flags.shape[1] - flags[:, ::-1].argmax(1).astype(float)
    low[empty] = high[empty] = np.nan
    return low, high


def _centres_of_mass(profile: Tensor) -> Floats:
    """(f,) from the masks' sums (f, n) along the other axis; NaN in frames where they are 0."""
    mass = profile.double().numpy()
    with np.errstate(invalid="ignore"):
        centres: Floats = mass @ (np.arange(mass.shape[1]) + 0.5) / mass.sum(1)
    return centres


def masks_in_boxes(masks: Tensor, boxes: Floats) -> Tensor:
    """One mask (1, h, w) for all frames, and a box (f, 4) in each -> (f, h, w): what of the mask lies in the box."""
    height, width = masks.shape[1:]
    x, y = np.arange(width) + 0.5, np.arange(height) + 0.5
    left, top, right, bottom = (boxes[:, i, None] for i in range(4))  # comparisons with NaN are false
    inside = ((y > top) & (y < bottom))[:, :, None] & ((x > left) & (x < right))[:, None, :]
    return masks * torch.from_numpy(inside)
