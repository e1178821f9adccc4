"""The demo runs from its clip to its contact sheet, and its models draw the face that they were trained on."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from animdetail_trt.detect.mtcnn import FaceDetector
from animdetail_trt.detect.objects import detect_objects
from animdetail_trt.media.video import probe_video, read_video
from needs import carphone, needs_clip, needs_detector

EXAMPLES = Path(__file__).parents[2] / "examples"


def read(path: Path) -> Tensor:
    return read_video(probe_video(path))[0]


def edges(frames: Tensor) -> float:
    """How much neighbouring pixels differ."""
    return float(frames.diff(dim=1).abs().mean() + frames.diff(dim=2).abs().mean())


def psnr(frames: Tensor, expected: Tensor) -> float:
    return float(-10 * (frames - expected).square().mean().log10())


@needs_clip
@needs_detector
def test_demo(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, EXAMPLES / "demo.py", "--output", tmp_path, "--frames", "4"],
        capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "know one man's face" in done.stdout.splitlines()[0]
    assert "4 frames of 176x144, 1 segment detailed" in done.stdout
    written = {path.name for path in tmp_path.iterdir()}
    assert written == {"blurred.mp4", "models", "out.mp4", "contact_sheet.png", "run.json"}
    sharp, blurred, detailed = read(carphone())[:4], read(tmp_path / "blurred.mp4"), read(tmp_path / "out.mp4")
    _, (face,) = detect_objects(sharp, FaceDetector(), crop_factor=1, min_confidence=0.9)
    left, top, right, bottom = face.bbox
    sharp, blurred, detailed = (frames[:, top:bottom, left:right] for frames in (sharp, blurred, detailed))
    assert edges(blurred) * 1.1 < edges(detailed) < edges(sharp)  # measured: 0.050, 0.059, 0.080
    assert psnr(detailed, sharp) > 21  # measured: 23.7, and 25.2 of the blurred; random weights give 14.1


@pytest.fixture
def examples(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(EXAMPLES)


def test_trained_weights_are_written_where_they_were_read(examples: None) -> None:
    import train_demo_models as training
    from demo import tiny_model

    files = {"unet_and_vae": tiny_model("tiny_sd15"), "motion_module": tiny_model("tiny_mm_v3")}
    pipe = training.load(files)
    with torch.no_grad():
        for module in (pipe.vae.module, pipe.model.unet.module):
            for parameter in module.parameters():
                parameter.mul_(2)  # exact in float16
    for name, tensors in training.trained(pipe, files).items():
        assert tensors.keys() == files[name].keys()
        for key, tensor in tensors.items():
            np.testing.assert_array_equal(tensor, files[name][key] * (1 if training.is_table(key) else 2))
