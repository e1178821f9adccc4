"""The detailer nodes: names, argument order and defaults of the Impact Pack's, outputs the same."""

from __future__ import annotations

import logging
from collections.abc import Callable
from contextlib import AbstractContextManager
from functools import cached_property, partial
from typing import Any, TypeAlias, get_args

import torch
from torch import Tensor

from animdetail_trt import ops
from animdetail_trt.arrays import float_tensor
from animdetail_trt.checks import is_number, is_whole
from animdetail_trt.detailer.canvas import Canvas, HostCanvas, lane_beside, open_canvas
from animdetail_trt.detailer.foreign import ForeignModel, is_foreign, settings_for
from animdetail_trt.detailer.hooks import METHODS, NO_HOOKS, REFERENCE_METHODS, Hooks
from animdetail_trt.detailer.improvements import REFERENCE, Improvements, choose_improvements
from animdetail_trt.detailer.masks import paste_mask
from animdetail_trt.detailer.plan import (
    SegmentPlan,
    SizeSettings,
    check_segs,
    images_of,
    inside_frame,
    mask_of,
    plan_segments,
    scale_segs,
    with_work_size,
)
from animdetail_trt.detailer.report import Observer, check_observer, timed
from animdetail_trt.detailer.segment import Painter, detail_segment, with_controls
from animdetail_trt.errors import InputError
from animdetail_trt.sampling.conditioning import Conditioning, check_conditioning
from animdetail_trt.sampling.context import check_context
from animdetail_trt.sampling.control import check_wrapper
from animdetail_trt.sampling.model import DiffusionModel
from animdetail_trt.sampling.refiner import Refiner, check_refiner_ratio
from animdetail_trt.sampling.run import SampleSettings
from animdetail_trt.segs import SEG, SEGS, CropRegion

logger = logging.getLogger(__name__)

Timer: TypeAlias = Callable[[], AbstractContextManager[None]]


class DetailerForEachPipeForAnimateDiff:
    """Detail every segment of a clip and paste it back, each segment seeing the frames as the one before left them."""

    @staticmethod
    def doit(
        image_frames: Any,
        segs: SEGS,
        guide_size: float = 512,
        guide_size_for: bool = True,
        max_size: float = 1024,
        seed: int = 0,
        steps: int = 20,
        cfg: float = 8.0,
        sampler_name: str = "euler",
        scheduler: str = "simple",
        denoise: float = 0.5,
        feather: int = 5,
        basic_pipe: Any = None,
        refiner_ratio: float | None = 0.2,
        detailer_hook: Any = None,
        refiner_basic_pipe_opt: Any = None,
        noise_mask_feather: int | bool = 20,
        scheduler_func_opt: Any = None,
        *legacy: Any,
        inpaint_model: bool = False,
        reference_mode: bool = True,
        improvements: Improvements | None = None,
        pass_order: ops.PassOrder = "pillow13",
        observer: Observer | None = None,
    ) -> tuple[Tensor, SEGS, Any, list[Tensor]]:
        """Return (image, segs, basic_pipe, cnet_images).

        image_frames: float32 (f, H, W, 3) in 0..1, torch or NumPy; not changed. A little beyond 0..1 stays as it is
        segs: ((H, W), [SEG, ...]); scaled to the frames if its header is another size. A SEG's own cropped_image, of
            one frame or one for each, is sampled in place of the frames' crop (the reference would sample F copies)
        guide_size, guide_size_for, max_size: how far a crop is enlarged (True: measured on the bbox)
        feather: pixels of Gaussian blur of the mask that the patch is pasted through
        noise_mask_feather: the same of the mask that is sampled in; above 0 it also makes it differential
        detailer_hook: its ``post_paste(frames)`` is called after each segment; what it returns replaces the frames. The
            methods that are called with reference_mode=False are in ``detailer.hooks``
        reference_mode: True gives the reference's numbers; False all that ``Improvements`` names, or, of that, what
            ``improvements`` leaves on. A SEG's bbox may then be one box, or None, for each frame
        pass_order: of the resizes, which show in segments more than twice as high as wide: as Pillow 13 has it, or
            "horizontal_first", as in Pillow up to 12. The reference's follows the Pillow that is installed
        legacy, inpaint_model: early versions had inpaint_model before noise_mask_feather; accepted, without effect
        observer: told of each stage and step

        image is a new float32 CPU tensor; segs holds the new crops as NumPy (f, h, w, 3); basic_pipe is the object
        that was given. Raises InputError before any work is done.
        """
        noise_mask_feather, scheduler_func_opt = _without_inpaint_model(noise_mask_feather, scheduler_func_opt, legacy)
        frames = check_frames(image_frames)
        sizes = SizeSettings(guide_size, guide_size_for, max_size)
        settings = settings_for(basic_pipe, seed, steps, cfg, sampler_name, scheduler, denoise, scheduler_func_opt)
        check_feather("feather", feather)
        check_feather("noise_mask_feather", noise_mask_feather)
        check_pass_order(pass_order)
        observer = check_observer(observer)
        better = choose_improvements(reference_mode, improvements)
        hooks = Hooks(detailer_hook, METHODS if better.call_hooks else REFERENCE_METHODS)
        soft_px = max(feather, noise_mask_feather)
        plans = plan_segments(segs, _size(frames), len(frames), sizes, better, soft_px, pass_order)
        header = _header(segs, frames, better)
        if not plans:  # as in the reference, the pipe is then not looked at
            observer.begin_run(0, steps)
            return ops.working_copy(frames), (header, []), basic_pipe, []
        painter = make_painter(
            basic_pipe, settings, noise_mask_feather, refiner_ratio, refiner_basic_pipe_opt, len(frames), better, hooks,
            pass_order,
        )  # fmt: skip
        _check_controls(plans, painter)
        observer.begin_run(len(plans), steps)

        # The one copy of the frames: every segment is pasted into it in place.
        canvas = open_canvas(frames, painter.vae, hooked=hooks.has("post_paste"))
        enhanced: list[SEG] = []
        cnet_images: list[Tensor] = []
        for index, plan in enumerate(plans):
            plan = with_work_size(plan, hooks.touch_scaled_size(plan.work_size), better)
            _begin(observer, index, plan)
            plan, steered, images = with_controls(canvas, plan, painter)
            cnet_images += images
            is_last = index == len(plans) - 1 and not hooks.has("post_paste")
            pasting = _Pasting(canvas, plan, feather, is_last, partial(timed, observer, index, "paste"))
            crops = detail_segment(canvas, plan, steered, index, observer, pasting)
            if hooks.has("post_paste"):
                with timed(observer, index, "hook"):
                    # A hook may keep what it is given or returns, so what follows is pasted into a copy.
                    canvas = canvas.beside(ops.working_copy(hooks.post_paste(canvas.finish())))
            enhanced.append(_enhanced(plan.seg, crops))
            observer.end_segment(index)
        return canvas.finish(), (header, enhanced), basic_pipe, cnet_images


class SEGSDetailerForAnimateDiff:
    """Detail every segment of a clip without pasting: each sees the frames as they were given."""

    @staticmethod
    def doit(
        image_frames: Any,
        segs: SEGS,
        guide_size: float = 512,
        guide_size_for: bool = True,
        max_size: float = 768,
        seed: int = 0,
        steps: int = 20,
        cfg: float = 8.0,
        sampler_name: str = "euler",
        scheduler: str = "simple",
        denoise: float = 0.5,
        basic_pipe: Any = None,
        refiner_ratio: float | None = 0.2,
        refiner_basic_pipe_opt: Any = None,
        noise_mask_feather: int | bool = 20,
        scheduler_func_opt: Any = None,
        *legacy: Any,
        inpaint_model: bool = False,
        reference_mode: bool = True,
        improvements: Improvements | None = None,
        pass_order: ops.PassOrder = "pillow13",
        observer: Observer | None = None,
    ) -> tuple[SEGS, list[Tensor]]:
        """Return (segs, cnet_images); arguments as in DetailerForEachPipeForAnimateDiff.

        The header of segs is the frame size. Without ControlNet images there is one black image of 64x64.
        """
        noise_mask_feather, scheduler_func_opt = _without_inpaint_model(noise_mask_feather, scheduler_func_opt, legacy)
        frames = check_frames(image_frames)
        sizes = SizeSettings(guide_size, guide_size_for, max_size)
        settings = settings_for(basic_pipe, seed, steps, cfg, sampler_name, scheduler, denoise, scheduler_func_opt)
        check_feather("noise_mask_feather", noise_mask_feather)
        check_pass_order(pass_order)
        observer = check_observer(observer)
        better = choose_improvements(reference_mode, improvements)
        plans = plan_segments(segs, _size(frames), len(frames), sizes, better, noise_mask_feather, pass_order)
        painter = make_painter(
            basic_pipe, settings, noise_mask_feather, refiner_ratio, refiner_basic_pipe_opt, len(frames), better,
            pass_order=pass_order,
        )  # fmt: skip
        _check_controls(plans, painter)
        observer.begin_run(len(plans), steps)
        canvas = HostCanvas(frames, lane_beside(painter.vae))
        enhanced: list[SEG] = []
        cnet_images: list[Tensor] = []
        for index, plan in enumerate(plans):
            _begin(observer, index, plan)
            plan, steered, images = with_controls(canvas, plan, painter)
            cnet_images += images
            enhanced.append(_enhanced(plan.seg, detail_segment(canvas, plan, steered, index, observer)))
            observer.end_segment(index)
        canvas.finish()
        header, _ = scale_segs((segs[0], []), _size(frames))
        return (header, enhanced), cnet_images or [torch.zeros(1, 64, 64, 3)]


class SEGSPaste:
    """Paste the crops that SEGS carry into frames, through their feathered masks."""

    @staticmethod
    def doit(
        image: Any,
        segs: SEGS,
        feather: int = 5,
        alpha: int = 255,
        ref_image_opt: Any = None,
        *,
        reference_mode: bool = True,
        improvements: Improvements | None = None,
        pass_order: ops.PassOrder = "pillow13",
    ) -> tuple[Tensor]:
        """Return (image,): a new float32 CPU tensor (f, H, W, 3).

        A crop must have a frame for each of ``image``'s; one without a crop is passed over, unless ``ref_image_opt``
        (f, H, W, 3) is given, whose pixels are then taken for every segment. Of the improvements, scale_regions is
        all that concerns a paste, and pass_order concerns crops of SEGS that are scaled.
        """
        frames = check_frames(image)
        reference = None if ref_image_opt is None else check_frames(ref_image_opt)
        check_feather("feather", feather)
        if not is_number(alpha) or not 0 <= alpha <= 255:
            raise InputError(f"alpha {alpha!r} must be from 0 to 255")
        check_pass_order(pass_order)
        better = choose_improvements(reference_mode, improvements)
        segs = check_segs(segs, better.follow_motion)
        if reference is not None:  # a crop of its own is then not looked at
            segs = segs[0], [seg._replace(cropped_image=None) for seg in segs[1]]
        _, items = scale_segs(segs, _size(frames), better, pass_order)
        if reference is not None:
            items = [_with_pixels_of(reference, seg) for seg in items]
        parts = [
            (images_of(seg, i), mask_of(seg, i), seg.crop_region)
            for i, seg in enumerate(items)
            if seg.cropped_image is not None
        ]
        for patch, _, _ in parts:
            if len(patch) < len(frames):
                raise InputError(f"a segment has {len(patch)} frames to paste into {len(frames)}. Give it one for each")
        canvas = ops.working_copy(frames)
        for patch, mask, crop_region in parts:
            size = patch.shape[2], patch.shape[1]
            weight = paste_mask(mask, len(canvas), feather, alpha, size)
            ops.alpha_paste(canvas, patch[: len(frames)], weight, left_top_of(crop_region, size))
        return (canvas,)


class _Pasting:
    """Pastes the parts of a segment's new crop as they are made; is_last: and nothing after them."""

    def __init__(self, canvas: Canvas, plan: SegmentPlan, feather: int, is_last: bool, timer: Timer) -> None:
        self.canvas, self.plan, self.feather, self.is_last, self.timer = canvas, plan, feather, is_last, timer
        self.size = plan.crop_size if plan.track is None else plan.track.ground

    @cached_property
    def weight(self) -> Tensor:
        return paste_mask(self.plan.mask, self.canvas.shape[0], self.feather, 255, self.size, self.canvas.home)

    def __call__(self, part: slice, patch: Tensor, kept: Tensor) -> None:
        with self.timer():
            weight = self.weight if len(self.weight) == 1 else self.weight[part]
            left_top = left_top_of(self.plan.seg.crop_region, self.size)
            self.canvas.paste(part, patch, kept, weight, left_top)
            if self.is_last:
                self.canvas.send(part)


def left_top_of(crop_region: CropRegion, patch_size: tuple[int, int]) -> tuple[int, int]:
    """Where a patch of (width, height) is pasted."""
    x1, y1, x2, y2 = crop_region
    if patch_size != (x2 - x1, y2 - y1):
        # A region that starts left of or above the frame was cropped from the frame's edge on.
        return max(x1, 0), max(y1, 0)
    return x1, y1


def _with_pixels_of(reference: Tensor, seg: SEG) -> SEG:
    region = inside_frame(seg.crop_region, _size(reference))
    if region is None:
        return seg._replace(cropped_image=None)
    x1, y1, x2, y2 = region
    return seg._replace(cropped_image=reference[:, y1:y2, x1:x2])


def _enhanced(seg: SEG, patch: Tensor) -> SEG:
    return seg._replace(cropped_image=patch.numpy(), control_net_wrapper=None)


def _header(segs: SEGS, frames: Tensor, improvements: Improvements) -> Any:
    """As published, the header stays as it was given although the segments are in the frames' pixels."""
    return scale_segs((segs[0], []), _size(frames))[0] if improvements.scale_regions else segs[0]


def _begin(observer: Observer, index: int, plan: SegmentPlan) -> None:
    observer.begin_segment(index, str(plan.seg.label), plan.crop_size, plan.work_size)


def _size(frames: Tensor) -> tuple[int, int]:
    return frames.shape[1], frames.shape[2]


def check_frames(image_frames: Any) -> Tensor:
    """IMAGE as float32 (f, H, W, 3) on the CPU; raises where it is not one, or its values cannot be 0..1."""
    shape = tuple(getattr(image_frames, "shape", ()))
    if len(shape) != 4 or shape[3] != 3 or 0 in shape:
        what = shape if hasattr(image_frames, "shape") else type(image_frames).__name__
        raise InputError(f"image_frames must be an array (F, H, W, 3) with at least one frame, not {what}")
    if "float" not in str(image_frames.dtype):
        raise InputError(f"image_frames must be floats in 0..1, not {image_frames.dtype}. Divide 8-bit values by 255")
    return float_tensor(image_frames, "image_frames")


def check_feather(name: str, value: int) -> None:
    if not is_whole(value) or not 0 <= value < 2**31:
        raise InputError(f"{name} {value!r} must be a whole number of pixels, 0 or more")


def check_pass_order(value: str) -> None:
    if value not in get_args(ops.PassOrder):
        raise InputError(f"pass_order {value!r} must be one of {', '.join(get_args(ops.PassOrder))}")


def make_painter(
    basic_pipe: Any,
    settings: SampleSettings,
    noise_mask_feather: int,
    refiner_ratio: float | None,
    refiner_pipe: Any,
    frame_count: int,
    improvements: Improvements = REFERENCE,
    hooks: Hooks = NO_HOOKS,
    pass_order: ops.PassOrder = "pillow13",
) -> Painter:
    """Take the pipes apart and check that they fit each other and the clip."""
    if refiner_ratio is not None:
        check_refiner_ratio(refiner_ratio)
    model, vae, positive, negative = _open_pipe(basic_pipe, "basic_pipe", settings, frame_count)
    if frame_count > 1 and isinstance(model, DiffusionModel) and model.unet.positions is None:
        logger.warning(
            "the pipe has no motion module: each of the %d frames is sampled alone, and the clip may flicker. Give "
            "load_pipe a motion_module, or the command line --motion-module",
            frame_count,
        )
    refiner = None
    if refiner_pipe is not None and refiner_ratio is not None:
        refiner_model, _, *conditioning = _open_pipe(refiner_pipe, "refiner_basic_pipe_opt", settings, frame_count)
        refiner = Refiner(refiner_model, conditioning[0], conditioning[1], refiner_ratio)
    return Painter(
        model, vae, positive, negative, settings, noise_mask_feather, refiner, improvements, hooks, pass_order
    )


def _check_controls(plans: list[SegmentPlan], painter: Painter) -> None:
    if isinstance(painter.model, ForeignModel):
        return
    for index, plan in enumerate(plans):
        check_wrapper(plan.seg.control_net_wrapper, painter.model.unet.token_dim, f"segment {index}")


def _open_pipe(
    pipe: Any, name: str, settings: SampleSettings, frame_count: int
) -> tuple[DiffusionModel | ForeignModel, Any, Conditioning, Conditioning]:
    try:
        model, _, vae, positive, negative = pipe
    except (TypeError, ValueError):
        raise InputError(f"{name} must be a pipe of five parts from load_pipe, not {type(pipe).__name__}") from None
    if is_foreign(pipe):
        return model, vae, positive, negative
    if not isinstance(model, DiffusionModel):
        raise InputError(f"the model of {name} must come from load_pipe, not {type(model).__name__}")
    for sign, conditioning in (("positive", positive), ("negative", negative)):
        check_conditioning(conditioning, f"{name}'s {sign}", model.unet.token_dim)
    check_context(frame_count, model.unet.positions, model.context, settings.steps)
    settings.sigmas(model)  # raises where the schedule cannot be sampled
    return model, vae, positive, negative


def _without_inpaint_model(noise_mask_feather: Any, scheduler_func: Any, legacy: tuple[Any, ...]) -> tuple[int, Any]:
    """Undo the argument order of early versions: (..., inpaint_model, noise_mask_feather, scheduler_func)."""
    if not isinstance(noise_mask_feather, bool):
        if legacy:
            raise InputError(f"{len(legacy)} arguments too many: {legacy!r:.80}")
        return noise_mask_feather, scheduler_func
    if len(legacy) > 1:
        raise InputError(f"{len(legacy) - 1} arguments too many: {legacy[1:]!r:.80}")
    feather = 0 if scheduler_func is None else scheduler_func
    return feather, legacy[0] if legacy else None
