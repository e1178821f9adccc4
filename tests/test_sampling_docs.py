"""docs/sampling.md lists what there is, as it is, with distances that were within the tolerance when it was made."""

from __future__ import annotations

import math
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "benchmarks"))

import sampling_distance  # noqa: E402
from sampling_distance import CHAOTIC, SAMPLERS, SCHEDULES, source_of  # noqa: E402

ROWS = [
    [cell.strip() for cell in line.strip("|").split("|")]
    for line in (ROOT / "docs" / "sampling.md").read_text(encoding="utf-8").splitlines()
    if line.startswith("| ") and not line.startswith(("| ---", "| sampler |", "| scheduler |"))
]


def test_every_sampler_and_scheduler_has_its_row() -> None:
    documented = {(name, method) for name, method, *_ in ROWS}
    assert documented == {(name, source_of(function)) for name, function in (SAMPLERS | SCHEDULES).items()}
    assert [row[0] for row in ROWS] == [*SAMPLERS, *SCHEDULES]


def test_a_method_is_told_and_not_only_another_named() -> None:
    methods = {name: method for name, method, *_ in ROWS}
    assert all(len(method.split()) > 3 for method in methods.values())
    guided = {name for name in SAMPLERS if "cfg_pp" in name}
    assert {name for name, method in methods.items() if "CFG++ (Chung et al. 2024" in method} == guided
    assert methods["res_multistep_ancestral"] != methods["res_multistep"]


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row[0])
def test_the_distance_is_within_the_tolerance(row: list[str]) -> None:
    name, _, first, second = row
    if name in SCHEDULES:
        assert int(first) == 72
        assert float(second) <= 1e-6
        return
    assert float(first) <= 1e-4
    if second.endswith("†"):
        assert name in CHAOTIC
    elif second:
        assert float(second) <= 1e-4


def test_a_schedule_of_nan_is_far_from_the_reference_s(monkeypatch: pytest.MonkeyPatch) -> None:
    """But where that one is NaN too: kl_optimal in one step."""
    schedule_sigmas = sampling_distance.schedule_sigmas

    def damaged(model: Any, sampler: str, scheduler: str, steps: int) -> list[float]:
        sigmas = schedule_sigmas(model, sampler, scheduler, steps)
        return [math.nan] * len(sigmas) if (scheduler, steps) == ("karras", 10) else sigmas

    monkeypatch.setattr(sampling_distance, "schedule_sigmas", damaged)
    found = sampling_distance.scheduler_distances()
    assert found["karras"] == (72, math.inf)
    assert found["kl_optimal"][1] <= 1e-6
