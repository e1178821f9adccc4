"""The script that writes README's figures: what it refuses to publish."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from results import a_result

ROOT = Path(__file__).parents[2]


@pytest.fixture
def figures(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """benchmarks/figures.py, with no page to write."""
    spec = importlib.util.spec_from_file_location("figures", ROOT / "benchmarks" / "figures.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    monkeypatch.setattr(module, "PAGES", ())
    return module


@pytest.mark.parametrize(("rounds", "spread", "refused"), [(4, 0.6, True), (5, 0.6, False), (2, 0.5, False)])
def test_few_rounds_that_lie_far_apart_are_not_published(
    figures: ModuleType, monkeypatch: pytest.MonkeyPatch, rounds: int, spread: float, refused: bool
) -> None:
    def load(name: str) -> dict[str, Any]:
        document = a_result()
        document["scenarios"][0]["results"][0].update(runs_ms=[10.0] * rounds, spread=spread)
        return document

    def run(*flags: str) -> None:
        monkeypatch.setattr(sys, "argv", ["figures.py", *flags])
        figures.main()

    monkeypatch.setattr(figures, "load", load)
    run("--check")
    run("--write", "--allow-unsure")
    if refused:
        with pytest.raises(SystemExit, match=r"clip-1s-16f-64px torch \(4 rounds, 60% apart\): measure that with more"):
            run("--write")
    else:
        run("--write")
