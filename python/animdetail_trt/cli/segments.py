"""The three ways to name segments: a SEGS file, masks, a detector. Each checks what it can before frames exist."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from animdetail_trt.errors import InputError, MediaError

if TYPE_CHECKING:
    from animdetail_trt.detect.faces import MaskShape
    from animdetail_trt.media.clip import Clip, Source
    from animdetail_trt.segs import SEGS

Finder = Callable[["Clip"], "SEGS"]


def file_finder(path: Path) -> Finder:
    from animdetail_trt.media.segs_file import read_segs

    segs = read_segs(path)
    return lambda clip: segs


def masks_finder(path: Path, source: Source, *, drop_size: int, **options: Any) -> Finder:
    """One mask per frame, or one for all; all of the frames' size. ``options`` go to MaskToSEGS_for_AnimateDiff."""
    from animdetail_trt.media.images import list_images, read_masks

    if not path.exists():
        raise MediaError(f"--masks {path} does not exist. Check the path.")
    masks = read_masks(list_images(path) if path.is_dir() else [path])
    count, height, width = masks.shape
    if (width, height) != (source.width, source.height):
        raise MediaError(
            f"the masks in {path} are {width}x{height}, the frames of {source.path} {source.width}x{source.height}. "
            "Make the masks in the frames' size."
        )

    def find(clip: Clip) -> SEGS:
        from animdetail_trt.detailer.mask_to_segs import MaskToSEGS_for_AnimateDiff

        if count not in (1, len(clip.frames)):
            raise MediaError(
                f"{path} holds {count} masks for {len(clip.frames)} frames. Give one per frame, or one for all."
            )
        (segs,) = MaskToSEGS_for_AnimateDiff.doit(masks, drop_size=drop_size, **options)
        if not segs[1]:
            raise InputError(f"the masks in {path} hold no region larger than {drop_size} pixels. Lower --drop-size.")
        return segs

    return find


def faces_finder(crop_factor: float, mask_shape: MaskShape, min_confidence: float) -> Finder:
    from animdetail_trt.detect.faces import detect_faces
    from animdetail_trt.detect.mtcnn import FaceDetector

    detector = FaceDetector()

    def find(clip: Clip) -> SEGS:
        segs = detect_faces(
            clip.frames, crop_factor=crop_factor, mask=mask_shape, min_confidence=min_confidence, detector=detector
        )
        if not segs[1]:
            raise InputError(
                f"no face of confidence {min_confidence:g} or more was found in {clip.source.path}. "
                "Lower --min-confidence, or name the region with --masks or --segs."
            )
        return segs

    return find
