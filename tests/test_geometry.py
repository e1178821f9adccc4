"""Regions and sizes: the reference's numbers where golden cases hold them, and what must hold everywhere else."""

import json
from pathlib import Path

import pytest
from hypothesis import assume, example, given
from hypothesis import strategies as st
from safetensors import safe_open

from animdetail_trt.errors import InputError
from animdetail_trt.geometry import latent_crop, latent_size, make_crop_region, scale_region, upscaled_size

GOLDEN = Path(__file__).parent / "golden"
NODE_CASES = sorted((GOLDEN / "node").glob("*.safetensors"))

sides = st.integers(1, 4096)
sizes = st.tuples(sides, sides)


@st.composite
def regions(draw, frame_w, frame_h):
    """A region with area inside the frame."""
    x1, y1 = draw(st.integers(0, frame_w - 1)), draw(st.integers(0, frame_h - 1))
    return x1, y1, draw(st.integers(x1 + 1, frame_w)), draw(st.integers(y1 + 1, frame_h))


@st.composite
def framed_regions(draw):
    size = draw(sizes)
    return size, draw(regions(*size))


def test_crop_region_of_golden_masks():
    with safe_open(GOLDEN / "mask_to_segs.safetensors", "np") as file:
        cases = json.loads(file.metadata()["cases"])
    checked = 0
    for case in cases:
        height, width = case["header"]
        for seg in case["segs"]:
            region = make_crop_region(width, height, seg["bbox"], case["args"]["crop_factor"])
            assert list(region) == seg["crop_region"], case["name"]
            checked += 1
    assert checked == 11


@pytest.mark.parametrize("path", NODE_CASES, ids=lambda path: path.stem)
def test_sizes_of_golden_node_cases(path):
    """Header scaling, guide size and the VAE's crop, as the pixels that the reference encoded show them."""
    with safe_open(path, "np") as file:
        case = json.loads(file.metadata()["case"])
        encoded = [file.get_slice(f"tap.encode.pixels.{i}").get_shape() for i in range(len(case["segs"]))]
        latents = [file.get_slice(f"tap.encode.latent.{i}").get_shape() for i in range(len(case["segs"]))]
    _, _, *frame_size = case["frames"]
    params = case["params"]
    for i, (seg, out_seg) in enumerate(zip(case["segs"], case["out_segs"], strict=True)):
        region, bbox = (
            scale_region(seg[name], tuple(case["header"]), tuple(frame_size)) for name in ("crop_region", "bbox")
        )
        assert list(region) == out_seg["crop_region"]
        assert list(bbox) == out_seg["bbox"]
        crop_size = (region[2] - region[0], region[3] - region[1])
        size = upscaled_size(crop_size, bbox, params["guide_size"], params["guide_size_for"], params["max_size"])
        assert size == (encoded[i][2], encoded[i][1])
        assert latent_size(size) == (latents[i][3], latents[i][2])


@given(framed_regions(), st.floats(1, 100))
def test_crop_region_lies_in_the_frame_and_holds_the_bbox(framed, crop_factor):
    (frame_w, frame_h), bbox = framed
    x1, y1, x2, y2 = make_crop_region(frame_w, frame_h, bbox, crop_factor)
    assert 0 <= x1 < x2 <= frame_w
    assert 0 <= y1 < y2 <= frame_h
    assert x1 <= bbox[0]
    assert y1 <= bbox[1]
    # Both ends are truncated, so the far edge may lose the one pixel that the near edge gained.
    assert x2 >= bbox[2] - 1
    assert y2 >= bbox[3] - 1


def test_crop_region_at_an_edge_moves_inwards_at_full_size():
    assert make_crop_region(100, 80, (90, 70, 100, 80), 3.0) == (70, 50, 100, 80)
    assert make_crop_region(100, 80, (0, 0, 10, 10), 3.0) == (0, 0, 30, 30)
    assert make_crop_region(100, 80, (10, 10, 20, 20), 50.0) == (0, 0, 100, 80)


@given(framed_regions(), st.integers(1, 8))
def test_scaling_by_a_whole_factor_multiplies(framed, factor):
    (frame_w, frame_h), region = framed
    scaled = scale_region(region, (frame_h, frame_w), (frame_h * factor, frame_w * factor))
    assert scaled == tuple(side * factor for side in region)


@given(framed_regions())
@example(((80, 64), (1, 2, 3, 4)))
def test_scaling_does_nothing_without_a_header_size(framed):
    (frame_w, frame_h), region = framed
    for header in ((frame_h, frame_w), (0, frame_w), (frame_h, 0)):
        assert scale_region(region, header, (frame_h, frame_w)) == region


def test_scaling_mixes_the_axes_as_published():
    assert scale_region((10, 20, 31, 41), (100, 200), (150, 600)) == (30, 60, 46, 61)


@given(framed_regions(), st.integers(8, 2048), st.booleans(), st.integers(8, 4096))
def test_upscaled_size_never_shrinks_and_obeys_max_size(framed, guide_size, for_bbox, max_size):
    crop_size, bbox = framed
    new_w, new_h = upscaled_size(crop_size, bbox, guide_size, for_bbox, max_size)
    if (new_w, new_h) != crop_size:
        assert new_w >= crop_size[0]
        assert new_h >= crop_size[1]
        assert max(new_w, new_h) <= max_size


@given(sizes, st.integers(8, 2048))
def test_upscaled_size_brings_the_shorter_side_of_the_crop_to_guide_size(crop_size, guide_size):
    assume(guide_size > min(crop_size))
    shorter = min(upscaled_size(crop_size, (0, 0, 1, 1), guide_size, False, 10**9))
    assert shorter in (guide_size - 1, guide_size)  # one less where the float product falls short of the whole number


def test_upscaled_size_of_nothing_names_it():
    with pytest.raises(InputError, match=r"bbox \(5, 6, 5, 9\)"):
        upscaled_size((10, 10), (5, 6, 5, 9), 512, True, 768)
    with pytest.raises(InputError, match="0x10 pixels"):
        upscaled_size((0, 10), (5, 6, 8, 9), 512, False, 768)


@given(st.tuples(st.integers(8, 4096), st.integers(8, 4096)))
def test_latent_crop_is_centred_and_whole(size):
    x1, y1, x2, y2 = latent_crop(size)
    assert (x2 - x1, y2 - y1) == tuple(side // 8 * 8 for side in size)
    assert (x2 - x1, y2 - y1) == tuple(side * 8 for side in latent_size(size))
    for before, after in ((x1, size[0] - x2), (y1, size[1] - y2)):
        assert 0 <= after - before <= 1


def test_latent_crop_of_less_than_a_latent_names_the_size():
    with pytest.raises(InputError, match="7x64 pixels"):
        latent_crop((7, 64))
