"""GPU tests, and a benchmark of a GPU, on a device that is only pretended: see pretend_cuda.py."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

pytestmark = pytest.mark.skipif(torch.version.cuda is not None, reason="this torch knows CUDA devices itself")

HERE = Path(__file__).parent
TESTS = HERE.parent


@pytest.fixture(scope="module")
def guard(tmp_path_factory: pytest.TempPathFactory) -> Path:
    library, source = tmp_path_factory.mktemp("guard") / "guard.so", HERE / "guard.cpp"
    folder = Path(torch.__file__).parent
    places = [f"-I{folder / 'include'}", f"-L{folder / 'lib'}", "-lc10"]
    subprocess.run(["c++", "-std=c++20", "-shared", "-fPIC", source, "-o", library, *places], check=True)
    return library


def rehearse(guard: Path, *command: str | Path) -> str:
    environment = {
        **os.environ, "REHEARSAL_GUARD": str(guard), "ANIMDETAIL_REQUIRE_GPU": "1", "PYTEST_ADDOPTS": "",
        "PYTHONPATH": os.pathsep.join([str(HERE), str(TESTS), os.environ.get("PYTHONPATH", "")]),
    }  # fmt: skip
    done = subprocess.run(
        [sys.executable, *command], env=environment, capture_output=True, text=True, cwd=TESTS.parent, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_the_node(guard: Path) -> None:
    """Of the node's GPU tests one of each kind."""
    chosen = "basic-float16 or reference and controlnet or fit and float32 or worked_on or waits"
    told = rehearse(
        guard, "-m", "pytest", "-p", "pretend_cuda", "-p", "no:cacheprovider", "-m", "gpu", "-k", chosen,
        TESTS / "detailer" / "test_node_on_gpu.py",
    )  # fmt: skip
    assert re.search(r"\b6 passed", told), told


def test_the_benchmark(guard: Path, tmp_path: Path) -> None:
    """Without the product of large matrices, which takes minutes on a CPU."""
    command = [
        "bench", "--suite", "quick", "--device", "cuda", "--dtype", "float32", "--output", str(tmp_path),
        "--scenario", "pixels*", "--scenario", "segment*", "--backend", "native_cuda", "--backend", "torch",
    ]  # fmt: skip
    rehearse(
        guard, "-c",
        "import pretend_cuda; from animdetail_trt.bench import run; from animdetail_trt.cli import main; "
        f"run.flops_per_ms = lambda device, dtype, runs: 1e8; raise SystemExit(main({command}))",
    )  # fmt: skip
    report = json.loads((tmp_path / "bench.json").read_text())
    assert report["card"]["name"] == "pretended"
    assert report["complete"]
    assert not report["failures"]
    pixels, segment = (scenario["results"][0] for scenario in report["scenarios"])
    assert (pixels["backend"], pixels["quality"]["max_difference"]) == ("native_cuda", 0)
    # A part of all runs together, however busy the machine is, and in the same unit.
    stages_ms = segment["stages_ms"]
    assert set(stages_ms) == {"encode", "sample", "decode", "paste"}
    assert min(segment["runs_ms"]) / 10 < sum(stages_ms.values()) < sum(segment["runs_ms"])
