"""What the reference's VAE was given, from the frames that the reference was given."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors import safe_open

from animdetail_trt import ops

NODE = Path(__file__).parents[1] / "golden" / "node"


def cases_with_pixels() -> list[Path]:
    def has_pixels(path: Path) -> bool:
        with safe_open(path, "pt") as file:
            return "tap.encode.pixels.0" in file.keys()  # noqa: SIM118

    return [path for path in sorted(NODE.glob("*.safetensors")) if has_pixels(path)]


@pytest.mark.parametrize("path", cases_with_pixels(), ids=lambda path: path.stem)
def test_encoded_pixels_are_identical(path: Path) -> None:
    """The first segment's: later ones see frames that were pasted into."""
    with safe_open(path, "pt") as file:
        seg = json.loads(file.metadata()["case"])["out_segs"][0]
        frames, expected = file.get_tensor("image_frames").float() / 255, file.get_tensor("tap.encode.pixels.0")
    f, height, width, _ = expected.shape
    assert f == len(frames)
    resized = ops.crop_resize(frames, tuple(seg["crop_region"]), (width, height))
    assert torch.equal(resized, expected.float() / 255)


def test_there_are_such_cases() -> None:
    assert len(cases_with_pixels()) >= 20
