"""The node gives the same bits wherever its frames lie; test_node_on_gpu.py has the real device."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from late_stream import LateCopyStream
from torch import Tensor

import animdetail_trt as adt
from animdetail_trt.detailer import canvas as canvas_module
from animdetail_trt.detailer import detailer as detailer_module
from animdetail_trt.detailer import transfer
from animdetail_trt.detailer.canvas import DeviceCanvas, HostCanvas
from animdetail_trt.detailer.transfer import Lane
from golden_cases import load_case

Place = Callable[[bool], list[LateCopyStream]]


@pytest.fixture
def place(monkeypatch: pytest.MonkeyPatch) -> Place:
    """Make runs work on a device where clips fit, or do not."""

    def choose(fits: bool) -> list[LateCopyStream]:
        streams: list[LateCopyStream] = []

        def lane_beside(vae: Any) -> Lane:
            streams.append(LateCopyStream())
            return Lane(streams[-1], 40_000)  # a few frames

        monkeypatch.setattr(canvas_module, "lane_beside", lane_beside)
        monkeypatch.setattr(detailer_module, "lane_beside", lane_beside)
        monkeypatch.setattr(canvas_module, "_fits", lambda *_: fits)
        return streams

    return choose


class Darken:
    def post_paste(self, frames: Tensor) -> Tensor:
        return frames * 0.9


class LookAtAll(Darken):
    def post_upscale(self, pixels: Tensor) -> Tensor:
        return pixels.flip(2)

    def post_decode(self, pixels: Tensor) -> Tensor:
        return pixels.flip(2)


CASES = {
    "two_segments": ("motion_v2_two_segs", {}),
    "masks": ("per_frame_masks", {}),
    "own_pixels": ("basic", {"own_pixels": True}),
    "hook": ("motion_v2_two_segs", {"detailer_hook": Darken()}),
    "all_hooks": ("motion_v2_two_segs", {"detailer_hook": LookAtAll(), "reference_mode": False}),
    "follow": ("per_frame_masks", {"reference_mode": False}),
    "control": ("controlnet_motion_window", {}),
}


def run(name: str, tiny: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Tensor, list[Tensor], list[Tensor]]:
    """image, the new crops, and the ControlNets' pictures."""
    case_name, options = CASES[name]
    case, options = load_case(case_name), dict(options)
    header, segs = case.controlled_segs(tiny)
    if options.pop("own_pixels", False):
        x1, y1, x2, y2 = segs[0].crop_region
        segs = [seg._replace(cropped_image=case.frames[:1, y1:y2, x1:x2].numpy()) for seg in segs]
    pipe = case.pipe(tiny)
    # Two frames a call: several parts, the last of them shorter.
    monkeypatch.setattr(type(pipe.vae), "frames_per_call", lambda *_: 3)
    before = case.frames.clone()
    params = {**case.settings["params"], "steps": 1, **options}
    image, (_, new), _, pictures = adt.DetailerForEachPipeForAnimateDiff.doit(
        case.frames, (header, segs), **params, basic_pipe=pipe
    )
    assert torch.equal(case.frames, before)
    return image, [torch.from_numpy(seg.cropped_image) for seg in new], pictures


@pytest.mark.parametrize("fits", [True, False], ids=["resident", "streamed"])
@pytest.mark.parametrize("name", CASES)
def test_the_place_of_the_frames_does_not_show(
    name: str, fits: bool, tiny: Path, place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = run(name, tiny, monkeypatch)
    streams = place(fits)
    actual = run(name, tiny, monkeypatch)
    assert sum(stream.copies for stream in streams) > 0
    assert torch.equal(actual[0], expected[0])
    for found, wanted in zip(actual[1] + actual[2], expected[1] + expected[2], strict=True):
        assert torch.equal(found, wanted)


def test_segs_detailer(tiny: Path, place: Place) -> None:
    case = load_case("motion_v2_two_segs")

    def run_segs() -> list[Tensor]:
        params = {name: case.settings["params"][name] for name in ("guide_size", "seed", "cfg")}
        (_, new), _ = adt.SEGSDetailerForAnimateDiff.doit(
            case.frames, case.segs, **params, steps=1, basic_pipe=case.pipe(tiny)
        )
        return [torch.from_numpy(seg.cropped_image) for seg in new]

    expected = run_segs()
    place(False)
    for found, wanted in zip(run_segs(), expected, strict=True):
        assert torch.equal(found, wanted)


def test_the_frames_leave_as_the_last_segment_is_pasted(
    tiny: Path, place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    place(True)
    sent: list[tuple[int, int]] = []
    pasted: list[tuple[int, int]] = []
    paste, send = DeviceCanvas.paste, DeviceCanvas.send

    def count_paste(canvas: DeviceCanvas, part: slice, *rest: Any) -> None:
        pasted.append((part.start, part.stop))
        paste(canvas, part, *rest)

    def count_send(canvas: DeviceCanvas, part: slice) -> None:
        sent.append((part.start, part.stop))
        assert pasted[-1] == sent[-1]
        send(canvas, part)

    monkeypatch.setattr(DeviceCanvas, "paste", count_paste)
    monkeypatch.setattr(DeviceCanvas, "send", count_send)
    run("two_segments", tiny, monkeypatch)
    assert len(sent) > 1
    assert pasted == 2 * sent


def test_a_gpu_is_named_with_its_number(monkeypatch: pytest.MonkeyPatch) -> None:
    """Tensors' devices have one, and "cuda" is not equal to "cuda:1"."""
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 1)
    monkeypatch.setattr(transfer, "_stream_of", lambda device: None)
    assert transfer.CudaCopyStream(torch.device("cuda")).device == torch.device("cuda:1")
    assert transfer.CudaCopyStream(torch.device("cuda:0")).device == torch.device("cuda:0")


def test_a_clip_travels_once_each_way() -> None:
    stream = LateCopyStream()
    frames = torch.rand(6, 8, 8, 3)
    canvas = DeviceCanvas(frames, Lane(stream, 10**6))
    canvas.crop(slice(0, 2), (0, 0, 4, 4))
    assert stream.copies == 1
    canvas.crop(slice(0, 2), (2, 2, 8, 8))
    assert stream.copies == 1  # it is there
    canvas.crop(slice(2, 6), (0, 0, 4, 4))
    assert stream.copies == 2
    for part in (slice(0, 3), slice(3, 6)):
        canvas.paste(part, torch.ones(3, 2, 2, 3), torch.empty(0), torch.ones(1, 2, 2), (1, 1))
        canvas.send(part)
    assert stream.copies == 4
    expected = frames.clone()
    expected[:, 1:3, 1:3] = 1
    assert torch.equal(canvas.finish(), expected)
    assert stream.copies == 4


def test_a_streamed_clip_moves_its_crops_alone() -> None:
    stream = LateCopyStream()
    frames = torch.rand(6, 80, 80, 3)
    canvas = HostCanvas(frames.clone(), Lane(stream, 10**6))
    crop = canvas.crop(slice(0, 3), (4, 5, 14, 25))
    assert torch.equal(crop, frames[:3, 5:25, 4:14])
    assert stream.staged_bytes == crop.numel() * 4


def test_without_a_gpu_the_frames_stay(pipe: adt.BasicPipe) -> None:
    frames = torch.rand(2, 8, 8, 3)
    canvas = canvas_module.open_canvas(frames, pipe.vae, hooked=False)
    assert isinstance(canvas, HostCanvas)
    crop = canvas.crop(slice(0, 1), (2, 2, 6, 6))
    assert crop.data_ptr() == canvas.finish()[:, 2:, 2:].data_ptr()  # a view
    assert canvas.finish().data_ptr() != frames.data_ptr()


def test_a_vae_on_a_gpu_without_kernels_is_told(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(canvas_module.ops, "has_cuda", lambda: False)
    vae: Any = type("Vae", (), {"device": torch.device("cuda")})
    with caplog.at_level("INFO", "animdetail_trt"):
        assert canvas_module.lane_beside(vae) is None
    assert "the pixels stay on the CPU: the extension was built without CUDA kernels" in caplog.text
