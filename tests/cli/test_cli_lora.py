"""--lora and --motion-lora, and what is shown of how much of a file was used."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable
from io import StringIO
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from animdetail_trt.cli.models import parse_lora
from animdetail_trt.cli.progress import Display, Lines, log_shown


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("a.safetensors", ("a.safetensors", 1.0)),
        ("a.safetensors:0.8", ("a.safetensors", 0.8)),
        ("a.safetensors:-1", ("a.safetensors", -1.0)),
        ("a b/c:d.safetensors", ("a b/c:d.safetensors", 1.0)),
        ("c:d.safetensors:.5", ("c:d.safetensors", 0.5)),
        (r"C:\models\a.safetensors", (r"C:\models\a.safetensors", 1.0)),
        ("a.safetensors:nan", ("a.safetensors:nan", 1.0)),
        ("a.safetensors:", ("a.safetensors:", 1.0)),
        (":0.5", (":0.5", 1.0)),
    ],
)
def test_a_number_after_a_colon_is_the_strength(text: str, expected: tuple[str, float]) -> None:
    path, strength = parse_lora(text)
    assert (str(path), strength) == expected


def test_loras_come_to_load_pipe_in_order(
    run: Callable[..., Any], fake_models: Any, video: Path, segs: Path, checkpoint: Path, tiny: Path, tmp_path: Path
) -> None:
    lora = tiny / "tiny_lora.safetensors"
    outcome = run(
        "detail", video, "-o", tmp_path / "out.mp4", "--checkpoint", checkpoint, "--segs", segs,
        "--lora", f"{lora}:0.8", "--lora", lora, "--report", tmp_path / "run.json",
    )  # fmt: skip
    assert outcome.code == 0, outcome.err
    assert fake_models.loaded[0][1]["loras"] == [(lora, 0.8), (lora, 1.0)]
    assert fake_models.loaded[0][1]["motion_loras"] == []
    assert json.loads((tmp_path / "run.json").read_text())["parameters"]["lora"] == [[str(lora), 0.8], [str(lora), 1.0]]


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--lora", "nowhere.safetensors:0.5"], "--lora nowhere.safetensors does not exist"),
        (["--lora", "{tiny}/tiny_mm_v2.safetensors"], "cannot be used as a LoRA: it is an AnimateDiff motion module"),
        (["--motion-lora", "{tiny}/tiny_lora.safetensors"], "--motion-lora needs a motion module"),
        (
            ["--motion-lora", "{tiny}/tiny_lora.safetensors", "--motion-module", "{tiny}/tiny_mm_v2.safetensors"],
            "it is a LoRA. Give it as a LoRA: --lora FILE",
        ),
        (["--lora", "{tiny}/tiny_lora.safetensors", "--report", "{tiny}/tiny_lora.safetensors"], "same file as --lora"),
    ],
)
def test_wrong_files_are_named_before_any_work(
    run: Callable[..., Any], fake_models: Any, video: Path, segs: Path, checkpoint: Path, tiny: Path, tmp_path: Path,
    flags: list[str], words: str,
) -> None:  # fmt: skip
    outcome = run(
        "detail", video, "-o", tmp_path / "out.mp4", "--checkpoint", checkpoint, "--segs", segs,
        *(flag.format(tiny=tiny) for flag in flags),
    )  # fmt: skip
    assert outcome.code != 0
    assert words in outcome.err
    assert not fake_models.loaded


def told(display: Display) -> None:
    logger = logging.getLogger("animdetail_trt.models.lora")
    with log_shown(display):
        logger.info("370 of 370 tensors")
        logger.warning("no place for [x]")
    logger.warning("afterwards")


def test_coverage_is_shown_beside_the_progress() -> None:
    shown = StringIO()
    told(Lines(Console(file=shown, width=200)))
    assert shown.getvalue() == "370 of 370 tensors\nwarning: no place for [x]\n"


def test_quiet_keeps_the_warnings(capsys: pytest.CaptureFixture[str]) -> None:
    told(Display())
    assert capsys.readouterr().err.startswith("warning: no place for [x]\n")


def test_a_whole_run_shows_its_coverage_and_what_is_missing(
    run: Callable[..., Any], tiny: Path, tiny_checkpoint: Path, video: Path, segs: Path, tmp_path: Path
) -> None:
    outcome = run(
        "detail", video, "-o", tmp_path / "out.mp4", "--checkpoint", tiny_checkpoint, "--segs", segs, "--device", "cpu",
        "--guide-size", 64, "--steps", 1, "--lora", f"{tiny / 'tiny_lora.safetensors'}:0.5",
    )  # fmt: skip
    assert outcome.code == 0, outcome.err
    assert "tiny_lora.safetensors: 370 of 370 tensors\n" in outcome.err
    assert outcome.err.count("warning: the pipe has no motion module: each of the 5 frames is sampled alone") == 1
