"""Every sampler that there is, against the reference's: plain, and with a soft noise mask and a motion module."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from safetensors import safe_open

import animdetail_trt as adt
from animdetail_trt.sampling import SAMPLER_NAMES, NoiseMask, SampleSettings, ksample
from golden_cases import relative_norm

GOLDEN = Path(__file__).parents[1] / "golden"


def load(name: str) -> tuple[dict[str, Any], dict[str, Any]]:
    with safe_open(GOLDEN / f"{name}.safetensors", "pt") as file:
        return json.loads(file.metadata()["case"]), {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118


PLAIN, MASKED = load("samplers_karras"), load("samplers_masked_motion")
CASES = [
    (name, sampler)
    for name, (_, tensors) in (("plain", PLAIN), ("masked", MASKED))
    for sampler in SAMPLER_NAMES
    if f"out.{sampler}" in tensors
]


@pytest.mark.parametrize(("name", "sampler"), CASES)
def test_sampler(tiny: Path, name: str, sampler: str) -> None:
    case, tensors = PLAIN if name == "plain" else MASKED
    motion = case["motion_module"] and tiny / f"{case['motion_module']}.safetensors"
    pipe = adt.load_pipe(tiny / "tiny_sd15.safetensors", motion_module=motion, device="cpu", dtype="float32")
    out = ksample(
        pipe.model,
        SampleSettings(case["seed"], case["steps"], case["cfg"], sampler, case["scheduler"], case["denoise"]),
        [[tensors["positive"], {}]],
        [[tensors["negative"], {}]],
        tensors["latent"],
        NoiseMask(tensors["noise_mask"]) if "noise_mask" in tensors else None,
    )
    assert relative_norm(out, tensors[f"out.{sampler}"]) <= 1e-4


def test_every_sampler_is_covered() -> None:
    assert {sampler for name, sampler in CASES if name == "plain"} == set(SAMPLER_NAMES)
