"""Pictures for the report: what one frame should be, what became of it, and the difference."""

from __future__ import annotations

import base64
import io
from collections.abc import Mapping
from typing import Any

from torch import Tensor

from animdetail_trt.bench.scenarios import PICTURE_KINDS, Scenario
from animdetail_trt.bench.ways import TRUTH


def pictures_of(scenario: Scenario, outputs: Mapping[str, Tensor], truth: Tensor) -> list[dict[str, Any]]:
    """Of the middle frame: the reference's way (``truth`` where it did not run), the last of ours, their difference."""
    ours = [way for way in outputs if way != "reference"]
    if scenario.kind not in PICTURE_KINDS or not ours:
        return []
    middle = scenario.frames // 2
    # Of the pixel path the truth is what the reference's way made, timed or not.
    by_reference = "reference" in outputs or scenario.kind == "pixels"
    pair = outputs.get("reference", truth)[middle], outputs[ours[-1]][middle]
    difference = (pair[1] - pair[0]).abs().nan_to_num(1.0)
    largest = float(difference.max())
    gain = min(1 / largest, 1e6) if largest > 0 else 1.0
    return [{
        "kind": scenario.kind, "scenario": scenario.name, "backend": ours[-1], "frame": middle,
        "beside": "the reference's way" if by_reference else TRUTH, "largest": largest, "gain": gain,
        "images": [png_of(picture) for picture in (*pair, difference * gain)],
    }]  # fmt: skip


def png_of(picture: Tensor, largest_side: int = 480) -> str:
    """A data URI of (3, h, w) in 0..1."""
    from PIL import Image

    pixels = (picture.nan_to_num().clamp(0, 1) * 255).round().byte().movedim(0, -1).contiguous().numpy()
    image = Image.fromarray(pixels)
    image.thumbnail((largest_side, largest_side))
    file = io.BytesIO()
    image.save(file, "PNG", optimize=True)
    return "data:image/png;base64," + base64.b64encode(file.getvalue()).decode()
