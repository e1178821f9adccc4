"""The pixel path without any model: its jobs, its ops one by one, and its memory in a process of its own."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor

from animdetail_trt import ops
from animdetail_trt.bench import reference_way
from animdetail_trt.bench.floors import FLOAT_BYTES
from animdetail_trt.bench.job import Inputs, Job
from animdetail_trt.bench.memory import measure_peak
from animdetail_trt.bench.scenarios import SUITES, Scenario
from animdetail_trt.bench.timing import repeat
from animdetail_trt.bench.workload import Segment, StandInVae, make_frames, make_segments
from animdetail_trt.detailer.canvas import open_canvas
from animdetail_trt.detailer.masks import paste_mask
from animdetail_trt.detailer.segment import decode_crop, encode_crop


def pixel_job(scenario: Scenario, way: str, inputs: Inputs, device: torch.device | None = None) -> Job:
    """device: the GPU of ``native_cuda``, the current one where it has no index; the others run on the host"""
    segments = _segments_of(scenario)
    vae = StandInVae(scenario.frames, segments[0], _gpu(device) if way == "native_cuda" else torch.device("cpu"))
    side = PIXEL_SIDES[way]
    return Job(lambda number: side(inputs.of(number), segments, scenario.feather, vae), lambda: vae.elapsed_ms)


def _gpu(device: torch.device | None) -> torch.device:
    if device is None or device.index is None:
        return torch.device("cuda", torch.cuda.current_device())
    return device


def _segments_of(scenario: Scenario) -> list[Segment]:
    return make_segments(scenario.width, scenario.height, scenario.segments, scenario.crop, scenario.side)


def detail_pixels(frames: Tensor, segments: Sequence[Segment], feather_px: int, vae: StandInVae) -> Tensor:
    """What ``reference_way.detail`` computes, with the detailer's own parts, where the VAE is: one copy of the frames,
    the VAE in batches."""
    canvas = open_canvas(frames, vae, hooked=False)
    for segment in segments:
        x1, y1, x2, y2 = segment.crop_region
        size = x2 - x1, y2 - y1
        latents = encode_crop(canvas, segment.crop_region, segment.size, vae)
        weight = paste_mask(segment.mask, len(frames), feather_px, 255, size, canvas.home)
        decode_crop(latents, size, vae, canvas, paste=partial(canvas.paste, weight=weight, left_top=(x1, y1)))
    return canvas.finish()


PIXEL_SIDES: dict[str, Callable[[Tensor, Sequence[Segment], int, StandInVae], Tensor]] = {
    "reference": reference_way.detail,
    "native": detail_pixels,
    "native_cuda": detail_pixels,
}


def measure_ops(scenario: Scenario, runs: int = 15) -> list[dict[str, Any]]:
    """Each op of the CPU's pixel path on all frames of one segment: the bytes that it must move, and its times."""
    frames, segment = make_frames(scenario.frames, scenario.width, scenario.height), _segments_of(scenario)[0]
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
    return [
        {"name": name, "bytes_moved": FLOAT_BYTES * moved, **repeat(call, runs).as_json()}
        for name, moved, call in calls
    ]


def print_peak(suite: str, name: str, way: str, threads: str) -> None:
    """In a process of its own: the peak beyond input and output of one side of the pixel path, in bytes."""
    torch.set_num_threads(int(threads))
    ops.set_num_threads(int(threads))
    scenario = next(one for one in SUITES[suite].scenarios if one.name == name)
    inputs = Inputs([make_frames(scenario.frames, scenario.width, scenario.height)])
    first = Inputs([inputs.of(0)[:1]])
    pixel_job(replace(scenario, frames=1), way, first).run(0)  # loads what is loaded on first use
    job = pixel_job(scenario, way, inputs)
    out, peak = measure_peak(lambda: job.run(0), torch.device("cpu"))
    beyond = None if peak.host_bytes is None else peak.host_bytes - out.numel() * out.element_size()
    print(json.dumps(beyond))
