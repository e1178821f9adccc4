"""follow_motion: a window of one size that goes with a segment, so that the sampler sees it stand still."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

import animdetail_trt as adt
from animdetail_trt.detailer.follow import find_track
from animdetail_trt.detailer.improvements import REFERENCE, Improvements
from animdetail_trt.detailer.plan import SegmentPlan, SizeSettings, plan_segments
from animdetail_trt.detailer.report import Observer
from animdetail_trt.errors import InputError

FOLLOW = Improvements(False, False, False, True, False)
HEIGHT, WIDTH = 96, 160
RADIUS = 9


def discs(centres: np.ndarray, radius: float = RADIUS, size: tuple[int, int] = (HEIGHT, WIDTH)) -> Tensor:
    """Masks (f, h, w), 1 inside a disc about each (x, y); none where a centre is NaN."""
    y, x = np.mgrid[: size[0], : size[1]] + 0.5
    away = np.hypot(x - centres[:, 0, None, None], y - centres[:, 1, None, None])
    return torch.from_numpy((away <= radius).astype(np.float32))


def straight(count: int = 24, step: float = 4.6) -> np.ndarray:
    frames = np.arange(count)
    return np.stack([24 + step * frames, 40 + 0.5 * frames], axis=1)


def planned(
    masks: Tensor, improvements: Improvements = FOLLOW, crop_factor: float = 2.0, soft_px: int = 3
) -> SegmentPlan:
    (segs,) = adt.MaskToSEGS_for_AnimateDiff.doit(masks, crop_factor=crop_factor, combined=len(masks) == 1)
    assert len(segs[1]) == 1
    sizes = SizeSettings(64, True, 256)
    [plan] = plan_segments(segs, (HEIGHT, WIDTH), len(masks), sizes, improvements, soft_px)
    return plan


def windows_of(plan: SegmentPlan) -> np.ndarray:
    """(f, 4): x1, y1, x2, y2 of the window in frame pixels."""
    assert plan.track is not None
    assert plan.crop_region is not None
    left_top = np.array(plan.track.left_tops) + plan.crop_region[:2]
    return np.concatenate([left_top, left_top + plan.track.size], axis=1)


def test_a_moving_disc_stays_in_the_middle_of_a_steady_window() -> None:
    """Its detector shakes by up to 1.5 pixels; the window does not."""
    path = straight()
    shaken = path + np.random.default_rng(3).uniform(-1.5, 1.5, path.shape)
    windows = windows_of(planned(discs(shaken)))
    middle = (windows[:, :2] + windows[:, 2:]) / 2
    assert np.ptp(windows[:, 2:] - windows[:, :2], axis=0).max() == 0
    assert np.abs(middle - path)[:, 0].max() <= 1.5  # the smoothed shake, and half a pixel of rounding
    bend = np.abs(np.diff(middle[:, 0], 2))
    assert bend.max() <= 1  # that of whole pixels: 4 or 5 of them a frame
    assert np.abs(np.diff(shaken[:, 0], 2)).max() > 2


def test_what_the_sampler_sees_stands_still() -> None:
    """A disc that moves by whole pixels is the same bits in every crop: nothing resamples it."""
    masks = discs(straight(20, step=5)[:, [0, 0]] * [1, 0] + [0, 48])
    plan = planned(masks)
    frames = masks[..., None].expand(-1, -1, -1, 3)
    assert plan.track is not None
    x1, y1, x2, y2 = plan.crop_region or (0, 0, 0, 0)
    crops = plan.track.cut(frames[:, y1:y2, x1:x2])
    assert crops.shape == (20, plan.crop_size[1], plan.crop_size[0], 3)
    assert torch.equal(crops, crops[:1].expand_as(crops))


def test_guide_size_enlarges_the_disc_and_not_its_way() -> None:
    masks = discs(straight())
    followed, static = planned(masks), planned(masks, REFERENCE)
    assert static.track is None
    enlarged = [plan.work_size[0] / plan.crop_size[0] for plan in (followed, static)]
    assert enlarged[0] == pytest.approx(64 / (2 * RADIUS), rel=0.06)  # the rounding of a disc to pixels
    assert enlarged[1] < 0.7 * enlarged[0]
    assert followed.crop_size[0] < static.crop_size[0] / 3
    assert followed.seg.crop_region == static.seg.crop_region


def test_frames_without_the_segment_lie_on_the_line_between() -> None:
    path = straight()
    holes = path.copy()
    holes[[7, 8, 9, 15]] = np.nan
    whole, holed = windows_of(planned(discs(path))), windows_of(planned(discs(holes)))
    assert np.abs(whole - holed).max() <= 1


def test_a_segment_that_stands_still_is_not_followed() -> None:
    """A detector's shake alone moves no window."""
    shake = np.random.default_rng(4).uniform(-1, 1, (24, 2))
    plan = planned(discs(np.array([80.0, 48.0]) + shake))
    assert plan.track is None
    assert plan.crop_size == planned(discs(np.array([80.0, 48.0]) + shake), REFERENCE).crop_size


def test_along_an_axis_without_motion_the_window_is_the_whole_crop_region() -> None:
    plan = planned(discs(straight() * [1, 0] + [0, 48]))
    assert plan.track is not None
    assert plan.track.size[1] == plan.track.ground[1]
    assert {y for _, y in plan.track.left_tops} == {0}


@pytest.mark.parametrize("count", [1, 2, 5])
def test_masks_that_are_not_one_per_frame_are_not_followed(count: int) -> None:
    masks = discs(straight(24))
    seg = adt.SEG(None, masks[:count], 1.0, (0, 0, WIDTH, HEIGHT), (10, 30, 150, 70), "disc")
    [plan] = plan_segments(((HEIGHT, WIDTH), [seg]), (HEIGHT, WIDTH), 24, SizeSettings(64, True, 256), FOLLOW, 3)
    assert plan.track is None


@given(
    walk=st.lists(st.tuples(st.floats(-9, 9), st.floats(-6, 6)), min_size=2, max_size=12),
    radius=st.floats(1, 14),
    soft_px=st.integers(0, 12),
    gaps=st.sets(st.integers(0, 11)),
)
def test_the_window_holds_every_mask_and_its_soft_edge(
    walk: list[tuple[float, float]], radius: float, soft_px: int, gaps: set[int]
) -> None:
    """So a feathered mask is 0 where the window ends, unless the crop_region ends there too."""
    height, width = 48, 64
    centres = np.clip(np.array([32, 24]) + np.cumsum(walk, axis=0), 0, [width, height])
    centres[[gap for gap in gaps if gap < len(centres)]] = np.nan
    masks = discs(centres, radius, (height, width))
    track = find_track(masks, None, soft_px)
    if track is None:
        return
    assert track.ground == (width, height)
    for mask, (x, y) in zip(masks, track.left_tops, strict=True):
        right, bottom = x + track.size[0], y + track.size[1]
        assert 0 <= x < right <= width
        assert 0 <= y < bottom <= height
        rows, columns = np.nonzero(mask.numpy())
        if len(rows):
            assert x <= max(columns.min() - soft_px, 0)
            assert right >= min(columns.max() + 1 + soft_px, width)
            assert y <= max(rows.min() - soft_px, 0)
            assert bottom >= min(rows.max() + 1 + soft_px, height)


def boxed(boxes: Any, mask: Any = None, **changes: Any) -> adt.SEG:
    mask = np.ones((HEIGHT, WIDTH), np.float32) if mask is None else mask
    return adt.SEG(None, mask, 1.0, (0, 0, WIDTH, HEIGHT), boxes, "box")._replace(**changes)


def boxes_about(path: np.ndarray, half: float = 10) -> list[Any]:
    return [(x - half, y - half, x + half, y + half) for x, y in path]


def plan_boxes(boxes: Any, improvements: Improvements = FOLLOW, **changes: Any) -> SegmentPlan:
    segs = (HEIGHT, WIDTH), [boxed(boxes, **changes)]
    return plan_segments(segs, (HEIGHT, WIDTH), 24, SizeSettings(64, True, 256), improvements, 3)[0]


def test_a_box_in_each_frame_is_followed_and_is_the_mask() -> None:
    boxes = boxes_about(straight())
    boxes[10] = None
    plan = plan_boxes(boxes)
    windows = windows_of(plan)
    middle = (windows[:, :2] + windows[:, 2:]) / 2
    assert np.abs(middle - straight())[:, 0].max() <= 1.5
    assert plan.mask.shape == (24, HEIGHT, WIDTH)
    areas = plan.mask.sum((1, 2))
    assert areas[10] == 0
    assert areas[areas > 0] == pytest.approx(400, abs=21)
    x1, y1, x2, y2 = map(round, boxes[3])
    assert plan.mask[3, y1 + 1 : y2 - 1, x1 + 1 : x2 - 1].min() == 1
    assert plan.seg.bbox == (14, 30, 140, 62)
    assert torch.equal(torch.as_tensor(plan.seg.cropped_mask), plan.mask)


def test_boxes_of_a_detector_are_scaled_with_the_segs() -> None:
    half = [None if box is None else tuple(side / 2 for side in box) for box in boxes_about(straight())]
    seg = boxed(np.array(half, np.float32), np.ones((48, 80), np.float32), crop_region=(0, 0, 80, 48))
    [plan] = plan_segments(((48, 80), [seg]), (HEIGHT, WIDTH), 24, SizeSettings(64, True, 256), Improvements(), 3)
    windows = windows_of(plan)
    assert np.abs((windows[:, 0] + windows[:, 2]) / 2 - straight()[:, 0]).max() <= 2


@pytest.mark.parametrize(
    ("boxes", "improvements", "words"),
    [
        (boxes_about(straight(7)), FOLLOW, "segment 0: bbox holds 7 boxes, the clip 24 frames"),
        (boxes_about(straight()), REFERENCE, "a bbox for each frame is read with reference_mode=False only"),
        ([None] * 24, FOLLOW, "bbox must be four numbers"),
        ([(0, 0, 5, np.inf)] * 24, FOLLOW, "bbox must be four numbers"),
        ([(0, 0, 5)] * 24, FOLLOW, "bbox must be four numbers"),
    ],
)
def test_boxes_that_cannot_be_followed(boxes: Any, improvements: Improvements, words: str) -> None:
    with pytest.raises(InputError, match=words):
        plan_boxes(boxes, improvements)


def test_boxes_outside_of_the_mask_are_named() -> None:
    """All outside of the crop, or none over what of it is masked: the sampler would work for nothing."""
    crop = {"mask": np.ones((30, 40), np.float32), "crop_region": (120, 60, 160, 90)}
    words = r"segment 0: none of its 24 boxes, all within \(14, 30, 84, 62\), .* crop_region \(120, 60, 160, 90\)"
    with pytest.raises(InputError, match=words + ".* Mend one of them"):
        plan_boxes(boxes_about(straight(step=2.16)), **crop)
    right = np.zeros((HEIGHT, WIDTH), np.float32)
    right[:, 120:] = 1
    with pytest.raises(InputError, match="Or give a mask for each frame"):
        plan_boxes(boxes_about(straight(step=2.16)), mask=right)
    assert plan_boxes(boxes_about(straight()), **crop).mask.any(), "one of them is enough"
    assert not plan_boxes(boxes_about(straight()), mask=np.zeros((HEIGHT, WIDTH))).mask.any(), "as it was given"


ARGUMENTS: dict[str, Any] = {"guide_size": 32, "max_size": 48, "steps": 1, "noise_mask_feather": 3}


@pytest.fixture(scope="module")
def clip() -> tuple[Tensor, adt.SEGS, Tensor]:
    """Frames, segs of a disc that crosses them, and its masks over the frame."""
    frames = torch.rand(6, 48, 80, 3, generator=torch.Generator().manual_seed(8))
    masks = discs(np.stack([15 + 10.0 * np.arange(6), np.full(6, 24.0)], axis=1), 6, (48, 80))
    (segs,) = adt.MaskToSEGS_for_AnimateDiff.doit(masks, crop_factor=1.5)
    return frames, segs, masks


def test_the_node_paints_the_disc_and_nothing_else(pipe: adt.BasicPipe, clip: Any) -> None:
    frames, segs, masks = clip
    sizes: list[Any] = []

    class Sizes(Observer):
        def begin_segment(self, index: int, label: str, crop_size: Any, work_size: Any) -> None:
            sizes.append((crop_size, work_size))

    image, (_, [seg]), *_ = adt.DetailerForEachPipeForAnimateDiff.doit(
        frames, segs, **ARGUMENTS, feather=0, basic_pipe=pipe, reference_mode=False, observer=Sizes()
    )
    assert torch.equal(image[masks == 0], frames[masks == 0])
    assert (image[masks == 1] != frames[masks == 1]).any(1).float().mean() > 0.9
    [(crop_size, work_size)] = sizes
    x1, y1, x2, y2 = seg.crop_region
    assert crop_size[0] < (x2 - x1) / 2
    assert all(side % 8 == 0 for side in work_size)
    assert seg.cropped_image.shape == (6, y2 - y1, x2 - x1, 3)


def test_detailing_and_pasting_apart_gives_the_same(pipe: adt.BasicPipe, clip: Any) -> None:
    """What follows a segment is told to no one: SEGSPaste takes the crops as they are."""
    frames, segs, _ = clip
    image, *_ = adt.DetailerForEachPipeForAnimateDiff.doit(
        frames, segs, **ARGUMENTS, feather=3, basic_pipe=pipe, reference_mode=False
    )
    detailed, _ = adt.SEGSDetailerForAnimateDiff.doit(frames, segs, **ARGUMENTS, basic_pipe=pipe, reference_mode=False)
    (pasted,) = adt.SEGSPaste.doit(frames, detailed, 3)
    assert torch.equal(pasted, image)
    assert not torch.equal(image, frames)
