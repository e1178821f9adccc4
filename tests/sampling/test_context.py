"""Context windows: what they cover and how they are averaged."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from animdetail_trt.errors import InputError
from animdetail_trt.sampling.context import (
    ContextOptions,
    check_context,
    frames_of,
    fuse,
    ordered_halving,
    window_weights,
    windows,
)

SCHEDULES = ("standard_static", "standard_uniform", "looped_uniform", "batched")


@st.composite
def clips(draw: st.DrawFn, schedules: tuple[str, ...] = SCHEDULES) -> tuple[int, ContextOptions]:
    length = draw(st.integers(1, 20))
    schedule = draw(st.sampled_from(schedules))
    options = ContextOptions(
        schedule=schedule,
        context_length=length,
        context_overlap=draw(st.integers(0, length - 1)),
        context_stride=draw(st.integers(1, 4)) if "uniform" in schedule else 1,
        closed_loop=draw(st.booleans()) if schedule == "looped_uniform" else False,
        fuse_method=draw(st.sampled_from([None, "flat"] + ["pyramid", "overlap-linear"] * (schedule != "batched"))),
    )
    return draw(st.integers(1, 100)), options


@given(clips(("standard_static",)))
def test_static_windows_cover_every_frame_and_overlap_enough(clip: tuple[int, ContextOptions]) -> None:
    frames, options = clip
    spans = windows(frames, options)
    assert sorted({i for span in spans for i in span}) == list(range(frames))
    assert all(len(span) == min(frames, options.context_length) for span in spans)
    for left, right in pairwise(spans):
        assert left[-1] + 1 - right[0] >= options.context_overlap
        assert right[0] > left[0]


@given(clips(), st.integers(1, 10))
def test_windows_cover_the_clip_or_are_refused(clip: tuple[int, ContextOptions], steps: int) -> None:
    """A standard_uniform stride above 1 leaves frames out at some lengths, and runs past the end at others."""
    frames, options = clip
    try:
        check_context(frames, 100, options, steps)
    except InputError:
        assert options.schedule == "standard_uniform"
        assert options.context_stride > 1
        return
    for step in range(steps):
        spans = windows(frames, options, step)
        assert {frame for span in spans for frame in span} == set(range(frames))
        assert all(len(span) <= options.context_length for span in spans)


@given(clips(("standard_static", "batched")))
def test_averaging_what_agrees_changes_nothing(clip: tuple[int, ContextOptions]) -> None:
    frames, options = clip
    x = torch.arange(frames, dtype=torch.float32).view(-1, 1, 1, 1).expand(-1, 4, 2, 2)
    spans = windows(frames, options)
    torch.testing.assert_close(fuse([x[span] for span in spans], spans, frames, options), x)


@pytest.mark.parametrize(
    ("fuse_method", "window", "expected"),
    [
        ("pyramid", [0], [1]),
        ("pyramid", [0, 1, 2, 3], [1, 2, 2, 1]),
        ("pyramid", [3, 4, 5, 6, 7], [1, 2, 3, 2, 1]),
        ("flat", [2, 3, 4], [1, 1, 1]),
        ("overlap-linear", [0, 1, 2, 3, 4], [1, 1, 1, 0.5, 0]),
        ("overlap-linear", [4, 5, 6, 7, 8], [0, 0.5, 1, 0.5, 0]),
        ("overlap-linear", [5, 6, 7, 8, 9], [0, 0.5, 1, 1, 1]),
    ],
)
def test_weights(fuse_method: str, window: list[int], expected: list[float]) -> None:
    options = ContextOptions(context_length=6, context_overlap=3, fuse_method=fuse_method)
    assert window_weights(window, 10, options).tolist() == pytest.approx(expected, abs=1e-30)


@pytest.mark.parametrize(
    ("window", "expected"), [([0, 1, 2], [1, 1, 1]), ([2, 3, 4], [0, 1, 1]), ([4, 5, 6], [0, 1, 1])]
)
def test_of_a_linear_overlap_of_one_frame_the_earlier_window_holds(window: list[int], expected: list[float]) -> None:
    """Both ramps of the reference start there: at 1e-37 in the later window and at 1 in the earlier."""
    options = ContextOptions(context_length=3, context_overlap=1, fuse_method="overlap-linear")
    weights = window_weights(window, 7, options)
    assert weights.tolist() == pytest.approx(expected, abs=1e-30)
    assert float(weights.min()) > 0  # what no other window holds is still itself


def test_weighed_relative_a_frame_in_no_window_is_nought() -> None:
    options = ContextOptions("standard_uniform", 5, 2, context_stride=2, fuse_method="relative")
    check_context(11, 16, options, 4)
    spans = windows(11, options, 2)
    x = torch.ones(11, 4, 2, 2)
    fused = fuse([x[span] for span in spans], spans, 11, options)
    unseen = sorted(set(range(11)) - {frame for span in spans for frame in span})
    assert unseen
    assert not fused[unseen].any()
    with pytest.raises(InputError, match="do not cover 11 frames"):
        check_context(11, 16, ContextOptions("standard_uniform", 5, 2, context_stride=2), 4)


def test_frames_that_follow_each_other_are_a_view() -> None:
    values = torch.arange(6)
    assert frames_of(values, [2, 3, 4]).data_ptr() == values[2:].data_ptr()
    for window in ([2, 3, 4], [4, 5, 0], [1, 3, 5], [3], [2, 2]):
        assert frames_of(values, window).tolist() == window


def test_ordered_halving() -> None:
    assert [ordered_halving(step) for step in range(8)] == [0, 0.5, 0.25, 0.75, 0.125, 0.625, 0.375, 0.875]
