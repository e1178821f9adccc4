"""Fixtures shared by all tests: the tiny checkpoints, written once a session."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, settings

import animdetail_trt as adt
from animdetail_trt.cli import main
from outcome import Outcome

# How long an example takes says how busy the machine is; in CI the same examples come every time.
settings.register_profile(
    "project", deadline=None, derandomize="CI" in os.environ, suppress_health_check=[HealthCheck.too_slow]
)
settings.load_profile("project")

GOLDEN = Path(__file__).parent / "golden"


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Tests marked gpu skip where there is no GPU, or no kernels for it; with ANIMDETAIL_REQUIRE_GPU=1 they fail."""
    if item.get_closest_marker("gpu") is None:
        return
    reason = _no_gpu()
    if reason and os.environ.get("ANIMDETAIL_REQUIRE_GPU", "0") != "0":
        pytest.fail(f"ANIMDETAIL_REQUIRE_GPU is set, but {reason}", pytrace=False)
    if reason:
        pytest.skip(reason)


def _no_gpu() -> str:
    import torch

    from animdetail_trt import _C

    if not _C.has_cuda:
        return "the extension was built without CUDA kernels"
    return "" if torch.cuda.is_available() else "torch sees no CUDA device"


@pytest.fixture(scope="session", autouse=True)
def _one_thread() -> None:
    """The golden cases were made with one thread; more would only add rounding noise (golden/README.md)."""
    import torch

    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with every tiny checkpoint of golden/models.json, NAME.safetensors."""
    folder = tmp_path_factory.mktemp("tiny")
    subprocess.run([sys.executable, GOLDEN / "tiny_models.py", folder], check=True, stdout=subprocess.DEVNULL)
    return folder


@pytest.fixture(scope="session")
def tiny_checkpoint(tiny: Path) -> Path:
    """tiny_sd15 with tiny_clip's text encoder: one whole checkpoint, as a user has it."""
    from safetensors.torch import load_file, save_file

    path = tiny / "tiny_whole.safetensors"
    save_file(load_file(tiny / "tiny_sd15.safetensors") | load_file(tiny / "tiny_clip.safetensors"), path)
    return path


@pytest.fixture
def run(capfd: pytest.CaptureFixture[str]) -> Callable[..., Outcome]:
    """Run the command line in this process; argparse's own exits count as codes."""

    def call(*argv: Any) -> Outcome:
        try:
            code = main([str(arg) for arg in argv])
        except SystemExit as leaving:
            code = int(leaving.code or 0)
        return Outcome(code, *capfd.readouterr())

    return call


@pytest.fixture(scope="module")
def pipe(tiny: Path) -> adt.BasicPipe:
    """tiny_sd15 without motion, and some conditioning."""
    import torch

    tokens = torch.randn(1, 77, 64, generator=torch.Generator().manual_seed(1))
    loaded = adt.load_pipe(tiny / "tiny_sd15.safetensors", device="cpu", dtype="float32")
    return loaded.with_conditioning([[tokens, {}]], [[tokens, {}]])
