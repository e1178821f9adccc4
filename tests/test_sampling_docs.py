"""docs/sampling.md lists what there is, as it is, with distances that were within the tolerance when it was made."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "benchmarks"))

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


def test_every_cfg_pp_sampler_says_so() -> None:
    for name, method, *_ in ROWS:
        assert method.startswith("CFG++ (Chung et al. 2024") is name.endswith("_cfg_pp")


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
