"""The pixel path against the reference's way of doing it. README.md says how this measures."""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor

import baseline
import env
from animdetail_trt import ops
from animdetail_trt.detailer.canvas import open_canvas
from animdetail_trt.detailer.masks import paste_mask
from animdetail_trt.detailer.segment import decode_crop, encode_crop
from timing import Times, alternate, copy_bytes_per_ms, repeat
from workload import Segment, StandInVae, make_frames, make_segments

TARGET_SPEEDUP = 30
FLOAT_BYTES = 4
# A blur summed in another order moves a pasted value by this much at most (golden/README.md).
TOLERANCE = 2e-6


def detail(frames: Tensor, segments: list[Segment], feather_px: int, vae: StandInVae) -> Tensor:
    """What :func:`baseline.detail` computes, with the detailer's own parts: one working copy, the VAE in batches."""
    canvas = open_canvas(frames, vae, hooked=False)
    for segment in segments:
        x1, y1, x2, y2 = segment.crop_region
        latents = encode_crop(canvas, segment.crop_region, segment.size, vae)
        weight = paste_mask(segment.mask, len(frames), feather_px, 255, (x2 - x1, y2 - y1), canvas.home)
        paste = partial(canvas.paste, weight=weight, left_top=(x1, y1))
        decode_crop(latents, (x2 - x1, y2 - y1), vae, canvas, paste=paste)
    return canvas.finish()


SIDES = {"baseline": baseline.detail, "animdetail": detail}


@dataclass(frozen=True)
class OpResult:
    """One op on all frames of one segment, next to the time that its compulsory traffic takes at copy speed."""

    name: str
    bytes_moved: int
    times: Times
    floor_ms: float

    def as_json(self) -> dict[str, Any]:
        fraction = self.floor_ms / self.times.median_ms
        moved = {"bytes_moved": self.bytes_moved, "floor_ms": self.floor_ms, "fraction_of_copy_speed": fraction}
        return {"name": self.name, **moved, **self.times.as_json()}


def measure_ops(frames: Tensor, segment: Segment, feather_px: int, copy_speed: float, runs: int) -> list[OpResult]:
    x1, y1, _, _ = segment.crop_region
    canvas, pixels = frames.clone(), ops.crop_resize_to_vae(frames, segment.crop_region, segment.size)
    patch = torch.zeros(len(frames), *segment.mask.shape, 3)
    mask = ops.feather_mask(segment.mask, feather_px)
    calls: list[tuple[str, int, Callable[[], object]]] = [
        ("working copy", 2 * frames.numel(), lambda: canvas.copy_(frames)),
        (
            "crop_resize_to_vae_into",
            patch.numel() + pixels.numel(),
            lambda: ops.crop_resize_to_vae_into(pixels, canvas, segment.crop_region, segment.size),
        ),
        ("resize_from_vae_into", pixels.numel() + patch.numel(), lambda: ops.resize_from_vae_into(patch, pixels)),
        ("feather_mask_into", 2 * mask.numel(), lambda: ops.feather_mask_into(mask, segment.mask, feather_px)),
        ("alpha_paste", 3 * patch.numel() + mask.numel(), lambda: ops.alpha_paste(canvas, patch, mask, (x1, y1))),
    ]
    return [
        OpResult(name, FLOAT_BYTES * moved, repeat(call, runs), FLOAT_BYTES * moved / copy_speed)
        for name, moved, call in calls
    ]


def make_job(args: argparse.Namespace) -> tuple[Tensor, list[Segment], int]:
    torch.set_num_threads(args.threads)
    ops.set_num_threads(args.threads)
    frames = make_frames(args.frames, args.width, args.height)
    return frames, make_segments(args.width, args.height, args.segments, args.crop, args.size), args.feather


def print_memory(args: argparse.Namespace) -> None:
    """In a process of its own: the peak of resident memory while one side runs, beyond its input and output."""
    frames, segments, feather_px = make_job(args)
    run = SIDES[args.memory_of]
    vae = StandInVae(len(frames), segments[0])
    run(frames[:1], segments, feather_px, StandInVae(1, segments[0]))  # loads what is loaded on first use
    Path("/proc/self/clear_refs").write_text("5")  # resets the peak to what is resident now
    before = resident_bytes("VmHWM")
    run(frames, segments, feather_px, vae)
    output = frames.numel() * frames.element_size()
    print(json.dumps({"peak_beyond_input_and_output": resident_bytes("VmHWM") - before - output}))


def resident_bytes(field: str) -> int:
    status = Path("/proc/self/status").read_text()
    return 1024 * next(int(line.split()[1]) for line in status.splitlines() if line.startswith(field + ":"))


def measure_memory(side: str, argv: list[str]) -> int:
    command = [sys.executable, __file__, *argv, "--memory-of", side]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    return int(json.loads(done.stdout)["peak_beyond_input_and_output"])


def measure(args: argparse.Namespace, argv: list[str]) -> dict[str, Any]:
    result = {"benchmark": "pixels", **env.describe({k: v for k, v in vars(args).items() if k != "memory_of"})}
    memory = {side: measure_memory(side, argv) for side in SIDES}
    frames, segments, feather_px = make_job(args)

    vae = StandInVae(len(frames), segments[0])

    expected, actual = (run(frames, segments, feather_px, vae) for run in SIDES.values())
    difference = float((expected - actual).abs().max())
    assert difference <= TOLERANCE, f"the two sides differ by {difference}"
    del expected, actual

    slow, fast = alternate(
        lambda: baseline.detail(frames, segments, feather_px, vae),
        lambda: detail(frames, segments, feather_px, vae),
        args.rounds,
        excluded_ms=lambda: vae.elapsed_ms,
    )
    copy_speed = copy_bytes_per_ms()
    op_results = measure_ops(frames, segments[0], feather_px, copy_speed, runs=args.op_runs)
    return result | {
        "largest_difference": difference,
        "baseline": slow.as_json(),
        "animdetail": fast.as_json(),
        "speedup": slow.median_ms / fast.median_ms,
        "speedup_of_each_round": [a / b for a, b in zip(slow.runs_ms, fast.runs_ms, strict=True)],
        "copy_gb_per_s": copy_speed / 1e6,
        "ops": [op.as_json() for op in op_results],
        "floor_ms": op_results[0].floor_ms + len(segments) * sum(op.floor_ms for op in op_results[1:]),
        "frames_bytes": frames.numel() * FLOAT_BYTES,
        "peak_bytes_beyond_input_and_output": memory,
    }


def show(result: dict[str, Any], console: Console) -> None:
    flags, machine = result["flags"], result["machine"]
    title = (
        "{frames} frames of {width}x{height}, {segments} segments of {crop}x{crop} to {size}x{size} and back, "
        "feather {feather}, {threads} threads"
    ).format(**flags)
    console.print(f"{title}\n{machine['cpu']}, {machine['usable_processors']} processors, commit {result['commit']}\n")

    sides = Table("whole job", "median ms", "fastest", "slowest", "peak MiB beyond input and output")
    for side in SIDES:
        runs, peak = result[side]["runs_ms"], result["peak_bytes_beyond_input_and_output"][side]
        figures = (result[side]["median_ms"], min(runs), max(runs), peak / 2**20)
        sides.add_row(side, *(f"{figure:.1f}" for figure in figures))
    console.print(sides)

    table = Table("op, one segment", "MB moved", "floor ms", "measured ms", "of copy speed")
    for op in result["ops"]:
        cells = (f"{op['bytes_moved'] / 1e6:.1f}", f"{op['floor_ms']:.2f}", f"{op['median_ms']:.2f}")
        table.add_row(op["name"], *cells, f"{op['fraction_of_copy_speed']:.0%}")
    console.print(table)

    rounds = result["speedup_of_each_round"]
    met = "met" if result["speedup"] >= TARGET_SPEEDUP else "NOT met"
    console.print(
        f"{result['speedup']:.1f} times the baseline ({min(rounds):.1f} to {max(rounds):.1f} over {len(rounds)} "
        f"rounds); target {TARGET_SPEEDUP}: {met}"
    )
    console.print(
        f"copy speed {result['copy_gb_per_s']:.1f} GB/s, so moving the data alone takes {result['floor_ms']:.1f} ms: "
        f"the job runs at {result['floor_ms'] / result['animdetail']['median_ms']:.0%} of it"
    )
    peak, limit = result["peak_bytes_beyond_input_and_output"]["animdetail"], result["frames_bytes"]
    console.print(
        f"extra memory {peak / limit:.2f} copies of the frames; target below 1: {'met' if peak < limit else 'NOT met'}"
    )


def parse(argv: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--output", type=Path, help="folder for bench_pixels.json")
    parser.add_argument("--frames", type=int, default=32)
    parser.add_argument("--width", type=int, default=1024)
    parser.add_argument("--height", type=int, default=576)
    parser.add_argument("--segments", type=int, default=3)
    parser.add_argument("--crop", type=int, default=224, help="side of a segment's crop")
    parser.add_argument("--size", type=int, default=512, help="side that it is enlarged to")
    parser.add_argument("--feather", type=int, default=5)
    parser.add_argument("--threads", type=int, default=2, help="for both sides")
    parser.add_argument("--rounds", type=int, default=7, help="baseline, ours, baseline, ours, ...")
    parser.add_argument("--op-runs", type=int, default=25)
    parser.add_argument("--memory-of", choices=SIDES, help=argparse.SUPPRESS)
    args = parser.parse_args(argv)
    args.output = args.output and str(args.output)
    return args


def main(argv: list[str]) -> None:
    args = parse(argv)
    if args.memory_of:
        print_memory(args)
        return
    result = measure(args, argv)
    show(result, Console())
    if args.output:
        path = Path(args.output) / "bench_pixels.json"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(result, indent=2) + "\n")
        print(f"written: {path}")


if __name__ == "__main__":
    main(sys.argv[1:])
