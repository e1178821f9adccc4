"""One thing from frame to frame: its boxes joined, and the way it goes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from animdetail_trt.detect.boxes import Detection, iou
from animdetail_trt.segs import CropRegion
from animdetail_trt.smoothing import Floats, fill_path, smooth_path

Track: TypeAlias = dict[int, Detection]
"""Of one thing: what was seen of it, by the index of the picture it was seen in."""

_SAME_THING_IOU = 0.2
_SHAKE_PERIOD = 6
"""Frames: a box that swings this fast is shaken by its detector, half of it at least."""
_BLINK = 8
"""Frames: so near to one in which it was seen, before or after, a thing that is unseen is still there."""


def link_boxes(samples: Sequence[Sequence[Detection]]) -> list[Track]:
    """Join successive samples into tracks: each box goes to the track of its label whose last box it overlaps most."""
    tracks: list[Track] = []
    last: list[Detection] = []  # of each track
    for index, detections in enumerate(samples):
        free = list(range(len(tracks)))
        for seen in detections:
            alike = [track for track in free if last[track].label == seen.label]
            best = max(alike, key=lambda track: iou(last[track].bbox, seen.bbox), default=None)
            if best is not None and iou(last[best].bbox, seen.bbox) >= _SAME_THING_IOU:
                tracks[best][index] = last[best] = seen
                free.remove(best)
            else:
                tracks.append({index: seen})
                last.append(seen)
    return tracks


def follow_boxes(track: Track, count: int) -> Floats:
    """The box of a thing in each of ``count`` frames, (f, 4): without shake, on a line where it is unseen for a moment.

    NaN in frames that are farther than that from any in which it was seen.
    """
    boxes = np.full((count, 4), np.nan)
    for index, seen in track.items():
        boxes[index] = seen.bbox
    followed = np.stack([smooth_path(fill_path(side), _SHAKE_PERIOD) for side in boxes.T], 1)
    followed[np.abs(nearest_seen(track, count) - np.arange(count)) > _BLINK] = np.nan
    return followed


def nearest_seen(track: Track, count: int) -> NDArray[np.intp]:
    """For each of ``count`` frames the nearest in which the thing was seen, (f,)."""
    seen = np.array(sorted(track), dtype=np.intp)
    nearest: NDArray[np.intp] = seen[np.searchsorted((seen[1:] + seen[:-1]) / 2, np.arange(count))]
    return nearest


def covering_bbox(boxes: Floats, stray: float, margin: float, frame_size: tuple[int, int]) -> CropRegion:
    """One (x1, y1, x2, y2) inside a (width, height) frame for all boxes (n, 4).

    Each side lies at a quantile, so that the part ``stray`` of the boxes moves nothing, and ``margin`` of the size
    farther out.
    """
    x1, y1 = np.quantile(boxes[:, :2], stray, axis=0)
    x2, y2 = np.quantile(boxes[:, 2:], 1 - stray, axis=0)
    left, top, right, bottom = widened((x1, y1, x2, y2), margin)
    width, height = frame_size
    return max(int(left), 0), max(int(top), 0), min(int(np.ceil(right)), width), min(int(np.ceil(bottom)), height)


def widened(box: Sequence[float], margin: float) -> tuple[float, float, float, float]:
    """Each side moved out by ``margin`` of the width or height."""
    x1, y1, x2, y2 = box
    dx, dy = margin * (x2 - x1), margin * (y2 - y1)
    return x1 - dx, y1 - dy, x2 + dx, y2 + dy
