"""The resampling ops against Pillow itself, and against their definitions."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pixels import SEEDS, SIDES, image, noise, pillow, pillow_horizontal_first, unit

from animdetail_trt import ops
from animdetail_trt.ops import reference


@settings(max_examples=300, deadline=None)
@given(h=SIDES, w=SIDES, height=SIDES, width=SIDES, seed=SEEDS, extremes=st.booleans())
def test_equals_pillow(h: int, w: int, height: int, width: int, seed: int, extremes: bool) -> None:
    pixels = noise(seed, (2, h, w, 3), extremes=extremes)
    resized = ops.crop_resize(unit(pixels), (0, 0, w, h), (width, height))
    assert np.array_equal(resized, image(pillow(pixels, (width, height))))


@settings(max_examples=100, deadline=None)
@given(h=SIDES, w=SIDES, side=SIDES, axis=st.sampled_from(["x", "y", "none"]), seed=SEEDS)
def test_a_pass_is_skipped_where_the_size_stays(h: int, w: int, side: int, axis: str, seed: int) -> None:
    size = {"x": (side, h), "y": (w, side), "none": (w, h)}[axis]
    pixels = noise(seed, (1, h, w, 3), extremes=True)
    assert np.array_equal(ops.crop_resize(unit(pixels), (0, 0, w, h), size), image(pillow(pixels, size)))


@settings(max_examples=150, deadline=None)
@given(h=SIDES, w=SIDES, height=SIDES, width=SIDES, seed=SEEDS)
def test_horizontal_first_equals_pillow_up_to_12(h: int, w: int, height: int, width: int, seed: int) -> None:
    pixels = noise(seed, (1, h, w, 3), extremes=True)
    resized = ops.crop_resize(unit(pixels), (0, 0, w, h), (width, height), pass_order="horizontal_first")
    assert np.array_equal(resized, image(pillow_horizontal_first(pixels, (width, height))))


def test_the_pass_order_shows() -> None:
    """Otherwise the test above would not tell the two orders apart."""
    pixels = unit(noise(0, (1, 90, 20, 3), extremes=True))
    region = (0, 0, 20, 90)
    default = ops.crop_resize(pixels, region, (33, 40))
    assert not np.array_equal(default, ops.crop_resize(pixels, region, (33, 40), pass_order="horizontal_first"))


@pytest.mark.parametrize(
    ("h", "w", "height", "width"), [(2000, 3, 1, 5), (3, 2000, 5, 1), (1, 1, 700, 900), (1500, 1500, 9, 7)]
)
def test_huge_ratios(h: int, w: int, height: int, width: int) -> None:
    pixels = noise(h, (1, h, w, 3))
    assert np.array_equal(
        ops.crop_resize(unit(pixels), (0, 0, w, h), (width, height)), image(pillow(pixels, (width, height)))
    )


@pytest.mark.parametrize("channels", [1, 2, 3, 4])
def test_channels_are_independent(channels: int) -> None:
    pixels = noise(channels, (2, 37, 41, channels))
    assert np.array_equal(ops.crop_resize(unit(pixels), (0, 0, 41, 37), (70, 23)), image(pillow(pixels, (70, 23))))


@settings(max_examples=150, deadline=None)
@given(data=st.data(), h=SIDES, w=SIDES, height=SIDES, width=SIDES, seed=SEEDS)
def test_crops_before_it_resamples(data: st.DataObject, h: int, w: int, height: int, width: int, seed: int) -> None:
    """No tap reaches outside the crop, and x2, y2 past the frame are clipped as a slice is."""
    x1, y1 = data.draw(st.integers(0, w - 1)), data.draw(st.integers(0, h - 1))
    x2, y2 = data.draw(st.integers(x1 + 1, w + 50)), data.draw(st.integers(y1 + 1, h + 50))
    pixels = noise(seed, (1, h, w, 3))
    resized = ops.crop_resize(unit(pixels), (x1, y1, x2, y2), (width, height))
    assert np.array_equal(resized, image(pillow(pixels[:, y1:y2, x1:x2], (width, height))))


@settings(max_examples=60, deadline=None)
@given(h=SIDES, w=SIDES, height=SIDES, width=SIDES, seed=SEEDS, order=st.sampled_from(["pillow13", "horizontal_first"]))
def test_equals_the_definition(h: int, w: int, height: int, width: int, seed: int, order: str) -> None:
    generator = torch.Generator().manual_seed(seed)
    frames = torch.rand(2, h, w, 3, generator=generator) * 1.4 - 0.2  # beyond 0..1: clipped
    resized = ops.crop_resize(frames, (0, 0, w, h), (width, height), pass_order=order)
    assert torch.equal(resized, reference.crop_resize(frames, (0, 0, w, h), (width, height), pass_order=order))


@settings(max_examples=100, deadline=None)
@given(
    h=SIDES,
    w=SIDES,
    height=st.integers(8, 150),
    width=st.integers(8, 150),
    seed=SEEDS,
    order=st.sampled_from(["pillow13", "horizontal_first"]),
)
def test_to_vae_is_the_centre_of_the_resized_crop(
    h: int, w: int, height: int, width: int, seed: int, order: str
) -> None:
    frames = torch.from_numpy(unit(noise(seed, (2, h, w, 3))))
    region, size = (0, 0, w, h), (width, height)
    fused = ops.crop_resize_to_vae(frames, region, size, pass_order=order)
    top, left, h8, w8 = height % 8 // 2, width % 8 // 2, height // 8 * 8, width // 8 * 8
    centre = ops.crop_resize(frames, region, size, pass_order=order)[:, top : top + h8, left : left + w8]
    assert fused.is_contiguous()
    assert torch.equal(fused, (2 * centre - 1).permute(0, 3, 1, 2))
    assert torch.equal(fused, reference.crop_resize_to_vae(frames, region, size, pass_order=order))


@pytest.mark.parametrize("size", [(43, 60), (61, 50), (43, 50)])
def test_to_vae_where_a_pass_is_skipped(size: tuple[int, int]) -> None:
    """An axis that is not resampled is still cut, and by the right offset."""
    frames = torch.from_numpy(unit(noise(5, (1, 50, 43, 3))))
    expected = reference.crop_resize_to_vae(frames, (0, 0, 43, 50), size)
    assert torch.equal(ops.crop_resize_to_vae(frames, (0, 0, 43, 50), size), expected)


@settings(max_examples=100, deadline=None)
@given(h=SIDES, w=SIDES, height=SIDES, width=SIDES, seed=SEEDS, order=st.sampled_from(["pillow13", "horizontal_first"]))
def test_from_vae_equals_the_definition(h: int, w: int, height: int, width: int, seed: int, order: str) -> None:
    generator = torch.Generator().manual_seed(seed)
    decoded = torch.randn(2, 3, h, w, generator=generator)
    resized = ops.resize_from_vae(decoded, (width, height), pass_order=order)
    assert torch.equal(resized, reference.resize_from_vae(decoded, (width, height), pass_order=order))
    assert torch.equal(
        resized,
        ops.resize_from_vae(decoded.contiguous(memory_format=torch.channels_last), (width, height), pass_order=order),
    )


def test_quantises_as_numpy_does() -> None:
    """Every rounding edge: k / 255 and its neighbours, both zeros, far values; NaN is 0."""
    bytes_ = np.arange(256, dtype=np.float32)
    levels = bytes_ / np.float32(255)
    special = np.array([-0.0, 1e-45, -1e-45, 1e30, -1e30, np.inf, -np.inf, 1e-3], np.float32)
    values = np.concatenate([levels, np.nextafter(levels, -1), np.nextafter(levels, 2), special]).astype(np.float32)
    expected = np.clip(255.0 * values, 0, 255).astype(np.uint8)
    resized = ops.crop_resize(values.reshape(1, 1, -1, 1), (0, 0, len(values), 1), (len(values), 1))
    assert np.array_equal(resized.ravel(), image(expected))
    assert ops.crop_resize(np.full((1, 1, 80, 1), np.nan, np.float32), (0, 0, 80, 1), (80, 1)).max() == 0

    decoded = (2 * values[:-8] - 1)[None, None, None].repeat(3, 1)
    unit_range = torch.clamp((torch.from_numpy(decoded) + 1.0) / 2.0, 0, 1).numpy()
    expected = np.clip(255.0 * unit_range, 0, 255).astype(np.uint8).transpose(0, 2, 3, 1)
    assert np.array_equal(ops.resize_from_vae(decoded, (decoded.shape[-1], 1)), image(expected))


def test_no_frames() -> None:
    assert ops.crop_resize(torch.empty(0, 9, 9, 3), (0, 0, 9, 9), (5, 4)).shape == (0, 4, 5, 3)
