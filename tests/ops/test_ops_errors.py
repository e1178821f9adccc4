"""Each broken contract: one error that names the op, the value and the remedy, before anything is written."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

from animdetail_trt import ops
from animdetail_trt.errors import DeviceError, InputError, is_out_of_memory

FRAMES = torch.zeros(2, 20, 30, 3)
OUT = torch.full((2, 8, 8, 3), 7.0)
DECODED = torch.zeros(2, 3, 16, 16)
MASK = torch.zeros(8, 8)
REGION = (2, 3, 12, 13)


def read_only() -> Any:
    array = np.full((2, 8, 8, 3), 7, np.float32)
    array.flags.writeable = False
    return array


CASES: list[tuple[Callable[[], Any], str]] = [
    (
        lambda: ops.crop_resize(FRAMES, (-1, 3, 9, 9), (8, 8)),
        "crop_region (-1, 3, 9, 9) starts at a negative coordinate. Clamp",
    ),
    (
        lambda: ops.crop_resize(FRAMES, (30, 3, 40, 9), (8, 8)),
        "crop_region (30, 3, 40, 9) holds no pixel of the 30x20 frames",
    ),
    (lambda: ops.crop_resize(FRAMES, (9, 3, 9, 9), (8, 8)), "holds no pixel"),
    (lambda: ops.crop_resize(FRAMES, (2, 3, 9), (8, 8)), "crop_region must be 4 integers, got (2, 3, 9)"),
    (lambda: ops.crop_resize(FRAMES, (2.0, 3, 9, 9), (8, 8)), "crop_region must be 4 integers, got (2.0, 3, 9, 9)"),
    (lambda: ops.crop_resize(FRAMES, (2, 3, 2**70, 9), (8, 8)), "crop_region must be 4 integers"),
    (lambda: ops.crop_resize(FRAMES, None, (8, 8)), "crop_region must be 4 integers, got None"),
    (lambda: ops.crop_resize(FRAMES, REGION, (0, 8)), "size is (0, 8). It is (width, height), each at least 1"),
    (lambda: ops.crop_resize(FRAMES, REGION, (8, 8, 8)), "size must be 2 integers, got (8, 8, 8)"),
    (
        lambda: ops.crop_resize(FRAMES, REGION, (8, 8), pass_order="both"),
        "pass_order is 'both'. It must be one of pillow13, horizontal_first",
    ),
    (lambda: ops.crop_resize(FRAMES[0], REGION, (8, 8)), "frames must be (f, h, w, c), got shape (20, 30, 3)"),
    (lambda: ops.crop_resize(torch.zeros(1, 9, 9, 5), (0, 0, 9, 9), (8, 8)), "1 to 4 channels, got shape (1, 9, 9, 5)"),
    (
        lambda: ops.crop_resize(FRAMES.double(), REGION, (8, 8)),
        "frames must be float32, float16, bfloat16 or uint8, got float64. Convert it: .float()",
    ),
    (lambda: ops.crop_resize(FRAMES > 0, REGION, (8, 8)), "got bool"),
    (lambda: ops.crop_resize(FRAMES.to(torch.int8), REGION, (8, 8)), "got int8"),
    (
        lambda: ops.crop_resize(FRAMES[..., :1].bfloat16(), REGION, (8, 8)),
        "frames is bfloat16 and has 1 channels. Convert it to float32, or give it three",
    ),
    (
        lambda: ops.crop_resize_into(OUT[..., :1].half(), FRAMES[..., :1], REGION),
        "out is float16 and has 1 channels",
    ),
    (
        lambda: ops.crop_resize_to_vae_into(DECODED.byte(), FRAMES, REGION, (16, 16)),
        "out must be float32, float16 or bfloat16, got uint8",
    ),
    (lambda: ops.resize_from_vae(DECODED.byte(), (8, 8)), "decoded must be float32, float16 or bfloat16, got uint8"),
    (lambda: ops.feather_mask(MASK.half(), 3), "mask must be float32, got float16"),
    (lambda: ops.alpha_paste(FRAMES, OUT, MASK.half(), (0, 0)), "mask must be float32, got float16"),
    (
        lambda: ops.alpha_paste(FRAMES[..., :2], OUT[..., :2].half(), MASK, (0, 0)),
        "patch is float16 and has 2 channels",
    ),
    (lambda: ops.alpha_paste(FRAMES[..., :2].byte(), OUT[..., :2], MASK, (0, 0)), "canvas is uint8 and has 2 channels"),
    (
        lambda: ops.crop_resize(FRAMES.tolist(), REGION, (8, 8)),
        "crop_resize: frames must be a torch tensor or a NumPy array, got list",
    ),
    (
        lambda: ops.crop_resize_into(OUT[:1], FRAMES, REGION),
        "out must be (f, height, width, c) with f and c of frames (2, 20, 30, 3), got shape (1, 8, 8, 3)",
    ),
    (
        lambda: ops.crop_resize_into(OUT.double(), FRAMES, REGION),
        "out must be float32, float16, bfloat16 or uint8, got float64",
    ),
    (lambda: ops.crop_resize_into(OUT[:1].expand(2, 8, 8, 3), FRAMES, REGION), "out is an expanded view"),
    (lambda: ops.crop_resize_into(read_only(), FRAMES, REGION), "out is read-only. Pass a copy of it"),
    (lambda: ops.crop_resize_into(torch.empty(1, 1, 1, 1, 1), FRAMES, REGION), "up to 4 axes here, got one with 5"),
    (
        lambda: ops.crop_resize_to_vae(FRAMES, REGION, (7, 64)),
        "size (7, 64) leaves nothing after the cut to multiples of 8",
    ),
    (
        lambda: ops.crop_resize_to_vae(FRAMES[..., :1], REGION, (64, 64)),
        "frames must have 3 channels, got shape (2, 20, 30, 1)",
    ),
    (
        lambda: ops.crop_resize_to_vae_into(DECODED, FRAMES, REGION, (64, 30)),
        "out must be (2, 3, 24, 64), got shape (2, 3, 16, 16)",
    ),
    (lambda: ops.resize_from_vae(DECODED[:, :2], (8, 8)), "decoded must be (f, 3, h, w), got shape (2, 2, 16, 16)"),
    (
        lambda: ops.resize_from_vae_into(OUT[:1], DECODED),
        "out must be (f, height, width, 3) with f of decoded (2, 3, 16, 16)",
    ),
    (lambda: ops.resize_from_vae(torch.zeros(1, 3, 0, 4), (8, 8)), "height is 0. It must be 1 to 16777216"),
    (lambda: ops.feather_mask(MASK[None, None], 3), "mask must be (h, w) or (n, h, w), got shape (1, 1, 8, 8)"),
    (lambda: ops.feather_mask(MASK, 3, 256), "alpha is 256. It must be 0 to 255"),
    (lambda: ops.feather_mask(MASK, 3, float("nan")), "alpha is nan"),
    (lambda: ops.feather_mask(MASK, 2.5), "feather_px must be 1 integers, got (2.5,)"),
    (lambda: ops.feather_mask("mask", 3), "feather_mask: mask must be a torch tensor or a NumPy array, got str"),
    (lambda: ops.feather_mask_into(MASK[:4], MASK, 3), "out must have the shape of mask (8, 8), got shape (4, 8)"),
    (lambda: ops.alpha_paste(FRAMES[0], OUT, MASK, (0, 0)), "canvas must be (f, h, w, c), got shape (20, 30, 3)"),
    (
        lambda: ops.alpha_paste(FRAMES, OUT[:1], MASK, (0, 0)),
        "patch must be (f, h, w, c) with f and c of canvas (2, 20, 30, 3), got shape (1, 8, 8, 3)",
    ),
    (lambda: ops.alpha_paste(FRAMES, OUT, MASK[0], (0, 0)), "mask must be (h, w) or (f, h, w), got shape (8,)"),
    (
        lambda: ops.alpha_paste(FRAMES, OUT, MASK[:5], (0, 0)),
        "mask must be as high and wide as patch (2, 8, 8, 3), got shape (5, 8). Resize it first",
    ),
    (
        lambda: ops.alpha_paste(FRAMES, OUT, MASK.expand(3, 8, 8), (0, 0)),
        "one for each of the 2 frames, got shape (3, 8, 8). Merge them first: ops.merge_masks",
    ),
    (lambda: ops.alpha_paste(read_only(), OUT, MASK, (0, 0)), "canvas is read-only"),
    (lambda: ops.alpha_paste(FRAMES, OUT, MASK, (0.5, 0)), "left_top must be 2 integers, got (0.5, 0)"),
    (lambda: ops.merge_masks(MASK), "masks must be (n, h, w), got shape (8, 8)"),
    (lambda: ops.merge_masks(MASK[None][:0]), "masks is empty"),
    (lambda: ops.set_num_threads(-1), "count is -1. It must be 0 to 1024"),
    (lambda: ops.set_num_threads(1.5), "count is 1.5. It must be 0 to 1024, a whole number"),  # type: ignore[arg-type]
    (lambda: ops.set_num_threads("a"), "count is 'a'. It must be"),  # type: ignore[arg-type]
]


@pytest.mark.parametrize(("call", "message"), CASES, ids=[message for _, message in CASES])
def test_refuses(call: Callable[[], Any], message: str) -> None:
    with pytest.raises(InputError, match=re.escape(message)):
        call()
    assert (OUT == 7).all()
    assert not FRAMES.any()
    assert not MASK.any()


def test_an_input_error_is_a_value_error() -> None:
    with pytest.raises(ValueError, match="crop_region"):
        ops.crop_resize(FRAMES, (-1, 0, 5, 5), (8, 8))


@pytest.mark.parametrize("side", [2**24, 2**62])
@pytest.mark.parametrize("kind", [torch.as_tensor, np.asarray])
def test_a_result_beyond_all_memory(kind: Callable[[Any], Any], side: int) -> None:
    """The command line knows the error as a lack of memory, and says which of its options to lower."""
    calls: list[Callable[[], Any]] = [
        lambda: ops.crop_resize(kind(FRAMES), REGION, (side, side)),
        lambda: ops.crop_resize_to_vae(kind(FRAMES), REGION, (side, side)),
        lambda: ops.resize_from_vae(kind(DECODED), (side, side)),
        lambda: ops.paste_from_vae(kind(FRAMES), kind(DECODED), kind(MASK), (0, 0), (side, side)),
    ]
    for call in calls:
        with pytest.raises(DeviceError, match=rf"allocate memory for a result of .*{side}.* Ask for a smaller") as told:
            call()
        assert is_out_of_memory(told.value)
