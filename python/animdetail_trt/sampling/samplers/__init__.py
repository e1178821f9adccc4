"""Samplers: functions that walk a latent from one noise level to the next, over a denoiser."""

from __future__ import annotations

from functools import partial

from animdetail_trt.errors import InputError
from animdetail_trt.sampling.samplers.ancestral import (
    sample_ddpm,
    sample_dpm_2_ancestral,
    sample_dpmpp_2s_ancestral,
    sample_euler_ancestral,
    sample_lcm,
)
from animdetail_trt.sampling.samplers.cfg_pp import (
    sample_dpmpp_2m_cfg_pp,
    sample_dpmpp_2s_ancestral_cfg_pp,
    sample_euler_ancestral_cfg_pp,
    sample_euler_cfg_pp,
)
from animdetail_trt.sampling.samplers.dpm_solver import sample_dpm_adaptive, sample_dpm_fast
from animdetail_trt.sampling.samplers.exponential import sample_res_multistep
from animdetail_trt.sampling.samplers.interface import OnStep, Run, Sampler
from animdetail_trt.sampling.samplers.multistep import (
    sample_deis,
    sample_dpmpp_2m,
    sample_gradient_estimation,
    sample_ipndm,
    sample_ipndm_v,
    sample_lms,
)
from animdetail_trt.sampling.samplers.predictor_corrector import sample_sa_solver, sample_uni_pc, sample_uni_pc_bh2
from animdetail_trt.sampling.samplers.sde import (
    sample_dpmpp_2m_sde,
    sample_dpmpp_2m_sde_heun,
    sample_dpmpp_3m_sde,
    sample_dpmpp_sde,
    sample_er_sde,
    sample_seeds_2,
    sample_seeds_3,
)
from animdetail_trt.sampling.samplers.single_step import sample_dpm_2, sample_euler, sample_heun, sample_heunpp2

# In the reference's order. The _gpu ones draw their noise on the latent's device.
SAMPLERS: dict[str, Sampler] = {
    "euler": sample_euler,
    "euler_cfg_pp": sample_euler_cfg_pp,
    "euler_ancestral": sample_euler_ancestral,
    "euler_ancestral_cfg_pp": sample_euler_ancestral_cfg_pp,
    "heun": sample_heun,
    "heunpp2": sample_heunpp2,
    "dpm_2": sample_dpm_2,
    "dpm_2_ancestral": sample_dpm_2_ancestral,
    "lms": sample_lms,
    "dpm_fast": sample_dpm_fast,
    "dpm_adaptive": sample_dpm_adaptive,
    "dpmpp_2s_ancestral": sample_dpmpp_2s_ancestral,
    "dpmpp_2s_ancestral_cfg_pp": sample_dpmpp_2s_ancestral_cfg_pp,
    "dpmpp_sde": sample_dpmpp_sde,
    "dpmpp_sde_gpu": partial(sample_dpmpp_sde, on_cpu=False),
    "dpmpp_2m": sample_dpmpp_2m,
    "dpmpp_2m_cfg_pp": sample_dpmpp_2m_cfg_pp,
    "dpmpp_2m_sde": sample_dpmpp_2m_sde,
    "dpmpp_2m_sde_gpu": partial(sample_dpmpp_2m_sde, on_cpu=False),
    "dpmpp_2m_sde_heun": sample_dpmpp_2m_sde_heun,
    "dpmpp_2m_sde_heun_gpu": partial(sample_dpmpp_2m_sde_heun, on_cpu=False),
    "dpmpp_3m_sde": sample_dpmpp_3m_sde,
    "dpmpp_3m_sde_gpu": partial(sample_dpmpp_3m_sde, on_cpu=False),
    "ddpm": sample_ddpm,
    "lcm": sample_lcm,
    "ipndm": sample_ipndm,
    "ipndm_v": sample_ipndm_v,
    "deis": sample_deis,
    "res_multistep": sample_res_multistep,
    "res_multistep_cfg_pp": partial(sample_res_multistep, cfg_pp=True),
    "res_multistep_ancestral": partial(sample_res_multistep, ancestral=True),
    "res_multistep_ancestral_cfg_pp": partial(sample_res_multistep, ancestral=True, cfg_pp=True),
    "gradient_estimation": sample_gradient_estimation,
    "gradient_estimation_cfg_pp": partial(sample_gradient_estimation, cfg_pp=True),
    "er_sde": sample_er_sde,
    "seeds_2": sample_seeds_2,
    "seeds_3": sample_seeds_3,
    "sa_solver": sample_sa_solver,
    "sa_solver_pece": partial(sample_sa_solver, pece=True),
    "ddim": sample_euler,
    "uni_pc": sample_uni_pc,
    "uni_pc_bh2": sample_uni_pc_bh2,
}

# Their coefficients divide by the differences of sigmas, or their noise is that of a path between two of them.
NEED_FALLING_SIGMAS = {
    "lms",
    "dpmpp_sde",
    "dpmpp_sde_gpu",
    "dpmpp_2m",
    "dpmpp_2m_cfg_pp",
    "dpmpp_2m_sde",
    "dpmpp_2m_sde_gpu",
    "dpmpp_2m_sde_heun",
    "dpmpp_2m_sde_heun_gpu",
    "dpmpp_3m_sde",
    "dpmpp_3m_sde_gpu",
    "ipndm_v",
    "deis",
    "res_multistep",
    "res_multistep_cfg_pp",
    "res_multistep_ancestral",
    "res_multistep_ancestral_cfg_pp",
    "er_sde",
    "sa_solver",
    "sa_solver_pece",
    "uni_pc",
    "uni_pc_bh2",
}

# What lies outside the mask is noised with noise of its own, from the seed after the run's.
OWN_MASK_NOISE = {"ddim"}


def check_sampler(name: str) -> None:
    if not isinstance(name, str) or name not in SAMPLERS:
        raise InputError(f"unknown sampler {name!r}. Choose one of: {', '.join(SAMPLERS)}")


__all__ = ["NEED_FALLING_SIGMAS", "OWN_MASK_NOISE", "SAMPLERS", "OnStep", "Run", "Sampler", "check_sampler"]
