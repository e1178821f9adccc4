"""A MODEL of ComfyUI as the detailer's: its own program samples it, as the Impact Pack's nodes do."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from animdetail_trt.comfyui import host
from animdetail_trt.comfyui.progress import Progress
from animdetail_trt.detailer.foreign import OnStep
from animdetail_trt.sampling.conditioning import Conditioning
from animdetail_trt.sampling.masked import latent_mask
from animdetail_trt.sampling.model_sampling import ModelSampling
from animdetail_trt.sampling.refiner import Refiner
from animdetail_trt.sampling.run import NoiseMask, SampleSettings
from animdetail_trt.sampling.schedules import DISCARD_PENULTIMATE, schedule_sigmas

EXTRA_SCHEDULERS = ("AYS SDXL", "AYS SD1", "AYS SVD", "GITS[coeff=1.2]")
"""Schedulers of the Impact Pack's nodes besides ComfyUI's own: published tables, the same for every model."""


@dataclass(frozen=True)
class HostModel:
    """A ``detailer.foreign.ForeignModel``. original: the MODEL; progress: is shown every step's latent"""

    original: Any
    progress: Progress

    def with_original(self, original: Any) -> HostModel:
        return replace(self, original=original)

    def sample(
        self,
        settings: SampleSettings,
        positive: Conditioning,
        negative: Conditioning,
        latent: Tensor,
        noise_mask: NoiseMask,
        refiner: Refiner | None,
        noise: Tensor | None,
        on_step: OnStep,
    ) -> Tensor:
        """See ForeignModel. With a refiner, the first model's steps end with their noise left in; the refiner goes on
        from there, composited over the original through the mask."""
        model = self.original
        if noise_mask.differential and not host.masks_of_grey(model):
            model = host.with_differential_diffusion(model)
        mask = noise_mask.mask
        if noise is None:
            noise = host.noise_of(latent, settings.seed)
        first = _Part(model, positive, negative, settings, self.progress)
        start, end = settings.first_step, settings.total_steps
        if refiner is None:
            return first.sample(latent, noise, mask, start, end, on_step)
        switch = start + math.floor(settings.steps * (1 - refiner.ratio))
        noisy = first.sample(latent, noise, mask, start, switch, on_step, keep_noise=True)
        noisy, original = noisy.cpu(), latent.cpu()
        share = latent_mask(mask, original)
        second = _Part(refiner.model.original, refiner.positive, refiner.negative, settings, self.progress)
        return second.sample(
            noisy * share + original * (1 - share),
            torch.zeros_like(original),
            mask,
            switch,
            end + 1,
            lambda step, steps: on_step(step + switch - start, settings.steps),
        )


@dataclass(frozen=True)
class _Part:
    """One model's part of a run."""

    model: Any
    positive: Conditioning
    negative: Conditioning
    settings: SampleSettings
    progress: Progress

    def sample(
        self,
        latent: Tensor,
        noise: Tensor,
        mask: Tensor,
        first: int,
        end: int,
        on_step: OnStep,
        keep_noise: bool = False,
    ) -> Tensor:
        """Steps ``first`` to ``end`` of the settings' schedule."""
        schedule = self._schedule()
        if end < len(schedule) - 1:
            if not keep_noise:
                schedule[end] = 0
            sigmas = schedule[: end + 1]
        else:
            sigmas = schedule
        if first >= len(sigmas) - 1:
            return latent
        sigmas = sigmas[first:]
        show = self.progress.previews_of(self.model)

        def on_latent(step: int, denoised: Tensor) -> None:
            show(denoised)
            on_step(step + 1, len(sigmas) - 1)

        s = self.settings
        noisy, clean = host.sample(
            self.model, latent, noise, mask, sigmas, (schedule[schedule > 0].min(), schedule.max()),
            s.sampler_name, s.seed, s.cfg, self.positive, self.negative, on_latent,
        )  # fmt: skip
        return (noisy if keep_noise else clean).float()

    def _schedule(self) -> Tensor:
        """The whole schedule's sigmas, a tensor of their own."""
        s = self.settings
        steps = s.total_steps
        if s.scheduler_func is not None:
            return torch.as_tensor(s.scheduler_func(self.model, s.sampler_name, steps)).clone()
        if s.scheduler in EXTRA_SCHEDULERS:
            return torch.tensor(schedule_sigmas(ModelSampling("linear"), s.sampler_name, s.scheduler, steps))
        if s.sampler_name not in DISCARD_PENULTIMATE:
            return host.schedule(self.model, s.scheduler, steps).clone()
        sigmas = host.schedule(self.model, s.scheduler, steps + 1)
        return torch.cat([sigmas[:-2], sigmas[-1:]])
