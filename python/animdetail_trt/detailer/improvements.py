"""What is done better than the reference, where that is asked for. Off by default: the reference is the promise."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from animdetail_trt.errors import InputError
from animdetail_trt.geometry import PIXELS_PER_LATENT
from animdetail_trt.segs import CropRegion


@dataclass(frozen=True)
class Improvements:
    """What ``reference_mode=False`` repairs; each can be switched off alone.

    round_to_8: sample at sides that are multiples of 8. The reference samples at 614 pixels what its VAE cuts to 608
        and then stretches back: a zoom of 1 %, and a shift where the cut is odd
    merge_masks: where a segment has several masks but not one per frame, the first counts like the others. In the
        reference it enters the noise mask as good as black
    scale_regions: SEGS made for another frame size are scaled by the width's ratio in x and by the height's in y, to
        the nearest pixel, and so are a conditioning's masks. The reference scales x2 by the height's and y1 by the
        width's. Returned SEGS then name the size that they are in
    follow_motion: where masks or boxes of each frame show that a segment moves, a window of one size goes with it
        inside the crop_region, and only the window is sampled; see ``detailer.follow``
    call_hooks: all methods of a detailer_hook are called, not ``post_paste`` alone; see ``detailer.hooks``
    """

    round_to_8: bool = True
    merge_masks: bool = True
    scale_regions: bool = True
    follow_motion: bool = True
    call_hooks: bool = True


REFERENCE = Improvements(False, False, False, False, False)


def choose_improvements(reference_mode: bool, improvements: Improvements | None) -> Improvements:
    """None in reference mode; otherwise those that are given, or all."""
    if improvements is not None and not isinstance(improvements, Improvements):
        raise InputError(f"improvements must be Improvements(...), not {improvements!r:.80}")
    if reference_mode:
        if improvements is not None:
            raise InputError("improvements are made with reference_mode=False only. Set it, or leave improvements out")
        return REFERENCE
    return improvements or Improvements()


def round_to_8(size: tuple[int, int], max_size: float) -> tuple[int, int]:
    """(width, height) with each side at the nearest multiple of 8, at least 8; rounding lifts none above max_size."""
    width, height = (_round_side(side, max_size) for side in size)
    return width, height


def _round_side(side: int, max_size: float) -> int:
    nearest = (side + PIXELS_PER_LATENT // 2) // PIXELS_PER_LATENT * PIXELS_PER_LATENT
    if nearest > max(side, max_size):
        nearest -= PIXELS_PER_LATENT
    return max(nearest, PIXELS_PER_LATENT)


def scale_region_by_side(region: Sequence[float], header: tuple[int, int], frame_size: tuple[int, int]) -> CropRegion:
    """Carry ``region`` from the header's (height, width) to the frames': x by the widths, y by the heights."""
    x1, y1, x2, y2 = region
    by_width, by_height = frame_size[1] / header[1], frame_size[0] / header[0]
    return round(x1 * by_width), round(y1 * by_height), round(x2 * by_width), round(y2 * by_height)
