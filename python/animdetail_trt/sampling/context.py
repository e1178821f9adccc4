"""Context windows: clips longer than a motion module's window run as overlapping windows, averaged where they meet."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from animdetail_trt.checks import is_whole
from animdetail_trt.errors import InputError

_SCHEDULES = ("standard_static",)


@dataclass(frozen=True)
class ContextOptions:
    """How a long clip is cut into windows; names and defaults are AnimateDiff-Evolved's.

    schedule: ``standard_static``, the same windows at every step
    context_length: frames in a window; context_overlap: frames shared by neighbours
    context_stride, closed_loop: of schedules to come; 1 and False here
    """

    schedule: str = "standard_static"
    context_length: int = 16
    context_overlap: int = 4
    context_stride: int = 1
    closed_loop: bool = False

    def __post_init__(self) -> None:
        if self.schedule not in _SCHEDULES:
            raise InputError(f"unknown context schedule {self.schedule!r}. Choose one of: {', '.join(_SCHEDULES)}")
        for name in ("context_length", "context_overlap", "context_stride"):
            value = getattr(self, name)
            if not is_whole(value):
                raise InputError(f"{name} {value!r} must be a whole number")
        if self.context_length < 1:
            raise InputError(f"context_length {self.context_length} must be at least 1")
        if not 0 <= self.context_overlap < self.context_length:
            raise InputError(
                f"context_overlap {self.context_overlap} must be at least 0 "
                f"and smaller than context_length {self.context_length}"
            )
        if self.context_stride != 1 or self.closed_loop:
            raise InputError("standard_static windows take context_stride 1 and closed_loop False")


def windows(frames: int, options: ContextOptions | None) -> list[range]:
    """The windows that cover ``frames`` frames; the last one is moved back so that it has the full length."""
    if options is None or frames <= options.context_length:
        return [range(frames)]
    stride = options.context_length - options.context_overlap
    last = frames - options.context_length
    starts = [*range(0, last, stride), last]
    return [range(start, start + options.context_length) for start in starts]


def pyramid_weights(length: int) -> Tensor:
    """1, 2, .. to the middle and back: frames at a window's edge count least (FreeNoise, Qiu et al. 2023)."""
    rise = torch.arange(1, length + 1, dtype=torch.float32)
    return torch.minimum(rise, rise.flip(0))


def check_context(frames: int, positions: int | None, options: ContextOptions | None) -> None:
    """Raise unless every window fits the motion module's positions."""
    if positions is None:
        return
    longest = max(len(window) for window in windows(frames, options))
    if longest <= positions:
        return
    if options is None:
        raise InputError(
            f"{frames} frames, and the motion module has {positions} positions. "
            f"Load the pipe with context=ContextOptions(context_length={min(16, positions)}), or --context-length"
        )
    raise InputError(
        f"context_length {options.context_length} is more than the motion module's {positions} positions. "
        f"Use context_length={positions} or less"
    )


def over_windows(predict: Callable[[Tensor], Tensor], x: Tensor, spans: list[range]) -> Tensor:
    """Run ``predict`` (f, ...) -> (b, f, ...) on every window of ``x`` and average with pyramid weights."""
    if len(spans) == 1:
        return predict(x)
    total: Tensor | None = None
    count = torch.zeros(x.shape[0], dtype=x.dtype, device=x.device)
    for span in spans:
        frames = slice(span.start, span.stop)
        weights = pyramid_weights(len(span)).to(x)
        out = predict(x[frames])
        if total is None:
            total = out.new_zeros(out.shape[0], *x.shape)
        total[:, frames] += out * weights.view(-1, 1, 1, 1)
        count[frames] += weights
    assert total is not None
    return total / count.view(-1, 1, 1, 1)
