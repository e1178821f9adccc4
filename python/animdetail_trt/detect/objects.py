"""What a detector finds in a clip, as SEGS: one segment per thing."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from animdetail_trt.detect.boxes import Detection, area
from animdetail_trt.detect.masks import MaskShape, draw_silhouette, region_mask, region_size, soft_mask
from animdetail_trt.detect.tracks import Track, covering_bbox, follow_boxes, link_boxes, nearest_seen, widened
from animdetail_trt.errors import InputError
from animdetail_trt.geometry import make_crop_region
from animdetail_trt.media.pixels import to_uint8
from animdetail_trt.segs import SEG, SEGS, CropRegion
from animdetail_trt.smoothing import Floats

MIN_PRESENCE = 0.3
"""Part of the frames looked at in which a thing must be seen."""
ENOUGH_FRAMES = 12
"""In which a thing must be seen at most, where all are looked at and the others get no mask."""
_STRAY = 0.1
"""Part of what was seen that moves nothing where one mask is for all frames: a detector's slips."""


class Detector(Protocol):
    def find(self, picture: NDArray[np.uint8], min_confidence: float = 0) -> list[Detection]:
        """What is seen in a uint8 (h, w, 3) RGB picture with this confidence or more, best first."""


def detect_objects(
    frames: Tensor,
    detector: Detector,
    *,
    crop_factor: float = 3.0,
    mask: MaskShape | None = None,
    each_frame: bool = False,
    min_confidence: float = 0.5,
    min_presence: float = MIN_PRESENCE,
    margin: float = 0.15,
    sample_count: int = 24,
    looked: Callable[[int], None] = lambda count: None,
) -> SEGS:
    """Find things in one shot, float32 (f, h, w, 3) in 0..1, largest first; nothing found gives no segs.

    Up to ``sample_count`` frames, evenly spread, are searched for what has ``min_confidence``; boxes of one label that
    overlap from sample to sample are one thing, kept if it is seen in ``min_presence`` of them. One mask (h, w) covers
    where it goes (from the 10 % to the 90 % quantile of each side, so that one stray box moves nothing). With
    ``each_frame`` all frames are searched, and each has a mask of its own, (f, h, w), where the thing is in it; the
    mask goes on up to 8 frames from where it was seen, farther away it is 0, and half a second (12 frames) of presence
    is enough.

    The mask is a box or the oval in it, both widened by ``margin`` of the size on every side, or the silhouette that a
    segmentation model draws, with a soft edge of ``margin`` around it; None takes that where there is one, else the
    oval. The crop_region is the reference's ``crop_factor`` times the bbox over all frames, the confidence the median.
    ``looked`` is told how many frames were searched. Raises InputError for a crop_factor below 1, and for a silhouette
    where the detector draws none.
    """
    if crop_factor < 1:
        raise InputError(f"crop_factor is {crop_factor}; the crop must hold the bbox: use 1 or more (3 is usual).")
    count, height, width, _ = frames.shape
    looks = count if each_frame else min(count, sample_count)
    found = []
    for index in np.linspace(0, count - 1, looks).round().astype(int):
        found.append(detector.find(to_uint8(frames[int(index)]), min_confidence))
        looked(len(found))
    draw = _Drawing((width, height), crop_factor, mask, margin)
    least = max(1.0, min_presence * looks)
    if each_frame:
        least = min(least, ENOUGH_FRAMES)
    tracks = [track for track in link_boxes(found) if len(track) >= least]
    segs = [draw.each_frame(track, count) if each_frame else draw.once(track) for track in tracks]
    return (height, width), sorted(segs, key=lambda seg: -area(seg.bbox))


@dataclass(frozen=True)
class _Drawing:
    """Tracks to segments; see ``detect_objects``."""

    frame_size: tuple[int, int]
    crop_factor: float
    asked: MaskShape | None
    margin: float

    def once(self, track: Track) -> SEG:
        """With one mask for all frames; a silhouette is what is covered in more than a stray part of the sightings."""
        seen = list(track.values())
        bbox, crop_region = self._regions(np.array([one.bbox for one in seen]), _STRAY)
        shape = self._shape(seen)
        if shape != "silhouette":
            return _segment(seen, region_mask(bbox, crop_region, shape), crop_region, bbox)
        times = torch.zeros(region_size(crop_region), dtype=torch.int32)
        for one in seen:
            times += draw_silhouette(one, (0, 0), crop_region)
        mask = soft_mask(times > _STRAY * len(seen), self._soft_px(seen))
        return _segment(seen, mask, crop_region, bbox)

    def each_frame(self, track: Track, count: int) -> SEG:
        """With a mask for each frame, 0 where the thing is gone."""
        seen = list(track.values())
        boxes = follow_boxes(track, count)
        there = np.flatnonzero(np.isfinite(boxes[:, 0]))
        bbox, crop_region = self._regions(boxes[there], 0)
        shape, soft_px, nearest = self._shape(seen), self._soft_px(seen), nearest_seen(track, count)
        masks = torch.zeros(count, *region_size(crop_region))
        for index in there:
            if shape != "silhouette":
                masks[index] = region_mask(widened(boxes[index], self.margin), crop_region, shape)
                continue
            moved_x, moved_y = (boxes[index] - boxes[nearest[index]]).reshape(2, 2).mean(0).round().astype(int)
            drawn = draw_silhouette(track[nearest[index]], (moved_x, moved_y), crop_region)
            masks[index] = soft_mask(drawn, soft_px)
        return _segment(seen, masks, crop_region, bbox)

    def _regions(self, boxes: Floats, stray: float) -> tuple[CropRegion, CropRegion]:
        bbox = covering_bbox(boxes, stray, self.margin, self.frame_size)
        return bbox, make_crop_region(*self.frame_size, bbox, self.crop_factor)

    def _shape(self, seen: Sequence[Detection]) -> MaskShape:
        drawn = all(one.silhouette is not None for one in seen)
        if self.asked == "silhouette" and not drawn:
            raise InputError("the detector draws no silhouettes. Use oval or box, or a segmentation model.")
        return self.asked or ("silhouette" if drawn else "oval")

    def _soft_px(self, seen: Sequence[Detection]) -> float:
        shorter = [min(x2 - x1, y2 - y1) for (x1, y1, x2, y2), *_ in seen]
        return self.margin * float(np.median(shorter))


def _segment(seen: Sequence[Detection], mask: Tensor, crop_region: CropRegion, bbox: CropRegion) -> SEG:
    confidence = float(np.median([one.confidence for one in seen]))
    return SEG(None, mask, confidence, crop_region, bbox, seen[0].label)
