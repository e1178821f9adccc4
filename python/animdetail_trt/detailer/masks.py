"""A segment's mask in its two uses, where to sample and where to paste, and what it sees of a conditioning's masks."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from animdetail_trt import ops
from animdetail_trt.detailer.improvements import Improvements
from animdetail_trt.detailer.plan import SegmentPlan, resize_masks
from animdetail_trt.errors import InputError
from animdetail_trt.sampling.conditioning import Conditioning


def sampling_mask(plan: SegmentPlan, frame_count: int, feather_px: int, improvements: Improvements) -> Tensor:
    """The noise mask (1 or f, h, w) at the plan's work_size, from its mask (h, w) or (n, h, w)."""
    feathered = ops.feather_mask(plan.mask, feather_px) if plan.feathered is None else plan.feathered
    masks = feathered if feathered.ndim == 3 else feathered[None]
    if plan.track is not None:
        masks = plan.track.cut(resize_masks(masks, plan.track.ground))
    masks = resize_masks(masks, plan.work_size)
    if len(masks) in (1, frame_count):
        return masks
    # Kept as published: the first mask enters the merge without its factor 255 and so all but vanishes.
    return ops.merge_masks(masks, first_factor=255 if improvements.merge_masks else 1)[None]


def paste_mask(
    mask: Tensor,
    frame_count: int,
    feather_px: int,
    alpha: int,
    patch_size: tuple[int, int],
    device: torch.device | None = None,
) -> Tensor:
    """The weight (1 or f, h, w) of a patch of ``patch_size`` (width, height), on ``device`` or where the mask is: the
    mask feathered, times alpha / 255."""
    masks = (mask if mask.ndim == 3 else mask[None]).to(device, non_blocking=True)
    if len(masks) not in (1, frame_count):
        masks = ops.merge_masks(masks)[None]
    feathered = ops.feather_mask(masks, feather_px, alpha, one_by_one=True)
    if (feathered.shape[2], feathered.shape[1]) == patch_size:
        return feathered
    return resize_masks(feathered.cpu(), patch_size).to(device)  # a GPU's resize gives other bits


def crop_condition_masks(
    conditioning: Conditioning, plan: SegmentPlan, frame_size: tuple[int, int], improvements: Improvements
) -> Conditioning:
    """``conditioning`` whose masks (n, h, w) are cut to the segment; the rest of it as it is.

    The reference takes a mask to be as large as the crop, and scales x by the heights' ratio, y by the widths'.
    """

    def cropped(mask: Any) -> Tensor:
        height, width = mask.shape[-2:]
        if improvements.scale_regions:
            by_x, by_y = width / frame_size[1], height / frame_size[0]
        else:
            by_x, by_y = height / plan.crop_size[1], width / plan.crop_size[0]
        x1, y1, x2, y2 = (round(v * (by_y if i % 2 else by_x)) for i, v in enumerate(plan.seg.crop_region))
        part: Tensor = mask[..., max(y1, 0) : y2, max(x1, 0) : x2]
        if 0 in part.shape:
            raise InputError(
                f"a conditioning mask of {width} x {height} has no part for the segment at {plan.seg.crop_region}: the "
                "reference cuts it at the wrong scale. Use reference_mode=False, or make the mask larger"
            )
        if plan.track is not None:
            masks = resize_masks(part if part.ndim == 3 else part[None], plan.track.ground)
            return plan.track.cut(masks[torch.arange(len(plan.track.left_tops)) % len(masks)])
        return part

    return [
        [tokens, {key: cropped(value) if key == "mask" else value for key, value in extras.items()}]
        for tokens, extras in conditioning
    ]
