"""Timing two ways of one job in turn, and the machine's own copy speed."""

from __future__ import annotations

import gc
import statistics
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

import torch


@dataclass(frozen=True)
class Times:
    """Milliseconds of every run."""

    runs_ms: list[float]

    @property
    def median_ms(self) -> float:
        return statistics.median(self.runs_ms)

    @property
    def spread(self) -> float:
        """(slowest - fastest) / median."""
        return (max(self.runs_ms) - min(self.runs_ms)) / self.median_ms

    def as_json(self) -> dict[str, Any]:
        return asdict(self) | {"median_ms": self.median_ms, "spread": self.spread}


def time_ms(call: Callable[[], object], excluded_ms: Callable[[], float] = lambda: 0.0) -> float:
    """Wall time less what ``excluded_ms``, a clock that only runs during work that is not the job, went on by."""
    gc.collect()
    start, start_excluded = time.perf_counter(), excluded_ms()
    result = call()
    elapsed = 1e3 * (time.perf_counter() - start) - (excluded_ms() - start_excluded)
    del result  # freeing it is not part of the job
    return elapsed


def repeat(call: Callable[[], object], runs: int) -> Times:
    call()  # warms caches and lazy set-up
    return Times([time_ms(call) for _ in range(runs)])


def alternate(
    first: Callable[[], object], second: Callable[[], object], rounds: int, excluded_ms: Callable[[], float]
) -> tuple[Times, Times]:
    """A B A B ...: whatever else the machine does meets both alike."""
    pairs = [(time_ms(first, excluded_ms), time_ms(second, excluded_ms)) for _ in range(rounds)]
    return Times([pair[0] for pair in pairs]), Times([pair[1] for pair in pairs])


def copy_bytes_per_ms(mebibytes: int = 256, runs: int = 15) -> float:
    """Bytes read plus written per millisecond by torch's copy, on its threads, between buffers beyond any cache."""
    source = torch.zeros(mebibytes * 2**18)
    target = torch.zeros_like(source)
    moved = 2 * source.numel() * source.element_size()
    return moved / repeat(lambda: target.copy_(source), runs).median_ms
