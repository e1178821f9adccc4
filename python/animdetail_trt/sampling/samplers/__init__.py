"""Samplers: functions that walk a latent from one noise level to the next, over a denoiser."""

from __future__ import annotations

from animdetail_trt.errors import InputError
from animdetail_trt.sampling.samplers.ancestral import (
    sample_ddpm,
    sample_dpm_2_ancestral,
    sample_dpmpp_2s_ancestral,
    sample_euler_ancestral,
)
from animdetail_trt.sampling.samplers.interface import OnStep, Run, Sampler
from animdetail_trt.sampling.samplers.multistep import (
    sample_dpmpp_2m,
    sample_gradient_estimation,
    sample_ipndm,
    sample_ipndm_v,
    sample_lms,
)
from animdetail_trt.sampling.samplers.single_step import sample_dpm_2, sample_euler, sample_heun, sample_heunpp2

# In the reference's order.
SAMPLERS: dict[str, Sampler] = {
    "euler": sample_euler,
    "euler_ancestral": sample_euler_ancestral,
    "heun": sample_heun,
    "heunpp2": sample_heunpp2,
    "dpm_2": sample_dpm_2,
    "dpm_2_ancestral": sample_dpm_2_ancestral,
    "lms": sample_lms,
    "dpmpp_2s_ancestral": sample_dpmpp_2s_ancestral,
    "dpmpp_2m": sample_dpmpp_2m,
    "ddpm": sample_ddpm,
    "ipndm": sample_ipndm,
    "ipndm_v": sample_ipndm_v,
    "gradient_estimation": sample_gradient_estimation,
}


# Their coefficients divide by the differences of sigmas.
NEED_FALLING_SIGMAS = {"lms", "dpmpp_2m", "ipndm_v"}


def check_sampler(name: str) -> None:
    if not isinstance(name, str) or name not in SAMPLERS:
        raise InputError(f"unknown sampler {name!r}. Choose one of: {', '.join(SAMPLERS)}")


__all__ = ["NEED_FALLING_SIGMAS", "SAMPLERS", "OnStep", "Run", "Sampler", "check_sampler"]
