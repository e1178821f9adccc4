"""CUDA graphs: an engine's run at one shape, captured once and launched with new numbers in the same buffers.

A graph is tied to the state of the context that it was captured from: shapes, memory, addresses. NVIDIA's rule for both
flavours is one context for each graph, the memory shared ("CUDA graphs" in the best practices of TensorRT, and of
TensorRT for RTX, which captures anew where an address is another).
"""

from __future__ import annotations

from collections import OrderedDict, deque
from collections.abc import Callable, Hashable, Mapping
from dataclasses import dataclass
from typing import Any
from weakref import finalize

from torch import Tensor

from animdetail_trt.errors import USE_TORCH, EngineError
from animdetail_trt.trt.execution import Context
from animdetail_trt.trt.memory import Workspace
from animdetail_trt.trt.optional import optional

Launch = Callable[[], None]

_SEEN_PER_KEPT = 4


@dataclass(frozen=True)
class Replay:
    """What ``launch`` runs reads ``inputs`` and writes ``output``; these and the context are its own, and stay."""

    context: Context
    inputs: Mapping[str, Tensor]
    output: Tensor
    launch: Launch

    def __call__(self, inputs: Mapping[str, Tensor], output: Tensor) -> None:
        """Run with these inputs and copy the result to ``output``."""
        for name, buffer in self.inputs.items():
            buffer.copy_(inputs[name])
        self.launch()
        output.copy_(self.output)


class Replays:
    """The last ``bound`` shapes that were captured, all with the same generation of the workspace's buffer.

    What is dropped may still be running: the caller waits for it first, by ``before_drop``.
    """

    def __init__(self, bound: int, before_drop: Launch) -> None:
        self._bound = bound
        self._before_drop = before_drop
        self._kept: OrderedDict[Hashable, Replay] = OrderedDict()
        self._seen: deque[Hashable] = deque(maxlen=_SEEN_PER_KEPT * bound)
        self._generation = -1

    def __len__(self) -> int:
        return len(self._kept)

    def find(self, key: Hashable, generation: int) -> Replay | None:
        """The capture of this shape; those that used another generation's buffer are dropped."""
        if generation != self._generation:
            self.clear()
        if key not in self._kept:
            return None
        self._kept.move_to_end(key)
        return self._kept[key]

    def due(self, key: Hashable) -> bool:
        """Whether this shape was noted, and so is worth capturing when it comes again."""
        return self._bound > 0 and key in self._seen

    def note(self, key: Hashable) -> None:
        """Remember that this shape was run."""
        if key not in self._seen:
            self._seen.append(key)

    def keep(self, key: Hashable, generation: int, replay: Replay) -> None:
        if generation != self._generation:  # the buffer grew for this very run
            self.clear()
        if len(self._kept) == self._bound:
            self._before_drop()
            self._kept.popitem(last=False)
        self._kept[key] = replay
        self._generation = generation

    def clear(self) -> None:
        if self._kept:
            self._before_drop()
            self._kept.clear()

    def forget(self) -> None:
        """As ``clear``, by one who has waited, or who cannot."""
        self._kept.clear()

    def stop(self) -> None:
        """Capture nothing any more."""
        self.clear()
        self._bound = 0


def capture(enqueue: Launch, workspace: Workspace) -> Launch:
    """Capture what ``enqueue`` puts on the workspace's stream; the result runs it there. Raises EngineError.

    By CUDA's own calls: torch's prepare its allocator, of which nothing is asked here, empty its caches for each graph,
    and leave stream and allocator in capture where that fails (pytorch#180395).
    """
    driver = optional("cuda.bindings.driver", "keep runs as CUDA graphs")
    stream = workspace.stream().cuda_stream
    # Other threads may go on allocating: the strictest mode would fail at that.
    _checked(
        driver, driver.cuStreamBeginCapture(stream, driver.CUstreamCaptureMode.CU_STREAM_CAPTURE_MODE_THREAD_LOCAL)
    )
    try:
        enqueue()
    except BaseException:
        _destroy(driver, *driver.cuStreamEndCapture(stream))
        raise
    graph = _checked(driver, driver.cuStreamEndCapture(stream))
    try:
        executable = _checked(driver, driver.cuGraphInstantiate(graph, 0))
    finally:
        driver.cuGraphDestroy(graph)

    def launch() -> None:
        _checked(driver, driver.cuGraphLaunch(executable, stream))

    # When the process ends, the session's own finaliser has dropped it, after a wait.
    finalize(launch, driver.cuGraphExecDestroy, executable).atexit = False
    return launch


def _checked(driver: Any, answer: tuple[Any, ...]) -> Any:
    """What a call of the driver returned beside its status."""
    status, *values = answer
    if status != driver.CUresult.CUDA_SUCCESS:
        raise EngineError(f"CUDA graphs: {getattr(status, 'name', status)}. {USE_TORCH}")
    return values[0] if values else None


def _destroy(driver: Any, status: Any, graph: Any) -> None:
    """The graph of a capture that is not wanted; one that was broken off is none."""
    if status == driver.CUresult.CUDA_SUCCESS:
        driver.cuGraphDestroy(graph)
