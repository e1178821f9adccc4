"""What reference_mode=False repairs: each shown next to what the reference does."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

import animdetail_trt as adt
from animdetail_trt.detailer import detailer as detailer_module
from animdetail_trt.detailer import segment
from animdetail_trt.detailer.canvas import Canvas, HostCanvas
from animdetail_trt.detailer.improvements import REFERENCE, Improvements, round_to_8, scale_region_by_side
from animdetail_trt.detailer.masks import sampling_mask
from animdetail_trt.detailer.plan import SegmentPlan, SizeSettings, plan_segments
from animdetail_trt.detailer.report import Observer
from animdetail_trt.errors import InputError

NONE = {"round_to_8": False, "merge_masks": False, "scale_regions": False, "follow_motion": False, "call_hooks": False}


def only(name: str) -> Improvements:
    return Improvements(**NONE | {name: True})


def seg(region: tuple[int, int, int, int], mask: Any = None, **changes: Any) -> adt.SEG:
    x1, y1, x2, y2 = region
    mask = np.ones((y2 - y1, x2 - x1), np.float32) if mask is None else mask
    return adt.SEG(None, mask, 1.0, region, region, "face")._replace(**changes)


class PixelVae:
    """Keeps pixels as they are: what comes back moved was moved by the resizes and the cut around the VAE."""

    dtype = torch.float32

    def frames_per_call(self, width: int, height: int) -> int:
        return 8

    def encode(self, pixels: Tensor) -> Tensor:
        return pixels.clone()

    def decode(self, latents: Tensor) -> Tensor:
        return latents


def checkerboard(side: int, square: int = 6) -> Tensor:
    """(1, side, side, 3)."""
    i = torch.arange(side) // square
    return ((i[:, None] + i) % 2).float()[None, :, :, None].expand(-1, -1, -1, 3)


def edges(row: Tensor) -> np.ndarray:
    """Where a row (w,) crosses 0.5, in pixels."""
    values = row.double().numpy()
    at = np.flatnonzero((values[:-1] < 0.5) != (values[1:] < 0.5))
    return at + (0.5 - values[at]) / (values[at + 1] - values[at])


@pytest.mark.parametrize(("guide_size", "zoom", "shift"), [(62, 62 / 56, 0.0), (61, 61 / 56, -0.5 * 48 / 56)])
def test_sides_of_8_move_nothing(monkeypatch: pytest.MonkeyPatch, guide_size: int, zoom: float, shift: float) -> None:
    """A checkerboard of 48 pixels, through a VAE and a sampler that change nothing.

    The reference enlarges to 62, cuts 3 off each side and stretches 56 back to 48: its squares grow by 11 %. Of 61 it
    cuts 2 and 3, so they also move by half an enlarged pixel.
    """
    monkeypatch.setattr(segment, "_sample", lambda latent, *_: latent)
    monkeypatch.setattr(segment, "_for_segment", lambda painter, *_: painter)
    board = checkerboard(48)
    found = {}
    for improvements in (REFERENCE, only("round_to_8")):
        sizes = SizeSettings(guide_size, True, 512)
        [plan] = plan_segments(((48, 48), [seg((0, 0, 48, 48))]), (48, 48), 1, sizes, improvements)
        painter = segment.Painter(None, PixelVae(), [], [], None, 0, improvements=improvements)  # type: ignore[arg-type]
        patch = segment.detail_segment(HostCanvas(board), plan, painter, 0, Observer())
        found[improvements] = edges(patch[0, 3, :, 0])
    before = edges(board[0, 3, :, 0])
    assert found[only("round_to_8")] == pytest.approx(before, abs=0.1)  # LANCZOS rounds an edge a little
    middle = before[1:-1]
    expected = 23.5 + (middle - 23.5) * zoom - shift
    nearest = [found[REFERENCE][np.abs(found[REFERENCE] - edge).argmin()] for edge in expected]
    assert nearest == pytest.approx(expected, abs=0.15)
    assert np.abs(expected - middle).max() > 1.2


def test_rounding_to_8() -> None:
    assert round_to_8((614, 612), 1024) == (616, 616)
    assert round_to_8((611, 5), 1024) == (608, 8)
    assert round_to_8((1023, 700), 1023) == (1016, 704)  # rounding lifts no side above max_size
    assert round_to_8((1100, 1104), 1024) == (1096, 1104)  # not enlarged, and larger before: it does not grow


@pytest.mark.parametrize("hook_size", [None, (70, 83)])
def test_the_sampler_gets_sides_of_8(pipe: adt.BasicPipe, hook_size: tuple[int, int] | None) -> None:
    """Also where a hook asks for others."""
    sizes = []

    class Sizes(Observer):
        def begin_segment(self, index: int, label: str, crop_size: Any, work_size: tuple[int, int]) -> None:
            sizes.append(work_size)

    class Other:
        def touch_scaled_size(self, width: int, height: int) -> tuple[int, int]:
            return hook_size or (width, height)

    adt.DetailerForEachPipeForAnimateDiff.doit(
        torch.zeros(1, 32, 32, 3), ((32, 32), [seg((0, 0, 30, 21))]), guide_size=43, steps=1, basic_pipe=pipe,
        detailer_hook=Other(), reference_mode=False, observer=Sizes(),
    )  # fmt: skip
    assert sizes == [(64, 40) if hook_size is None else (72, 80)]


def test_the_first_of_several_masks_counts() -> None:
    """Two masks for four frames: a segment that is at the left in one and at the right in the other."""
    masks = np.zeros((2, 16, 16), np.float32)
    masks[0, :, :8] = 1
    masks[1, :, 8:] = 1
    [plan] = plan_segments(((16, 16), [seg((0, 0, 16, 16), masks)]), (16, 16), 4, SizeSettings(16, True, 16))
    lost = sampling_mask(plan, 4, 0, REFERENCE)
    assert lost[0].mean(0).tolist() == [0] * 8 + [1] * 8
    merged = sampling_mask(plan, 4, 0, only("merge_masks"))
    assert merged[0].mean(0).tolist() == [1] * 16


@pytest.fixture
def white(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every segment is painted white."""

    def paint(canvas: Canvas, plan: SegmentPlan, *rest: Any) -> Tensor:
        patch = torch.ones(canvas.shape[0], plan.crop_size[1], plan.crop_size[0], 3)
        rest[-1](slice(None), patch, patch)
        return patch

    monkeypatch.setattr(detailer_module, "detail_segment", paint)


@pytest.mark.usefixtures("white")
def test_segs_of_another_shape_land_where_they_should(pipe: adt.BasicPipe) -> None:
    """SEGS made for 64x24 pixels (width, height), frames of 64x48: x stays, y doubles. In the reference x2 doubles too,
    y1 stays, and the header with it."""
    segs = (24, 64), [seg((8, 6, 24, 18), bbox=(10, 8, 22, 17))]
    landed = {}
    for reference_mode in (True, False):
        image, (header, [out]), *_ = adt.DetailerForEachPipeForAnimateDiff.doit(
            torch.zeros(1, 48, 64, 3), segs, guide_size=16, steps=1, feather=0, basic_pipe=pipe,
            reference_mode=reference_mode,
        )  # fmt: skip
        rows, columns = torch.nonzero(image[0, :, :, 0], as_tuple=True)
        box = int(columns.min()), int(rows.min()), int(columns.max()) + 1, int(rows.max()) + 1
        landed[reference_mode] = box, out.crop_region, out.bbox, header
    assert landed[True] == ((8, 6, 48, 36), (8, 6, 48, 36), (10, 8, 44, 34), (24, 64))
    assert landed[False] == ((8, 12, 24, 36), (8, 12, 24, 36), (10, 16, 22, 34), (48, 64))


def test_regions_scale_by_the_side_they_lie_on() -> None:
    assert scale_region_by_side((10, 20, 30, 41), (50, 100), (100, 150)) == (15, 40, 45, 82)
    assert scale_region_by_side((1, 1, 2, 2), (3, 3), (100, 100)) == (33, 33, 67, 67)  # to the nearest pixel


@pytest.mark.usefixtures("white")
def test_segs_paste_scales_too(pipe: adt.BasicPipe) -> None:
    segs = (24, 64), [seg((8, 6, 24, 18), cropped_image=np.ones((1, 12, 16, 3), np.float32))]
    frames = torch.zeros(1, 48, 64, 3)
    (image,) = adt.SEGSPaste.doit(frames, segs, 0, reference_mode=False)
    assert image[0, 12:36, 8:24].min() == 1
    assert image.sum() == 24 * 16 * 3
    (published,) = adt.SEGSPaste.doit(frames, segs, 0)
    assert not torch.equal(published, image)


def detail(pipe: adt.BasicPipe, **changes: Any) -> Tensor:
    frames = torch.rand(3, 40, 48, 3, generator=torch.Generator().manual_seed(2))
    masks = np.zeros((2, 30, 26), np.float32)
    masks[0, 4:20, 4:20] = 1
    masks[1, 10:26, 8:22] = 1
    segs = (20, 24), [seg((3, 1, 16, 16), masks)]
    arguments = {"guide_size": 20, "max_size": 44, "steps": 1, "feather": 2, "noise_mask_feather": 2}
    image, *_ = adt.DetailerForEachPipeForAnimateDiff.doit(frames, segs, **arguments, basic_pipe=pipe, **changes)
    return image


def test_without_any_improvement_the_numbers_are_the_references(pipe: adt.BasicPipe) -> None:
    reference = detail(pipe)
    assert torch.equal(detail(pipe, reference_mode=False, improvements=Improvements(**NONE)), reference)
    for name in ("round_to_8", "merge_masks"):
        assert not torch.equal(detail(pipe, reference_mode=False, improvements=only(name)), reference), name


def test_asking_in_reference_mode_is_an_error(pipe: adt.BasicPipe) -> None:
    with pytest.raises(InputError, match="improvements are made with reference_mode=False only"):
        detail(pipe, improvements=Improvements())
    with pytest.raises(InputError, match="improvements must be Improvements"):
        detail(pipe, reference_mode=False, improvements=["round_to_8"])
