"""The peak of memory while something runs, beyond what was there before."""

from __future__ import annotations

import ctypes
import gc
import json
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import torch

from animdetail_trt.errors import UnavailableError

T = TypeVar("T")

_STATUS, _CLEAR = Path("/proc/self/status"), Path("/proc/self/clear_refs")


@dataclass(frozen=True)
class Peak:
    """Bytes; host_bytes is None where the system does not tell (it needs Linux's /proc), device_bytes without a GPU.
    device_bytes are those of torch's allocator, which holds engines' activations too, but not their weights."""

    host_bytes: int | None
    device_bytes: int | None


def measure_peak(call: Callable[[], T], device: torch.device) -> tuple[T, Peak]:
    """The call's result, and the most that it held at once, its result included."""
    gc.collect()
    _trim()
    before = _start_host()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        torch.cuda.reset_peak_memory_stats(device)
        held = torch.cuda.memory_allocated(device)
    result = call()
    peak = None if before is None else max(0, resident_bytes("VmHWM") - before)
    on_device = torch.cuda.max_memory_allocated(device) - held if device.type == "cuda" else None
    return result, Peak(peak, on_device)


def _start_host() -> int | None:
    """Have the system count the peak of resident memory from now on."""
    try:
        _CLEAR.write_text("5")
        return resident_bytes("VmHWM")
    except OSError:
        return None


def _trim() -> None:
    """Give freed memory back to the system: what is reused would not count as new."""
    try:
        ctypes.CDLL(None).malloc_trim(0)
    except (AttributeError, OSError, TypeError):  # not glibc
        return


def resident_bytes(field: str) -> int:
    """VmRSS, what is resident now, or VmHWM, its peak."""
    status = _STATUS.read_text()
    return 1024 * next(int(line.split()[1]) for line in status.splitlines() if line.startswith(field + ":"))


def peak_in_own_process(suite: str, scenario: str, backend: str, threads: int) -> Peak:
    """As ``measure_peak`` for the pixel path, in a process of its own, whose memory nothing else has touched."""
    program = "import sys; from animdetail_trt.bench.pixel_path import print_peak; print_peak(*sys.argv[1:])"
    command = [sys.executable, "-c", program, suite, scenario, backend, str(threads)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise UnavailableError(f"the process that measures memory failed: {done.stderr.strip()[-200:]}")
    return Peak(json.loads(done.stdout), None)
