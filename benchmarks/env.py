"""What a result depends on besides the code: the machine, the versions, the commit."""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

SCHEMA_VERSION = 1
PACKAGES = ("animdetail-trt", "torch", "numpy", "pillow")


def describe(flags: dict[str, Any]) -> dict[str, Any]:
    """The part of a result's JSON that every benchmark shares."""
    return {
        "schema_version": SCHEMA_VERSION,
        "machine": {
            "cpu": cpu_model(),
            "usable_processors": len(os.sched_getaffinity(0)),
            "memory_gib": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1),
            "system": platform.platform(),
            "load_average_at_start": os.getloadavg()[0],
        },
        "versions": {"python": platform.python_version(), **{name: package_version(name) for name in PACKAGES}},
        "commit": commit(),
        "flags": flags,
    }


def cpu_model() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.split(":", 1)[1].strip()
    return platform.machine()


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
    if shutil.which("git") is None:
        return None
    command = ["git", "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"]
    done = subprocess.run(command, cwd=Path(__file__).parent, capture_output=True, text=True, check=False)
    return done.stdout.strip() or None
