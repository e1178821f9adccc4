"""What is timed: a call, and the inputs that it takes in turn."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

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
        for one in report.segments if report else ():
            for name, ms in one.stages_ms.items():
                total[name] = total.get(name, 0.0) + ms
        return total


@dataclass(frozen=True)
class Inputs:
    """Sets of what a scenario reads, on the device; every run takes the next, so that none is found in a cache."""

    sets: Sequence[Any]

    def of(self, number: int) -> Any:
        return self.sets[number % len(self.sets)]
