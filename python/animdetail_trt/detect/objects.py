"""What a detector finds in a clip, as SEGS: one region per thing, the same over all frames."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from animdetail_trt.detect.boxes import Detection, area, iou
from animdetail_trt.errors import InputError
from animdetail_trt.geometry import make_crop_region
from animdetail_trt.media.pixels import to_uint8
from animdetail_trt.segs import SEG, SEGS, CropRegion

MaskShape = Literal["oval", "box"]

MIN_PRESENCE = 0.3
"""Part of the frames looked at in which a thing must be seen."""
_SAME_THING_IOU = 0.2
_SOFT_EDGE = 0.15
"""Part of an oval's radius over which its mask falls from 1 to 0."""


class Detector(Protocol):
    def find(self, picture: NDArray[np.uint8]) -> list[Detection]:
        """What is seen in a uint8 (h, w, 3) RGB picture."""


def detect_objects(
    frames: Tensor,
    detector: Detector,
    *,
    crop_factor: float = 3.0,
    mask: MaskShape = "oval",
    min_confidence: float = 0.5,
    min_presence: float = MIN_PRESENCE,
    margin: float = 0.15,
    sample_count: int = 24,
    long_side_px: int | None = None,
) -> SEGS:
    """Find things in one shot, float32 (f, h, w, 3) in 0..1, largest first; nothing found gives no segs.

    Up to ``sample_count`` frames, evenly spread, are searched for what has ``min_confidence``, frames larger than
    ``long_side_px`` in that size; boxes of one label that overlap from sample to sample are one thing, kept if it is
    seen in ``min_presence`` of them. Its bbox covers where it goes (the 10 % and 90 % quantiles of each side, so that
    one stray box moves nothing), widened by ``margin`` of its size on every side; its crop_region is the reference's
    ``crop_factor`` times that, its confidence the median. Raises InputError for a crop_factor below 1.
    """
    if crop_factor < 1:
        raise InputError(f"crop_factor is {crop_factor}; the crop must hold the bbox: use 1 or more (3 is usual).")
    count, height, width, _ = frames.shape
    scale = min(1.0, (long_side_px or np.inf) / max(height, width))
    sampled = np.unique(np.linspace(0, count - 1, min(count, sample_count)).round().astype(int))
    found = [
        [seen for seen in _find_scaled(detector, to_uint8(frames[int(i)]), scale) if seen.confidence >= min_confidence]
        for i in sampled
    ]
    tracks = [track for track in link_boxes(found) if len(track) >= max(1, min_presence * len(sampled))]
    segs = []
    for track in tracks:
        bbox = covering_bbox([seen.bbox for seen in track], margin, (width, height))
        crop_region = make_crop_region(width, height, bbox, crop_factor)
        confidence = float(np.median([seen.confidence for seen in track]))
        segs.append(SEG(None, region_mask(bbox, crop_region, mask), confidence, crop_region, bbox, track[0].label))
    return (height, width), sorted(segs, key=lambda seg: -area(seg.bbox))


def link_boxes(samples: Sequence[Sequence[Detection]]) -> list[list[Detection]]:
    """Join successive samples into tracks: each box goes to the track of its label whose last box it overlaps most."""
    tracks: list[list[Detection]] = []
    for detections in samples:
        free = list(tracks)
        for seen in detections:
            alike = [track for track in free if track[-1].label == seen.label]
            best = max(alike, key=lambda track: iou(track[-1].bbox, seen.bbox), default=None)
            if best is not None and iou(best[-1].bbox, seen.bbox) >= _SAME_THING_IOU:
                best.append(seen)
                free = [track for track in free if track is not best]
            else:
                tracks.append([seen])
    return tracks


def covering_bbox(boxes: Sequence[Sequence[float]], margin: float, frame_size: tuple[int, int]) -> CropRegion:
    """One (x1, y1, x2, y2) for a thing that moves, inside a (width, height) frame."""
    sides = np.asarray(boxes, dtype=np.float64)
    x1, y1 = np.quantile(sides[:, :2], 0.1, axis=0)
    x2, y2 = np.quantile(sides[:, 2:], 0.9, axis=0)
    dx, dy = margin * (x2 - x1), margin * (y2 - y1)
    width, height = frame_size
    left, top = max(int(x1 - dx), 0), max(int(y1 - dy), 0)
    return left, top, min(int(np.ceil(x2 + dx)), width), min(int(np.ceil(y2 + dy)), height)


def region_mask(bbox: CropRegion, crop_region: CropRegion, shape: MaskShape) -> Tensor:
    """float32 (h, w) in 0..1 over ``crop_region``: ``bbox`` itself, or the oval in it with a soft edge."""
    left, top, right, bottom = crop_region
    x1, y1, x2, y2 = bbox
    across = (torch.arange(left, right) + 0.5 - (x1 + x2) / 2) / ((x2 - x1) / 2)  # -1..1 inside the bbox
    down = (torch.arange(top, bottom) + 0.5 - (y1 + y2) / 2) / ((y2 - y1) / 2)
    if shape == "box":
        return ((down.abs() <= 1)[:, None] & (across.abs() <= 1)[None, :]).float()
    radius = (down[:, None] ** 2 + across[None, :] ** 2).sqrt()
    inside = ((1 - radius) / _SOFT_EDGE).clamp(0, 1)
    return (inside * inside * (3 - 2 * inside)).float()  # smoothstep: no visible rim


def _find_scaled(detector: Detector, picture: NDArray[np.uint8], scale: float) -> list[Detection]:
    if scale == 1:
        return detector.find(picture)
    found = detector.find(_shrunk(picture, scale))
    return [
        Detection((x1 / scale, y1 / scale, x2 / scale, y2 / scale), confidence, label)
        for (x1, y1, x2, y2), confidence, label in found
    ]


def _shrunk(picture: NDArray[np.uint8], scale: float) -> NDArray[np.uint8]:
    from PIL import Image

    size = round(picture.shape[1] * scale), round(picture.shape[0] * scale)
    return np.asarray(Image.fromarray(picture).resize(size, Image.Resampling.BOX))
