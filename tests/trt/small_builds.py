"""Real builds by the command line, of the small models and of the tiny golden checkpoint."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

from outcome import Outcome


class Builds:
    """Command lines in processes of their own, one set of them after the other."""

    def __init__(self, small: Path, tiny: Path, folder: Path, tiny_folder: Path) -> None:
        self.folder = folder
        """Of the engines of v2 and v1."""
        self._processes: list[subprocess.Popen[str]] = []
        self._pool = ThreadPoolExecutor(1)
        sd15, refiner = small / "sd15", small / "refiner"
        self.v2_line = line(sd15, folder, "--motion-module", small / "mm_v2.safetensors", "--refiner", refiner)
        self.v1_line = line(sd15, folder, "--motion-module", small / "mm_v1.safetensors", "--controlnet")
        self._v2 = self._begin(self.v2_line)
        self._v1 = self._begin(self.v1_line)
        self._tiny = self._begin(*[line(tiny / "tiny_sd15.safetensors", tiny_folder)] * 2)

    @property
    def v2(self) -> Outcome:
        """UNet with motion module v2, VAE, refiner."""
        return self._v2.result()[0]

    @property
    def v1(self) -> Outcome:
        """UNet with motion module v1 and ControlNet inputs."""
        return self._v1.result()[0]

    @property
    def tiny(self) -> list[Outcome]:
        """The golden checkpoint, by two processes at once."""
        return self._tiny.result()

    def end(self) -> None:
        self._pool.shutdown(wait=False, cancel_futures=True)
        for process in self._processes:
            process.kill()

    def _begin(self, *lines: Sequence[str]) -> Future[list[Outcome]]:
        return self._pool.submit(self._run, *lines)

    def _run(self, *lines: Sequence[str]) -> list[Outcome]:
        processes = [begin(argv) for argv in lines]
        self._processes += processes
        told = [process.communicate() for process in processes]
        return [Outcome(process.returncode, *text) for process, text in zip(processes, told, strict=True)]


def line(checkpoint: Path, engine_dir: Path, *options: Any) -> list[str]:
    argv = ["build-engines", "--checkpoint", checkpoint, "--engine-dir", engine_dir, "--target-sm", 89]
    return [str(arg) for arg in [*argv, "--size", "64:64:128", "--frames", "1:4:8", *options]]


def begin(argv: Sequence[str], program: Sequence[str] = ("-m", "animdetail_trt")) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, *program, *argv],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=os.environ | {"OMP_NUM_THREADS": "1"},
    )  # fmt: skip
