"""The pixel path on a CUDA device: each op against the card's own copy speed, the whole against the reference's way.

README.md says how this measures.
"""

from __future__ import annotations

import argparse
import json
import math
import re
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor

from animdetail_trt import ops
from animdetail_trt.bench import machine, reference_way
from animdetail_trt.bench.floors import FLOAT_BYTES
from animdetail_trt.bench.timing import Times, repeat, time_ms
from animdetail_trt.bench.workload import Region, Segment, StandInVae, make_frames, make_segments

CUDA = torch.device("cuda")
TARGET_FRACTION, TARGET_SPEEDUP = 0.7, 200
# A blur summed in another order moves a pasted value by this much at most (golden/README.md).
TOLERANCE = 2e-6
Call = Callable[[], object]


@dataclass(frozen=True)
class Op:
    """One op: a call for each of several sets of tensors, of which each moves ``bytes_moved`` at least."""

    name: str
    bytes_moved: int
    calls: Sequence[Call]
    multiply_adds: int = 0  # that the contract of the blur asks for, one after the other


@dataclass(frozen=True)
class Inputs:
    """The tensors of one segment, on the device."""

    canvas: Tensor  # (f, h, w, 3)
    pixels: Tensor  # (f, 3, size, size)
    patch: Tensor  # (f, crop, crop, 3)
    mask: Tensor  # (crop, crop)
    masks: Tensor  # (f, crop, crop)
    feathered: Tensor
    feathered_masks: Tensor
    half_pixels: Tensor  # float16, as a VAE may read and write them
    byte_patch: Tensor  # uint8, as the detailer brings new crops to the host


def make_inputs(args: argparse.Namespace, crop: int, size: int) -> Inputs:
    canvas = torch.rand(args.frames, args.height, args.width, 3, device="cuda")
    masks = torch.rand(args.frames, crop, crop, device="cuda")
    pixels = torch.rand(args.frames, 3, size, size, device="cuda") * 2.4 - 1.2
    patch = torch.rand(args.frames, crop, crop, 3, device="cuda")
    narrow = pixels.half(), (255 * patch).byte()
    return Inputs(canvas, pixels, patch, masks[0].clone(), masks, masks[0].clone(), masks.clone(), *narrow)


def make_ops(args: argparse.Namespace, crop: int, size: int) -> list[Op]:
    """Sets of inputs that together are several times the card's L2, so that none is found there."""
    crop_floats, size_floats = 3 * args.frames * crop * crop, 3 * args.frames * size * size
    smallest = FLOAT_BYTES * (crop_floats + crop_floats // 3)
    count = min(8, max(2, math.ceil(4 * torch.cuda.get_device_properties(0).L2_cache_size / smallest)))
    sets = [make_inputs(args, crop, size) for _ in range(count)]
    x, y = args.left, args.top
    region = (x, y, x + crop, y + crop)
    taps = (2 * args.feather + 1) ** 2

    def op(
        name: str, floats: int, call: Callable[[Inputs], object], multiply_adds: int = 0, narrow_bytes: int = 0
    ) -> Op:
        return Op(name, FLOAT_BYTES * floats + narrow_bytes, [partial(call, one) for one in sets], multiply_adds)

    return [
        op(
            "crop_resize_to_vae_into",
            crop_floats + size_floats,
            lambda one: ops.crop_resize_to_vae_into(one.pixels, one.canvas, region, (size, size)),
        ),
        op(
            "resize_from_vae_into",
            size_floats + crop_floats,
            lambda one: ops.resize_from_vae_into(one.patch, one.pixels),
        ),
        op(
            "alpha_paste",
            3 * crop_floats + crop * crop,
            lambda one: ops.alpha_paste(one.canvas, one.patch, one.mask, (x, y)),
        ),
        op(
            "paste_from_vae",
            size_floats + 2 * crop_floats + crop * crop,
            lambda one: ops.paste_from_vae(one.canvas, one.pixels, one.mask, (x, y), (crop, crop)),
        ),
        op(
            "crop_resize_to_vae_into, float16",
            crop_floats,
            lambda one: ops.crop_resize_to_vae_into(one.half_pixels, one.canvas, region, (size, size)),
            narrow_bytes=2 * size_floats,
        ),
        op(
            "resize_from_vae_into, float16 to 8 bits",
            0,
            lambda one: ops.resize_from_vae_into(one.byte_patch, one.half_pixels),
            narrow_bytes=2 * size_floats + crop_floats,
        ),
        op(
            "alpha_paste, 8 bits",
            2 * crop_floats + crop * crop,
            lambda one: ops.alpha_paste(one.canvas, one.byte_patch, one.mask, (x, y)),
            narrow_bytes=crop_floats,
        ),
        op(
            "feather_mask_into, a mask a frame",
            2 * crop_floats // 3,
            lambda one: ops.feather_mask_into(one.feathered_masks, one.masks, args.feather),
            taps * crop_floats // 3,
        ),
        op(
            "feather_mask_into, one mask",
            2 * crop * crop,
            lambda one: ops.feather_mask_into(one.feathered, one.mask, args.feather),
            taps * crop * crop,
        ),
    ]


def device_times(calls: Sequence[Call], runs: int, rounds: int = 4) -> Times:
    """Milliseconds per call, by events around a graph of ``rounds`` rounds over the calls: no launch gaps in them."""
    for call in calls:
        call()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for _ in range(rounds):
            for call in calls:
                call()
    count = rounds * len(calls)
    return Times([ms / count for ms in (time_ms(graph.replay, device=CUDA) for _ in range(runs + 2))][2:])


def copy_bytes_per_ms(runs: int = 15) -> float:
    """Bytes read plus written per millisecond by a copy on the device, between buffers beyond any cache."""
    source = torch.rand(2**29, device="cuda")
    target = torch.empty_like(source)
    return 2 * FLOAT_BYTES * source.numel() / repeat(lambda: target.copy_(source), runs, CUDA).median_ms


def measure_op(op: Op, copy_speed: float, runs: int) -> dict[str, Any]:
    times, again = device_times(op.calls, runs), device_times(op.calls, runs)
    floor_ms = op.bytes_moved / copy_speed
    result = {
        "name": op.name,
        "bytes_moved": op.bytes_moved,
        "floor_ms": floor_ms,
        "fraction_of_copy_speed": floor_ms / times.median_ms,
        "median_ms_again": again.median_ms,
        **times.as_json(),
    }
    if op.multiply_adds:
        result["multiply_adds_per_s"] = 1e3 * op.multiply_adds / times.median_ms
    return result


class Job:
    """All segments of a clip whose frames are on the device; the VAE gives back what it is given, in place."""

    def __init__(self, frames: Tensor, segments: list[Segment], feather_px: int) -> None:
        self.canvas = frames.cuda()
        self.segments = segments
        self.masks = [segment.mask.cuda() for segment in segments]
        self.feathered = [torch.empty_like(mask) for mask in self.masks]
        width, height = segments[0].size
        self.pixels = torch.empty(len(frames), 3, height, width, device="cuda")
        self.feather_px = feather_px

    def run(self) -> None:
        for i in range(len(self.segments)):
            self.run_segment(i)

    def run_segment(self, i: int) -> None:
        region: Region = self.segments[i].crop_region
        x1, y1, x2, y2 = region
        ops.crop_resize_to_vae_into(self.pixels, self.canvas, region, self.segments[i].size)
        ops.feather_mask_into(self.feathered[i], self.masks[i], self.feather_px)
        ops.paste_from_vae(self.canvas, self.pixels, self.feathered[i], (x1, y1), (x2 - x1, y2 - y1))


def kernels_of(call: Call) -> list[str]:
    """The kernels that a call launches, by torch's profiler."""
    call()
    torch.cuda.synchronize()
    with torch.profiler.profile(activities=list(torch.profiler.supported_activities())) as profile:
        call()
        torch.cuda.synchronize()
    events = [event for event in profile.events() if str(event.device_type).endswith("CUDA")]
    return [found.group(1) if (found := re.search(r"(\w+)[<(]", event.name)) else event.name for event in events]


def measure_job(args: argparse.Namespace, crop: int, size: int) -> dict[str, Any]:
    frames = make_frames(args.frames, args.width, args.height)
    segments = make_segments(args.width, args.height, args.segments, crop, size)
    vae = StandInVae(len(frames), segments[0])
    job = Job(frames, segments, args.feather)

    expected = reference_way.detail(frames, segments, args.feather, vae)
    job.run()
    difference = float((job.canvas.cpu() - expected).abs().max())
    assert difference <= TOLERANCE, f"the two sides differ by {difference}"

    def the_references_way() -> object:
        return reference_way.detail(frames, segments, args.feather, vae)

    slow = Times([time_ms(the_references_way, lambda: vae.elapsed_ms) / len(segments) for _ in range(args.rounds)])
    pinned, back = frames.pin_memory(), torch.empty_like(frames).pin_memory()

    def with_transfers() -> None:
        job.canvas.copy_(pinned, non_blocking=True)
        job.run()
        back.copy_(job.canvas, non_blocking=True)

    fast = Times([time_ms(job.run, device=CUDA) / len(segments) for _ in range(args.runs + 2)][2:])
    in_graph = device_times([partial(job.run_segment, i) for i in range(len(segments))], args.runs)
    transfers = Times([time_ms(with_transfers, device=CUDA) / len(segments) for _ in range(args.runs + 2)][2:])
    return {
        "crop": crop,
        "size": size,
        "largest_difference": difference,
        "threads_of_baseline": torch.get_num_threads(),
        "baseline_per_segment": slow.as_json(),
        "gpu_per_segment": fast.as_json(),
        "gpu_per_segment_in_a_graph": in_graph.as_json(),
        "gpu_per_segment_with_transfers_of_the_clip": transfers.as_json(),
        "speedup": slow.median_ms / fast.median_ms,
        "kernels_of_a_segment": kernels_of(lambda: job.run_segment(0)),
    }


def measure(args: argparse.Namespace) -> dict[str, Any]:
    torch.manual_seed(0)
    result: dict[str, Any] = {
        "benchmark": "pixels_gpu",
        **machine.describe(vars(args)),
        "card": machine.describe_card(torch.device("cuda", 0)),
    }
    copy_speed = copy_bytes_per_ms()
    cases = []
    for crop, size in args.cases:
        torch.cuda.empty_cache()
        rows = [measure_op(op, copy_speed, args.runs) for op in make_ops(args, crop, size)]
        cases.append({"crop": crop, "size": size, "ops": rows})
    jobs = [measure_job(args, crop, size) for crop, size in args.cases if args.rounds and fits(args, crop)]
    return result | {"copy_gb_per_s": copy_speed / 1e6, "cases": cases, "jobs": jobs}


def fits(args: argparse.Namespace, crop: int) -> bool:
    return bool(crop <= args.width // args.segments and crop <= args.height)


def tables(result: dict[str, Any]) -> list[tuple[str, list[str], list[list[str]]]]:
    """(title, heads, rows) of what is worth reading."""
    flags, made = result["flags"], []
    for case in result["cases"]:
        title = f"{flags['frames']} frames, {case['crop']}x{case['crop']} and {case['size']}x{case['size']}"
        rows = [
            [
                op["name"],
                f"{op['bytes_moved'] / 1e6:.1f}",
                f"{1e3 * op['floor_ms']:.1f}",
                f"{1e3 * op['median_ms']:.1f}",
                f"{1e3 * op['median_ms_again']:.1f}",
                f"{op['fraction_of_copy_speed']:.0%}",
            ]
            for op in case["ops"]
        ]
        made.append((title, ["op", "MB moved", "floor us", "measured us", "again us", "of copy speed"], rows))
    for job in result["jobs"]:
        title = f"whole pixel path per segment, {job['crop']}x{job['crop']} to {job['size']}x{job['size']} and back"
        names = {
            "the reference's way, CPU": "baseline_per_segment",
            "GPU": "gpu_per_segment",
            "GPU, in a CUDA graph": "gpu_per_segment_in_a_graph",
            "GPU, with the clip's upload and download": "gpu_per_segment_with_transfers_of_the_clip",
        }
        slow = job["baseline_per_segment"]["median_ms"]
        medians = {name: job[key]["median_ms"] for name, key in names.items()}
        rows = [[name, f"{median:.3f}", f"{slow / median:.0f}x"] for name, median in medians.items()]
        rows.append(["launches", str(len(job["kernels_of_a_segment"])), ", ".join(job["kernels_of_a_segment"])])
        made.append((title, ["side", "median ms", "speedup"], rows))
    return made


def verdict(result: dict[str, Any]) -> list[str]:
    bounded = [op for case in result["cases"] for op in case["ops"] if "multiply_adds_per_s" not in op]
    worst = min(float(op["fraction_of_copy_speed"]) for op in bounded)
    speedups = [float(job["speedup"]) for job in result["jobs"]]
    memory = f"slowest op that memory bounds: {worst:.0%} of it; target {TARGET_FRACTION:.0%}"
    return [
        f"copy speed {result['copy_gb_per_s']:.0f} GB/s, read plus written",
        f"{memory}: {met(worst >= TARGET_FRACTION)}",
        *(
            f"{times:.0f} times the reference; target {TARGET_SPEEDUP}: {met(times >= TARGET_SPEEDUP)}"
            for times in speedups
        ),
    ]


def met(reached: bool) -> str:
    return "met" if reached else "NOT met"


def show(result: dict[str, Any], console: Console) -> None:
    card, machine = result["card"], result["machine"]
    console.print(f"{card['name']}, driver {card['driver']}; {machine['cpu']}; commit {result['commit']}\n")
    for title, heads, rows in tables(result):
        table = Table(*heads, title=title, title_justify="left")
        for row in rows:
            table.add_row(*row)
        console.print(table)
    console.print("\n".join(verdict(result)))


def markdown(result: dict[str, Any]) -> str:
    card = result["card"]
    lines = [f"# {card['name']}, driver {card['driver']}, commit {result['commit']}", ""]
    for title, heads, rows in tables(result):
        lines += [f"## {title}", ""]
        lines += ["| " + " | ".join(cells) + " |" for cells in (heads, ["---"] * len(heads), *rows)] + [""]
    return "\n".join(lines + [f"* {line}" for line in verdict(result)]) + "\n"


def parse(argv: list[str]) -> argparse.Namespace:
    def case(text: str) -> tuple[int, int]:
        crop, size = text.split(":")
        return int(crop), int(size)

    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--output", type=Path, help="folder for pixels-CARD.json and .md")
    parser.add_argument("--frames", type=int, default=32)
    parser.add_argument("--width", type=int, default=1024)
    parser.add_argument("--height", type=int, default=576)
    parser.add_argument("--segments", type=int, default=3)
    parser.add_argument("--cases", type=case, nargs="+", default=[(224, 512), (448, 1024)], help="CROP:SIZE ...")
    parser.add_argument("--left", type=int, default=61, help="of the crop, in the tables of ops")
    parser.add_argument("--top", type=int, default=50)
    parser.add_argument("--feather", type=int, default=5)
    parser.add_argument("--runs", type=int, default=25)
    parser.add_argument("--rounds", type=int, default=3, help="of the reference's way; 0 leaves it out")
    args = parser.parse_args(argv)
    args.output = args.output and str(args.output)
    return args


def main(argv: list[str]) -> None:
    args = parse(argv)
    if not torch.cuda.is_available():
        sys.exit("bench_pixels_gpu: torch sees no CUDA device. animdetail-trt bench measures the CPU")
    result = measure(args)
    console = Console(width=140)
    show(result, console)
    if args.output:
        folder = Path(args.output)
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / ("pixels-" + re.sub(r"\W+", "-", result["card"]["name"]).strip("-").lower())
        path.with_suffix(".json").write_text(json.dumps(result, indent=2) + "\n")
        path.with_suffix(".md").write_text(markdown(result))
        print(f"written: {path}.json, {path}.md")


if __name__ == "__main__":
    main(sys.argv[1:])
