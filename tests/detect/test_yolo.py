"""Detectors of the Ultralytics layout, against graphs that find coloured cells."""

from __future__ import annotations

import re
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from animdetail_trt.detect.objects import detect_objects
from animdetail_trt.detect.yolo import Letterbox, YoloDetector, fit_letterbox
from animdetail_trt.errors import AnimDetailError, CheckpointError, InputError, UnavailableError
from animdetail_trt.extras import install_command
from detectors import COLOURS, write_detector
from needs import needs_onnx

pytestmark = needs_onnx

RED, GREEN, BLUE = np.eye(3, dtype=np.uint8) * 255
Box = tuple[int, int, int, int]


def picture(width: int, height: int, *painted: tuple[Box, np.ndarray]) -> np.ndarray:
    drawn = np.full((height, width, 3), 90, np.uint8)
    for (x1, y1, x2, y2), colour in painted:
        drawn[y1:y2, x1:x2] = colour
    return drawn


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "shapes.onnx"


LAYOUTS: list[dict[str, Any]] = [
    {},
    {"end_to_end": True},
    {"masks": 32},
    {"masks": 32, "end_to_end": True},
    {"half": True},
    {"open_input": True},
]


@pytest.mark.parametrize("layout", LAYOUTS, ids=lambda layout: "-".join(layout) or "boxes")
@pytest.mark.parametrize(
    ("size", "square", "cell"),
    [
        ((128, 64), (32, 16, 48, 32), 8),  # half the size, grey above and below
        ((64, 128), (16, 96, 32, 112), 8),  # grey left and right
        ((64, 64), (56, 0, 64, 8), 8),
        ((32, 24), (8, 4, 16, 12), 16),  # enlarged, which blurs
    ],
)
def test_a_square_is_found_where_it_is(
    path: Path, layout: dict[str, Any], size: tuple[int, int], square: Box, cell: int
) -> None:
    detector = YoloDetector(write_detector(path, cell=cell, **layout))
    assert detector.input_size == (64, 64)
    for colour, label in ((RED, "red"), (GREEN, "green"), (BLUE, "blue")):
        [seen] = [seen for seen in detector.find(picture(*size, (square, colour))) if seen.confidence > 0.5]
        assert seen.label == label
        assert seen.bbox == pytest.approx(square)
        assert seen.confidence == pytest.approx(1, abs=0.001 if cell == 8 else 0.1)


def test_an_input_need_not_be_square(path: Path) -> None:
    detector = YoloDetector(write_detector(path, size=(96, 32)))
    assert detector.input_size == (96, 32)
    [seen] = [seen for seen in detector.find(picture(192, 64, ((160, 16, 176, 32), BLUE))) if seen.confidence > 0.5]
    assert (seen.label, seen.bbox) == ("blue", (160, 16, 176, 32))


def test_the_letterbox_is_ultralytics() -> None:
    assert fit_letterbox((1920, 1080), (640, 640)) == Letterbox(640, 360, 0, 140)
    assert fit_letterbox((176, 144), (320, 320)) == Letterbox(320, 262, 0, 29)
    assert fit_letterbox((333, 777), (640, 640)) == Letterbox(274, 640, 183, 0)
    assert fit_letterbox((100, 99), (64, 64)) == Letterbox(64, 63, 0, 0)  # the odd row of grey is the last
    assert fit_letterbox((9000, 1), (640, 640)) == Letterbox(640, 1, 0, 319)


def test_each_side_is_scaled_by_what_it_was_rounded_to(path: Path) -> None:
    """96x5 lies in 64x64 as 64x3, 30 rows below its top: there the cells end at row 32."""
    found = YoloDetector(write_detector(path, cell=4)).find(picture(96, 5, ((0, 0, 96, 5), RED)))
    assert min(seen.bbox for seen in found) == pytest.approx((0, 0, 6, 2 * 5 / 3))


def test_the_grey_around_is_the_trained_one(path: Path) -> None:
    """A black picture scores nothing; boxes of the grey beside it reach into it."""
    write_detector(path, boxes=[(3, 1)], weights=[[0.5, 0.5, 0.5]], facts={"names": "['bright']"})
    found = YoloDetector(path).find(np.zeros((32, 64, 3), np.uint8))
    assert len(found) == 16
    assert [seen.confidence for seen in found] == pytest.approx([1.5 * 114 / 255] * 16)


def test_of_overlapping_boxes_the_best_remains(path: Path) -> None:
    """Two boxes a cell, of 8 and 9 pixels (IoU 0.79) or of 8 and 10 (0.64)."""
    square = (24, 24, 32, 32)
    for side, left in ((9, 1), (10, 2)):
        write_detector(path, boxes=[(side / 8, 0.9), (1, 1)])
        found = YoloDetector(path).find(picture(64, 64, (square, GREEN)))
        assert [seen.confidence for seen in found] == pytest.approx([1, 0.9][:left])
        assert found[0].bbox == square


def test_a_box_hides_no_box_of_another_class(path: Path) -> None:
    """Boxes of 48 pixels about two neighbours, IoU 0.71."""
    write_detector(path, boxes=[(6, 1)])
    left, right = (24, 24, 32, 32), (32, 24, 40, 32)
    for colour, labels in ((GREEN, ["green"]), (BLUE, ["green", "blue"])):
        found = YoloDetector(path).find(picture(64, 64, (left, GREEN), (right, colour)))
        assert [(seen.label, seen.bbox[2]) for seen in found] == list(zip(labels, (52, 60), strict=False))


@pytest.mark.parametrize("end_to_end", [False, True])
def test_best_first_and_300_at_most(path: Path, end_to_end: bool) -> None:
    write_detector(path, size=(160, 160), end_to_end=end_to_end)
    ramp = picture(160, 160)
    ramp[:, :, 0] = np.linspace(255, 200, 160)
    ramp[:, :, 1:] = 0
    confidences = [seen.confidence for seen in YoloDetector(path).find(ramp)]
    assert len(confidences) == 300
    assert confidences == sorted(confidences, reverse=True)
    assert confidences[0] == pytest.approx(1, abs=0.02)


def test_only_the_labels_asked_for(path: Path) -> None:
    write_detector(path)
    flag = picture(64, 64, ((0, 0, 8, 8), RED), ((16, 0, 24, 8), GREEN), ((32, 0, 40, 8), BLUE))
    assert {seen.label for seen in YoloDetector(path).find(flag)} == {"red", "green", "blue"}
    assert {seen.label for seen in YoloDetector(path, ["blue", "red"]).find(flag)} == {"red", "blue"}
    with pytest.raises(InputError, match=r"'hand' is no class of .*shapes\.onnx. Choose of: red, green, blue\."):
        YoloDetector(path, ["red", "hand"])


def test_boxes_end_at_the_picture(path: Path) -> None:
    write_detector(path, boxes=[(3, 1)])
    assert YoloDetector(path).find(picture(64, 64, ((0, 56, 8, 64), RED)))[0].bbox == (0, 48, 16, 64)


def test_what_no_score_and_no_number_belongs_to_is_dropped(path: Path) -> None:
    write_detector(path, boxes=[(1, 1), (float("nan"), 1)])
    two = (8, 8, 16, 16), (40, 40, 48, 48)
    found = YoloDetector(path).find(picture(64, 64, (two[0], RED), (two[1], GREEN)))
    assert sorted(seen.bbox for seen in found) == list(two)
    assert YoloDetector(path).find(picture(64, 64)) == []


@pytest.mark.parametrize(
    ("imgsz", "size"),
    [("[96, 128]", (128, 96)), (None, (640, 640)), ("nonsense", (640, 640)), ("[0, 64]", (640, 640))],
)
def test_the_size_of_an_open_input(path: Path, imgsz: str | None, size: tuple[int, int]) -> None:
    facts = {"names": repr(COLOURS)} | ({"imgsz": imgsz} if imgsz else {})
    write_detector(path, size=size, open_input=True, cell=32, facts=facts)
    assert YoloDetector(path).input_size == size


def test_a_graph_that_does_not_run(path: Path) -> None:
    write_detector(path, size=(96, 96), open_input=True, facts={"names": repr(COLOURS), "imgsz": "[64, 64]"})
    with pytest.raises(CheckpointError, match=r"shapes\.onnx does not run: .*Reshape.* Export it with Ultralytics"):
        YoloDetector(path)


def test_classes_without_names(path: Path) -> None:
    write_detector(path, facts={})
    assert YoloDetector(path).names == ["class0", "class1", "class2"]
    write_detector(path, facts={}, masks=32)
    assert YoloDetector(path).names == ["class0", "class1", "class2"]
    write_detector(path, facts={}, end_to_end=True)
    with pytest.raises(CheckpointError, match="has no class names in its metadata. Export it"):
        YoloDetector(path)


def test_names_are_read_and_never_run(path: Path, tmp_path: Path) -> None:
    ran = tmp_path / "ran"
    for names in (f"open({str(ran)!r}, 'w')", "{0: 'red'", "{1: 'red', 2: 'green', 3: 'blue'}", "3", "[]", "(" * 9999):
        write_detector(path, facts={"names": names})
        with pytest.raises(CheckpointError, match="no list of class names in its metadata, but "):
            YoloDetector(path)
    assert not ran.exists()


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"facts": {"task": "pose"}}, "is for the task 'pose'. Use a detector"),
        ({"facts": {"names": "['a', 'b']"}}, r"it answers \(1, 7, 64\) for 2 classes. Export it"),
        ({"transposed": True}, r"it answers \(1, 64, 7\) for 3 classes"),
        ({"transposed": True, "facts": {}}, r"it answers \(1, 64, 7\)\. Export it"),
        ({"weights": np.eye(3)[:2], "transposed": True, "facts": {"names": "['a']"}}, "its classes are not those"),
        ({"batch": 2}, "2 pictures at once"),
        ({"channels": 1, "weights": np.ones((3, 1))}, "pictures of 1 channels. Use a detector for RGB"),
    ],
)  # fmt: skip
def test_other_layouts_are_refused(path: Path, changes: dict[str, Any], words: str) -> None:
    write_detector(path, **changes)
    with pytest.raises(CheckpointError, match=words):
        YoloDetector(path)


def test_other_graphs_are_refused(path: Path) -> None:
    import onnx
    from onnx import TensorProto, helper

    def value(name: str, kind: int, shape: list[int]) -> Any:
        return helper.make_tensor_value_info(name, kind, shape)

    for kind, shape, inputs in (
        (TensorProto.FLOAT, [1, 4], 1),
        (TensorProto.UINT8, [1, 3, 8, 8], 1),
        (TensorProto.FLOAT, [1, 3, 8, 8], 2),
        (TensorProto.FLOAT, [1, 3, 8, 8], 1),
    ):
        given = [value(f"in{index}", kind, shape) for index in range(inputs)]
        graph = helper.make_graph(
            [helper.make_node("Identity", ["in0"], ["out"])], "g", given, [value("out", kind, shape)]
        )
        onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), str(path))
        with pytest.raises(CheckpointError, match="is no detector of the layout of YOLOv8 and later: it"):
            YoloDetector(path)


def test_what_is_no_onnx_file(tmp_path: Path) -> None:
    export = re.escape("Export it with Ultralytics: yolo export model=hand.pt format=onnx")
    for name, content, words in (
        ("hand.pt", b"PK\x03\x04", f"is a pickle or a zip of one, .* {export}"),
        ("hand.onnx", b"PK\x03\x04", f"is a pickle or a zip of one, .* {export}"),
        ("hand.onnx", b"", f"cannot be read as ONNX: .*{export}"),
        ("hand.onnx", b"no model" * 99, f"cannot be read as ONNX: .*{export}"),
    ):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(CheckpointError, match=words) as raised:
            YoloDetector(tmp_path / name)
        assert len(str(raised.value).splitlines()) == 1
    for missing in (tmp_path / "none.onnx", tmp_path):
        with pytest.raises(CheckpointError, match="is no file. Give the path of a detector in ONNX"):
            YoloDetector(missing)


def test_a_cut_file_is_refused(path: Path) -> None:
    whole = write_detector(path).read_bytes()
    for length in range(0, len(whole), 97):
        path.write_bytes(whole[:length])
        with pytest.raises(AnimDetailError):
            YoloDetector(path)


def test_a_missing_onnxruntime_is_named_with_the_command(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_detector(path)
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(UnavailableError, match=r"onnxruntime .*Run: " + re.escape(install_command("detect"))):
        YoloDetector(path)


@pytest.mark.parametrize("layout", [{}, {"end_to_end": True}, {"half": True}], ids=["usual", "end to end", "half"])
@pytest.mark.parametrize(("size", "enlarged"), [((128, 64), 2), ((64, 128), 2), ((32, 32), 0.5)])
def test_a_segmentation_model_draws_silhouettes(
    path: Path, layout: dict[str, Any], size: tuple[int, int], enlarged: float
) -> None:
    """A cross of three cells by three, in a box of three cells about its middle."""
    detector = YoloDetector(write_detector(path, boxes=[(3, 1)], masks=32, **layout))
    assert detector.draws_silhouettes
    cell = int(8 * enlarged)
    x, y = cell, 0
    down, across = (x + cell, y, x + 2 * cell, y + 3 * cell), (x, y + cell, x + 3 * cell, y + 2 * cell)
    drawn = picture(*size, (down, RED), (across, RED))
    [whole] = [seen for seen in detector.find(drawn, 0.6) if seen.bbox == (x, y, x + 3 * cell, y + 3 * cell)]
    assert whole.silhouette is not None
    red = drawn[y : y + 3 * cell, x : x + 3 * cell, 0] == 255
    right = whole.silhouette == red
    assert right[cell // 2].all()  # the arm's edges; between its prototypes' middles a corner is round
    assert right[:, cell // 2].all()
    assert right[cell + cell // 2].all()
    assert right.mean() > 0.92


def test_boxes_alone_have_no_silhouette(path: Path) -> None:
    detector = YoloDetector(write_detector(path))
    assert not detector.draws_silhouettes
    assert detector.find(picture(64, 64, ((8, 8, 16, 16), RED)))[0].silhouette is None


def test_only_what_is_sure_enough(path: Path) -> None:
    detector = YoloDetector(write_detector(path))
    two = picture(64, 64, ((8, 8, 16, 16), RED), ((40, 40, 48, 48), GREEN // 2))
    assert [seen.label for seen in detector.find(two)] == ["red", "green"]
    assert [seen.label for seen in detector.find(two, 0.6)] == ["red"]


def test_a_clip_becomes_segs(path: Path) -> None:
    """A green square goes right by a pixel a frame, a red one stays."""
    frames = np.stack(
        [picture(64, 64, ((8, 40, 16, 48), RED), ((16 + step, 8, 32 + step, 24), GREEN)) for step in range(8)]
    )
    detector = YoloDetector(write_detector(path, cell=8, boxes=[(1.0, 1.0)]))
    (height, width), segs = detect_objects(torch.from_numpy(frames).float() / 255, detector, margin=0)
    assert (height, width) == (64, 64)
    assert {seg.label for seg in segs} == {"red", "green"}
    [still] = [seg for seg in segs if seg.label == "red"]
    assert still.bbox == (8, 40, 16, 48)
    assert still.confidence == pytest.approx(1, abs=0.01)


@pytest.mark.parametrize("end_to_end", [False, True])
def test_scores_beyond_certainty_are_refused(path: Path, end_to_end: bool) -> None:
    """They would be written to reports and SEGS files, which read none such."""
    detector = YoloDetector(write_detector(path, boxes=[(1.0, 40.0)], end_to_end=end_to_end))
    with pytest.raises(CheckpointError, match="its scores reach 40, and 1 is certain"):
        detector.find(np.full((64, 64, 3), (255, 0, 0), np.uint8))
