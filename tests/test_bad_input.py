"""Bad input: one clear error that names the value and the remedy, before any work; and what is accepted anyway."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch

import animdetail_trt as adt
from animdetail_trt.detailer import detailer as detailer_module
from animdetail_trt.detailer.improvements import REFERENCE, Improvements
from animdetail_trt.detailer.plan import SizeSettings, check_segs, plan_segments
from animdetail_trt.errors import InputError, SamplingError

FRAMES, HEIGHT, WIDTH = 2, 40, 48
SETTINGS: dict[str, Any] = {
    "guide_size": 32,
    "max_size": 64,
    "seed": 1,
    "steps": 1,
    "cfg": 2.0,
    "sampler_name": "euler",
    "scheduler": "normal",
    "denoise": 0.5,
    "feather": 5,
    "noise_mask_feather": 0,
}


def make_frames(count: int = FRAMES) -> torch.Tensor:
    return torch.rand(count, HEIGHT, WIDTH, 3, generator=torch.Generator().manual_seed(0))


def make_seg(**changes: Any) -> adt.SEG:
    seg = adt.SEG(None, np.ones((24, 24), np.float32), 1.0, (8, 8, 32, 32), (12, 12, 28, 28), "face")
    return seg._replace(**changes)


def make_segs(*segs: adt.SEG) -> adt.SEGS:
    return (HEIGHT, WIDTH), list(segs or [make_seg()])


@pytest.fixture
def no_work(monkeypatch: pytest.MonkeyPatch) -> None:
    def worked(*_: Any) -> None:
        pytest.fail("a segment was worked on before the error")

    monkeypatch.setattr(detailer_module, "detail_segment", worked)


def with_nan() -> torch.Tensor:
    frames = make_frames()
    frames[1, 3, 4, 0] = torch.nan
    return frames


BAD: list[tuple[str, dict[str, Any], str]] = [
    ("NaN", {"image_frames": with_nan()}, "NaN or infinity, first in frame 1"),
    ("infinity", {"image_frames": make_frames() / 0}, "NaN or infinity, first in frame 0"),
    ("no batch axis", {"image_frames": make_frames()[0]}, r"array \(F, H, W, 3\).*not \(40, 48, 3\)"),
    ("four channels", {"image_frames": torch.zeros(1, 8, 8, 4)}, r"array \(F, H, W, 3\).*not \(1, 8, 8, 4\)"),
    ("no frames", {"image_frames": torch.zeros(0, 8, 8, 3)}, "at least one frame"),
    ("8-bit", {"image_frames": torch.zeros(1, 8, 8, 3, dtype=torch.uint8)}, "Divide 8-bit values by 255"),
    ("no array", {"image_frames": "clip.mp4"}, "must be an array"),
    (
        "outside",
        {"segs": make_segs(make_seg(crop_region=(50, 0, 70, 20)))},
        r"segment 0: crop_region \(50, 0, 70, 20\)",
    ),
    ("above", {"segs": make_segs(make_seg(crop_region=(0, -30, 20, -5)))}, "wholly outside the frame of 48x40"),
    (
        "backwards",
        {"segs": make_segs(make_seg(crop_region=(30, 8, 10, 32)))},
        r"\(30, 8, 10, 32\) ends before it begins",
    ),
    ("backwards, scaled", {"segs": ((80, 96), [make_seg(crop_region=(8, 8, 32, 8))])}, "ends before it begins"),
    (
        "scaled to nothing",
        {"segs": ((80, 48), [make_seg(crop_region=(20, 8, 30, 32))])},
        "x2 by the heights' ratio. Set",
    ),
    ("scaled to under a pixel", {"segs": ((4000, 4800), [make_seg()])}, "Drop the segment, or make the SEGS anew"),
    ("nine fields", {"segs": make_segs((*make_seg(), 1, 2))}, "segment 0 has 9 fields, a SEG has 7: cropped_image"),
    ("four fields", {"segs": make_segs(make_seg(), (8, 8, 32, 32))}, "segment 1 has 4 fields"),
    ("a dict", {"segs": make_segs(make_seg()._asdict())}, r"segment 0 must be a SEG, not dict. Give SEG\(\*\*it\)"),
    ("segs not unpacked", {"segs": (make_segs(),)}, r"unpack it: \(segs,\) = MaskToSEGS_for_AnimateDiff.doit\(mask\)"),
    (
        "mask rank 1",
        {"segs": make_segs(make_seg(cropped_mask=np.ones(24)))},
        r"segment 0: cropped_mask must be .*\(24,\)",
    ),
    ("mask rank 4", {"segs": make_segs(make_seg(cropped_mask=np.ones((1, 1, 24, 24))))}, "cropped_mask must be"),
    (
        "mask missing",
        {"segs": make_segs(make_seg(cropped_mask=None))},
        "cropped_mask must be an array of numbers, not NoneType",
    ),
    ("mask NaN", {"segs": make_segs(make_seg(cropped_mask=np.full((24, 24), np.nan)))}, "cropped_mask holds NaN"),
    ("region of three", {"segs": make_segs(make_seg(crop_region=(1, 2, 3)))}, r"four whole numbers.*not \(1, 2, 3\)"),
    (
        "bbox of three",
        {"segs": make_segs(make_seg(bbox=(1, 2, 9)))},
        r"segment 0: bbox must be four numbers.*\(1, 2, 9\)",
    ),
    ("bbox NaN", {"segs": make_segs(make_seg(bbox=(1, 2, 9, float("nan"))))}, "bbox must be four numbers"),
    ("guide_size infinite", {"guide_size": float("inf")}, "guide_size inf must be a number above 0 and finite"),
    (
        "levels twice",
        {"sampler_name": "dpmpp_2m", "scheduler": "simple", "steps": 20, "denoise": 0.01},
        "does not fall",
    ),
    ("one kl_optimal step", {"scheduler": "kl_optimal", "denoise": 1.0}, "gives NaN or infinity for 1 steps"),
    ("scheduler func", {"scheduler_func_opt": "karras"}, "scheduler_func must be called with"),
    ("scheduler func None", {"scheduler_func_opt": lambda *_: None}, "scheduler_func must return sigmas, not None"),
    ("scheduler func NaN", {"scheduler_func_opt": lambda *_: [torch.nan, 0]}, "scheduler_func gives NaN"),
    ("second bad", {"segs": make_segs(make_seg(), make_seg(crop_region=(99, 0, 120, 9)))}, "segment 1: crop_region"),
    ("bbox without area", {"segs": make_segs(make_seg(bbox=(12, 12, 12, 28)))}, "has no area"),
    (
        "crop under a latent",
        {"segs": make_segs(make_seg(crop_region=(0, 0, 4, 30))), "max_size": 30},
        "fewer than the 8x8",
    ),
    (
        "no header",
        {"segs": [make_seg()]},
        r"segs must be \(\(height, width\), \[SEG.*put \(height, width\) of their frames",
    ),
    ("no header of two", {"segs": [make_seg(), make_seg()]}, "These are SEGs alone"),
    ("segs no pair", {"segs": 7}, r"segs must be \(\(height, width\), \[SEG, ...\]\), not 7$"),
    ("denoise 0", {"denoise": 0.0}, "denoise 0.0 must be above 0"),
    ("denoise 2", {"denoise": 2.0}, "denoise 2.0 must be above 0 and at most 1"),
    ("steps 0", {"steps": 0}, "steps 0 must be at least 1"),
    ("steps 2.5", {"steps": 2.5}, "steps 2.5 must be a whole number"),
    ("seed text", {"seed": "7"}, "seed '7' must be a whole number"),
    ("hook", {"detailer_hook": object()}, r"must have post_paste\(frames\), and object has not"),
    ("seed below 0", {"seed": -1}, "seed -1 must be from 0"),
    ("seed above 64 bits", {"seed": 2**64}, "must be from 0 to 2"),
    ("cfg NaN", {"cfg": float("nan")}, "cfg nan must be a number from 0"),
    (
        "sampler",
        {"sampler_name": "eular"},
        "unknown sampler 'eular'. Choose one of: euler, euler_cfg_pp",
    ),
    (
        "scheduler",
        {"scheduler": "carras"},
        "unknown scheduler 'carras'. Choose one of: simple, sgm_uniform, karras",
    ),
    ("feather", {"feather": -1}, "feather -1 must be a whole number"),
    ("noise mask feather", {"noise_mask_feather": 2.5}, "noise_mask_feather 2.5 must be a whole number"),
    ("guide_size text", {"guide_size": "512"}, "guide_size '512' must be a number"),
    ("denoise None", {"denoise": None}, "denoise None must be above 0"),
    ("cfg text", {"cfg": "8"}, "cfg '8' must be a number"),
    ("samplers", {"sampler_name": ["euler"]}, r"unknown sampler \['euler'\]"),
    ("schedulers", {"scheduler": ["normal"]}, r"unknown scheduler \['normal'\]"),
    ("mask of labels", {"segs": make_segs(make_seg(cropped_mask=np.full((24, 24), 999)))}, "of int64 spans 999..999"),
    ("mask of 255", {"segs": make_segs(make_seg(cropped_mask=np.full((24, 24), 255.0)))}, "Divide 8-bit values by 255"),
    ("mask of -1", {"segs": make_segs(make_seg(cropped_mask=-np.ones((24, 24))))}, r"spans -1\.\.-1\. Clip them"),
    ("0..255 as floats", {"image_frames": 255 * make_frames()}, r"spans 0\.\d+\.\.25.*Divide 8-bit values by 255"),
    ("-1..1", {"image_frames": 2 * make_frames() - 1}, r"spans -0\.99.*bring -1\.\.1 to 0\.\.1"),
    (
        "own pixels of 255",
        {"segs": make_segs(make_seg(cropped_image=np.full((2, 24, 24, 3), 255.0)))},
        "segment 0: cropped_image must be floats in 0..1, and spans 255..255",
    ),
    ("header of infinity", {"segs": ((float("inf"), 40), [make_seg()])}, r"segs must be \(\(height, width\)"),
    ("header below 0", {"segs": ((-40, 48), [make_seg()])}, r"header of segs must be .*, not \(-40, 48\)"),
    ("guide_size 0", {"guide_size": 0}, "guide_size 0 must be a number above 0"),
    (
        "guide_size_for",
        {"guide_size_for": "crop_region"},
        "guide_size_for 'crop_region' must be True, for the bbox, or F",
    ),
    ("guide_size_for 2", {"guide_size_for": 2}, "guide_size_for 2 must be True"),
    ("max_size", {"max_size": -8}, "max_size -8 must be a number above 0"),
    ("observer", {"observer": print}, "observer must be an Observer, RunReport.* for one: <built.*> has no begin_run"),
    ("observer's class", {"observer": adt.RunReport}, "is a class; give one of its objects"),
    ("refiner_ratio without a refiner", {"refiner_ratio": 5}, "refiner_ratio 5 must be from 0 to 1"),
    ("no pipe", {"basic_pipe": None}, "basic_pipe must be a pipe of five parts"),
    ("foreign model", {"basic_pipe": (1, 2, 3, 4, 5)}, "must come from load_pipe"),
    ("ControlNet", {"segs": make_segs(make_seg(control_net_wrapper=object()))}, "must be a ControlNetWrapper"),
]


@pytest.mark.parametrize(("changes", "words"), [case[1:] for case in BAD], ids=[case[0] for case in BAD])
@pytest.mark.usefixtures("no_work")
def test_is_named_before_any_work(pipe: adt.BasicPipe, changes: dict[str, Any], words: str) -> None:
    arguments = {"image_frames": make_frames(), "segs": make_segs(), "basic_pipe": pipe, **SETTINGS, **changes}
    with pytest.raises(InputError, match=words):
        adt.DetailerForEachPipeForAnimateDiff.doit(**arguments)


def tokens(dim: int = 64) -> list[Any]:
    return [[torch.zeros(1, 77, dim), {}]]


def with_extras(**extras: Any) -> list[Any]:
    return [[torch.zeros(1, 77, 64), extras]]


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda pipe: pipe._replace(positive=None), "basic_pipe's positive conditioning is empty"),
        (lambda pipe: pipe._replace(negative=()), "basic_pipe's negative conditioning is empty"),
        (lambda pipe: pipe.with_conditioning(tokens(2048)), "has 2048 channels, its UNet reads 64"),
        (lambda pipe: pipe.with_conditioning([[torch.zeros(1, 77, 64)]]), r"must be \[\[tensor, {}\]\]"),
        (lambda pipe: pipe.with_conditioning("a face"), r"must be \[\[tensor, {}\]\], not 'a face'"),
        (lambda pipe: pipe.with_conditioning(torch.zeros(1, 77, 64)), r"must be \[\[tensor, {}\]\]"),
        (lambda pipe: pipe.with_conditioning([[torch.full((1, 77, 64), torch.nan), {}]]), "holds NaN"),
        (lambda pipe: pipe.with_conditioning([[torch.zeros(77, 64), {}]]), r"must be \(1, tokens, dim\)"),
        (lambda pipe: pipe.with_conditioning(with_extras(gligen=1)), "carries gligen"),
        (lambda pipe: pipe.with_conditioning(tokens() + tokens(32)), "has 32 channels"),
        (lambda pipe: pipe.with_conditioning(with_extras(strength="2")), "strength '2' must be a finite number"),
        (lambda pipe: pipe.with_conditioning(with_extras(start_percent=None)), "start_percent None must be a finite"),
        (lambda pipe: pipe.with_conditioning(with_extras(mask=[[1]])), r"mask must be a tensor \(n, h, w\)"),
        (lambda pipe: pipe.with_conditioning(with_extras(mask=torch.full((4, 4), torch.nan))), "mask holds NaN"),
        (lambda pipe: pipe.with_conditioning(with_extras(area=(8, 8))), r"area \(8, 8\) must be \(height, width"),
        (lambda pipe: pipe.with_conditioning(with_extras(area=8)), "area 8 must be"),
        (lambda pipe: pipe.with_conditioning(with_extras(control="depth")), "control 'depth' is not this package's"),
    ],
)
@pytest.mark.usefixtures("no_work")
def test_bad_conditioning(pipe: adt.BasicPipe, change: Callable[[adt.BasicPipe], adt.BasicPipe], words: str) -> None:
    with pytest.raises(InputError, match=words):
        adt.DetailerForEachPipeForAnimateDiff.doit(make_frames(), make_segs(), basic_pipe=change(pipe), **SETTINGS)


@pytest.mark.usefixtures("no_work")
def test_more_frames_than_positions(tiny: Path) -> None:
    sd15, module = tiny / "tiny_sd15.safetensors", tiny / "tiny_mm_v1.safetensors"
    for context, words in (
        (None, "25 frames, and the motion module has 24 positions. Load the pipe with context=ContextOptions"),
        (adt.ContextOptions(context_length=25), "context_length 25 is more than the motion module's 24 positions"),
    ):
        pipe = adt.load_pipe(sd15, motion_module=module, context=context).with_conditioning(tokens(), tokens())
        with pytest.raises(InputError, match=words):
            adt.DetailerForEachPipeForAnimateDiff.doit(make_frames(25), make_segs(), basic_pipe=pipe, **SETTINGS)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"schedule": "standart_static"}, "unknown context schedule 'standart_static'. Choose one of: standard_static"),
        ({"context_length": 0}, "context_length 0 must be at least 1"),
        ({"context_length": 4.0}, "context_length 4.0 must be a whole number"),
        ({"context_length": 8, "context_overlap": 8}, "context_overlap 8 must be at least 0 and smaller"),
        ({"context_stride": 2}, "context_stride is of the uniform schedules"),
        ({"schedule": "looped_uniform", "context_stride": 0}, "context_stride 0 must be at least 1"),
        ({"closed_loop": True}, "closed_loop is of looped_uniform"),
        ({"fuse_method": "pyramyd"}, "unknown fuse_method 'pyramyd'. Choose one of: pyramid, relative"),
        ({"schedule": "looped_uniform", "fuse_method": "relative"}, "Use pyramid or flat"),
        ({"schedule": "batched", "fuse_method": "pyramid"}, "batched ones do not"),
    ],
)
def test_bad_context(arguments: dict[str, Any], words: str) -> None:
    with pytest.raises(InputError, match=words):
        adt.ContextOptions(**arguments)


def test_nan_out_of_sampling_is_no_picture(tiny: Path) -> None:
    """float16 overflows, or a checkpoint is damaged: black patches would be pasted without a word."""
    sd15 = adt.load_pipe(tiny / "tiny_sd15.safetensors", device="cpu", dtype="float32")
    sd15.model.unet.module.conv_out.bias[0] = torch.nan
    with pytest.raises(SamplingError, match="segment 0: sampling gave NaN"):
        adt.DetailerForEachPipeForAnimateDiff.doit(
            make_frames(), make_segs(), basic_pipe=sd15.with_conditioning(tokens(), tokens()), **SETTINGS
        )


def test_a_prompt_without_a_text_encoder(pipe: adt.BasicPipe) -> None:
    with pytest.raises(InputError, match="has no text encoder"):
        pipe.with_prompt("a face")


def test_bad_paste() -> None:
    short = make_seg(cropped_image=np.zeros((1, 24, 24, 3), np.float32))
    with pytest.raises(InputError, match="a segment has 1 frames to paste into 2"):
        adt.SEGSPaste.doit(make_frames(), make_segs(short))
    with pytest.raises(InputError, match="alpha 256 must be from 0 to 255"):
        adt.SEGSPaste.doit(make_frames(), make_segs(), alpha=256)


@pytest.mark.parametrize(
    "seg",
    [
        make_seg(crop_region=(30, 20, 60, 50)),
        make_seg(crop_region=(-6, -4, 20, 20)),
        make_seg(cropped_mask=torch.ones(11, 7)),
        make_seg(cropped_mask=np.ones((5, 24, 24), np.float32)),
        make_seg(cropped_image=np.zeros((1, 24, 24, 3), np.float32)),
        make_seg(bbox=(0, 0, 500, 500)),
        make_seg(bbox=np.array([12.3, 12.1, 28.7, 28.2], np.float32)),
        make_seg(crop_region=(-6, -4, 18, 20), cropped_image=np.zeros((1, 24, 24, 3), np.float32)),
    ],
    ids=[
        "past the edge",
        "before the edge",
        "another size",
        "another count",
        "own pixels",
        "bbox past the frame",
        "bbox of a detector",
        "own pixels before the edge",
    ],
)
@pytest.mark.parametrize("feather", [0, 100])
def test_accepted_all_the_same(pipe: adt.BasicPipe, seg: adt.SEG, feather: int) -> None:
    """A region partly outside, a mask of another size, any feather: the frame changes inside the region only."""
    frames = make_frames()
    image, *_ = adt.DetailerForEachPipeForAnimateDiff.doit(
        frames, make_segs(seg), basic_pipe=pipe, **{**SETTINGS, "feather": feather}
    )
    x1, y1, x2, y2 = (max(side, 0) for side in seg.crop_region)
    assert torch.isfinite(image).all()
    changed = (image != frames).any(dim=(0, 3))
    assert changed[y1:y2, x1:x2].any()
    changed[y1:y2, x1:x2] = False
    assert not changed.any()


class ImpactSeg(NamedTuple):
    """As a later Impact Pack may have it: the fields named the same, others among them."""

    cropped_image: Any
    cropped_mask: Any
    confidence: float
    crop_region: Any
    bbox: Any
    label: str
    track_id: int
    control_net_wrapper: Any = None


def test_a_seg_is_what_names_its_fields() -> None:
    seg, reference = make_seg(), make_frames() / 2
    (expected,) = adt.SEGSPaste.doit(make_frames(), make_segs(seg), ref_image_opt=reference)
    assert not torch.equal(expected, make_frames())
    for same in (ImpactSeg(*seg[:6], track_id=7), SimpleNamespace(**seg._asdict()), tuple(seg), list(seg[:6])):
        (pasted,) = adt.SEGSPaste.doit(make_frames(), ((HEIGHT, WIDTH), [same]), ref_image_opt=reference)
        assert torch.equal(pasted, expected)
    ((found,),) = check_segs(((HEIGHT, WIDTH), (ImpactSeg(*seg[:6], track_id=7),)), False)[1:]
    assert found.control_net_wrapper is None


def test_any_strides_and_floats(pipe: adt.BasicPipe) -> None:
    """Mirrored, read-only and float64 NumPy frames and masks give what their plain copies give."""
    frames, mask = make_frames().numpy(), np.linspace(0, 1, 576, dtype=np.float32).reshape(24, 24)

    def detail(frames: Any, mask: Any) -> torch.Tensor:
        segs = make_segs(make_seg(cropped_mask=mask))
        return adt.DetailerForEachPipeForAnimateDiff.doit(frames, segs, basic_pipe=pipe, **SETTINGS)[0]

    mirrored = detail(frames[:, :, ::-1], mask[::-1])
    assert torch.equal(mirrored, detail(frames[:, :, ::-1].copy(), mask[::-1].copy()))
    expected = detail(frames, mask)
    frames.setflags(write=False)
    assert torch.equal(detail(frames, mask.astype(np.float64)), expected)
    assert torch.equal(detail(frames.astype(np.float64), mask), expected)


def test_a_little_beyond_0_to_1_stays() -> None:
    """What sharpens or brightens overshoots, and the reference pastes into it as it is."""
    frames = 2 * torch.rand(1, 64, 64, 3, generator=torch.Generator().manual_seed(0)) - 0.4
    (pasted,) = adt.SEGSPaste.doit(frames, ((64, 64), []))
    assert torch.equal(pasted, frames)


def laid_out(frames: torch.Tensor) -> list[torch.Tensor]:
    """The same frames in other orders of memory."""
    planes = frames.permute(0, 3, 1, 2).contiguous().permute(0, 2, 3, 1)
    rows = torch.stack([frames, frames], dim=2)[:, :, 0]
    return [frames, planes, rows, frames.transpose(1, 2).contiguous().transpose(1, 2)]


@pytest.mark.parametrize(("value", "words"), [(torch.nan, "NaN or infinity, first in frame 1"), (9.0, r"\.\.9\. Div")])
def test_one_bad_value_is_found_in_any_order_of_memory(value: float, words: str) -> None:
    frames = make_frames()
    frames[1, -1, -1, -1] = value
    for same in laid_out(frames):
        assert torch.equal(same[0], frames[0])
        with pytest.raises(InputError, match=words):
            adt.SEGSPaste.doit(same, make_segs())


def test_a_bbox_that_the_reference_turns_around_is_pasted(pipe: adt.BasicPipe) -> None:
    """As published x2 is scaled by the heights' ratio; what a detailer gives back of that, a paste must take."""
    seg = make_seg(bbox=(25, 12, 28, 28))
    segs, _ = adt.SEGSDetailerForAnimateDiff.doit(
        make_frames(),
        ((HEIGHT, WIDTH // 2), [seg]),
        basic_pipe=pipe,
        **{k: v for k, v in SETTINGS.items() if k != "feather"},
    )
    assert segs[1][0].bbox[:3:2] == (50, 28)
    (pasted,) = adt.SEGSPaste.doit(make_frames(), segs)
    assert not torch.equal(pasted, make_frames())


@pytest.mark.parametrize("one", [np.uint8(1), np.uint8(255), np.int64(1), np.bool_(1)])
def test_masks_of_detectors(pipe: adt.BasicPipe, one: Any) -> None:
    """Integers of 0 and 1 or of 8 bits, and bools, paint what floats paint."""
    shape = np.zeros((24, 24), bool)
    shape[4:20, 6:18] = True

    def detail(mask: Any) -> torch.Tensor:
        segs = make_segs(make_seg(cropped_mask=mask))
        return adt.DetailerForEachPipeForAnimateDiff.doit(make_frames(), segs, basic_pipe=pipe, **SETTINGS)[0]

    expected = detail(shape.astype(np.float32))
    assert torch.equal(detail(shape * one), expected)
    assert torch.equal(detail(torch.from_numpy(shape * one)), expected)


def test_numpy_frames_and_no_segs(pipe: adt.BasicPipe) -> None:
    frames = make_frames()
    image, segs, same, images = adt.DetailerForEachPipeForAnimateDiff.doit(
        frames.numpy(), ((HEIGHT, WIDTH), []), basic_pipe=pipe, **SETTINGS
    )
    assert torch.equal(image, frames)
    assert (segs, same, images) == (((HEIGHT, WIDTH), []), pipe, [])
    # The pipe is not looked at: the reference takes any.
    assert torch.equal(adt.DetailerForEachPipeForAnimateDiff.doit(frames, segs, **SETTINGS)[0], frames)


@pytest.mark.parametrize("budget", ["8GB", -1, 0, 8, 8192, 8e9, True])
def test_bad_vram_budget(budget: Any) -> None:
    with pytest.raises(
        InputError, match=rf"vram_budget must be .* at least 100_000_000, not {budget!r}\. For 8 GB give 8_0"
    ):
        adt.load_pipe("missing.safetensors", vram_budget=budget)


@pytest.mark.parametrize("bbox", [(28, 12, 12, 28), [12, 30, 16, 16]])
def test_a_bbox_the_wrong_way_round_is_told(pipe: adt.BasicPipe, caplog: pytest.LogCaptureFixture, bbox: Any) -> None:
    """No more than that: the node's own scaling may turn one around, and a second node takes it from the first."""
    _, segs, *_ = adt.DetailerForEachPipeForAnimateDiff.doit(
        make_frames(), make_segs(make_seg(bbox=bbox)), basic_pipe=pipe, **SETTINGS
    )
    assert len(segs[1]) == 1
    assert "segment 0: bbox" in caplog.text
    assert "ends before it begins" in caplog.text


@pytest.mark.parametrize(
    ("segs", "improvements", "told"),
    [
        (make_segs(), REFERENCE, None),
        (make_segs(make_seg(cropped_mask=np.ones((2, 24, 24)))), REFERENCE, None),
        (
            make_segs(make_seg(cropped_mask=np.ones((5, 24, 24)))),
            REFERENCE,
            "segment 0: 5 masks for 2 frames are merged",
        ),
        (((20, 24), [make_seg()]), REFERENCE, None),
        (((40, 24), [make_seg()]), REFERENCE, "SEGS made for 24x40 pixels are scaled to frames of 48x40 as the ref"),
        (((40, 24), [make_seg()]), Improvements(), None),
    ],
)
def test_what_the_reference_does_to_odd_segs_is_told_once(
    caplog: pytest.LogCaptureFixture, segs: adt.SEGS, improvements: Improvements, told: str | None
) -> None:
    assert len(plan_segments(segs, (HEIGHT, WIDTH), FRAMES, SizeSettings(32, True, 64), improvements)) == 1
    assert len(caplog.messages) == (told is not None)
    assert (told or "") in caplog.text
