"""Paths over frames."""

from __future__ import annotations

import numpy as np
import pytest

from animdetail_trt.smoothing import fill_path, smooth_path

PERIOD = 12


def test_unseen_ends_hold_the_nearest_place() -> None:
    nan = np.nan
    assert fill_path(np.array([nan, 2.0, nan, 4.0, nan])).tolist() == [2, 2, 3, 4, 4]


def test_smoothing_keeps_straight_paths_and_halves_fast_swings() -> None:
    frames = np.arange(60)
    assert smooth_path(3 - 0.7 * frames, PERIOD) == pytest.approx(3 - 0.7 * frames)
    swing = np.sin(2 * np.pi * frames / PERIOD)
    assert smooth_path(swing, PERIOD)[15:45] == pytest.approx(swing[15:45] / 2, abs=0.01)
    shaken = np.random.default_rng(5).normal(size=60)
    assert smooth_path(shaken[::-1], PERIOD) == pytest.approx(
        smooth_path(shaken, PERIOD)[::-1]
    )  # no lag: time may run backwards
    assert np.abs(np.diff(smooth_path(shaken, PERIOD), 2)).max() < 0.15 * np.abs(np.diff(shaken, 2)).max()
    assert smooth_path(np.array([1.0, 5.0]), PERIOD).tolist() == [1, 5]
