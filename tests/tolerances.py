"""The tolerances of golden/README.md, in one place, with what they allow for."""

from __future__ import annotations

import torch
from torch import Tensor


def assert_frames_match(actual: Tensor, expected: Tensor) -> None:
    """``out.image``: a truncation to 8 bits may flip (2/255), seldom (3 % of the values), without a drift (1.5e-4)."""
    assert actual.shape == expected.shape
    difference = (actual - expected).abs()
    assert float(difference.max()) <= 2 / 255
    assert float((difference <= 1e-3).float().mean()) >= 0.97
    assert float(difference.mean()) <= 1.5e-4


def assert_crops_match(actual: Tensor, expected: Tensor) -> None:
    """A crop is all new pixels, so more of them than of a frame may flip: as for frames, without the share."""
    assert actual.shape == expected.shape
    difference = (actual - expected).abs()
    assert float(difference.max()) <= 2 / 255
    assert float(difference.mean()) <= 1.5e-4


def assert_pasted(actual: Tensor, expected: Tensor, *, blurred: bool) -> None:
    """A paste of 8-bit pixels is identical to the bit; a blurred mask may be 2e-6 off (order of the blur's sums)."""
    if blurred:
        torch.testing.assert_close(actual, expected, rtol=0, atol=2e-6)
    else:
        assert torch.equal(actual, expected)
