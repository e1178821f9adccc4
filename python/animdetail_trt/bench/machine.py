"""What a result depends on besides the code: the machine, the versions, the commit; clocks and power as they are."""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

SCHEMA_VERSION = 3
PACKAGES = (
    "animdetail-trt",
    "torch",
    "diffusers",
    "numpy",
    "pillow",
    "onnxruntime",
    "tensorrt-cu13",
    "tensorrt-cu12",
    "tensorrt-rtx-cu13",
)
_READINGS = {
    "sm_clock_mhz": "clocks.sm",
    "memory_clock_mhz": "clocks.mem",
    "power_w": "power.draw",
    "temperature_c": "temperature.gpu",
}


def describe(flags: dict[str, Any]) -> dict[str, Any]:
    """The part of a result's JSON that every benchmark shares."""
    return {
        "schema_version": SCHEMA_VERSION,
        "machine": {
            "cpu": cpu_model(),
            "usable_processors": usable_processors(),
            "memory_gib": memory_gib(),
            "system": platform.platform(),
            "load_average_at_start": os.getloadavg()[0] if hasattr(os, "getloadavg") else None,
        },
        "versions": {"python": platform.python_version(), **{name: package_version(name) for name in PACKAGES}},
        "commit": commit(),
        "flags": flags,
    }


def usable_processors() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def memory_gib() -> float | None:
    if "SC_PHYS_PAGES" not in getattr(os, "sysconf_names", {}):
        return None
    return round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1)


def cpu_model() -> str:
    for line in _lines_of(Path("/proc/cpuinfo")):
        if line.startswith("model name"):
            return line.split(":", 1)[1].strip()
    return platform.processor() or platform.machine()


def cache_bytes(default: int = 32 << 20) -> int:
    """Of the CPU's last cache."""
    sizes = Path("/sys/devices/system/cpu/cpu0/cache").glob("index*/size")
    units = {"K": 1 << 10, "M": 1 << 20}
    found = [int(text[:-1]) * units[text[-1]] for path in sizes if (text := path.read_text().strip())[-1:] in units]
    return max(found, default=default)


def describe_card(device: Any) -> dict[str, Any] | None:
    """The GPU of a torch device, None for the CPU."""
    import torch

    if device.type != "cuda":
        return None
    card = torch.cuda.get_device_properties(device)
    return {
        "name": card.name,
        "capability": f"{card.major}.{card.minor}",
        "multiprocessors": card.multi_processor_count,
        "memory_gib": round(card.total_memory / 2**30, 1),
        "l2_mib": round(card.L2_cache_size / 2**20, 1),
        "driver": (_query(["driver_version"], device.index) or [None])[0],
        "torch_cuda": torch.version.cuda,
        "cudnn": torch.backends.cudnn.version(),
        "tf32": {"convolutions": torch.backends.cudnn.allow_tf32, "products": torch.backends.cuda.matmul.allow_tf32},
    }


def readings(device: Any) -> dict[str, float | None]:
    """Clocks, power and temperature at this moment, read and never set; None for what this machine does not tell."""
    if device.type == "cuda":
        told = _query(list(_READINGS.values()), device.index) or [None] * len(_READINGS)
        return {name: number(text) for name, text in zip(_READINGS, told, strict=True)}
    clocks = [float(line.split(":")[1]) for line in _lines_of(Path("/proc/cpuinfo")) if line.startswith("cpu MHz")]
    return {"cpu_clock_mhz": sum(clocks) / len(clocks) if clocks else None}


def _query(fields: list[str], index: int | None) -> list[str | None] | None:
    """What nvidia-smi, which asks NVML, says of a GPU; it counts all cards, so it is asked only where that is clear."""
    if shutil.which("nvidia-smi") is None:
        return None
    place = visible_index(index or 0, os.environ.get("CUDA_VISIBLE_DEVICES"))
    command = ["nvidia-smi", f"--query-gpu={','.join(fields)}", "--format=csv,noheader,nounits", f"--id={place}"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=10)
    except (OSError, subprocess.TimeoutExpired):
        return None
    told = [text.strip() or None for text in done.stdout.strip().split(",")]
    return told if done.returncode == 0 and len(told) == len(fields) else None


def visible_index(index: int, visible: str | None) -> str:
    """What nvidia-smi calls the device that torch calls ``index``: CUDA_VISIBLE_DEVICES renumbers for torch alone."""
    names = [name.strip() for name in visible.split(",")] if visible else []
    return names[index] if index < len(names) else str(index)


def number(text: str | None) -> float | None:
    """nvidia-smi says [N/A] of what a card does not tell."""
    try:
        return None if text is None else float(text)
    except ValueError:
        return None


def _lines_of(path: Path) -> list[str]:
    try:
        return path.read_text().splitlines()
    except OSError:
        return []


def package_version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def commit() -> str | None:
    """The commit's hash, with ``-dirty`` where files differ from it; None outside a checkout.

    ANIMDETAIL_COMMIT names it where a checkout was copied without its history.
    """
    if "ANIMDETAIL_COMMIT" in os.environ:
        return os.environ["ANIMDETAIL_COMMIT"]
    # An installed package may lie in a folder that some other project's git knows: this one's own tree only.
    root = Path(__file__).parents[3]
    if shutil.which("git") is None or not (root / ".git").exists():
        return None
    command = ["git", "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"]
    done = subprocess.run(command, cwd=root, capture_output=True, text=True, check=False)
    return done.stdout.strip() or None
