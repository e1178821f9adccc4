"""From what is seen in frames to one segment per thing."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from animdetail_trt.detect.boxes import Detection, whole_pixels
from animdetail_trt.detect.masks import region_mask, soft_mask
from animdetail_trt.detect.objects import detect_objects
from animdetail_trt.detect.tracks import covering_bbox, link_boxes
from animdetail_trt.errors import InputError
from animdetail_trt.segs import SEG


class Script:
    """A detector that says what it is told, picture after picture."""

    def __init__(self, *answers: list[Detection]) -> None:
        self.answers = iter(answers)

    def find(self, picture: Any, min_confidence: float = 0) -> list[Detection]:
        return [seen for seen in next(self.answers) if seen.confidence >= min_confidence]


def face(x: float, y: float, size: float = 20, confidence: float = 0.99) -> Detection:
    return Detection((x, y, x + size, y + size), confidence, "face")


def test_one_region_covers_where_the_face_goes() -> None:
    script = Script(*[[face(40 + step, 30)] for step in range(10)])
    (height, width), [seg] = detect_objects(torch.zeros(10, 120, 160, 3), script)
    assert (height, width) == (120, 160)
    x1, y1, x2, y2 = seg.bbox
    assert (x1, x2) == (36, 73)  # 10 % and 90 % quantiles 40.9 and 68.1, and 15 % of 27.2 on both sides
    assert (y1, y2) == (27, 53)
    left, top, right, bottom = seg.crop_region
    assert (right - left, bottom - top) == (3 * (x2 - x1), 3 * (y2 - y1))
    assert seg.cropped_mask.shape == (bottom - top, right - left)
    assert seg.label == "face"
    assert seg.confidence == pytest.approx(0.99)


def test_a_stray_box_moves_nothing() -> None:
    still = [[face(40, 30)] for _ in range(20)]
    _, [calm] = detect_objects(torch.zeros(20, 120, 160, 3), Script(*still))
    still[7] = [face(50, 38)]
    _, [stray] = detect_objects(torch.zeros(20, 120, 160, 3), Script(*still))
    assert stray.bbox == calm.bbox


def test_faces_are_kept_apart_and_the_largest_comes_first() -> None:
    script = Script(*[[face(10, 10, 20), face(90, 40, 40)] for _ in range(4)])
    _, segs = detect_objects(torch.zeros(4, 120, 160, 3), script)
    assert [seg.bbox[0] > 60 for seg in segs] == [True, False]


def test_seen_too_seldom_or_too_unsure_is_dropped() -> None:
    answers = [[face(40, 30)] for _ in range(10)]
    answers[3] = [face(40, 30), face(120, 90)]
    for answer in answers:
        answer.append(face(80, 80, confidence=0.4))
    _, segs = detect_objects(torch.zeros(10, 120, 160, 3), Script(*answers))
    assert len(segs) == 1


def test_a_face_that_is_missed_in_some_frames_is_one_face() -> None:
    tracks = link_boxes([[face(40, 30)], [], [face(42, 30)], [face(100, 30)], [face(44, 30)]])
    assert [sorted(track) for track in tracks] == [[0, 2, 4], [3]]


def test_things_have_their_labels_name() -> None:
    hand = face(48, 48, confidence=0.6)._replace(label="hand")
    script = Script([hand, hand._replace(confidence=0.4, bbox=(500, 500, 600, 600))])
    _, [seg] = detect_objects(torch.zeros(1, 1080, 1920, 3), script, margin=0, mask="box", crop_factor=2)
    assert (seg.bbox, seg.crop_region, seg.label) == ((48, 48, 68, 68), (38, 38, 78, 78), "hand")
    assert seg.cropped_mask.sum() == 20 * 20


def test_boxes_of_two_labels_are_two_things() -> None:
    """A hand before a face, now one, now the other found first; and a hand where a face was."""
    apart = link_boxes([[face(40, 30)], [face(40, 30)._replace(label="hand")], [face(41, 30)]])
    assert [[seen.label for seen in track.values()] for track in apart] == [["face", "face"], ["hand"]]
    before = face(42, 30)._replace(label="hand")
    samples = [[face(40, 30), before], [before, face(40, 30)]] * 3
    assert [{seen.label for seen in track.values()} for track in link_boxes(samples)] == [{"face"}, {"hand"}]
    _, segs = detect_objects(torch.zeros(6, 120, 160, 3), Script(*samples))
    assert sorted(seg.label for seg in segs) == ["face", "hand"]


def test_no_face_gives_no_segs() -> None:
    assert detect_objects(torch.zeros(2, 60, 80, 3), Script([], [])) == ((60, 80), [])


def test_a_crop_smaller_than_the_face_is_refused() -> None:
    with pytest.raises(InputError, match=r"crop_factor is 0\.5"):
        detect_objects(torch.zeros(1, 60, 80, 3), Script([]), crop_factor=0.5)


def test_bbox_stays_in_the_frame() -> None:
    assert covering_bbox(np.array([(-5.0, -5, 30, 30)]), 0.1, 0.5, (40, 40)) == (0, 0, 40, 40)


def test_masks_lie_on_the_bbox() -> None:
    crop, bbox = (10, 20, 70, 60), (30, 30, 50, 50)
    box = region_mask(bbox, crop, "box")
    assert box.sum() == 20 * 20
    assert box[10:30, 20:40].min() == 1
    oval = region_mask(bbox, crop, "oval")
    assert oval.dtype == torch.float32
    assert oval[20, 30] == 1
    assert ((oval > 0) <= (box > 0)).all()
    assert torch.equal(oval[10:30, 20:40], oval[10:30, 20:40].flip(0, 1))
    assert len(oval.unique()) > 5  # a soft edge


def centres(seg: SEG) -> np.ndarray:
    """(f, 2): x, y of each mask's centre of mass in the frame, NaN where it is 0."""
    left, top, _, _ = seg.crop_region
    masks = seg.cropped_mask.double().numpy()
    y, x = np.mgrid[: masks.shape[1], : masks.shape[2]] + 0.5
    with np.errstate(invalid="ignore"):
        found = [np.array([(mask * x).sum(), (mask * y).sum()]) / mask.sum() for mask in masks]
    return np.array(found) + np.array([left, top])


@pytest.mark.parametrize("shape", ["oval", "box", "silhouette"])
def test_each_frame_has_a_mask_where_the_thing_is(shape: Any) -> None:
    """It goes 3 pixels a frame, is missed in two frames, and its boxes shake."""
    shake = np.random.default_rng(3).uniform(-0.5, 0.5, (30, 2)) * (shape != "silhouette")
    path = np.stack([20 + 3.0 * np.arange(30), np.full(30, 40.0)], 1) + shake
    answers = [[round_thing(x, y)] for x, y in path]
    answers[12:14] = [[]] * 2
    frames = torch.zeros(30, 80, 160, 3)
    _, [seg] = detect_objects(frames, Script(*answers), mask=shape, each_frame=True)
    assert seg.cropped_mask.shape[0] == 30
    assert seg.cropped_mask.amax((1, 2)).min() == 1
    straight = np.stack([20 + 3.0 * np.arange(30), np.full(30, 40.0)], 1)
    assert np.abs(centres(seg) - straight).max() < 0.75
    x1, _, x2, _ = seg.bbox
    assert x1 <= 20 - 10
    assert x2 >= 20 + 3 * 29 + 10
    _, [once] = detect_objects(frames, Script(*answers), mask=shape, sample_count=30)
    assert once.cropped_mask.ndim == 2
    assert once.cropped_mask.sum() > 2 * seg.cropped_mask[0].sum()


def round_thing(x: float, y: float, radius: float = 10) -> Detection:
    """A disc and its box."""
    box = (x - radius, y - radius, x + radius, y + radius)
    left, top, right, bottom = whole_pixels(box)
    across, down = np.arange(left, right) + 0.5 - x, np.arange(top, bottom) + 0.5 - y
    return Detection(box, 0.9, "ball", np.hypot(across, down[:, None]) <= radius)


def test_a_thing_that_is_gone_has_no_mask() -> None:
    """Seen in frames 20 to 40 of 60, and not from 25 to 35: a moment is 8 frames."""
    answers = [[face(40, 30)] if 20 <= index <= 40 else [] for index in range(60)]
    _, [seg] = detect_objects(torch.zeros(60, 80, 120, 3), Script(*answers), each_frame=True)
    there = seg.cropped_mask.amax((1, 2)).numpy() > 0
    assert np.flatnonzero(there).tolist() == list(range(12, 49))
    answers[22:39] = [[]] * 17
    _, [seg] = detect_objects(torch.zeros(60, 80, 120, 3), Script(*answers), each_frame=True, min_presence=0.05)
    there = seg.cropped_mask.amax((1, 2)).numpy() > 0
    assert np.flatnonzero(~there[12:49]).tolist() == [30 - 12]
    assert not there[:12].any()
    assert not there[49:].any()


def test_half_a_second_is_enough_where_the_rest_has_no_mask() -> None:
    """A quarter of 120 frames, then elsewhere; a slip of the detector is not."""
    answers = [[face(20, 30)] * (20 <= index < 50) + [face(90, 30)] * (80 <= index < 92) for index in range(120)]
    answers[70] = [face(60, 70)]
    _, segs = detect_objects(torch.zeros(120, 120, 160, 3), Script(*answers), each_frame=True)
    assert sorted(round(seg.bbox[0] / 10) for seg in segs) == [2, 9]
    assert detect_objects(torch.zeros(120, 120, 160, 3), Script(*answers), sample_count=120)[1] == []


def test_a_clip_of_one_frame() -> None:
    _, [seg] = detect_objects(torch.zeros(1, 80, 120, 3), Script([face(40, 30)]), each_frame=True)
    assert seg.cropped_mask.shape[0] == 1
    _, [once] = detect_objects(torch.zeros(1, 80, 120, 3), Script([face(40, 30)]))
    assert seg.bbox == once.bbox
    assert torch.equal(seg.cropped_mask[0], once.cropped_mask)


def test_a_silhouette_for_all_frames_is_what_is_covered_in_a_tenth_of_them() -> None:
    """A thing that stands, and a slip of the detector in one frame of twenty."""
    still = [[round_thing(40, 40)] for _ in range(20)]
    slip = [*still[:7], [round_thing(48, 40)], *still[8:]]
    drawn = []
    for answers in (still, slip):
        _, [seg] = detect_objects(torch.zeros(20, 80, 80, 3), Script(*answers), margin=0)
        assert set(seg.cropped_mask.unique().tolist()) == {0, 1}
        drawn.append(seg)
    assert drawn[0].cropped_mask.sum() == np.sum(round_thing(40, 40).silhouette)
    assert torch.equal(drawn[0].cropped_mask, drawn[1].cropped_mask)


def test_a_silhouette_over_the_frames_edge_is_cut() -> None:
    corner, beyond = round_thing(4, 6), round_thing(76, 78)
    _, segs = detect_objects(torch.zeros(1, 80, 80, 3), Script([corner, beyond]), margin=0, crop_factor=1)
    for seg, thing in zip(segs, (corner, beyond), strict=True):
        left, top, right, bottom = seg.crop_region
        x, y, *_ = whole_pixels(thing.bbox)
        assert thing.silhouette is not None
        inside = thing.silhouette[top - y : bottom - y, left - x : right - x]
        assert np.array_equal(seg.cropped_mask.numpy(), inside)


def test_a_silhouette_must_be_drawn() -> None:
    with pytest.raises(InputError, match="draws no silhouettes. Use oval or box, or a segmentation model"):
        detect_objects(torch.zeros(1, 80, 80, 3), Script([face(20, 20)]), mask="silhouette")
    _, [oval] = detect_objects(torch.zeros(1, 80, 80, 3), Script([round_thing(40, 40)]), mask="oval")
    _, [same] = detect_objects(torch.zeros(1, 80, 80, 3), Script([round_thing(40, 40)._replace(silhouette=None)]))
    assert torch.equal(oval.cropped_mask, same.cropped_mask)


def test_a_soft_edge_falls_with_the_distance() -> None:
    covered = torch.zeros(40, 60, dtype=torch.bool)
    covered[10:20, 5:25] = True
    mask = soft_mask(covered, 8)
    assert (mask[covered] == 1).all()
    edge = mask[15, 24:34]
    assert (edge.diff() < 0).tolist() == [True] * 8 + [False]
    assert edge[4] == pytest.approx(0.5)  # half of the way
    assert edge[8:].tolist() == [0, 0]
    assert mask[19 + 3, 24 + 4] == edge[5]  # round the corner
    assert torch.equal(soft_mask(covered, 0), covered.float())
    assert soft_mask(torch.zeros_like(covered), 8).sum() == 0


def test_the_caller_is_told_how_many_frames_were_looked_at() -> None:
    told: list[int] = []
    for each_frame in (False, True):
        detect_objects(torch.zeros(30, 8, 8, 3), Script(*[[]] * 30), each_frame=each_frame, looked=told.append)
    assert told == [*range(1, 25), *range(1, 31)]
