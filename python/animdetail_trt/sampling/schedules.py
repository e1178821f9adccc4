"""Schedules: which noise levels a run of n steps visits. Each returns n + 1 sigmas, falling, the last one 0."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeAlias

import torch

from animdetail_trt.errors import InputError
from animdetail_trt.sampling.model_sampling import ModelSampling

Schedule: TypeAlias = Callable[[ModelSampling, int], list[float]]

# These evaluate the last interval twice, so the reference asks for one sigma more and drops the second to last.
_DISCARD_PENULTIMATE = {"dpm_2", "dpm_2_ancestral", "uni_pc", "uni_pc_bh2"}


def normal(model: ModelSampling, steps: int) -> list[float]:
    """Timesteps evenly spaced from the last to the first."""
    timesteps = torch.linspace(model.timestep(model.sigma_max), model.timestep(model.sigma_min), steps)
    return [*map(model.sigma, timesteps.tolist()), 0.0]


def sgm_uniform(model: ModelSampling, steps: int) -> list[float]:
    """As ``normal`` with one step more, the smallest sigma left out (Stability's generative-models)."""
    return [*normal(model, steps + 1)[:-2], 0.0]


def karras(model: ModelSampling, steps: int, rho: float = 7.0) -> list[float]:
    """Evenly spaced in sigma^(1 / rho) (Karras et al. 2022, eq. 5)."""
    low, high = model.sigma_min ** (1 / rho), model.sigma_max ** (1 / rho)
    ramp = torch.linspace(0, 1, steps).tolist()
    return [(high + r * (low - high)) ** rho for r in ramp] + [0.0]


def simple(model: ModelSampling, steps: int) -> list[float]:
    """Every (1000 / steps)th trained sigma, from the largest, not interpolated."""
    stride = len(model.sigmas) / steps
    return [float(model.sigmas[-(1 + int(i * stride))]) for i in range(steps)] + [0.0]


SCHEDULES: dict[str, Schedule] = {
    "simple": simple,
    "sgm_uniform": sgm_uniform,
    "karras": karras,
    "normal": normal,
}


def check_scheduler(name: str) -> None:
    if name not in SCHEDULES:
        raise InputError(f"unknown scheduler {name!r}. Choose one of: {', '.join(SCHEDULES)}")


def schedule_sigmas(model: ModelSampling, sampler_name: str, scheduler: str, steps: int) -> list[float]:
    """The steps + 1 sigmas that ``sampler_name`` runs over when ``steps`` are asked for."""
    check_scheduler(scheduler)
    schedule = SCHEDULES[scheduler]
    if sampler_name in _DISCARD_PENULTIMATE:
        sigmas: Sequence[float] = schedule(model, steps + 1)
        return [*sigmas[:-2], sigmas[-1]]
    return schedule(model, steps)
