"""The loop over segments: what each segment sees, what is told while it runs, and what a hook may do."""

from __future__ import annotations

import inspect
import json
import logging
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

import animdetail_trt as adt
from animdetail_trt import ops
from animdetail_trt.detailer import detailer as detailer_module
from animdetail_trt.detailer.canvas import Canvas, HostCanvas
from animdetail_trt.detailer.masks import paste_mask
from animdetail_trt.detailer.plan import SegmentPlan
from animdetail_trt.detailer.report import Observer, RunReport
from animdetail_trt.detailer.segment import decode_crop, encode_crop
from animdetail_trt.errors import InputError
from animdetail_trt.ops import native, reference
from animdetail_trt.sampling.masked import DifferentialMask
from animdetail_trt.sampling.model_sampling import ModelSampling
from tolerances import assert_crops_match

GOLDEN = Path(__file__).parents[1] / "golden"
STAGES = ["encode", "sample", "decode"]


@pytest.fixture
def painted(monkeypatch: pytest.MonkeyPatch) -> list[Tensor]:
    """Each segment is painted with the mean of what it saw plus 0.25; the list holds copies of what they saw."""
    seen: list[Tensor] = []

    def paint(canvas: Canvas, plan: SegmentPlan, *rest: Any) -> Tensor:
        crop = canvas.on_host(plan.crop_region)
        seen.append(canvas.on_host((0, 0, canvas.shape[2], canvas.shape[1])))
        patch = torch.full_like(crop, float(crop.mean()) + 0.25)
        paste = rest[-1]
        if callable(paste):
            paste(slice(None), patch, patch)
        return patch

    monkeypatch.setattr(detailer_module, "detail_segment", paint)
    return seen


def seg(x1: int, y1: int, x2: int, y2: int, **changes: Any) -> adt.SEG:
    mask = np.ones((y2 - y1, x2 - x1), np.float32)
    return adt.SEG(None, mask, 1.0, (x1, y1, x2, y2), (x1, y1, x2, y2), "face")._replace(**changes)


SEGS = (32, 32), [seg(0, 0, 16, 16), seg(8, 8, 24, 24)]


def detail(pipe: adt.BasicPipe, **changes: Any) -> Any:
    arguments = {"guide_size": 16, "steps": 2, "feather": 0, "noise_mask_feather": 0, "basic_pipe": pipe}
    return adt.DetailerForEachPipeForAnimateDiff.doit(torch.zeros(2, 32, 32, 3), SEGS, **(arguments | changes))


def test_each_segment_sees_what_the_one_before_pasted(pipe: adt.BasicPipe, painted: list[Tensor]) -> None:
    image, *_ = detail(pipe)
    assert painted[0].max() == 0
    assert torch.equal(painted[1][:, :16, :16], torch.full((2, 16, 16, 3), 0.25))
    assert image[0, 4, 4, 0] == 0.25
    assert image[0, 12, 12, 0] == pytest.approx(0.25 / 4 + 0.25)


def test_segs_detailer_shows_every_segment_the_same_frames(pipe: adt.BasicPipe, painted: list[Tensor]) -> None:
    adt.SEGSDetailerForAnimateDiff.doit(torch.zeros(2, 32, 32, 3), SEGS, guide_size=16, steps=2, basic_pipe=pipe)
    assert all(frames.max() == 0 for frames in painted)


def test_what_a_hook_keeps_stays_as_it_was(pipe: adt.BasicPipe, painted: list[Tensor]) -> None:
    class Keeper:
        def __init__(self) -> None:
            self.kept: list[tuple[Tensor, Tensor]] = []

        def post_paste(self, frames: Tensor) -> Tensor:
            self.kept.append((frames, frames.clone()))
            return frames

    hook = Keeper()
    detail(pipe, detailer_hook=hook)
    assert len(hook.kept) == 2
    assert all(torch.equal(frames, copy) for frames, copy in hook.kept)


@pytest.mark.usefixtures("painted")
def test_a_hook_that_returns_no_frames(pipe: adt.BasicPipe) -> None:
    class Forgetful:
        def post_paste(self, frames: Tensor) -> None:
            return None

    with pytest.raises(InputError, match="post_paste returned NoneType"):
        detail(pipe, detailer_hook=Forgetful())


def test_the_observer_is_told_everything_in_order(pipe: adt.BasicPipe) -> None:
    events: list[Any] = []

    class Recorder(Observer):
        def begin_run(self, segment_count: int, steps_per_segment: int) -> None:
            events.append(("run", segment_count, steps_per_segment))

        def begin_segment(self, index: int, label: str, crop_size: tuple[int, int], work_size: tuple[int, int]) -> None:
            events.append(("begin", index, label, crop_size, work_size))

        def step(self, index: int, step: int, steps: int) -> None:
            events.append(("step", index, step, steps))

        def stage(self, index: int, name: str, elapsed_ms: float) -> None:
            events.append((name, index))

        def end_segment(self, index: int) -> None:
            events.append(("end", index))

    detail(pipe, guide_size=24, observer=Recorder())
    expected: list[Any] = [("run", 2, 2)]
    for i in range(2):
        expected.append(("begin", i, "face", (16, 16), (24, 24)))
        for name in [*STAGES, "paste"]:
            expected += [("step", i, 1, 2), ("step", i, 2, 2)] if name == "sample" else []
            expected.append((name, i))
        expected.append(("end", i))
    assert events == expected


def test_run_report(pipe: adt.BasicPipe) -> None:
    report = RunReport()
    detail(pipe, observer=report)
    described = report.as_dict()
    assert [set(segment["stages_ms"]) for segment in described["segments"]] == [{*STAGES, "paste"}] * 2
    assert described["total_ms"] >= sum(sum(segment["stages_ms"].values()) for segment in described["segments"]) * 0.99


def test_a_run_report_is_of_the_last_run(pipe: adt.BasicPipe) -> None:
    report = RunReport()
    detail(pipe, observer=report)
    first = report.as_dict()["segments"]
    detail(pipe, guide_size=24, observer=report)
    assert [segment["work_size"] for segment in first] == [(16, 16)] * 2
    assert [segment["work_size"] for segment in report.as_dict()["segments"]] == [(24, 24)] * 2
    report.begin_run(0, 1)
    assert report.as_dict() == RunReport().as_dict()


def test_an_interrupt_in_the_middle_leaves_the_input_alone(pipe: adt.BasicPipe) -> None:
    class Impatient(Observer):
        def step(self, index: int, step: int, steps: int) -> None:
            if index == 1:
                raise KeyboardInterrupt

    frames = torch.zeros(2, 32, 32, 3)
    with pytest.raises(KeyboardInterrupt):
        adt.DetailerForEachPipeForAnimateDiff.doit(
            frames, SEGS, guide_size=16, steps=2, basic_pipe=pipe, observer=Impatient()
        )
    assert frames.max() == 0


@pytest.mark.parametrize("node", [adt.DetailerForEachPipeForAnimateDiff, adt.SEGSDetailerForAnimateDiff])
def test_a_mask_is_feathered_once_for_controlnet_and_sampler(
    node: Any, pipe: adt.BasicPipe, monkeypatch: pytest.MonkeyPatch
) -> None:
    feathered: list[Tensor] = []
    shown: list[Tensor] = []

    def feather(mask: Tensor, feather_px: int, alpha: float = 255, **options: Any) -> Tensor:
        out = native.feather_mask(mask, feather_px, alpha, **options)
        if feather_px == 3:
            feathered.append(out)
        return out

    class Wrapper:
        def apply(self, positive: Any, negative: Any, image: Tensor, noise_mask: Tensor, use_acn: bool) -> Any:
            shown.append(noise_mask)
            return positive, negative, []

    monkeypatch.setattr(ops, "feather_mask", feather)
    frames, settings = torch.rand(2, 32, 32, 3), {"guide_size": 16, "steps": 1, "noise_mask_feather": 3}
    outs = []
    for wrapper in (Wrapper(), None):
        segs = [entry._replace(control_net_wrapper=wrapper) for entry in SEGS[1]]
        outs.append(node.doit(frames, (SEGS[0], segs), **settings, basic_pipe=pipe)[0])
        assert len(feathered) == 2, "one for each segment"
        feathered.clear()
    assert len(shown) == 2
    if node is adt.DetailerForEachPipeForAnimateDiff:
        assert torch.equal(*outs)


def test_own_pixels_take_the_place_of_the_crop(pipe: adt.BasicPipe) -> None:
    """A SEG's cropped_image, one for all frames or one each, is what is sampled."""
    own = torch.rand(2, 16, 16, 3, generator=torch.Generator().manual_seed(3))
    results = []
    for pixels in (own[:1], own[:1].expand(2, -1, -1, -1), own):
        segs = (32, 32), [seg(0, 0, 16, 16, cropped_image=pixels.numpy())]
        image, *_ = adt.DetailerForEachPipeForAnimateDiff.doit(
            torch.zeros(2, 32, 32, 3), segs, guide_size=16, steps=2, basic_pipe=pipe
        )
        results.append(image)
    assert torch.equal(results[0], results[1])
    assert torch.equal(results[0][0], results[2][0])
    assert not torch.equal(results[0][1], results[2][1])


def test_scheduler_func_takes_the_place_of_the_scheduler(pipe: adt.BasicPipe) -> None:
    calls: list[tuple[str, int]] = []

    def sigmas(model: Any, sampler_name: str, steps: int) -> Tensor:
        calls.append((sampler_name, steps))
        return torch.linspace(5, 0, steps + 1)

    steps: list[int] = []

    class Counter(Observer):
        def step(self, index: int, step: int, steps_: int) -> None:
            steps.append(step)

    detail(pipe, scheduler="none of ours", scheduler_func_opt=sigmas, denoise=0.5, observer=Counter())
    assert set(calls) == {("euler", 4)}
    assert steps == [1, 2, 1, 2]


def test_vae_batches_do_not_change_the_result(pipe: adt.BasicPipe, monkeypatch: pytest.MonkeyPatch) -> None:
    frames = torch.rand(5, 32, 32, 3, generator=torch.Generator().manual_seed(4))
    canvas = HostCanvas(frames)
    whole = encode_crop(canvas, (0, 0, 20, 24), (41, 50), pipe.vae)
    assert whole.shape == (5, 4, 6, 5)
    pixels = decode_crop(whole, (20, 24), pipe.vae, canvas)
    monkeypatch.setattr(pipe.vae, "memory_bytes", 2 * 4 * 4 * pipe.vae.module.config.block_out_channels[0] * 40 * 48)
    assert pipe.vae.frames_per_call(40, 48) == 2
    torch.testing.assert_close(encode_crop(canvas, (0, 0, 20, 24), (41, 50), pipe.vae), whole, rtol=1e-5, atol=1e-5)
    assert_crops_match(decode_crop(whole, (20, 24), pipe.vae, canvas), pixels)


@pytest.mark.parametrize(
    "node",
    [
        adt.DetailerForEachPipeForAnimateDiff,
        adt.SEGSDetailerForAnimateDiff,
        adt.SEGSPaste,
        adt.MaskToSEGS_for_AnimateDiff,
    ],
)
def test_names_order_and_defaults_are_the_references(node: Any) -> None:
    published = json.loads((GOLDEN / "node_interfaces.json").read_text())[node.__name__]["input"]
    inputs = published["required"] | published.get("optional", {})
    parameters = list(inspect.signature(node.doit).parameters.values())[: len(inputs)]
    assert [parameter.name for parameter in parameters] == list(inputs)
    for parameter in parameters:
        kind, *options = inputs[parameter.name]
        if isinstance(kind, list):
            assert parameter.default in kind
        elif options and "default" in options[0]:
            assert parameter.default == options[0]["default"]


def test_early_argument_order_without_pasting(pipe: adt.BasicPipe) -> None:
    frames = torch.rand(1, 32, 32, 3, generator=torch.Generator().manual_seed(5))
    ramp = np.linspace(0, 1, 256, dtype=np.float32).reshape(16, 16)
    segs = (32, 32), [seg(0, 0, 16, 16, cropped_mask=ramp)]
    given = (16, True, 768, 0, 2, 4.0, "euler", "normal", 0.5, pipe, 0.2, None)
    now, _ = adt.SEGSDetailerForAnimateDiff.doit(frames, segs, *given, 3)
    early, _ = adt.SEGSDetailerForAnimateDiff.doit(frames, segs, *given, False, 3)
    other, _ = adt.SEGSDetailerForAnimateDiff.doit(frames, segs, *given, False)
    assert np.array_equal(now[1][0].cropped_image, early[1][0].cropped_image)
    assert not np.array_equal(now[1][0].cropped_image, other[1][0].cropped_image)
    with pytest.raises(InputError, match="1 arguments too many"):
        adt.SEGSDetailerForAnimateDiff.doit(frames, segs, *given, False, 3, None, 7)


def test_masks_of_frames_are_blurred_one_by_one() -> None:
    """As the reference does; with a 3x3 kernel the bits of a batch would differ."""
    masks = torch.rand(4, 24, 20, generator=torch.Generator().manual_seed(6))
    for feather in (1, 2):
        alone = torch.stack([reference.feather_mask(mask, feather) for mask in masks])
        assert torch.equal(paste_mask(masks, 4, feather, 255, (20, 24)), alone)


def test_a_differential_mask_over_a_single_level_paints_nothing() -> None:
    """0 / 0 in the reference: NaN, which no mask reaches. One step of a schedule that ends at the smallest sigma."""
    model = ModelSampling("linear")
    mask = DifferentialMask(torch.ones(1, 1, 2, 2), model, [model.sigma_min, 0.0])
    assert mask(model.sigma_min).max() == 0
    assert DifferentialMask(torch.ones(1, 1, 2, 2), model, [5.0, 0.0])(5.0).min() == 1


@pytest.mark.usefixtures("painted")
def test_frames_that_are_sampled_alone_are_told_of_once(
    pipe: adt.BasicPipe, tiny: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """A clip without a motion module flickers; one frame does not, and a refiner never has one."""
    moving = adt.load_pipe(
        tiny / "tiny_sd15.safetensors", motion_module=tiny / "tiny_mm_v3.safetensors", device="cpu", dtype="float32"
    ).with_conditioning(pipe.positive, pipe.negative)
    with caplog.at_level(logging.WARNING, "animdetail_trt"):
        detail(moving, refiner_basic_pipe_opt=pipe)
        adt.DetailerForEachPipeForAnimateDiff.doit(torch.zeros(1, 32, 32, 3), SEGS, guide_size=16, basic_pipe=pipe)
        assert caplog.text == ""
        detail(pipe, refiner_basic_pipe_opt=pipe)
    assert [record.getMessage() for record in caplog.records] == [
        "the pipe has no motion module: each of the 2 frames is sampled alone, and the clip may flicker. Give "
        "load_pipe a motion_module, or the command line --motion-module"
    ]
