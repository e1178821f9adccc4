"""Regions and sizes as whole numbers: what is cropped, how far it is enlarged, what the VAE sees. No models, no arrays.

Sizes are (width, height) and regions (x1, y1, x2, y2), half open, both in pixels; a SEGS header is (height, width).
Every float becomes an int by truncation towards zero, as in the reference.
"""

from __future__ import annotations

from collections.abc import Sequence

from animdetail_trt.errors import InputError
from animdetail_trt.segs import CropRegion

PIXELS_PER_LATENT = 8
"""Pixels per latent along each side, in SD 1.5."""


def make_crop_region(frame_w: int, frame_h: int, bbox: Sequence[float], crop_factor: float) -> CropRegion:
    """Enlarge ``bbox`` about its centre by ``crop_factor``, then move it into the frame.

    A region that reaches over an edge is shifted inwards at full size; only one larger than the frame is cut.
    """
    x1, y1, x2, y2 = bbox
    left, right = _place_side(frame_w, x1, x2, crop_factor)
    top, bottom = _place_side(frame_h, y1, y2, crop_factor)
    return left, top, right, bottom


def _place_side(limit: int, start: float, end: float, crop_factor: float) -> tuple[int, int]:
    size = (end - start) * crop_factor
    # The centre first and the truncation last: another order of these sums moves some regions by a pixel.
    placed = int(start + (end - start) / 2 - size / 2)
    if placed < 0:
        return 0, int(min(limit, size))
    if placed + size > limit:
        return int(max(0, limit - size)), limit
    return placed, int(placed + size)


def scale_region(region: Sequence[int], header: tuple[int, int], frame_size: tuple[int, int]) -> CropRegion:
    """Carry ``region`` from the SEGS header's (height, width) to the frames' (height, width).

    As published: x1 and y1 scale by the widths' ratio, x2 and y2 by the heights' ratio, so a change of aspect ratio
    also changes the region's shape. Equal sizes, or a header with a zero in it, leave the region as it is.
    """
    x1, y1, x2, y2 = region
    (header_h, header_w), (frame_h, frame_w) = header, frame_size
    if (header_h, header_w) == (frame_h, frame_w) or header_h == 0 or header_w == 0:
        return x1, y1, x2, y2
    by_width, by_height = frame_w / header_w, frame_h / header_h
    return int(x1 * by_width), int(y1 * by_width), int(x2 * by_height), int(y2 * by_height)


def same_aspect(size: tuple[int, int], other: tuple[int, int]) -> bool:
    """Whether one (width, height) is the other enlarged, to within a pixel."""
    return abs(size[0] * other[1] - size[1] * other[0]) <= max(*size, *other)


def upscaled_size(
    crop_size: tuple[int, int], bbox: Sequence[float], guide_size: float, guide_size_for_bbox: bool, max_size: float
) -> tuple[int, int]:
    """The (width, height) at which a crop of ``crop_size`` is sampled; ``crop_size`` itself when nothing enlarges it.

    The shorter side, of ``bbox`` or of the crop, is brought to ``guide_size``; then the longer side of the crop is
    held to ``max_size``. Nothing is ever made smaller: a factor of one or less means no scaling ("force inpaint").
    Raises InputError where the guiding side has no length.
    """
    width, height = crop_size
    guided = (bbox[2] - bbox[0], bbox[3] - bbox[1]) if guide_size_for_bbox else crop_size
    if min(guided) == 0:
        what = f"bbox {tuple(bbox)} of a segment" if guide_size_for_bbox else f"crop of {width}x{height} pixels"
        raise InputError(f"the {what} has no area, so guide_size {guide_size} says nothing. Drop the segment.")
    upscale = guide_size / min(guided)
    new_w, new_h = int(width * upscale), int(height * upscale)
    if new_w > max_size or new_h > max_size:
        upscale *= max_size / max(new_w, new_h)
        new_w, new_h = int(width * upscale), int(height * upscale)
    if upscale <= 1 or new_w == 0 or new_h == 0:
        return width, height
    return new_w, new_h


def latent_crop(size: tuple[int, int]) -> CropRegion:
    """The centred part of a (width, height) image whose sides are multiples of 8: all that the VAE encodes."""
    width, height = size
    if min(size) < PIXELS_PER_LATENT:
        raise InputError(
            f"{width}x{height} pixels are fewer than the {PIXELS_PER_LATENT}x{PIXELS_PER_LATENT} of one latent. "
            "Use a larger guide_size or max_size, or a larger crop_region."
        )
    left, top = width % PIXELS_PER_LATENT // 2, height % PIXELS_PER_LATENT // 2
    lw, lh = latent_size(size)
    return left, top, left + lw * PIXELS_PER_LATENT, top + lh * PIXELS_PER_LATENT


def latent_size(size: tuple[int, int]) -> tuple[int, int]:
    """(width, height) in latents of what ``latent_crop`` keeps of a (width, height) image."""
    return size[0] // PIXELS_PER_LATENT, size[1] // PIXELS_PER_LATENT
