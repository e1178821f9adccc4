"""How far every sampler and scheduler is from the reference: docs/sampling.md, made of tests/golden.

python benchmarks/sampling_distance.py --output docs/sampling.md
"""

from __future__ import annotations

import argparse
import inspect
import json
import math
import subprocess
import sys
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor

import animdetail_trt as adt
from animdetail_trt.bench.machine import cpu_model
from animdetail_trt.sampling import SCHEDULER_NAMES, ModelSampling, ksample
from animdetail_trt.sampling.samplers import SAMPLERS
from animdetail_trt.sampling.schedules import SCHEDULES, schedule_sigmas

GOLDEN = Path(__file__).parents[1] / "tests" / "golden"
# A last-bit change of the latent moves these by more than the tolerance, in the reference as here.
CHAOTIC = ("lcm", "ddim", "uni_pc")

OPTIONS = {
    "ancestral": "Down to sigma_down, then noise of sigma_up.",
    "cfg_pp": "As CFG++ (Chung et al. 2024): to the estimate, along the unconditional one's noise.",
}

HEAD = """# Samplers and schedulers

`python benchmarks/sampling_distance.py --output docs/sampling.md` wrote this page on {processor}, torch {torch}, one
thread. It lists each sampler and scheduler with its source, and how far its result is from the reference's.

A distance is the relative norm of the difference from what the reference gave for the same inputs (`tests/golden`),
over a whole run with the tiny checkpoints. "Plain" is 6 steps of karras at denoise 0.7. "Masked, motion" is 4 steps of
normal at denoise 0.6, through a soft noise mask and a v2 motion module. The tolerance is 1e-4. The reference itself
moves by up to 6e-6 when it uses another number of threads.

"""
CHAOS = """
† These runs amplify rounding, so whether they reach the golden outputs depends on the processor. On an Intel Xeon with
AVX-512 they do: euler, euler_ancestral, dpmpp_2m, lcm and ddim to the bit, uni_pc to 4.4e-5. On an AMD EPYC they are
not within the tolerance and cannot be:

- The reference, run on that machine, is 5.7e-4 (lcm), 2.6e-3 (ddim) and 2.1e-2 (uni_pc) from its own golden outputs,
  which were made on another machine.
- It moves by up to 3.0e-3, 2.5e-3 and 2.1e-2 when the latent changes by one part in ten million.
- On that machine too, this package gives the reference's own bits for euler, euler_ancestral, dpmpp_2m, lcm and ddim.

Where euler gives the golden run's bits, the test holds these three to the tolerance as well. Elsewhere it asks how far
rounding is carried. It changes the latent eight times at random by one part in a million and takes the largest move
of our result (5.4e-4, 2.5e-3 and 2.2e-2 on the EPYC). Our distance from the golden latent may be at most three times
that. Eight changes are a sample, not a bound, as the reference's own 3.0e-3 shows for lcm.

A schedule may ask for the exact middle of two trained levels, as sgm_uniform does in an even number of steps with an
lcm module. The reference then takes the level to which its processor's float32 logarithm rounds. This package rounds
logarithms correctly, which gives the level of the golden case; the reference, run on the EPYC, takes the other.
"""


def read_golden(name: str) -> tuple[dict[str, Any], dict[str, Tensor]]:
    with safe_open(GOLDEN / f"{name}.safetensors", "pt") as file:
        metadata = file.metadata() or {}
        tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
    return json.loads(metadata.get("case", "{}")), tensors


def sampler_distances(name: str, tiny: Path) -> dict[str, float]:
    """Relative norm of each sampler's difference from the golden run ``name``."""
    case, tensors = read_golden(name)
    motion = case["motion_module"] and tiny / f"{case['motion_module']}.safetensors"
    pipe = adt.load_pipe(tiny / "tiny_sd15.safetensors", motion_module=motion, device="cpu", dtype="float32")
    distances = {}
    for sampler in SAMPLERS:
        if f"out.{sampler}" in tensors:
            out = ksample(
                pipe.model,
                **{key: case[key] for key in ("seed", "steps", "cfg", "scheduler", "denoise")},
                sampler_name=sampler,
                positive=[[tensors["positive"], {}]],
                negative=[[tensors["negative"], {}]],
                latent=tensors["latent"],
                noise_mask=tensors.get("noise_mask"),
            )
            expected = tensors[f"out.{sampler}"]
            distances[sampler] = float((out - expected).norm() / expected.norm())
    return distances


def scheduler_distances() -> dict[str, tuple[int, float]]:
    """(tables, the largest relative difference of a sigma in them) of each scheduler."""
    _, tables = read_golden("sigmas")
    found: dict[str, tuple[int, float]] = dict.fromkeys(SCHEDULER_NAMES, (0, 0.0))
    for key, expected in tables.items():
        if key.endswith("|table"):
            continue
        beta, scheduler, sampler, steps = key.split("|")
        sigmas = torch.tensor(schedule_sigmas(ModelSampling(beta), sampler, scheduler, int(steps)))  # type: ignore[arg-type]
        relative = (sigmas - expected).abs() / expected.clamp_min(1e-6)
        relative[sigmas.isnan() & expected.isnan()] = 0.0
        relative = relative.nan_to_num(nan=math.inf)  # of one of them
        count, largest = found[scheduler]
        found[scheduler] = count + 1, max(largest, float(relative.max()))
    return found


def source_of(function: Callable[..., Any]) -> str:
    """The first paragraph of the docstring: the method and where it was published; and what is set of its options."""
    options: dict[str, Any] = function.keywords if isinstance(function, partial) else {}
    function = function.func if isinstance(function, partial) else function
    said = [(inspect.getdoc(function) or "").split("\n\n")[0]]
    said += [sentence for name, sentence in OPTIONS.items() if options.get(name)]
    return " ".join(" ".join(said).split())


def document(tiny: Path) -> str:
    plain, masked = sampler_distances("samplers_karras", tiny), sampler_distances("samplers_masked_motion", tiny)
    lines = ["## Samplers", "", "| sampler | method | plain | masked, motion |", "| --- | --- | --- | --- |"]
    for name, sampler in SAMPLERS.items():
        other = f"{masked[name]:.1e}{' †' if name in CHAOTIC else ''}" if name in masked else ""
        lines.append(f"| {name} | {source_of(sampler)} | {plain[name]:.1e} | {other} |")
    lines += [CHAOS, "## Schedulers", "", "| scheduler | method | tables | largest difference of a sigma |"]
    lines.append("| --- | --- | --- | --- |")
    for name, (count, largest) in scheduler_distances().items():
        lines.append(f"| {name} | {source_of(SCHEDULES[name])} | {count} | {largest:.1e} |")
    return HEAD.format(processor=cpu_model(), torch=torch.__version__) + "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, required=True)
    output = parser.parse_args().output
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        names = ("tiny_sd15", "tiny_mm_v2")
        subprocess.run(
            [sys.executable, GOLDEN / "tiny_models.py", folder, *names], check=True, stdout=subprocess.DEVNULL
        )
        output.write_text(document(Path(folder)), encoding="utf-8")


if __name__ == "__main__":
    main()
