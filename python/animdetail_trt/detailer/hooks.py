"""The methods of a DETAILER_HOOK, called where the Impact Pack's image detailer calls them.

In reference mode a hook is asked for ``post_paste`` alone, as in the reference's video path. With
``reference_mode=False`` all of these are called for each segment, in this order, each if the hook has it:

=====================  ================================================================================================
touch_scaled_size      ``(w, h) -> (w, h)``: the size that the segment is sampled at
post_upscale           ``(pixels) -> pixels``: the crops at that size, (f, h, w, 3); the pack's upscalers call it
post_encode            ``(latent) -> latent``: what the VAE made of them, and the noise mask
set_steps              ``((0, 1))``: there is one cycle, and this is its first
cycle_latent           ``(latent) -> latent``: what the cycle starts from
pre_ksample            ``(model, seed, steps, cfg, sampler_name, scheduler, positive, negative, latent, denoise)`` and
                       the same ten back; as in the pack, the latent among them is for looking only
get_custom_noise       ``(seed, noise, is_touched=False) -> (noise, is_touched)``: noise is zeros (f, 4, lh, lw); if
                       is_touched comes back true, what comes with it is the noise of the run
pre_decode             ``(latent) -> latent``: what was sampled
post_decode            ``(pixels) -> pixels``: the VAE's pixels of it, (f, 8 lh, 8 lw, 3) in 0..1; any height and width
post_paste             ``(frames) -> frames``: the whole frames (f, H, W, 3) with the segment pasted
=====================  ================================================================================================

A latent is ``{"samples": (f, 4, lh, lw), "noise_mask": (1 or f, h, w)}``, samples before the factor 0.18215; a noise
mask that does not come back stays as it was. Tensors are float32; a shape not said to be free must be kept, NaN and
infinity are refused. ``post_crop_region`` and ``post_detection`` are a detector's to call, and this is none.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from animdetail_trt.checks import is_whole
from animdetail_trt.detailer.foreign import ForeignModel
from animdetail_trt.errors import InputError
from animdetail_trt.geometry import PIXELS_PER_LATENT
from animdetail_trt.sampling.conditioning import Conditioning, check_conditioning
from animdetail_trt.sampling.model import DiffusionModel
from animdetail_trt.sampling.run import SampleSettings

METHODS = (
    "touch_scaled_size", "post_upscale", "post_encode", "set_steps", "cycle_latent", "pre_ksample",
    "get_custom_noise", "pre_decode", "post_decode", "post_paste",
)  # fmt: skip
REFERENCE_METHODS = ("post_paste",)
LONGEST_SIDE_PX = 16_384  # of the node's own guide_size


@dataclass(frozen=True)
class Sampling:
    """What a segment is sampled with; ``pre_ksample`` may change it."""

    model: DiffusionModel | ForeignModel
    settings: SampleSettings
    positive: Conditioning
    negative: Conditioning


class Hooks:
    """A hook, its methods called if it has them, and what they return checked.

    hook: any object, or None: then everything passes unchanged
    methods: those that are called. Raises InputError where the hook has none of them
    """

    def __init__(self, hook: Any = None, methods: Sequence[str] = METHODS) -> None:
        self._hook = hook
        self._methods = {name for name in methods if callable(getattr(hook, name, None))}
        if hook is not None and not self._methods:
            named = "post_paste(frames)" if tuple(methods) == REFERENCE_METHODS else f"one of {', '.join(methods)}"
            raise InputError(f"detailer_hook must have {named}, and {type(hook).__name__} has not")

    def has(self, method: str) -> bool:
        return method in self._methods

    def touch_scaled_size(self, size: tuple[int, int]) -> tuple[int, int]:
        """(width, height), at least one latent's and at most LONGEST_SIDE_PX each."""
        if not self.has("touch_scaled_size"):
            return size
        returned = self._call("touch_scaled_size", *size)
        try:
            width, height = returned
        except (TypeError, ValueError):
            width = height = None
        if not all(is_whole(side) and PIXELS_PER_LATENT <= side <= LONGEST_SIDE_PX for side in (width, height)):
            expected = f"(w, h), whole numbers from {PIXELS_PER_LATENT} to {LONGEST_SIDE_PX}"
            raise self._wrong("touch_scaled_size", returned, expected)
        return int(width), int(height)

    def post_upscale(self, pixels: Tensor) -> Tensor:
        return self._tensor("post_upscale", self._call("post_upscale", pixels), tuple(pixels.shape))

    def post_encode(self, samples: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        return self._latent("post_encode", samples, mask)

    def cycle_latent(self, samples: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        """Also tells the hook that this is the one cycle."""
        if self.has("set_steps"):
            self._call("set_steps", (0, 1))
        return self._latent("cycle_latent", samples, mask)

    def pre_decode(self, samples: Tensor, mask: Tensor) -> Tensor:
        return self._latent("pre_decode", samples, mask)[0]

    def post_decode(self, pixels: Tensor) -> Tensor:
        return self._tensor("post_decode", self._call("post_decode", pixels), (len(pixels), "h", "w", 3))

    def post_paste(self, frames: Tensor) -> Tensor:
        if not self.has("post_paste"):
            return frames
        return self._tensor("post_paste", self._call("post_paste", frames), tuple(frames.shape))

    def pre_ksample(self, sampling: Sampling, samples: Tensor, mask: Tensor) -> Sampling:
        if not self.has("pre_ksample"):
            return sampling
        s = sampling.settings
        foreign = sampling.model if isinstance(sampling.model, ForeignModel) else None
        returned = self._call(
            "pre_ksample", sampling.model if foreign is None else foreign.original,
            s.seed, s.steps, s.cfg, s.sampler_name, s.scheduler,
            sampling.positive, sampling.negative, _latent_of(samples, mask), s.denoise,
        )  # fmt: skip
        try:
            model, seed, steps, cfg, sampler_name, scheduler, positive, negative, _, denoise = returned
        except (TypeError, ValueError):
            raise self._wrong("pre_ksample", returned, "the ten values that it was given") from None
        if foreign is None and not isinstance(model, DiffusionModel):
            raise self._wrong("pre_ksample", model, "as its model one from load_pipe")
        try:
            settings = replace(
                s, seed=seed, steps=steps, cfg=cfg, sampler_name=sampler_name, scheduler=scheduler, denoise=denoise
            )
            if foreign is not None:  # whose own program checks
                return Sampling(foreign.with_original(model), settings, positive, negative)
            settings.sigmas(model)
            check_conditioning(positive, "positive", model.unet.token_dim)
            check_conditioning(negative, "negative", model.unet.token_dim)
        except InputError as error:
            raise InputError(f"{self._named('pre_ksample')} returned what cannot be sampled: {error}") from None
        return Sampling(model, settings, positive, negative)

    def custom_noise(self, seed: int, samples: Tensor) -> Tensor | None:
        """The noise that takes the place of the seed's; None where that stays."""
        if not self.has("get_custom_noise"):
            return None
        zeros = torch.zeros(samples.shape)
        returned = self._call("get_custom_noise", seed, zeros, is_touched=False)
        if not isinstance(returned, (tuple, list)) or len(returned) != 2:
            raise self._wrong("get_custom_noise", returned, "(noise, is_touched)")
        noise, is_touched = returned
        return self._tensor("get_custom_noise", noise, tuple(samples.shape)) if is_touched else None

    def _latent(self, method: str, samples: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        if not self.has(method):
            return samples, mask
        returned = self._call(method, _latent_of(samples, mask))
        if not isinstance(returned, dict) or "samples" not in returned:
            raise self._wrong(method, returned, 'a latent, {"samples": ..., "noise_mask": ...}')
        new_samples = self._tensor(method, returned["samples"], tuple(samples.shape), "samples ")
        new_mask = returned.get("noise_mask", mask)
        if new_mask is not mask:
            new_mask = self._tensor(method, new_mask, (f"1 or {len(samples)}", "h", "w"), "noise_mask ")
            if len(new_mask) not in (1, len(samples)):
                raise self._wrong(method, new_mask, f"noise_mask (1 or {len(samples)}, h, w)")
        return new_samples, new_mask

    def _call(self, method: str, *args: Any, **options: Any) -> Any:
        # As in ComfyUI, which runs every node so: a hook may change in place what sampling made.
        with torch.inference_mode():
            return getattr(self._hook, method)(*args, **options)

    def _tensor(self, method: str, value: Any, shape: tuple[int | str, ...], part: str = "") -> Tensor:
        """float32 on the CPU, where value is floats of this shape (a name is any length) and all finite."""
        expected = f"{part}({', '.join(map(str, shape))}) of floats"
        if isinstance(value, np.ndarray):
            value = torch.from_numpy(np.ascontiguousarray(value))
        if not isinstance(value, Tensor) or not value.is_floating_point() or value.ndim != len(shape):
            raise self._wrong(method, value, expected)
        pairs = zip(value.shape, shape, strict=True)
        if not all(length == want or (isinstance(want, str) and length > 0) for length, want in pairs):
            raise self._wrong(method, value, expected)
        if not torch.isfinite(value).all():
            raise InputError(f"{self._named(method)} returned NaN or infinity; it must return {expected}")
        return value.detach().float().cpu()

    def _wrong(self, method: str, value: Any, expected: str) -> InputError:
        what = type(value).__name__
        if hasattr(value, "shape"):
            what += f" {tuple(value.shape)} of {value.dtype}"
        elif isinstance(value, (bool, int, float, str, tuple)):
            what = repr(value)[:80]
        return InputError(f"{self._named(method)} returned {what}; it must return {expected}")

    def _named(self, method: str) -> str:
        return f"detailer_hook {type(self._hook).__name__}: {method}"


def _latent_of(samples: Tensor, mask: Tensor) -> dict[str, Tensor]:
    return {"samples": samples, "noise_mask": mask}


NO_HOOKS = Hooks()
