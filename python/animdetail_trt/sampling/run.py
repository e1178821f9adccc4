"""One run of a sampler over a part of a schedule, from a latent to a latent."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, TypeAlias

import torch
from torch import Tensor

from animdetail_trt.checks import is_number, is_whole
from animdetail_trt.errors import InputError
from animdetail_trt.sampling.conditioning import Conditioning, resolve
from animdetail_trt.sampling.context import check_context
from animdetail_trt.sampling.guidance import Guided
from animdetail_trt.sampling.masked import Denoiser, DifferentialMask, MaskAt, Masked, latent_mask
from animdetail_trt.sampling.model import LATENT_SCALE, DiffusionModel
from animdetail_trt.sampling.noise import initial_noise
from animdetail_trt.sampling.samplers import NEED_FALLING_SIGMAS, OWN_MASK_NOISE, SAMPLERS, Run, check_sampler
from animdetail_trt.sampling.schedules import check_scheduler, schedule_sigmas

SchedulerFunc: TypeAlias = Callable[[DiffusionModel, str, int], Sequence[Any]]
"""``scheduler_func(model, sampler_name, steps)`` -> sigmas, in place of a named scheduler."""

MOST_STEPS = 1_000_000
"""Of a whole schedule: more would fill the memory before the first step is taken."""


@dataclass(frozen=True)
class SampleSettings:
    """What a run is asked for: ``steps`` steps of the last ``denoise`` part of a schedule.

    seed: 0 .. 2^64 - 1; cfg: guidance scale; denoise: above 0, at most 1
    """

    seed: int
    steps: int
    cfg: float
    sampler_name: str
    scheduler: str
    denoise: float = 1.0
    scheduler_func: SchedulerFunc | None = None

    def __post_init__(self) -> None:
        check_sampler(self.sampler_name)
        if self.scheduler_func is None:
            check_scheduler(self.scheduler)
        elif not callable(self.scheduler_func):
            raise InputError(
                f"scheduler_func must be called with (model, sampler_name, steps): {self.scheduler_func!r}"
            )
        for name, value in (("steps", self.steps), ("seed", self.seed)):
            if not is_whole(value):
                raise InputError(f"{name} {value!r} must be a whole number")
        if self.steps < 1:
            raise InputError(f"steps {self.steps} must be at least 1")
        if not is_number(self.denoise) or not 0 < self.denoise <= 1:
            raise InputError(f"denoise {self.denoise!r} must be above 0 and at most 1")
        if self.steps > MOST_STEPS * self.denoise:
            raise InputError(
                f"steps {self.steps} at denoise {self.denoise} are part of a schedule of more than {MOST_STEPS} steps. "
                "Take fewer steps, or more denoise"
            )
        if not 0 <= self.seed < 2**64:
            raise InputError(f"seed {self.seed} must be from 0 to 2^64 - 1")
        if not is_number(self.cfg) or not 0 <= self.cfg < 1e6:
            raise InputError(f"cfg {self.cfg!r} must be a number from 0 to a million")

    @property
    def total_steps(self) -> int:
        return math.floor(self.steps / self.denoise)

    @property
    def first_step(self) -> int:
        return self.total_steps - self.steps

    def sigmas(self, model: DiffusionModel) -> list[float]:
        """The whole schedule, of which a run takes steps ``first_step`` to ``total_steps``."""
        if self.scheduler_func is None:
            source = f"scheduler {self.scheduler!r}"
            sigmas = schedule_sigmas(model.model_sampling, self.sampler_name, self.scheduler, self.total_steps)
        else:
            source = "scheduler_func"
            sigmas = self._called(self.scheduler_func, model)
        if not all(map(math.isfinite, sigmas)):
            raise InputError(f"{source} gives NaN or infinity for {self.total_steps} steps. Take more steps")
        run = sigmas[self.first_step : self.total_steps + 1]  # what is not run may stand still, or be below 0
        if min(run, default=0.0) < 0 or 0 in run[:-1]:
            raise InputError(
                f"{source} gives {sigmas!r:.80}: sigmas must be above 0, but for the last. "
                "Return steps + 1 of them, falling to 0"
            )
        if self.sampler_name in NEED_FALLING_SIGMAS:
            for sigma, sigma_next in pairwise(run):
                if sigma_next >= sigma:
                    raise InputError(
                        f"{source} does not fall from sigma {sigma:g} on in {self.total_steps} steps, and "
                        f"{self.sampler_name} divides by the fall. Take fewer steps, more denoise, or another sampler"
                    )
        return sigmas

    def _called(self, scheduler_func: SchedulerFunc, model: DiffusionModel) -> list[float]:
        returned = scheduler_func(model, self.sampler_name, self.total_steps)
        try:
            return [float(sigma) for sigma in returned]
        except (TypeError, ValueError, OverflowError):
            raise InputError(f"scheduler_func must return sigmas, not {returned!r:.80}") from None


@dataclass(frozen=True)
class NoiseMask:
    """mask: (1 or f, h, w) in 0..1, of any size; differential: grey means later instead of a blend."""

    mask: Tensor
    differential: bool = False

    def __post_init__(self) -> None:
        mask = self.mask
        if not isinstance(mask, Tensor) or mask.ndim != 3 or not mask.numel() or mask.is_complex():
            what = tuple(mask.shape) if isinstance(mask, Tensor) else f"{mask!r:.80}"
            raise InputError(f"noise_mask must be a tensor (n, h, w) of real numbers, not {what}")
        if not torch.isfinite(mask).all():
            raise InputError("noise_mask holds NaN or infinity. Give numbers in 0..1")


def ksample(
    model: DiffusionModel,
    *,
    seed: int,
    steps: int,
    cfg: float,
    sampler_name: str,
    scheduler: str,
    positive: Conditioning,
    negative: Conditioning,
    latent: Tensor,
    denoise: float = 1.0,
    noise_mask: NoiseMask | Tensor | None = None,
    scheduler_func: SchedulerFunc | None = None,
    on_step: Callable[[int, int], None] | None = None,
) -> Tensor:
    """Sample once: noise ``latent`` to where the last ``denoise`` part of the schedule starts, and run it to the end.

    model: ``pipe.model``; sampler_name, scheduler: see SAMPLER_NAMES, SCHEDULER_NAMES
    latent: float32 (f, 4, lh, lw), before the factor 0.18215, as is the result
    noise_mask: (1 or f, h, w) in 0..1, of any size: where to paint; black stays
    scheduler_func: ``scheduler_func(model, sampler_name, steps)`` -> sigmas, in place of ``scheduler``
    on_step: called with (step, steps), step from 1, at last with (steps, steps): also by dpm_fast, whose steps are
        fewer, and by dpm_adaptive, which stays there for as many more as it needs

    Raises InputError for a value that cannot be sampled with.
    """
    if not isinstance(model, DiffusionModel):
        raise InputError(f"model must be the model of a pipe from load_pipe, not {type(model).__name__}")
    if not isinstance(latent, Tensor) or latent.ndim != 4 or latent.shape[1] != 4 or not latent.numel():
        raise InputError(f"latent must be a tensor (f, 4, lh, lw), not {getattr(latent, 'shape', latent)!r:.80}")
    if latent.is_complex() or not torch.isfinite(latent).all():
        raise InputError("latent holds NaN, infinity or complex numbers. Encode the frames again")
    if on_step is not None and not callable(on_step):
        raise InputError(f"on_step must be called with (step, steps): {on_step!r:.80}")
    settings = SampleSettings(seed, steps, cfg, sampler_name, scheduler, denoise, scheduler_func)
    if noise_mask is not None and not isinstance(noise_mask, NoiseMask):
        noise_mask = NoiseMask(_mask_of_pictures(noise_mask))
    return sample(model, settings, positive, negative, latent.float(), noise_mask, on_step)


def _mask_of_pictures(mask: Tensor) -> Tensor:
    """(n, h, w) of a mask given as (h, w), (n, h, w) or (n, 1, h, w); anything else as it is."""
    if isinstance(mask, Tensor) and mask.ndim == 2:
        return mask[None]
    if isinstance(mask, Tensor) and mask.ndim == 4 and mask.shape[1] == 1:
        return mask[:, 0]
    return mask


def sample(
    model: DiffusionModel,
    settings: SampleSettings,
    positive: Conditioning,
    negative: Conditioning,
    latent: Tensor,
    noise_mask: NoiseMask | None = None,
    on_step: Callable[[int, int], None] | None = None,
    noise: Tensor | None = None,
) -> Tensor:
    """``ksample`` with its settings checked already; ``noise`` of the latent's shape takes the place of the seed's."""
    return sample_part(
        model,
        settings,
        positive,
        negative,
        latent,
        initial_noise(latent.shape, settings.seed) if noise is None else noise,
        settings.first_step,
        settings.total_steps,
        noise_mask=noise_mask,
        on_step=on_step,
    )


def part_of(sigmas: Sequence[float], first: int, end: int, *, keep_noise: bool = False) -> list[float]:
    """The sigmas of steps ``first`` to ``end``. A schedule may be longer than was asked for; a run that is cut off
    there goes to 0 in its last step all the same, unless it keeps its noise."""
    part = list(sigmas[first : end + 1])
    if part and end < len(sigmas) - 1 and not keep_noise:
        part[-1] = 0.0
    return part


@torch.inference_mode()
def sample_part(
    model: DiffusionModel,
    settings: SampleSettings,
    positive: Conditioning,
    negative: Conditioning,
    latent: Tensor,
    noise: Tensor,
    first: int,
    end: int,
    *,
    noise_mask: NoiseMask | None = None,
    keep_noise: bool = False,
    on_step: Callable[[int, int], None] | None = None,
) -> Tensor:
    """Sample the steps ``first`` to ``end`` of the settings' schedule; with ``keep_noise`` the result still holds the
    noise of the last sigma."""
    schedule = settings.sigmas(model)
    sigmas = part_of(schedule, first, end, keep_noise=keep_noise)
    steps = len(sigmas) - 1
    if steps < 1:
        return latent
    check_context(latent.shape[0], model.unet.positions, model.context, steps)
    clean = latent.to(model.device) * LATENT_SCALE
    noise = noise.to(model.device)
    asked = [sigma for sigma in sigmas if sigma > 0]  # the model is, at and between these
    guided = Guided(
        model.unet,
        model.model_sampling,
        resolve(positive, "positive", clean, model.model_sampling, model.unet.token_dim, asked),
        resolve(negative, "negative", clean, model.model_sampling, model.unet.token_dim, asked),
        settings.cfg,
        model.context if model.unet.positions is not None else None,
    )
    denoise: Denoiser = guided
    if noise_mask is not None:
        held_noise = noise
        if settings.sampler_name in OWN_MASK_NOISE:
            held_noise = initial_noise(latent.shape, (int(settings.seed) + 1) % 2**64).to(noise)
        denoise = Masked(guided, _mask_at(noise_mask, clean, model, sigmas), clean, held_noise)

    last_denoised: Tensor | None = None

    def step_done(i: int, denoised: Tensor) -> None:
        nonlocal last_denoised
        last_denoised = denoised
        guided.step = i + 1
        if on_step is not None:
            on_step(min(i + 1, steps), steps)

    run = Run(
        denoise=denoise,
        sigmas=sigmas,
        on_step=step_done,
        seed=settings.seed,
        sigma_range=_sigma_range(schedule, end, keep_noise=keep_noise),
        percent_to_sigma=model.model_sampling.percent_to_sigma,
    )
    x = SAMPLERS[settings.sampler_name](run, start(clean, noise, sigmas[0], model.model_sampling.sigma_max))
    if on_step is not None and guided.step < steps:
        on_step(steps, steps)
    # The reference takes the last step's estimate of the clean latent, which a sampler need not land on.
    # dpm_adaptive has no step to take where the schedule has but one.
    return (x if keep_noise or last_denoised is None else last_denoised) / LATENT_SCALE


def _sigma_range(schedule: Sequence[float], end: int, *, keep_noise: bool) -> tuple[float, float]:
    """The lowest sigma above 0 and the highest of a schedule. In the reference, a run that is cut off at ``end`` and
    goes to 0 there takes that sigma out of the schedule."""
    cut = None if keep_noise or end >= len(schedule) - 1 else end
    levels = [sigma for i, sigma in enumerate(schedule) if sigma > 0 and i != cut]
    return min(levels), max(levels)


def start(clean: Tensor, noise: Tensor, sigma: float, sigma_max: float) -> Tensor:
    """The noised latent that sampling starts from; at the largest sigma the model was trained on pure noise, so there
    the noise carries the variance that the latent would have."""
    if math.isclose(sigma, sigma_max, rel_tol=1e-5) or sigma > sigma_max:
        return clean + noise * float(torch.sqrt(1 + torch.tensor(sigma, dtype=torch.float32) ** 2))
    return clean + noise * sigma


def _mask_at(noise_mask: NoiseMask, clean: Tensor, model: DiffusionModel, sigmas: Sequence[float]) -> MaskAt:
    mask = latent_mask(noise_mask.mask, clean)
    if noise_mask.differential:
        return DifferentialMask(mask, model.model_sampling, sigmas)
    return lambda sigma: mask
