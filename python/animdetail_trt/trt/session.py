"""A built engine as a function of tensors: torch in, torch out, on the device."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Protocol
from weakref import finalize

import torch
from torch import Tensor

from animdetail_trt.errors import EngineError, FullDeviceError, InputError, UncoveredError
from animdetail_trt.trt.execution import REBUILD, Context, Execution, Plan
from animdetail_trt.trt.log import engine_log
from animdetail_trt.trt.memory import Workspace
from animdetail_trt.trt.profile import (
    FLAG_OF_AXIS,
    Inputs,
    Profile,
    Shape,
    axis_of,
    extent,
    shape_of,
    sizes_of,
    tightest,
)
from animdetail_trt.trt.refit import refit
from animdetail_trt.trt.replay import Replay, Replays, capture

logger = logging.getLogger(__name__)

GRAPH_DEVICE = "cuda"
CAPTURED_BYTES = 64 << 20
"""Inputs and output of a run that is worth a CUDA graph: larger ones are held once more for each shape, copied at each
run, and take so long that the launches do not count."""


class Session(Protocol):
    """What runs a graph of one output, whichever library does it."""

    inputs: Inputs
    profiles: Sequence[Profile]

    def covers(self, sizes: Mapping[str, int]) -> bool:
        """Whether a run of these sizes fits a profile."""
        return tightest(self.profiles, sizes) is not None

    def run(self, inputs: Mapping[str, Tensor]) -> Tensor:
        """The output. Raises UncoveredError, which names axis, size and range, where no profile fits."""
        ...

    def unload(self) -> None:
        """Free all memory of it; the next run loads it again."""
        ...


def read_sizes(inputs: Inputs, tensors: Mapping[str, Tensor]) -> dict[str, int]:
    """The sizes of all axes; raises InputError where a tensor is missing, unknown, or of a shape that contradicts."""
    if tensors.keys() != inputs.keys():
        given, needed = (", ".join(sorted(names)) for names in (tensors, inputs))
        raise InputError(f"the engine was given {given}, and reads {needed}")
    shapes = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
    for name, dims in inputs.items():
        if len(shapes[name]) != len(dims):
            raise InputError(f"{name} is {shapes[name]}; it must have {len(dims)} dimensions, {tuple(dims)}")
    sizes = sizes_of(inputs, shapes)
    for name, dims in inputs.items():  # an axis that no input has plainly: the VAE encoder's 8h
        for dim, side in zip(dims, shapes[name], strict=True):
            if isinstance(dim, str) and axis_of(dim) not in sizes:
                sizes[axis_of(dim)] = side // extent(dim, {axis_of(dim): 1})
    for name, dims in inputs.items():
        if shapes[name] != shape_of(dims, sizes):
            raise InputError(f"{name} is {shapes[name]}; it must be {tuple(dims)}, here {shape_of(dims, sizes)}")
    return sizes


def choose_profile(profiles: Sequence[Profile], sizes: Mapping[str, int]) -> int:
    """The number of the tightest profile that fits; raises UncoveredError where none does."""
    index = tightest(profiles, sizes)
    if index is not None:
        return index
    widest = max(profiles, key=lambda profile: profile.volume)
    axis = widest.misfit(sizes)
    assert axis is not None
    span, unit = widest.axes[axis], " (latents, 8 pixels each)" if axis in "hw" else ""
    raise UncoveredError(
        f"the engine covers {axis} from {span.min} to {span.max}{unit}, this run has {axis}={sizes[axis]}. "
        f"Build a wider one: animdetail-trt build-engines with {FLAG_OF_AXIS.get(axis, 'other --frames or --size')}"
    )


@dataclass(eq=False)
class _Held:
    """What a session has on the device: freed with care also where the session is dropped, or the process ends."""

    workspace: Workspace
    replays: Replays
    execution: Execution | None = None

    def free(self) -> None:
        """Nothing is loaded afterwards, whatever the wait for the device raises."""
        execution, self.execution = self.execution, None
        if execution is None:
            return
        try:
            self.workspace.synchronize()
        finally:
            self.replays.forget()
            execution.close()

    def abandon(self) -> None:
        """As ``free``, where nobody is to be told of a device that is lost."""
        try:
            self.free()
            self.workspace.release_unused()
        except Exception:
            logger.debug("an engine was not freed", exc_info=True)


@dataclass(frozen=True)
class _Call:
    """What a run is given: tensors of the engine's dtypes, on its device, contiguous."""

    profile: int
    sizes: Mapping[str, int]
    tensors: Mapping[str, Tensor]

    @property
    def key(self) -> Hashable:
        """What decides the context's state."""
        return self.profile, *(tuple(tensor.shape) for tensor in self.tensors.values())

    @property
    def nbytes(self) -> int:
        return sum(tensor.nbytes for tensor in self.tensors.values())


class EngineSession(Session):
    """A TensorRT plan that is read when it is first run, and unloaded when the budget needs its place.

    It runs after what the caller's current stream holds and before what comes next there. The host waits for nothing;
    but where a context's shapes change, for what the card's engines were given before. Inputs are read where they lie,
    if they are contiguous and of the engine's dtype and device; the output is torch's own memory, so that one session's
    output is the next one's input without a copy. One thread at a time.

    Args:
        trt: the library's module, tensorrt or tensorrt_rtx.
        plan_reader: returns the plan; called at every load.
        inputs, profiles: what the plan was built for, the profiles in its order.
        device: the workspace's.
        workspace: shared by all engines of the device.
        cuda_graphs: how many shapes are kept as CUDA graphs, each with a context and with buffers for inputs and output
            of its own; 0 for none. TensorRT-RTX captures them itself.
        runtime_cache: the file for what TensorRT-RTX compiles.
        weights_at_load: gives the weights that the plan was built with, on the CPU, and those to be set in their place;
            called when the plan is first loaded. None for an engine that keeps its own.
    """

    def __init__(
        self,
        trt: Any,
        plan_reader: Callable[[], Plan],
        inputs: Inputs,
        profiles: Sequence[Profile],
        device: torch.device,
        workspace: Workspace,
        *,
        cuda_graphs: int = 4,
        runtime_cache: Path | None = None,
        weights_at_load: Callable[[], tuple[Mapping[str, Tensor], Mapping[str, Tensor]]] | None = None,
    ) -> None:
        if device.type != workspace.device.type or device.index not in (None, workspace.device.index):
            raise InputError(f"the engine is to run on {device}, and its workspace lies on {workspace.device}")
        self.inputs = inputs
        self.profiles = profiles
        self.device = workspace.device
        self.workspace = workspace
        self._trt = trt
        self._log = engine_log(trt)
        self._plan_reader = plan_reader
        self._runtime_cache = runtime_cache
        self._held = _Held(workspace, Replays(cuda_graphs, workspace.synchronize))
        finalize(self, workspace.drop, self._held.abandon)
        self._weights_at_load = weights_at_load
        self._weights: tuple[Mapping[str, Tensor], Mapping[str, Tensor]] = ({}, {})

    @property
    def loaded(self) -> bool:
        return self._held.execution is not None

    @torch.inference_mode()
    def run(self, inputs: Mapping[str, Tensor]) -> Tensor:
        """The engine's output for inputs by name, on any device, of any strides and floating dtype.

        Raises:
            InputError: a wrong shape, or a wrong set of inputs.
            UncoveredError: no profile fits, or the budget has no room for this.
            EngineError: the library refuses the plan or the run; its words are in the message.
            torch.OutOfMemoryError: the device has no room for the output or the buffer; a smaller run may fit.
        """
        sizes = read_sizes(self.inputs, inputs)
        profile = choose_profile(self.profiles, sizes)
        with self.workspace.occupied():
            execution = self._load()
            self.workspace.residency.use(self)
            tensors = {name: inputs[name].to(self.device, execution.dtypes[name]).contiguous() for name in self.inputs}
            call = _Call(profile, sizes, tensors)
            with self.workspace.turn() as stream:
                replay = self._held.replays.find(call.key, self.workspace.generation)
                output = self._run(execution, call, stream) if replay is None else self._launch(replay, call)
            if execution.runtime_cache is not None:
                execution.runtime_cache.save_if_due()
        return output

    def unload(self) -> None:
        with self.workspace.occupied():
            if self.loaded:
                try:
                    self._held.free()
                finally:
                    self.workspace.retire(self)

    def _load(self) -> Execution:
        held = self._held
        if held.execution is not None:
            return held.execution
        if self._weights_at_load is not None:
            self._weights = self._weights_at_load()
            self._weights_at_load = None
        plan = self._plan_reader()
        self.workspace.admit(self, memoryview(plan).nbytes)
        try:
            held.execution = self._read(plan)
            self._check_plan(held.execution)
            self._refit(held.execution)
        except BaseException:  # an interrupt too: half loaded, it would run with the weights that it was built with
            try:
                held.abandon()
            finally:
                self.workspace.retire(self)
            raise
        return held.execution

    def _read(self, plan: Plan) -> Execution:
        read = partial(Execution, self._trt, self._log, plan, runtime_cache=self._runtime_cache)
        try:
            return read()
        except FullDeviceError:
            if not self.workspace.evict(keep=self):
                raise
        return read()

    def _check_plan(self, execution: Execution) -> None:
        if set(execution.inputs) != set(self.inputs) or execution.num_profiles != len(self.profiles):
            raise EngineError(
                f"the plan has inputs {', '.join(execution.inputs)} and {execution.num_profiles} profiles; what is "
                f"written beside it says {', '.join(self.inputs)} and {len(self.profiles)}. {REBUILD}"
            )

    def _refit(self, execution: Execution) -> None:
        base, changed = self._weights
        if changed:
            start = time.perf_counter()
            refit(self._trt, execution.engine, self._log, base, changed, self.workspace)
            logger.info("the engine took %d new weights in %.1f s", len(changed), time.perf_counter() - start)

    def _run(self, execution: Execution, call: _Call, stream: int) -> Tensor:
        if self._held.replays.due(call.key):
            captured = self._capture(execution, call, stream)
            if captured is not None:
                return captured
        context = execution.context
        self._prepare(context, call, stream)
        output = self._output(context.output_shape(), execution.dtypes[execution.output])
        self.workspace.follow()
        context.bind(call.tensors, output)
        context.enqueue(stream)
        if self.device.type == GRAPH_DEVICE and call.nbytes + output.nbytes <= CAPTURED_BYTES:
            self._held.replays.note(call.key)
        return output

    def _output(self, shape: Shape, dtype: torch.dtype) -> Tensor:
        try:
            return torch.empty(shape, dtype=dtype, device=self.device)
        except torch.OutOfMemoryError:
            if not self.workspace.evict(keep=self):
                raise
        return torch.empty(shape, dtype=dtype, device=self.device)

    def _prepare(self, context: Context, call: _Call, stream: int) -> None:
        shapes = {name: tuple(tensor.shape) for name, tensor in call.tensors.items()}
        if context.started and not context.is_prepared(call.profile, shapes):
            self.workspace.synchronize()  # the library asks that no run of the context is pending
        self.workspace.lend(self, context.prepare(call.profile, shapes, stream), call.sizes)
        context.lend_memory(self.workspace.address, self.workspace.size, self.workspace.generation)

    def _launch(self, replay: Replay, call: _Call) -> Tensor:
        output = torch.empty_like(replay.output)
        self.workspace.follow()
        with self.workspace.lane():
            replay(call.tensors, output)
        return output

    def _capture(self, execution: Execution, call: _Call, stream: int) -> Tensor | None:
        """Run once in a context and at addresses that stay, and keep that to be launched again; None where it fails."""
        try:
            context = execution.open_context(cuda_graphs=True)
            self._prepare(context, call, stream)
            with self.workspace.lane():
                buffers = {name: torch.empty_like(tensor) for name, tensor in call.tensors.items()}
                dtype = execution.dtypes[execution.output]
                result = torch.empty(context.output_shape(), dtype=dtype, device=self.device)
            context.bind(buffers, result)
            replay = Replay(context, buffers, result, partial(context.enqueue, stream))
            output = self._launch(replay, call)  # nothing can be captured before a run has settled the shapes
            if not execution.captures_itself:
                replay = replace(replay, launch=capture(replay.launch, self.workspace))
        except UncoveredError:
            raise
        except Exception as error:
            self.workspace.synchronize()  # the context goes, and may be running
            logger.warning("no CUDA graphs for this engine, it runs without: %s", error)
            self._held.replays.stop()
            return None
        except BaseException:
            self.workspace.synchronize()
            raise
        self._held.replays.keep(call.key, self.workspace.generation, replay)
        return output
