"""What the built extension needs to be loaded."""

from __future__ import annotations

import os
import shutil
import subprocess

import pytest

from animdetail_trt import _C


def test_it_links_no_driver_no_cuda_runtime_and_no_torch() -> None:
    """The CUDA runtime is inside, and looks for the driver when it is first used: importing needs neither."""
    if shutil.which("readelf") is None and "CI" not in os.environ:
        pytest.skip("needs readelf")
    done = subprocess.run(["readelf", "--dynamic", str(_C.__file__)], capture_output=True, text=True, check=True)
    needed = [line.split("[")[1].rstrip("]") for line in done.stdout.splitlines() if "(NEEDED)" in line]
    assert "libc.so.6" in needed
    assert not [name for name in needed if name.startswith(("libcuda", "libnv", "libtorch", "libc10"))]


def test_it_uses_no_streams() -> None:
    """Where a compiler links its C++ library into the extension, the locale's facets are torch's: streams crash."""
    if shutil.which("readelf") is None and "CI" not in os.environ:
        pytest.skip("needs readelf")
    done = subprocess.run(
        ["readelf", "--wide", "--dyn-syms", str(_C.__file__)], capture_output=True, text=True, check=True
    )
    undefined = [line.split()[7].split("@")[0] for line in done.stdout.splitlines() if " UND " in line and "@" in line]
    assert "memcpy" in undefined
    assert not [name for name in undefined if "ostream" in name or name.startswith(("_ZNSo", "_ZNSt6locale"))]


@pytest.mark.skipif("CI" not in os.environ, reason="what is built elsewhere is its builder's choice")
def test_ci_builds_the_kernels_where_there_is_a_compiler_for_them() -> None:
    wanted = os.environ.get("ANIMDETAIL_CUDA", "AUTO")
    assert _C.has_cuda == (wanted == "ON" or (wanted == "AUTO" and shutil.which("nvcc") is not None))
