"""The whole node, against what the reference node gave for the same inputs."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

import animdetail_trt as adt
from golden_cases import NODE, load_case
from tolerances import assert_crops_match, assert_frames_match

CASES = sorted(path.stem for path in NODE.glob("*.safetensors"))


class RedTint:
    def post_paste(self, frames: Tensor) -> Tensor:
        frames = frames.clone()
        frames[..., 0] = 0.9 * frames[..., 0] + 0.1
        return frames


def test_all_cases_are_there() -> None:
    assert len(CASES) == 25


@pytest.mark.parametrize("name", CASES)
def test_node(name: str, tiny: Path) -> None:
    case = load_case(name)
    pipe = case.pipe(tiny)
    refiner = case.pipe(tiny, "tiny_refiner", "refiner_") if case.settings["refiner"] else None
    frames = case.frames
    before = frames.clone()

    image, segs, pipe_out, cnet_images = adt.DetailerForEachPipeForAnimateDiff.doit(
        frames,
        case.controlled_segs(tiny),
        **case.settings["params"],
        basic_pipe=pipe,
        detailer_hook=RedTint() if case.settings["hook"] else None,
        refiner_basic_pipe_opt=refiner,
    )

    assert_frames_match(image, case.tensors["out.image"])
    assert pipe_out is pipe
    expected_images = [case.tensors[key] for key in sorted(case.tensors) if key.startswith("out.cnet_images.")]
    for shown, expected in zip(cnet_images, expected_images, strict=True):
        # Where segments overlap, the second is shown what was pasted: 8-bit values that may have flipped.
        assert float((shown - expected).abs().max()) <= 2 / 255
    assert torch.equal(frames, before), "the input frames were written to"
    header, items = segs
    assert header == tuple(case.settings["header"])
    assert [list(seg.crop_region) for seg in items] == [seg["crop_region"] for seg in case.settings["out_segs"]]
    assert [list(seg.bbox) for seg in items] == [seg["bbox"] for seg in case.settings["out_segs"]]
    for i, seg in enumerate(items):
        assert isinstance(seg.cropped_image, np.ndarray)
        assert seg.control_net_wrapper is None
        expected = case.tensors[f"out.segs.{i}.cropped_image"].float() / 255
        assert_crops_match(torch.from_numpy(seg.cropped_image), expected)


def test_segs_detailer_then_paste_is_the_node(tiny: Path) -> None:
    """One segment detailed without pasting, then pasted by hand, gives the node's frames."""
    case = load_case("basic")
    pipe, params = case.pipe(tiny), dict(case.settings["params"])
    feather = params.pop("feather")
    segs, images = adt.SEGSDetailerForAnimateDiff.doit(case.frames, case.segs, **params, basic_pipe=pipe)
    assert [image.shape for image in images] == [(1, 64, 64, 3)]
    (pasted,) = adt.SEGSPaste.doit(case.frames, segs, feather)
    assert_frames_match(pasted, case.tensors["out.image"])


def test_early_argument_order(tiny: Path) -> None:
    """Early versions had inpaint_model before noise_mask_feather; such a positional call means the same."""
    case = load_case("motion_v2_two_segs")
    assert case.settings["params"]["noise_mask_feather"] == 20
    pipe, params = case.pipe(tiny), case.settings["params"]
    names = ["guide_size", "guide_size_for", "max_size", "seed", "steps", "cfg", "sampler_name", "scheduler"]
    names += ["denoise", "feather"]
    image, *_ = adt.DetailerForEachPipeForAnimateDiff.doit(
        case.frames,
        case.segs,
        *[params[name] for name in names],
        pipe,
        params["refiner_ratio"],
        None,
        None,
        False,
        params["noise_mask_feather"],
    )
    assert_frames_match(image, case.tensors["out.image"])
