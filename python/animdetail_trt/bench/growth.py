"""How time and memory grow with frames, area and segments: exponents fitted to the scenarios that differ in one."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any

AXES = ("frames", "area", "segments")
QUADRATIC = 1.5
"""An exponent in frames above this, half way between linear and quadratic, is flagged."""

_LITTLE_BYTES = 16 << 20
"""Memory that grows to less is an allocator's doing: it is fitted and never flagged."""

_FIELD_OF = {"frames": "frames", "area": "side", "segments": "segments"}
# A crop and its clip are as large as the picture that they are enlarged to: they go with the area.
_GO_WITH_AREA = {"side", "crop", "width", "height"}
_MEASURES = {"time": "median_ms", "host memory": "peak_host_bytes", "device memory": "peak_device_bytes"}


def exponent(points: Sequence[tuple[float, float]]) -> float:
    """k of y = a x^k, by least squares of the logarithms."""
    xs, ys = [math.log(x) for x, _ in points], [math.log(y) for _, y in points]
    mx, my = sum(xs) / len(xs), sum(ys) / len(ys)
    return sum((x - mx) * (y - my) for x, y in zip(xs, ys, strict=True)) / sum((x - mx) ** 2 for x in xs)


def fit_growth(scenarios: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Of a report's scenarios: an entry for every kind, backend and measure that has three points or more along an
    axis, all else equal; of several such lines the longest."""
    found: dict[tuple[str, str, str, str], dict[str, Any]] = {}
    for axis in AXES:
        for (kind, backend), line in _lines(scenarios, axis).items():
            for what, field in _MEASURES.items():
                points = sorted(
                    (x, result[field]) for x, result in line.items() if result[field] is not None and result[field] > 0
                )
                if len(points) < 3:
                    continue
                k = exponent(points)
                little = what != "time" and points[-1][1] < _LITTLE_BYTES
                flagged = axis == "frames" and k > QUADRATIC and not little
                found[kind, backend, axis, what] = {
                    "kind": kind, "backend": backend, "axis": axis, "of": what,
                    "exponent": k, "points": [list(point) for point in points], "flagged": flagged,
                }  # fmt: skip
    return list(found.values())


def _lines(scenarios: Sequence[Mapping[str, Any]], axis: str) -> dict[tuple[str, str], dict[float, Mapping[str, Any]]]:
    """(kind, backend) -> size along the axis -> result, the longest of the lines on which all else is equal."""
    varying = _GO_WITH_AREA if axis == "area" else {_FIELD_OF[axis]}
    lines: dict[tuple[Any, ...], dict[float, Mapping[str, Any]]] = defaultdict(dict)
    for scenario in scenarios:
        sizes = scenario["sizes"]
        fixed = tuple((key, value) for key, value in sorted(sizes.items()) if key not in varying)
        x = sizes[_FIELD_OF[axis]] ** (2 if axis == "area" else 1)
        for result in scenario["results"]:
            lines[scenario["kind"], result["backend"], fixed][x] = result
    longest: dict[tuple[str, str], dict[float, Mapping[str, Any]]] = {}
    for (kind, backend, _), line in lines.items():
        if len(line) > len(longest.get((kind, backend), {})):
            longest[kind, backend] = line
    return longest
