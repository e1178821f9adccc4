"""A run's machinery: what is absent, what is wrong, what stops it, what it leaves behind."""

from __future__ import annotations

import importlib
import io
import json
import math
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import torch
from rich.console import Console

from animdetail_trt import ops
from animdetail_trt.backends.ladder import Ladder, Rung
from animdetail_trt.bench import html, pixel_path, plots, reference_way, results
from animdetail_trt.bench import run as bench_run
from animdetail_trt.bench.floors import Rates
from animdetail_trt.bench.html import page
from animdetail_trt.bench.job import DeviceReport, Inputs, Job
from animdetail_trt.bench.memory import Peak
from animdetail_trt.bench.pictures import pictures_of, png_of
from animdetail_trt.bench.results import SCHEMA_PATH
from animdetail_trt.bench.run import Report
from animdetail_trt.bench.scenarios import SUITES, clip
from animdetail_trt.bench.tables import show_result
from animdetail_trt.bench.timing import Effort
from animdetail_trt.bench.ways import WAYS, AbsentError, Models, Ways, watched
from animdetail_trt.bench.workload import covered_whole, make_segments
from animdetail_trt.cli import bench as bench_command
from animdetail_trt.errors import LostDeviceError, MediaError, UnavailableError
from animdetail_trt.extras import install_command
from outcome import Outcome
from results import a_result, a_scenario

Run = Callable[..., Outcome]
VALIDATOR = jsonschema.Draft202012Validator(json.loads(SCHEMA_PATH.read_text()))
CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where random weights are written, once for all tests."""
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(autouse=True)
def _folders(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ANIMDETAIL_ENGINE_DIR", str(cache / "engines"))


@pytest.fixture(autouse=True)
def _known_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine's limits, and memory in a process of its own, take seconds to measure; test_figures.py and
    test_quick.py do."""
    monkeypatch.setattr(bench_run, "copy_bytes_per_ms", lambda *_, **__: 1e7)
    monkeypatch.setattr(bench_run, "flops_per_ms", lambda *_: 1e8)
    monkeypatch.setattr(bench_run, "peak_in_own_process", lambda *_: Peak(1 << 20, None))


def bench(run: Run, folder: Path, *flags: str) -> Outcome:
    return run("bench", "--suite", "quick", "--threads", "1", "--output", folder, *flags)


@pytest.mark.parametrize(("value", "reason"), [(math.nan, "frame 0 holds NaN or infinity"), (-1.0, "frame 0 is black")])
def test_a_wrong_output_fails_the_run(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, value: float, reason: str
) -> None:
    make_job = bench_run.make_job

    def broken(scenario: Any, way: str, *others: Any) -> Job:
        job = make_job(scenario, way, *others)
        return job if way != "reference" else replace(job, run=lambda number: torch.full_like(job.run(number), value))

    monkeypatch.setattr(bench_run, "make_job", broken)
    flags = ("--scenario", "vae-decode-*", "--backend", "reference", "--backend", "torch")
    done = bench(run, tmp_path, *flags)
    assert done.code == 1
    assert f"failed: vae-decode-8f-128px reference: {reason}" in done.told
    document = json.loads((tmp_path / "bench.json").read_text())
    VALIDATOR.validate(document)
    assert [failure["reason"] for failure in document["failures"]] == [reason]
    (scenario,) = document["scenarios"]
    assert [result["backend"] for result in scenario["results"]] == ["reference", "torch"]
    assert reason in (tmp_path / "bench.html").read_text()


@pytest.mark.parametrize(("picture", "reason"), [
    (lambda right: torch.zeros_like(right), "frame 0 is black"),
    (lambda right: torch.rand_like(right), "dB from float32 torch, which float32 does not explain"),
    (lambda right: right[:1].expand_as(right).clone(), "dB from float32 torch"),
])  # fmt: skip
def test_what_is_painted_is_judged_without_the_clip_around_it(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, picture: Callable[[torch.Tensor], torch.Tensor],
    reason: str,
) -> None:  # fmt: skip
    """A fault inside the masks, which are a 70th of the frames."""
    make_job = bench_run.make_job

    def broken(scenario: Any, way: str, *others: Any) -> Job:
        job = make_job(scenario, way, *others)

        def run(number: int) -> torch.Tensor:
            frames = job.run(number).clone()
            for x1, y1, x2, y2 in boxes_of(scenario):
                frames[:, y1:y2, x1:x2] = picture(frames[:, y1:y2, x1:x2])
            return frames

        return job if way == "reference" else replace(job, run=run)

    monkeypatch.setattr(bench_run, "make_job", broken)
    done = bench(run, tmp_path, "--scenario", "pixels-*", "--backend", "reference", "--backend", "native")
    assert done.code == 1
    (failure,) = json.loads((tmp_path / "bench.json").read_text())["failures"]
    assert failure["backend"] == "native"
    assert reason in failure["reason"]


def boxes_of(scenario: Any) -> list[tuple[int, int, int, int]]:
    segments = make_segments(scenario.width, scenario.height, scenario.segments, scenario.crop, scenario.side)
    return [covered_whole(segment, scenario.feather) for segment in segments]


def test_what_a_mask_covers_whole_is_the_patch() -> None:
    """There the paste's weight is 1, and next to it is not."""
    pixels = SUITES["quick"].scenarios[0]
    segments = make_segments(pixels.width, pixels.height, pixels.segments, pixels.crop, pixels.side)
    for segment, (x1, y1, x2, y2) in zip(segments, boxes_of(pixels), strict=True):
        weight = torch.zeros(pixels.height, pixels.width)
        left, top, right, bottom = segment.crop_region
        weight[top:bottom, left:right] = ops.feather_mask(segment.mask, pixels.feather)
        assert weight[y1:y2, x1:x2].min() > 1 - 1e-6
        assert weight[y1 - 1, x1:x2].max() < 1 - 1e-3
        assert weight[y1:y2, x2].max() < 1 - 1e-3


def test_what_nobody_foresaw_ends_one_way_and_fails_the_run(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_job = bench_run.make_job

    def broken(scenario: Any, way: str, *others: Any) -> Job:
        def fail(number: int) -> torch.Tensor:
            raise RuntimeError("CUDA error: invalid configuration argument")

        job = make_job(scenario, way, *others)
        return replace(job, run=fail) if way == "reference" else job

    monkeypatch.setattr(bench_run, "make_job", broken)
    flags = ("--scenario", "vae-*", "--backend", "reference", "--backend", "torch")
    done = bench(run, tmp_path, *flags)
    assert done.code == 1
    document = json.loads((tmp_path / "bench.json").read_text())
    VALIDATOR.validate(document)
    assert [one["backend"] for one in document["failures"]] == ["reference", "reference"]
    assert "invalid configuration argument" in document["failures"][0]["reason"]
    assert [[one["backend"] for one in each["results"]] for each in document["scenarios"]] == [["torch"]] * 2


def test_long_calls_are_warmed_once_and_timed_twice(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make_job, calls = bench_run.make_job, list[str]()

    def counting(scenario: Any, way: str, *others: Any) -> Job:
        job = make_job(scenario, way, *others)
        return replace(job, run=lambda number: calls.append(way) or job.run(number))

    monkeypatch.setattr(bench_run, "make_job", counting)
    monkeypatch.setattr(bench_run, "LONG_S", 0.0)
    monkeypatch.setattr(bench_run, "VERY_LONG_S", 0.0)
    monkeypatch.setitem(SUITES, "quick", replace(SUITES["quick"], effort=Effort(3, 15, 0.0)))
    assert bench(run, tmp_path, "--scenario", "vae-encode-*", "--backend", "reference").code == 0
    (scenario,) = json.loads((tmp_path / "bench.json").read_text())["scenarios"]
    (one,) = scenario["results"]
    assert calls.count("reference") == 1 + len(one["runs_ms"]) == 3
    assert one["peak_host_bytes"] > 0
    assert one["quality"]["psnr_db"] > 60


def test_no_run_finds_the_inputs_of_the_one_before_it(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_job, taken = bench_run.make_job, list[int]()

    def noting(scenario: Any, way: str, *others: Any) -> Job:
        job = make_job(scenario, way, *others)
        return replace(job, run=lambda number: taken.append(number) or job.run(number))

    monkeypatch.setattr(bench_run, "make_job", noting)
    assert bench(run, tmp_path, "--scenario", "vae-encode-*", "--backend", "reference", "--backend", "torch").code == 0
    (scenario,) = json.loads((tmp_path / "bench.json").read_text())["scenarios"]
    timed = sum(len(one["runs_ms"]) for one in scenario["results"])
    assert timed > 2
    assert taken[-timed:] == list(range(taken[-timed], taken[-timed] + timed))


def test_the_first_call_is_told_without_what_counting_adds(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def slowly(call: Callable[[], torch.Tensor]) -> tuple[torch.Tensor, int, int]:
        time.sleep(2)
        return call(), 10, 10

    monkeypatch.setattr(bench_run, "count_flops", slowly)
    assert bench(run, tmp_path, "--scenario", "vae-encode-*", "--backend", "torch").code == 0
    (scenario,) = json.loads((tmp_path / "bench.json").read_text())["scenarios"]
    (one,) = scenario["results"]
    assert one["median_ms"] / 10 < one["first_call_ms"] < 2000


def test_limits_are_the_best_of_the_whole_run(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine that is busy until the rounds are over: its floors are those of the limits reached after them."""
    reached = iter([1e6, 5e6])
    monkeypatch.setattr(bench_run, "copy_bytes_per_ms", lambda *_, **__: next(reached))
    assert bench(run, tmp_path, "--scenario", "pixels-*").code == 0
    document = json.loads((tmp_path / "bench.json").read_text())
    (scenario,) = document["scenarios"]
    assert document["rates"]["copy_gb_per_s"] == 5
    for timed in (*scenario["ops"], scenario["floor"]):
        assert timed.get("floor_ms") == pytest.approx(timed["bytes_moved"] / 5e6)
    for timed in (*scenario["ops"], *scenario["results"]):
        floor_ms = timed.get("floor_ms", scenario["floor"]["floor_ms"])
        assert timed["fraction_of_floor"] == pytest.approx(floor_ms / timed["median_ms"])


def test_operations_are_counted_whatever_ways_there_are(run: Run, tmp_path: Path) -> None:
    assert bench(run, tmp_path, "--scenario", "vae-decode-*", "--backend", "reference").code == 0
    (scenario,) = json.loads((tmp_path / "bench.json").read_text())["scenarios"]
    assert scenario["floor"]["vae_flops"] > 1e8
    assert scenario["floor"]["bound"] == "arithmetic"


def test_the_models_that_ran_are_named(run: Run, tmp_path: Path, tiny: Path) -> None:
    files = ("--checkpoint", tiny / "tiny_sd15.safetensors", "--motion-module", tiny / "tiny_mm_v3.safetensors")
    assert bench(run, tmp_path, "--scenario", "unet-8f-64px-b2", "--backend", "torch", *files).code == 0
    document = json.loads((tmp_path / "bench.json").read_text())
    assert document["model"] == "tiny_sd15.safetensors + tiny_mm_v3.safetensors"


def test_a_truth_that_is_not_finite_leaves_quality_open(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_job = bench_run.make_job

    def broken(scenario: Any, way: str, *others: Any) -> Job:
        job = make_job(scenario, way, *others)
        return job if way == "reference" else replace(job, run=lambda number: job.run(number) * math.nan)

    monkeypatch.setattr(bench_run, "make_job", broken)
    assert bench(run, tmp_path, "--scenario", "vae-decode-*", "--backend", "reference", "--backend", "torch").code == 1
    document = json.loads((tmp_path / "bench.json").read_text())
    VALIDATOR.validate(document)
    (scenario,) = document["scenarios"]
    assert [result["quality"] for result in scenario["results"]] == [None, None]
    assert [failure["backend"] for failure in document["failures"]] == ["torch"]


def test_the_references_decoding_gives_float32_whatever_its_vae_does() -> None:
    class Vae:
        def decode(self, latents: torch.Tensor) -> torch.Tensor:
            return torch.full((1, 3, 16, 16), 0.25, dtype=torch.bfloat16)

    picture = reference_way.decode(torch.zeros(1, 4, 2, 2), Vae())  # type: ignore[arg-type]
    assert picture.dtype == torch.float32
    assert picture.eq(0.625).all()


@pytest.fixture
def measured(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Scenarios are not measured but made up, and neither are models written nor rates taken; the names of those that
    would have been."""
    names: list[str] = []

    def measure(self: Any, scenario: Any) -> dict[str, Any]:
        names.append(scenario.name)
        return a_scenario(time_ms=1.0) | {"name": scenario.name}

    none = Path("none")
    monkeypatch.setattr(bench_run.Run, "_measure", measure)
    monkeypatch.setattr(
        bench_run.Run, "_measure_rates", lambda self, runs=10: setattr(self, "rates", Rates(1e7, 1e8, 1e8))
    )
    monkeypatch.setattr(bench_command, "_models", lambda *_: Models(none, none, CPU, "float32", "float32", none, none))
    return names


def test_ctrl_c_keeps_what_was_measured(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, measured: list[str]
) -> None:
    (tmp_path / "bench.json").write_text("of yesterday")
    measure = bench_run.Run._measure

    def interrupted(self: Any, scenario: Any) -> dict[str, Any]:
        if len(measured) == 2:
            raise KeyboardInterrupt
        return measure(self, scenario)

    monkeypatch.setattr(bench_run.Run, "_measure", interrupted)
    done = bench(run, tmp_path)
    assert done.code == 130
    assert "what was measured so far" in done.told
    assert (tmp_path / "bench.json").read_text() == "of yesterday"
    document = json.loads((tmp_path / "bench.partial.json").read_text())
    VALIDATOR.validate(document)
    assert [scenario["name"] for scenario in document["scenarios"]] == measured
    assert len(measured) == 2
    assert document["complete"] is False
    assert sorted(path.name for path in tmp_path.iterdir()) == ["bench.json", "bench.partial.json"]


def test_a_save_that_fails_does_not_hide_ctrl_c(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, measured: list[str]
) -> None:
    measure = bench_run.Run._measure

    def interrupted(self: Any, scenario: Any) -> dict[str, Any]:
        if measured:
            monkeypatch.setattr(results, "write_text", full)
            raise KeyboardInterrupt
        return measure(self, scenario)

    def full(*_: object) -> None:
        raise OSError("No space left on device")

    monkeypatch.setattr(bench_run.Run, "_measure", interrupted)
    done = bench(run, tmp_path)
    assert done.code == 130
    assert "what was measured so far is lost: No space left on device" in done.told


def test_a_full_disk_does_not_end_the_measuring(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, measured: list[str]
) -> None:
    def full(*_: object) -> None:
        raise MediaError("the disk of bench.json is full")

    monkeypatch.setattr(results, "write_text", full)
    done = bench(run, tmp_path, "--scenario", "unet-*")
    assert done.code == 1
    assert done.told.count("measuring goes on") == 1
    assert "failed: the disk of bench.json is full" in done.told
    assert len(measured) == 6
    assert all(name in done.out for name in measured)
    assert "Traceback" not in done.err


def test_a_disk_that_is_full_for_the_report_keeps_the_json(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, measured: list[str]
) -> None:
    def full(*_: object) -> None:
        raise MediaError("the disk of bench.html is full")

    monkeypatch.setattr(html, "write_text", full)
    (tmp_path / "bench.html").write_text("of yesterday")
    assert bench(run, tmp_path, "--scenario", "unet-8f-64px-b2").code == 1
    assert [scenario["name"] for scenario in json.loads((tmp_path / "bench.json").read_text())["scenarios"]] == measured
    assert not (tmp_path / "bench.html").exists()


@pytest.mark.usefixtures("measured")
def test_a_whole_run_takes_the_partial_ones_place(run: Run, tmp_path: Path) -> None:
    assert bench(run, tmp_path).code == 0
    assert sorted(path.name for path in tmp_path.iterdir()) == ["bench.html", "bench.json"]
    assert json.loads((tmp_path / "bench.json").read_text())["complete"] is True


@pytest.mark.parametrize("error", [
    torch.OutOfMemoryError("20 GiB"), AbsentError("torch ran instead"),
    RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes"),
])  # fmt: skip
def test_a_scenario_that_cannot_run_is_left_out(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, measured: list[str], error: Exception
) -> None:
    measure = bench_run.Run._measure

    def failing(self: Any, scenario: Any) -> dict[str, Any]:
        if scenario.name == "unet-16f-64px-b2":
            raise error
        return measure(self, scenario)

    monkeypatch.setattr(bench_run.Run, "_measure", failing)
    assert bench(run, tmp_path, "--scenario", "unet-*").code == 0
    document = json.loads((tmp_path / "bench.json").read_text())
    VALIDATOR.validate(document)
    (left,) = document["left_out"]
    assert left["scenario"] == "unet-16f-64px-b2"
    assert str(error) in left["reason"]
    assert (len(measured), document["complete"]) == (5, False)


def test_a_gpu_that_is_lost_ends_the_run(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def lost(self: Any, scenario: Any) -> dict[str, Any]:
        raise LostDeviceError("cuda:0 answers nothing any more in this process")

    monkeypatch.setattr(bench_run.Run, "_measure", lost)
    done = bench(run, tmp_path)
    assert done.code == 2
    assert "answers nothing any more" in done.told
    assert json.loads((tmp_path / "bench.partial.json").read_text())["left_out"] == []


def test_nothing_measured_fails(run: Run, tmp_path: Path) -> None:
    done = bench(run, tmp_path, "--scenario", "pixels-*", "--backend", "tensorrt")
    assert done.code == 1
    assert "failed: nothing was measured" in done.told


def test_what_the_host_does_is_timed_by_its_clock(monkeypatch: pytest.MonkeyPatch) -> None:
    from types import SimpleNamespace

    devices: list[str] = []
    monkeypatch.setattr(bench_run, "time_ms", lambda call, excluded, device: devices.append(device.type) or 1.0)
    suite = SUITES["quick"]
    given: Any = SimpleNamespace(device=torch.device("cuda"), deadline=0.0)
    subjects: Any = [SimpleNamespace(way=way, job=Job(torch.zeros)) for way in ("reference", "native", "native_cuda")]
    bench_run.Run._time(given, suite.scenarios[0], subjects, suite.effort)
    assert devices[:3] == ["cpu", "cpu", "cuda"]


def test_stages_on_a_device_are_timed_by_its_clock() -> None:
    """The host is done long before: here its times are a thousandth."""

    class Event:
        now = 0.0

        def __init__(self) -> None:
            self.at = Event.now

        def elapsed_time(self, end: Event) -> float:
            return end.at - self.at

    report = DeviceReport(mark=Event)  # type: ignore[arg-type]
    for index in range(2):
        Event.now += 100  # of no stage
        report.begin_segment(index, "face", (64, 64), (128, 128))
        for name, ms in (("encode", 5.0), ("sample", 30.0), ("decode", 7.0), ("paste", 1.0), ("decode", 7.0)):
            Event.now += ms
            report.stage(index, name, ms / 1000)
    job = Job(torch.zeros, report=lambda: report)
    for _ in range(2):
        assert job.stages_ms() == {"encode": 10, "sample": 60, "decode": 28, "paste": 2}


def test_what_would_take_too_long_is_left_out(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, measured: list[str]
) -> None:
    """Judged by the one before: 16 frames of 64x64, two prompts, took 200 s of 450."""
    measure = bench_run.Run._measure

    def slow(self: Any, scenario: Any) -> dict[str, Any]:
        self.least_s_per_volume["unet"] = 200 / SUITES["quick"].scenarios[3].volume
        return measure(self, scenario)

    monkeypatch.setattr(bench_run.Run, "_measure", slow)
    assert bench(run, tmp_path, "--scenario", "unet-*", "--minutes", "7.5").code == 0
    document = json.loads((tmp_path / "bench.json").read_text())
    assert [one["scenario"] for one in document["left_out"]] == ["unet-16f-96px-b2"]  # 450 s
    assert "unet-32f-64px-b2" in measured  # 400 s


def test_what_a_scenario_took_is_remembered(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    runs: list[Any] = []
    result = bench_run.Run._result

    def noting(self: Any, *given: Any) -> dict[str, Any]:
        runs.append(self)
        return result(self, *given)

    monkeypatch.setattr(bench_run.Run, "_result", noting)
    assert bench(run, tmp_path, "--scenario", "unet-8f-64px-b2", "--backend", "torch").code == 0
    (scenario,) = json.loads((tmp_path / "bench.json").read_text())["scenarios"]
    (one,) = scenario["results"]
    small, large = (bench_run.Scenario("unet-", "unet", frames, 64) for frames in (8, 16))
    calls_s = 5 * one["median_ms"] / 1e3
    assert calls_s < runs[0]._least_s(small) < calls_s + one["first_call_ms"] / 1e3 + 5
    assert runs[0]._least_s(large) == 2 * runs[0]._least_s(small)
    windows = bench_run.Scenario("windows-", "windows", 8, 64)  # the same work
    assert runs[0]._least_s(windows) == runs[0]._least_s(small)
    assert runs[0]._least_s(bench_run.Scenario("clip-", "clip", 8, 64)) == 0


def test_what_time_is_over_for_is_left_out(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, measured: list[str]
) -> None:
    measure = bench_run.Run._measure

    def slow(self: Any, scenario: Any) -> dict[str, Any]:
        self.deadline = 0.0
        return measure(self, scenario)

    monkeypatch.setattr(bench_run.Run, "_measure", slow)
    done = bench(run, tmp_path, "--scenario", "unet-*")
    assert done.code == 0
    document = json.loads((tmp_path / "bench.json").read_text())
    left = document["left_out"]
    assert (len(left), len(measured), document["complete"]) == (5, 1, False)
    for one in left:
        assert f"left out: {one['scenario']}: too little of the suite's time was left" in done.out


def test_without_matplotlib_the_json_is_written(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, measured: list[str]
) -> None:
    def missing(name: str) -> Any:
        raise ImportError(f"No module named {name!r}")

    monkeypatch.setattr(plots, "importlib", type("_", (), {"import_module": staticmethod(missing)}))
    (tmp_path / "bench.html").write_text("of yesterday")
    done = bench(run, tmp_path)
    assert done.code == 0
    assert install_command("bench") in done.told
    assert (tmp_path / "bench.json").exists()
    assert not (tmp_path / "bench.html").exists()
    assert measured


@pytest.mark.parametrize(("flags", "words"), [
    (("--scenario", "nothing"), "no scenario of suite 'quick' is called 'nothing'"),
    (("--checkpoint", "a.safetensors"), "--checkpoint and --motion-module go together"),
    (("--checkpoint", "a.safetensors", "--motion-module", "b"), "a.safetensors does not exist"),
    (("--device", "tpu"), "unknown device 'tpu'"),
    (("--dtype", "int8"), "unknown dtype 'int8'"),
    (("--backend", "openvino"), "invalid choice: 'openvino'"),
    (("--minutes", "-1"), "out of range"),
    (("--only", "foo"), "argument COMMAND: invalid choice: 'foo'"),
])  # fmt: skip
def test_bad_flags(run: Run, tmp_path: Path, flags: tuple[str, ...], words: str) -> None:
    done = bench(run, tmp_path, *flags)
    assert done.code == 2
    assert words in done.told
    assert "Traceback" not in done.err


def test_an_output_that_is_a_file(run: Run, tmp_path: Path) -> None:
    (tmp_path / "taken").write_text("")
    done = bench(run, tmp_path / "taken")
    assert done.code == 2
    assert "cannot make the folder" in done.told


def test_list(run: Run) -> None:
    out = run("bench", "list").out
    for suite in SUITES.values():
        assert suite.name in out
        assert all(scenario.name in out for scenario in suite.scenarios)


@pytest.mark.parametrize(("way", "device", "runs_on"), [
    ("native_cuda", "cuda:1", "cuda:1"), ("native_cuda", "cuda", "cuda:2"), ("native", "cuda:1", "cpu"),
    ("reference", "cuda:1", "cpu"),
])  # fmt: skip
def test_the_pixel_path_runs_on_the_runs_gpu(
    monkeypatch: pytest.MonkeyPatch, way: str, device: str, runs_on: str
) -> None:
    devices: list[str] = []
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 2)
    monkeypatch.setattr(pixel_path, "StandInVae", lambda frames, segment, device: devices.append(str(device)))
    pixel_path.pixel_job(SUITES["quick"].scenarios[0], way, Inputs([None]), torch.device(device))
    assert devices == [runs_on]


def test_absent_ways_say_why(tmp_path: Path) -> None:
    ways = Ways(Models(tmp_path / "none", tmp_path / "none", CPU, "float32", "float32", tmp_path, tmp_path))
    pixels, unet = (next(one for one in SUITES["quick"].scenarios if one.kind == kind) for kind in ("pixels", "unet"))
    for scenario, way, words in (
        (pixels, "native_cuda", "the device is cpu"),
        (unet, "tensorrt", "runs engines on a CUDA GPU"),
        (unet, "reference", "that is torch eager"),
        (unet, "compile", "--backend compile does it"),
        (unet, "torch", "none"),  # there is no such checkpoint
    ):
        with pytest.raises(AbsentError, match=words):
            ways.require(scenario, way)


def test_a_ladder_that_went_on_to_torch_is_absent() -> None:
    import logging

    def ladder() -> Any:
        rungs = [Rung(name, lambda: None) for name in ("the engine", "torch on cuda")]
        return type("Runner", (), {"ladder": Ladder("VAE", rungs)})()

    pipe: Any = type("Pipe", (), {"vae": ladder(), "model": type("Model", (), {"unet": ladder()})})
    climbed: Ladder[None] = pipe.vae.ladder
    scenario = clip(1, 8, 64, 1)
    with watched(pipe, "tensorrt", scenario):
        climbed.climb(lambda runner: None)

    def falls_once() -> None:
        logging.getLogger("animdetail_trt.backends.ladder").warning(
            "VAE: torch on cuda instead of the engine: too small"
        )
        climbed.rungs[0].broken = True
        climbed.climb(lambda runner: None)
        climbed.rungs[0].broken = False
        climbed.climb(lambda runner: None)  # the last call's rung is the engine again

    words = "torch on cuda ran instead: VAE: torch on cuda instead of the engine: too small"
    with pytest.raises(AbsentError, match=words), watched(pipe, "tensorrt", scenario):
        falls_once()
    climbed.rungs[0].broken = True
    with watched(pipe, "tensorrt", scenario):
        climbed.climb(lambda runner: None, asks=True)  # no run
    with watched(pipe, "torch", scenario):
        pass  # torch is what was asked for


def a_report() -> Report:
    document = a_result()
    document["scenarios"] = [a_scenario(time_ms=float(n), frames=n) | {"name": f"clip-{n}"} for n in (16, 64, 128)]
    reference = dict(document["scenarios"][0]["results"][0], backend="reference", speedup=1.0)
    document["scenarios"][0]["results"].insert(0, reference)
    picture = png_of(torch.rand(3, 8, 8))
    pictures = [{"kind": "clip", "scenario": "clip-16", "backend": "torch", "frame": 8, "largest": 0.1, "gain": 10.0,
                 "beside": "float32 torch", "images": [picture] * 3}]  # fmt: skip
    return Report(document, pictures)


def test_the_report_needs_nothing_else() -> None:
    import re

    text = page(a_report())
    names = set(re.findall(r"""(?:src|href|action|data)\s*=\s*["']([^"'#][^"']*)""", text))
    assert {name for name in names if not name.startswith("data:image/png;base64,")} == set()
    assert not re.findall(r"url\((?!#)|@import|<script|<link|<iframe", text)
    assert text.count("<svg") == text.count("</svg>") == 4
    assert text.count("<img") == 3
    ids = re.findall(r'\bid="([^"]+)"', text)
    assert len(ids) == len(set(ids))


def test_the_report_tells_what_is_wrong() -> None:
    report = a_report()
    report.document["failures"] = [{"scenario": "clip-16", "backend": "torch", "reason": "frame 1 is <black>"}]
    report.document["complete"] = False
    text = page(report)
    assert "clip-16 torch: frame 1 is &lt;black&gt;" in text
    assert "NOT COMPLETE" in text


def a_table(document: dict[str, Any]) -> str:
    console = Console(width=200, file=io.StringIO())
    show_result(document, console)
    return console.file.getvalue()  # type: ignore[attr-defined,no-any-return]


def test_a_run_that_measured_nothing_shows_its_reasons_and_no_table() -> None:
    absent = [{"backend": "tensorrt", "reason": "no GPU"}]
    document = a_result()
    document["scenarios"] = [a_scenario(time_ms=1.0) | {"results": [], "absent": absent}]
    shown = a_table(document)
    assert "absent: tensorrt" in shown
    assert "median ms" not in shown
    assert "PSNR" not in shown


def test_host_and_device_memory_have_columns_of_their_own() -> None:
    report = a_report()
    first, second = report.document["scenarios"][0]["results"]
    first.update(peak_host_bytes=11 << 20)
    second.update(peak_host_bytes=33 << 20)
    assert "<th>MiB</th>" in page(report)
    assert "device" not in a_table(report.document)
    first.update(peak_device_bytes=22 << 20)
    assert "<th>host MiB</th><th>device MiB</th>" in page(report)
    assert "<td>11</td><td>22</td>" in page(report)
    assert "<td>33</td><td>-</td>" in page(report)
    assert "host MiB device MiB" in " ".join(a_table(report.document).split())


@pytest.mark.parametrize(("changes", "kind", "told"), [
    ({}, "clip", ["equal", "is the truth"]), ({"dtype": "float16"}, "clip", ["equal", "equal"]),
    ({"card": {"name": "a GPU", "driver": "580"}}, "clip", ["equal", "equal"]),
    ({}, "pixels", ["is the truth", "equal"]),
])  # fmt: skip
def test_what_is_the_truth_is_not_equal_to_it(changes: dict[str, Any], kind: str, told: list[str]) -> None:
    document = a_report().document | changes
    scenario = document["scenarios"][0] | {"kind": kind}
    for result in scenario["results"]:
        result["quality"] = result["quality"] | {"psnr_db": None}
    document["scenarios"] = [scenario]
    rows = [line for line in a_table(document).splitlines() if " reference " in line or " torch " in line]
    assert ["is the truth" if "is the truth" in row else "equal" for row in rows[2:4]] == told
    assert all("equal" in row or "is the truth" in row for row in rows[2:4])
    assert page(Report(document)).count("is the truth") == told.count("is the truth")


def test_the_roofline_has_the_roofs_of_both_models() -> None:
    document = a_report().document
    assert "UNet and VAE: matrix product or convolution, the faster: 100 GFLOP/s" in plots.roofline(document)
    assert "stroke-dasharray" not in plots.roofline(document)
    document["rates"]["vae_gflop_per_s"] = 25.0
    svg = plots.roofline(document)
    assert "UNet: matrix product or convolution, the faster: 100 GFLOP/s" in svg
    assert "VAE: matrix product or convolution, the faster: 25 GFLOP/s" in svg
    assert "stroke-dasharray" in svg


def test_every_way_has_a_colour_of_its_own() -> None:
    assert len(set(plots._COLOURS.values())) == len(WAYS)


def test_a_bars_line_is_the_rounds_full_range(monkeypatch: pytest.MonkeyPatch) -> None:
    from matplotlib.axes import Axes

    lines: list[list[float]] = []
    plot = Axes.plot
    document = a_result()
    document["scenarios"][0]["results"][0]["ratios_to_base"] = [2.0, 1.2, 2.9]
    with monkeypatch.context() as patched:
        patched.setattr(Axes, "plot", lambda self, x, y, **style: lines.append(x) or plot(self, x, y, **style))
        plots.ratio_bars(document)
    assert lines == [[1.2, 2.9]]
    assert "from the slowest of the single rounds to the fastest" in page(Report(document))


def test_what_is_no_stage_is_drawn_too(monkeypatch: pytest.MonkeyPatch) -> None:
    from matplotlib.axes import Axes

    bars: list[float] = []
    barh = Axes.barh
    document = a_result()
    document["scenarios"][0]["results"][0]["median_ms"] = 12.5  # 10 of which are stages'
    with monkeypatch.context() as patched:
        patched.setattr(
            Axes, "barh", lambda self, y, width, **style: bars.append(width) or barh(self, y, width, **style)
        )
        drawn = plots.stage_bars(document)
    assert bars[:5] == pytest.approx([16, 48, 12, 4, 20])
    assert ">other<" in drawn


def test_pictures_say_what_ours_is_beside() -> None:
    frames = torch.rand(8, 3, 8, 8)

    def told(scenario: Any, *ways: str) -> str:
        return page(Report(a_result(), pictures_of(scenario, dict.fromkeys(ways, frames), frames)))

    assert "<figcaption>the reference&#x27;s way</figcaption>" in told(clip(1, 8, 64, 1), "reference", "torch")
    assert "<figcaption>float32 torch</figcaption>" in told(clip(1, 8, 64, 1), "torch")
    assert "<figcaption>the reference&#x27;s way</figcaption>" in told(SUITES["quick"].scenarios[0], "native")


def test_a_report_without_results_is_a_page() -> None:
    document = a_result()
    document["scenarios"] = []
    assert page(Report(document)).endswith("</body></html>")


def test_the_schema_refuses() -> None:
    VALIDATOR.check_schema(VALIDATOR.schema)
    VALIDATOR.validate(a_result())
    for wrong in ({"schema_version": 1}, {"rates": {"copy_gb_per_s": 0}}, {"scenarios": [{}]}, {"more": 1}):
        with pytest.raises(jsonschema.ValidationError):
            VALIDATOR.validate(a_result() | wrong)


def test_matplotlib_that_is_missing_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(name: str) -> Any:
        raise ImportError(name)

    monkeypatch.setattr(importlib, "import_module", missing)
    with pytest.raises(UnavailableError, match="need matplotlib"):
        plots.load_matplotlib()


def test_the_command_names_every_suite_and_backend() -> None:
    """It has lists of its own, so that its help needs no torch."""
    assert tuple(SUITES) == bench_command.SUITE_NAMES
    assert tuple(WAYS) == bench_command.WAY_NAMES


def test_a_file_that_is_no_model_is_refused_before_anything_is_measured(
    run: Callable[..., Outcome], tmp_path: Path
) -> None:
    text = tmp_path / "model.safetensors"
    text.write_text("no model")
    done = run("bench", "--checkpoint", text, "--motion-module", text)
    assert done.code == 2
    assert "is damaged or not a safetensors file" in done.told
    done = run("bench", "--checkpoint", tmp_path, "--motion-module", tmp_path)
    assert done.code == 2
    assert "is a folder; a motion module for SD 1.5 is a .safetensors file" in done.told
