"""What ``ksample`` refuses before any work, each by its value and its remedy; and what it takes although it is odd."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import animdetail_trt as adt
from animdetail_trt.errors import InputError
from animdetail_trt.sampling import ContextOptions, ksample
from animdetail_trt.sampling.refiner import Refiner, sample_refined
from animdetail_trt.sampling.run import NoiseMask, SampleSettings

TOKENS = torch.zeros(1, 77, 64)


@pytest.fixture(scope="module")
def pipe(tiny: Path) -> adt.BasicPipe:
    return adt.load_pipe(tiny / "tiny_sd15.safetensors", device="cpu", dtype="float32")


def sampled(pipe: adt.BasicPipe, **changes: Any) -> torch.Tensor:
    settings: dict[str, Any] = {
        "seed": 1,
        "steps": 2,
        "cfg": 2.0,
        "sampler_name": "euler",
        "scheduler": "normal",
        "positive": [[TOKENS, {}]],
        "negative": [[TOKENS, {}]],
        "latent": torch.zeros(1, 4, 8, 8),
    }
    return ksample(pipe.model, **(settings | changes))


def returning(*sigmas: float) -> Any:
    return lambda model, sampler_name, steps: sigmas


def entry(**extras: Any) -> dict[str, Any]:
    return {"positive": [[TOKENS, extras]]}


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"steps": 10**9}, "steps 1000000000 at denoise 1.0 are part of a schedule of more than 1000000 steps"),
        ({"steps": 10**400}, "Take fewer steps, or more denoise"),
        ({"denoise": 1e-300}, "steps 2 at denoise 1e-300 are part of a schedule of more than"),
        ({"latent": torch.full((1, 4, 8, 8), math.nan)}, "latent holds NaN"),
        ({"latent": torch.zeros(1, 4, 8, 8, dtype=torch.complex64)}, "complex"),
        ({"on_step": 5}, "on_step must be called with"),
        ({"noise_mask": "face.png"}, r"noise_mask must be a tensor \(n, h, w\) .* not 'face.png'"),
        ({"noise_mask": np.ones((8, 8), np.float32)}, "noise_mask must be a tensor"),
        ({"noise_mask": torch.ones(2, 3, 8, 8)}, r"not \(2, 3, 8, 8\)"),
        ({"noise_mask": torch.ones(0, 8, 8)}, r"not \(0, 8, 8\)"),
        ({"noise_mask": torch.full((8, 8), math.nan)}, "noise_mask holds NaN"),
        (entry(strength=math.nan), "strength nan must be a finite number"),
        (entry(strength=1e300), r"strength 1e\+300 must be a finite number"),
        (entry(mask=torch.ones(8, 8), mask_strength=10**400), "mask_strength 1000.* must be a finite number"),
        (entry(start_percent=math.nan), "start_percent nan must be a finite number"),
        (entry(end_percent=math.inf), "end_percent inf must be a finite number"),
        (entry(area=(0, 8, 0, 0)), r"area \(0, 8, 0, 0\) must be at least 1 pixel"),
        (entry(area=(math.nan, 8, 0, 0)), "must be .height, width, top, left."),
        (entry(area=("percentage", math.inf, 1, 0, 0)), "must be .height, width, top, left."),
        ({"scheduler_func": returning(0.0, 0.0)}, "sigmas must be above 0, but for the last"),
        ({"scheduler_func": returning(5.0, -1.0)}, "sigmas must be above 0, but for the last"),
        ({"scheduler_func": returning(5.0, 0.0, 0.0), "sampler_name": "ddpm"}, "Return steps . 1 of them"),
        ({"scheduler_func": returning(10**400, 0)}, "scheduler_func must return sigmas"),
    ],
)
def test_what_cannot_be_sampled_is_named(pipe: adt.BasicPipe, changes: dict[str, Any], words: str) -> None:
    with pytest.raises(InputError, match=words):
        sampled(pipe, **changes)


@pytest.mark.parametrize(
    "changes",
    [
        {"seed": np.uint64(2**64 - 1), "sampler_name": "ddim", "noise_mask": torch.ones(8, 8)},
        {"scheduler_func": returning(5.0, 3.0, 0.0, 0.0), "sampler_name": "dpmpp_2m"},  # the second 0 is not run
        {"scheduler_func": returning(5.0, 1e-9, 0.0), "sampler_name": "ddpm"},
        {"scheduler_func": returning(-9.0, 7.0, 5.0, 3.0, 0.0), "denoise": 0.5},  # as kl_optimal's of a sqrt schedule
        entry(area=(1, 1, 7, 7)),
        entry(area=(8, 8, 16, 0), end_percent=0.2) | {"denoise": 0.5},  # outside, and it holds before the run begins
    ],
)
def test_odd_values_are_sampled(pipe: adt.BasicPipe, changes: dict[str, Any]) -> None:
    assert torch.isfinite(sampled(pipe, **changes)).all()


@pytest.mark.parametrize("mask", [np.ones((1, 8, 8)), None, torch.ones(8, 8)])
def test_a_noise_mask_is_three_dimensional(mask: Any) -> None:
    with pytest.raises(InputError, match="noise_mask must be a tensor"):
        NoiseMask(mask)


@pytest.mark.parametrize("name", ["schedule", "fuse_method"])
@pytest.mark.parametrize("value", [[], {}, 5])
def test_a_context_option_is_a_name(name: str, value: Any) -> None:
    with pytest.raises(InputError, match="Choose one of"):
        ContextOptions(**{name: value})


@pytest.mark.parametrize("sampler", ["euler", "uni_pc", "dpm_fast", "dpm_adaptive"])
def test_the_last_step_that_is_told_of_is_the_last(pipe: adt.BasicPipe, sampler: str) -> None:
    """dpm_fast takes 2 steps here, dpm_adaptive some 16, and none where there is but one."""
    for steps in (1, 4):
        told: list[tuple[int, int]] = []
        changes = {"sampler_name": sampler, "steps": steps, "scheduler": "karras", "cfg": 1.0}
        sampled(pipe, **changes, on_step=lambda *step, told=told: told.append(step))
        assert told == sorted(told)
        assert told[-1] == (steps, steps)
        assert told[0][0] == 1


def test_the_last_step_of_a_refiner_is_the_last(pipe: adt.BasicPipe) -> None:
    """ddim_uniform has one step more than it was asked for."""
    told: list[tuple[int, int]] = []
    settings = SampleSettings(1, 6, 1.0, "euler", "ddim_uniform")
    positive = negative = [[TOKENS, {}]]
    sample_refined(
        pipe.model, settings, positive, negative, torch.zeros(1, 4, 8, 8),
        Refiner(pipe.model, positive, negative, 0.5), NoiseMask(torch.ones(1, 8, 8)), lambda *step: told.append(step),
    )  # fmt: skip
    assert told == [(step, 6) for step in (1, 2, 3, 4, 5, 6, 6)]


def test_windows_that_leave_a_frame_out_are_met_later_than_the_schedule_is_long(tiny: Path) -> None:
    """Two steps are covered; dpm_adaptive goes on to a third."""
    context = ContextOptions("standard_uniform", 5, 2, context_stride=2)
    pipe = adt.load_pipe(
        tiny / "tiny_sd15.safetensors", motion_module=tiny / "tiny_mm_v2.safetensors", context=context,
        device="cpu", dtype="float32",
    )  # fmt: skip
    changes = {"latent": torch.zeros(11, 4, 8, 8), "scheduler": "karras"}
    assert torch.isfinite(sampled(pipe, **changes)).all()
    with pytest.raises(InputError, match=r"do not cover 11 frames: frame \d+ at step [3-8] "):
        sampled(pipe, **changes, sampler_name="dpm_adaptive")
