"""Timing several ways of one job in turn."""

from __future__ import annotations

import gc
import statistics
import time
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch

CPU = torch.device("cpu")


@dataclass(frozen=True)
class Times:
    """Milliseconds of every run."""

    runs_ms: list[float]

    @property
    def median_ms(self) -> float:
        return statistics.median(self.runs_ms)

    @property
    def quartiles_ms(self) -> tuple[float, float]:
        """Half of the runs lie between."""
        if len(self.runs_ms) < 2:
            return self.runs_ms[0], self.runs_ms[0]
        low, _, high = statistics.quantiles(self.runs_ms, n=4, method="inclusive")
        return low, high

    @property
    def spread(self) -> float:
        """(slowest - fastest) / median."""
        return (max(self.runs_ms) - min(self.runs_ms)) / self.median_ms

    def as_json(self) -> dict[str, Any]:
        return {
            "runs_ms": self.runs_ms,
            "median_ms": self.median_ms,
            "quartiles_ms": list(self.quartiles_ms),
            "spread": self.spread,
        }


@dataclass(frozen=True)
class Effort:
    """How often a job is timed: ``least`` rounds at least, then until ``seconds`` are over or ``most`` are done."""

    least: int
    most: int
    seconds: float


def time_ms(
    call: Callable[[], object], excluded_ms: Callable[[], float] = lambda: 0.0, device: torch.device = CPU
) -> float:
    """On a GPU the time between two events around the call; else wall time less what ``excluded_ms``, a clock that
    only runs during work that is not the job, went on by. A job of the host is timed with ``device`` the CPU, whatever
    GPU there is: events would count what is excluded."""
    gc.collect()
    if device.type == "cuda":
        return _event_ms(call, device)
    start, start_excluded = time.perf_counter(), excluded_ms()
    result = call()
    elapsed = 1e3 * (time.perf_counter() - start) - (excluded_ms() - start_excluded)
    del result  # freeing it is not part of the job
    return elapsed


def _event_ms(call: Callable[[], object], device: torch.device) -> float:
    with torch.cuda.device(device):
        start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        torch.cuda.synchronize()
        start.record()
        result = call()
        end.record()
        end.synchronize()
    del result  # as above: not before the end
    return float(start.elapsed_time(end))


def repeat(call: Callable[[], object], runs: int, device: torch.device = CPU) -> Times:
    call()  # warms caches and lazy set-up
    return Times([time_ms(call, device=device) for _ in range(runs)])


def alternate(
    timed: Mapping[str, Callable[[], float]], effort: Effort, enough: Callable[[], bool] = lambda: False
) -> dict[str, Times]:
    """A B C, B C A, C A B ...: whatever else the machine does meets all alike, and none always comes after the same
    other, whose traces in caches and clocks it would run with.

    timed: name -> the milliseconds of one run
    enough: whether to stop after the rounds that there must be
    """
    order = deque(timed)
    runs: dict[str, list[float]] = {name: [] for name in order}
    start = time.perf_counter()
    for i in range(effort.most):
        if i >= effort.least and (time.perf_counter() - start > effort.seconds or enough()):
            break
        for name in order:
            runs[name].append(timed[name]())
        order.rotate(-1)
    return {name: Times(times) for name, times in runs.items()}
