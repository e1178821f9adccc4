"""Masks to SEGS: each connected region of a mask becomes a segment, as in MaskToSEGS_for_AnimateDiff."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from animdetail_trt.arrays import holds_integers, mask_tensor
from animdetail_trt.checks import is_finite, is_whole
from animdetail_trt.errors import InputError
from animdetail_trt.geometry import make_crop_region
from animdetail_trt.segs import SEG, SEGS, CropRegion

Floats = npt.NDArray[np.float32]
Bools = npt.NDArray[np.bool_]

LABEL = "A"
EIGHT_BITS = (-1 / 255, 256 / 255)
"""Values between these are 0..255 after times 255, truncated."""
DARKEST_KEPT = 0.1  # of 1; fainter pixels of a single mask are dropped before its regions are read


class MaskToSEGS_for_AnimateDiff:  # noqa: N801 - the node's name
    """The node; see ``doit``."""

    @staticmethod
    def doit(
        mask: Any,
        combined: bool = False,
        crop_factor: float = 3.0,
        bbox_fill: bool = False,
        drop_size: int = 10,
        contour_fill: bool = False,
    ) -> tuple[SEGS]:
        """Turn a mask, or one mask per frame, into SEGS labelled "A"; regions lowest in the frame come first.

        mask: (h, w) or (n, h, w), also (1, n, h, w); NumPy or torch, on any device; 0..1, bools, or integers 0 and 1,
            or 0..255 where the largest of all is above 1
        combined: one segment around everything, instead of one per connected region (8 neighbours, holes filled)
        crop_factor: size of the crop_region over that of the bbox
        bbox_fill: fill the bbox with 1
        drop_size: regions whose width or height is no larger than this are dropped, in pixels
        contour_fill: the region's filled outline is its mask, instead of the mask's own values

        One mask gives each segment a float32 NumPy cropped_mask (h, w) of 0 and 1: the segments are found, drawn
        into one frame, cut at 0.1 and found again, so ``combined`` and ``bbox_fill`` shape only the first finding.
        Several masks are searched as their maximum, and each segment gets a view of them, (n, h, w), with its own
        values and of its own type, float32 where that was integers; ``bbox_fill`` and ``contour_fill`` then change
        nothing. An empty mask gives empty SEGS. Raises InputError for another rank, no pixels, or values outside 0..1.
        """
        masks = _with_frames(mask)
        frames = mask_tensor(masks, "mask", EIGHT_BITS).numpy()
        if not is_finite(crop_factor) or crop_factor <= 0:
            raise InputError(f"crop_factor must be a positive number, not {crop_factor!r:.80}; the usual value is 3.0.")
        if not is_whole(drop_size):
            raise InputError(
                f"drop_size must be a whole number of pixels, not {drop_size!r:.80}; the usual value is 10."
            )
        if len(frames) > 1:
            if contour_fill:
                warnings.warn("contour_fill does nothing with several masks: they keep their values.", stacklevel=2)
            found = _find(frames.max(axis=0), combined, crop_factor, bbox_fill, drop_size, True)
            if holds_integers(masks):  # a crop of it would no longer tell whether its 1 is 1 or 1/255
                masks = torch.from_numpy(frames) if isinstance(masks, torch.Tensor) else frames
            segs = [seg._replace(cropped_mask=_crop(masks, seg.crop_region)) for seg in found]
        else:
            first = _find(frames[0], combined, crop_factor, bbox_fill, drop_size, contour_fill)
            drawn = _draw(first, frames.shape[1:])
            segs = list(_find(drawn, False, crop_factor, False, drop_size, contour_fill))
        return (((frames.shape[1], frames.shape[2]), segs),)


def _with_frames(mask: Any) -> Any:
    """The mask as (n, h, w), still of its own type."""
    shape = tuple(getattr(mask, "shape", ()))
    if len(shape) == 4 and shape[0] == 1:
        mask, shape = mask[0], shape[1:]
    if len(shape) == 2:
        mask, shape = mask[None], (1, *shape)
    if len(shape) != 3 or 0 in shape:
        what = f"of shape {tuple(mask.shape)}" if hasattr(mask, "shape") else f"a {type(mask).__name__}"
        raise InputError(f"mask must be an array or tensor (h, w) or (n, h, w) with at least one pixel; it is {what}.")
    return mask


def _find(
    mask: Floats, combined: bool, crop_factor: float, bbox_fill: bool, drop_size: int, contour_fill: bool
) -> Iterator[SEG]:
    """The segments of one (h, w) mask."""
    if combined:
        return _everything(mask, crop_factor, bbox_fill)
    return _regions(mask, crop_factor, bbox_fill, max(drop_size, 1), contour_fill)


def _everything(mask: Floats, crop_factor: float, bbox_fill: bool) -> Iterator[SEG]:
    """One segment over all pixels that are not zero; none where that is less than two pixels wide or high."""
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    if not len(rows):
        return
    # As published, this bbox ends on its last pixel instead of behind it, and bbox_fill takes frame coordinates
    # for those of the crop.
    bbox = int(columns[0]), int(rows[0]), int(columns[-1]), int(rows[-1])
    crop_region = make_crop_region(mask.shape[1], mask.shape[0], bbox, crop_factor)
    cropped_mask = _crop(mask, crop_region).copy()
    if cropped_mask.size == 0:
        return
    if bbox_fill:
        _crop(cropped_mask, bbox)[...] = 1
    yield SEG(None, cropped_mask, 1.0, crop_region, bbox, LABEL)


def _regions(mask: Floats, crop_factor: float, bbox_fill: bool, drop_size: int, contour_fill: bool) -> Iterator[SEG]:
    """One segment per connected region that is larger than ``drop_size`` both ways."""
    labels, found = _label_regions((mask * 255).astype(np.uint8) > 0)
    for label, bbox in found:
        x1, y1, x2, y2 = bbox
        if x2 - x1 <= drop_size or y2 - y1 <= drop_size:
            continue
        crop_region = make_crop_region(mask.shape[1], mask.shape[0], bbox, crop_factor)
        cropped_mask = (_crop(labels, crop_region) == label).astype(np.float32)
        if not contour_fill:
            cropped_mask *= _crop(mask, crop_region)
        if bbox_fill:
            left, top = crop_region[:2]
            _crop(cropped_mask, (x1 - left, y1 - top, x2 - left, y2 - top))[...] = 1
        yield SEG(None, cropped_mask.clip(0, 1), 1.0, crop_region, bbox, LABEL)


def _label_regions(mask: Bools) -> tuple[npt.NDArray[np.int32], list[tuple[int, CropRegion]]]:
    """Number the regions of a mask (h, w): pixels joined over 8 neighbours, with all that they enclose.

    Returns the labels (h, w), 0 outside, and (label, bbox) of each region, last first in reading order of their
    first pixels. These are OpenCV's outermost contours, filled, in the order in which findContours returns them
    (compared over random masks with OpenCV 4.14).
    """
    from scipy import ndimage

    background, _ = ndimage.label(~mask)
    edges = (background[0], background[-1], background[:, 0], background[:, -1])
    outside = np.unique(np.concatenate(edges))
    filled = ~np.isin(background, outside[outside > 0])
    labels, _ = ndimage.label(filled, structure=np.ones((3, 3)))
    found = []
    for label, (rows, columns) in enumerate(ndimage.find_objects(labels), start=1):
        first_column = int(np.argmax(labels[rows.start] == label))
        bbox = int(columns.start), int(rows.start), int(columns.stop), int(rows.stop)
        found.append(((rows.start, first_column), label, bbox))
    return labels, [(label, bbox) for _, label, bbox in sorted(found, reverse=True)]


def _draw(segs: Iterator[SEG], size: tuple[int, ...]) -> Floats:
    """All segments in one frame (h, w): 8-bit values or-ed, then 1 where that exceeds a tenth of the range."""
    drawn = np.zeros(size, dtype=np.uint8)
    for seg in segs:
        # The reference goes through 8 bits twice on the way, and each truncation can cost a step.
        once = _to_8bit(seg.cropped_mask).astype(np.float32) / np.float32(255)
        _crop(drawn, seg.crop_region)[...] |= _to_8bit(once)
    return (drawn.astype(np.float32) / np.float32(255) > DARKEST_KEPT).astype(np.float32)


def _to_8bit(mask: Floats) -> npt.NDArray[np.uint8]:
    return (mask * np.float32(255)).astype(np.uint8)


def _crop(mask: Any, region: CropRegion) -> Any:
    x1, y1, x2, y2 = region
    return mask[..., y1:y2, x1:x2]
