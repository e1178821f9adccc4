"""One segment over all frames: crop, enlarge and encode; sample; decode and shrink."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from animdetail_trt import ops
from animdetail_trt.backends.interface import VaeRunner
from animdetail_trt.detailer.masks import sampling_mask
from animdetail_trt.detailer.plan import SegmentPlan
from animdetail_trt.detailer.report import Observer, timed
from animdetail_trt.errors import SamplingError
from animdetail_trt.geometry import PIXELS_PER_LATENT, latent_crop
from animdetail_trt.sampling.guidance import Conditioning
from animdetail_trt.sampling.model import DiffusionModel
from animdetail_trt.sampling.refiner import Refiner, ksample_refined
from animdetail_trt.sampling.run import NoiseMask, SampleSettings, ksample
from animdetail_trt.segs import CropRegion


@dataclass(frozen=True)
class Painter:
    """The models and settings that every segment of a run is painted with."""

    model: DiffusionModel
    vae: VaeRunner
    positive: Conditioning
    negative: Conditioning
    settings: SampleSettings
    noise_mask_feather: int
    refiner: Refiner | None = None


def detail_segment(frames: Tensor, plan: SegmentPlan, painter: Painter, index: int, observer: Observer) -> Tensor:
    """The new crop, float32 (f, h, w, 3) in 0..1 and of ``plan.crop_size``, for all of ``frames`` (f, H, W, 3)."""
    count = frames.shape[0]
    source, region = frames, plan.crop_region or (0, 0, *plan.crop_size)
    if plan.pixels is not None:
        source = plan.pixels.expand(count, -1, -1, -1)
    with timed(observer, index, "encode"):
        latent = encode_crop(source, region, plan.work_size, painter.vae)
    mask = sampling_mask(plan.mask, count, painter.noise_mask_feather, plan.work_size)
    with timed(observer, index, "sample"):
        latent = _sample(latent, mask, painter, index, observer)
    if not torch.isfinite(latent).all():
        raise SamplingError(
            f"segment {index}: sampling gave NaN or infinity, which would be pasted as black. Use dtype float32 "
            "(--dtype float32), smaller prompt weights, or another checkpoint: this one may be damaged"
        )
    with timed(observer, index, "decode"):
        return decode_crop(latent, plan.crop_size, painter.vae)


def encode_crop(frames: Tensor, crop_region: CropRegion, work_size: tuple[int, int], vae: VaeRunner) -> Tensor:
    """Latents (f, 4, lh, lw) of a crop of ``frames`` (f, H, W, 3), enlarged to ``work_size`` (width, height).

    All batches go through one buffer: the first write to fresh memory costs more than what is computed into it.
    """
    left, top, right, bottom = latent_crop(work_size)
    width, height = right - left, bottom - top
    batch = min(vae.frames_per_call(width, height), len(frames))
    pixels = torch.empty(batch, 3, height, width)
    latents = []
    for part in frames.split(batch):
        into = pixels[: len(part)]
        latents.append(vae.encode(ops.crop_resize_to_vae_into(into, part, crop_region, work_size)))
    return torch.cat(latents)


def decode_crop(latents: Tensor, crop_size: tuple[int, int], vae: VaeRunner) -> Tensor:
    """Pixels (f, h, w, 3) in 0..1 of ``crop_size`` (width, height) from latents (f, 4, lh, lw)."""
    patch = torch.empty(len(latents), crop_size[1], crop_size[0], 3)
    scale = PIXELS_PER_LATENT
    batch = vae.frames_per_call(scale * latents.shape[3], scale * latents.shape[2])
    for into, part in zip(patch.split(batch), latents.split(batch), strict=True):
        ops.resize_from_vae_into(into, vae.decode(part).cpu())
    return patch


def _sample(latent: Tensor, mask: Tensor, painter: Painter, index: int, observer: Observer) -> Tensor:
    noise_mask = NoiseMask(mask, differential=painter.noise_mask_feather > 0)

    def on_step(step: int, steps: int) -> None:
        observer.step(index, step, steps)

    first = (painter.model, painter.settings, painter.positive, painter.negative, latent)
    if painter.refiner is None:
        return ksample(*first, noise_mask=noise_mask, on_step=on_step)
    return ksample_refined(*first, painter.refiner, noise_mask, on_step)
