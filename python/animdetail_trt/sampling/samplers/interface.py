"""What every sampler is given."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeAlias

from torch import Tensor

from animdetail_trt.sampling.masked import Denoiser
from animdetail_trt.sampling.noise import NoiseSampler, brownian_noise, step_noise

OnStep: TypeAlias = Callable[[int, Tensor], None]
"""``on_step(i, denoised)``: step i (from 0) has this estimate of the clean latent."""


@dataclass(frozen=True)
class Run:
    """One run over a schedule or over a part of one.

    denoise: the model; sigmas: host floats, falling; on_step: called once a step, before the step is taken
    seed: of the noise that is added on the way
    sigma_range: the lowest sigma above 0 and the highest of the whole schedule
    percent_to_sigma: the sigma at a part (0..1) of the way from pure noise to none
    """

    denoise: Denoiser
    sigmas: Sequence[float]
    on_step: OnStep
    seed: int
    sigma_range: tuple[float, float]
    percent_to_sigma: Callable[[float], float]

    def estimates(self, x: Tensor, sigma: float, *, cfg_pp: bool) -> tuple[Tensor, Tensor]:
        """The estimate of the clean latent, and the one that says where the noise is. They are one, but for CFG++,
        where the unconditional one says it (Chung et al. 2024, arXiv:2406.08070)."""
        if cfg_pp:
            return self.denoise.both(x, sigma)
        denoised = self.denoise(x, sigma)
        return denoised, denoised

    def step_noise(self, x: Tensor) -> NoiseSampler:
        return step_noise(x, self.seed)

    def whole_path(self, x: Tensor, *, on_cpu: bool) -> NoiseSampler:
        """Brownian noise over the whole schedule: parts of it that are run one by one walk one path."""
        return brownian_noise(x, *self.sigma_range, self.seed, on_cpu=on_cpu)

    def own_path(self, x: Tensor, *, on_cpu: bool) -> NoiseSampler:
        """Brownian noise over the sigmas of this run alone."""
        lowest = min(sigma for sigma in self.sigmas if sigma > 0)
        return brownian_noise(x, lowest, max(self.sigmas), self.seed, on_cpu=on_cpu)


Sampler: TypeAlias = Callable[[Run, Tensor], Tensor]
"""``sample(run, x)``: x at ``sigmas[0]`` -> x at ``sigmas[-1]``."""
