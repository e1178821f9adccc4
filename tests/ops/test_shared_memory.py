"""What is read and what is written must have no memory in common; that their ranges cross is no matter."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

from animdetail_trt import ops
from animdetail_trt.errors import InputError

Ways = list[tuple[str, Callable[[Any], Any]]]
WHOLE = (0, 0, 16, 16)
MASK = torch.full((16, 16), 0.5)


def frames_in(memory: torch.Tensor) -> torch.Tensor:
    return memory[: 2 * 16 * 16 * 3].view(2, 16, 16, 3)


SHARED: Ways = [
    ("patch", lambda m: ops.alpha_paste(frames_in(m), frames_in(m)[:, :, :8], MASK[:, :8], (4, 4))),
    ("patch", lambda m: ops.alpha_paste(frames_in(m).numpy(), frames_in(m).numpy()[:, :, ::-1], MASK.numpy(), (0, 0))),
    ("patch", lambda m: ops.alpha_paste(frames_in(m).numpy(), frames_in(m[8:]).numpy(), MASK.numpy(), (0, 0))),
    ("patch", lambda m: ops.alpha_paste(frames_in(m.view(torch.bfloat16)), frames_in(m), MASK, (0, 0))),
    ("mask", lambda m: ops.alpha_paste(frames_in(m), frames_in(m) + 0, m[:256].view(16, 16), (0, 0))),
    (
        "mask",
        lambda m: ops.paste_from_vae(frames_in(m), torch.zeros(2, 3, 8, 8), m[:256].view(16, 16), (0, 0), (16, 16)),
    ),
    ("frames", lambda m: ops.crop_resize_into(frames_in(m)[:, 8:], frames_in(m), WHOLE)),
    ("frames", lambda m: ops.crop_resize_to_vae_into(m[:1536].view(2, 3, 16, 16), frames_in(m), WHOLE, (16, 16))),
    ("decoded", lambda m: ops.resize_from_vae_into(frames_in(m), m[:1536].view(2, 3, 16, 16))),
    ("mask", lambda m: ops.feather_mask_into(m[:256].view(16, 16), m[16:272].view(16, 16), 3)),
]


@pytest.mark.parametrize(("read", "run"), SHARED)
def test_shared_memory_is_refused_before_anything_is_written(read: str, run: Callable[[Any], Any]) -> None:
    memory = torch.rand(2048)
    before = memory.clone()
    told = re.escape(f": {read} shares memory with ") + rf".*Pass a copy of {read}"
    with pytest.raises(InputError, match=told):
        run(memory)
    assert torch.equal(memory, before)


APART: Ways = [
    ("another place of the same frames", lambda m: (frames_in(m), frames_in(m)[:, :8, :8], MASK[:8, :8], (8, 8))),
    ("one behind the other", lambda m: (m[:768].view(1, 16, 16, 3), m[768:1536].view(1, 16, 16, 3), MASK, (0, 0))),
    (
        "colours beside their alpha channel",
        lambda m: (
            m.view(2, 16, 16, 4)[..., :3], torch.ones(2, 16, 16, 3), m.view(2, 16, 16, 4)[..., 3], (0, 0)
        ),
    ),
    ("every other column", lambda m: (frames_in(m)[:, :, ::2], frames_in(m)[:, :, 1::2], MASK[:, ::2], (0, 0))),
]  # fmt: skip


@pytest.mark.parametrize(("what", "arguments"), APART)
def test_memory_that_lies_between_is_no_matter(what: str, arguments: Callable[[Any], Any]) -> None:
    memory = torch.rand(2048)
    canvas, patch, mask, place = arguments(memory.clone())
    expected = ops.alpha_paste(canvas.clone(), patch.clone(), mask.clone(), place)
    assert torch.equal(ops.alpha_paste(canvas, patch, mask, place), expected), what


def test_it_is_refused_where_and_only_where_numpy_finds_it_shared() -> None:
    rng = np.random.default_rng(0)
    counts = {True: 0, False: 0}
    for _ in range(3000):
        memory = np.zeros(4 * int(rng.integers(60, 150)), np.uint8)
        shape = (*rng.integers(1, 4, 3).tolist(), 3)
        canvas, patch = (a_view(rng, memory, shape) for _ in range(2))
        shared = np.shares_memory(canvas, patch)
        counts[shared] += 1
        try:
            ops.alpha_paste(canvas, patch, np.ones(shape[1:3], np.float32), (0, 0))
        except InputError:
            assert shared, (canvas.strides, patch.strides)
        else:
            assert not shared, (canvas.strides, patch.strides)
    assert min(counts.values()) > 300


def a_view(rng: np.random.Generator, memory: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """A picture somewhere in this memory, of a random type and random strides none of whose elements meet."""
    array: np.ndarray = memory.view(rng.choice([np.uint8, np.float16, np.float32]))
    step, strides = int(rng.integers(1, 3)), [0] * 4
    for axis in rng.permutation(4):
        strides[axis] = step
        step *= shape[axis] + int(rng.integers(0, 2))
    reach = sum(stride * (side - 1) for stride, side in zip(strides, shape, strict=True))
    if reach >= len(array):
        return a_view(rng, memory, shape)
    start = int(rng.integers(0, len(array) - reach))
    bytes_apart = [stride * array.itemsize for stride in strides]
    view = np.lib.stride_tricks.as_strided(array[start:], shape, bytes_apart)
    return view[:, :, ::-1] if rng.random() < 0.3 else view
