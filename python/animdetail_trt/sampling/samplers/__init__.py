"""Samplers: functions that walk a latent from one noise level to the next, over a denoiser."""

from __future__ import annotations

from animdetail_trt.errors import InputError
from animdetail_trt.sampling.samplers.ancestral import sample_euler_ancestral
from animdetail_trt.sampling.samplers.interface import OnStep, Run, Sampler
from animdetail_trt.sampling.samplers.multistep import sample_dpmpp_2m
from animdetail_trt.sampling.samplers.single_step import sample_euler

SAMPLERS: dict[str, Sampler] = {
    "euler": sample_euler,
    "euler_ancestral": sample_euler_ancestral,
    "dpmpp_2m": sample_dpmpp_2m,
}


def check_sampler(name: str) -> None:
    if name not in SAMPLERS:
        raise InputError(f"unknown sampler {name!r}. Choose one of: {', '.join(SAMPLERS)}")


__all__ = ["SAMPLERS", "OnStep", "Run", "Sampler", "check_sampler"]
