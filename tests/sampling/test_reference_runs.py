"""What the golden cases leave out, against runs of the real reference (tests/reference_runs/README.md)."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from safetensors import safe_open
from torch import Tensor

import animdetail_trt as adt
from animdetail_trt.sampling import ksample
from golden_cases import relative_norm

with safe_open(Path(__file__).parents[1] / "reference_runs" / "sampling.safetensors", "pt") as file:
    CASES: dict[str, dict[str, Any]] = json.loads(file.metadata()["cases"])
    TENSORS: dict[str, Tensor] = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118


def conditioning(entries: list[Any]) -> list[Any]:
    return [
        [TENSORS[name], {key: TENSORS[value] if key == "mask" else value for key, value in extras.items()}]
        for name, extras in entries
    ]


@pytest.mark.parametrize("name", CASES)
def test_run(name: str, tiny: Path) -> None:
    case = CASES[name]
    pipe = adt.load_pipe(
        tiny / "tiny_sd15.safetensors",
        motion_module=case["mm"] and tiny / f"{case['mm']}.safetensors",
        motion_scale=case["scale"] or 1.0,
        motion_effect=case["effect"] or 1.0,
        beta_schedule=case["beta"],
        context=case["ctx"] and adt.ContextOptions(**case["ctx"]),
        device="cpu",
        dtype="float32",
    )
    out = ksample(
        pipe.model,
        **{key: case[key] for key in ("seed", "steps", "cfg", "scheduler", "denoise")},
        sampler_name=case["sampler"],
        positive=conditioning(case["positive"]),
        negative=conditioning(case["negative"]),
        latent=TENSORS[case["latent"]],
        noise_mask=case["mask"] and TENSORS[case["mask"]],
    )
    assert relative_norm(out, TENSORS[f"out.{name}"]) <= 1e-4
