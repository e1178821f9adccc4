"""A deserialised engine and its execution contexts: the calls of the library, each with its failure in words."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from mmap import mmap
from pathlib import Path
from typing import Any, TypeAlias

import torch
from torch import Tensor

from animdetail_trt.errors import USE_TORCH
from animdetail_trt.trt.log import EngineLog
from animdetail_trt.trt.profile import Shape
from animdetail_trt.trt.runtime_cache import RuntimeCache

Plan: TypeAlias = bytes | memoryview | mmap

REBUILD = "Build it again for this machine: animdetail-trt build-engines"
_REPORT = f"{USE_TORCH}, and report this with the output of animdetail-trt doctor"


class Execution:
    """One engine, and contexts of it; no memory of its own beside the weights' and what a context keeps for itself.

    context: for runs whose shapes and addresses change
    inputs: their names; output: the name of the one output; dtypes: of all of them
    captures_itself: the library makes CUDA graphs of its own
    """

    def __init__(self, trt: Any, log: EngineLog, plan: Plan, *, runtime_cache: Path | None) -> None:
        self._trt, self._log, self._cache_file = trt, log, runtime_cache
        self._runtime = trt.Runtime(log.handle)
        self.engine = self._deserialise(plan)
        self.captures_itself = False
        self.runtime_cache: RuntimeCache | None = None
        names = [self.engine.get_tensor_name(index) for index in range(self.engine.num_io_tensors)]
        self.inputs = [name for name in names if self.engine.get_tensor_mode(name) == trt.TensorIOMode.INPUT]
        (self.output,) = set(names) - set(self.inputs)
        self.dtypes = {name: torch_dtype(trt, self.engine.get_tensor_dtype(name)) for name in names}
        self.num_profiles: int = self.engine.num_optimization_profiles
        self.context = self.open_context()

    def open_context(self, *, cuda_graphs: bool = False) -> Context:
        """One more context, whose activation memory is lent.

        cuda_graphs: where the library makes graphs of its own, let it: each is of one shape, of one activation memory
            and of the addresses of inputs and output, and any other makes it capture anew
        """
        config = self._runtime_config(cuda_graphs)
        strategy = self._trt.ExecutionContextAllocationStrategy.USER_MANAGED if config is None else config
        handle = _ask(self._log, "be set up", self.engine.create_execution_context, strategy)
        if handle is None:
            raise self._log.failure("the engine cannot be set up", REBUILD)
        return Context(handle, config, self._log, self.output, self.runtime_cache)

    def close(self) -> None:
        """Free it all; nothing of it may be running, and other contexts of it must be gone."""
        if self.runtime_cache is not None:
            self.runtime_cache.save()
        del self.context, self.engine, self._runtime  # in this order

    def _deserialise(self, plan: Plan) -> Any:
        read = self._runtime.deserialize_cuda_engine
        engine = _ask(self._log, "be read", read, plan, remedy=REBUILD)
        if engine is None and self._log.tells_of_full_memory and torch.cuda.is_initialized():
            torch.cuda.empty_cache()  # torch may hold what the weights need
            engine = _ask(self._log, "be read", read, plan, remedy=REBUILD)
        if engine is None:
            full = self._log.tells_of_full_memory
            remedy = "Free memory of the device, or set --vram-budget" if full else REBUILD
            raise self._log.failure("the engine cannot be read", remedy)
        return engine

    def _runtime_config(self, cuda_graphs: bool) -> Any:
        """What TensorRT for RTX sets up a context by; None for the other flavour."""
        config = self.engine.create_runtime_config() if hasattr(self.engine, "create_runtime_config") else None
        if config is None or not hasattr(config, "cuda_graph_strategy"):
            return None
        self.captures_itself = True
        config.set_execution_context_allocation_strategy(self._trt.ExecutionContextAllocationStrategy.USER_MANAGED)
        kinds, specialisation = self._trt.CudaGraphStrategy, self._trt.DynamicShapesKernelSpecializationStrategy
        config.cuda_graph_strategy = kinds.WHOLE_GRAPH_CAPTURE if cuda_graphs else kinds.DISABLED
        config.dynamic_shapes_kernel_specialization_strategy = specialisation.LAZY
        if self.runtime_cache is not None:
            self.runtime_cache.serve(config)
        elif self._cache_file is not None:
            self.runtime_cache = RuntimeCache(self._cache_file, config)
        return config


class Context:
    """An execution context. A CUDA graph that was captured from it is sound as long as nothing here is changed.

    config: what it was set up by, which lives as long
    started: whether it was ever run; a profile or shapes may then be changed only when it has finished
    """

    def __init__(
        self, handle: Any, config: Any, log: EngineLog, output: str, runtime_cache: RuntimeCache | None
    ) -> None:
        self.handle, self.config = handle, config
        self.started = False
        self._log, self._output, self._runtime_cache = log, output, runtime_cache
        self._profile: int | None = None
        self._shapes: dict[str, Shape] = {}
        self._memory = 0
        self._lent: tuple[int, int, int] | None = None

    def is_prepared(self, profile: int, shapes: Mapping[str, Shape]) -> bool:
        """Whether ``prepare`` would change nothing."""
        return profile == self._profile and shapes == self._shapes

    def prepare(self, profile: int, shapes: Mapping[str, Shape], stream: int) -> int:
        """Choose the profile and the inputs' shapes; returns how many bytes of memory they need."""
        if self.is_prepared(profile, shapes):
            return self._memory
        self._shapes, self._lent = {}, None
        if profile != self._profile:
            self._profile = None
            self._ask(f"choose profile {profile}", self.handle.set_optimization_profile_async, profile, stream)
            self._profile = profile
        for name, shape in shapes.items():
            self._ask(f"take {name} of shape {shape}", self.handle.set_input_shape, name, shape)
        self._memory = self._hear("tell its memory", self.handle.update_device_memory_size_for_shapes)
        self._shapes = dict(shapes)
        if self._runtime_cache is not None:
            self._runtime_cache.expect_kernels((profile, *shapes.values()))
        return self._memory

    def lend_memory(self, address: int, size: int, generation: int) -> None:
        """Give it what ``prepare`` asked for; the same again costs nothing."""
        if self._lent != (address, size, generation):
            self._lent = None
            self._hear("take memory", self.handle.set_device_memory, address, size)
            self._lent = (address, size, generation)

    def output_shape(self) -> Shape:
        shape: Shape = tuple(self._ask("tell its output's shape", self.handle.get_tensor_shape, self._output))
        if any(side < 0 for side in shape):
            raise self._log.failure(f"the shape of {self._output} stays open, {shape}", REBUILD)
        return shape

    def bind(self, inputs: Mapping[str, Tensor], output: Tensor) -> None:
        """Where to read and to write: contiguous, of its dtypes, alive until the stream has passed."""
        for name, tensor in [*inputs.items(), (self._output, output)]:
            self._ask(f"take the address of {name}", self.handle.set_tensor_address, name, tensor.data_ptr())

    def enqueue(self, stream: int) -> None:
        self.started = True
        self._ask("run", self.handle.execute_async_v3, stream)

    def _hear(self, what: str, call: Callable[..., Any], *arguments: Any) -> Any:
        """For a call that returns nothing of a refusal: it logs one."""
        answer = self._ask(what, call, *arguments)
        if self._log.has_errors:
            raise self._log.failure(f"the engine cannot {what}", _REPORT)
        return answer

    def _ask(self, what: str, call: Callable[..., Any], *arguments: Any) -> Any:
        return _ask(self._log, what, call, *arguments)


def _ask(log: EngineLog, what: str, call: Callable[..., Any], *arguments: Any, remedy: str = _REPORT) -> Any:
    log.forget()
    try:
        answer = call(*arguments)
    except Exception as error:
        raise log.failure(f"the engine cannot {what}", remedy, error) from error
    if answer is False:
        raise log.failure(f"the engine cannot {what}", remedy)
    return answer


def torch_dtype(trt: Any, dtype: Any) -> torch.dtype:
    """torch's name of one of the library's dtypes."""
    kinds = trt.DataType
    return {
        kinds.FLOAT: torch.float32,
        kinds.HALF: torch.float16,
        kinds.BF16: torch.bfloat16,
        kinds.INT32: torch.int32,
        kinds.INT64: torch.int64,
        kinds.BOOL: torch.bool,
    }[dtype]
