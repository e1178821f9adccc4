"""The whole node with its models on a GPU, against the golden cases."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import animdetail_trt as adt
from animdetail_trt.detailer import canvas, segment, transfer
from golden_cases import Case, load_case
from tolerances import assert_frames_match

pytestmark = pytest.mark.gpu

# Not the samplers that draw noise on the latent's device: there a GPU run of the reference differs from a CPU run too.
CASES = [
    "basic",
    "motion_v2_two_segs",
    "refiner_motion",
    "per_frame_masks",
    "context_overlap_linear",
    "cond_mask",
    "controlnet_motion_window",
    "lora_motion",
    "dpmpp_sde",
    "uni_pc",
]


@pytest.fixture(autouse=True)
def _no_tf32() -> Iterator[None]:
    before = torch.backends.cudnn.allow_tf32
    torch.backends.cudnn.allow_tf32 = False
    yield
    torch.backends.cudnn.allow_tf32 = before


def detail(case: Case, tiny: Path, **place: Any) -> Tensor:
    refiner = case.pipe(tiny, "tiny_refiner", "refiner_", **place) if case.settings["refiner"] else None
    image, *_ = adt.DetailerForEachPipeForAnimateDiff.doit(
        case.frames,
        case.controlled_segs(tiny, "cuda"),
        **case.settings["params"],
        basic_pipe=case.pipe(tiny, **place),
        refiner_basic_pipe_opt=refiner,
    )
    assert isinstance(image, Tensor)
    return image


@pytest.mark.parametrize("name", CASES)
def test_float32_is_the_reference(name: str, tiny: Path) -> None:
    case = load_case(name)
    assert_frames_match(detail(case, tiny, device="cuda", dtype="float32").cpu(), case.tensors["out.image"])


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
@pytest.mark.parametrize("name", ["basic", "motion_v2_two_segs", "context_overlap_linear"])
def test_half_precision_is_close(name: str, dtype: str, tiny: Path) -> None:
    """Of what the detailer changed: within 2 % (float16) or 10 % (bfloat16, three digits) in the mean."""
    case = load_case(name)
    out = detail(case, tiny, device="cuda", dtype=dtype).cpu()
    expected = case.tensors["out.image"]
    changed = (expected - case.frames).abs().mean()
    assert float((out - expected).abs().mean() / changed) <= (0.02 if dtype == "float16" else 0.1)


def test_a_run_repeats_to_the_bit(tiny: Path) -> None:
    case = load_case("motion_v2_two_segs")
    first, second = (detail(case, tiny, device="cuda", dtype="float32") for _ in range(2))
    assert torch.equal(first, second)


@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_a_clip_that_does_not_fit_gives_the_same_bits(dtype: str, tiny: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Small buffers: every batch travels in several pieces."""
    case = load_case("motion_v2_two_segs")
    resident = detail(case, tiny, device="cuda", dtype=dtype)
    monkeypatch.setattr(canvas, "MEMORY_SHARE", 0.0)
    monkeypatch.setattr(transfer.Lane.__init__, "__defaults__", (40_000,))
    streamed = detail(case, tiny, device="cuda", dtype=dtype)
    assert torch.equal(resident, streamed)
    monkeypatch.setattr(canvas, "MEMORY_SHARE", 0.25)
    assert torch.equal(resident, detail(case, tiny, device="cuda", dtype=dtype))


def test_pixels_are_worked_on_where_the_vae_is(tiny: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One upload and one download of the frames, and no op on the host but for the crops that are returned."""
    case = load_case("motion_v2_two_segs")
    uploaded, downloaded, devices = [], [], set()
    upload, download = transfer.Lane.upload, transfer.Lane.download
    resize = segment.ops.crop_resize_to_vae_into

    def count_upload(lane: Any, source: Tensor, target: Tensor | None = None) -> Tensor:
        uploaded.append(source.numel())
        return upload(lane, source, target)

    def count_download(lane: Any, source: Tensor, target: Tensor) -> None:
        downloaded.append(source.numel() if source.dtype == torch.float32 else 0)
        download(lane, source, target)

    def look(out: Tensor, frames: Tensor, *rest: Any, **options: Any) -> Tensor:
        devices.update((out.device.type, frames.device.type))
        return resize(out, frames, *rest, **options)

    monkeypatch.setattr(transfer.Lane, "upload", count_upload)
    monkeypatch.setattr(transfer.Lane, "download", count_download)
    monkeypatch.setattr(segment.ops, "crop_resize_to_vae_into", look)
    detail(case, tiny, device="cuda", dtype="float32")
    assert sum(uploaded) == sum(downloaded) == case.frames.numel()
    assert devices == {"cuda"}


@pytest.mark.parametrize(
    ("name", "sampler"), [("context_overlap_linear", "euler"), ("controlnet_motion_window", "sa_solver")]
)
def test_a_step_waits_for_nothing(name: str, sampler: str, tiny: Path) -> None:
    """What the host waits for in a run does not grow with its steps; a second prompt holds for an area."""
    case = load_case(name)
    pipe, segs = case.pipe(tiny, device="cuda", dtype="float32"), case.controlled_segs(tiny, "cuda")
    of_an_area = [[tokens, {"area": ("percentage", 0.5, 0.5, 0.25, 0.25)}] for tokens, _ in pipe.positive]
    pipe = pipe._replace(positive=[*pipe.positive, *of_an_area])

    def waits(steps: int) -> int:
        settings = case.settings["params"] | {"steps": steps, "sampler_name": sampler}
        with warnings.catch_warnings(record=True) as told:
            warnings.simplefilter("always")
            torch.cuda.set_sync_debug_mode("warn")
            adt.DetailerForEachPipeForAnimateDiff.doit(case.frames, segs, **settings, basic_pipe=pipe)
            torch.cuda.set_sync_debug_mode("default")
        return sum("synchronizing CUDA operation" in str(one.message) for one in told)

    waits(3)  # what is uploaded once and kept
    few, many = waits(3), waits(5)
    assert few == many > 0
