"""A runner for the command line, inputs for it, and a stand-in for the models."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.numpy import save_file

from animdetail_trt.media.segs_file import write_segs
from animdetail_trt.segs import SEG
from clips import CROP, make_video, patches


@pytest.fixture
def video(tmp_path: Path) -> Path:
    """Five frames of 64x48 at 25 per second with AAC sound."""
    return make_video(tmp_path / "in.mp4", patches(64, 48, 5), sound="aac")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Five PNG frames of 64x48."""
    (tmp_path / "frames").mkdir()
    for index, picture in enumerate(patches(64, 48, 5)):
        Image.fromarray(picture).save(tmp_path / "frames" / f"shot{index + 8}.png")
    return tmp_path / "frames"


@pytest.fixture
def segs(tmp_path: Path) -> Path:
    path = tmp_path / "segs.json"
    mask = torch.zeros(32, 32)
    mask[8:24, 8:24] = 1
    write_segs(path, ((48, 64), [SEG(None, mask, 0.9, CROP, (18, 16, 34, 32), "face")]))
    return path


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    """A file whose header is a checkpoint's, and that nothing may load."""
    path = tmp_path / "model.safetensors"
    unet = {"model.diffusion_model.input_blocks.0.0.weight": np.zeros((1, 4, 1, 1), np.float32)}
    save_file(unet | {"cond_stage_model.any": np.zeros(1, np.float32)}, path)
    return path


class FakePipe:
    """The report asks it what ran its models."""

    model = SimpleNamespace(unet=SimpleNamespace(name="torch"))
    vae = SimpleNamespace(name="torch")

    def with_prompt(self, positive: str, negative: str) -> FakePipe:
        self.prompts = positive, negative
        return self


@dataclass
class FakeModels:
    """What load_pipe and the detailer were called with."""

    loaded: list[tuple[tuple[Any, ...], dict[str, Any]]]
    detailed: list[dict[str, Any]]
    pipe: FakePipe


@pytest.fixture
def fake_models(monkeypatch: pytest.MonkeyPatch) -> FakeModels:
    """No model: the detailer inverts each crop region and tells its observer what a real one would."""
    import animdetail_trt.detailer.detailer as detailer
    import animdetail_trt.models.pipe as pipe

    fake = FakeModels([], [], FakePipe())

    def load(*args: Any, **options: Any) -> FakePipe:
        fake.loaded.append((args, options))
        return fake.pipe

    def doit(
        frames: torch.Tensor, segs: Any, *, observer: Any, **options: Any
    ) -> tuple[torch.Tensor, Any, Any, list[Any]]:
        fake.detailed.append(options | {"segs": segs})
        result = frames.clone()
        observer.begin_run(len(segs[1]), options["steps"])
        for index, seg in enumerate(segs[1]):
            x1, y1, x2, y2 = seg.crop_region
            observer.begin_segment(index, seg.label, (x2 - x1, y2 - y1), (64, 64))
            for step in range(options["steps"]):
                observer.step(index, step + 1, options["steps"])
            observer.stage(index, "sample", 12.5)
            result[:, y1:y2, x1:x2] = 1 - result[:, y1:y2, x1:x2]
            observer.end_segment(index)
        return result, segs, options["basic_pipe"], []

    monkeypatch.setattr(pipe, "load_pipe", load)
    monkeypatch.setattr(detailer.DetailerForEachPipeForAnimateDiff, "doit", staticmethod(doit))
    return fake
