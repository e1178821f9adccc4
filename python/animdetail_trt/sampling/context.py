"""Context windows: clips longer than a motion module's window run as overlapping windows, averaged where they meet.

Schedules and weights are AnimateDiff-Evolved's; the uniform schedules come from animatediff-cli (neggles), the
pyramid from FreeNoise (Qiu et al. 2023, arXiv:2310.15169).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import TypeAlias

import torch
from torch import Tensor

from animdetail_trt.checks import is_whole
from animdetail_trt.errors import InputError

Window: TypeAlias = list[int]
"""The frames of one window, in the order in which the motion module sees them."""


@dataclass(frozen=True)
class ContextOptions:
    """How a long clip is cut into windows; names and defaults are AnimateDiff-Evolved's.

    schedule: ``standard_static`` (the same windows at every step), ``standard_uniform`` (shifted from step to step),
        ``looped_uniform`` (the same, running past the end into the beginning), ``batched`` (no overlap)
    context_length: frames in a window; context_overlap: frames shared by neighbours
    context_stride: of the uniform schedules: windows of every 1st, 2nd, 4th, .. frame too, this many kinds at most
    closed_loop: of ``looped_uniform``: windows across the seam as well, for clips that repeat
    fuse_method: ``pyramid`` (a frame counts by its distance from the window's edge), ``relative`` (the same in other
        proportions), ``flat``, ``overlap-linear`` (only the overlap fades). None: pyramid, and flat where windows
        loop or do not overlap
    use_on_equal_length: loop even where one window holds the whole clip
    """

    schedule: str = "standard_static"
    context_length: int = 16
    context_overlap: int = 4
    context_stride: int = 1
    closed_loop: bool = False
    fuse_method: str | None = None
    use_on_equal_length: bool = False

    def __post_init__(self) -> None:
        if not isinstance(self.schedule, str) or self.schedule not in _SCHEDULES:
            raise InputError(f"unknown context schedule {self.schedule!r}. Choose one of: {', '.join(_SCHEDULES)}")
        if self.fuse_method is not None and (not isinstance(self.fuse_method, str) or self.fuse_method not in _WEIGHTS):
            raise InputError(f"unknown fuse_method {self.fuse_method!r}. Choose one of: {', '.join(_WEIGHTS)}")
        if self.fuse_method == "relative" and self.schedule == "looped_uniform":
            raise InputError("fuse_method 'relative' weighs windows that do not loop. Use pyramid or flat")
        if self.fuse_method not in (None, "flat") and self.schedule == "batched":
            raise InputError(f"fuse_method {self.fuse_method!r} weighs windows that overlap; batched ones do not")
        for name in ("context_length", "context_overlap", "context_stride"):
            value = getattr(self, name)
            if not is_whole(value):
                raise InputError(f"{name} {value!r} must be a whole number")
        for name in ("context_length", "context_stride"):
            if getattr(self, name) < 1:
                raise InputError(f"{name} {getattr(self, name)} must be at least 1")
        if not 0 <= self.context_overlap < self.context_length:
            raise InputError(
                f"context_overlap {self.context_overlap} must be at least 0 "
                f"and smaller than context_length {self.context_length}"
            )
        if self.context_stride != 1 and "uniform" not in self.schedule:
            raise InputError(f"context_stride is of the uniform schedules; with {self.schedule} it must be 1")
        if self.closed_loop and self.schedule != "looped_uniform":
            raise InputError(f"closed_loop is of looped_uniform; with {self.schedule} it must be False")

    @property
    def fuse(self) -> str:
        """The fuse method that holds."""
        if self.fuse_method is not None:
            return self.fuse_method
        return "flat" if self.schedule in ("looped_uniform", "batched") else "pyramid"

    def applies(self, frames: int) -> bool:
        """Whether a clip of so many frames is cut at all."""
        return frames > self.context_length or (self.use_on_equal_length and frames == self.context_length)


def windows(frames: int, options: ContextOptions | None, step: int = 0) -> list[Window]:
    """The windows that cover ``frames`` frames at ``step`` (from 0) of a run.

    Raises InputError where they leave a frame out. Weighed ``relative``, it has the estimate 0, as in the reference.
    """
    if options is None or not options.applies(frames):
        return [list(range(frames))]
    found = _SCHEDULES[options.schedule](frames, options, step)
    covered = {frame for window in found for frame in window}
    wrong = covered - set(range(frames)) if options.fuse == "relative" else covered ^ set(range(frames))
    if wrong:
        raise InputError(
            f"{options.schedule} windows of {options.context_length} frames, stride {options.context_stride} and "
            f"overlap {options.context_overlap} do not cover {frames} frames: frame {min(wrong)} at step "
            f"{step + 1} (the reference gives NaN or an IndexError there). Use context_stride 1, or looped_uniform"
        )
    return found


def frames_of(values: Tensor, window: Sequence[int]) -> Tensor:
    """``values[window]``; a view where the frames follow each other."""
    return values[_index(tuple(window), values.device)]


@lru_cache(maxsize=1024)
def _index(window: tuple[int, ...], device: torch.device) -> slice | Tensor:
    """What picks these frames of a tensor on ``device``. A plain list would be uploaded every time, and waited for."""
    first, last = window[0], window[-1]
    if window == tuple(range(first, last + 1)):
        return slice(first, last + 1)
    return torch.tensor(window, device=device)


@lru_cache(maxsize=1024)
def _weights_on(
    device: torch.device, dtype: torch.dtype, window: tuple[int, ...], frames: int, options: ContextOptions
) -> Tensor:
    return window_weights(list(window), frames, options).to(device, dtype)


def repeated(values: Tensor, frames: int) -> Tensor:
    """(frames, ...) of ``values`` (n, ...): over and over where there are fewer, the first where there are more."""
    return values.repeat(-(-frames // len(values)), *[1] * (values.ndim - 1))[:frames]


def _static(frames: int, options: ContextOptions, step: int) -> list[Window]:
    """Evenly shifted windows; the last one is moved back so that it has the full length."""
    last = frames - options.context_length
    starts = [*range(0, last, options.context_length - options.context_overlap), last]
    return [list(range(start, start + options.context_length)) for start in starts]


def _batched(frames: int, options: ContextOptions, step: int) -> list[Window]:
    return [
        list(range(start, min(start + options.context_length, frames)))
        for start in range(0, frames, options.context_length)
    ]


def _looped(frames: int, options: ContextOptions, step: int) -> list[Window]:
    """For each stride 1, 2, 4, ..: windows from a start that moves with the step, wrapped around the end."""
    strides = min(options.context_stride, math.ceil(math.log2(frames / options.context_length)) + 1)
    shift = ordered_halving(step)
    pad = round(frames * shift)
    past_end = 0 if options.closed_loop else -options.context_overlap
    found = []
    for stride in (1 << k for k in range(strides)):
        span = options.context_length * stride
        starts = range(int(shift * stride) + pad, frames + pad + past_end, span - options.context_overlap)
        found += [[frame % frames for frame in range(start, start + span, stride)] for start in starts]
    return found


def _uniform(frames: int, options: ContextOptions, step: int) -> list[Window]:
    """As looped, but a window that would wrap is moved back to the end of the clip, and none comes twice."""
    if frames <= options.context_length:
        return [list(range(frames))]
    found = _looped(frames, options, step)
    i = 0
    while i < len(found):
        window = found[i]
        seam = next((k for k in range(1, len(window)) if window[k] < window[k - 1]), None)
        if seam is not None:
            first_after = window[seam]
            window = found[i] = _moved_to_end(window, frames)
            if first_after not in found[(i + 1) % len(found)]:
                found.insert(i + 1, list(range(first_after, first_after + options.context_length)))
        i += 1
    return [window for i, window in enumerate(found) if window not in found[:i]]


def _moved_to_end(window: Window, frames: int) -> Window:
    offsets = [(frame - window[0]) % frames for frame in window]
    return [offset + frames - 1 - offsets[-1] for offset in offsets]


def ordered_halving(step: int) -> float:
    """0, 1/2, 1/4, 3/4, 1/8, ..: the bits of ``step`` mirrored at the binary point (van der Corput)."""
    return sum(2.0 ** -(k + 1) for k in range(step.bit_length()) if step >> k & 1)


_SCHEDULES: dict[str, Callable[[int, ContextOptions, int], list[Window]]] = {
    "standard_static": _static,
    "standard_uniform": _uniform,
    "looped_uniform": _looped,
    "batched": _batched,
}


def window_weights(window: Window, frames: int, options: ContextOptions) -> Tensor:
    """Float32 (len(window),): what each frame's estimate counts against those of other windows."""
    return _WEIGHTS[options.fuse](window, frames, options.context_overlap)


def _flat(window: Window, frames: int, overlap: int) -> Tensor:
    return torch.ones(len(window))


def _pyramid(window: Window, frames: int, overlap: int) -> Tensor:
    rise = torch.arange(1, len(window) + 1, dtype=torch.float32)
    return torch.minimum(rise, rise.flip(0))


def _relative(window: Window, frames: int, overlap: int) -> Tensor:
    middle, half = (window[0] + window[-1]) / 2, (window[-1] - window[0] + 1e-2) / 2
    return torch.tensor([max(1e-2, 1 - abs(frame - middle) / half) for frame in window])


def _overlap_linear(window: Window, frames: int, overlap: int) -> Tensor:
    """An overlap of one frame is the later window's start, 1e-37, and the earlier one's whole: as in the reference,
    whose ramps both have only their first value then."""
    weights = torch.ones(len(window))
    if overlap and min(window) > 0:
        weights[:overlap] = torch.linspace(1e-37, 1, overlap)
    if overlap and max(window) < frames - 1:
        weights[-overlap:] = torch.linspace(1, 1e-37, overlap)
    return weights


_WEIGHTS: dict[str, Callable[[Window, int, int], Tensor]] = {
    "pyramid": _pyramid,
    "relative": _relative,
    "flat": _flat,
    "overlap-linear": _overlap_linear,
}


def check_context(frames: int, positions: int | None, options: ContextOptions | None, steps: int = 1) -> None:
    """Raise unless every window fits the motion module's positions, and at every step every frame is in one."""
    if positions is None:
        return
    if options is None:
        if frames > positions:
            raise InputError(
                f"{frames} frames, and the motion module has {positions} positions. "
                f"Load the pipe with context=ContextOptions(context_length={min(16, positions)}), or --context-length"
            )
        return
    if min(options.context_length, frames) > positions:
        raise InputError(
            f"context_length {options.context_length} is more than the motion module's {positions} positions. "
            f"Use context_length={positions} or less"
        )
    for step in range(steps):  # a sampler may take more than the schedule has
        windows(frames, options, step)


def fuse(estimates: Sequence[Tensor], spans: Sequence[Window], frames: int, options: ContextOptions) -> Tensor:
    """(frames, ...), each frame the weighted mean of what the windows ``spans`` say of it in ``estimates``."""
    total = estimates[0].new_zeros(frames, *estimates[0].shape[1:])
    count = total.new_zeros(frames)
    for estimate, window in zip(estimates, spans, strict=True):
        # A strided window may come around to a frame twice; the later one holds, as in the reference.
        place = {frame: k for k, frame in enumerate(window)}
        target, kept = _index(tuple(place), total.device), list(place.values())
        weights = frames_of(_weights_on(total.device, total.dtype, tuple(window), frames, options), kept)
        total[target] += frames_of(estimate, kept) * weights.view(-1, *[1] * (total.ndim - 1))
        count[target] += weights
    return total / count.clamp(min=1e-37).view(-1, *[1] * (total.ndim - 1))
