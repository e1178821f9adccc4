"""Boxes of detectors: what one found, how much two of them share, which of many remain."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from animdetail_trt.segs import CropRegion


class Detection(NamedTuple):
    """One thing found in one picture."""

    bbox: tuple[float, float, float, float]
    """x1, y1, x2, y2 in pixels; may reach over the picture's edge."""
    confidence: float
    label: str
    """Class name such as "face"."""
    silhouette: NDArray[np.bool_] | None = None
    """(h, w) over the ``whole_pixels`` of bbox: which of them it covers. None where the detector does not draw it."""


def whole_pixels(bbox: Sequence[float]) -> CropRegion:
    """All pixels that a box touches."""
    return math.floor(bbox[0]), math.floor(bbox[1]), math.ceil(bbox[2]), math.ceil(bbox[3])


def area(box: Sequence[float]) -> float:
    return (box[2] - box[0]) * (box[3] - box[1])


def iou(a: Sequence[float], b: Sequence[float]) -> float:
    """Intersection over union."""
    shared = max(0.0, min(a[2], b[2]) - max(a[0], b[0])) * max(0.0, min(a[3], b[3]) - max(a[1], b[1]))
    return shared / (area(a) + area(b) - shared)


def survivors(
    boxes: NDArray[Any], threshold: float, *, of_smaller: bool = False, at_most: int | None = None
) -> NDArray[np.intp]:
    """Greedy non-maximum suppression of (n, 5), x1, y1, x2, y2, score: indices of the boxes kept, best first.

    A box falls when it shares more than ``threshold`` of the union with a better one, or of the smaller of both.
    """
    areas = (boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])
    order = np.argsort(-boxes[:, 4], kind="stable")
    kept: list[int] = []
    while order.size and len(kept) != at_most:
        best, rest = order[0], order[1:]
        kept.append(int(best))
        overlap = np.minimum(boxes[best, 2:4], boxes[rest, 2:4]) - np.maximum(boxes[best, :2], boxes[rest, :2])
        shared = overlap.clip(min=0).prod(1)
        whole = np.minimum(areas[best], areas[rest]) if of_smaller else areas[best] + areas[rest] - shared
        order = rest[shared <= threshold * whole]
    return np.array(kept, dtype=np.intp)
