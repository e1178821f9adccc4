"""The nodes against the reference's published interfaces and golden runs, in a stand-in of ComfyUI."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest
import stand_in
import torch

import animdetail_trt as adt
from golden_cases import load_case
from tolerances import assert_frames_match

INTERFACES = json.loads((Path(__file__).parents[1] / "golden" / "node_interfaces.json").read_text())
REFERENCE = (
    "DetailerForEachPipeForAnimateDiff",
    "SEGSDetailerForAnimateDiff",
    "SEGSPaste",
    "MaskToSEGS_for_AnimateDiff",
)


@pytest.fixture
def seen(monkeypatch: pytest.MonkeyPatch) -> stand_in.Seen:
    return stand_in.enter(monkeypatch, INTERFACES["DetailerForEachPipeForAnimateDiff"])


@pytest.fixture
def nodes(seen: stand_in.Seen) -> dict[str, Any]:
    from animdetail_trt.comfyui.nodes import NODE_CLASS_MAPPINGS

    return NODE_CLASS_MAPPINGS


@pytest.mark.parametrize("name", REFERENCE)
def test_interface_is_the_references(nodes: dict[str, Any], name: str) -> None:
    node, golden = nodes[f"AnimDetail_{name}"], INTERFACES[name]
    # As the server publishes it: the order is that of the widgets in a saved workflow.
    assert json.dumps(node.INPUT_TYPES()) == json.dumps(golden["input"])
    assert list(node.RETURN_TYPES) == golden["output"]
    assert list(getattr(node, "RETURN_NAMES", node.RETURN_TYPES)) == golden["output_name"]
    assert list(getattr(node, "OUTPUT_IS_LIST", [False] * len(golden["output"]))) == golden["output_is_list"]
    assert golden["function"] == node.FUNCTION


def test_both_packs_can_be_installed(nodes: dict[str, Any]) -> None:
    from animdetail_trt.comfyui.nodes import NODE_DISPLAY_NAME_MAPPINGS

    assert not set(nodes) & set(INTERFACES)
    assert set(NODE_DISPLAY_NAME_MAPPINGS) == set(nodes)
    assert {node.CATEGORY for node in nodes.values()} == {"animdetail"}


def _inputs(case: Any, tiny: Path, seen: stand_in.Seen) -> dict[str, Any]:
    refiner = case.settings.get("refiner")
    inputs = dict(case.settings["params"])
    inputs |= {"image_frames": case.frames, "segs": case.segs, "basic_pipe": stand_in.pipe_of(case.pipe(tiny), seen)}
    if refiner:
        inputs["refiner_basic_pipe_opt"] = stand_in.pipe_of(case.pipe(tiny, "tiny_refiner", "refiner_"), seen)
    return inputs


@pytest.mark.parametrize("name", ["basic", "refiner", "ays_sd1"])
def test_node_gives_the_references_pictures(nodes: dict[str, Any], seen: stand_in.Seen, tiny: Path, name: str) -> None:
    case = load_case(name)
    inputs = _inputs(case, tiny, seen)
    image, segs, pipe, pictures = nodes["AnimDetail_DetailerForEachPipeForAnimateDiff"]().doit(**inputs)
    assert_frames_match(image, case.tensors["out.image"])
    assert pipe is inputs["basic_pipe"]
    assert len(segs[1]) == len(case.settings["segs"])
    assert pictures == []
    steps = inputs["steps"] * len(segs[1])
    assert seen.progress == [(step + 1, steps) for step in range(steps)]
    assert seen.previews == steps


def _simple(tiny: Path, seen: stand_in.Seen, pipe: adt.BasicPipe, **changes: Any) -> dict[str, Any]:
    mask = torch.zeros(64, 64)
    mask[16:48, 16:48] = 1
    segs = (64, 64), [adt.SEG(None, mask[8:56, 8:56], 1.0, (8, 8, 56, 56), (16, 16, 48, 48), "face")] * 2
    frames = torch.rand(3, 64, 64, 3, generator=torch.Generator().manual_seed(2))
    return {
        "image_frames": frames, "segs": segs, "guide_size": 64, "guide_size_for": False, "max_size": 64, "seed": 1,
        "steps": 4, "cfg": 2.0, "sampler_name": "euler", "scheduler": "normal", "denoise": 0.5, "feather": 5,
        "basic_pipe": stand_in.pipe_of(pipe, seen),
    } | changes  # fmt: skip


def test_interrupt_stops_within_a_step(
    nodes: dict[str, Any], seen: stand_in.Seen, tiny: Path, pipe: adt.BasicPipe
) -> None:
    seen.interrupt_at = 2
    with pytest.raises(stand_in.InterruptedByUserError):
        nodes["AnimDetail_DetailerForEachPipeForAnimateDiff"]().doit(**_simple(tiny, seen, pipe))
    assert seen.progress == [(1, 8), (2, 8)]


def test_vae_takes_what_memory_holds_or_what_is_set(
    nodes: dict[str, Any], seen: stand_in.Seen, tiny: Path, pipe: adt.BasicPipe
) -> None:
    node = nodes["AnimDetail_DetailerForEachPipeForAnimateDiff"]()
    inputs = _simple(tiny, seen, pipe)
    node.doit(**inputs)
    assert set(seen.vae_batches) == {3}
    seen.vae_batches.clear()
    seen.free_bytes = 2 * 1000 * 64 * 64 + 1
    node.doit(**inputs)
    assert seen.vae_batches == [2, 1] * 4
    seen.vae_batches.clear()
    model, *rest = inputs["basic_pipe"]
    (model,) = nodes["AnimDetail_Settings"]().doit(
        model, reference_mode=True, run="comfyui", precision="auto", vae_frames=1
    )
    node.doit(**inputs | {"basic_pipe": (model.clone(), *rest)})
    assert set(seen.vae_batches) == {1}


def test_resizes_are_those_of_the_pillow_that_is_there(
    nodes: dict[str, Any], seen: stand_in.Seen, tiny: Path, pipe: adt.BasicPipe, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As the Impact Pack's are. It shows in tall segments."""
    region = 8, 0, 28, 64
    segs = (64, 64), [adt.SEG(None, torch.ones(64, 20), 1.0, region, region, "tall")]
    node = nodes["AnimDetail_DetailerForEachPipeForAnimateDiff"]()
    pictures = {}
    for version in ("9.5.0.post2", "12.3.0", "13.0.0", "14.1"):
        monkeypatch.setattr("PIL.__version__", version)
        inputs = _simple(tiny, seen, pipe, segs=segs, steps=1, max_size=256)
        pictures[version] = node.doit(**inputs)[0]
    assert torch.equal(pictures["9.5.0.post2"], pictures["12.3.0"])
    assert torch.equal(pictures["13.0.0"], pictures["14.1"])
    assert not torch.equal(pictures["12.3.0"], pictures["13.0.0"])
    monkeypatch.setitem(sys.modules, "PIL", None)
    assert torch.equal(node.doit(**inputs)[0], pictures["13.0.0"])


def test_what_a_workflow_leaves_out_is_as_in_the_reference(
    nodes: dict[str, Any], seen: stand_in.Seen, tiny: Path, pipe: adt.BasicPipe
) -> None:
    """Its method's defaults are not those of its widgets: no feather on the noise mask, so no differential mask."""
    node = nodes["AnimDetail_SEGSDetailerForAnimateDiff"]()
    inputs = _simple(tiny, seen, pipe)
    del inputs["feather"]
    (segs, pictures) = node.doit(**inputs)
    (without, _) = node.doit(**inputs, noise_mask_feather=0)
    (softened, _) = node.doit(**inputs, noise_mask_feather=20)
    image, same, other = (torch.as_tensor(part[1][0].cropped_image) for part in (segs, without, softened))
    assert torch.equal(image, same)
    assert not torch.equal(image, other)
    assert pictures[0].shape == (1, 64, 64, 3)


def test_refiner_without_text_encoder_is_none(
    nodes: dict[str, Any], seen: stand_in.Seen, tiny: Path, pipe: adt.BasicPipe
) -> None:
    node = nodes["AnimDetail_DetailerForEachPipeForAnimateDiff"]()
    inputs = _simple(tiny, seen, pipe)
    model, _, *rest = inputs["basic_pipe"]
    alone = node.doit(**inputs)[0]
    refined = node.doit(**inputs, refiner_ratio=0.5, refiner_basic_pipe_opt=(model, None, *rest))[0]
    assert torch.equal(alone, refined)


def test_samplers_and_conditioning_are_the_hosts_to_judge(
    nodes: dict[str, Any], seen: stand_in.Seen, tiny: Path, pipe: adt.BasicPipe, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another pack's sampler and an extra that this package does not know are no errors here."""
    import comfy.sample

    def sample_custom(
        model: Any, noise: Any, cfg: Any, sampler: Any, sigmas: Any, positive: Any, *rest: Any, **options: Any
    ) -> Any:
        assert sampler == "res_2s"
        assert positive[0][1] == {"gligen": "boxes"}
        return rest[1]

    monkeypatch.setattr(comfy.sample, "sample_custom", sample_custom)
    inputs = _simple(tiny, seen, pipe, sampler_name="res_2s")
    model, clip, vae, positive, negative = inputs["basic_pipe"]
    inputs["basic_pipe"] = (model, clip, vae, [[positive[0][0], {"gligen": "boxes"}]], negative)
    image, *_ = nodes["AnimDetail_DetailerForEachPipeForAnimateDiff"]().doit(**inputs)
    assert image.shape == inputs["image_frames"].shape


def test_improved_mode_calls_all_of_a_hook(
    nodes: dict[str, Any], seen: stand_in.Seen, tiny: Path, pipe: adt.BasicPipe
) -> None:
    given: list[Any] = []

    class Hook:
        def pre_ksample(self, model: Any, *values: Any) -> Any:
            given.append(model)
            seed, _, *rest = values
            return model, seed, 2, *rest

        def post_paste(self, frames: Any) -> Any:
            return frames

    inputs = _simple(tiny, seen, pipe, detailer_hook=Hook())
    model, *rest = inputs["basic_pipe"]
    (improved,) = nodes["AnimDetail_Settings"]().doit(
        model, reference_mode=False, run="comfyui", precision="auto", vae_frames=0
    )
    nodes["AnimDetail_DetailerForEachPipeForAnimateDiff"]().doit(**inputs | {"basic_pipe": (improved, *rest)})
    assert given == [improved] * 2
    assert [done for done, _ in seen.progress] == [1, 2, 5, 6]


def test_mask_to_segs_and_paste(nodes: dict[str, Any]) -> None:
    mask = torch.zeros(1, 32, 32)
    mask[:, 8:24, 8:24] = 1
    options = {"combined": False, "crop_factor": 1.5, "bbox_fill": False, "drop_size": 4, "contour_fill": False}
    (segs,) = nodes["AnimDetail_MaskToSEGS_for_AnimateDiff"]().doit(mask=mask, **options)
    assert [seg.bbox for seg in segs[1]] == [(8, 8, 24, 24)]
    frames, white = torch.zeros(2, 32, 32, 3), torch.ones(2, 32, 32, 3)
    (image,) = nodes["AnimDetail_SEGSPaste"]().doit(image=frames, segs=segs, feather=0, alpha=255, ref_image_opt=white)
    assert torch.equal(image[..., 0] == 1, mask.expand(2, -1, -1) == 1)
