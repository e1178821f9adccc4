"""The three ways to name segments: a SEGS file, masks, a detector. Each checks what it can before frames exist."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from animdetail_trt.errors import InputError, MediaError

if TYPE_CHECKING:
    from torch import Tensor

    from animdetail_trt.media.clip import Clip, Source
    from animdetail_trt.segs import SEGS

Finder = Callable[["Clip", Callable[[int], None]], "SEGS"]
"""Given the clip, and what is told how many frames were searched."""

FACE = "face"
"""What --detect finds without a file."""
FACE_CONFIDENCE, OBJECT_CONFIDENCE = 0.9, 0.5
"""What is sure enough: for MTCNN, whose sure faces are near 1; for a file, the Impact Pack's threshold."""


def file_finder(path: Path) -> Finder:
    from animdetail_trt.media.segs_file import read_segs

    segs = read_segs(path)
    if not segs[1]:
        raise InputError(f'{path} holds nothing to detail: its "segs" is empty. Add a segment, or use --masks.')
    return lambda clip, looked: segs


def masks_finder(path: Path, source: Source, *, drop_size: int, **options: Any) -> Finder:
    """One mask per frame, or one for all; all of the frames' size. ``options`` go to MaskToSEGS_for_AnimateDiff."""
    from animdetail_trt.media.clip import open_source

    if not path.exists():
        raise MediaError(f"--masks {path} does not exist. Check the path.")
    drawn = open_source(path)
    if (drawn.width, drawn.height) != (source.width, source.height):
        raise MediaError(
            f"the masks in {path} are {drawn.width}x{drawn.height}, the frames of {source.path} "
            f"{source.width}x{source.height}. Make the masks in the frames' size."
        )
    masks = drawn.read_masks()
    count = len(masks)

    def find(clip: Clip, looked: Callable[[int], None]) -> SEGS:
        from animdetail_trt.detailer.mask_to_segs import MaskToSEGS_for_AnimateDiff

        if count not in (1, len(clip.frames)):
            raise MediaError(
                f"{path} holds {count} masks for {len(clip.frames)} frames. Give one per frame, or one for all."
            )
        (segs,) = MaskToSEGS_for_AnimateDiff.doit(masks, drop_size=drop_size, **options)
        if not segs[1]:
            raise InputError(f"the masks in {path} {_why_none(drawn, masks, drop_size)}")
        return segs

    return find


def _why_none(drawn: Source, masks: Tensor, drop_size: int) -> str:
    """What is said of masks (n, h, w) that hold no region."""
    from animdetail_trt.detailer.mask_to_segs import DARKEST_KEPT

    brightest = float(masks.max())
    if brightest > (DARKEST_KEPT if len(masks) == 1 else 0):
        return f"hold no region larger than {drop_size} pixels. Lower --drop-size."
    if brightest == 0 and drawn.is_transparent():
        return "are black, and drawn in their alpha channel, which is not read. Save them as white on black."
    black = "are all black" if drawn.video is None else "are all black, or nearly"
    told = black if brightest == 0 else f"are too dark: their brightest pixel is {255 * brightest:.0f} of 255"
    return f"{told}. Draw what is to be detailed in white."


def detector_finder(
    named: str | Path, labels: Sequence[str] | None, min_confidence: float | None, **options: Any
) -> Finder:
    """``named`` is FACE or a detector's file; ``options`` go to detect_objects."""
    detector, least, sought = _open_detector(named, labels)
    least = least if min_confidence is None else min_confidence
    if options["mask"] == "silhouette" and not getattr(detector, "draws_silhouettes", False):
        raise InputError(
            f"--mask-shape silhouette needs a segmentation model, and --detect {named} finds boxes. "
            "Use oval or box, or the model's -seg variant."
        )

    def find(clip: Clip, looked: Callable[[int], None]) -> SEGS:
        from animdetail_trt.detect.objects import detect_objects

        segs = detect_objects(clip.frames, detector, min_confidence=least, looked=looked, **options)
        if not segs[1]:
            raise InputError(
                f"no {sought} of confidence {least:g} or more was found in {clip.source.path}, or too seldom. "
                "Lower --min-confidence, or name the region with --masks or --segs."
            )
        return segs

    return find


def _open_detector(named: str | Path, labels: Sequence[str] | None) -> tuple[Any, float, str]:
    """The detector, what is sure enough for it, what it looks for."""
    if not isinstance(named, Path):
        from animdetail_trt.detect.mtcnn import FaceDetector

        return FaceDetector(), FACE_CONFIDENCE, "face"
    from animdetail_trt.detect.yolo import YoloDetector

    if not named.is_file():
        raise InputError(f"--detect {named} is no file. Write {FACE}, or the path of a detector in ONNX.")
    detector = YoloDetector(named, labels)
    others = " or another of its classes" if len(detector.labels) > 3 else ""
    return detector, OBJECT_CONFIDENCE, " or ".join(detector.labels[:3]) + others
