"""Faces of a clip as SEGS: one region per face, the same over all frames."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from animdetail_trt.detect.mtcnn import Face, FaceDetector
from animdetail_trt.errors import InputError
from animdetail_trt.geometry import make_crop_region
from animdetail_trt.media.pixels import to_uint8
from animdetail_trt.segs import SEG, SEGS, CropRegion

MaskShape = Literal["oval", "box"]

_LONG_SIDE_PX = 960
"""Larger frames are looked at in this size: faces of 2 % of the frame are still found."""
_SAME_FACE_IOU = 0.2
_SOFT_EDGE = 0.15
"""Part of an oval's radius over which its mask falls from 1 to 0."""


class Detector(Protocol):
    def find(self, picture: NDArray[np.uint8], min_face_px: int = 20) -> list[Face]: ...


def detect_faces(
    frames: Tensor,
    *,
    crop_factor: float = 3.0,
    mask: MaskShape = "oval",
    min_confidence: float = 0.9,
    min_presence: float = 0.3,
    margin: float = 0.15,
    sample_count: int = 24,
    detector: Detector | None = None,
) -> SEGS:
    """Find the faces of one shot, float32 (f, h, w, 3) in 0..1, largest first; no face gives no segs.

    Up to ``sample_count`` frames, evenly spread, are searched for faces of at least ``min_confidence``; boxes that
    overlap from sample to sample are one face, kept if it is seen in ``min_presence`` of them. Its bbox covers where
    the face goes (the 10 % and 90 % quantiles of each side, so that one stray box moves nothing), widened by
    ``margin`` of its size on every side; its crop_region is the reference's ``crop_factor`` times that.
    Raises UnavailableError where the detector's packages are missing.
    """
    if crop_factor < 1:
        raise InputError(f"crop_factor is {crop_factor}; the crop must hold the face: use 1 or more (3 is usual).")
    count, height, width, _ = frames.shape
    detector = detector or FaceDetector()
    sampled = np.unique(np.linspace(0, count - 1, min(count, sample_count)).round().astype(int))
    found = [_find_scaled(detector, to_uint8(frames[int(i)]), min_confidence) for i in sampled]
    tracks = [track for track in link_faces(found) if len(track) >= max(1, min_presence * len(sampled))]
    segs = []
    for track in tracks:
        bbox = covering_bbox([face.bbox for face in track], margin, (width, height))
        crop_region = make_crop_region(width, height, bbox, crop_factor)
        cropped_mask = region_mask(bbox, crop_region, mask)
        segs.append(SEG(None, cropped_mask, float(np.median([f.confidence for f in track])), crop_region, bbox, "face"))
    return (height, width), sorted(segs, key=lambda seg: -_area(seg.bbox))


def link_faces(samples: Sequence[Sequence[Face]]) -> list[list[Face]]:
    """Join faces of successive samples into tracks: each face goes to the track whose last box it overlaps most."""
    tracks: list[list[Face]] = []
    for faces in samples:
        free = list(tracks)
        for face in faces:
            best = max(free, key=lambda track: _iou(track[-1].bbox, face.bbox), default=None)
            if best is not None and _iou(best[-1].bbox, face.bbox) >= _SAME_FACE_IOU:
                best.append(face)
                free = [track for track in free if track is not best]
            else:
                tracks.append([face])
    return tracks


def covering_bbox(boxes: Sequence[Sequence[float]], margin: float, frame_size: tuple[int, int]) -> CropRegion:
    """One (x1, y1, x2, y2) for a face that moves, inside a (width, height) frame."""
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


def _find_scaled(detector: Detector, picture: NDArray[np.uint8], min_confidence: float) -> list[Face]:
    scale = min(1.0, _LONG_SIDE_PX / max(picture.shape[:2]))
    faces = detector.find(_shrunk(picture, scale) if scale < 1 else picture)
    sure = [face for face in faces if face.confidence >= min_confidence]
    return [Face((x1 / scale, y1 / scale, x2 / scale, y2 / scale), sure_of) for (x1, y1, x2, y2), sure_of in sure]


def _shrunk(picture: NDArray[np.uint8], scale: float) -> NDArray[np.uint8]:
    from PIL import Image

    size = round(picture.shape[1] * scale), round(picture.shape[0] * scale)
    return np.asarray(Image.fromarray(picture).resize(size, Image.Resampling.BOX))


def _iou(a: Sequence[float], b: Sequence[float]) -> float:
    shared = max(0.0, min(a[2], b[2]) - max(a[0], b[0])) * max(0.0, min(a[3], b[3]) - max(a[1], b[1]))
    return shared / (_area(a) + _area(b) - shared)


def _area(box: Sequence[float]) -> float:
    return (box[2] - box[0]) * (box[3] - box[1])
