"""Faces of a clip as SEGS: one region per face, the same over all frames."""

from __future__ import annotations

from torch import Tensor

from animdetail_trt.detect.mtcnn import FaceDetector
from animdetail_trt.detect.objects import MIN_PRESENCE, Detector, MaskShape, detect_objects
from animdetail_trt.segs import SEGS

_LONG_SIDE_PX = 960
"""Larger frames are looked at in this size: faces of 2 % of the frame are still found."""


def detect_faces(
    frames: Tensor,
    *,
    crop_factor: float = 3.0,
    mask: MaskShape = "oval",
    min_confidence: float = 0.9,
    min_presence: float = MIN_PRESENCE,
    margin: float = 0.15,
    sample_count: int = 24,
    detector: Detector | None = None,
) -> SEGS:
    """``detect_objects`` with the detector of MTCNN, or another for faces.

    Raises UnavailableError where the packages of MTCNN are missing, InputError for a crop_factor below 1.
    """
    return detect_objects(
        frames,
        detector or FaceDetector(),
        crop_factor=crop_factor,
        mask=mask,
        min_confidence=min_confidence,
        min_presence=min_presence,
        margin=margin,
        sample_count=sample_count,
        long_side_px=_LONG_SIDE_PX,
    )
