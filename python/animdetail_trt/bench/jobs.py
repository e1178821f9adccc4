"""A scenario made ready to run in one way: inputs that are made once, and the call that is timed."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from animdetail_trt import ops
from animdetail_trt.bench import reference_way
from animdetail_trt.bench.floors import FLOAT_BYTES
from animdetail_trt.bench.machine import cache_bytes
from animdetail_trt.bench.memory import measure_peak
from animdetail_trt.bench.scenarios import SUITES, Scenario
from animdetail_trt.bench.timing import Times, repeat
from animdetail_trt.bench.ways import TRUTH, Ways, watched, with_window
from animdetail_trt.bench.workload import Segment, StandInVae, make_frames, make_segments, segs_of
from animdetail_trt.detailer.detailer import DetailerForEachPipeForAnimateDiff, paste
from animdetail_trt.detailer.improvements import REFERENCE
from animdetail_trt.detailer.masks import sampling_mask
from animdetail_trt.detailer.plan import SizeSettings, plan_segments
from animdetail_trt.detailer.report import RunReport
from animdetail_trt.detailer.segment import decode_crop, encode_crop
from animdetail_trt.models.pipe import BasicPipe
from animdetail_trt.sampling.conditioning import resolve
from animdetail_trt.sampling.guidance import Guided
from animdetail_trt.sampling.run import NoiseMask, SampleSettings, sample

_TIMESTEP, _SIGMA, _CFG, _DENOISE, _SEED = 500.0, 3.0, 8.0, 0.5, 7


@dataclass(frozen=True)
class Job:
    """run: computes the inputs of a set, by its number, and returns frames (f, c, h, w) or (f, h, w, c)
    excluded_ms: a clock of what is not the job; report: of the last run, where the node ran"""

    run: Callable[[int], Tensor]
    excluded_ms: Callable[[], float] = lambda: 0.0
    report: Callable[[], RunReport | None] = lambda: None

    def stages_ms(self) -> dict[str, float]:
        """What each stage of the last run took, summed over the segments."""
        report, total = self.report(), dict[str, float]()
        for one in report.segments if report else ():
            for name, ms in one.stages_ms.items():
                total[name] = total.get(name, 0.0) + ms
        return total


@dataclass(frozen=True)
class Inputs:
    """Sets of what a scenario reads, on the device; every run takes the next, so that none is found in a cache."""

    sets: Sequence[Any]

    def of(self, number: int) -> Any:
        return self.sets[number % len(self.sets)]


def make_inputs(scenario: Scenario, device: torch.device, token_dim: int) -> Inputs:
    """As many sets as fill the last cache four times, eight at most."""
    cache = torch.cuda.get_device_properties(device).L2_cache_size if device.type == "cuda" else cache_bytes()
    first = _make(scenario, device, token_dim, 0)
    count = min(8, max(1, math.ceil(4 * cache / _bytes(first))))
    return Inputs([first, *(_make(scenario, device, token_dim, seed) for seed in range(1, count))])


def _bytes(value: Any) -> int:
    tensors = value if isinstance(value, tuple) else (value,)
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)


def _make(scenario: Scenario, device: torch.device, token_dim: int, seed: int) -> Any:
    generator = torch.Generator().manual_seed(seed)
    frames, side, prompts = scenario.frames, scenario.side, scenario.prompts
    if scenario.kind in ("pixels", "segment", "clip"):
        return make_frames(frames, scenario.width, scenario.height, seed)
    if scenario.kind == "vae_encode":
        return make_frames(frames, side, side, seed).movedim(-1, 1).mul(2).sub(1).contiguous().to(device)
    if scenario.kind in ("vae_decode", "windows"):
        return torch.randn(frames, 4, side // 8, side // 8, generator=generator).to(device)
    latents = torch.randn(prompts, frames, 4, side // 8, side // 8, generator=generator)
    return latents.to(device), torch.randn(prompts, 1, 77, token_dim, generator=generator).to(device)


def make_job(scenario: Scenario, way: str, ways: Ways, inputs: Inputs) -> Job:
    """``way`` is one of WAYS, or TRUTH. Raises AbsentError where this machine has it not."""
    if scenario.kind == "pixels":
        return _pixel_job(scenario, "reference" if way == TRUTH else way, inputs)
    pipe = with_window(ways.pipe("torch" if way == "reference" else way), scenario)
    make = {
        "vae_encode": _encode_job, "vae_decode": _decode_job, "unet": _unet_job, "windows": _windows_job,
        "segment": _node_job, "clip": _node_job,
    }[scenario.kind]  # fmt: skip
    job = make(scenario, pipe, inputs, one_by_one=way == "reference")

    def run(number: int) -> Tensor:
        with watched(pipe, way, scenario), torch.inference_mode():
            return job.run(number)

    return replace(job, run=run)


def _encode_job(scenario: Scenario, pipe: BasicPipe, inputs: Inputs, *, one_by_one: bool) -> Job:
    if one_by_one:
        return Job(lambda number: reference_way.encode_all(inputs.of(number), pipe.vae))
    batch = pipe.vae.frames_per_call(scenario.side, scenario.side)
    return Job(lambda number: torch.cat([pipe.vae.encode(part) for part in inputs.of(number).split(batch)]))


def _decode_job(scenario: Scenario, pipe: BasicPipe, inputs: Inputs, *, one_by_one: bool) -> Job:
    if one_by_one:
        return Job(lambda number: reference_way.decode_all(inputs.of(number), pipe.vae))
    batch = pipe.vae.frames_per_call(scenario.side, scenario.side)
    return Job(lambda number: torch.cat([pipe.vae.decode(part) for part in inputs.of(number).split(batch)]))


def _unet_job(scenario: Scenario, pipe: BasicPipe, inputs: Inputs, *, one_by_one: bool) -> Job:
    def run(number: int) -> Tensor:
        latents, tokens = inputs.of(number)
        return pipe.model.unet(latents, _TIMESTEP, tokens).transpose(0, 1).flatten(1, 2)

    return Job(run)


def _windows_job(scenario: Scenario, pipe: BasicPipe, inputs: Inputs, *, one_by_one: bool) -> Job:
    model = pipe.model
    unet = reference_way.OneWindow(model.unet, scenario.window) if one_by_one else model.unet
    assert pipe.positive is not None
    assert pipe.negative is not None
    latents = inputs.of(0)
    positive, negative = (
        resolve(side, "prompt", latents, model.model_sampling, unet.token_dim)
        for side in (pipe.positive, pipe.negative)
    )
    guided = Guided(unet, model.model_sampling, positive, negative, _CFG, model.context)
    return Job(lambda number: guided(inputs.of(number) * _SIGMA, _SIGMA))


def _node_job(scenario: Scenario, pipe: BasicPipe, inputs: Inputs, *, one_by_one: bool) -> Job:
    sizes = (scenario.width, scenario.height, scenario.segments, scenario.crop, scenario.side)
    segments = make_segments(*sizes)
    segs = segs_of(segments, scenario.width, scenario.height)
    last: list[RunReport] = []

    def reported() -> RunReport:
        last[:] = [RunReport()]
        return last[0]

    def ours(number: int) -> Tensor:
        out, *_ = DetailerForEachPipeForAnimateDiff.doit(
            inputs.of(number), segs, guide_size=scenario.side, max_size=scenario.side, seed=_SEED, steps=scenario.steps,
            cfg=_CFG, denoise=_DENOISE, feather=scenario.feather, noise_mask_feather=scenario.feather, basic_pipe=pipe,
            observer=reported(),
        )  # fmt: skip
        return out

    def the_references(number: int) -> Tensor:
        paint = _painter(scenario, pipe, segs)
        return reference_way.detail(inputs.of(number), segments, scenario.feather, pipe.vae, paint, reported())

    return Job(the_references if one_by_one else ours, report=lambda: last[0] if last else None)


def _painter(scenario: Scenario, pipe: BasicPipe, segs: Any) -> reference_way.Paint:
    """The node's sampling, one window in a call."""
    model = replace(pipe.model, unet=reference_way.OneWindow(pipe.model.unet, scenario.window))
    settings = SampleSettings(_SEED, scenario.steps, _CFG, "euler", "simple", _DENOISE)
    plans = plan_segments(segs, segs[0], scenario.frames, SizeSettings(scenario.side, True, scenario.side))
    assert pipe.positive is not None
    assert pipe.negative is not None
    positive, negative = pipe.positive, pipe.negative

    def paint(index: int, latents: Tensor) -> Tensor:
        mask = NoiseMask(sampling_mask(plans[index], scenario.frames, scenario.feather, REFERENCE), differential=True)
        return sample(model, settings, positive, negative, latents, mask)

    return paint


def _pixel_job(scenario: Scenario, way: str, inputs: Inputs) -> Job:
    segments = _pixel_segments(scenario)
    if way == "native_cuda":
        return _cuda_pixel_job(scenario, segments, inputs)
    vae = StandInVae(scenario.frames, segments[0])
    side = PIXEL_SIDES[way]
    return Job(lambda number: side(inputs.of(number), segments, scenario.feather, vae), lambda: vae.elapsed_ms)


def _pixel_segments(scenario: Scenario) -> list[Segment]:
    return make_segments(scenario.width, scenario.height, scenario.segments, scenario.crop, scenario.side)


def detail_pixels(frames: Tensor, segments: Sequence[Segment], feather_px: int, vae: StandInVae) -> Tensor:
    """What ``reference_way.detail`` computes, with the detailer's own parts: one working copy, the VAE in batches."""
    canvas = ops.working_copy(frames)
    for segment in segments:
        x1, y1, x2, y2 = segment.crop_region
        latents = encode_crop(canvas, segment.crop_region, segment.size, vae)
        patch = decode_crop(latents, (x2 - x1, y2 - y1), vae)
        paste(canvas, patch, segment.mask, segment.crop_region, feather_px, alpha=255)
    return canvas


PIXEL_SIDES: dict[str, Callable[[Tensor, Sequence[Segment], int, StandInVae], Tensor]] = {
    "reference": reference_way.detail,
    "native": detail_pixels,
}


def _cuda_pixel_job(scenario: Scenario, segments: Sequence[Segment], inputs: Inputs) -> Job:
    """Frames go up and come down; between them three launches a segment, and a VAE that gives back its input."""
    device = torch.device("cuda")
    pixels = torch.empty(scenario.frames, 3, scenario.side, scenario.side, device=device)
    masks = [segment.mask.to(device) for segment in segments]
    feathered = [torch.empty_like(mask) for mask in masks]

    def run(number: int) -> Tensor:
        canvas = inputs.of(number).to(device)
        for segment, mask, weight in zip(segments, masks, feathered, strict=True):
            x1, y1, x2, y2 = segment.crop_region
            ops.crop_resize_to_vae_into(pixels, canvas, segment.crop_region, segment.size)
            ops.feather_mask_into(weight, mask, scenario.feather)
            ops.paste_from_vae(canvas, pixels, weight, (x1, y1), (x2 - x1, y2 - y1))
        return canvas.cpu()

    return Job(run)


def measure_ops(scenario: Scenario, copy_speed: float, runs: int = 15) -> list[dict[str, Any]]:
    """Each op of the CPU's pixel path on all frames of one segment, beside the time that its compulsory traffic takes
    at copy speed (bytes per ms)."""
    frames, segment = make_frames(scenario.frames, scenario.width, scenario.height), _pixel_segments(scenario)[0]
    x1, y1, _, _ = segment.crop_region
    canvas, pixels = frames.clone(), ops.crop_resize_to_vae(frames, segment.crop_region, segment.size)
    patch = torch.zeros(len(frames), *segment.mask.shape, 3)
    mask = ops.feather_mask(segment.mask, scenario.feather)
    calls: list[tuple[str, int, Callable[[], object]]] = [
        ("working copy", 2 * frames.numel(), lambda: canvas.copy_(frames)),
        (
            "crop_resize_to_vae_into",
            patch.numel() + pixels.numel(),
            lambda: ops.crop_resize_to_vae_into(pixels, canvas, segment.crop_region, segment.size),
        ),
        ("resize_from_vae_into", pixels.numel() + patch.numel(), lambda: ops.resize_from_vae_into(patch, pixels)),
        ("feather_mask_into", 2 * mask.numel(), lambda: ops.feather_mask_into(mask, segment.mask, scenario.feather)),
        ("alpha_paste", 3 * patch.numel() + mask.numel(), lambda: ops.alpha_paste(canvas, patch, mask, (x1, y1))),
    ]
    return [_op(name, FLOAT_BYTES * moved, repeat(call, runs), copy_speed) for name, moved, call in calls]


def _op(name: str, moved: int, times: Times, copy_speed: float) -> dict[str, Any]:
    floor_ms = moved / copy_speed
    fraction = floor_ms / times.median_ms
    return {
        "name": name, "bytes_moved": moved, "floor_ms": floor_ms, "fraction_of_floor": fraction, **times.as_json()
    }  # fmt: skip


def print_pixel_peak(suite: str, name: str, way: str, threads: str) -> None:
    """In a process of its own: the peak beyond input and output of one side of the pixel path, in bytes."""
    torch.set_num_threads(int(threads))
    ops.set_num_threads(int(threads))
    scenario = next(one for one in SUITES[suite].scenarios if one.name == name)
    inputs = Inputs([make_frames(scenario.frames, scenario.width, scenario.height)])
    first = Inputs([inputs.of(0)[:1]])
    _pixel_job(replace(scenario, frames=1), way, first).run(0)  # loads what is loaded on first use
    job = _pixel_job(scenario, way, inputs)
    out, peak = measure_peak(lambda: job.run(0), torch.device("cpu"))
    beyond = None if peak.host_bytes is None else peak.host_bytes - out.numel() * out.element_size()
    print(json.dumps(beyond))


