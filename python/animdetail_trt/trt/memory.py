"""Device memory that engines share: one activation buffer for all of them, and a budget for it and their weights."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Protocol
from weakref import WeakKeyDictionary

import torch
from torch import Tensor

from animdetail_trt.errors import UncoveredError


class Resident(Protocol):
    """A loaded engine."""

    def unload(self) -> None:
        """Free all that it holds, and leave the workspace."""


class Residency:
    """The engines that are loaded, the least recently used first, within a budget of bytes (None: no bound)."""

    def __init__(self, budget: int | None = None) -> None:
        self.budget = budget
        self._weights: WeakKeyDictionary[Resident, int] = WeakKeyDictionary()

    def __len__(self) -> int:
        return len(self._weights)

    @property
    def weights(self) -> int:
        """Bytes of the weights of all that are loaded."""
        return sum(self._weights.values())

    def weights_of(self, engine: Resident) -> int:
        return self._weights.get(engine, 0)

    def enter(self, engine: Resident, weights: int) -> None:
        self._weights[engine] = weights

    def use(self, engine: Resident) -> None:
        """Remember it as the last that was used."""
        self._weights[engine] = self._weights.pop(engine)

    def leave(self, engine: Resident) -> None:
        self._weights.pop(engine, None)

    def fits(self, extra: int) -> bool:
        """Whether so many bytes fit beside the weights."""
        return self.budget is None or self.weights + extra <= self.budget

    def unload(self, keep: Resident) -> bool:
        """Unload all but ``keep``; whether there were any."""
        others = [engine for engine in self._weights if engine is not keep]
        for engine in others:
            engine.unload()
        return bool(others)

    def make_room(self, extra: int, keep: Resident | None = None) -> None:
        """Unload engines other than ``keep`` until so many bytes fit beside the weights, or none is left."""
        for engine in [engine for engine in self._weights if engine is not keep]:
            if self.fits(extra):
                return
            engine.unload()


class Workspace:
    """The activation memory of a device's engines, which run one after another, and the stream on which they do.

    Engines run on a stream of the workspace's own: so no two of them can meet in the buffer, whichever streams their
    callers use, and none runs on the legacy default stream, where the library waits for the device at every call and
    where CUDA graphs cannot be captured. One thread at a time.

    generation: counts the buffers; what was captured or set with another generation's buffer must not be used
    peak: the most bytes that the buffer has had
    """

    def __init__(self, device: torch.device, budget: int | None = None) -> None:
        if device.type == "cuda" and device.index is None:
            device = torch.device("cuda", torch.cuda.current_device())
        self.device = device
        self.residency = Residency(budget)
        self.generation = 0
        self.peak = 0
        self._buffer: Tensor | None = None
        self._lane: torch.cuda.Stream | None = None
        self._lock = threading.RLock()
        self._depth = 0
        self._dropped: deque[Callable[[], None]] = deque()

    @property
    def size(self) -> int:
        """Bytes of the buffer."""
        return 0 if self._buffer is None else self._buffer.numel()

    @property
    def address(self) -> int:
        return 0 if self._buffer is None else self._buffer.data_ptr()

    def bound(self, budget: int) -> None:
        """Keep to another budget from now on: what is beyond it goes, the buffer first, and comes back when it runs."""
        self.residency.budget = budget
        if not self.residency.fits(self.size):
            self.release()
            self.residency.make_room(0)

    def admit(self, engine: Resident, weights: int) -> None:
        """Count an engine that is about to be loaded; others are unloaded until it fits, the least recently used first.

        Raises UncoveredError where it would not fit alone.
        """
        self._require(weights, 0, {})
        self.residency.make_room(weights + self.size, keep=engine)
        if not self.residency.fits(weights + self.size):
            self.release()  # it grows again to what this engine asks for
        self.residency.enter(engine, weights)

    def retire(self, engine: Resident) -> None:
        """Count it no longer; the last one takes the buffer with it."""
        self.residency.leave(engine)
        self.release_unused()

    def release_unused(self) -> None:
        """Give the buffer back where no engine is left that uses it."""
        if not len(self.residency):
            self.release()

    def evict(self, keep: Resident) -> bool:
        """Unload all engines but ``keep`` where the device is full; whether that gave any of it back."""
        freed = self.residency.unload(keep)
        if freed and self.device.type == "cuda":
            torch.cuda.empty_cache()
        return freed

    def lend(self, engine: Resident, size: int, sizes: Mapping[str, int]) -> None:
        """Make the buffer at least ``size`` bytes, unloading other engines where the budget asks for it.

        sizes: of the axes of this run, for the message
        Raises UncoveredError where engine and buffer alone exceed the budget, torch.OutOfMemoryError where the device
        has too little left.
        """
        if size <= self.size:
            return
        self._require(self.residency.weights_of(engine), size, sizes)
        self.residency.make_room(size, keep=engine)
        self._drop()  # before the larger one is asked for: they need not fit together
        try:
            self._allocate(size)
        except torch.OutOfMemoryError:
            if not self.evict(keep=engine):
                raise
            self._allocate(size)
        self.peak = max(self.peak, size)

    def release(self) -> None:
        """Give the buffer back to the device."""
        if self._buffer is not None:
            self._drop()
            if self.device.type == "cuda":
                torch.cuda.empty_cache()  # torch keeps freed memory for the stream that it was used on

    @contextmanager
    def occupied(self) -> Iterator[None]:
        """While an engine is loaded, run or freed, with the device the current one, as the library asks for where it
        takes no stream: what is dropped meanwhile, by whichever thread, is freed afterwards."""
        with self._lock, self._guard():
            self._depth += 1
            try:
                yield
            finally:
                self._depth -= 1
        self._sweep()

    def drop(self, free: Callable[[], None]) -> None:
        """Call ``free``, which must raise nothing, as soon as no engine is at work."""
        self._dropped.append(free)
        self._sweep()

    @contextmanager
    def turn(self) -> Iterator[int]:
        """The handle of the stream to run on; what is put there comes after all that the caller's stream was given
        before, and before all that it is given afterwards."""
        if self.device.type != "cuda":
            yield 0
            return
        with torch.cuda.device(self.device):
            caller, lane = torch.cuda.current_stream(), self.stream()
            lane.wait_stream(caller)
            try:
                yield lane.cuda_stream
            finally:
                caller.wait_stream(lane)

    def follow(self) -> None:
        """Put what comes next after all that the caller's stream was given up to now: memory that torch gave out there
        since ``turn`` is not to be written before, which matters where CUDA's own allocator is torch's."""
        if self.device.type == "cuda":
            self.stream().wait_stream(torch.cuda.current_stream())

    def lane(self) -> AbstractContextManager[object]:
        """Makes the workspace's stream torch's current one."""
        return torch.cuda.stream(self.stream()) if self.device.type == "cuda" else nullcontext()

    def stream(self) -> torch.cuda.Stream:
        if self._lane is None:
            self._lane = torch.cuda.Stream(self.device)
        return self._lane

    def synchronize(self) -> None:
        """Wait until every engine has finished."""
        if self._lane is not None:
            self._lane.synchronize()

    def _guard(self) -> AbstractContextManager[object]:
        return torch.cuda.device(self.device) if self.device.type == "cuda" else nullcontext()

    def _sweep(self) -> None:
        while self._dropped and self._lock.acquire(blocking=False):  # whoever holds it sweeps when it is done
            try:
                if self._depth:
                    return
                with self._guard():
                    self._dropped.popleft()()
            finally:
                self._lock.release()

    def _allocate(self, size: int) -> None:
        with self.lane():
            self._buffer = torch.empty(size, dtype=torch.uint8, device=self.device)

    def _drop(self) -> None:
        self._buffer = None
        self.generation += 1

    def _require(self, weights: int, size: int, sizes: Mapping[str, int]) -> None:
        budget = self.residency.budget
        if budget is None or weights + size <= budget:
            return
        run = " ".join(f"{axis}={count}" for axis, count in sizes.items())
        working = f" and {in_words(size)} to work in at {run}" if size else ""
        raise UncoveredError(
            f"an engine needs {in_words(weights)} for its weights{working}, and the budget is {in_words(budget)}. "
            f"Raise --vram-budget{', or run fewer frames or a smaller size at a time' if size else ''}"
        )


_workspaces: dict[torch.device, Workspace] = {}


def workspace_of(device: torch.device, budget: int | None) -> Workspace:
    """The one workspace of a card, for all pipes: a refiner's engine shares the buffer with the UNet's and the VAE's.

    budget: in bytes, for all engines on the card; the last that was given holds, and None leaves it as it is
    """
    made = Workspace(device)  # which knows the number of plain "cuda"
    workspace = _workspaces.setdefault(made.device, made)
    if budget is not None:
        workspace.bound(budget)
    return workspace


def in_words(count: int) -> str:
    """``2.5 GiB``."""
    size, units = float(count), ["bytes", "KiB", "MiB", "GiB"]
    while size >= 1024 and len(units) > 1:
        size, units = size / 1024, units[1:]
    return f"{size:.3g} {units[0]}"
