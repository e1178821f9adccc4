"""Schedules: which noise levels a run of n steps visits. Each returns falling sigmas, n + 1 as a rule, the last 0.

They are float32, as the reference's: the noise of an SDE sampler, a Brownian path between two sigmas, changes by the
root of what a sigma changes by, so that one bit of a sigma is 3e-4 of the noise.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, TypeAlias

import numpy as np
import torch

from animdetail_trt.errors import InputError
from animdetail_trt.sampling.model_sampling import ModelSampling
from animdetail_trt.sampling.published_levels import AYS_LEVELS, GITS_LEVELS

Schedule: TypeAlias = Callable[[ModelSampling, int], list[float]]

# These evaluate the last interval twice, so the reference asks for one sigma more and drops the second to last.
DISCARD_PENULTIMATE = {"dpm_2", "dpm_2_ancestral", "uni_pc", "uni_pc_bh2"}


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
    return [*((high + torch.linspace(0, 1, steps) * (low - high)) ** rho).tolist(), 0.0]


def simple(model: ModelSampling, steps: int) -> list[float]:
    """Every (1000 / steps)th trained sigma, from the largest, not interpolated."""
    stride = len(model.sigmas) / steps
    return [float(model.sigmas[-(1 + int(i * stride))]) for i in range(steps)] + [0.0]


def exponential(model: ModelSampling, steps: int) -> list[float]:
    """Evenly spaced in log sigma."""
    levels = torch.linspace(math.log(model.sigma_max), math.log(model.sigma_min), steps)
    return [*levels.exp().tolist(), 0.0]


def ddim_uniform(model: ModelSampling, steps: int) -> list[float]:
    """Every (1000 // steps)th trained sigma from the second on (Song et al. 2021): up to twice as many as asked for."""
    stride = max(len(model.sigmas) // steps, 1)
    return [*reversed(model.sigmas[1::stride].tolist()), 0.0]


def beta(model: ModelSampling, steps: int, alpha: float = 0.6, beta: float = 0.6) -> list[float]:
    """Trained timesteps at evenly spaced quantiles of a beta distribution (arXiv:2407.12173), each once: with many
    steps there are fewer than asked for."""
    from scipy.stats import beta as distribution

    quantiles = 1 - np.linspace(0, 1, steps, endpoint=False)
    timesteps = np.rint(distribution.ppf(quantiles, alpha, beta) * (len(model.sigmas) - 1)).astype(int)
    return [*(float(model.sigmas[t]) for t in dict.fromkeys(timesteps)), 0.0]


def linear_quadratic(model: ModelSampling, steps: int, threshold: float = 0.025) -> list[float]:
    """The first half of the steps takes a linear 2.5 % off sigma, the second a parabola the rest (Genmo's Mochi)."""
    if steps == 1:
        return [model.sigma_max, 0.0]
    linear, quadratic = steps // 2, steps - steps // 2
    rise = linear - threshold * steps
    square = rise / (linear * quadratic**2)
    slope = threshold / linear - 2 * rise / quadratic**2
    done = [i * threshold / linear for i in range(linear)]
    done += [square * i**2 + slope * i + square * linear**2 for i in range(linear, steps)]
    return [*(torch.tensor([1 - part for part in done]) * model.sigma_max).tolist(), 0.0]


def kl_optimal(model: ModelSampling, steps: int) -> list[float]:
    """Evenly spaced in atan sigma (Sabour et al. 2024, arXiv:2404.14507, eq. 16). One step is NaN, as published."""
    ramp = torch.arange(steps, dtype=torch.float32) / (steps - 1)
    angles = ramp * math.atan(model.sigma_min) + (1 - ramp) * math.atan(model.sigma_max)
    # Near pi / 2 the last bit of the angle shows; torch's own float32 tangent differs between processors.
    return [*angles.double().tan().float().tolist(), 0.0]


def align_your_steps(family: str) -> Schedule:
    """The levels published for ten steps (Sabour et al. 2024, arXiv:2404.14507), interpolated in log sigma for others;
    the model's own range is not asked."""

    def schedule(model: ModelSampling, steps: int) -> list[float]:
        return _ending_at_nought(_interpolated(AYS_LEVELS[family], steps))

    schedule.__doc__ = align_your_steps.__doc__
    return schedule


def gits(model: ModelSampling, steps: int) -> list[float]:
    """The levels published for 2 to 20 steps (Chen et al. 2024, arXiv:2405.11326); those for 20, interpolated in log
    sigma, for more."""
    longest = max(GITS_LEVELS)
    if steps > longest:
        return _ending_at_nought(_interpolated(GITS_LEVELS[longest], steps))
    # One step takes, as published, the last of the longest table.
    return _ending_at_nought(np.array(GITS_LEVELS.get(steps, GITS_LEVELS[longest][-2:])))


def _interpolated(levels: Sequence[float], steps: int) -> np.ndarray[Any, Any]:
    positions = np.linspace(0, len(levels) - 1, steps + 1)
    interpolated: np.ndarray[Any, Any] = np.exp(np.interp(positions, np.arange(len(levels)), np.log(levels)))
    return interpolated


def _ending_at_nought(levels: np.ndarray[Any, Any]) -> list[float]:
    return [*levels[:-1].astype(np.float32).tolist(), 0.0]


SCHEDULES: dict[str, Schedule] = {
    "simple": simple,
    "sgm_uniform": sgm_uniform,
    "karras": karras,
    "exponential": exponential,
    "ddim_uniform": ddim_uniform,
    "beta": beta,
    "normal": normal,
    "linear_quadratic": linear_quadratic,
    "kl_optimal": kl_optimal,
    "AYS SDXL": align_your_steps("SDXL"),
    "AYS SD1": align_your_steps("SD1"),
    "AYS SVD": align_your_steps("SVD"),
    "GITS[coeff=1.2]": gits,
}


def check_scheduler(name: str) -> None:
    if not isinstance(name, str) or name not in SCHEDULES:
        raise InputError(f"unknown scheduler {name!r}. Choose one of: {', '.join(SCHEDULES)}")


def schedule_sigmas(model: ModelSampling, sampler_name: str, scheduler: str, steps: int) -> list[float]:
    """The steps + 1 sigmas that ``sampler_name`` runs over when ``steps`` are asked for."""
    check_scheduler(scheduler)
    schedule = SCHEDULES[scheduler]
    if sampler_name in DISCARD_PENULTIMATE:
        sigmas: Sequence[float] = schedule(model, steps + 1)
        return [*sigmas[:-2], sigmas[-1]]
    return schedule(model, steps)
