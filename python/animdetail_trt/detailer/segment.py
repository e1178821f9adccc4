"""One segment over all frames: crop and enlarge, encode, sample, decode, shrink."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from animdetail_trt import ops
from animdetail_trt.backends.interface import VaeRunner
from animdetail_trt.detailer.masks import sampling_mask
from animdetail_trt.detailer.plan import SegmentPlan, images_of, mask_of
from animdetail_trt.detailer.report import Observer, timed
from animdetail_trt.sampling.guidance import Conditioning
from animdetail_trt.sampling.model import DiffusionModel
from animdetail_trt.sampling.refiner import Refiner, ksample_refined
from animdetail_trt.sampling.run import NoiseMask, SampleSettings, ksample


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
    with timed(observer, index, "crop_resize"):
        if plan.crop_region is not None:
            source, region = frames, plan.crop_region
        else:
            source, region = images_of(plan.seg, index).expand(count, -1, -1, -1), (0, 0, *plan.crop_size)
        pixels = ops.crop_resize_to_vae(source, region, plan.work_size)  # (f, 3, h8, w8) in -1..1
        mask = sampling_mask(mask_of(plan.seg, index), count, painter.noise_mask_feather, plan.work_size)
    with timed(observer, index, "encode"):
        latent = painter.vae.encode(pixels)
    with timed(observer, index, "sample"):
        latent = _sample(latent, mask, painter, index, observer)
    with timed(observer, index, "decode"):
        decoded = painter.vae.decode(latent)  # (f, 3, h8, w8)
    with timed(observer, index, "resize"):
        return ops.resize_from_vae(decoded.cpu(), plan.crop_size)


def _sample(latent: Tensor, mask: Tensor, painter: Painter, index: int, observer: Observer) -> Tensor:
    noise_mask = NoiseMask(mask, differential=painter.noise_mask_feather > 0)

    def on_step(step: int, steps: int) -> None:
        observer.step(index, step, steps)

    first = (painter.model, painter.settings, painter.positive, painter.negative, latent)
    if painter.refiner is None:
        return ksample(*first, noise_mask=noise_mask, on_step=on_step)
    return ksample_refined(*first, painter.refiner, noise_mask, on_step)
