"""One segment over all frames: crop, enlarge and encode; sample; decode and shrink."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from functools import partial
from typing import TypeAlias

import torch
from torch import Tensor

from animdetail_trt import ops
from animdetail_trt.backends.interface import VaeRunner
from animdetail_trt.detailer.canvas import ON_HOST, Canvas
from animdetail_trt.detailer.foreign import ForeignModel
from animdetail_trt.detailer.hooks import NO_HOOKS, Hooks, Sampling
from animdetail_trt.detailer.improvements import REFERENCE, Improvements
from animdetail_trt.detailer.masks import crop_condition_masks, sampling_mask
from animdetail_trt.detailer.plan import SegmentPlan
from animdetail_trt.detailer.report import Observer, timed
from animdetail_trt.detailer.transfer import parts
from animdetail_trt.errors import SamplingError
from animdetail_trt.geometry import PIXELS_PER_LATENT, latent_crop
from animdetail_trt.sampling.conditioning import Conditioning
from animdetail_trt.sampling.model import DiffusionModel
from animdetail_trt.sampling.refiner import Refiner, sample_refined
from animdetail_trt.sampling.run import NoiseMask, SampleSettings, sample
from animdetail_trt.segs import CropRegion


@dataclass(frozen=True)
class Painter:
    """The models and settings that every segment of a run is painted with."""

    model: DiffusionModel | ForeignModel
    vae: VaeRunner
    positive: Conditioning
    negative: Conditioning
    settings: SampleSettings
    noise_mask_feather: int
    refiner: Refiner | None = None
    improvements: Improvements = REFERENCE
    hooks: Hooks = NO_HOOKS
    pass_order: ops.PassOrder = "pillow13"


Paste: TypeAlias = Callable[[slice, Tensor, Tensor], None]
"""``paste(part, patch, kept)``: new pixels of some frames were made, as ``Canvas.paste`` takes them."""


def detail_segment(
    canvas: Canvas, plan: SegmentPlan, painter: Painter, index: int, observer: Observer, paste: Paste | None = None
) -> Tensor:
    """The new crop, float32 (f, h, w, 3) in 0..1 on the host, for all frames of ``canvas``.

    It is of the size of the segment's crop_region or own pixels, also where only a window of it was sampled. ``paste``
    gets it a part at a time, as it is made. All of it is there after ``canvas.finish()``.
    """
    hooks, frame_count = painter.hooks, canvas.shape[0]
    source, region = _pixels_to_paint(canvas, plan)
    with timed(observer, index, "encode"):
        if hooks.has("post_upscale"):
            upscaled = ops.crop_resize(
                source.on_host(region), _whole(region), plan.work_size, pass_order=painter.pass_order
            )
            source = canvas.beside(hooks.post_upscale(upscaled))
            region = (0, 0, *plan.work_size)
        latent = encode_crop(source, region, plan.work_size, painter.vae, pass_order=painter.pass_order)
    mask = sampling_mask(plan, frame_count, painter.noise_mask_feather, painter.improvements)
    latent, mask = hooks.post_encode(latent, mask)
    painter = _for_segment(painter, plan, (canvas.shape[1], canvas.shape[2]))
    with timed(observer, index, "sample"):
        latent = _sample(latent, mask, painter, index, observer)
    if not torch.isfinite(latent).all():
        raise SamplingError(
            f"segment {index}: sampling gave NaN or infinity, which would be pasted as black. Use dtype float32 "
            "(--dtype float32), smaller prompt weights, or another checkpoint: this one may be damaged"
        )
    latent = hooks.pre_decode(latent, mask)
    if plan.track is None and not hooks.has("post_decode"):
        return decode_crop(
            latent, plan.crop_size, painter.vae, canvas, partial(timed, observer, index), paste,
            pass_order=painter.pass_order,
        )  # fmt: skip
    with timed(observer, index, "decode"):
        crops = _decode_whole(latent, plan, painter, canvas)
    if paste is not None:
        paste(slice(None), crops, crops)
    return crops


def _decode_whole(latent: Tensor, plan: SegmentPlan, painter: Painter, canvas: Canvas) -> Tensor:
    """All frames at once, on the host: for a hook that looks at them, or a window that lies elsewhere in each."""
    if painter.hooks.has("post_decode"):
        pixels = painter.hooks.post_decode(decode_pixels(latent, painter.vae))
        whole = (0, 0, pixels.shape[2], pixels.shape[1])
        crops = ops.crop_resize(pixels, whole, plan.crop_size, pass_order=painter.pass_order)
    else:
        crops = decode_crop(latent, plan.crop_size, painter.vae, ON_HOST, pass_order=painter.pass_order)
    if plan.track is None:
        return crops
    assert plan.crop_region is not None  # only crops of frames are followed
    return plan.track.place(crops, canvas.on_host(plan.crop_region))


def _for_segment(painter: Painter, plan: SegmentPlan, frame_size: tuple[int, int]) -> Painter:
    """The refiner's conditioning stays whole, as in the reference."""
    positive, negative = (
        crop_condition_masks(conditioning, plan, frame_size, painter.improvements)
        for conditioning in (painter.positive, painter.negative)
    )
    return replace(painter, positive=positive, negative=negative)


def _pixels_to_paint(canvas: Canvas, plan: SegmentPlan) -> tuple[Canvas, CropRegion]:
    """Where the pixels (f, H, W, 3) are, and the region of them that is sampled: crop_region, its window, or the
    segment's own."""
    whole = (0, 0, *plan.crop_size)
    if plan.pixels is not None:
        return canvas.beside(plan.pixels.expand(canvas.shape[0], -1, -1, -1)), whole
    assert plan.crop_region is not None  # the one or the other
    if plan.track is not None:
        return canvas.beside(plan.track.cut(canvas.on_host(plan.crop_region))), whole
    return canvas, plan.crop_region


def _whole(region: CropRegion) -> CropRegion:
    x1, y1, x2, y2 = region
    return 0, 0, x2 - x1, y2 - y1


def with_controls(canvas: Canvas, plan: SegmentPlan, painter: Painter) -> tuple[SegmentPlan, Painter, list[Tensor]]:
    """The plan with its mask feathered, the painter steered by the segment's ControlNets, and the pictures that they
    are shown, (n, h, w, 3) each: the crops as they are, not enlarged, unless they bring their own."""
    wrapper = plan.seg.control_net_wrapper
    if wrapper is None:
        return plan, painter, []
    source, region = _pixels_to_paint(canvas, plan)
    crops = source.on_host(region)
    mask = ops.feather_mask(plan.mask, painter.noise_mask_feather)
    positive, negative, images = wrapper.apply(painter.positive, painter.negative, crops, mask, use_acn=True)
    return replace(plan, feathered=mask), replace(painter, positive=positive, negative=negative), images


def encode_crop(
    canvas: Canvas,
    crop_region: CropRegion,
    work_size: tuple[int, int],
    vae: VaeRunner,
    *,
    pass_order: ops.PassOrder = "pillow13",
) -> Tensor:
    """Latents (f, 4, lh, lw) of a crop of ``canvas``, enlarged to ``work_size`` (width, height).

    All batches go through one buffer: the first write to fresh memory costs more than what is computed into it.
    """
    left, top, right, bottom = latent_crop(work_size)
    width, height, frame_count = right - left, bottom - top, canvas.shape[0]
    batch = min(vae.frames_per_call(width, height), frame_count)
    pixels = torch.empty(batch, 3, height, width, dtype=vae.dtype, device=canvas.device)
    latents = []
    for part in parts(frame_count, batch):
        crop = canvas.crop(part, crop_region)
        into = pixels[: len(crop)]
        ops.crop_resize_to_vae_into(into, crop, _whole(crop_region), work_size, pass_order=pass_order)
        latents.append(vae.encode(into))
    return torch.cat(latents)


def decode_crop(
    latents: Tensor,
    crop_size: tuple[int, int],
    vae: VaeRunner,
    canvas: Canvas,
    timer: Callable[[str], AbstractContextManager[None]] = lambda stage: nullcontext(),
    paste: Paste | None = None,
    *,
    pass_order: ops.PassOrder = "pillow13",
) -> Tensor:
    """Pixels (f, h, w, 3) in 0..1 of ``crop_size`` (width, height) from latents (f, 4, lh, lw), on the host and made on
    ``canvas.device``; ``paste`` and when they are there as in detail_segment."""
    crops = torch.empty(len(latents), crop_size[1], crop_size[0], 3)
    for part in parts(len(latents), _frames_per_decode(latents, vae)):
        kept = crops[part]
        with timer("decode"):
            patch = canvas.room_for(kept)
            ops.resize_from_vae_into(patch, vae.decode(latents[part]).to(canvas.device), pass_order=pass_order)
            canvas.keep(patch, kept)
        if paste is not None:
            paste(part, patch, kept)
    return crops


def decode_pixels(latents: Tensor, vae: VaeRunner) -> Tensor:
    """All that the VAE decodes, (f, 8 lh, 8 lw, 3) in 0..1, from latents (f, 4, lh, lw)."""
    decoded = [vae.decode(part).float().cpu() for part in latents.split(_frames_per_decode(latents, vae))]
    return ((torch.cat(decoded) + 1) / 2).clamp(0, 1).permute(0, 2, 3, 1)


def _frames_per_decode(latents: Tensor, vae: VaeRunner) -> int:
    return vae.frames_per_call(PIXELS_PER_LATENT * latents.shape[3], PIXELS_PER_LATENT * latents.shape[2])


def _sample(latent: Tensor, mask: Tensor, painter: Painter, index: int, observer: Observer) -> Tensor:
    hooks = painter.hooks
    latent, mask = hooks.cycle_latent(latent, mask)
    noise_mask = NoiseMask(mask, differential=painter.noise_mask_feather > 0)
    sampling = hooks.pre_ksample(
        Sampling(painter.model, painter.settings, painter.positive, painter.negative), latent, mask
    )
    noise = hooks.custom_noise(painter.settings.seed, latent)

    def on_step(step: int, steps: int) -> None:
        observer.step(index, step, steps)

    if isinstance(sampling.model, ForeignModel):
        conditioning = (sampling.positive, sampling.negative)
        return sampling.model.sample(
            sampling.settings, *conditioning, latent, noise_mask, painter.refiner, noise, on_step
        )
    first = (sampling.model, sampling.settings, sampling.positive, sampling.negative, latent)
    if painter.refiner is None:
        return sample(*first, noise_mask, on_step, noise)
    return sample_refined(*first, painter.refiner, noise_mask, on_step, noise)
