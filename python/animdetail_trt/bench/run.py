"""Run a suite: every scenario in every way that is there, in turn, each result looked at before it is timed."""

from __future__ import annotations

import gc
import math
import statistics
import time
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import asdict, dataclass, field, replace
from datetime import UTC, datetime
from itertools import count
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from animdetail_trt.backends.failures import answers
from animdetail_trt.bench.floors import (
    Rates,
    WeightBytes,
    Work,
    bytes_moved,
    copy_bytes_per_ms,
    count_flops,
    flops_per_ms,
)
from animdetail_trt.bench.growth import fit_growth
from animdetail_trt.bench.job import Inputs, Job
from animdetail_trt.bench.jobs import make_inputs, make_job
from animdetail_trt.bench.machine import describe, describe_card, readings
from animdetail_trt.bench.memory import Peak, measure_peak, peak_in_own_process
from animdetail_trt.bench.pictures import pictures_of
from animdetail_trt.bench.pixel_path import measure_ops
from animdetail_trt.bench.quality import Quality, compare, far_from_truth, fault_of
from animdetail_trt.bench.results import OUT_OF_TIME
from animdetail_trt.bench.scenarios import ALIKE, NODE_KINDS, PICTURE_KINDS, Kind, Scenario, Suite
from animdetail_trt.bench.timing import CPU, Effort, Times, alternate, time_ms
from animdetail_trt.bench.ways import TRUTH, WAYS, AbsentError, Ways
from animdetail_trt.bench.workload import covered_whole, make_segments
from animdetail_trt.errors import AnimDetailError, LostDeviceError, is_out_of_memory

Progress = Callable[[str, int, int], None]
"""Called with what is being done, how many scenarios are done, and how many there are."""

REFERENCE_WAY, TORCH = "reference", "torch"
RATES_EVERY_S = 10.0
"""How often the machine's limits are measured anew."""

LONG_S, VERY_LONG_S = 3.0, 10.0
"""Where the truth's call takes longer, the others are called once before they are timed, and timed in two rounds."""


@dataclass
class Report:
    """What was measured so far: ``document`` is what is written as JSON, ``pictures`` goes into the HTML."""

    document: dict[str, Any]
    pictures: list[dict[str, Any]] = field(default_factory=list)


@dataclass
class Subject:
    """One way of a scenario while it is measured.

    output: of the first inputs, once all is warm; quality: None where it is wrong beyond comparing
    stages_ms: of every run that was timed
    """

    way: str
    job: Job
    output: Tensor
    first_call_ms: float
    peak: Peak = Peak(None, None)  # noqa: RUF009
    quality: Quality | None = None
    stages_ms: list[dict[str, float]] = field(default_factory=list)


@dataclass(frozen=True)
class Truth:
    """What float32 torch makes of the first inputs; of the pixel path, what the reference's way makes of them.

    took_s: its one call, by which is judged how often the others can be called
    """

    subject: Subject
    unet_flops: int
    vae_flops: int
    took_s: float


class Run:
    """One run of a suite.

    minutes: that it may take, from ``started``, a reading of time.monotonic()
    changed: called with the report after every scenario, so that nothing is lost when a later one is stopped
    """

    def __init__(self, suite: Suite, ways: Ways, flags: dict[str, Any], minutes: float, started: float) -> None:
        self.suite, self.ways = suite, ways
        self.device = ways.models.device
        self.started, self.deadline = started, started + 60 * minutes
        self.least_s_per_volume: dict[Kind, float] = {}
        self.works: dict[str, Work] = {}
        self.report = Report(
            {
                "benchmark": "suite",
                **describe(flags),
                "suite": suite.name,
                "model": _model_name(suite, flags),
                "complete": False,
                "started": datetime.now(UTC).isoformat(timespec="seconds"),
                "elapsed_s": 0.0,
                "card": describe_card(self.device),
                "dtype": ways.models.dtype,
                "vae_dtype": ways.models.vae_dtype,
                "threads": torch.get_num_threads(),
                "rates": None,
                "load_ms": {},
                "scenarios": [],
                "left_out": [],
                "growth": [],
                "failures": [],
            }
        )
        self.rates: Rates | None = None
        self.host_copy_bytes_per_ms = 0.0
        self.rated_at = -math.inf

    def all(self, progress: Progress, changed: Callable[[Report], None]) -> Report:
        document, scenarios = self.report.document, self.suite.scenarios
        progress("copy speed and matrix products", 0, len(scenarios))
        _settle()
        self._measure_rates()
        for done, scenario in enumerate(scenarios):
            progress(scenario.name, done, len(scenarios))
            if time.monotonic() + self._least_s(scenario) > self.deadline:
                reason = f"{OUT_OF_TIME}; --minutes gives it more"
                document["left_out"].append({"scenario": scenario.name, "reason": reason})
                continue
            try:
                document["scenarios"].append(self._measure(scenario))
            except (AnimDetailError, MemoryError, RuntimeError) as error:
                if not _is_expected(error):
                    self._fail(scenario, "all", error)
                document["left_out"].append({"scenario": scenario.name, "reason": _reason(error)})
                if self.device.type == "cuda":
                    torch.cuda.empty_cache()
            self._bring_up_to_date()
            changed(self.report)
        document["complete"] = not document["left_out"]
        self._measure_rates(runs=2)
        self._bring_up_to_date()
        progress("done", len(scenarios), len(scenarios))
        return self.report

    def _least_s(self, scenario: Scenario) -> float:
        """What a scenario takes at least, judged by the last that was like it; 0 before the first."""
        like: tuple[Kind, ...] = next(kinds for kinds in ALIKE if scenario.kind in kinds)
        known = [self.least_s_per_volume[kind] for kind in like if kind in self.least_s_per_volume]
        own = self.least_s_per_volume.get(scenario.kind)
        return (own if own is not None else max(known, default=0.0)) * scenario.volume

    def _remember(
        self, scenario: Scenario, took_s: float, subjects: list[Subject], times: dict[str, Times], least: int
    ) -> None:
        """What it took, less what a next one does not take: first calls that compiled or loaded, rounds to spare."""
        medians = sum(one.median_ms for one in times.values())
        warming = sum(max(0.0, one.first_call_ms - times[one.way].median_ms) for one in subjects)
        rounds = max((len(one.runs_ms) for one in times.values()), default=0)
        least_s = took_s - (warming + max(0, rounds - least) * medians) / 1e3
        self.least_s_per_volume[scenario.kind] = max(0.0, least_s) / scenario.volume

    def _bring_up_to_date(self) -> None:
        document = self.report.document
        if self.rates is not None:
            document["rates"] = self._told_rates(self.rates)
        for scenario in document["scenarios"]:
            self._put_floor(scenario)
        document["elapsed_s"] = time.monotonic() - self.started
        document["load_ms"] = dict(self.ways.load_ms)
        document["growth"] = fit_growth(document["scenarios"])

    def _measure_rates(self, runs: int = 10) -> None:
        """The machine's limits are the most that it reaches in the whole run: it may be busy now and not later."""
        unet, vae = (getattr(torch, name) for name in (self.ways.models.dtype, self.ways.models.vae_dtype))
        rate = flops_per_ms(self.device, unet, runs)
        vae_rate = rate if vae == unet else flops_per_ms(self.device, vae, runs)
        now = Rates(copy_bytes_per_ms(self.device, runs=runs), rate, vae_rate)
        self.rates = now if self.rates is None else now.or_faster(self.rates)
        if self.device.type == "cuda":
            self.host_copy_bytes_per_ms = max(self.host_copy_bytes_per_ms, copy_bytes_per_ms(runs=runs))
        else:
            self.host_copy_bytes_per_ms = self.rates.copy_bytes_per_ms
        self.rated_at = time.monotonic()

    def _put_floor(self, scenario: dict[str, Any]) -> None:
        work = self.works.get(scenario["name"])
        if work is None or self.rates is None:
            return
        on_device, on_host = self.rates, replace(self.rates, copy_bytes_per_ms=self.host_copy_bytes_per_ms)
        host_ways = [one["backend"] for one in scenario["results"] if _on_host(scenario["kind"], one["backend"])]
        scenario["floor"] = work.floor(on_host if host_ways else on_device)
        for one in scenario["results"]:
            floor = work.floor(on_host if one["backend"] in host_ways else on_device)
            one["fraction_of_floor"] = floor["floor_ms"] / one["median_ms"]
        for op in scenario.get("ops", ()):
            op["floor_ms"] = op["bytes_moved"] / self.host_copy_bytes_per_ms
            op["fraction_of_floor"] = op["floor_ms"] / op["median_ms"]

    def _told_rates(self, rates: Rates) -> dict[str, float]:
        return {
            "copy_gb_per_s": rates.copy_bytes_per_ms / 1e6,
            "unet_gflop_per_s": rates.unet_flops_per_ms / 1e6,
            "vae_gflop_per_s": rates.vae_flops_per_ms / 1e6,
        }

    def _measure(self, scenario: Scenario) -> dict[str, Any]:
        begun = time.monotonic()
        weights, token_dim = WeightBytes(), 0
        if scenario.kind != "pixels":
            weights = self.ways.weight_bytes()
            token_dim = self.ways.pipe(TORCH).model.unet.token_dim
        _settle()
        if time.monotonic() - self.rated_at > RATES_EVERY_S:
            self._measure_rates(runs=2)
        inputs = make_inputs(scenario, self.device, token_dim)
        truth = self._truth(scenario, inputs)
        subjects, absent = self._prepare(scenario, inputs, truth)
        effort = self._effort(truth)
        before = readings(self.device)  # while it is warm
        times = self._time(scenario, subjects, effort)
        after = readings(self.device)
        base = next((name for name in (REFERENCE_WAY, TORCH) if name in times), None)
        if scenario.kind not in {one["kind"] for one in self.report.pictures}:
            outputs = {one.way: one.output for one in subjects}
            self.report.pictures += pictures_of(scenario, outputs, truth.subject.output)
        self.works[scenario.name] = Work(bytes_moved(scenario, weights), truth.unet_flops, truth.vae_flops)
        measured: dict[str, Any] = {
            "name": scenario.name,
            "kind": scenario.kind,
            "what": scenario.what,
            "sizes": scenario.sizes,
            "input_sets": len(inputs.sets),
            "readings": {"before": before, "after": after},
            "base": base,
            "results": [self._result(one, times, base) for one in subjects],
            "absent": absent,
        }
        if scenario.kind == "pixels":
            measured["ops"] = measure_ops(scenario)
        self._remember(scenario, time.monotonic() - begun, subjects, times, effort.least)
        return measured

    def _truth(self, scenario: Scenario, inputs: Inputs) -> Truth:
        if scenario.kind == "pixels":
            subject = self._first_call(scenario, REFERENCE_WAY, inputs)
            return Truth(subject, 0, 0, subject.first_call_ms / 1e3)
        cuda = self.device.type == "cuda"
        way = TORCH if self.ways.is_float32 and not cuda else TRUTH  # on a GPU torch runs with other switches
        with torch.backends.cudnn.flags(enabled=True, allow_tf32=False) if cuda else nullcontext():
            if way == TORCH:  # timed as well, so its operations are counted in the second call, not the first
                subject = self._first_call(scenario, way, inputs)
                counted, subject.peak = measure_peak(lambda: count_flops(lambda: subject.job.run(0)), self.device)
                output, unet_flops, vae_flops = counted
                subject.output = _frames(scenario, output)
                return Truth(subject, unet_flops, vae_flops, subject.first_call_ms / 1e3)
            job = make_job(scenario, way, self.ways, inputs)  # which may load models
            begun = time.monotonic()
            output, unet_flops, vae_flops = count_flops(lambda: _frames(scenario, job.run(0)))  # which waits for a GPU
            took_s = time.monotonic() - begun
            return Truth(Subject(way, job, output, 1e3 * took_s), unet_flops, vae_flops, took_s)

    def _effort(self, truth: Truth) -> Effort:
        effort = self.suite.effort
        return replace(effort, least=min(2, effort.least)) if truth.took_s > VERY_LONG_S else effort

    def _first_call(self, scenario: Scenario, way: str, inputs: Inputs) -> Subject:
        job = make_job(scenario, way, self.ways, inputs)
        start = time.perf_counter()
        output = _frames(scenario, job.run(0))
        return Subject(way, job, output, 1e3 * (time.perf_counter() - start))

    def _prepare(self, scenario: Scenario, inputs: Inputs, truth: Truth) -> tuple[list[Subject], list[dict[str, str]]]:
        """Every way that is there, warm and looked at; those that are not, with the reason."""
        subjects: list[Subject] = []
        absent: list[dict[str, str]] = []
        for way in self.ways.candidates(scenario):
            try:
                self.ways.require(scenario, way)
                subject = self._warm(scenario, way, inputs, truth)
            except (AnimDetailError, MemoryError, RuntimeError) as error:
                if not _is_expected(error):
                    self._fail(scenario, way, error)
                absent.append({"backend": way, "reason": _reason(error)})
                continue
            self._judge(scenario, subject, truth.subject.output)
            subjects.append(subject)
        return subjects, absent

    def _warm(self, scenario: Scenario, way: str, inputs: Inputs, truth: Truth) -> Subject:
        """Called once or, where that does not take long, twice; the last call's memory is measured."""
        on_host, is_truth = _on_host(scenario.kind, way), way == truth.subject.way
        if is_truth and not on_host:  # called twice already
            return truth.subject
        if on_host:
            subject = truth.subject if is_truth else self._first_call(scenario, way, inputs)
            peak = peak_in_own_process(self.suite.name, scenario.name, way, torch.get_num_threads())
        elif truth.took_s > LONG_S:
            subject, peak = measure_peak(lambda: self._first_call(scenario, way, inputs), self.device)
        else:
            subject = self._first_call(scenario, way, inputs)
            output, peak = measure_peak(lambda: subject.job.run(0), self.device)
            subject.output = _frames(scenario, output)
        # onnxruntime's arena keeps what earlier calls took.
        subject.peak = replace(peak, host_bytes=None) if way == "onnxruntime" else peak
        return subject

    def _judge(self, scenario: Scenario, subject: Subject, truth: Tensor) -> None:
        output, truth = (painted(scenario, frames) for frames in (subject.output, truth))
        pictures = scenario.kind in PICTURE_KINDS
        fault = fault_of(output, truth, pictures=pictures)
        if torch.isfinite(output).all() and torch.isfinite(truth).all():
            subject.quality = compare(output, truth, 1.0 if pictures else None)
            fault = fault or far_from_truth(subject.quality, self._dtype(scenario))
        if fault:
            self._tell_failure(scenario, subject.way, fault)

    def _dtype(self, scenario: Scenario) -> str:
        """Of what computes a scenario."""
        if scenario.kind == "pixels":
            return "float32"
        return self.ways.models.vae_dtype if scenario.kind.startswith("vae") else self.ways.models.dtype

    def _fail(self, scenario: Scenario, way: str, error: Exception) -> None:
        """An error that nobody foresaw fails the run and ends what it came from; where no other could go on, all."""
        if isinstance(error, LostDeviceError) or not answers(self.device):
            raise error
        self._tell_failure(scenario, way, _reason(error))

    def _tell_failure(self, scenario: Scenario, way: str, reason: str) -> None:
        self.report.document["failures"].append({"scenario": scenario.name, "backend": way, "reason": reason})

    def _time(self, scenario: Scenario, subjects: list[Subject], effort: Effort) -> dict[str, Times]:
        turn = count(2)

        def timed(subject: Subject) -> Callable[[], float]:
            job, device = subject.job, CPU if _on_host(scenario.kind, subject.way) else self.device

            def run() -> float:
                number = next(turn)
                elapsed_ms = time_ms(lambda: job.run(number), job.excluded_ms, device)
                if scenario.kind in NODE_KINDS:
                    subject.stages_ms.append(job.stages_ms())
                return elapsed_ms

            return run

        calls = {subject.way: timed(subject) for subject in subjects}
        return alternate(calls, effort, lambda: time.monotonic() > self.deadline)

    def _result(self, subject: Subject, times: dict[str, Times], base: str | None) -> dict[str, Any]:
        own = times[subject.way]
        ratios = [] if base is None else [a / b for a, b in zip(times[base].runs_ms, own.runs_ms, strict=True)]
        return {
            "backend": subject.way,
            "label": WAYS[subject.way],
            **own.as_json(),
            "first_call_ms": subject.first_call_ms,
            "ratios_to_base": ratios,
            "speedup": None if base is None else times[base].median_ms / own.median_ms,
            "peak_host_bytes": subject.peak.host_bytes,
            "peak_device_bytes": subject.peak.device_bytes,
            "quality": None if subject.quality is None else asdict(subject.quality),
            "stages_ms": _medians(subject.stages_ms),
        }


def _settle() -> None:
    """Collects garbage, so that what is there now is not looked at again before every run that is timed."""
    gc.unfreeze()
    gc.collect()
    gc.freeze()


def _is_expected(error: BaseException) -> bool:
    """What is told of a way or a scenario that cannot run here; anything else is a fault."""
    known = isinstance(error, AnimDetailError) and not isinstance(error, LostDeviceError)
    return known or is_out_of_memory(error)


def _reason(error: BaseException) -> str:
    told = error if isinstance(error, AbsentError) else f"{type(error).__name__}: {error}"
    return " ".join(str(told).split())


def _on_host(kind: Kind, way: str) -> bool:
    """Whether nothing of it runs on the device, whichever that is."""
    return kind == "pixels" and way != "native_cuda"


def _model_name(suite: Suite, flags: dict[str, Any]) -> str:
    files = [flags[name] for name in ("checkpoint", "motion_module") if flags.get(name)]
    return " + ".join(Path(file).name for file in files) or suite.model.name


def _medians(runs: list[dict[str, float]]) -> dict[str, float]:
    """Of each stage over the runs."""
    return {name: statistics.median(run.get(name, 0.0) for run in runs) for name in (runs[0] if runs else ())}


def painted(scenario: Scenario, frames: Tensor) -> Tensor:
    """Of pictures (f, c, h, w) what the masks cover whole, side by side: around it every way keeps the clip."""
    if scenario.kind not in ("pixels", *NODE_KINDS):
        return frames
    sizes = (scenario.width, scenario.height, scenario.segments, scenario.crop, scenario.side)
    boxes = [covered_whole(segment, scenario.feather) for segment in make_segments(*sizes)]
    return torch.cat([frames[..., y1:y2, x1:x2] for x1, y1, x2, y2 in boxes], dim=-1)


def _frames(scenario: Scenario, output: Tensor) -> Tensor:
    """A float32 copy on the CPU, (f, c, h, w); pictures in 0..1."""
    output = output.detach().to("cpu", torch.float32)
    if scenario.kind in ("pixels", *NODE_KINDS):
        return output.movedim(-1, 1)
    if scenario.kind == "vae_decode":
        return (output + 1) / 2
    return output
