"""What a run tells while it goes (Observer) and what it leaves behind (RunReport)."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any


class Observer:
    """Called by the detailer as the work goes on; subclass and override what you need. The base does nothing.

    A run is ``begin_run``, then for each segment ``begin_segment``, its ``stage``s and ``step``s, ``end_segment``.
    An exception raised here (KeyboardInterrupt, say) stops the run at that point.
    """

    def begin_run(self, segment_count: int, steps_per_segment: int) -> None: ...

    def begin_segment(self, index: int, label: str, crop_size: tuple[int, int], work_size: tuple[int, int]) -> None:
        """Sizes are (width, height) in pixels: of the crop, and of what is sampled."""

    def step(self, index: int, step: int, steps: int) -> None:
        """Sampler step ``step`` (1 .. steps) of segment ``index`` is done."""

    def stage(self, index: int, name: str, elapsed_ms: float) -> None:
        """Stage ``name`` of segment ``index``, or a part of it, is done: encode and decode (with the resize), sample,
        paste, hook. On a GPU that means asked for: the time until it is done shows where the host waits, in sample."""

    def end_segment(self, index: int) -> None: ...


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
    """An Observer that keeps the times and sizes of a run, for the JSON that the CLI writes."""

    segments: list[SegmentReport] = field(default_factory=list)
    total_ms: float = 0.0
    _start: float = 0.0

    def begin_run(self, segment_count: int, steps_per_segment: int) -> None:
        self._start = time.perf_counter()

    def begin_segment(self, index: int, label: str, crop_size: tuple[int, int], work_size: tuple[int, int]) -> None:
        self.segments.append(SegmentReport(label, crop_size, work_size))

    def stage(self, index: int, name: str, elapsed_ms: float) -> None:
        stages = self.segments[index].stages_ms
        stages[name] = stages.get(name, 0.0) + elapsed_ms

    def end_segment(self, index: int) -> None:
        self.total_ms = (time.perf_counter() - self._start) * 1e3

    def as_dict(self) -> dict[str, Any]:
        return {
            "total_ms": self.total_ms,
            "segments": [
                {"label": s.label, "crop_size": s.crop_size, "work_size": s.work_size, "stages_ms": s.stages_ms}
                for s in self.segments
            ],
        }
