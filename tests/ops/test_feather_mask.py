"""The blur of a mask against its definition."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from animdetail_trt import ops
from animdetail_trt.ops import reference

# A mask that was 1 may be 0.9999997 after the blur: the kernel's float32 sum (golden/README.md allows this much).
TOLERANCE = 2e-6


@settings(max_examples=150, deadline=None)
@given(
    n=st.integers(0, 3),
    h=st.integers(1, 70),
    w=st.integers(1, 90),
    feather=st.integers(0, 12),
    alpha=st.integers(0, 255),
    seed=st.integers(0, 2**32 - 1),
)
def test_equals_the_definition(n: int, h: int, w: int, feather: int, alpha: int, seed: int) -> None:
    mask = torch.rand((n, h, w) if n else (h, w), generator=torch.Generator().manual_seed(seed))
    feathered = ops.feather_mask(mask, feather, alpha)
    assert feathered.shape == mask.shape
    assert torch.equal(feathered, reference.feather_mask(mask, feather, alpha))


@settings(max_examples=40)
@given(
    h=st.integers(1, 250),
    w=st.integers(1, 250),
    feather=st.integers(0, 100),
    seed=st.integers(0, 2**32 - 1),
    constant=st.booleans(),
)
def test_any_feather(h: int, w: int, feather: int, seed: int, constant: bool) -> None:
    """The definition's bits, up to 201 x 201 taps; many of the masks are smaller than the kernel and fall back."""
    mask = torch.ones(h, w) if constant else torch.rand(h, w, generator=torch.Generator().manual_seed(seed))
    assert torch.equal(ops.feather_mask(mask, feather), reference.feather_mask(mask, feather))


def test_without_feather_or_room_for_one_only_alpha_counts() -> None:
    mask = torch.rand(3, 20)
    assert torch.equal(ops.feather_mask(mask, 0), mask)
    assert torch.equal(ops.feather_mask(mask, -3), mask)
    assert torch.equal(ops.feather_mask(mask, 5, 128), mask * (128 / 255))


def test_a_constant_stays_constant() -> None:
    """The kernel sums to one and the edges reflect: a blur that darkened borders would show in every paste."""
    feathered = ops.feather_mask(np.ones((64, 48), np.float32), 5)
    np.testing.assert_allclose(feathered, 1, rtol=0, atol=TOLERANCE)


def test_masks_of_a_batch_do_not_mix() -> None:
    masks = torch.rand(5, 40, 33)
    assert torch.equal(ops.feather_mask(masks, 4)[3], ops.feather_mask(masks[3], 4))


def test_merge_masks() -> None:
    """Bitwise or of 8-bit values, then above 0.1; the detailer's rule drops the first mask's fractions."""
    masks = torch.tensor([[[0.05, 0.06, 0.5, 0.0, 1.0]], [[0.05, 0.05, 0.0, 0.2, 0.0]]])
    # 0.05 -> 12, 0.06 -> 15: 12 | 12 = 12 and 15 | 12 = 15 stay below 25.5
    assert ops.merge_masks(masks).tolist() == [[0, 0, 1, 1, 1]]
    # the first as uint8(m): 0.5 -> 0, 1.0 -> 1, and 1 / 255 is below the threshold
    assert ops.merge_masks(masks, first_factor=1).tolist() == [[0, 0, 0, 1, 0]]
    # 17 | 14 = 31 is above the threshold, though neither is
    assert ops.merge_masks(np.array([[[17.5 / 255]], [[14.5 / 255]]], np.float32)).tolist() == [[1]]


@pytest.mark.parametrize("count", [None, 1, 4])
def test_what_torch_leaves_to_its_blas_is_torchs_own(count: int | None) -> None:
    """Small single masks under a 3x3 kernel, whose bits differ between processors; of any strides, in and out."""
    shape = (*([] if count is None else [count]), 20, 24)
    mask = torch.rand(shape, generator=torch.Generator().manual_seed(1))
    alone = [reference.feather_mask(one, 1, 200) for one in mask.reshape(-1, 20, 24)]
    expected = torch.stack(alone).view(shape)
    assert torch.equal(ops.feather_mask(mask, 1, 200, one_by_one=True), expected)
    assert torch.equal(ops.feather_mask(mask.requires_grad_(), 1, 200, one_by_one=True), expected)
    with torch.inference_mode():
        out = torch.full((*shape[:-1], 48), 7.0)[..., ::2]
    ops.feather_mask_into(out, mask, 1, 200, one_by_one=True)
    assert torch.equal(out, expected)
    wide = np.full((*shape[:-1], 26), 7, np.float32)
    backwards = mask.detach().numpy()[..., ::-1].copy()[..., ::-1]
    ops.feather_mask_into(wide[..., 1:-1], backwards, 1, 200, one_by_one=True)
    np.testing.assert_array_equal(wide[..., 1:-1], expected)
    assert np.all(wide[..., [0, -1]] == 7)
