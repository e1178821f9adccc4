"""Context windows: what they cover and how they are averaged."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from animdetail_trt.sampling.context import ContextOptions, over_windows, pyramid_weights, windows


@st.composite
def clips(draw: st.DrawFn) -> tuple[int, ContextOptions]:
    length = draw(st.integers(1, 20))
    options = ContextOptions(context_length=length, context_overlap=draw(st.integers(0, length - 1)))
    return draw(st.integers(1, 100)), options


@given(clips())
def test_windows_cover_every_frame_and_overlap_enough(clip: tuple[int, ContextOptions]) -> None:
    frames, options = clip
    spans = windows(frames, options)
    assert sorted({i for span in spans for i in span}) == list(range(frames))
    assert all(len(span) == min(frames, options.context_length) for span in spans)
    for left, right in pairwise(spans):
        assert left.stop - right.start >= options.context_overlap
        assert right.start > left.start


@given(clips())
def test_averaging_what_agrees_changes_nothing(clip: tuple[int, ContextOptions]) -> None:
    frames, options = clip
    x = torch.arange(frames, dtype=torch.float32).view(-1, 1, 1, 1).expand(-1, 4, 2, 2)
    out = over_windows(lambda window: torch.stack([window, -window]), x, windows(frames, options))
    torch.testing.assert_close(out, torch.stack([x, -x]))


@pytest.mark.parametrize(("length", "expected"), [(1, [1]), (4, [1, 2, 2, 1]), (5, [1, 2, 3, 2, 1])])
def test_pyramid(length: int, expected: list[int]) -> None:
    assert pyramid_weights(length).tolist() == expected
