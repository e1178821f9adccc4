"""A result as a run writes it, to be changed by tests."""

from __future__ import annotations

import copy
from typing import Any

_TIMES = {"runs_ms": [10.0, 11.0, 9.0], "median_ms": 10.0, "quartiles_ms": [9.5, 10.5], "spread": 0.2}
_RESULT: dict[str, Any] = {
    "backend": "torch", "label": "torch eager", **_TIMES, "first_call_ms": 30.0, "ratios_to_base": [2.0, 1.9, 2.1],
    "speedup": 2.0, "fraction_of_floor": 0.4, "peak_host_bytes": 1000, "peak_device_bytes": None,
    "quality": {"range": 1.0, "psnr_db": 80.0, "ssim": 1.0, "max_difference": 1e-4, "flicker": 3.0,
                "flicker_added": 0.0},
    "stages_ms": {"encode": 2.0, "sample": 6.0, "decode": 1.5, "paste": 0.5},
}  # fmt: skip
_SCENARIO: dict[str, Any] = {
    "name": "clip-1s-16f-64px", "kind": "clip", "what": "a clip", "sizes": {"frames": 16, "side": 64, "segments": 1},
    "input_sets": 2,
    "floor": {"bytes_moved": 10**6, "unet_flops": 10**9, "vae_flops": 0, "flops": 10**9, "flops_ms": 4.0,
              "bytes_ms": 0.1, "floor_ms": 4.0, "bound": "arithmetic"},
    "readings": {"before": {"cpu_clock_mhz": 3000.0}, "after": {"cpu_clock_mhz": None}},
    "base": "reference", "results": [_RESULT], "absent": [{"backend": "tensorrt", "reason": "no GPU"}],
}  # fmt: skip
_DOCUMENT: dict[str, Any] = {
    "benchmark": "suite", "schema_version": 3, "suite": "quick", "model": "tiny", "complete": True,
    "machine": {"cpu": "a CPU", "usable_processors": 2, "memory_gib": 8.0, "system": "Linux",
                "load_average_at_start": 0.1},
    "versions": {"python": "3.11.7", "torch": "2.13.0", "numpy": "2.4.6"}, "commit": "abc", "flags": {},
    "started": "2026-11-22T12:00:00+00:00", "elapsed_s": 60.0, "card": None, "dtype": "float32",
    "vae_dtype": "float32", "threads": 1,
    "rates": {"copy_gb_per_s": 10.0, "unet_gflop_per_s": 100.0, "vae_gflop_per_s": 100.0},
    "load_ms": {"torch": 100.0}, "scenarios": [_SCENARIO], "left_out": [], "growth": [], "failures": [],
}  # fmt: skip


def a_result(*, slower: float = 1.0) -> dict[str, Any]:
    """One clip by torch eager, ``slower`` times as slow, as its base is not."""
    document = copy.deepcopy(_DOCUMENT)
    result = document["scenarios"][0]["results"][0]
    for key in ("runs_ms", "quartiles_ms"):
        result[key] = [slower * value for value in result[key]]
    result["median_ms"] *= slower
    result["speedup"] /= slower
    result["ratios_to_base"] = [ratio / slower for ratio in result["ratios_to_base"]]
    return document


def a_scenario(*, time_ms: float, **sizes: int) -> dict[str, Any]:
    """A clip of other sizes that took ``time_ms``."""
    scenario: dict[str, Any] = copy.deepcopy(_SCENARIO)
    scenario["sizes"].update(sizes)
    scenario["results"][0].update(median_ms=time_ms, peak_host_bytes=None)
    return scenario
