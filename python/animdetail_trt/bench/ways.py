"""The ways of running a scenario: which are there on this machine, and why the others are not."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch

from animdetail_trt import ops
from animdetail_trt.bench.floors import WeightBytes
from animdetail_trt.bench.scenarios import NODE_KINDS, Scenario
from animdetail_trt.errors import AnimDetailError, UnavailableError
from animdetail_trt.models.pipe import BasicPipe, load_pipe
from animdetail_trt.sampling.context import ContextOptions
from animdetail_trt.trt.flavour import FLAVOUR_NAMES

WAYS = {
    "reference": "the reference's way: frame by frame, window by window, through torch eager",
    "native": "the pixel path in C++",
    "native_cuda": "the pixel path in CUDA kernels",
    "torch": "torch eager",
    "compile": "torch.compile of the UNet's blocks, channels last",
    "onnxruntime": "onnxruntime on the CPU",
    "tensorrt": "TensorRT engines",
    "tensorrt_rtx": "TensorRT for RTX engines",
}
TRUTH = "float32 torch"
_PIXEL_WAYS = ("reference", "native", "native_cuda")
# What a ladder's rung is called that is this backend and no other.
_RUNGS = {
    "compile": "torch.compile",
    "onnxruntime": "the graph",
    "tensorrt": "the engine",
    "tensorrt_rtx": "the engine",
}


class AbsentError(UnavailableError):
    """A way of running a scenario that is not there, and why."""


@dataclass(frozen=True)
class Models:
    """The files, and how they are run. engine_dir: where TensorRT engines lie; scratch: for onnxruntime's graphs"""

    checkpoint: Path
    motion_module: Path
    device: torch.device
    dtype: str
    vae_dtype: str
    engine_dir: Path
    scratch: Path


@dataclass
class Ways:
    """Opens a pipe for each backend when it is first asked for, and keeps it.

    asked: the ways that were named on the command line; what is left out by default is run where it was asked for
    """

    models: Models
    asked: frozenset[str] = frozenset()
    load_ms: dict[str, float] = field(default_factory=dict)
    _pipes: dict[str, BasicPipe | AbsentError] = field(default_factory=dict)

    def candidates(self, scenario: Scenario) -> list[str]:
        """All ways of a scenario that there could be."""
        if scenario.kind == "pixels":
            names: Iterator[str] = iter(_PIXEL_WAYS)
        else:
            names = (name for name in WAYS if not name.startswith("native"))
        return [name for name in names if not self.asked or name in self.asked]

    def pipe(self, backend: str) -> BasicPipe:
        """Raises AbsentError. ``TRUTH`` is float32 torch on the same device, torch's own pipe where that is so."""
        name = "torch" if backend == TRUTH and self.is_float32 else backend
        if name not in self._pipes:
            start = time.perf_counter()
            try:
                self._pipes[name] = self._load(name)
            except AnimDetailError as error:
                self._pipes[name] = AbsentError(str(error))
            else:
                self.load_ms[name] = 1e3 * (time.perf_counter() - start)
        found = self._pipes[name]
        if isinstance(found, AbsentError):
            raise found
        return found

    @property
    def is_float32(self) -> bool:
        return self.models.dtype == self.models.vae_dtype == "float32"

    def require(self, scenario: Scenario, way: str) -> None:
        """Raises AbsentError where a scenario has no such way, or this machine has not what it needs."""
        if way == "native_cuda":
            _require_kernels(self.models.device)
        if scenario.kind == "pixels":
            return
        if way == "reference" and scenario.kind == "unet":
            raise AbsentError("the reference calls the UNet for one window too: that is torch eager")
        if way == "compile" and scenario.kind.startswith("vae"):
            raise AbsentError("only the UNet is compiled; the VAE is torch eager's")
        if way == "compile" and self.models.device.type == "cpu" and way not in self.asked:
            raise AbsentError("compiling takes minutes on a CPU; --backend compile does it")
        if way == "onnxruntime" and self.weight_bytes().unet > 1 << 30 and way not in self.asked:
            raise AbsentError("it would write a graph of several GB first; --backend onnxruntime does it")
        self.pipe(_pipe_of(way))

    def weight_bytes(self) -> WeightBytes:
        """Of torch's modules, in the types in which they are run."""
        pipe: Any = self.pipe("torch")
        vae = _modules(pipe.vae)
        return WeightBytes(_bytes(_modules(pipe.model.unet)), _bytes(vae.encoder), _bytes(vae.decoder))

    def _load(self, name: str) -> BasicPipe:
        models = self.models
        dtype, vae_dtype, backend = models.dtype, models.vae_dtype, name
        if name == TRUTH:
            dtype, vae_dtype, backend = "float32", "float32", "torch"
        pipe = load_pipe(
            models.checkpoint, motion_module=models.motion_module, device=models.device, dtype=dtype,
            vae_dtype=vae_dtype, backend=backend,
            engine_dir=models.engine_dir if backend in FLAVOUR_NAMES else models.scratch,  # elsewhere none is found
        )  # fmt: skip
        tokens = torch.randn(2, 1, 77, pipe.model.unet.token_dim, generator=torch.Generator().manual_seed(1))
        return pipe.with_conditioning([[tokens[0], {}]], [[tokens[1], {}]])


def _pipe_of(way: str) -> str:
    return "torch" if way == "reference" else way


def _require_kernels(device: torch.device) -> None:
    if device.type != "cuda":
        raise AbsentError(f"the device is {device}" + ("" if torch.cuda.is_available() else ": torch sees no CUDA GPU"))
    try:
        ops.feather_mask(torch.ones(8, 8, device=device), 1)
    except AnimDetailError as error:
        raise AbsentError(str(error)) from error


def with_window(pipe: BasicPipe, scenario: Scenario) -> BasicPipe:
    """The pipe with the scenario's context windows, of which a quarter overlaps."""
    context = ContextOptions(context_length=scenario.window, context_overlap=scenario.window // 4)
    return pipe._replace(model=replace(pipe.model, context=context))


@contextmanager
def watched(pipe: BasicPipe, way: str, scenario: Scenario) -> Iterator[None]:
    """Raises AbsentError unless what runs in the block is this way alone: a ladder may have gone on to torch."""
    used: list[Any] = [pipe.vae] if scenario.kind.startswith("vae") else [pipe.model.unet]
    if scenario.kind in NODE_KINDS and way.startswith("tensorrt"):
        used.append(pipe.vae)
    ladders = [runner.ladder for runner in used if hasattr(runner, "ladder")]  # a runner of its own is no ladder
    for ladder in ladders:
        ladder.ran.clear()
    notes = _Notes()
    logger = logging.getLogger("animdetail_trt")
    logger.addHandler(notes)
    try:
        yield
    finally:
        logger.removeHandler(notes)
    if way not in _RUNGS:
        return
    for ladder in ladders:
        if others := ladder.ran - {_RUNGS[way]}:
            why = notes.last or "nothing was built for it"
            raise AbsentError(f"{' and '.join(sorted(others))} ran instead: {why}")


class _Notes(logging.Handler):
    """Remembers the last warning."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.last = ""

    def emit(self, record: logging.LogRecord) -> None:
        self.last = record.getMessage()


def _modules(runner: Any) -> Any:
    """The torch module of a runner, or of the ladder's rung that is in use."""
    if hasattr(runner, "module"):
        return runner.module
    return next(rung for rung in runner.ladder.rungs if rung.name == runner.name).get().module


def _bytes(module: torch.nn.Module) -> int:
    return sum(parameter.numel() * parameter.element_size() for parameter in module.parameters())
