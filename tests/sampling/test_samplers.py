"""Samplers where the answer is known: on data that is normally distributed the denoiser, its ODE and the spread of the
samples at each noise level are formulas."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.integrate import quad
from torch import Tensor

from animdetail_trt.errors import SamplingError
from animdetail_trt.sampling.noise import brownian_noise
from animdetail_trt.sampling.samplers import NEED_FALLING_SIGMAS, OWN_MASK_NOISE, SAMPLERS, Run
from animdetail_trt.sampling.samplers.exponential import exponential_adams, phi

MEAN, SPREAD = 0.7, 0.5
HIGH, LOW = 10.0, 0.1
TAKES_STEPS_OF_ITS_OWN = {"dpm_fast", "dpm_adaptive"}


class Normal:
    """The denoiser of data from N(MEAN, SPREAD^2)."""

    def both(self, x: Tensor, sigma: float) -> tuple[Tensor, Tensor]:
        denoised = MEAN + SPREAD**2 / (SPREAD**2 + sigma**2) * (x - MEAN)
        return denoised, denoised

    def __call__(self, x: Tensor, sigma: float) -> Tensor:
        return self.both(x, sigma)[0]


def run(
    name: str,
    x: Tensor,
    sigmas: Sequence[float],
    whole: Sequence[float] | None = None,
    percent_to_sigma: Callable[[float], float] = lambda percent: math.inf,  # sa_solver takes no step with noise
) -> tuple[Tensor, list[tuple[int, Tensor]]]:
    """What the sampler returns, and what it called on_step with."""
    steps: list[tuple[int, Tensor]] = []
    levels = [sigma for sigma in whole or sigmas if sigma > 0]
    the_run = Run(
        denoise=Normal(),
        sigmas=sigmas,
        on_step=lambda i, denoised: steps.append((i, denoised)),
        seed=5,
        sigma_range=(min(levels), max(levels)),
        percent_to_sigma=percent_to_sigma,
    )
    return SAMPLERS[name](the_run, x), steps


def levels(count: int) -> list[float]:
    return [float(level) for level in np.geomspace(HIGH, LOW, count + 1)]


def reached(name: str, sigmas: Sequence[float]) -> float:
    """The sigma of what is returned: sa_solver gives back the last latent that it corrected."""
    return sigmas[-2] if name.startswith("sa_solver") else sigmas[-1]


ORDERS = {
    "euler": 1,
    "euler_cfg_pp": 1,
    "heun": 2,
    "heunpp2": 1,
    "dpm_2": 2,
    "lms": 3,
    "dpm_fast": 3,
    "dpmpp_2m": 2,
    "dpmpp_2m_cfg_pp": 2,
    "ipndm": 2,
    "ipndm_v": 2,
    "deis": 2.5,
    "res_multistep": 2,
    "res_multistep_cfg_pp": 2,
    "gradient_estimation": 1,
    "gradient_estimation_cfg_pp": 1,
    "sa_solver": 2,
    "sa_solver_pece": 2,
    "ddim": 1,
    "uni_pc": 2,
    "uni_pc_bh2": 2,
}


@pytest.mark.parametrize("name", ORDERS)
def test_ode_samplers_converge(name: str) -> None:
    """Twice the steps bring the error down as the method's order says."""
    x = torch.tensor([[[[-8.0, 3.0, 12.0]]]], dtype=torch.float64)

    def error(steps: int) -> float:
        sigmas = levels(steps)
        shrunk = math.sqrt((SPREAD**2 + reached(name, sigmas) ** 2) / (SPREAD**2 + HIGH**2))
        return float((run(name, x, sigmas)[0] - (MEAN + (x - MEAN) * shrunk)).abs().max())

    few, many = error(41), error(83)  # of dpm_fast's third-order steps 14 and 28
    assert many < 0.01
    assert math.log2(few / many) > ORDERS[name] - 0.2


def test_dpm_adaptive_keeps_to_its_tolerance() -> None:
    x = torch.tensor([[[[-8.0, 3.0, 12.0]]]], dtype=torch.float64)
    out, steps = run("dpm_adaptive", x, [HIGH, 1.0, LOW])
    expected = MEAN + (x - MEAN) * math.sqrt((SPREAD**2 + LOW**2) / (SPREAD**2 + HIGH**2))
    assert (out - expected).abs().max() < 0.05 * expected.abs().max()
    assert 5 < len(steps) < 50


# How many steps bring the variance within 3 %.
NOISY = {
    "euler_ancestral": 160,
    "euler_ancestral_cfg_pp": 160,
    "dpm_2_ancestral": 40,
    "dpmpp_2s_ancestral": 40,
    "dpmpp_sde": 40,
    "dpmpp_sde_gpu": 40,
    "dpmpp_2m_sde": 40,
    "dpmpp_2m_sde_gpu": 40,
    "dpmpp_2m_sde_heun": 40,
    "dpmpp_2m_sde_heun_gpu": 40,
    "dpmpp_3m_sde": 40,
    "dpmpp_3m_sde_gpu": 40,
    "ddpm": 160,
    "res_multistep_ancestral": 40,
    "res_multistep_ancestral_cfg_pp": 40,
    "er_sde": 40,
    "seeds_2": 40,
    "seeds_3": 40,
    "sa_solver": 40,
    "sa_solver_pece": 40,
}


@pytest.mark.parametrize("name", NOISY)
def test_samplers_with_noise_keep_the_distribution(name: str) -> None:
    """Samples that are distributed as they should be at the first level are so at the last."""
    noise = torch.randn(1, 4, 128, 128, generator=torch.Generator().manual_seed(1))
    start = MEAN + math.sqrt(SPREAD**2 + HIGH**2) * noise
    sigmas = levels(NOISY[name])
    out, _ = run(name, start, sigmas, percent_to_sigma=lambda percent: {0.2: 5.0, 0.8: 0.5}[percent])
    assert abs(float(out.mean()) - MEAN) < 0.01
    assert abs(float(out.var()) / (SPREAD**2 + reached(name, sigmas) ** 2) - 1) < 0.03
    # An ODE would give the noise of the start back (1.0); er_sde adds the least.
    kept = float(torch.corrcoef(torch.stack([out.flatten(), noise.flatten()]))[0, 1])
    assert kept < 0.9


def test_lcm_noises_each_estimate_anew() -> None:
    out, steps = run("lcm", torch.randn(1, 4, 64, 64), [HIGH, 2.0, 1.0])
    added = out - steps[-1][1]
    assert abs(float(added.std()) - 1.0) < 0.03


CFG_PP_LIKE = {
    "euler_cfg_pp": "euler",
    "euler_ancestral_cfg_pp": "euler_ancestral",
    "dpmpp_2m_cfg_pp": "dpmpp_2m",
    "res_multistep_cfg_pp": "res_multistep",
    "res_multistep_ancestral_cfg_pp": "res_multistep_ancestral",
    "gradient_estimation_cfg_pp": "gradient_estimation",
}


@pytest.mark.parametrize("name", CFG_PP_LIKE)
def test_cfg_pp_without_guidance_is_the_plain_sampler(name: str) -> None:
    """(Not so dpmpp_2s_ancestral_cfg_pp: its guidance is the difference of two estimates at different levels.)"""
    x = HIGH * torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(2))
    sigmas = [*levels(6), 0.0]
    expected, _ = run(CFG_PP_LIKE[name], x, sigmas)
    torch.testing.assert_close(run(name, x, sigmas)[0], expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("name", SAMPLERS)
@pytest.mark.parametrize(
    "sigmas", [[HIGH, 0.0], [HIGH, 1.0, 0.0], [HIGH, 1e-3, 0.0], [HIGH, 4.0, 1.0], [*levels(5), 0.0]]
)
def test_short_and_steep_schedules(name: str, sigmas: list[float]) -> None:
    """Finite all the way, every step told once, and the same bits when run again."""
    x = HIGH * torch.randn(2, 4, 4, 4, generator=torch.Generator().manual_seed(3))
    out, steps = run(name, x, sigmas)
    assert all(torch.isfinite(tensor).all() for tensor in (out, *(denoised for _, denoised in steps)))
    if name not in TAKES_STEPS_OF_ITS_OWN:
        assert [i for i, _ in steps] == list(range(len(sigmas) - 1))
    assert torch.equal(run(name, x, sigmas)[0], out)


@pytest.mark.parametrize("name", [name for name in SAMPLERS if name not in NEED_FALLING_SIGMAS])
@pytest.mark.parametrize("sigmas", [[HIGH, 4.0, 4.0, 1.0, 0.0], [2.0] * 5 + [0.0], [4.0, 5.0, 1.0, 0.0]])
def test_what_does_not_need_falling_sigmas(name: str, sigmas: list[float]) -> None:
    out, steps = run(name, HIGH * torch.randn(1, 4, 4, 4, generator=torch.Generator().manual_seed(4)), sigmas)
    assert all(torch.isfinite(tensor).all() for tensor in (out, *(denoised for _, denoised in steps)))


def test_the_sets_of_names_name_samplers() -> None:
    assert set(SAMPLERS) >= NEED_FALLING_SIGMAS | OWN_MASK_NOISE


def test_dpm_adaptive_does_not_go_on_for_ever_with_nan() -> None:
    with pytest.raises(SamplingError, match="dpm_adaptive"):
        run("dpm_adaptive", torch.full((1, 4, 2, 2), math.nan), [HIGH, LOW])


@pytest.mark.parametrize("name", ["dpmpp_sde", "dpmpp_sde_gpu"])
def test_parts_of_a_schedule_walk_one_brownian_path(name: str) -> None:
    x = HIGH * torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(6))
    sigmas = levels(9)
    whole, _ = run(name, x, sigmas)
    middle, _ = run(name, x, sigmas[:5], whole=sigmas)
    parts, _ = run(name, middle, sigmas[4:], whole=sigmas)
    torch.testing.assert_close(parts, whole)


@given(st.lists(st.floats(0.03, 14.6), min_size=3, max_size=6, unique_by=lambda level: round(level, 2)))
def test_brownian_noise_adds_up(sigmas: list[float]) -> None:
    """The increments of single steps sum up to that of the whole, in any order of asking."""
    sigmas = sorted(sigmas, reverse=True)
    noise = brownian_noise(torch.zeros(1, 4, 16, 16), 0.03, 14.6, seed=2**64 - 1, on_cpu=True)
    whole = noise(sigmas[0], sigmas[-1]) * math.sqrt(sigmas[0] - sigmas[-1])
    steps = [noise(above, below) * math.sqrt(above - below) for above, below in pairwise(sigmas)]
    torch.testing.assert_close(sum(steps), whole, rtol=0, atol=1e-4)
    assert all(abs(float(noise(above, below).std()) - 1) < 0.15 for above, below in pairwise(sigmas))


@given(st.integers(1, 4), st.floats(-20, 5))
def test_phi_is_its_integral(k: int, h: float) -> None:
    expected, _ = quad(lambda part: math.exp((1 - part) * h) * part ** (k - 1) / math.factorial(k - 1), 0, 1)
    assert phi(k, h) == pytest.approx(expected, rel=1e-9)


@given(st.floats(0.01, 5), st.integers(1, 4))
def test_exponential_adams_is_exact_for_polynomials(h: float, order: int) -> None:
    offsets = [-0.7 * i for i in range(order)]
    weights = exponential_adams(offsets, h)
    for power in range(order):
        expected, _ = quad(lambda at, power=power: math.exp(at - h) * at**power, 0, h)
        assert sum(w * o**power for w, o in zip(weights, offsets, strict=True)) == pytest.approx(expected, rel=1e-6)
