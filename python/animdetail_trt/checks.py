"""What a value is, whoever made it: Python, NumPy or a JSON file."""

from __future__ import annotations

from numbers import Integral, Real


def is_number(value: object) -> bool:
    """A real number and no truth value."""
    return isinstance(value, Real) and not isinstance(value, bool)


def is_whole(value: object) -> bool:
    """A whole number and no truth value."""
    return isinstance(value, Integral) and not isinstance(value, bool)
