"""Argument types for argparse: numbers with bounds, and a message that names them."""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable


def between(low: float, high: float) -> Callable[[str], float]:
    """A finite number in low..high."""

    def parse(text: str) -> float:
        try:
            value = float(text)
        except ValueError:
            raise argparse.ArgumentTypeError(f"{text!r} is not a number") from None
        if not (math.isfinite(value) and low <= value <= high):
            raise argparse.ArgumentTypeError(f"{text} is out of range. Use {low:g} to {high:g}")
        return value

    return parse


def whole_between(low: int, high: int | None) -> Callable[[str], int]:
    """A whole number in low..high."""

    def parse(text: str) -> int:
        try:
            value = int(text)
        except ValueError:
            raise argparse.ArgumentTypeError(f"{text!r} is not a whole number") from None
        if value < low or (high is not None and value > high):
            bounds = f"{low} or more" if high is None else f"{low} to {high}"
            raise argparse.ArgumentTypeError(f"{text} is out of range. Use {bounds}")
        return value

    return parse


def whole_at_least(low: int) -> Callable[[str], int]:
    return whole_between(low, None)
