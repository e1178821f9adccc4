"""Pillow changed the order of its passes; whichever is asked for, all resizes of a run follow it."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

import animdetail_trt as adt
from animdetail_trt.detailer.canvas import HostCanvas
from animdetail_trt.detailer.improvements import Improvements
from animdetail_trt.detailer.segment import encode_crop
from animdetail_trt.errors import InputError

ORDERS = ("pillow13", "horizontal_first")
WIDTH, HEIGHT = 32, 120
REGION = (8, 4, 8 + WIDTH, 4 + HEIGHT)


def extremes(*shape: int) -> Tensor:
    """0 and 1 alone make both passes clip, where their order shows most."""
    return torch.randint(2, shape, generator=torch.Generator().manual_seed(5)).float()


def by_pillow(pixels: Tensor, order: str) -> Tensor:
    """(f, h, w, 3) -> (f, 120, 32, 3), shrunk. A resize along one side is one pass in every Pillow."""
    (_, height, width, _) = pixels.shape
    between = (WIDTH, height) if order == "horizontal_first" else (width, HEIGHT)
    resized = []
    for frame in (pixels * 255).byte().numpy():
        image = Image.fromarray(frame)
        for size in (between, (WIDTH, HEIGHT)):
            image = image.resize(size, Image.Resampling.LANCZOS)
        resized.append(np.asarray(image, np.float32) / np.float32(255))
    return torch.from_numpy(np.stack(resized))


class PostDecode:
    def post_decode(self, pixels: Tensor) -> Tensor:
        return pixels


def _segs(**changes: Any) -> adt.SEGS:
    seg = adt.SEG(None, np.ones((HEIGHT, WIDTH), np.float32), 1.0, REGION, REGION, "tall")
    return (128, 48), [seg._replace(**changes)]


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("node", ["detailer", "segs detailer", "hooked detailer"])
def test_a_tall_crop_is_pillows(pipe: adt.BasicPipe, monkeypatch: pytest.MonkeyPatch, node: str, order: Any) -> None:
    decoded = extremes(2, 3, 240, 64)
    monkeypatch.setattr(pipe.vae, "decode", lambda latents: 2 * decoded - 1)
    frames = torch.rand(2, 128, 48, 3, generator=torch.Generator().manual_seed(1))
    options: dict[str, Any] = {"guide_size": 64, "guide_size_for": False, "steps": 1, "basic_pipe": pipe}
    if node == "hooked detailer":
        improvements = Improvements(False, False, False, False, True)
        options |= {"detailer_hook": PostDecode(), "reference_mode": False, "improvements": improvements}
    expected = by_pillow(decoded.movedim(1, -1), order)
    if node == "segs detailer":
        (_, [seg]), _ = adt.SEGSDetailerForAnimateDiff.doit(frames, _segs(), **options, pass_order=order)
    else:
        image, (_, [seg]), *_ = adt.DetailerForEachPipeForAnimateDiff.doit(
            frames, _segs(), **options, feather=0, pass_order=order
        )
        x1, y1, x2, y2 = REGION
        torch.testing.assert_close(image[:, y1:y2, x1:x2], expected, rtol=0, atol=1e-6)
    assert torch.equal(torch.as_tensor(seg.cropped_image), expected)
    other = by_pillow(decoded.movedim(1, -1), next(name for name in ORDERS if name != order))
    assert not torch.equal(expected, other)


@pytest.mark.parametrize("order", ORDERS)
def test_a_crop_of_segs_of_another_size_is_pillows(order: Any) -> None:
    crop = extremes(1, 2 * HEIGHT, 2 * WIDTH, 3)
    seg = adt.SEG(crop.numpy(), np.ones((240, 64), np.float32), 1.0, (16, 8, 80, 248), (16, 8, 80, 248), "tall")
    frames = torch.zeros(1, 128, 48, 3)
    (image,) = adt.SEGSPaste.doit(frames, ((256, 96), [seg]), feather=0, pass_order=order)
    x1, y1, x2, y2 = REGION
    torch.testing.assert_close(image[:, y1:y2, x1:x2], by_pillow(crop, order), rtol=0, atol=1e-6)


@pytest.mark.parametrize("order", ORDERS)
def test_what_the_vae_sees_is_pillows(order: Any) -> None:
    """A crop that is shrunk, as a hook's ``touch_scaled_size`` can ask for."""

    class PixelVae:
        dtype, device = torch.float32, torch.device("cpu")

        def frames_per_call(self, width: int, height: int) -> int:
            return 2

        def encode(self, pixels: Tensor) -> Tensor:
            return pixels.clone()

    frames = extremes(2, 240, 64, 3)
    vae: Any = PixelVae()
    seen = encode_crop(HostCanvas(frames), (0, 0, 64, 240), (WIDTH, HEIGHT), vae, pass_order=order)
    torch.testing.assert_close(seen.movedim(1, -1), 2 * by_pillow(frames, order) - 1, rtol=0, atol=1e-6)


@pytest.mark.parametrize("node", [adt.DetailerForEachPipeForAnimateDiff, adt.SEGSDetailerForAnimateDiff, adt.SEGSPaste])
def test_an_unknown_order_is_named(node: Any) -> None:
    with pytest.raises(InputError, match="'vertical' must be one of pillow13, horizontal_first"):
        node.doit(torch.zeros(1, 128, 48, 3), ((128, 48), []), pass_order="vertical")
