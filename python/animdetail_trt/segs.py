"""SEG and SEGS: one detected region of the frames, and all of them with the frame size that they refer to."""

from __future__ import annotations

from typing import Any, NamedTuple, TypeAlias

CropRegion: TypeAlias = tuple[int, int, int, int]
"""``(x1, y1, x2, y2)`` in frame pixels, half open."""


class SEG(NamedTuple):
    """One segment, field for field the Impact Pack's named tuple.

    cropped_image: None, or float32 (f or 1, h, w, 3) in 0..1, NumPy or torch
    cropped_mask: float32 (h, w) or (n, h, w) in 0..1, NumPy or torch; of bools or integers 0 and 1, or of 8 bits, too
    confidence: detector score in 0..1
    crop_region: what is cropped, enlarged and sampled
    bbox: what was detected; lies inside crop_region as a rule. With reference_mode=False it may be a list of a box, or
        None, for every frame, which the crop follows
    label: class name such as "face"
    control_net_wrapper: None, or an object with ``apply(positive, negative, images, mask, use_acn=True)``
    """

    cropped_image: Any
    cropped_mask: Any
    confidence: float
    crop_region: CropRegion
    bbox: CropRegion
    label: str
    control_net_wrapper: Any = None


SEGS: TypeAlias = tuple[tuple[int, int], list[SEG]]
"""``((frame_height, frame_width), [SEG, ...])``."""
