"""``bench compare``: ratios, exit codes, and what it refuses."""

from __future__ import annotations

import json
import math
import random
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from animdetail_trt.bench import run as bench_run
from animdetail_trt.bench.compare import compare_results
from animdetail_trt.bench.floors import Rates
from animdetail_trt.bench.scenarios import SUITES
from animdetail_trt.bench.timing import Times
from outcome import Outcome
from results import a_result

Run = Callable[..., Outcome]


def compare(run: Run, folder: Path, old: Any, new: Any, *flags: str) -> Outcome:
    paths = [folder / "a.json", folder / "b.json"]
    for path, document in zip(paths, (old, new), strict=True):
        path.write_text(json.dumps(document))
    return run("bench", "compare", *paths, *flags)


@pytest.mark.parametrize(("slower", "flags", "code"), [
    (1.0, (), 0), (1.09, (), 0), (1.3, (), 1), (0.5, (), 0), (1.3, ("--threshold", "1.5"), 0),
])  # fmt: skip
def test_exit_code(run: Run, tmp_path: Path, slower: float, flags: tuple[str, ...], code: int) -> None:
    done = compare(run, tmp_path, a_result(), a_result(slower=slower), *flags)
    assert done.code == code, done
    assert f"{slower:.2f}" in done.out
    assert ("faster" in done.out) == (slower == 0.5)


def test_what_lies_within_the_spread_is_no_loss(run: Run, tmp_path: Path) -> None:
    new = a_result(slower=1.5)
    new["scenarios"][0]["results"][0]["ratios_to_base"] = [1.3, 1.4, 1.8]  # of 1.9 to 2.1
    assert compare(run, tmp_path, a_result(), new).code == 0


def timed(base: list[float], ours: list[float]) -> dict[str, Any]:
    """A result of the reference's way and torch, with these times in ms."""
    document = a_result()
    (result,) = document["scenarios"][0]["results"]
    results = []
    for name, times in (("reference", base), ("torch", ours)):
        one = Times(times).as_json() | {"backend": name, "speedup": median(base) / median(times)}
        results.append(result | one | {"ratios_to_base": [a / b for a, b in zip(base, times, strict=True)]})
    document["scenarios"][0]["results"] = results
    return document


QUIET = timed([20, 20.4, 20.2], [10, 10.2, 10.1])


def verdicts(old: dict[str, Any], new: dict[str, Any]) -> dict[str, str]:
    pairs = compare_results(old, new).pairs
    return {pair.backend: "slower" if pair.slower else "faster" if pair.faster else "alike" for pair in pairs}


def test_a_way_is_judged_by_its_base_which_the_machine_slows_alike() -> None:
    busy = timed([30, 31, 29], [15, 15.5, 14.5])
    assert verdicts(QUIET, busy) == {"reference": "slower", "torch": "alike"}
    assert verdicts(QUIET, timed([14, 14.2, 14.1], [10, 10.2, 10.1])) == {"reference": "faster", "torch": "slower"}
    other_base = timed([30, 31, 29], [10, 10.2, 10.1])
    other_base["scenarios"][0]["base"] = "torch"
    assert verdicts(QUIET, other_base)["torch"] == "alike"


def test_a_base_is_judged_by_milliseconds_of_like_runs(run: Run, tmp_path: Path) -> None:
    slower = timed([30, 31, 29], [15, 15.5, 14.5])
    assert compare(run, tmp_path, QUIET, slower).code == 1
    other_torch = slower | {"versions": slower["versions"] | {"torch": "2.14.0"}}
    done = compare(run, tmp_path, QUIET, other_torch)
    assert done.code == 0
    assert "reference took 1.49 times as long: no loss" in done.out
    busy = slower | {"rates": {name: rate / 1.4 for name, rate in slower["rates"].items()}}
    done = compare(run, tmp_path, QUIET, busy)
    assert done.code == 0
    assert "the machine was 1.40 times slower in the second" in done.out


def test_few_rounds_must_be_further_apart_than_many() -> None:
    old, new = [10.0, 10.5, 9.5], [11.5, 11.8, 11.2]
    assert verdicts(timed([20] * 3, old), timed([20] * 3, new))["torch"] == "alike"
    assert verdicts(timed([20] * 6, old * 2), timed([20] * 6, new * 2))["torch"] == "slower"
    one_stray = [*new * 4, 10.0]
    assert verdicts(timed([20] * 13, [*old * 4, 9.5]), timed([20] * 13, one_stray))["torch"] == "slower"


@pytest.mark.parametrize("rounds", [3, 6])
def test_two_runs_of_the_same_rarely_differ(rounds: int) -> None:
    """Every time 8 % off, the machine of one run up to 1.5 times as slow: of 2000 ways."""
    noise = random.Random(1)

    def a_run() -> dict[str, Any]:
        busy = noise.uniform(1, 1.5)
        return timed(*([busy * ms * math.exp(noise.gauss(0, 0.08)) for _ in range(rounds)] for ms in (20, 10)))

    found = [verdicts(a_run(), a_run())["torch"] for _ in range(2000)]
    assert found.count("slower") < 0.01 * len(found)
    assert found.count("faster") < 0.01 * len(found)


def with_result(**changes: Any) -> dict[str, Any]:
    document = a_result()
    document["scenarios"][0]["results"][0].update(changes)
    return document


def in_pixels(**changes: Any) -> dict[str, Any]:
    document = with_result(**changes)
    document["scenarios"][0]["kind"] = "pixels"
    return document


def on_the_card(peak_host_bytes: int) -> dict[str, Any]:
    """Measured in the run's own process, unlike the other ways of the pixel path."""
    return in_pixels(backend="native_cuda", peak_host_bytes=peak_host_bytes)


def with_psnr(psnr_db: float | None) -> dict[str, Any]:
    return with_result(quality=a_result()["scenarios"][0]["results"][0]["quality"] | {"psnr_db": psnr_db})


def growing(exponent: float) -> dict[str, Any]:
    fit = {"kind": "clip", "backend": "torch", "axis": "frames", "of": "time", "points": [[1, 1], [2, 2], [4, 4]],
           "exponent": exponent, "flagged": exponent > 1.5}  # fmt: skip
    return a_result() | {"growth": [fit]}


MIB = 2**20


@pytest.mark.parametrize(("old", "new", "lost"), [
    (with_psnr(50.0), with_psnr(46.0), "clip-1s-16f-64px torch: PSNR 46.0 dB, before 50.0 dB"),
    (with_psnr(None), with_psnr(8.0), "PSNR 8.0 dB, before equal"),
    (with_psnr(50.0), with_psnr(48.0), None),
    (with_psnr(120.0), with_psnr(70.0), None),
    (with_psnr(None), with_psnr(100.0), None),
    (with_psnr(50.0), with_psnr(None), None),
    (with_psnr(50.0), with_result(quality=None), "nothing is known of its quality"),
    (with_result(peak_host_bytes=90 * MIB), with_result(peak_host_bytes=150 * MIB), "host memory 150 MiB, before 90"),
    (with_result(peak_host_bytes=98 * MIB), with_result(peak_host_bytes=121 * MIB), None),
    (in_pixels(peak_host_bytes=31 * MIB), in_pixels(peak_host_bytes=60 * MIB), "host memory 60 MiB, before 31"),
    (in_pixels(peak_host_bytes=31 * MIB), in_pixels(peak_host_bytes=45 * MIB), None),
    (on_the_card(98 * MIB), on_the_card(121 * MIB), None),
    (on_the_card(90 * MIB), on_the_card(150 * MIB), "native_cuda: host memory 150 MiB, before 90"),
    (with_result(peak_device_bytes=90 * MIB), with_result(peak_device_bytes=110 * MIB), "device memory 110 MiB"),
    (with_result(peak_device_bytes=MIB), with_result(peak_device_bytes=100 * MIB), "device memory 100 MiB, before 1"),
    (with_result(peak_host_bytes=MIB), with_result(peak_host_bytes=15 * MIB), None),
    (with_result(peak_host_bytes=900 * MIB), with_result(peak_host_bytes=950 * MIB), None),
    (growing(1.1), growing(1.9), "clip torch: time grows with frames^1.90, before 1.10"),
    (a_result(), growing(1.9), "frames^1.90, which the first did not measure"),
    (growing(1.6), growing(1.9), None),
])  # fmt: skip
def test_what_else_is_a_loss(run: Run, tmp_path: Path, old: Any, new: Any, lost: str | None) -> None:
    done = compare(run, tmp_path, old, new)
    assert done.code == (lost is not None)
    assert lost is None or f"lost: {lost}" in done.out or lost in done.out.partition("lost: ")[2]
    assert compare(run, tmp_path, new, new).code == 0


def test_machines_that_differ_are_said_so(run: Run, tmp_path: Path) -> None:
    new = a_result()
    new["machine"]["cpu"] = "another CPU"
    new["card"] = {"name": "NVIDIA H100", "capability": "9.0", "driver": "580", "torch_cuda": "13.0"}
    new["versions"]["torch"] = "2.14.0"
    out = compare(run, tmp_path, a_result(), new).out
    assert "the machines differ: cpu a CPU and another CPU" in out
    assert "the machines differ: no GPU and NVIDIA H100" in out
    assert "torch differs: 2.13.0 and 2.14.0" in out


def test_a_backend_that_went_or_failed_is_a_loss(run: Run, tmp_path: Path) -> None:
    old, new = a_result(), a_result()
    old["scenarios"][0]["results"].append(dict(old["scenarios"][0]["results"][0], backend="tensorrt"))
    done = compare(run, tmp_path, old, new)
    assert done.code == 1
    assert "tensorrt is absent now: no GPU" in done.out
    new["failures"] = [{"scenario": "clip", "backend": "torch", "reason": "frame 3 is black"}]
    assert "clip torch: frame 3 is black" in compare(run, tmp_path, a_result(), new).out


def test_a_scenario_that_went_is_a_loss(run: Run, tmp_path: Path) -> None:
    old, new = a_result(), a_result()
    old["scenarios"].append(dict(old["scenarios"][0], name="gone"))
    done = compare(run, tmp_path, old, new)
    assert done.code == 1
    assert "lost: gone was not measured: the second has no such scenario" in done.out
    new["left_out"] = [{"scenario": "gone", "reason": "OutOfMemoryError: 20 GiB"}]
    assert compare(run, tmp_path, old, new).code == 1


def test_what_time_was_over_for_is_a_note(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The reason is a run's own."""

    def measure(self: bench_run.Run, scenario: Any) -> dict[str, Any]:
        self.deadline = 0.0
        return a_result()["scenarios"][0] | {"name": scenario.name}  # type: ignore[no-any-return]

    monkeypatch.setattr(bench_run.Run, "_measure", measure)
    monkeypatch.setattr(
        bench_run.Run, "_measure_rates", lambda self, runs=10: setattr(self, "rates", Rates(1e7, 1e8, 1e8))
    )
    models = SimpleNamespace(device=torch.device("cpu"), dtype="float32", vae_dtype="float32")
    ways: Any = SimpleNamespace(models=models, load_ms={})
    left_out = bench_run.Run(SUITES["quick"], ways, {}, 1.0, time.monotonic()).all(
        lambda *_: None, lambda _: None
    ).document["left_out"]  # fmt: skip
    left = left_out[0]["scenario"]
    new = a_result() | {"left_out": left_out}
    old = new | {"scenarios": [*new["scenarios"], new["scenarios"][0] | {"name": left}], "left_out": []}
    done = compare(run, tmp_path, old, new)
    assert done.code == 0
    assert f"note: {left} was not measured: too little of the suite's time" in done.out
    assert compare(run, tmp_path, old, new, "--complete").code == 1
    done = compare(run, tmp_path, new, old, "--complete")
    assert done.code == 0
    assert f"note: {left} was not measured in the first" in done.out


@pytest.mark.parametrize(
    "change",
    [
        {"model": 3},
        {"scenarios": [{}]},
        {"machine": {}},
        {"rates": {"copy_gb_per_s": 0, "unet_gflop_per_s": 1, "vae_gflop_per_s": 1}},
    ],
)
def test_what_does_not_follow_the_schema_is_refused(run: Run, tmp_path: Path, change: dict[str, Any]) -> None:
    done = compare(run, tmp_path, a_result(), a_result() | change)
    assert done.code == 2
    assert "does not follow the schema" in done.told
    done = compare(run, tmp_path, {"benchmark": "suite", "schema_version": 3}, a_result())
    assert done.code == 2
    assert "lacks 'machine'" in done.told


@pytest.mark.parametrize(("change", "words"), [
    ({"schema_version": 1}, "has schema_version 1, and this version compares 3"),
    ({"model": "sd15"}, "models of size 'tiny', the second 'sd15'"),
    ({"dtype": "float16"}, "dtype differs: float32 in the first, float16 in the second"),
    ({"vae_dtype": "bfloat16"}, "vae_dtype differs"),
    ({"flags": {"checkpoint": "/models/a.safetensors"}}, "checkpoint differs: random weights in the first, a.safe"),
    ({"flags": {"motion_module": "mm.ckpt"}}, "motion_module differs"),
    ({"scenarios": []}, "no scenario and backend in common"),
    ({"benchmark": "pixels_gpu"}, "is no result of a benchmark suite"),
])  # fmt: skip
def test_refusals(run: Run, tmp_path: Path, change: dict[str, Any], words: str) -> None:
    done = compare(run, tmp_path, a_result(), a_result() | change)
    assert done.code == 2
    assert words in done.told


def test_other_sizes_are_refused(run: Run, tmp_path: Path) -> None:
    new = a_result()
    new["scenarios"][0]["sizes"]["frames"] = 32
    done = compare(run, tmp_path, a_result(), new)
    assert done.code == 2
    assert "has frames 16 in the first and 32 in the second: these are different jobs" in done.told


@pytest.mark.parametrize(("text", "words"), [("[1, 2", "is no JSON"), ("[]", "is no result"), (None, "cannot read")])
def test_files_that_cannot_be_read(run: Run, tmp_path: Path, text: str | None, words: str) -> None:
    path = tmp_path / "a.json"
    if text is not None:
        path.write_text(text)
    done = run("bench", "compare", path, path)
    assert done.code == 2
    assert words in done.told
    assert "Traceback" not in done.err
