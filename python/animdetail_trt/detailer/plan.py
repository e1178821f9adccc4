"""What will be done to each segment, decided before any model runs."""

from __future__ import annotations

import logging
import math
import operator
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeAlias

import numpy as np
import torch.nn.functional as F  # noqa: N812
from torch import Tensor

from animdetail_trt import ops
from animdetail_trt.arrays import float_tensor, mask_tensor
from animdetail_trt.checks import is_finite, is_whole
from animdetail_trt.detailer.follow import Track, find_track, masks_in_boxes, read_boxes
from animdetail_trt.detailer.improvements import REFERENCE, Improvements, round_to_8, scale_region_by_side
from animdetail_trt.errors import InputError
from animdetail_trt.geometry import latent_crop, same_aspect, scale_region, upscaled_size
from animdetail_trt.sampling.control import shows_own_pictures
from animdetail_trt.segs import SEG, SEGS, CropRegion
from animdetail_trt.smoothing import Floats

logger = logging.getLogger(__name__)

ScaleRegion: TypeAlias = Callable[[Any, tuple[int, int], tuple[int, int]], CropRegion]
"""``scale(region, header, frame_size)``, the sizes (height, width)."""


@dataclass(frozen=True)
class SizeSettings:
    """guide_size: pixels that the shorter side is enlarged to, of the bbox if guide_size_for_bbox, else of the crop
    max_size: pixels that the longer side of the enlarged crop may have"""

    guide_size: float
    guide_size_for_bbox: bool
    max_size: float

    def __post_init__(self) -> None:
        measured = self.guide_size_for_bbox
        if not isinstance(measured, bool | np.bool_) and not (is_whole(measured) and measured in (0, 1)):
            raise InputError(
                f"guide_size_for {measured!r:.80} must be True, for the bbox, or False, for the crop_region"
            )
        for name, value in (("guide_size", self.guide_size), ("max_size", self.max_size)):
            if not is_finite(value) or value <= 0:
                raise InputError(f"{name} {value!r} must be a number above 0 and finite")


@dataclass(frozen=True)
class SegmentPlan:
    """One segment, in frame pixels.

    seg: as given, scaled to the frame size
    mask: its mask, float32 (h, w) or (n, h, w)
    crop_region: the part of seg.crop_region inside the frame; None where the segment brings its own pixels
    pixels: those, float32 (1 or f, h, w, 3)
    crop_size, work_size: (width, height) of the crop and of what is sampled
    track: where the crop follows the segment inside crop_region, its way; crop_size is then its window's
    feathered: the mask as the sampler's is feathered, where that is done already
    """

    seg: SEG
    mask: Tensor
    crop_region: CropRegion | None
    pixels: Tensor | None
    crop_size: tuple[int, int]
    work_size: tuple[int, int]
    track: Track | None = None
    feathered: Tensor | None = None


def plan_segments(
    segs: SEGS,
    frame_size: tuple[int, int],
    frame_count: int,
    sizes: SizeSettings,
    improvements: Improvements = REFERENCE,
    soft_px: int = 0,
    pass_order: ops.PassOrder = "pillow13",
) -> list[SegmentPlan]:
    """Plan every segment, so that a bad one is named before the first is worked on.

    frame_size: (height, width); soft_px: how far a mask's feather reaches, which a window that follows it must hold
    pass_order: as in ``ops.crop_resize``, of crops that SEGS bring
    """
    segs = check_segs(segs, improvements.follow_motion)
    for i, seg in enumerate(segs[1]):
        _note_order(i, seg.bbox)
    if segs[1] and not improvements.scale_regions:
        _note_aspect(segs[0], frame_size)
    _, scaled = scale_segs(segs, frame_size, improvements, pass_order)
    plans = [_plan_segment(i, seg, frame_size, frame_count, sizes) for i, seg in enumerate(scaled)]
    if improvements.follow_motion:
        plans = [_followed(i, plan, frame_count, sizes, soft_px) for i, plan in enumerate(plans)]
    return [with_work_size(plan, plan.work_size, improvements, sizes.max_size) for plan in plans]


def with_work_size(
    plan: SegmentPlan, work_size: tuple[int, int], improvements: Improvements, max_size: float = math.inf
) -> SegmentPlan:
    """The plan with another work_size, rounded if that is asked for; raises where there is less than one latent."""
    if improvements.round_to_8:
        work_size = round_to_8(work_size, max_size)
    latent_crop(work_size)
    return replace(plan, work_size=work_size)


def _plan_segment(
    index: int, seg: SEG, frame_size: tuple[int, int], frame_count: int, sizes: SizeSettings
) -> SegmentPlan:
    mask = mask_of(seg, index)
    _note_mask_count(index, mask, frame_count)
    region = pixels = None
    if seg.cropped_image is None:
        _check_area(index, seg.crop_region)
        region = inside_frame(seg.crop_region, frame_size)
        if region is None:
            raise InputError(
                f"segment {index}: crop_region {seg.crop_region} lies wholly outside the frame "
                f"of {frame_size[1]}x{frame_size[0]} pixels. Drop the segment, or mend its SEGS header"
            )
        crop_size = (region[2] - region[0], region[3] - region[1])
    else:
        pixels = images_of(seg, index)
        if pixels.shape[0] not in (1, frame_count):
            raise InputError(f"segment {index}: cropped_image has {pixels.shape[0]} frames, the clip {frame_count}")
        crop_size = (pixels.shape[2], pixels.shape[1])
    work_size = _work_size(crop_size, _hull(seg.bbox), sizes)
    return SegmentPlan(seg, mask, region, pixels, crop_size, work_size)


def _work_size(crop_size: tuple[int, int], bbox: Sequence[float], sizes: SizeSettings) -> tuple[int, int]:
    return upscaled_size(crop_size, bbox, sizes.guide_size, sizes.guide_size_for_bbox, sizes.max_size)


def _followed(index: int, plan: SegmentPlan, frame_count: int, sizes: SizeSettings, soft_px: int) -> SegmentPlan:
    """The plan with a window that follows the segment, if its masks or boxes tell of every frame, and it moves."""
    boxes = _boxes(plan.seg)
    masks = plan.mask if plan.mask.ndim == 3 else plan.mask[None]
    if boxes is not None:
        if len(boxes) != frame_count:
            raise InputError(f"segment {index}: bbox holds {len(boxes)} boxes, the clip {frame_count} frames")
        plan = replace(plan, seg=plan.seg._replace(bbox=_hull(boxes)))
    if plan.crop_region is None or shows_own_pictures(plan.seg.control_net_wrapper):  # such pixels do not move
        return plan
    if boxes is not None:
        boxes = boxes - np.array(plan.crop_region[:2] * 2)
        if len(masks) == 1:
            had_any = masks.any()
            masks = masks_in_boxes(resize_masks(masks, plan.crop_size), boxes)
            if had_any and not masks.any():
                raise InputError(
                    f"segment {index}: none of its {frame_count} boxes, all within {plan.seg.bbox}, meets its mask in "
                    f"crop_region {tuple(plan.seg.crop_region)}, so nothing would be painted. Mend one of them: both "
                    "are x1, y1, x2, y2 in frame pixels. Or give a mask for each frame"
                )
            plan = replace(plan, mask=masks, seg=plan.seg._replace(cropped_mask=masks.numpy()))
    if frame_count == 1 or len(masks) != frame_count:
        return plan
    track = find_track(resize_masks(masks, plan.crop_size), boxes, soft_px)
    if track is None:
        return plan
    work_size = _work_size(track.size, (0, 0, *track.subject), sizes)
    return replace(plan, crop_size=track.size, work_size=work_size, track=track)


def _boxes(seg: SEG) -> Floats | None:
    """The segment's boxes (f, 4), where it came with one for each frame."""
    return seg.bbox if isinstance(seg.bbox, np.ndarray) else None


def _hull(bbox: Any) -> Any:
    """One box around all, where there is one for each frame."""
    if not isinstance(bbox, np.ndarray):
        return bbox
    x1, y1 = np.nanmin(bbox[:, :2], axis=0)
    x2, y2 = np.nanmax(bbox[:, 2:], axis=0)
    return math.floor(x1), math.floor(y1), math.ceil(x2), math.ceil(y2)


def inside_frame(region: CropRegion, frame_size: tuple[int, int]) -> CropRegion | None:
    """The part of ``region`` that lies in the frame (height, width); None where there is none."""
    x1, y1 = max(region[0], 0), max(region[1], 0)
    x2, y2 = min(region[2], frame_size[1]), min(region[3], frame_size[0])
    return (x1, y1, x2, y2) if x1 < x2 and y1 < y2 else None


def scale_segs(
    segs: SEGS,
    frame_size: tuple[int, int],
    improvements: Improvements = REFERENCE,
    pass_order: ops.PassOrder = "pillow13",
) -> SEGS:
    """SEGS in the pixels of frames of ``frame_size`` (height, width): regions scaled, masks and crops resized."""
    header, items = check_segs(segs, improvements.follow_motion)
    if header == frame_size or 0 in header:
        return header, items
    scale = scale_region_by_side if improvements.scale_regions else scale_region
    return frame_size, [_scale_seg(i, seg, header, frame_size, scale, pass_order) for i, seg in enumerate(items)]


def check_segs(segs: Any, box_per_frame: bool) -> SEGS:
    """SEGS with whole numbers and SEGs of this package's own; raises InputError where they are none.

    box_per_frame: whether a bbox may hold one box for each frame
    """
    try:
        (height, width), items = segs
        header, items = (int(height), int(width)), list(items)
    except (TypeError, ValueError, OverflowError):
        raise InputError(f"segs must be ((height, width), [SEG, ...]), not {segs!r:.80}{_remedy_for(segs)}") from None
    if min(header) < 0:
        raise InputError(f"the header of segs must be (height, width) of their frames in pixels, not {segs[0]!r:.80}")
    found = [_seg_of(item, index) for index, item in enumerate(items)]
    return header, [
        seg._replace(crop_region=_region(seg.crop_region, index), bbox=_bbox(seg.bbox, index, box_per_frame))
        for index, seg in enumerate(found)
    ]


def _remedy_for(segs: Any) -> str:
    """What is probably meant by SEGS that are none."""
    if not isinstance(segs, tuple | list):
        return ""
    if segs and all(map(_is_seg, segs)):
        return ". These are SEGs alone: put (height, width) of their frames before them"
    if len(segs) == 1:
        return ". A node returns a tuple, so unpack it: (segs,) = MaskToSEGS_for_AnimateDiff.doit(mask)"
    return ""


def _is_seg(value: Any) -> bool:
    return all(hasattr(value, name) for name in SEG._fields[:-1])


def _seg_of(item: Any, index: int) -> SEG:
    """A SEG from whatever names its fields, more of them too, or from six or seven in its order."""
    if _is_seg(item):
        fields: list[Any] = [getattr(item, name, None) for name in SEG._fields]
        return SEG(*fields)
    if not isinstance(item, tuple | list):
        hint = ". Give SEG(**it)" if isinstance(item, dict) else ""
        raise InputError(f"segment {index} must be a SEG, not {type(item).__name__}{hint}")
    if len(item) not in (len(SEG._fields) - 1, len(SEG._fields)):
        raise InputError(
            f"segment {index} has {len(item)} fields, a SEG has {len(SEG._fields)}: {', '.join(SEG._fields)}"
        )
    return SEG(*item)


def _region(value: Any, index: int) -> CropRegion:
    try:
        x1, y1, x2, y2 = (operator.index(side) for side in value)
        return x1, y1, x2, y2
    except (TypeError, ValueError):
        raise InputError(
            f"segment {index}: crop_region must be four whole numbers x1, y1, x2, y2, not {value!r}"
        ) from None


def _check_area(index: int, region: CropRegion) -> None:
    x1, y1, x2, y2 = region
    if x2 <= x1 or y2 <= y1:
        raise InputError(
            f"segment {index}: crop_region {tuple(region)} ends before it begins. It is x1, y1, x2, y2 with x2 > x1 "
            "and y2 > y1, not a width and height"
        )


def _bbox(value: Any, index: int, box_per_frame: bool) -> Any:
    """Four numbers, of their own type: detectors give float32, and the reference computes in that.

    With ``box_per_frame`` also one box for each frame, as ``read_boxes`` gives them.
    """
    boxes = read_boxes(value)
    if boxes is not None:
        if box_per_frame:
            return boxes
        raise InputError(f"segment {index}: a bbox for each frame is read with reference_mode=False only; give one")
    try:
        x1, y1, x2, y2 = value
        if all(math.isfinite(side) for side in (x1, y1, x2, y2)):
            return x1, y1, x2, y2
    except (TypeError, ValueError):
        pass
    raise InputError(f"segment {index}: bbox must be four numbers x1, y1, x2, y2, not {value!r}")


def _note_order(index: int, bbox: Any) -> None:
    """No error: the reference's scaling may turn a bbox around, and its node takes it."""
    if not isinstance(bbox, np.ndarray) and (bbox[2] < bbox[0] or bbox[3] < bbox[1]):
        logger.warning(
            "segment %d: bbox %s ends before it begins. It is x1, y1, x2, y2, not a width and height",
            index,
            tuple(bbox),
        )


def _note_aspect(header: tuple[int, int], frame_size: tuple[int, int]) -> None:
    """No error: the reference scales such SEGS so, and its outputs are the promise."""
    if 0 not in header and not same_aspect(header, frame_size):
        logger.warning(
            "SEGS made for %dx%d pixels are scaled to frames of %dx%d as the reference does it, y1 by the widths' "
            "ratio and x2 by the heights'. To scale each side by its own, set reference_mode=False, or --improve "
            "scale-regions",
            *header[::-1], *frame_size[::-1],
        )  # fmt: skip


def _note_mask_count(index: int, mask: Tensor, frame_count: int) -> None:
    """No error: the reference merges them."""
    if mask.ndim == 3 and len(mask) not in (1, frame_count):
        logger.warning(
            "segment %d: %d masks for %d frames are merged into one, as the reference does it. Give one per frame, or "
            "one for all",
            index, len(mask), frame_count,
        )  # fmt: skip


def _scale_seg(
    index: int,
    seg: SEG,
    header: tuple[int, int],
    frame_size: tuple[int, int],
    scale: ScaleRegion,
    pass_order: ops.PassOrder,
) -> SEG:
    _check_area(index, seg.crop_region)
    region = scale(seg.crop_region, header, frame_size)
    width, height = region[2] - region[0], region[3] - region[1]
    if width <= 0 or height <= 0:
        remedy = ". Drop the segment, or make the SEGS anew for these frames"
        if scale is scale_region and not same_aspect(header, frame_size):
            remedy = (
                ": the reference scales x2 by the heights' ratio. Set reference_mode=False, or --improve scale-regions"
            )
        raise InputError(
            f"segment {index}: crop_region {tuple(seg.crop_region)} of SEGS made for {header[1]}x{header[0]} pixels "
            f"has no area in frames of {frame_size[1]}x{frame_size[0]} pixels{remedy}"
        )
    mask = mask_of(seg, index)
    scaled_mask = resize_masks(mask if mask.ndim == 3 else mask[None], (width, height))
    image = seg.cropped_image
    if image is not None:
        pixels = images_of(seg, index)
        whole = (0, 0, pixels.shape[2], pixels.shape[1])
        image = ops.crop_resize(pixels, whole, (width, height), pass_order=pass_order)
    return seg._replace(
        cropped_image=image,
        cropped_mask=scaled_mask if mask.ndim == 3 else scaled_mask[0].numpy(),
        crop_region=region,
        bbox=_scale_bbox(seg.bbox, header, frame_size, scale),
    )


def _scale_bbox(bbox: Any, header: tuple[int, int], frame_size: tuple[int, int], scale: ScaleRegion) -> Any:
    if not isinstance(bbox, np.ndarray):
        return scale(bbox, header, frame_size)
    scaled = bbox.copy()
    for i in np.flatnonzero(np.isfinite(bbox).all(1)):
        scaled[i] = scale(bbox[i], header, frame_size)
    return scaled


def mask_of(seg: SEG, index: int) -> Tensor:
    """The segment's mask as float32 (h, w) or (n, h, w) on the CPU."""
    mask = mask_tensor(seg.cropped_mask, f"segment {index}: cropped_mask")
    if mask.ndim not in (2, 3) or 0 in mask.shape:
        raise InputError(
            f"segment {index}: cropped_mask must be (h, w) or (n, h, w) and not empty, not {tuple(mask.shape)}"
        )
    return mask


def images_of(seg: SEG, index: int) -> Tensor:
    """The segment's own pixels as float32 (f, h, w, 3) on the CPU."""
    pixels = float_tensor(seg.cropped_image, f"segment {index}: cropped_image")
    if pixels.ndim != 4 or pixels.shape[3] != 3 or 0 in pixels.shape:
        raise InputError(f"segment {index}: cropped_image must be (f, h, w, 3), not {tuple(pixels.shape)}")
    return pixels


def resize_masks(masks: Tensor, size: tuple[int, int]) -> Tensor:
    """Masks (n, h, w) resized bilinear, pixel centres aligned, to ``size`` (width, height)."""
    if masks.shape[1:] == (size[1], size[0]):
        return masks
    return F.interpolate(masks[:, None], size=(size[1], size[0]), mode="bilinear", align_corners=False)[:, 0]
