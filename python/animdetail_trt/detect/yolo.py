"""YOLO detectors in ONNX: the layout in which Ultralytics exports YOLOv8, YOLO11 and later, run by onnxruntime.

A file tells its input's size and, in its metadata, its class names and its task. It answers in one of two layouts:

- (1, 4 + classes, n): centre x, centre y, width, height in pixels of the input, then a score for each class; boxes
  overlap, and the best of them is to be kept.
- (1, n, 6), end to end (YOLOv10, YOLO26, any exported with nms=True): x1, y1, x2, y2, score, class; nothing overlaps.

Segmentation models have m mask coefficients behind these, and a second output, prototypes (1, m, mh, mw) over the whole
input: a thing covers its box where coefficients times prototypes are above 0 (YOLACT, Bolya et al., 2019).
onnxruntime comes with the extra ``detect``.
"""

from __future__ import annotations

import ast
import importlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from animdetail_trt.detect.boxes import Detection, survivors, whole_pixels
from animdetail_trt.errors import CheckpointError, InputError, UnavailableError
from animdetail_trt.extras import install_command
from animdetail_trt.segs import CropRegion

Floats = NDArray[np.float64]

# As Ultralytics predicts: the letterbox's grey, its overlap of two boxes of one thing, its most boxes of a picture.
_GREY = 114 / 255
_SAME_THING_IOU = 0.7
_MOST_BOXES = 300
_MOST_SURE = 1.01  # with what float16 rounds
_USUAL_SIDE_PX = 640
_DTYPES = {"tensor(float)": np.float32, "tensor(float16)": np.float16}


class Letterbox(NamedTuple):
    """Where a picture lies in a detector's input: scaled in its proportions, amid grey."""

    width: int
    height: int
    left: int
    top: int


class _Answer(NamedTuple):
    """boxes (n, 4) x1, y1, x2, y2 in pixels of the input, scores (n,), classes (n,), mask coefficients (n, m)."""

    boxes: Floats
    scores: Floats
    classes: NDArray[np.intp]
    coefficients: Floats

    def chosen(self, which: NDArray[Any]) -> _Answer:
        return _Answer(*(values[which] for values in self))


class YoloDetector:
    """Loads a file and runs it once; ``find`` runs it on one picture.

    path: an .onnx file; what it is trained to find is for it to say
    labels: find only these of its classes; None finds all

    Raises CheckpointError for a file that is missing or of another layout, InputError for a label that it does not
    know, UnavailableError where onnxruntime is missing.
    """

    def __init__(self, path: Path, labels: Sequence[str] | None = None) -> None:
        self.path = path
        self._session = _open_session(path)
        facts = self._session.get_modelmeta().custom_metadata_map
        if (task := facts.get("task", "detect")) not in ("detect", "segment"):
            raise CheckpointError(f"{path} is for the task {task!r}. Use a detector: one for detect or segment.")
        self.input_size = _read_input_size(path, self._session.get_inputs(), facts)
        answers = self._run(torch.full((1, 3, *self.input_size[::-1]), _GREY))
        shapes = [answer.shape for answer in answers]
        self._end_to_end, self.names = _read_layout(path, shapes, _read_names(path, facts))
        self.draws_silhouettes = len(shapes) == 2
        if self._end_to_end and not np.isin(answers[0][0, :, 5], range(len(self.names))).all():
            raise _another_layout(path, f"its classes are not those of its {len(self.names)} names")
        self.labels = tuple(self.names) if labels is None else tuple(labels)
        if unknown := [label for label in self.labels if label not in self.names]:
            raise InputError(f"{unknown[0]!r} is no class of {path}. Choose of: {', '.join(self.names)}.")

    def find(self, picture: NDArray[np.uint8], min_confidence: float = 0) -> list[Detection]:
        """What is seen in a uint8 (h, w, 3) RGB picture: 300 at most, best first, in its pixels and inside it."""
        height, width = picture.shape[:2]
        box = fit_letterbox((width, height), self.input_size)
        answer, *masks = self._run(_drawn(picture, box, self.input_size))
        boxes, scores, classes, coefficients = self._kept(answer[0], min_confidence)
        origin, scale = (box.left, box.top) * 2, (box.width / width, box.height / height) * 2
        sides = ((boxes - origin) / scale).clip(0, (width, height) * 2)
        found = []
        for index, (x1, y1, x2, y2) in enumerate(sides.tolist()):
            if x1 < x2 and y1 < y2:
                seen = Detection((x1, y1, x2, y2), float(scores[index]), self.names[classes[index]])
                if self.draws_silhouettes:
                    logits = np.tensordot(coefficients[index], masks[0][0], 1)
                    enlarged = _enlarged(logits, whole_pixels(seen.bbox), box, (width, height), self.input_size)
                    seen = seen._replace(silhouette=enlarged > 0)
                found.append(seen)
        return found

    def _kept(self, answer: Floats, min_confidence: float) -> _Answer:
        """Of an answer without its first axis, what is asked for, best first; what overlaps falls before its class."""
        seen = self._read(answer)
        if (seen.scores > _MOST_SURE).any():
            raise _another_layout(self.path, f"its scores reach {seen.scores.max():g}, and 1 is certain")
        wanted = np.isin(seen.classes, [index for index, name in enumerate(self.names) if name in self.labels])
        usable = wanted & (seen.scores > 0) & (seen.scores >= min_confidence) & np.isfinite(seen.boxes).all(1)
        seen = seen.chosen(usable)
        if self._end_to_end:
            return seen.chosen(np.argsort(-seen.scores, kind="stable")[:_MOST_BOXES])
        apart = seen.classes[:, None] * (seen.boxes.max(initial=0) - seen.boxes.min(initial=0) + 1)
        boxes = np.column_stack([seen.boxes + apart, seen.scores])
        return seen.chosen(survivors(boxes, _SAME_THING_IOU, at_most=_MOST_BOXES))

    def _read(self, answer: Floats) -> _Answer:
        if self._end_to_end:
            return _Answer(answer[:, :4], answer[:, 4], answer[:, 5].astype(np.intp), answer[:, 6:])
        centre, half = answer[:2].T, answer[2:4].T / 2
        of_classes, coefficients = np.split(answer[4:], [len(self.names)])
        boxes = np.concatenate([centre - half, centre + half], 1)
        return _Answer(boxes, of_classes.max(0), of_classes.argmax(0), coefficients.T)

    def _run(self, pixels: torch.Tensor) -> list[Floats]:
        """The outputs for (1, 3, h, w) in 0..1, in float64: suppression moves classes apart, and loses nothing."""
        (only,) = self._session.get_inputs()
        try:
            outputs = self._session.run(None, {only.name: pixels.numpy().astype(_DTYPES[only.type])})
            return [np.asarray(output, np.float64) for output in outputs]
        except Exception as error:  # onnxruntime has its own kinds
            told = f"{self.path} does not run: {_first_line(error)}. {_export_anew(self.path)}"
            raise CheckpointError(told) from error


def fit_letterbox(size: tuple[int, int], into: tuple[int, int]) -> Letterbox:
    """A picture of (width, height) in the middle of a detector's input; the odd pixel of grey is right and below."""
    scale = min(into[0] / size[0], into[1] / size[1])
    width, height = (max(round(side * scale), 1) for side in size)
    return Letterbox(width, height, (into[0] - width) // 2, (into[1] - height) // 2)


def _drawn(picture: NDArray[np.uint8], box: Letterbox, size: tuple[int, int]) -> torch.Tensor:
    """float32 (1, 3, h, w) in 0..1; linear without a filter, which is what the detectors were trained on."""
    pixels = torch.from_numpy(np.array(picture)).permute(2, 0, 1)[None] / 255
    scaled = torch.nn.functional.interpolate(pixels, (box.height, box.width), mode="bilinear", align_corners=False)
    drawn = torch.full((1, 3, size[1], size[0]), _GREY)
    drawn[:, :, box.top : box.top + box.height, box.left : box.left + box.width] = scaled
    return drawn


def _enlarged(
    logits: Floats, region: CropRegion, box: Letterbox, size: tuple[int, int], input_size: tuple[int, int]
) -> Floats:
    """What lies under a region of the picture, (h, w), of a grid (mh, mw) over the whole input; linear between."""
    columns, rows = np.arange(region[0], region[2]) + 0.5, np.arange(region[1], region[3]) + 0.5
    x = (box.left + columns * box.width / size[0]) / input_size[0]  # 0..1 of the input
    y = (box.top + rows * box.height / size[1]) / input_size[1]
    grid = torch.meshgrid(torch.from_numpy(2 * y - 1), torch.from_numpy(2 * x - 1), indexing="ij")
    enlarged: Floats = torch.nn.functional.grid_sample(
        torch.from_numpy(logits)[None, None], torch.stack(grid[::-1], -1)[None], padding_mode="border",
        align_corners=False,
    )[0, 0].numpy()  # fmt: skip
    return enlarged


def _open_session(path: Path) -> Any:
    if not path.is_file():
        raise CheckpointError(f"{path} is no file. Give the path of a detector in ONNX.")
    with path.open("rb") as file:
        head = file.read(2)
    if path.suffix.lower() in (".pt", ".pth") or head == b"PK" or head[:1] == b"\x80":
        told = f"{path} is a pickle or a zip of one, as PyTorch's files are, and reading one can run code"
        raise CheckpointError(f"{told}. {_export_anew(path)}")
    onnxruntime = _import_onnxruntime()
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    options.log_severity_level = 4  # what is wrong is raised
    try:
        return onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    except Exception as error:  # onnxruntime has its own kinds
        raise CheckpointError(f"{path} cannot be read as ONNX: {_first_line(error)}. {_export_anew(path)}") from error


def _import_onnxruntime() -> Any:
    try:
        return importlib.import_module("onnxruntime")
    except (ImportError, OSError) as error:  # OSError: a library of it that does not load
        raise UnavailableError(
            f"cannot run a detector: onnxruntime is not installed ({error}). Run: {install_command('detect')}"
        ) from error


def _read_input_size(path: Path, inputs: Sequence[Any], facts: Mapping[str, str]) -> tuple[int, int]:
    """(width, height): of the input, of the metadata where that is dynamic, 640x640 where nothing says."""
    if len(inputs) != 1 or len(inputs[0].shape) != 4 or inputs[0].type not in _DTYPES:
        told = " and ".join(f"{one.type} {one.shape}" for one in inputs)
        raise _another_layout(path, f"its input is {told or 'missing'}")
    shape = inputs[0].shape
    if isinstance(shape[1], int) and shape[1] != 3:
        raise CheckpointError(f"{path} looks at pictures of {shape[1]} channels. Use a detector for RGB.")
    if isinstance(shape[0], int) and shape[0] != 1:
        raise CheckpointError(f"{path} looks at {shape[0]} pictures at once. {_export_anew(path)} batch=1")
    if isinstance(shape[2], int) and isinstance(shape[3], int):
        return shape[3], shape[2]
    sides = _literal(facts.get("imgsz", ""))
    if isinstance(sides, list) and len(sides) == 2 and all(type(side) is int and 32 <= side <= 8192 for side in sides):
        return sides[1], sides[0]
    return _USUAL_SIDE_PX, _USUAL_SIDE_PX


def _read_names(path: Path, facts: Mapping[str, str]) -> list[str] | None:
    """The class names in their order; None where the file has none."""
    if "names" not in facts:
        return None
    told = _literal(facts["names"])
    names = dict(enumerate(told)) if isinstance(told, list) else told
    if not isinstance(names, dict) or not names or set(names) != set(range(len(names))):
        told = f"{path} has no list of class names in its metadata, but {facts['names'][:80]!r}"
        raise CheckpointError(f"{told}. {_export_anew(path)}")
    return [str(names[index]) for index in range(len(names))]


def _read_layout(path: Path, shapes: Sequence[tuple[int, ...]], names: list[str] | None) -> tuple[bool, list[str]]:
    """Whether it is the end-to-end layout, and the class names."""
    masks = shapes[1][1] if len(shapes) == 2 and len(shapes[1]) == 4 else 0
    told = f"it answers {' and '.join(str(shape) for shape in shapes)}"
    if len(shapes) != (2 if masks else 1) or len(shapes[0]) != 3 or shapes[0][0] != 1:
        raise _another_layout(path, told)
    _, rows, columns = shapes[0]
    if columns == 6 + masks:
        if names is None:
            raise CheckpointError(f"{path} has no class names in its metadata. {_export_anew(path)}")
        return True, names
    if names is None and rows < columns:
        names = [f"class{index}" for index in range(rows - 4 - masks)]
    if not names or rows != 4 + len(names) + masks:
        raise _another_layout(path, told + (f" for {len(names)} classes" if names else ""))
    return False, names


def _literal(text: str) -> Any:
    """The Python literal of a metadata property; None where it is none. Nothing in it is run."""
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):
        return None


def _another_layout(path: Path, told: str) -> CheckpointError:
    return CheckpointError(f"{path} is no detector of the layout of YOLOv8 and later: {told}. {_export_anew(path)}")


def _export_anew(path: Path) -> str:
    return f"Export it with Ultralytics: yolo export model={path.stem}.pt format=onnx"


def _first_line(error: Exception) -> str:
    return str(error).strip().partition("\n")[0][:200].rstrip(".")
