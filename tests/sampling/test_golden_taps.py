"""The stages between the pixels, against what the reference had in them: encode, noise, sigmas, each sampler call."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from animdetail_trt.sampling.noise import initial_noise
from animdetail_trt.sampling.refiner import Refiner, sample_refined
from animdetail_trt.sampling.run import NoiseMask, SampleSettings, sample
from golden_cases import Case, load_case, relative_norm

CASES = [
    "basic",
    "motion_v2_two_segs",
    "guide_for_crop_region",
    "max_size_clamp",
    "force_inpaint",
    "per_frame_masks",
    "mask_count_mismatch",
    "segs_scaled",
    "euler_ancestral",
    "denoise_full",
    "hook_post_paste",
    "context_standard_static",
    "context_overlap_linear",
    "animatelcm",
    "dpmpp_sde",
    "lora_motion",
    "ays_sd1",
    "gits",
]
REFINED = ["refiner", "refiner_motion"]


def sample_settings(case: Case) -> SampleSettings:
    names = ("seed", "steps", "cfg", "sampler_name", "scheduler", "denoise")
    return SampleSettings(**{name: case.settings["params"][name] for name in names})


@pytest.mark.parametrize("name", CASES)
def test_sampler_calls(name: str, tiny: Path) -> None:
    case = load_case(name)
    pipe = case.pipe(tiny)
    settings = sample_settings(case)
    differential = case.settings["params"]["noise_mask_feather"] > 0
    for call in range(case.settings["sample_calls"]):
        tap = {key: case.tensors[f"tap.stage{call}.{key}"] for key in ("noise", "sigmas", "mask", "latent_in")}
        assert torch.equal(initial_noise(tap["latent_in"].shape, settings.seed), tap["noise"])
        sigmas = torch.tensor(settings.sigmas(pipe.model)[settings.first_step :])
        torch.testing.assert_close(sigmas, tap["sigmas"], rtol=1e-6, atol=0)
        out = sample(
            pipe.model,
            settings,
            pipe.positive,
            pipe.negative,
            tap["latent_in"],
            NoiseMask(tap["mask"], differential),
        )
        assert relative_norm(out, case.tensors[f"tap.stage{call}.latent_out"]) <= 1e-4


@pytest.mark.parametrize("name", REFINED)
def test_refined_sampler_calls(name: str, tiny: Path) -> None:
    case = load_case(name)
    pipe, second = case.pipe(tiny), case.pipe(tiny, "tiny_refiner", "refiner_")
    params = case.settings["params"]
    out = sample_refined(
        pipe.model,
        sample_settings(case),
        pipe.positive,
        pipe.negative,
        case.tensors["tap.stage0.latent_in"],
        Refiner(second.model, second.positive, second.negative, params["refiner_ratio"]),
        NoiseMask(case.tensors["tap.stage0.mask"], params["noise_mask_feather"] > 0),
    )
    assert relative_norm(out, case.tensors["tap.stage1.latent_out"]) <= 1e-4


@pytest.mark.parametrize("name", ["basic", "force_inpaint", "guide_for_crop_region"])
def test_encode(name: str, tiny: Path) -> None:
    case = load_case(name)
    latent = case.tensors["tap.encode.latent.0"]
    pixels = case.tensors["tap.encode.pixels.0"].permute(0, 3, 1, 2).float() / 255 * 2 - 1
    height, width = 8 * latent.shape[2], 8 * latent.shape[3]
    top, left = (pixels.shape[2] - height) // 2, (pixels.shape[3] - width) // 2
    pipe = case.pipe(tiny)
    encoded = pipe.vae.encode(pixels[:, :, top : top + height, left : left + width])
    assert relative_norm(encoded, latent) <= 1e-4
