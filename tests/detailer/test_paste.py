"""SEGSPaste against its 13 golden cases."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from safetensors import safe_open

import animdetail_trt as adt
from tolerances import assert_pasted

GOLDEN = Path(__file__).parents[1] / "golden" / "paste.safetensors"

with safe_open(GOLDEN, "pt") as file:
    CASES = json.loads(file.metadata()["cases"])
    TENSORS = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118


@pytest.mark.parametrize("case", CASES, ids=lambda case: case["name"])
def test_paste(case: dict[str, Any]) -> None:
    tensors = {key.split(".", 1)[1]: value for key, value in TENSORS.items() if key.startswith(case["name"] + ".")}
    items = [
        adt.SEG(
            tensors[f"segs.{i}.image"].float().numpy() / 255,
            tensors[f"segs.{i}.mask"],
            1.0,
            tuple(seg["crop_region"]),
            tuple(seg["crop_region"]),
            "A",
        )
        for i, seg in enumerate(case["segs"])
    ]
    (image,) = adt.SEGSPaste.doit(
        tensors["image"].float() / 255,
        (tuple(case["header"]), items),
        case["feather"],
        case["alpha"],
        ref_image_opt=tensors["ref"].float() / 255 if case["ref"] else None,
    )
    assert len(CASES) == 13
    assert_pasted(image, tensors["out"], blurred=case["feather"] > 0)
