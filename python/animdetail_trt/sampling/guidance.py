"""From a UNet that predicts noise to a denoiser that follows a conditioning."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Hashable, Sequence
from functools import partial
from itertools import chain
from typing import NamedTuple

import torch
from torch import Tensor

from animdetail_trt.backends.batches import Batches
from animdetail_trt.backends.interface import UNetRunner
from animdetail_trt.geometry import PIXELS_PER_LATENT
from animdetail_trt.sampling.conditioning import Entry, with_counterparts, within
from animdetail_trt.sampling.context import ContextOptions, Window, frames_of, fuse, windows
from animdetail_trt.sampling.control import control_residuals
from animdetail_trt.sampling.model_sampling import ModelSampling


class Job(NamedTuple):
    """One entry on one window: what one row of a UNet call computes."""

    side: int
    window_index: int
    window: Window
    entry: Entry

    @property
    def kind(self) -> Hashable:
        """Jobs of one kind can share a call: they agree in every size, and in what ControlNet sees."""
        control = self.entry.control
        seen = None if control is None else (id(control), self.window_index)
        return len(self.window), self.entry.area, self.entry.tokens.shape, seen


class Guided:
    """Classifier-free guidance (Ho & Salimans 2022, arXiv:2207.12598): uncond + cfg (cond - uncond).

    Called with x (f, 4, lh, lw) and its sigma, it returns the estimate of the clean latent. At cfg 1 only cond is run.
    step: the step of the run, which the uniform context schedules ask for; whoever samples keeps it
    """

    def __init__(
        self,
        unet: UNetRunner,
        model_sampling: ModelSampling,
        positive: Sequence[Entry],
        negative: Sequence[Entry],
        cfg: float,
        context: ContextOptions | None,
    ) -> None:
        self.unet = unet
        self.model_sampling = model_sampling
        # ComfyUI gives every area a counterpart on the other side, so that both sides average over the same parts.
        negative = with_counterparts(negative, positive)
        self.sides = (with_counterparts(positive, negative), negative)
        self.cfg = cfg
        self.context = context
        self.step = 0
        self.batches = Batches()

    def __call__(self, x: Tensor, sigma: float) -> Tensor:
        if math.isclose(self.cfg, 1.0):
            return self._estimates(x, sigma, self.sides[:1])[0]
        return self.both(x, sigma)[0]

    def both(self, x: Tensor, sigma: float) -> tuple[Tensor, Tensor]:
        """(guided, unconditional) estimates, whatever cfg is."""
        cond, uncond = self._estimates(x, sigma, self.sides)
        return uncond + self.cfg * (cond - uncond), uncond

    def _estimates(self, x: Tensor, sigma: float, sides: Sequence[Sequence[Entry]]) -> list[Tensor]:
        """The clean latent as each side sees it: entries averaged in every window, then the windows."""
        frames = len(x)
        spans = windows(frames, self.context, self.step)
        jobs = [
            Job(side, index, window, entry.for_window(window, frames))
            for index, window in enumerate(spans)
            for side, entries in enumerate(sides)
            for entry in entries
            if entry.holds_at(sigma)
        ]
        found: dict[tuple[int, int], list[tuple[Job, Tensor]]] = defaultdict(list)
        for job, estimate in self._run(jobs, x, sigma):
            found[job.side, job.window_index].append((job, estimate))
        fused = []
        for side in range(len(sides)):
            per_window = [_average(frames_of(x, window), found[side, index]) for index, window in enumerate(spans)]
            if self.context is None or spans == [list(range(frames))]:
                (whole,) = per_window
                fused.append(whole)
            else:  # a single window too, where it loops: it need not begin with the first frame
                fused.append(fuse(per_window, spans, frames, self.context))
        return fused

    def _run(self, jobs: Sequence[Job], x: Tensor, sigma: float) -> list[tuple[Job, Tensor]]:
        """The clean latent that the UNet sees for every job, as many jobs in a call as memory allows."""
        kinds: dict[Hashable, list[Job]] = defaultdict(list)
        for job in reversed(jobs):  # the reference stacks them so
            kinds[job.kind].append(job)
        found: list[tuple[Job, Tensor]] = []
        for alike in kinds.values():
            entry, frames = alike[0].entry, len(alike[0].window)
            height, width = within(x, entry.area).shape[-2:]
            at_once = max(1, self.unet.frames_per_call(PIXELS_PER_LATENT * width, PIXELS_PER_LATENT * height) // frames)
            size = frames, height, width, entry.tokens.shape, entry.control is None
            run = partial(self._call, alike, x, sigma)
            found += zip(alike, chain.from_iterable(self.batches.run(size, len(alike), at_once, run)), strict=True)
        return found

    def _call(self, jobs: Sequence[Job], x: Tensor, sigma: float, rows: slice) -> Tensor:
        batch = jobs[rows]
        latents = torch.stack([frames_of(within(x, job.entry.area), job.window) for job in batch])
        tokens = torch.stack([job.entry.tokens for job in batch])
        scaled = latents / self.model_sampling.input_scale(sigma)
        timestep = self.model_sampling.timestep(sigma)
        residuals = None
        control = batch[0].entry.control
        if control is not None:
            residuals = control_residuals(
                control, scaled, timestep, sigma, self.model_sampling.percent_to_sigma, tokens, batch[0].window
            )
        eps = self.unet(scaled, timestep, tokens, residuals)
        return self.model_sampling.denoised(latents, eps, sigma)


def _average(like: Tensor, found: Sequence[tuple[Job, Tensor]]) -> Tensor:
    """The mean of the entries' estimates by their shares; 0 where there is none."""
    if len(found) == 1:
        ((job, estimate),) = found
        if job.entry.area is None and job.entry.mask is None and job.entry.strength == 1:
            return estimate
    height, width = like.shape[-2:]
    total = torch.zeros_like(like)
    count = torch.full_like(like[:, :1], 1e-37)
    for job, estimate in found:
        share = job.entry.share(height, width)
        within(total, job.entry.area).add_(estimate * share)
        within(count, job.entry.area).add_(share)
    return total / count
