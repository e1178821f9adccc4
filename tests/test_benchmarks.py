"""The benchmarks run, on small sizes; what they measure is of no interest here."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"


def test_pixels(tmp_path: Path) -> None:
    sizes = {"frames": 9, "width": 120, "height": 64, "segments": 2, "crop": 40, "size": 72, "rounds": 2, "op-runs": 2}
    flags = [f"--{name}={value}" for name, value in sizes.items()]
    command = [sys.executable, BENCHMARKS / "bench_pixels.py", "--output", tmp_path, *flags]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "times the baseline" in done.stdout
    result = json.loads((tmp_path / "bench_pixels.json").read_text())
    assert result["schema_version"] == 1
    assert result["speedup"] > 0
    assert [op["name"] for op in result["ops"]][-1] == "alpha_paste"
    # The benchmark stops by itself where the two sides do not give the same frames.
    assert result["largest_difference"] <= 2e-6
