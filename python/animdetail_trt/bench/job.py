"""What is timed: a call, and the inputs that it takes in turn."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from animdetail_trt.detailer.report import RunReport


@dataclass(frozen=True)
class Job:
    """run: computes the inputs of a set, by its number, and returns frames (f, c, h, w) or (f, h, w, c)
    excluded_ms: a clock of what is not the job; report: of the last run, where the node ran"""

    run: Callable[[int], Tensor]
    excluded_ms: Callable[[], float] = lambda: 0.0
    report: Callable[[], RunReport | None] = lambda: None

    def stages_ms(self) -> dict[str, float]:
        """What each stage of the last run took, summed over the segments."""
        report, total = self.report(), dict[str, float]()
        if isinstance(report, DeviceReport):
            report.settle()
        for one in report.segments if report else ():
            for name, ms in one.stages_ms.items():
                total[name] = total.get(name, 0.0) + ms
        return total


def _timed_event() -> torch.cuda.Event:
    event = torch.cuda.Event(enable_timing=True)
    event.record()
    return event


@dataclass
class DeviceReport(RunReport):
    """Stages by events at their ends, in the current stream: a host is ahead of its GPU, and its clock would tell when
    the work was asked for. mark: such an event."""

    mark: Callable[[], torch.cuda.Event] = _timed_event
    marks: list[tuple[int, str | None, torch.cuda.Event]] = field(default_factory=list)

    def begin_segment(self, index: int, label: str, crop_size: tuple[int, int], work_size: tuple[int, int]) -> None:
        super().begin_segment(index, label, crop_size, work_size)
        self.marks.append((index, None, self.mark()))

    def stage(self, index: int, name: str, elapsed_ms: float) -> None:
        self.marks.append((index, name, self.mark()))

    def settle(self) -> None:
        """To be called when the device has done all of it."""
        for (_, _, start), (index, name, end) in pairwise(self.marks):
            if name is not None:
                super().stage(index, name, start.elapsed_time(end))
        self.marks.clear()


@dataclass(frozen=True)
class Inputs:
    """Sets of what a scenario reads, on the device; every run takes the next, so that none is found in a cache."""

    sets: Sequence[Any]

    def of(self, number: int) -> Any:
        return self.sets[number % len(self.sets)]
