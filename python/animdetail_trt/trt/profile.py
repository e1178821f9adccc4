"""The sizes that a graph's inputs may have, and the ranges of them that an engine is built for."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

from animdetail_trt.errors import InputError

Dim: TypeAlias = int | str
"""A number, or an axis: ``h``, ``8h`` (eight times it) or ``h/2`` (half of it, rounded up)."""

Inputs: TypeAlias = Mapping[str, Sequence[Dim]]
"""The shape of every input of a graph."""

Shape: TypeAlias = tuple[int, ...]

FLAG_OF_AXIS = {"f": "--frames", "h": "--size", "w": "--size"}
"""The flags of build-engines that widen an axis."""

_AXIS = re.compile(r"(\d*)([a-z]+)(?:/(\d+))?")


def axis_of(dim: str) -> str:
    """``h`` of ``h/2``."""
    match = _AXIS.fullmatch(dim)
    if match is None:
        raise ValueError(dim)
    return match[2]


def extent(dim: Dim, sizes: Mapping[str, int]) -> int:
    """How long a dimension is when the axes have these sizes."""
    if isinstance(dim, int):
        return dim
    match = _AXIS.fullmatch(dim)
    if match is None:
        raise ValueError(dim)
    times, axis, divisor = match.groups()
    return math.ceil(sizes[axis] * int(times or 1) / int(divisor or 1))


def shape_of(dims: Sequence[Dim], sizes: Mapping[str, int]) -> Shape:
    return tuple(extent(dim, sizes) for dim in dims)


@dataclass(frozen=True)
class Range:
    """From ``min`` to ``max``, fastest at ``opt``."""

    min: int
    opt: int
    max: int

    def __post_init__(self) -> None:
        if not 1 <= self.min <= self.opt <= self.max:
            raise InputError(f"{self} is no range. Write it as MIN:OPT:MAX, each no smaller than the one before")

    def __contains__(self, size: int) -> bool:
        return self.min <= size <= self.max

    def __str__(self) -> str:
        return f"{self.min}:{self.opt}:{self.max}"


@dataclass(frozen=True)
class Profile:
    """One optimisation profile: a range for every axis.

    The UNet's axes: b prompts in a call, f frames, h w latents, n tokens, t prompts of a window (1, or
    one for each frame).
    The VAE's: f frames in a call, h w latents.
    """

    axes: Mapping[str, Range]

    def shapes(self, dims: Sequence[Dim]) -> tuple[Shape, Shape, Shape]:
        """The least, the best and the largest shape of an input."""
        least, best, most = (
            shape_of(dims, {axis: getattr(span, end) for axis, span in self.axes.items()})
            for end in ("min", "opt", "max")
        )
        return least, best, most

    def misfit(self, sizes: Mapping[str, int]) -> str | None:
        """The first axis whose size lies outside, None where all fit."""
        return next((axis for axis, span in self.axes.items() if sizes.get(axis, span.opt) not in span), None)

    @property
    def volume(self) -> int:
        """What it may have to hold: the product of the largest sizes."""
        return math.prod(span.max for span in self.axes.values())

    def as_json(self) -> dict[str, list[int]]:
        return {axis: [span.min, span.opt, span.max] for axis, span in sorted(self.axes.items())}

    @classmethod
    def from_json(cls, axes: Mapping[str, Any]) -> Profile:
        return cls({axis: Range(*span) for axis, span in axes.items()})


def tightest(profiles: Sequence[Profile], sizes: Mapping[str, int]) -> int | None:
    """The number of the profile that fits with the least to spare; None where none fits."""
    fitting = [index for index, profile in enumerate(profiles) if profile.misfit(sizes) is None]
    return min(fitting, key=lambda index: profiles[index].volume, default=None)


def sizes_of(inputs: Inputs, shapes: Mapping[str, Sequence[int]]) -> dict[str, int]:
    """The sizes of the axes, read off the inputs that have them plainly (``h``, not ``h/2``)."""
    return {
        dim: shapes[name][i] for name, dims in inputs.items() for i, dim in enumerate(dims)
        if isinstance(dim, str) and dim.isalpha() and name in shapes
    }  # fmt: skip
