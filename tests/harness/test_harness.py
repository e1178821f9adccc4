"""The index arithmetic of the CUDA kernels, executed by a CPU under sanitizers; harness.cpp says how."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
OPS = ROOT / "csrc" / "ops"
SOURCES = ("alpha_paste_cpu", "crop_resize_cpu", "feather_mask_cpu", "parallel", "resample_plan", "taps")
COMPILER = shutil.which(os.environ.get("CXX", "g++")) or shutil.which("c++")
FLAGS = ["-std=c++17", "-O1", "-g", "-ffp-contract=off", f"-I{ROOT / 'csrc' / 'include'}", f"-I{OPS}"]
SANITIZERS = ["-fsanitize=address,undefined", "-fno-sanitize-recover=all"]


@pytest.fixture(scope="module")
def harness(tmp_path_factory: pytest.TempPathFactory) -> Path:
    if COMPILER is None:
        if "CI" in os.environ:
            pytest.fail("CI must have a C++ compiler")
        pytest.skip("needs a C++ compiler")
    folder = tmp_path_factory.mktemp("harness")
    rows = folder / "row_kernels.o"  # chosen among by the loader, before sanitizers can run
    program = folder / "harness"
    build(COMPILER, *FLAGS, "-c", OPS / "row_kernels.cpp", "-o", rows)
    sources = [Path(__file__).with_name("harness.cpp"), *(OPS / f"{name}.cpp" for name in SOURCES)]
    build(COMPILER, *FLAGS, *SANITIZERS, *sources, rows, "-pthread", "-o", program)
    return program


def build(*command: str | Path) -> None:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("seed", [1, 2])
def test_the_kernels_steps_give_the_bits_of_the_cpu(harness: Path, seed: int) -> None:
    done = subprocess.run([harness, str(seed), "150"], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def test_jobs_that_leave_a_path_out_are_a_failure(harness: Path) -> None:
    done = subprocess.run([harness, "1", "0"], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (1, "")
    assert "left a path out" in done.stdout


def test_builtins_of_a_compiler_are_named_where_others_have_a_branch() -> None:
    naming = {path.name for path in (ROOT / "csrc").rglob("*") if path.is_file() and "__builtin_" in path.read_text()}
    assert naming == {"host_device.h"}
