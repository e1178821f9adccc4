"""A small imitation of the Python API of ``tensorrt`` and ``tensorrt_rtx``, on the CPU and as strict as they are.

A "plan" is an ONNX model and its profiles (:func:`plan_bytes`); onnxruntime computes on the raw pointers that the
session hands over. What the real libraries refuse is refused alike: ``False`` (or ``None``) and a line in the log. What
a session must survive of them is imitated, and exaggerated:

- the activation memory is scribbled over, before inputs are read and after outputs are written, so that an input or
  output that lies in it is lost;
- asking how much of it a shape needs takes away what was lent before;
- after a change of shapes a run must have been made before one is captured;
- a graph is tied to the state of the context that it was captured from: launching it when that was changed or freed
  since is an error;
- TensorRT for RTX captures anew whenever shapes, memory or an address are others than at the context's last run
  (``called("captured_itself")``);
- weights are read where they lie when the engine is refitted, not when they are set;
- the first logger that it is given is kept, every other is ignored.

``FakeTensorRT(**traits)`` stands for the module; its ``calls`` hold what was called, (name, *arguments).
"""

from __future__ import annotations

import ctypes
import enum
import json
import math
import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from weakref import WeakSet

import numpy as np
import onnx
import onnxruntime
from onnx import numpy_helper

from animdetail_trt.trt.profile import Dim, Profile

_MAGIC = b"FAKEPLAN"
_SCRIBBLE = 0xAB
_CACHE_MAGIC = b"FAKECACHE "


def plan_bytes(
    onnx_path: Path,
    profiles: Sequence[Profile],
    *,
    inputs: Mapping[str, Sequence[Dim]] | None = None,
    refittable: bool = False,
    fused: Sequence[Sequence[str]] = (),
) -> bytes:
    """A plan of an ONNX file (external weights are taken in).

    inputs: the dimensions of its inputs; None reads them off the model (``dim_value`` and ``dim_param``)
    fused: groups of weights that can only be refitted together
    """
    model = onnx.load(onnx_path)
    if inputs is None:
        inputs = {value.name: [dim.dim_param or dim.dim_value for dim in _dims(value)] for value in model.graph.input}
    header = {
        "profiles": [{name: profile.shapes(dims) for name, dims in inputs.items()} for profile in profiles],
        "refittable": refittable,
        "fused": [list(group) for group in fused],
    }
    text = json.dumps(header).encode()
    return _MAGIC + len(text).to_bytes(8, "little") + text + model.SerializeToString()


def affine_model(path: Path, dims: Sequence[Dim], *, dtype: Any = np.float32, offset: bool = False) -> Path:
    """Write the model ``y = x * scale + shift``, scale and shift being weights (c, 1, 1) of c = dims[-3].

    offset: a second input (dims[0], 1, 1, 1), added to it
    """
    channels = dims[-3]
    kind = onnx.helper.np_dtype_to_tensor_dtype(np.dtype(dtype))
    weights = {
        "scale": np.arange(2, 2 + channels, dtype=dtype).reshape(-1, 1, 1),
        "shift": np.arange(channels, 0, -1).astype(dtype).reshape(-1, 1, 1),
    }
    graph = onnx.helper.make_graph(
        [
            onnx.helper.make_node("Mul", ["x", "scale"], ["scaled"]),
            onnx.helper.make_node("Add", ["scaled", "shift"], ["shifted" if offset else "y"]),
            *([onnx.helper.make_node("Add", ["shifted", "offset"], ["y"])] if offset else []),
        ],
        "affine",
        [
            onnx.helper.make_tensor_value_info("x", kind, dims),
            *([onnx.helper.make_tensor_value_info("offset", kind, (dims[0], 1, 1, 1))] if offset else []),
        ],
        [onnx.helper.make_tensor_value_info("y", kind, None)],
        [numpy_helper.from_array(array, name) for name, array in weights.items()],
    )
    model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 17)])
    model.ir_version = 8
    onnx.save(model, path)
    return path


class DataType(enum.Enum):
    FLOAT = np.float32
    HALF = np.float16
    BF16 = "bfloat16"
    INT32 = np.int32
    INT64 = np.int64
    BOOL = np.bool_


class TensorIOMode(enum.Enum):
    NONE = 0
    INPUT = 1
    OUTPUT = 2


class ExecutionContextAllocationStrategy(enum.Enum):
    STATIC = 0
    ON_PROFILE_CHANGE = 1
    USER_MANAGED = 2


class CudaGraphStrategy(enum.Enum):
    DISABLED = 0
    WHOLE_GRAPH_CAPTURE = 1


class DynamicShapesKernelSpecializationStrategy(enum.Enum):
    LAZY = 0
    EAGER = 1
    NONE = 2


class Severity(enum.IntEnum):
    INTERNAL_ERROR = 0
    ERROR = 1
    WARNING = 2
    INFO = 3
    VERBOSE = 4


class ILogger:
    Severity = Severity
    INTERNAL_ERROR, ERROR, WARNING, INFO, VERBOSE = Severity

    def log(self, severity: Severity, msg: str) -> None:
        raise NotImplementedError


class Weights:
    def __init__(self, dtype: DataType, ptr: int, count: int) -> None:
        self.dtype, self.ptr, self.size = dtype, ptr, count


class FakeTensorRT:
    """The module.

    runtime_config: engines have ``create_runtime_config`` (10.13 and later)
    rtx: the runtime configuration has graphs, kernels and a cache
    release: refitters have ``release_refit_resources`` (11)
    card: where it "runs": a runtime cache made for another is refused
    """

    def __init__(
        self, *, runtime_config: bool = False, rtx: bool = False, release: bool = False, card: str = "sm_89"
    ) -> None:
        self.rtx, self.runtime_config, self.release, self.card = rtx, runtime_config or rtx, release, card
        self.calls: list[tuple[Any, ...]] = []
        self.recording: list[Callable[[], None]] | None = None
        self.alive: WeakSet[Engine] = WeakSet()  # engines
        self.logger: ILogger | None = None
        for kind in (DataType, TensorIOMode, ExecutionContextAllocationStrategy, ILogger, Weights):
            setattr(self, kind.__name__, kind)
        if rtx:
            self.CudaGraphStrategy = CudaGraphStrategy
            self.DynamicShapesKernelSpecializationStrategy = DynamicShapesKernelSpecializationStrategy
        self.Runtime = lambda logger: Runtime(self, logger)
        self.Refitter = lambda engine, logger: Refitter(self, engine, logger)

    def registered(self, logger: ILogger) -> ILogger:
        assert isinstance(logger, ILogger)
        self.logger = self.logger or logger
        return self.logger

    def called(self, name: str) -> list[tuple[Any, ...]]:
        """The arguments of every call of that name."""
        return [arguments for called, *arguments in self.calls if called == name]  # type: ignore[misc]

    @contextmanager
    def capturing(self) -> Iterator[list[Callable[[], None]]]:
        """A stream in capture: runs are recorded and not made."""
        assert self.recording is None
        self.recording = []
        try:
            yield self.recording
        finally:
            self.recording = None


class Runtime:
    def __init__(self, trt: FakeTensorRT, logger: ILogger) -> None:
        self._trt, self._logger = trt, trt.registered(logger)

    def deserialize_cuda_engine(self, plan: Any) -> Engine | None:
        self._trt.calls.append(("deserialize_cuda_engine",))
        data = bytes(memoryview(plan))
        if not data.startswith(_MAGIC):
            self._logger.log(Severity.ERROR, "IRuntime::deserializeCudaEngine: Error Code 1: Magic tag does not match")
            return None
        length = int.from_bytes(data[8:16], "little")
        engine = Engine(self._trt, self._logger, json.loads(data[16 : 16 + length]), data[16 + length :])
        self._trt.alive.add(engine)
        return engine


class Engine:
    def __init__(self, trt: FakeTensorRT, logger: ILogger, header: dict[str, Any], model: bytes) -> None:
        self.trt, self.logger = trt, logger
        self.profiles: list[dict[str, list[list[int]]]] = header["profiles"]
        self.refittable: bool = header["refittable"]
        self.fused: list[list[str]] = header["fused"]
        self.model = onnx.load_from_string(model)
        self.input_names = [value.name for value in self.model.graph.input]
        self._values = [*self.model.graph.input, *self.model.graph.output]
        self.load()

    def load(self) -> None:
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1
        options.log_severity_level = 3
        self.session = onnxruntime.InferenceSession(
            self.model.SerializeToString(), options, providers=["CPUExecutionProvider"]
        )

    @property
    def num_io_tensors(self) -> int:
        return len(self._values)

    @property
    def num_optimization_profiles(self) -> int:
        return len(self.profiles)

    def get_tensor_name(self, index: int) -> str:
        return str(self._values[index].name)

    def get_tensor_mode(self, name: str) -> TensorIOMode:
        if name not in [value.name for value in self._values]:
            return TensorIOMode.NONE
        return TensorIOMode.INPUT if name in self.input_names else TensorIOMode.OUTPUT

    def get_tensor_dtype(self, name: str) -> DataType:
        (value,) = (value for value in self._values if value.name == name)
        return DataType(onnx.helper.tensor_dtype_to_np_dtype(value.type.tensor_type.elem_type).type)

    def create_execution_context(self, how: Any = ExecutionContextAllocationStrategy.STATIC) -> Context:
        self.trt.calls.append(("create_execution_context", how))
        strategy = how.strategy if isinstance(how, RuntimeConfig) else how
        assert isinstance(strategy, ExecutionContextAllocationStrategy), "incompatible function arguments"
        return Context(self, strategy, how if isinstance(how, RuntimeConfig) else None)

    def __getattr__(self, name: str) -> Any:
        if name == "create_runtime_config" and self.trt.runtime_config:
            return lambda: RtxRuntimeConfig(self) if self.trt.rtx else RuntimeConfig(self)
        raise AttributeError(name)

    @property
    def weights(self) -> dict[str, bytes]:
        """As the engine has them now."""
        return {tensor.name: numpy_helper.to_array(tensor).tobytes() for tensor in self.model.graph.initializer}


class RuntimeConfig:
    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        self.strategy = ExecutionContextAllocationStrategy.STATIC

    def set_execution_context_allocation_strategy(self, strategy: ExecutionContextAllocationStrategy) -> None:
        self.strategy = strategy


class RtxRuntimeConfig(RuntimeConfig):
    def __init__(self, engine: Engine) -> None:
        super().__init__(engine)
        self.cuda_graph_strategy = CudaGraphStrategy.DISABLED
        self.dynamic_shapes_kernel_specialization_strategy = DynamicShapesKernelSpecializationStrategy.LAZY
        self.cache: RuntimeCache | None = None

    def create_runtime_cache(self) -> RuntimeCache:
        return RuntimeCache(self.engine.trt)

    def set_runtime_cache(self, cache: RuntimeCache | None) -> bool:
        self.cache = cache
        return True


class RuntimeCache:
    """Its blob: the card, and one line for every shape that was compiled."""

    def __init__(self, trt: FakeTensorRT) -> None:
        self._trt = trt
        self.kernels: list[str] = []

    def serialize(self) -> memoryview:
        return memoryview(_CACHE_MAGIC + "\n".join([self._trt.card, *self.kernels]).encode())

    def deserialize(self, blob: bytes) -> bool:
        if not blob.startswith(_CACHE_MAGIC):
            return False
        card, *kernels = blob.removeprefix(_CACHE_MAGIC).decode().split("\n")
        if card != self._trt.card:
            return False
        self.kernels = kernels
        return True


class Context:
    def __init__(
        self, engine: Engine, strategy: ExecutionContextAllocationStrategy, config: RuntimeConfig | None
    ) -> None:
        self.engine, self.trt, self.strategy, self.config = engine, engine.trt, strategy, config
        self.profile: int | None = None
        self.shapes: dict[str, tuple[int, ...]] = {}
        self.addresses: dict[str, int] = {}
        self.memory = (0, 0)
        self.settled = False  # a run was made since the shapes changed
        self._outputs: dict[tuple[Any, ...], dict[str, tuple[int, ...]]] = {}
        self._captured: Any = None

    @property
    def _state(self) -> Any:
        """What a CUDA graph is specific to."""
        return self.profile, dict(self.shapes), dict(self.addresses), self.memory

    def set_optimization_profile_async(self, index: int, stream: int) -> bool:
        self._called("set_optimization_profile_async", index)
        assert isinstance(stream, int)
        if not 0 <= index < len(self.engine.profiles):
            return self._refuse("setOptimizationProfileAsync", f"profile {index} does not exist")
        self.profile, self.shapes, self.settled = index, {}, False
        return True

    def set_input_shape(self, name: str, shape: tuple[int, ...]) -> bool:
        self._called("set_input_shape", name, shape)
        if self.profile is None:
            return self._refuse("setInputShape", "no optimization profile was chosen")
        if name not in self.engine.input_names:
            return self._refuse("setInputShape", f"{name} is no input")
        least, _, most = self.engine.profiles[self.profile][name]
        inside = all(low <= side <= high for low, side, high in zip(least, shape, most, strict=False))
        if len(shape) != len(least) or not inside:
            return self._refuse(
                "setInputShape", f"{name} {shape} is outside of profile {self.profile}: {least} to {most}"
            )
        if self.shapes.get(name) != tuple(shape):
            self.shapes[name], self.settled = tuple(shape), False
        return True

    def get_tensor_shape(self, name: str) -> tuple[int, ...]:
        if name in self.engine.input_names:
            return self.shapes.get(name, (-1,))
        if len(self.shapes) < len(self.engine.input_names):
            self._refuse("getTensorShape", "not all input shapes are specified")
            return (-1,)
        key = tuple(self.shapes.items())
        if key not in self._outputs:  # onnxruntime infers no shapes but by running
            zeros = {name: np.zeros(shape, self._dtype(name)) for name, shape in self.shapes.items()}
            outputs = self.engine.session.run(None, zeros)
            names = [value.name for value in self.engine.model.graph.output]
            self._outputs[key] = {name: array.shape for name, array in zip(names, outputs, strict=True)}
        return self._outputs[key][name]

    def update_device_memory_size_for_shapes(self) -> int:
        self._called("update_device_memory_size_for_shapes")
        self.memory = (0, 0)
        if len(self.shapes) < len(self.engine.input_names):
            self._refuse("updateDeviceMemorySizeForShapes", "not all input shapes are specified")
            return 0
        return self._needed()

    def set_device_memory(self, memory: int, size: int) -> None:
        self._called("set_device_memory", memory, size)
        assert isinstance(memory, int)
        if self.strategy is not ExecutionContextAllocationStrategy.USER_MANAGED:
            self._refuse("setDeviceMemoryV2", "the context manages its memory itself")
            return
        self.memory = (memory, size)

    def set_tensor_address(self, name: str, memory: int) -> bool:
        self._called("set_tensor_address", name, memory)
        assert isinstance(memory, int)
        if self.engine.get_tensor_mode(name) is TensorIOMode.NONE:
            return self._refuse("setTensorAddress", f"{name} is no input or output")
        self.addresses[name] = memory
        return True

    def execute_async_v3(self, stream: int) -> bool:
        self._called("execute_async_v3", stream)
        assert isinstance(stream, int)
        for condition, complaint in (
            (self.profile is not None, "no optimization profile was chosen"),
            (len(self.shapes) == len(self.engine.input_names), "not all input shapes are specified"),
        ):
            if not condition:
                return self._refuse("enqueueV3", complaint)
        names = [self.engine.get_tensor_name(index) for index in range(self.engine.num_io_tensors)]
        for name in names:
            if not self.addresses.get(name):
                return self._refuse("enqueueV3", f"the address of {name} is not set")
        needed = self._needed()
        if needed and (not self.memory[0] or self.memory[1] < needed):
            return self._refuse("enqueueV3", f"device memory of {needed} bytes is needed, {self.memory[1]} were set")
        if self.trt.recording is None:
            self.settled = True
        elif not self.settled:
            return self._refuse("enqueueV3", "cannot be captured before a run has settled the new shapes")
        run = self._closure(needed)
        if self.trt.recording is not None:
            self.trt.recording.append(_graph(self, run))
            return True
        config = self.config
        if isinstance(config, RtxRuntimeConfig) and config.cuda_graph_strategy is CudaGraphStrategy.WHOLE_GRAPH_CAPTURE:
            if self._captured != self._state:
                self._called("captured_itself", self.shapes)
            self._captured = self._state
        run()
        return True

    def _closure(self, needed: int) -> Callable[[], None]:
        """The run with the shapes and addresses of this moment."""
        _, shapes, addresses, (memory, _) = self._state
        engine, config = self.engine, self.config
        outputs = [value.name for value in engine.model.graph.output]
        dtypes = {name: self._dtype(name) for name in shapes}

        def run() -> None:
            _scribble(memory, needed)
            feed = {name: _read(addresses[name], shape, dtypes[name]) for name, shape in shapes.items()}
            for name, array in zip(outputs, engine.session.run(None, feed), strict=True):
                array = np.ascontiguousarray(array)
                ctypes.memmove(addresses[name], array.ctypes.data, array.nbytes)
            _scribble(memory, needed)
            if isinstance(config, RtxRuntimeConfig) and config.cache is not None:
                kernel = str(sorted(shapes.items()))
                if kernel not in config.cache.kernels:
                    config.cache.kernels.append(kernel)

        return run

    def _needed(self) -> int:
        return 4 * sum(math.prod(shape) for shape in self.shapes.values())

    def _dtype(self, name: str) -> Any:
        return self.engine.get_tensor_dtype(name).value

    def _called(self, name: str, *arguments: Any) -> None:
        self.trt.calls.append((name, *arguments))

    def _refuse(self, function: str, complaint: str) -> bool:
        self.engine.logger.log(
            Severity.ERROR, f"IExecutionContext::{function}: Error Code 3: API Usage Error ({complaint})"
        )
        return False


def _graph(context: Context, run: Callable[[], None]) -> Callable[[], None]:
    """``run`` as it was captured from the context, which it does not keep alive."""
    captured_from, state = weakref.ref(context), context._state

    def launch() -> None:
        source = captured_from()
        assert source is not None, "the context that the graph was captured from is gone"
        assert source._state == state, "the context that the graph was captured from has been changed since"
        run()

    return launch


class Refitter:
    def __init__(self, trt: FakeTensorRT, engine: Engine, logger: ILogger) -> None:
        if not engine.refittable:
            logger.log(Severity.ERROR, "createInferRefitter: Error Code 3: API Usage Error (e.isRefittable())")
            raise TypeError("pybind11::init(): factory function returned nullptr")
        self._trt, self._engine, self._logger = trt, engine, trt.registered(logger)
        self._tensors = {tensor.name: tensor for tensor in engine.model.graph.initializer}
        self._set: dict[str, Weights] = {}

    def get_all_weights(self) -> list[str]:
        return list(self._tensors)

    def get_weights_prototype(self, name: str) -> Weights:
        if name not in self._tensors:
            return Weights(DataType.FLOAT, 0, -1)
        array = numpy_helper.to_array(self._tensors[name])
        return Weights(DataType(array.dtype.type), 0, array.size)

    def set_named_weights(self, name: str, weights: Weights) -> bool:
        self._trt.calls.append(("set_named_weights", name))
        prototype = self.get_weights_prototype(name)
        if (weights.dtype, weights.size) != (prototype.dtype, prototype.size):
            self._logger.log(Severity.ERROR, f"IRefitter::setNamedWeights: Error Code 3: API Usage Error ({name})")
            return False
        self._set[name] = weights
        return True

    def get_missing_weights(self) -> list[str]:
        groups = [group for group in self._engine.fused if not self._set.keys().isdisjoint(group)]
        return sorted({name for group in groups for name in group} - self._set.keys())

    def refit_cuda_engine_async(self, stream: int) -> bool:
        self._trt.calls.append(("refit_cuda_engine_async", stream))
        assert isinstance(stream, int)
        if self.get_missing_weights():
            self._logger.log(Severity.ERROR, "IRefitter::refitCudaEngineAsync: Error Code 4: missing weights")
            return False
        for name, weights in self._set.items():
            tensor = self._tensors[name]
            array = _read(weights.ptr, tuple(tensor.dims), weights.dtype.value)
            tensor.CopyFrom(numpy_helper.from_array(array, name))
        self._engine.load()
        return True

    def __getattr__(self, name: str) -> Any:
        if name == "release_refit_resources" and self._trt.release:
            return lambda: self._trt.calls.append((name,)) or True  # type: ignore[func-returns-value]
        raise AttributeError(name)


def _dims(value: Any) -> Any:
    return value.type.tensor_type.shape.dim


def _read(address: int, shape: tuple[int, ...], dtype: Any) -> Any:
    """A copy of what lies there."""
    count = math.prod(shape) * np.dtype(dtype).itemsize
    return np.frombuffer(ctypes.string_at(address, count), dtype).reshape(shape).copy()


def _scribble(address: int, size: int) -> None:
    if size:
        ctypes.memset(address, _SCRIBBLE, size)
