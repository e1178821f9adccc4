"""A segment's mask in its two uses: where to sample, and where to paste."""

from __future__ import annotations

from torch import Tensor

from animdetail_trt import ops
from animdetail_trt.detailer.plan import resize_masks


def sampling_mask(mask: Tensor, frame_count: int, feather_px: int, work_size: tuple[int, int]) -> Tensor:
    """The noise mask (1 or f, h, w) at ``work_size`` (width, height), from the segment's (h, w) or (n, h, w)."""
    feathered = ops.feather_mask(mask, feather_px)
    masks = resize_masks(feathered if feathered.ndim == 3 else feathered[None], work_size)
    if len(masks) in (1, frame_count):
        return masks
    # Kept as published: the first mask enters the merge without its factor 255 and so all but vanishes.
    return ops.merge_masks(masks, first_factor=1)[None]


def paste_mask(mask: Tensor, frame_count: int, feather_px: int, alpha: int, patch_size: tuple[int, int]) -> Tensor:
    """The weight (1 or f, h, w) of a patch of ``patch_size`` (width, height): the mask feathered, times alpha / 255."""
    masks = mask if mask.ndim == 3 else mask[None]
    if len(masks) not in (1, frame_count):
        masks = ops.merge_masks(masks)[None]
    return resize_masks(ops.feather_mask(masks, feather_px, alpha, one_by_one=True), patch_size)
