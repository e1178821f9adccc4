"""What a run tells while it goes (Observer) and what it leaves behind (RunReport)."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from animdetail_trt.errors import InputError

_CALLS = ("begin_run", "begin_segment", "step", "stage", "end_segment")


class Observer:
    """Called by the detailer as the work goes on; subclass and override what you need. The base does nothing.

    A run is ``begin_run``, then for each segment ``begin_segment``, its ``stage``s and ``step``s, ``end_segment``.
    An exception raised here (KeyboardInterrupt, say) stops the run at that point.
    """

    def begin_run(self, segment_count: int, steps_per_segment: int) -> None:
        """All input is checked and the first segment comes next; ``segment_count`` may be 0."""

    def begin_segment(self, index: int, label: str, crop_size: tuple[int, int], work_size: tuple[int, int]) -> None:
        """Sizes are (width, height) in pixels: of the crop, and of what is sampled."""

    def step(self, index: int, step: int, steps: int) -> None:
        """Sampler step ``step`` (1 .. steps) of segment ``index`` is done."""

    def stage(self, index: int, name: str, elapsed_ms: float) -> None:
        """Stage ``name`` of segment ``index``, or a part of it, is done: encode and decode (with the resize), sample,
        paste, hook. On a GPU that means asked for: the time until it is done shows where the host waits, in sample."""

    def end_segment(self, index: int) -> None:
        """Segment ``index`` is done: pasted, where it is to be, and its hook has returned."""


def check_observer(observer: Any) -> Observer:
    """``observer`` itself, or for None one that does nothing. Raises InputError where it cannot be told of a run."""
    if observer is None:
        return Observer()
    lacking = [name for name in _CALLS if not callable(getattr(observer, name, None))]
    if isinstance(observer, type) or lacking:
        hint = f" has no {lacking[0]}" if lacking else " is a class; give one of its objects"
        raise InputError(f"observer must be an Observer, RunReport() for one: {observer!r:.80}{hint}")
    found: Observer = observer
    return found


@contextmanager
def timed(observer: Observer, index: int, name: str) -> Iterator[None]:
    start = time.perf_counter()
    yield
    observer.stage(index, name, (time.perf_counter() - start) * 1e3)


@dataclass
class SegmentReport:
    label: str
    crop_size: tuple[int, int]
    work_size: tuple[int, int]
    stages_ms: dict[str, float] = field(default_factory=dict)


@dataclass
class RunReport(Observer):
    """An Observer that keeps the times and sizes of a run, the last that it saw, for the JSON that the CLI writes."""

    segments: list[SegmentReport] = field(default_factory=list)
    total_ms: float = 0.0
    _start: float = 0.0

    def begin_run(self, segment_count: int, steps_per_segment: int) -> None:
        self.segments, self.total_ms = [], 0.0
        self._start = time.perf_counter()

    def begin_segment(self, index: int, label: str, crop_size: tuple[int, int], work_size: tuple[int, int]) -> None:
        self.segments.append(SegmentReport(label, crop_size, work_size))

    def stage(self, index: int, name: str, elapsed_ms: float) -> None:
        stages = self.segments[index].stages_ms
        stages[name] = stages.get(name, 0.0) + elapsed_ms

    def end_segment(self, index: int) -> None:
        self.total_ms = (time.perf_counter() - self._start) * 1e3

    def as_dict(self) -> dict[str, Any]:
        """For JSON: total_ms, and of each segment its label, crop_size, work_size (width, height) and stages_ms."""
        return {
            "total_ms": self.total_ms,
            "segments": [
                {"label": s.label, "crop_size": s.crop_size, "work_size": s.work_size, "stages_ms": s.stages_ms}
                for s in self.segments
            ],
        }
