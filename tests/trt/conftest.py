"""The small models, and real builds of them by the command line, once a session."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import pytest
from small_models import write_small_models

from animdetail_trt.cli import main


@dataclass(frozen=True)
class Outcome:
    code: int
    out: str
    err: str

    @property
    def told(self) -> str:
        """stderr without its line breaks."""
        return " ".join(self.err.split())


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


@pytest.fixture(scope="session")
def small(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with all of ``small_models``."""
    folder = tmp_path_factory.mktemp("small")
    write_small_models(folder)
    return folder


class Command:
    """A command line at work in a process of its own."""

    def __init__(self, *argv: Any) -> None:
        self.argv = [str(arg) for arg in argv]
        self.process = subprocess.Popen(
            [sys.executable, "-m", "animdetail_trt", *self.argv],
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=os.environ | {"OMP_NUM_THREADS": "1"},
        )  # fmt: skip

    @cached_property
    def outcome(self) -> Outcome:
        """Waits for its end."""
        out, err = self.process.communicate(timeout=400)
        return Outcome(self.process.returncode, out, err)


@dataclass(frozen=True)
class Builds:
    """v2: UNet with motion module v2, VAE, refiner; v1: UNet with motion module v1 and ControlNet inputs; still: the
    refiner as checkpoint, in float32; all three into ``folder``. tiny: the golden checkpoint, twice at once, into
    ``tiny_folder``."""

    folder: Path
    v2: Command
    v1: Command
    still: Command
    tiny_folder: Path
    tiny: tuple[Command, Command]


@pytest.fixture(scope="session")
def builds(small: Path, tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Builds]:
    """All begun at once: TensorRT builds on one processor."""
    folder, tiny_folder = tmp_path_factory.mktemp("engines"), tmp_path_factory.mktemp("tiny-engines")
    sizes = ("--target-sm", 89, "--size", "64:64:128", "--frames", "1:4:8")

    def build(checkpoint: Path, engine_dir: Path, *options: Any) -> Command:
        return Command("build-engines", "--checkpoint", checkpoint, "--engine-dir", engine_dir, *sizes, *options)

    begun = [
        build(small / "sd15", folder, "--motion-module", small / "mm_v2.safetensors", "--refiner", small / "refiner"),
        build(small / "sd15", folder, "--motion-module", small / "mm_v1.safetensors", "--controlnet"),
        build(small / "refiner", folder, "--precision", "fp32"),
        *(build(tiny / "tiny_sd15.safetensors", tiny_folder) for _ in range(2)),
    ]
    try:
        yield Builds(folder, *begun[:3], tiny_folder, tuple(begun[3:]))
    finally:
        for command in begun:
            command.process.kill()
            command.process.communicate()
