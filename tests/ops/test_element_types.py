"""Pictures that are not float32: every op gives what it gives for their values in float32, rounded to the nearest."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from pixels import SEEDS, SIDES
from torch import Tensor

from animdetail_trt import ops

UNIT_TYPES = [torch.float32, torch.float16, torch.bfloat16, torch.uint8]
VAE_TYPES = UNIT_TYPES[:3]
unit_types = st.sampled_from(UNIT_TYPES)
vae_types = st.sampled_from(VAE_TYPES)


def values_of(pictures: Tensor) -> Tensor:
    return pictures.float() / 255 if pictures.dtype == torch.uint8 else pictures.float()


def nearest(values: Tensor, dtype: torch.dtype) -> Tensor:
    return (255 * values.clamp(0, 1) + 0.5).to(dtype) if dtype == torch.uint8 else values.to(dtype)


def picture(seed: int, *shape: int, dtype: torch.dtype, low: float = 0.0) -> Tensor:
    values = torch.rand(shape, generator=torch.Generator().manual_seed(seed)) * (1 - low) + low
    return nearest(values, dtype)


def poisoned(*shape: int, dtype: torch.dtype) -> Tensor:
    return torch.full(shape, 77 if dtype == torch.uint8 else torch.nan, dtype=dtype)


def channels_planar(tensor: Tensor) -> Tensor:
    return tensor.permute(0, 3, 1, 2).contiguous().permute(0, 2, 3, 1)


def cut_out(tensor: Tensor) -> Tensor:
    holder = torch.zeros([side + 3 for side in tensor.shape], dtype=tensor.dtype, device=tensor.device)
    holder[tuple(slice(1, 1 + side) for side in tensor.shape)] = tensor
    return holder[tuple(slice(1, 1 + side) for side in tensor.shape)]


layouts: st.SearchStrategy[Callable[[Tensor], Tensor]] = st.sampled_from([torch.clone, channels_planar, cut_out])


def through_paste(values: Tensor, dtype: torch.dtype) -> Tensor:
    """``values`` (n) as elements of ``dtype``: pasted whole into a canvas of that type."""
    patch = values.reshape(1, 1, -1, 1).expand(1, 1, -1, 3)
    canvas = torch.zeros(patch.shape, dtype=dtype)
    return ops.alpha_paste(canvas, patch, torch.ones(1, len(values)), (0, 0))[0, 0, :, 1]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_every_element_is_read_as_torch_reads_it(dtype: torch.dtype) -> None:
    every = torch.arange(2**16, dtype=torch.int32).to(torch.int16).view(dtype)
    every = every[every.isfinite()]
    read = through_paste(every, torch.float32)
    assert torch.equal(read.view(torch.int32), every.float().add(0.0).view(torch.int32))  # (0 * below) + x: -0 is 0


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_every_element_and_what_lies_between_is_written_as_torch_writes_it(dtype: torch.dtype) -> None:
    every = torch.arange(2**15, dtype=torch.int16).view(dtype)
    finite = every[every.isfinite()].float()
    halfway = (finite[:-1].double() + finite[1:].double()).div(2).float()
    past = torch.tensor([65504.0, 65519.996, 65520.0, 1e30, torch.inf, 3.4e38, 1e-45, 2.0**-25, 2.0**-126])
    values = torch.cat([finite, halfway, halfway.nextafter(finite[1:]), halfway.nextafter(finite[:-1]), past])
    values = torch.cat([values, -values])
    assert torch.equal(through_paste(values, dtype), values.add(0.0).to(dtype))
    assert through_paste(torch.tensor([torch.nan]), dtype).isnan().all()


def test_bytes_round_to_the_nearest_and_stay_what_they_are() -> None:
    values = torch.cat([torch.linspace(-0.5, 1.5, 9999), torch.tensor([-torch.inf, torch.inf])])
    assert torch.equal(through_paste(values, torch.uint8), nearest(values, torch.uint8))
    every = torch.arange(256, dtype=torch.uint8)
    assert torch.equal(through_paste(every, torch.uint8), every)
    untouched = every.reshape(1, 1, -1, 1).repeat(1, 1, 1, 3)
    ops.alpha_paste(untouched, torch.ones(1, 1, 256, 3), torch.zeros(1, 256), (0, 0))
    assert torch.equal(untouched[0, 0, :, 2], every)
    frames = every.reshape(1, 1, -1, 1).expand(1, 1, -1, 3)
    assert torch.equal((255 * ops.crop_resize(frames, (0, 0, 256, 1), (256, 1))).round()[0, 0, :, 0], every.float())


@given(h=SIDES, w=SIDES, width=SIDES, height=SIDES, seed=SEEDS, source=unit_types, target=unit_types, layout=layouts)
def test_crop_resize(
    h: int, w: int, width: int, height: int, seed: int, source: torch.dtype, target: torch.dtype, layout: Any
) -> None:
    frames = layout(picture(seed, 2, h, w, 3, dtype=source, low=-0.1))
    region = (w // 4, h // 5, w, h)
    out = layout(poisoned(2, height, width, 3, dtype=target))
    ops.crop_resize_into(out, frames, region)
    assert torch.equal(out, nearest(ops.crop_resize(values_of(frames), region, (width, height)), target))


@given(
    h=SIDES,
    w=SIDES,
    width=st.integers(8, 90),
    height=st.integers(8, 90),
    seed=SEEDS,
    source=unit_types,
    target=vae_types,
)
def test_there_and_back(
    h: int, w: int, width: int, height: int, seed: int, source: torch.dtype, target: torch.dtype
) -> None:
    frames, region = picture(seed, 2, h, w, 3, dtype=source), (0, 0, w, h)
    pixels = poisoned(2, 3, height // 8 * 8, width // 8 * 8, dtype=target)
    ops.crop_resize_to_vae_into(pixels, frames, region, (width, height))
    expected = ops.crop_resize_to_vae(values_of(frames), region, (width, height))
    assert torch.equal(pixels, expected.to(target))
    back = poisoned(2, h, w, 3, dtype=source)
    ops.resize_from_vae_into(back, pixels)
    assert torch.equal(back, nearest(ops.resize_from_vae(pixels.float(), (w, h)), source))


@given(seed=SEEDS, below=unit_types, above=unit_types, layout=layouts, x=st.integers(-9, 30), y=st.integers(-9, 20))
def test_alpha_paste(seed: int, below: torch.dtype, above: torch.dtype, layout: Any, x: int, y: int) -> None:
    canvas = layout(picture(seed, 2, 20, 31, 3, dtype=below))
    patch = layout(picture(seed + 1, 2, 11, 13, 3, dtype=above))
    mask = picture(seed + 2, 2, 11, 13, dtype=torch.float32)
    expected = ops.alpha_paste(values_of(canvas), values_of(patch), mask, (x, y))
    assert torch.equal(ops.alpha_paste(canvas, patch, mask, (x, y)), nearest(expected, below))


@given(seed=SEEDS, canvas_type=unit_types, decoded_type=vae_types)
def test_paste_from_vae(seed: int, canvas_type: torch.dtype, decoded_type: torch.dtype) -> None:
    canvas = picture(seed, 2, 20, 31, 3, dtype=canvas_type)
    decoded = picture(seed + 1, 2, 3, 24, 32, dtype=decoded_type, low=-1.2)
    mask = picture(seed + 2, 13, 15, dtype=torch.float32)
    patch = ops.resize_from_vae(decoded.float(), (15, 13))
    expected = nearest(ops.alpha_paste(values_of(canvas), patch, mask, (4, 2)), canvas_type)
    assert torch.equal(ops.paste_from_vae(canvas, decoded, mask, (4, 2), (15, 13)), expected)


def test_numpy_arrays() -> None:
    frames = np.random.default_rng(0).integers(0, 256, (2, 9, 8, 3), np.uint8)
    frames.flags.writeable = False
    floats = frames.astype(np.float32) / np.float32(255)
    out = np.zeros((2, 3, 16, 16), np.float16)
    ops.crop_resize_to_vae_into(out, frames, (0, 0, 8, 9), (16, 17))
    expected = ops.crop_resize_to_vae(floats, (0, 0, 8, 9), (16, 17))
    assert np.array_equal(out, expected.astype(np.float16))
