"""Pasting against its definition, and the reference's golden pastes made from the ops alone."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors import safe_open
from torch import Tensor
from torch.nn import functional

from animdetail_trt import ops
from animdetail_trt.ops import reference

with safe_open(Path(__file__).parents[1] / "golden" / "paste.safetensors", "pt") as file:
    CASES = json.loads(file.metadata()["cases"])
    TENSORS = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118


@settings(max_examples=200, deadline=None)
@given(
    h=st.integers(1, 60),
    w=st.integers(1, 60),
    ph=st.integers(1, 60),
    pw=st.integers(1, 60),
    x=st.integers(-70, 70),
    y=st.integers(-70, 70),
    channels=st.integers(1, 4),
    masks=st.sampled_from([0, 1, 2]),
    seed=st.integers(0, 2**32 - 1),
)
def test_equals_the_definition(
    h: int, w: int, ph: int, pw: int, x: int, y: int, channels: int, masks: int, seed: int
) -> None:
    """At every side of the canvas and off it; identical to the bit."""
    generator = torch.Generator().manual_seed(seed)
    canvas = torch.rand(2, h, w, channels, generator=generator)
    patch = torch.rand(2, ph, pw, channels, generator=generator)
    mask = torch.rand((masks, ph, pw) if masks else (ph, pw), generator=generator)
    expected = reference.alpha_paste(canvas.clone(), patch, mask, (x, y))
    assert ops.alpha_paste(canvas, patch, mask, (x, y)) is canvas
    assert torch.equal(canvas, expected)


def test_touches_only_the_overlap() -> None:
    """The rest holds NaN, which any arithmetic on it, or on the patch beyond the edge, would spread or change."""
    canvas = torch.full((1, 20, 20, 3), torch.nan)
    canvas[:, :4, :6] = 0.25
    patch = torch.full((1, 10, 10, 3), torch.nan)
    patch[:, 6:, 4:] = 0.75
    ops.alpha_paste(canvas, patch, torch.full((10, 10), 0.5), (-4, -6))
    assert torch.equal(canvas[:, :4, :6], torch.full((1, 4, 6, 3), 0.5))
    canvas[:, :4, :6] = torch.nan
    assert canvas.isnan().all()


@pytest.mark.parametrize("left_top", [(20, 0), (0, 20), (-10, 0), (0, -10), (10**12, -(10**12))])
def test_off_the_canvas_nothing_happens(left_top: tuple[int, int]) -> None:
    canvas = torch.zeros(1, 20, 20, 3)
    ops.alpha_paste(canvas, torch.ones(1, 10, 10, 3), torch.ones(10, 10), left_top)
    assert not canvas.any()


@pytest.mark.parametrize("left_top", [(3, 4), (-9, 12), (25, -7), (40, 0)])
@pytest.mark.parametrize("masks", [0, 1, 2])
def test_from_vae_equals_the_definition(left_top: tuple[int, int], masks: int) -> None:
    generator = torch.Generator().manual_seed(masks)
    canvas, decoded = torch.rand(2, 30, 40, 3, generator=generator), torch.randn(2, 3, 48, 32, generator=generator)
    mask = torch.rand((masks, 21, 17) if masks else (21, 17), generator=generator)
    expected = reference.paste_from_vae(canvas.clone(), decoded, mask, left_top, (17, 21))
    assert ops.paste_from_vae(canvas, decoded, mask, left_top, (17, 21)) is canvas
    assert torch.equal(canvas, expected)


@pytest.mark.parametrize("case", CASES, ids=lambda case: case["name"])
def test_golden(case: dict[str, Any]) -> None:
    """SEGSPaste composed of ops: identical without a blur, 2e-6 with one (golden/README.md)."""
    tensors = {key.split(".", 1)[1]: value for key, value in TENSORS.items() if key.startswith(case["name"] + ".")}
    canvas = tensors["image"].float() / 255
    for i, seg in enumerate(case["segs"]):
        patch, mask = tensors[f"segs.{i}.image"].float() / 255, tensors[f"segs.{i}.mask"]
        x1, y1, x2, y2 = seg["crop_region"]
        if case["header"] != list(canvas.shape[1:3]):
            scale_y, scale_x = canvas.shape[1] / case["header"][0], canvas.shape[2] / case["header"][1]
            x1, y1, x2, y2 = int(x1 * scale_x), int(y1 * scale_y), int(x2 * scale_y), int(y2 * scale_y)
            patch = ops.crop_resize(patch, (0, 0, patch.shape[2], patch.shape[1]), (x2 - x1, y2 - y1))
            mask = resize_bilinear(mask, (y2 - y1, x2 - x1))
        if case["ref"]:
            patch = (tensors["ref"].float() / 255)[:, y1:y2, x1:x2]
        if mask.ndim == 3 and len(mask) not in (1, len(canvas)):
            mask = ops.merge_masks(mask)
        ops.alpha_paste(canvas, patch, ops.feather_mask(mask, case["feather"], case["alpha"]), (x1, y1))
    if case["feather"] == 0:
        assert torch.equal(canvas, tensors["out"])
    torch.testing.assert_close(canvas, tensors["out"], rtol=0, atol=2e-6)


def test_all_golden_cases_are_here() -> None:
    assert len(CASES) == 13


def resize_bilinear(mask: Tensor, size: tuple[int, int]) -> Tensor:
    return functional.interpolate(mask[None, None], size=size, mode="bilinear", align_corners=False)[0, 0]
