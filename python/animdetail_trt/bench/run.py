"""Run a suite: every scenario in every way that is there, in turn, each result looked at before it is timed."""

from __future__ import annotations

import base64
import gc
import io
import time
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from typing import Any

import torch
from torch import Tensor

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
from animdetail_trt.bench.pixel_path import measure_ops
from animdetail_trt.bench.quality import compare, fault_of
from animdetail_trt.bench.scenarios import NODE_KINDS, PICTURE_KINDS, Kind, Scenario, Suite
from animdetail_trt.bench.timing import CPU, Times, alternate, time_ms
from animdetail_trt.bench.ways import TRUTH, WAYS, AbsentError, Ways
from animdetail_trt.errors import AnimDetailError, LostDeviceError, is_out_of_memory

Progress = Callable[[str, int, int], None]
"""Called with what is being done, how many scenarios are done, and how many there are."""

REFERENCE_WAY, TORCH = "reference", "torch"


@dataclass
class Report:
    """What was measured so far: ``document`` is what is written as JSON, ``pictures`` goes into the HTML."""

    document: dict[str, Any]
    pictures: list[dict[str, Any]] = field(default_factory=list)


@dataclass
class Subject:
    """One way of a scenario while it is measured."""

    way: str
    job: Job
    output: Tensor
    first_call_ms: float
    peak: Peak = Peak(None, None)  # noqa: RUF009


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
        self.report = Report(
            {
                "benchmark": "suite",
                **describe(flags),
                "suite": suite.name,
                "model": suite.model.name,
                "complete": False,
                "started": datetime.now(UTC).isoformat(timespec="seconds"),
                "elapsed_s": 0.0,
                "card": describe_card(self.device),
                "dtype": ways.models.dtype,
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

    def all(self, progress: Progress, changed: Callable[[Report], None]) -> Report:
        document, scenarios = self.report.document, self.suite.scenarios
        progress("copy speed and matrix products", 0, len(scenarios))
        self.rates = self._measure_rates()
        document["rates"] = self._told_rates(self.rates)
        for done, scenario in enumerate(scenarios):
            progress(scenario.name, done, len(scenarios))
            if time.monotonic() + self._least_s(scenario) > self.deadline:
                reason = "too little of the suite's time was left; --minutes gives it more"
                document["left_out"].append({"scenario": scenario.name, "reason": reason})
                continue
            try:
                document["scenarios"].append(self._measure(scenario))
            except (AnimDetailError, MemoryError, RuntimeError) as error:
                if not _others_can_go_on(error):
                    raise
                document["left_out"].append({"scenario": scenario.name, "reason": _reason(error)})
                if self.device.type == "cuda":
                    torch.cuda.empty_cache()
            self._bring_up_to_date()
            changed(self.report)
        document["complete"] = not document["left_out"]
        self._bring_up_to_date()
        progress("done", len(scenarios), len(scenarios))
        return self.report

    def _least_s(self, scenario: Scenario) -> float:
        """What a scenario takes at least, judged by the last of its kind; 0 before the first."""
        return self.least_s_per_volume.get(scenario.kind, 0.0) * scenario.volume

    def _bring_up_to_date(self) -> None:
        document = self.report.document
        document["elapsed_s"] = time.monotonic() - self.started
        document["load_ms"] = dict(self.ways.load_ms)
        document["growth"] = fit_growth(document["scenarios"])

    def _measure_rates(self) -> Rates:
        unet = getattr(torch, self.ways.models.dtype)
        vae = torch.float32 if unet == torch.float16 else unet
        rate = flops_per_ms(self.device, unet)
        return Rates(copy_bytes_per_ms(self.device), rate, rate if vae == unet else flops_per_ms(self.device, vae))

    def _told_rates(self, rates: Rates) -> dict[str, float]:
        return {
            "copy_gb_per_s": rates.copy_bytes_per_ms / 1e6,
            "unet_gflop_per_s": rates.unet_flops_per_ms / 1e6,
            "vae_gflop_per_s": rates.vae_flops_per_ms / 1e6,
        }

    def _measure(self, scenario: Scenario) -> dict[str, Any]:
        weights, token_dim = WeightBytes(), 0
        if scenario.kind != "pixels":
            weights = self.ways.weight_bytes()
            token_dim = self.ways.pipe(TORCH).model.unet.token_dim
        gc.unfreeze()
        gc.collect()
        gc.freeze()  # what is there now is not looked at again before every run that is timed
        before = readings(self.device)
        inputs = make_inputs(scenario, self.device, token_dim)
        truth = self._truth(scenario, inputs)
        subjects, absent, flops = self._prepare(scenario, inputs, truth)
        times = self._time(scenario, subjects)
        calls = 2 + self.suite.effort.least  # the first two are not counted
        least_ms = truth.first_call_ms + calls * sum(one.median_ms for one in times.values())
        self.least_s_per_volume[scenario.kind] = least_ms / 1e3 / scenario.volume
        assert self.rates is not None
        floor = Work(bytes_moved(scenario, weights), *flops).floor(self.rates)
        base = next((name for name in (REFERENCE_WAY, TORCH) if name in times), None)
        self._keep_pictures(scenario, subjects, truth.output)
        measured: dict[str, Any] = {
            "name": scenario.name,
            "kind": scenario.kind,
            "what": scenario.what,
            "sizes": scenario.sizes,
            "input_sets": len(inputs.sets),
            "floor": floor,
            "readings": {"before": before, "after": readings(self.device)},
            "base": base,
            "results": [self._result(scenario, one, times, base, floor["floor_ms"], truth.output) for one in subjects],
            "absent": absent,
        }
        if scenario.kind == "pixels":
            measured["ops"] = measure_ops(scenario, self._host_copy_speed())
        return measured

    def _host_copy_speed(self) -> float:
        assert self.rates is not None
        return self.rates.copy_bytes_per_ms if self.device.type == "cpu" else copy_bytes_per_ms()

    def _truth(self, scenario: Scenario, inputs: Inputs) -> Subject:
        """What float32 torch makes of the first set; of the pixel path, what the reference's way makes of it."""
        way = REFERENCE_WAY if scenario.kind == "pixels" else TORCH if self.ways.is_float32 else TRUTH
        cuda = self.device.type == "cuda"
        exact = torch.backends.cudnn.flags(enabled=True, allow_tf32=False) if cuda else nullcontext()
        with exact:
            return self._first_call(scenario, way, inputs)

    def _first_call(self, scenario: Scenario, way: str, inputs: Inputs) -> Subject:
        job = make_job(scenario, way, self.ways, inputs)
        start = time.perf_counter()
        output = _frames(scenario, job.run(0))
        return Subject(way, job, output, 1e3 * (time.perf_counter() - start))

    def _prepare(
        self, scenario: Scenario, inputs: Inputs, truth: Subject
    ) -> tuple[list[Subject], list[dict[str, str]], tuple[int, int]]:
        """Every way that is there, warm and looked at; those that are not, with the reason; the operations."""
        subjects: list[Subject] = []
        absent: list[dict[str, str]] = []
        flops = (0, 0)
        same = truth.way if self.device.type == "cpu" else None  # on a GPU the truth ran with other switches
        for way in self.ways.candidates(scenario):
            try:
                self.ways.require(scenario, way)
                subject = truth if way == same else self._first_call(scenario, way, inputs)
                # The second call warms up further, and its memory and its operations are counted.
                subject.peak, counted = self._second_call(scenario, subject)
            except (AnimDetailError, MemoryError, RuntimeError) as error:
                if not _others_can_go_on(error):
                    raise
                absent.append({"backend": way, "reason": _reason(error)})
                continue
            flops = counted or flops
            fault = fault_of(subject.output, truth.output, pictures=scenario.kind in PICTURE_KINDS)
            if fault:
                self._fail(scenario, way, fault)
            subjects.append(subject)
        return subjects, absent, flops

    def _fail(self, scenario: Scenario, way: str, fault: str) -> None:
        self.report.document["failures"].append({"scenario": scenario.name, "backend": way, "reason": fault})

    def _second_call(self, scenario: Scenario, subject: Subject) -> tuple[Peak, tuple[int, int] | None]:
        if _on_host(scenario, subject.way):
            subject.job.run(1)
            threads = torch.get_num_threads()
            return peak_in_own_process(self.suite.name, scenario.name, subject.way, threads), None
        counted: tuple[int, int] | None = None

        def call() -> Tensor:
            nonlocal counted
            if subject.way != TORCH:
                return subject.job.run(1)
            out, *counts = count_flops(lambda: subject.job.run(1))
            counted = (counts[0], counts[1])
            return out

        _, peak = measure_peak(call, self.device)
        return peak, counted

    def _time(self, scenario: Scenario, subjects: list[Subject]) -> dict[str, Times]:
        def timed(subject: Subject) -> Callable[[int], float]:
            job, device = subject.job, CPU if _on_host(scenario, subject.way) else self.device
            return lambda number: time_ms(lambda: job.run(number + 2), job.excluded_ms, device)

        calls = {subject.way: timed(subject) for subject in subjects}
        return alternate(calls, self.suite.effort, lambda: time.monotonic() > self.deadline)

    def _result(
        self,
        scenario: Scenario,
        subject: Subject,
        times: dict[str, Times],
        base: str | None,
        floor_ms: float,
        truth: Tensor,
    ) -> dict[str, Any]:
        own = times[subject.way]
        quality: dict[str, Any] | None = None
        if torch.isfinite(subject.output).all() and torch.isfinite(truth).all():
            quality = asdict(compare(subject.output, truth, 1.0 if scenario.kind in PICTURE_KINDS else None))
        ratios = [] if base is None else [a / b for a, b in zip(times[base].runs_ms, own.runs_ms, strict=True)]
        return {
            "backend": subject.way,
            "label": WAYS[subject.way],
            **own.as_json(),
            "first_call_ms": subject.first_call_ms,
            "ratios_to_base": ratios,
            "speedup": None if base is None else times[base].median_ms / own.median_ms,
            "fraction_of_floor": floor_ms / own.median_ms,
            "peak_host_bytes": subject.peak.host_bytes,
            "peak_device_bytes": subject.peak.device_bytes,
            "quality": quality,
            "stages_ms": subject.job.stages_ms() if scenario.kind in NODE_KINDS else {},
        }

    def _keep_pictures(self, scenario: Scenario, subjects: list[Subject], truth: Tensor) -> None:
        """Of the first scenario of every kind that has pictures: truth, ours and their difference."""
        kinds = {one["kind"] for one in self.report.pictures}
        if scenario.kind not in PICTURE_KINDS or scenario.kind in kinds:
            return
        ours = [subject for subject in subjects if subject.way != REFERENCE_WAY]
        theirs = next((subject.output for subject in subjects if subject.way == REFERENCE_WAY), truth)
        if not ours:
            return
        chosen = ours[-1]
        middle = scenario.frames // 2
        pair = theirs[middle], chosen.output[middle]
        difference = (pair[1] - pair[0]).abs().nan_to_num(1.0)
        largest = float(difference.max())
        gain = min(1 / largest, 1e6) if largest > 0 else 1.0
        self.report.pictures.append({
            "kind": scenario.kind, "scenario": scenario.name, "backend": chosen.way, "frame": middle,
            "largest": largest, "gain": gain,
            "images": [png_of(picture) for picture in (*pair, difference * gain)],
        })  # fmt: skip


def _others_can_go_on(error: BaseException) -> bool:
    known = isinstance(error, AnimDetailError) and not isinstance(error, LostDeviceError)
    return known or is_out_of_memory(error)


def _reason(error: BaseException) -> str:
    told = error if isinstance(error, AbsentError) else f"{type(error).__name__}: {error}"
    return " ".join(str(told).split())


def _on_host(scenario: Scenario, way: str) -> bool:
    """Whether nothing of it runs on the device, whichever that is."""
    return scenario.kind == "pixels" and way != "native_cuda"


def _frames(scenario: Scenario, output: Tensor) -> Tensor:
    """A float32 copy on the CPU, (f, c, h, w); pictures in 0..1."""
    output = output.detach().to("cpu", torch.float32)
    if scenario.kind in ("pixels", *NODE_KINDS):
        return output.movedim(-1, 1)
    if scenario.kind == "vae_decode":
        return (output + 1) / 2
    return output


def png_of(picture: Tensor, largest_side: int = 480) -> str:
    """A data URI of (3, h, w) in 0..1."""
    from PIL import Image

    pixels = (picture.nan_to_num().clamp(0, 1) * 255).round().byte().movedim(0, -1).contiguous().numpy()
    image = Image.fromarray(pixels)
    image.thumbnail((largest_side, largest_side))
    file = io.BytesIO()
    image.save(file, "PNG", optimize=True)
    return "data:image/png;base64," + base64.b64encode(file.getvalue()).decode()
