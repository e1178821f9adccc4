"""Two models on one schedule: the first paints, the second finishes."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from animdetail_trt.checks import is_number
from animdetail_trt.errors import InputError
from animdetail_trt.sampling.conditioning import Conditioning
from animdetail_trt.sampling.masked import latent_mask
from animdetail_trt.sampling.model import DiffusionModel
from animdetail_trt.sampling.noise import initial_noise
from animdetail_trt.sampling.run import NoiseMask, SampleSettings, sample_part


@dataclass(frozen=True)
class Refiner:
    """The second model, its own conditioning, and the part of the steps that it takes (0..1)."""

    model: Any  # a DiffusionModel; of a pipe that another program samples, its own
    positive: Conditioning
    negative: Conditioning
    ratio: float

    def __post_init__(self) -> None:
        check_refiner_ratio(self.ratio)


def check_refiner_ratio(ratio: Any) -> None:
    if not is_number(ratio) or not 0 <= ratio <= 1:
        raise InputError(f"refiner_ratio {ratio!r:.80} must be from 0 to 1")


def sample_refined(
    model: DiffusionModel,
    settings: SampleSettings,
    positive: Conditioning,
    negative: Conditioning,
    latent: Tensor,
    refiner: Refiner,
    noise_mask: NoiseMask,
    on_step: Callable[[int, int], None] | None = None,
    noise: Tensor | None = None,
) -> Tensor:
    """As ``sample``, the last ``refiner.ratio`` of the steps by the refiner.

    The first model stops with its noise still in; what it made is laid over the original latent through the mask,
    and the refiner goes on from there, adding no noise of its own. Grey stays grey for it: a differential mask is the
    first model's alone.
    """
    switch = settings.first_step + math.floor(settings.steps * (1 - refiner.ratio))
    done = switch - settings.first_step

    tell = on_step or (lambda step, steps: None)

    def refiner_step(step: int, steps: int) -> None:
        """A schedule may have more steps than were asked for, or fewer."""
        tell(settings.steps if step == steps else min(done + step, settings.steps), settings.steps)

    noisy = sample_part(
        model,
        settings,
        positive,
        negative,
        latent,
        initial_noise(latent.shape, settings.seed) if noise is None else noise,
        settings.first_step,
        switch,
        noise_mask=noise_mask,
        keep_noise=True,
        on_step=lambda step, _: tell(step, settings.steps),
    )
    original = latent.to(noisy.device)
    mask = latent_mask(noise_mask.mask, original)
    return sample_part(
        refiner.model,
        settings,
        refiner.positive,
        refiner.negative,
        noisy * mask + original * (1 - mask),
        torch.zeros_like(original),
        switch,
        settings.total_steps + 1,
        noise_mask=NoiseMask(noise_mask.mask),
        on_step=refiner_step,
    )
