"""A small video for every test of this folder."""

from __future__ import annotations

from pathlib import Path

import pytest

from clips import make_video, patches


@pytest.fixture
def small_video(tmp_path: Path) -> Path:
    """Six frames of 64x48 at 25 per second with AAC sound."""
    return make_video(tmp_path / "small.mp4", patches(64, 48, 6), sound="aac")
