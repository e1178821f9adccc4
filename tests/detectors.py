"""Small detectors in ONNX whose answer is the picture: a cell of the input is found where it has the colour sought."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

COLOURS = {0: "red", 1: "green", 2: "blue"}
_OVER_THE_OTHERS = np.full((3, 3), -1.0) + 2 * np.eye(3)
"""A pure colour scores 1 in its class; grey, the letterbox's too, at most 0."""


def write_detector(
    path: Path,
    *,
    size: tuple[int, int] = (64, 64),
    open_input: bool = False,
    cell: int = 8,
    boxes: Sequence[tuple[float, float]] = ((1.0, 1.0),),
    weights: Any = _OVER_THE_OTHERS,
    masks: int = 0,
    end_to_end: bool = False,
    half: bool = False,
    facts: Mapping[str, str] | None = None,
    **changes: Any,
) -> Path:
    """Write a detector of the Ultralytics layout that scores each cell by its mean colour.

    size: width and height of its input; open_input: does not say so
    boxes: of each cell, side / cell and factor of the score
    weights: (classes, 3), score of a class = weights . mean colour, at least 0
    masks: mask coefficients, with prototypes as the second output: a thing covers what is of any of the colours
    facts: its metadata
    changes: batch, channels: of the input; transposed: answers (1, n, values)
    """
    import onnx
    from onnx import TensorProto, helper, numpy_helper

    width, height = size
    rows, columns = height // cell, width // cell
    count = rows * columns * len(boxes)
    constants = {
        "weights": np.asarray(weights, np.float32)[:, :, None, None],
        "factors": np.repeat([factor for _, factor in boxes], rows * columns).astype(np.float32),
        "boxes": _boxes(rows, columns, cell, [side for side, _ in boxes], end_to_end),
        "shape": np.array([1, len(weights), rows * columns]),
        "coefficients": np.repeat(np.eye(1, masks, dtype=np.float32)[..., None], count, axis=2),  # the first is 1
        "half": np.float32(0.5),
        "others": np.full((1, max(masks - 1, 0), height // 4, width // 4), 9, np.float32),
    }
    node = helper.make_node
    nodes = [
        node("Cast", ["images"], ["pixels"], to=TensorProto.FLOAT),
        node("AveragePool", ["pixels"], ["means"], kernel_shape=[cell, cell], strides=[cell, cell]),
        node("Conv", ["means", "weights"], ["over"]),
        node("Relu", ["over"], ["cells"]),
        node("Reshape", ["cells", "shape"], ["flat"]),
        node("Concat", ["flat"] * len(boxes), ["copies"], axis=2),
        node("Mul", ["copies", "factors"], ["scores"]),
    ]
    values = ["boxes", "scores"]
    if end_to_end:
        nodes += [
            node("ReduceMax", ["scores"], ["best"], axes=[1], keepdims=1),
            node("ArgMax", ["scores"], ["index"], axis=1, keepdims=1),
            node("Cast", ["index"], ["class"], to=TensorProto.FLOAT),
        ]
        values = ["boxes", "best", "class"]
    values += ["coefficients"] * bool(masks)
    nodes.append(node("Concat", values, ["channels"], axis=1))
    last = "channels"
    if end_to_end or changes.get("transposed"):
        nodes.append(node("Transpose", ["channels"], ["rows"], perm=[0, 2, 1]))
        last = "rows"
    kind = TensorProto.FLOAT16 if half else TensorProto.FLOAT
    nodes.append(node("Cast", [last], ["output0"], to=kind))
    outputs = [helper.make_tensor_value_info("output0", kind, None)]
    if masks:
        nodes += [
            node("AveragePool", ["pixels"], ["fine"], kernel_shape=[4, 4], strides=[4, 4]),
            node("Conv", ["fine", "weights"], ["fine_over"]),
            node("Relu", ["fine_over"], ["fine_cells"]),
            node("ReduceMax", ["fine_cells"], ["most"], axes=[1], keepdims=1),
            node("Sub", ["most", "half"], ["first"]),
            node("Concat", ["first", "others"], ["prototypes"], axis=1),
            node("Cast", ["prototypes"], ["output1"], to=kind),
        ]
        outputs.append(helper.make_tensor_value_info("output1", kind, None))
    sides = ("height", "width") if open_input else (height, width)
    shape = [changes.get("batch", 1), changes.get("channels", 3), *sides]
    graph = helper.make_graph(
        nodes,
        "detector",
        [helper.make_tensor_value_info("images", kind, shape)],
        outputs,
        [numpy_helper.from_array(value, name) for name, value in constants.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    usual = {"names": repr(COLOURS), "task": "segment" if masks else "detect", "imgsz": str([height, width])}
    helper.set_model_props(model, dict(usual if facts is None else facts))
    onnx.save(model, str(path))
    return path


def _boxes(rows: int, columns: int, cell: int, sides: Sequence[float], corners: bool) -> np.ndarray:
    """float32 (1, 4, n): of every cell, for one side after the other."""
    y, x = np.mgrid[:rows, :columns].reshape(2, -1) * cell + cell / 2
    found = []
    for side in sides:
        half = np.full_like(x, side * cell / 2)
        found.append([x - half, y - half, x + half, y + half] if corners else [x, y, 2 * half, 2 * half])
    return np.concatenate(found, axis=1)[None].astype(np.float32)
