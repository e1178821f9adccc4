"""Schedules against the reference's tables, for every beta schedule, and what every schedule has in common."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file

from animdetail_trt.errors import InputError
from animdetail_trt.sampling import SCHEDULER_NAMES, DiffusionModel, SampleSettings
from animdetail_trt.sampling.model_sampling import ModelSampling
from animdetail_trt.sampling.run import part_of
from animdetail_trt.sampling.schedules import schedule_sigmas

TABLES = load_file(Path(__file__).parents[1] / "golden" / "sigmas.safetensors")
MODELS = {name: ModelSampling(name) for name in ("linear", "sqrt_linear", "lcm")}
CASES = [
    key
    for key in TABLES
    if not key.endswith("|table") and key.split("|")[0] in MODELS and key.split("|")[1] in SCHEDULER_NAMES
]


@pytest.mark.parametrize("beta", MODELS)
def test_trained_sigmas(beta: str) -> None:
    torch.testing.assert_close(MODELS[beta].sigmas, TABLES[f"{beta}|table"], rtol=1e-6, atol=0)


def test_schedules() -> None:
    """Every golden table of the schedulers that there are: three beta schedules, two samplers, twelve step counts."""
    assert len(CASES) == 3 * len(SCHEDULER_NAMES) * 2 * 12
    for key in CASES:
        beta, scheduler, sampler, steps = key.split("|")
        sigmas = torch.tensor(schedule_sigmas(MODELS[beta], sampler, scheduler, int(steps)))
        torch.testing.assert_close(
            sigmas, TABLES[key], rtol=1e-6, atol=0, equal_nan=True, msg=lambda text, key=key: f"{key}: {text}"
        )


@given(st.sampled_from(SCHEDULER_NAMES), st.integers(2, 400), st.sampled_from(list(MODELS)))
def test_sigmas_fall_to_nought(scheduler: str, steps: int, beta: str) -> None:
    model = MODELS[beta]
    steps = min(steps, len(model.sigmas))  # a distilled model has 50 levels
    sigmas = schedule_sigmas(model, "euler", scheduler, steps)
    if scheduler == "beta":
        assert len(sigmas) <= steps + 1
    elif scheduler == "ddim_uniform":
        assert len(sigmas) >= steps
    else:
        assert len(sigmas) == steps + 1
    assert sigmas[-1] == 0
    assert all(a > b for a, b in pairwise(sigmas))


@pytest.mark.parametrize("scheduler", SCHEDULER_NAMES)
def test_sigmas_are_float32(scheduler: str) -> None:
    """Tables' too: one bit of a sigma is 3e-4 of a Brownian path's noise."""
    for steps in (1, 7, 10, 33):
        sigmas = schedule_sigmas(MODELS["linear"], "euler", scheduler, steps)
        torch.testing.assert_close(
            torch.tensor(sigmas, dtype=torch.float64), torch.tensor(sigmas).double(), rtol=0, atol=0, equal_nan=True
        )


@pytest.mark.parametrize(
    ("first", "end", "keep_noise", "expected"),
    [
        (0, 4, False, [9, 5, 3, 1, 0]),
        (2, 4, False, [3, 1, 0]),
        (1, 3, False, [5, 3, 0]),
        (1, 3, True, [5, 3, 1]),
        (2, 9, False, [3, 1, 0]),
        (4, 5, False, [0]),
        (7, 9, False, []),
    ],
)
def test_part_of_a_schedule(first: int, end: int, keep_noise: bool, expected: list[float]) -> None:
    assert part_of([9, 5, 3, 1, 0], first, end, keep_noise=keep_noise) == expected


def test_a_schedule_of_nan_is_refused() -> None:
    model = DiffusionModel(None, MODELS["linear"])  # type: ignore[arg-type]
    with pytest.raises(InputError, match="scheduler 'kl_optimal' gives NaN or infinity for 1 steps"):
        SampleSettings(0, 1, 1.0, "euler", "kl_optimal").sigmas(model)


@given(st.floats(0, 999), st.sampled_from(list(MODELS)))
def test_timestep_is_the_inverse_of_sigma(timestep: float, beta: str) -> None:
    """To the nearest trained timestep."""
    model = MODELS[beta]
    stride = 1000 // len(model.sigmas)
    timestep = max(timestep, stride - 1)  # the first that a distilled model knows
    assert abs(model.timestep(model.sigma(timestep)) - timestep) <= 0.5 * stride + 1e-3


def test_unknown_scheduler() -> None:
    with pytest.raises(InputError, match="unknown scheduler 'beta57'. Choose one of: simple"):
        schedule_sigmas(MODELS["linear"], "euler", "beta57", 4)


def test_only_what_is_run_must_fall() -> None:
    model = DiffusionModel(None, MODELS["linear"])  # type: ignore[arg-type]
    levels = [9.0, 9.0, 3.0, 1.0, 0.0]
    half = SampleSettings(0, 2, 1.0, "dpmpp_2m", "normal", 0.5, lambda *_: levels)
    assert half.sigmas(model) == levels
    whole = SampleSettings(0, 4, 1.0, "dpmpp_2m", "normal", 1.0, lambda *_: levels)
    with pytest.raises(InputError, match="does not fall from sigma 9 on"):
        whole.sigmas(model)
