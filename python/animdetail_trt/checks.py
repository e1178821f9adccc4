"""What a value is, whoever made it: Python, NumPy or a JSON file."""

from __future__ import annotations

from numbers import Integral, Real

FLOAT32_MAX = (2 - 2**-23) * 2.0**127


def is_number(value: object) -> bool:
    """A real number and no truth value."""
    return isinstance(value, Real) and not isinstance(value, bool)


def is_finite(value: object) -> bool:
    """A number that float32 can hold; Python's whole numbers have no end."""
    return is_number(value) and -FLOAT32_MAX <= value <= FLOAT32_MAX  # type: ignore[operator]


def is_whole(value: object) -> bool:
    """A whole number and no truth value."""
    return isinstance(value, Integral) and not isinstance(value, bool)


def is_part(start: object, end: object) -> bool:
    """Two numbers, 0 <= start <= end <= 1: a part of a noise schedule."""
    return is_finite(start) and is_finite(end) and 0 <= start <= end <= 1  # type: ignore[operator]
