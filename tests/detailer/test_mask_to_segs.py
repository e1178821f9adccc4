"""MaskToSEGS: the golden cases, every kind of mask that is accepted, and what must hold for any mask."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays
from safetensors import safe_open

from animdetail_trt.detailer.mask_to_segs import MaskToSEGS_for_AnimateDiff, _label_regions
from animdetail_trt.detailer.plan import mask_of
from animdetail_trt.errors import InputError

GOLDEN = Path(__file__).parents[1] / "golden"

with safe_open(GOLDEN / "mask_to_segs.safetensors", "np") as _file:
    CASES = json.loads(_file.metadata()["cases"])
    ARRAYS = {name: _file.get_tensor(name) for name in _file.keys()}  # noqa: SIM118 - a handle is not iterable

doit = MaskToSEGS_for_AnimateDiff.doit

bool_masks = arrays(np.bool_, array_shapes(min_dims=2, max_dims=2, max_side=12))


def blob_frame() -> np.ndarray:
    """A square of 12 x 12 with a hole, and a bar of 5 x 20, both at 0.8."""
    mask = np.zeros((40, 50), np.float32)
    mask[4:16, 6:18] = 0.8
    mask[8:10, 10:12] = 0
    mask[25:30, 20:40] = 0.8
    return mask


@pytest.mark.parametrize("as_mask", [torch.from_numpy, np.asarray], ids=["torch", "numpy"])
@pytest.mark.parametrize("case", CASES, ids=lambda case: case["name"])
def test_golden(case, as_mask):
    ((header, segs),) = doit(as_mask(ARRAYS[f"{case['name']}.mask"]), **case["args"])
    assert list(header) == case["header"]
    assert len(segs) == len(case["segs"])
    for i, (seg, expected) in enumerate(zip(segs, case["segs"], strict=True)):
        assert list(seg.crop_region) == expected["crop_region"]
        assert list(seg.bbox) == expected["bbox"]
        assert (seg.label, seg.confidence) == (expected["label"], expected["confidence"])
        assert (seg.cropped_image, seg.control_net_wrapper) == (None, None)
        np.testing.assert_array_equal(seg.cropped_mask, ARRAYS[f"{case['name']}.segs.{i}.cropped_mask"])


def test_defaults_are_the_published_ones():
    interface = json.loads((GOLDEN / "node_interfaces.json").read_text())["MaskToSEGS_for_AnimateDiff"]["input"]
    published = {name: options[0]["default"] for name, (_, *options) in interface["required"].items() if options}
    mask = ARRAYS["two_blobs.mask"]
    ((_, by_default),) = doit(mask)
    ((_, by_name),) = doit(mask, **published)
    ((_, by_place),) = doit(mask, *published.values())
    assert by_default
    for a, b, c in zip(by_default, by_name, by_place, strict=True):
        assert a.crop_region == b.crop_region == c.crop_region


def test_one_frame_in_any_rank_and_type_is_the_same():
    mask = blob_frame()
    ((_, expected),) = doit(mask, drop_size=3)
    assert [seg.bbox for seg in expected] == [(20, 25, 40, 30), (6, 4, 18, 16)]
    for same in (mask[None], mask[None, None], mask.astype(np.float64), torch.from_numpy(mask).requires_grad_()):
        ((header, segs),) = doit(same, drop_size=3)
        assert header == (40, 50)
        for seg, other in zip(segs, expected, strict=True):
            assert isinstance(seg.cropped_mask, np.ndarray)
            np.testing.assert_array_equal(seg.cropped_mask, other.cropped_mask)


def test_holes_stay_unless_contour_fill():
    hole = slice(8, 10), slice(10, 12)
    for contour_fill, value in ((False, 0), (True, 1)):
        ((_, segs),) = doit(blob_frame(), crop_factor=1.0, contour_fill=contour_fill)
        (seg,) = segs
        x, y = seg.crop_region[:2]
        assert (
            seg.cropped_mask[hole[0].start - y : hole[0].stop - y, hole[1].start - x : hole[1].stop - x] == value
        ).all()
        assert seg.cropped_mask[0, 0] == 1


def test_several_masks_keep_their_values_and_type():
    frames = np.stack([blob_frame() * share for share in (1, 0.5, 0.25)])
    for masks in (frames, torch.from_numpy(frames)):
        ((_, segs),) = doit(masks, drop_size=3, crop_factor=1.5)
        assert len(segs) == 2
        for seg in segs:
            x1, y1, x2, y2 = seg.crop_region
            assert type(seg.cropped_mask) is type(masks)
            np.testing.assert_array_equal(seg.cropped_mask, frames[:, y1:y2, x1:x2])


@pytest.mark.parametrize("as_mask", [torch.from_numpy, np.asarray], ids=["torch", "numpy"])
@pytest.mark.parametrize("one", [np.uint8(1), np.uint8(255), np.int64(1), np.int32(255), np.bool_(1)])
@pytest.mark.parametrize("frames", [1, 2])
def test_integers_and_bools_are_the_mask_that_they_stand_for(as_mask, one, frames):
    """0 and 1, or 0 and 255: the detailer then reads in the segments what the mask said of the whole."""
    shape = np.stack([blob_frame() > 0] * frames)
    ((_, expected),) = doit(shape.astype(np.float32), drop_size=3)
    ((_, segs),) = doit(as_mask(shape * one), drop_size=3)
    assert len(segs) == 2
    for i, (seg, other) in enumerate(zip(segs, expected, strict=True)):
        assert seg.bbox == other.bbox
        assert isinstance(seg.cropped_mask, torch.Tensor) is (as_mask is torch.from_numpy and frames == 2)
        assert torch.equal(mask_of(seg, i), mask_of(other, i))


def test_a_faint_region_of_8_bits_stays_faint():
    """Within its own segment the largest value is 1, which is 1/255 all the same."""
    mask = np.zeros((2, 40, 50), np.uint8)
    mask[:, :12, :12], mask[:, 25:, 30:] = 1, 255
    ((_, segs),) = doit(mask, crop_factor=1.0)
    assert [float(mask_of(seg, 0).max()) for seg in segs] == [1.0, np.float32(1 / 255)]


def test_contour_fill_of_several_masks_warns():
    with pytest.warns(UserWarning, match="contour_fill"):
        doit(np.stack([blob_frame()] * 2), contour_fill=True)


@pytest.mark.parametrize(
    ("mask", "message"),
    [
        (np.zeros(5, np.float32), r"shape \(5,\)"),
        (np.zeros((2, 3, 4, 5), np.float32), r"shape \(2, 3, 4, 5\)"),
        (torch.zeros(0, 4, 5), r"shape \(0, 4, 5\)"),
        (None, "NoneType"),
        (np.full((4, 5), np.nan, np.float32), "mask holds NaN"),
        (np.full((4, 5), 255, np.float32), "spans 255..255. Divide 8-bit values by 255"),
        (np.full((4, 5), -1, np.float32), "spans -1..-1. Clip"),
        (np.full((4, 5), 1.01, np.float32), "spans 1.01..1.01. Clip"),
        (np.full((4, 5), 256, np.int64), "mask of int64 spans 256..256. Give integers in 0..255"),
        (np.full((4, 5), -1, np.int8), "mask of int8 spans -1..-1"),
    ],
)
def test_bad_masks_are_named(mask, message):
    with pytest.raises(InputError, match=message):
        doit(mask)


@pytest.mark.parametrize("crop_factor", [0, -1.0, float("nan"), float("inf"), "a", None, 10**400, True])
def test_bad_crop_factor_is_named(crop_factor):
    with pytest.raises(InputError, match=f"crop_factor.*{str(crop_factor)[:80]}"):
        doit(blob_frame(), crop_factor=crop_factor)


@pytest.mark.parametrize("drop_size", ["x", None, float("nan"), 2.5])
@pytest.mark.parametrize("combined", [False, True])
def test_bad_drop_size_is_named(drop_size, combined):
    with pytest.raises(InputError, match=f"drop_size must be a whole number of pixels, not {drop_size!r}"):
        doit(blob_frame(), combined, drop_size=drop_size)


@given(bool_masks, st.booleans())
def test_each_pixel_belongs_to_one_region(mask, contour_fill):
    """At crop_factor 1 and no dropping, the regions larger than one pixel put the mask together again."""
    ((_, segs),) = doit(mask, crop_factor=1.0, drop_size=1, contour_fill=contour_fill)
    drawn = np.zeros(mask.shape, np.float32)
    for seg in segs:
        x1, y1, x2, y2 = seg.bbox
        assert seg.crop_region == seg.bbox
        assert min(x2 - x1, y2 - y1) > 1
        drawn[y1:y2, x1:x2] += seg.cropped_mask
    assert drawn.max(initial=0) <= 1
    if not contour_fill:
        assert not drawn[~mask].any()
    labels, found = _label_regions(mask)
    large = [label for label, (x1, y1, x2, y2) in found if min(x2 - x1, y2 - y1) > 1]
    np.testing.assert_array_equal(drawn[mask] > 0, np.isin(labels, large)[mask])


@given(bool_masks)
def test_regions_are_opencvs_outermost_contours_filled(mask):
    cv2 = pytest.importorskip("cv2", reason="opencv is not needed; it is only compared with where it is installed")
    contours, tree = cv2.findContours(mask.astype(np.uint8), cv2.RETR_TREE, cv2.CHAIN_APPROX_SIMPLE)
    outermost = [contour for i, contour in enumerate(contours) if tree[0][i][3] == -1]
    labels, found = _label_regions(mask)
    assert len(found) == len(outermost)
    for (label, bbox), contour in zip(found, outermost, strict=True):
        x, y, width, height = cv2.boundingRect(contour)
        assert bbox == (x, y, x + width, y + height)
        filled = cv2.drawContours(np.zeros(mask.shape, np.uint8), [contour], 0, 1, -1)
        np.testing.assert_array_equal(labels == label, filled > 0)
