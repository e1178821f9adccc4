"""A scenario made ready to run in one way: inputs that are made once, and the call that is timed."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from animdetail_trt.bench import reference_way
from animdetail_trt.bench.job import DeviceReport, Inputs, Job
from animdetail_trt.bench.machine import cache_bytes
from animdetail_trt.bench.pixel_path import pixel_job
from animdetail_trt.bench.scenarios import Scenario
from animdetail_trt.bench.ways import Ways, watched, with_window
from animdetail_trt.bench.workload import make_frames, make_segments, segs_of
from animdetail_trt.detailer.detailer import DetailerForEachPipeForAnimateDiff
from animdetail_trt.detailer.improvements import REFERENCE
from animdetail_trt.detailer.masks import sampling_mask
from animdetail_trt.detailer.plan import SizeSettings, plan_segments
from animdetail_trt.detailer.report import RunReport
from animdetail_trt.models.pipe import BasicPipe
from animdetail_trt.sampling.conditioning import resolve
from animdetail_trt.sampling.guidance import Guided
from animdetail_trt.sampling.run import NoiseMask, SampleSettings, sample

_TIMESTEP, _SIGMA, _CFG, _DENOISE, _SEED = 500.0, 3.0, 8.0, 0.5, 7


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
        return pixel_job(scenario, way, inputs, ways.models.device)
    pipe = with_window(ways.pipe("torch" if way == "reference" else way), scenario)
    make = {
        "vae_encode": _vae_job, "vae_decode": _vae_job, "unet": _unet_job, "windows": _windows_job,
        "segment": _node_job, "clip": _node_job,
    }[scenario.kind]  # fmt: skip
    job = make(scenario, pipe, inputs, one_by_one=way == "reference")

    def run(number: int) -> Tensor:
        with watched(pipe, way, scenario), torch.inference_mode():
            return job.run(number)

    return replace(job, run=run)


def _vae_job(scenario: Scenario, pipe: BasicPipe, inputs: Inputs, *, one_by_one: bool) -> Job:
    call = pipe.vae.encode if scenario.kind == "vae_encode" else pipe.vae.decode
    if one_by_one:
        return Job(lambda number: reference_way.grow(call(frame[None]) for frame in inputs.of(number)))
    batch = pipe.vae.frames_per_call(scenario.side, scenario.side)
    return Job(lambda number: torch.cat([call(part) for part in inputs.of(number).split(batch)]))


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
        last[:] = [DeviceReport() if pipe.model.unet.device.type == "cuda" else RunReport()]
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
