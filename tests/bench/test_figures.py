"""Times, exponents, floors and quality, on numbers whose answer is known."""

from __future__ import annotations

import math
from contextlib import nullcontext
from dataclasses import replace

import pytest
import torch

from animdetail_trt.bench.floors import (
    Rates,
    WeightBytes,
    Work,
    bytes_moved,
    copy_bytes_per_ms,
    count_flops,
    flops_per_ms,
)
from animdetail_trt.bench.growth import exponent, fit_growth
from animdetail_trt.bench.machine import number, visible_index
from animdetail_trt.bench.memory import measure_peak
from animdetail_trt.bench.quality import compare, fault_of, flicker, ssim
from animdetail_trt.bench.scenarios import SUITES, Scenario, choose, clip, unet
from animdetail_trt.bench.timing import Effort, Times, alternate, time_ms
from animdetail_trt.errors import InputError
from animdetail_trt.geometry import upscaled_size
from results import a_scenario

CPU = torch.device("cpu")


def test_times() -> None:
    times = Times([4.0, 1.0, 2.0, 3.0, 10.0])
    assert times.median_ms == 3
    assert times.quartiles_ms == (2, 4)
    assert times.spread == 3
    assert Times([7.0]).quartiles_ms == (7, 7)


def test_rounds_alternate_and_end() -> None:
    order: list[str] = []

    def timed(name: str, ms: float):  # type: ignore[no-untyped-def]
        return lambda: order.append(name) or ms

    times = alternate({"a": timed("a", 2.0), "b": timed("b", 1.0)}, Effort(2, 5, 0.0))
    assert "".join(order) == "abba"
    assert times["a"].runs_ms == [2.0, 2.0]
    order.clear()
    alternate({name: timed(name, 1.0) for name in "abc"}, Effort(4, 4, 0.0))
    assert "".join(order) == "abcbcacababc"
    assert len(alternate({"a": timed("a", 1.0)}, Effort(1, 5, 60.0))["a"].runs_ms) == 5
    assert len(alternate({"a": timed("a", 1.0)}, Effort(3, 5, 60.0), enough=lambda: True)["a"].runs_ms) == 3


def test_what_is_not_the_job_does_not_count() -> None:
    clock = iter([10.0, 5010.0])
    assert time_ms(lambda: None, lambda: next(clock)) < -4000


def test_freeing_a_result_is_not_timed_on_a_device_either(monkeypatch: pytest.MonkeyPatch) -> None:
    done: list[str] = []

    class Result:
        def __del__(self) -> None:
            done.append("freed")

    class Event:
        def __init__(self, enable_timing: bool) -> None:
            assert enable_timing

        def record(self) -> None:
            done.append("recorded")

        def synchronize(self) -> None:
            done.append("waited")

        def elapsed_time(self, end: Event) -> float:
            return 7.0

    monkeypatch.setattr(torch.cuda, "device", lambda device: nullcontext())
    monkeypatch.setattr(torch.cuda, "synchronize", lambda: None)
    monkeypatch.setattr(torch.cuda, "Event", Event)
    assert time_ms(Result, device=torch.device("cuda")) == 7
    assert done == ["recorded", "recorded", "waited", "freed"]


@pytest.mark.parametrize("k", [0.0, 1.0, 2.0])
def test_exponents_of_powers(k: float) -> None:
    assert exponent([(n, 3 * n**k) for n in (8, 16, 64)]) == pytest.approx(k)


@pytest.mark.parametrize(("k", "flagged"), [(1.0, False), (1.4, False), (1.6, True), (2.0, True)])
def test_growth_in_frames_is_flagged(k: float, flagged: bool) -> None:
    scenarios = [a_scenario(time_ms=2 * n**k, frames=n) for n in (16, 64, 128)]
    (fit,) = fit_growth([*scenarios, a_scenario(time_ms=1.0, frames=16, segments=3)])
    assert (fit["axis"], fit["of"], fit["flagged"]) == ("frames", "time", flagged)
    assert fit["exponent"] == pytest.approx(k)


@pytest.mark.parametrize(("largest_mib", "flagged"), [(8, False), (800, True)])
def test_growth_of_little_memory_is_not_flagged(largest_mib: int, flagged: bool) -> None:
    scenarios = [a_scenario(time_ms=n, frames=n) for n in (16, 64, 128)]
    for scenario, share in zip(scenarios, (0.01, 0.25, 1), strict=True):
        scenario["results"][0]["peak_host_bytes"] = int(share * largest_mib * 2**20)
    fits = {fit["of"]: fit["flagged"] for fit in fit_growth(scenarios)}
    assert fits == {"time": False, "host memory": flagged}


def test_growth_in_segments_and_area_is_not_flagged() -> None:
    scenarios = [a_scenario(time_ms=n**2.0, segments=n) for n in (1, 3, 8)]
    scenarios += [a_scenario(time_ms=n**4.0, side=n, crop=n) for n in (64, 96, 128)]
    fits = {fit["axis"]: fit for fit in fit_growth(scenarios)}
    assert fits["segments"]["exponent"] == pytest.approx(2)
    assert fits["area"]["exponent"] == pytest.approx(2)
    assert not any(fit["flagged"] for fit in fits.values())


def test_two_sizes_are_no_line() -> None:
    assert fit_growth([a_scenario(time_ms=n, frames=n) for n in (16, 64)]) == []


def test_the_floor_is_the_longer_of_both() -> None:
    rates = Rates(copy_bytes_per_ms=1000, unet_flops_per_ms=100, vae_flops_per_ms=50)
    floor = Work(bytes_moved=3000, unet_flops=100, vae_flops=50).floor(rates)
    assert (floor["flops_ms"], floor["bytes_ms"], floor["floor_ms"], floor["bound"]) == (2, 3, 3, "memory")
    assert Work(1000, 300, 0).floor(rates)["bound"] == "arithmetic"


def test_bytes_of_scenarios() -> None:
    weights = WeightBytes(unet=10**6, vae_encoder=10**3, vae_decoder=10)
    one = clip(1, 16, 64, 2)
    frames = 4 * 16 * 3 * one.width * one.height
    assert bytes_moved(one, weights) == 2 * frames + 2 * 10**6 + 1010 + 4 * one.crop**2
    three = bytes_moved(replace(one, segments=3), weights)
    assert three - 2 * frames == 3 * (bytes_moved(one, weights) - 2 * frames)
    assert bytes_moved(unet(16, 64, 2), weights) == 10**6 + 2 * 2 * 4 * 16 * 4 * 8 * 8
    path = replace(one, kind="pixels")
    pictures = 4 * 16 * 3 * 64 * 64  # to the VAE and from it; crops stay between
    assert bytes_moved(path, weights) == 2 * frames + 2 * pictures + 4 * one.crop**2


def test_flops_of_a_convolution_and_a_product() -> None:
    layers = torch.nn.Sequential(torch.nn.Conv2d(3, 5, 3, padding=1, bias=False), torch.nn.Linear(8, 2, bias=False))

    def call() -> torch.Tensor:
        with torch.inference_mode():
            return layers(torch.ones(2, 3, 8, 8))  # type: ignore[no-any-return]

    out, of_unet, of_others = count_flops(call)
    assert out.shape == (2, 5, 8, 2)
    assert of_unet == 0
    assert of_others == 2 * (2 * 5 * 8 * 8) * (3 * 9) + 2 * (2 * 5 * 8) * 8 * 2


def test_rates_are_of_this_machine() -> None:
    assert 1e4 < copy_bytes_per_ms(mebibytes=16, runs=3) < 1e10
    assert 1e4 < flops_per_ms(CPU, torch.float32, runs=2) < 1e11


def test_peak_memory_is_what_a_call_holds_at_once() -> None:
    def call() -> torch.Tensor:
        held = torch.ones(32 << 18)  # 32 MiB
        return held[:4].clone()

    _, peak = measure_peak(call, CPU)
    assert peak.host_bytes is not None
    assert 30 << 20 < peak.host_bytes < 50 << 20
    assert peak.device_bytes is None


def test_quality_of_equal_pictures() -> None:
    picture = torch.rand(3, 3, 32, 32)
    quality = compare(picture, picture, 1.0)
    assert (quality.psnr_db, quality.max_difference, quality.flicker_added) == (None, 0, 0)
    assert quality.ssim == pytest.approx(1)


def test_quality_of_a_known_difference() -> None:
    truth = torch.zeros(2, 3, 16, 16)
    quality = compare(truth + 0.1, truth, 1.0)
    assert quality.psnr_db == pytest.approx(20, abs=1e-4)
    assert quality.max_difference == pytest.approx(0.1)
    assert quality.flicker_added == pytest.approx(0)  # the same in both frames
    assert compare(2 * truth + 0.2, truth, 2.0).psnr_db == pytest.approx(20, abs=1e-4)


def test_flicker() -> None:
    frames = torch.zeros(3, 3, 4, 4)
    frames[1] = 2 / 255
    assert flicker(frames) == pytest.approx(2)
    assert flicker(frames[:1]) is None
    still = torch.zeros(3, 3, 4, 4)
    assert compare(frames, still, 1.0).flicker_added == pytest.approx(2)


def test_ssim_is_scikit_images() -> None:
    """structural_similarity(a, b, data_range=1, gaussian_weights=True, use_sample_covariance=False, full=True) of 0.26,
    the mean over all pixels."""
    y, x = torch.meshgrid(torch.arange(24.0).double(), torch.arange(20.0).double(), indexing="ij")
    a = (torch.sin(x / 3) * torch.cos(y / 4) + 1) / 2
    b = (a + 0.1 * torch.sin(x * y)).clamp(0, 1)
    assert ssim(b[None, None], a[None, None], 1.0) == pytest.approx(0.8748686881896307, abs=1e-9)


def test_faults() -> None:
    good = torch.full((2, 3, 4, 4), 0.5)
    assert fault_of(good, good, pictures=True) is None
    nan, black = good.clone(), good.clone()
    nan[1, 0, 0, 0] = math.nan
    black[1] = 0.5 / 255
    assert fault_of(nan, good, pictures=True) == "frame 1 holds NaN or infinity"
    assert fault_of(nan - math.inf, good, pictures=False) == "frame 0 holds NaN or infinity"
    assert fault_of(black, good, pictures=True) == "frame 1 is black"
    assert fault_of(black, black, pictures=True) is None  # so it should be
    assert fault_of(black, None, pictures=True) == "frame 1 is black"
    assert fault_of(torch.zeros(1, 4, 2, 2), good, pictures=False) == "frame 0 is all 0"
    assert fault_of(-good, -good, pictures=False) is None


def test_scenarios_are_named_once_and_enlarge_to_their_side() -> None:
    sizes: dict[str, Scenario] = {}
    for suite in SUITES.values():
        for scenario in suite.scenarios:
            assert sizes.setdefault(scenario.name, scenario) == scenario
            if scenario.kind in ("segment", "clip"):
                box = (0, 0, scenario.crop, scenario.crop)
                assert upscaled_size(box[2:], box, scenario.side, True, scenario.side) == (scenario.side,) * 2


def test_choosing_scenarios() -> None:
    chosen = choose(SUITES["quick"], ["unet-*", "windows-40f-64px"])
    assert {scenario.kind for scenario in chosen.scenarios} == {"unet", "windows"}
    with pytest.raises(InputError, match=r"no scenario of suite 'quick' is called 'vea-\*'"):
        choose(SUITES["quick"], ["vea-*"])


def test_what_nvidia_smi_says() -> None:
    assert (number("1980"), number("[N/A]"), number(None)) == (1980, None, None)
    assert visible_index(1, "3,5") == "5"
    assert visible_index(1, None) == "1"
    assert visible_index(0, "GPU-8932f937") == "GPU-8932f937"
