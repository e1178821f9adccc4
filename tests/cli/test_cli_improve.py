"""``--improve``: which improvements reach the detailer, and that the sheet and the report show what it paints."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from animdetail_trt.detailer.improvements import Improvements
from animdetail_trt.media.segs_file import write_segs
from animdetail_trt.segs import SEG

ON = Improvements(call_hooks=False)


@pytest.mark.parametrize(
    ("flags", "reference_mode", "improvements"),
    [
        ([], True, None),
        (["--improve", "all"], False, ON),
        (["--improve", "follow-motion"], False, Improvements(False, False, False, True, False)),
        (["--improve", "round-to-8,merge-masks"], False, Improvements(True, True, False, False, False)),
    ],
)
def test_the_detailer_is_told(
    run: Callable[..., Any], fake_models: Any, video: Path, segs: Path, checkpoint: Path, tmp_path: Path,
    flags: list[str], reference_mode: bool, improvements: Improvements | None,
) -> None:  # fmt: skip
    argv = ["--checkpoint", checkpoint, "--segs", segs, "-q", *flags]
    assert run("detail", video, "-o", tmp_path / "out.mp4", *argv).code == 0
    called = fake_models.detailed[0]
    assert called["reference_mode"] is reference_mode
    assert called["improvements"] == improvements


@pytest.mark.parametrize(
    ("flags", "order"), [([], "pillow13"), (["--pass-order", "horizontal_first"], "horizontal_first")]
)
def test_the_detailer_is_told_the_pass_order(
    run: Callable[..., Any], fake_models: Any, video: Path, segs: Path, checkpoint: Path, tmp_path: Path,
    flags: list[str], order: str,
) -> None:  # fmt: skip
    assert (
        run("detail", video, "-o", tmp_path / "o.mp4", "--checkpoint", checkpoint, "--segs", segs, "-q", *flags).code
        == 0
    )
    assert fake_models.detailed[0]["pass_order"] == order


def test_an_unknown_one_is_named(run: Callable[..., Any], fake_models: Any, video: Path, tmp_path: Path) -> None:
    outcome = run("detail", video, "-o", tmp_path / "o.mp4", "--checkpoint", "x", "--segs", "s", "--improve", "sharper")
    assert outcome.code == 2
    assert "'sharper' is none of all, round-to-8, merge-masks, scale-regions, follow-motion" in outcome.err


@pytest.mark.parametrize(
    ("size", "flags", "painted"),
    [((96, 32), ["--improve", "scale-regions"], [12, 12, 36, 36]), ((96, 128), [], [3, 12, 9, 36])],
)
def test_the_report_names_the_region_that_is_painted(
    run: Callable[..., Any], fake_models: Any, video: Path, checkpoint: Path, tmp_path: Path,
    size: tuple[int, int], flags: list[str], painted: list[int],
) -> None:  # fmt: skip
    """In frames of 64x48, x doubles and y halves, or both halve."""
    region = 6, 24, 18, 72
    write_segs(tmp_path / "other.json", (size, [SEG(None, torch.ones(48, 12), 1.0, region, region, "")]))
    argv = ["--checkpoint", checkpoint, "--segs", tmp_path / "other.json", "--report", tmp_path / "run.json", "-q"]
    outcome = run("detail", video, "-o", tmp_path / "out.mp4", *argv, *flags)
    assert outcome.code == 0, outcome.err
    report = json.loads((tmp_path / "run.json").read_text())
    assert report["parameters"]["improve"] == (flags[1:] or None)
    assert report["detail"]["segments"][0]["crop_region"] == painted
    assert fake_models.detailed[0]["segs"][1][0].crop_region == region  # it scales them itself


def test_segs_that_do_not_fit_are_told_before_models_are_loaded(
    run: Callable[..., Any], fake_models: Any, video: Path, checkpoint: Path, tmp_path: Path
) -> None:
    region = 6, 24, 18, 72
    write_segs(tmp_path / "tall.json", ((96, 32), [SEG(None, torch.ones(48, 12), 1.0, region, region, "")]))
    argv = ["--checkpoint", checkpoint, "--segs", tmp_path / "tall.json", "-q"]
    outcome = run("detail", video, "-o", tmp_path / "out.mp4", *argv)
    assert "has no area in frames of 64x48" in outcome.err
    assert fake_models.loaded == []
