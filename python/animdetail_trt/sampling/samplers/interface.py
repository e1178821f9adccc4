"""What every sampler is given."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeAlias

from torch import Tensor

from animdetail_trt.sampling.masked import Denoiser
from animdetail_trt.sampling.noise import NoiseSampler

OnStep: TypeAlias = Callable[[int, Tensor], None]
"""``on_step(i, denoised)``: step i (from 0) has this estimate of the clean latent."""


@dataclass(frozen=True)
class Run:
    """One run over a schedule.

    denoise: the model; sigmas: host floats, falling; on_step: called once a step, before the step is taken
    make_noise: noise for a latent like the given one, for samplers that add some
    """

    denoise: Denoiser
    sigmas: Sequence[float]
    on_step: OnStep
    make_noise: Callable[[Tensor], NoiseSampler]


Sampler: TypeAlias = Callable[[Run, Tensor], Tensor]
"""``sample(run, x)``: x at ``sigmas[0]`` -> x at ``sigmas[-1]``."""
