"""What each op computes, in plain torch on the CPU: the definition, not meant to be fast.

Axes: f frames, h w size, c channels, n masks. All floats are float32.
"""

from __future__ import annotations

import functools
import math
import operator
from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional

from animdetail_trt.segs import CropRegion

FRACTION_BITS = 22
LANCZOS_SUPPORT = 3.0
FEATHER_SIGMA = 10.0


def crop_resize(
    frames: Tensor, crop_region: CropRegion, size: tuple[int, int], *, pass_order: str = "pillow13"
) -> Tensor:
    """(f, h, w, c) in 0..1 -> (f, height, width, c): crop, ``trunc(clip(255 x))``, LANCZOS, ``/ 255``."""
    x1, y1, x2, y2 = crop_region
    return resample(quantise(frames[:, y1:y2, x1:x2]), size, pass_order) / 255.0


def crop_resize_to_vae(
    frames: Tensor, crop_region: CropRegion, size: tuple[int, int], *, pass_order: str = "pillow13"
) -> Tensor:
    """(f, h, w, 3) in 0..1 -> (f, 3, h8, w8) in -1..1: ``2 x - 1`` of the centre of :func:`crop_resize`."""
    width, height = size
    left, top = width % 8 // 2, height % 8 // 2
    resized = crop_resize(frames, crop_region, size, pass_order=pass_order)
    centre = resized[:, top : top + height // 8 * 8, left : left + width // 8 * 8]
    return (centre * 2.0 - 1.0).permute(0, 3, 1, 2)


def resize_from_vae(decoded: Tensor, size: tuple[int, int], *, pass_order: str = "pillow13") -> Tensor:
    """(f, 3, h, w) -> (f, height, width, 3) in 0..1: ``clip((x + 1) / 2, 0, 1)``, then as :func:`crop_resize`."""
    pixels = torch.clamp((decoded + 1.0) / 2.0, 0.0, 1.0).permute(0, 2, 3, 1)
    return resample(quantise(pixels), size, pass_order) / 255.0


def feather_mask(mask: Tensor, feather_px: int, alpha: float = 255) -> Tensor:
    """(h, w) or (n, h, w) -> the same shape: Gaussian blur, times ``alpha / 255``."""
    masks = mask if mask.ndim == 3 else mask[None]
    radius = feather_radius(min(masks.shape[-2:]), feather_px)
    if radius > 0:
        weights = feather_weights(radius)
        kernel = weights[:, None] @ weights[None, :]
        extended = functional.pad(masks[:, None], [radius] * 4, mode="reflect")
        masks = functional.conv2d(extended, kernel[None, None])[:, 0]
    return (masks * (alpha / 255)).reshape(mask.shape)


def alpha_paste(canvas: Tensor, patch: Tensor, mask: Tensor, left_top: tuple[int, int]) -> Tensor:
    """``(1 - mask) canvas + mask patch`` where patch (f, h', w', c) at left_top lies on canvas (f, h, w, c)."""
    x, y = left_top
    left, right = max(0, x), min(canvas.shape[2], x + patch.shape[2])
    top, bottom = max(0, y), min(canvas.shape[1], y + patch.shape[1])
    if left < right and top < bottom:
        below = canvas[:, top:bottom, left:right]
        above = patch[:, top - y : bottom - y, left - x : right - x]
        alpha = mask[..., top - y : bottom - y, left - x : right - x, None]
        below.copy_((1 - alpha) * below + alpha * above)
    return canvas


def paste_from_vae(
    canvas: Tensor,
    decoded: Tensor,
    mask: Tensor,
    left_top: tuple[int, int],
    size: tuple[int, int],
    *,
    pass_order: str = "pillow13",
) -> Tensor:
    """:func:`alpha_paste` of :func:`resize_from_vae` at ``size``."""
    return alpha_paste(canvas, resize_from_vae(decoded, size, pass_order=pass_order), mask, left_top)


def merge_masks(masks: Tensor, first_factor: int = 255) -> Tensor:
    """(n, h, w) -> (h, w): bitwise or of 8-bit values, ``/ 255``, 1 where above 0.1, else 0."""
    merged = (masks[0] * first_factor).to(torch.uint8)
    for mask in masks[1:]:
        merged |= (mask * 255).to(torch.uint8)
    return (merged / 255.0 > 0.1).to(torch.float32)


def feather_radius(shorter: int, feather_px: int) -> int:
    """Half width of the blur of a mask whose shorter side is ``shorter``: falls back where the kernel does not fit."""
    if feather_px <= 0:
        return 0
    if shorter > 2 * feather_px + 1:
        return feather_px
    size = shorter // 2 | 1
    return size // 2 if size >= 3 else 0


def feather_weights(radius: int) -> Tensor:
    """(2 radius + 1,) of a Gaussian of sigma 10 that sum to 1, in float32, as torchvision computes them."""
    weights = torch.exp(-0.5 * (torch.linspace(-radius, radius, 2 * radius + 1) / FEATHER_SIGMA) ** 2)
    return weights / weights.sum()


def blas_blurs(shape: Sequence[int], radius: int) -> bool:
    """Whether torch leaves the blur of a mask of ``shape`` to its BLAS on a CPU: that of a single small picture under a
    3x3 kernel (at::native::ConvParams::use_mkldnn). BLAS sums the taps in an order that depends on the processor; for
    all else oneDNN sums them row by row with fused multiply-adds."""
    single = len(shape) < 3 or shape[0] == 1
    pixels = math.prod(side + 2 * radius for side in shape[-2:])
    return single and radius == 1 and pixels <= 20480


def quantise(pixels: Tensor) -> Tensor:
    """0..1 -> 0..255 in int64: ``trunc(clip(255 x, 0, 255))``; NaN becomes 0."""
    return torch.clamp(255.0 * pixels, 0, 255).nan_to_num(0.0).to(torch.int64)


def resample(pixels: Tensor, size: tuple[int, int], pass_order: str) -> Tensor:
    """(f, h, w, c) in 0..255 -> (f, height, width, c): Pillow's LANCZOS; a pass is skipped where the size stays."""
    width, height = size
    rows_removed, columns_removed = pixels.shape[1] - height, pixels.shape[2] - width
    axes = [(2, width), (1, height)]
    if pass_order == "pillow13" and rows_removed > 0 and rows_removed > 2 * columns_removed:
        axes.reverse()
    for axis, out_size in axes:
        if out_size != pixels.shape[axis]:
            pixels = resample_axis(pixels, axis, out_size)
    return pixels


def resample_axis(pixels: Tensor, axis: int, out_size: int) -> Tensor:
    """One pass: sums of 22-bit fixed-point taps, plus one half, shifted, clipped to 0..255."""
    matrix = fixed_point_taps(pixels.shape[axis], out_size)
    sums = pixels.movedim(axis, -1) @ matrix.T + (1 << (FRACTION_BITS - 1))
    return (sums >> FRACTION_BITS).clamp(0, 255).movedim(-1, axis)


def fixed_point_taps(in_size: int, out_size: int) -> Tensor:
    """(out_size, in_size) int64: normalised in float64, rounded half away from zero (Pillow's Resample.c)."""
    scale = in_size / out_size
    filter_scale = max(scale, 1.0)
    support = LANCZOS_SUPPORT * filter_scale
    matrix = torch.zeros(out_size, in_size, dtype=torch.int64)
    for i in range(out_size):
        centre = (i + 0.5) * scale
        begin, end = max(0, int(centre - support + 0.5)), min(in_size, int(centre + support + 0.5))
        taps = [lanczos3((x - centre + 0.5) * (1.0 / filter_scale)) for x in range(begin, end)]
        total = functools.reduce(operator.add, taps)  # sum() rounds otherwise, since Python 3.12
        fixed = [int(math.copysign(0.5, tap) + tap / total * (1 << FRACTION_BITS)) for tap in taps]
        matrix[i, begin:end] = torch.tensor(fixed)
    return matrix


def lanczos3(x: float) -> float:
    """``sinc(x) sinc(x / 3)`` within 3 of zero, with ``sinc(x) = sin(pi x) / (pi x)``."""
    return sinc(x) * sinc(x / LANCZOS_SUPPORT) if -LANCZOS_SUPPORT <= x < LANCZOS_SUPPORT else 0.0


def sinc(x: float) -> float:
    return math.sin(x * math.pi) / (x * math.pi) if x else 1.0
