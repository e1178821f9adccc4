"""Two results, scenario by scenario: what the second lost, beyond what the runs themselves differ by.

Two processes on a machine that others use differ by tens of per cent, a way and its base in the same rounds by a few: a
way is judged by its speedup against the base. The base, and what has none, can only be judged by milliseconds.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import PurePath
from typing import Any

from animdetail_trt.bench.results import OUT_OF_TIME
from animdetail_trt.errors import InputError

THRESHOLD = 1.10
"""A time, and a peak of memory, that is more than this many times the old one is a loss."""

_CERTAIN = 0.95
_ENOUGH_ROUNDS = 6
"""From here on the full range holds the median with 95 %."""
_PSNR_STEP_DB, _PSNR_GOOD_DB = 3.0, 60.0
_MEMORY_STEP_BYTES, _SHARED_HEAP_STEP_BYTES = 16 << 20, 48 << 20
"""Peaks that differ by less say nothing: of a device and of a process of its own; and of the run's own process, whose
heap is as earlier scenarios left it (the same code, three runs: 98, 116 and 121 MiB)."""
_MEMORY = {"peak_host_bytes": "host memory", "peak_device_bytes": "device memory"}
_ALIKE_MACHINE = ("cpu", "usable_processors")


@dataclass(frozen=True)
class Pair:
    """One scenario in one way. Times in ms; speedups against the base, None where ms are what is judged.

    slower, faster: past the threshold and beyond the spread of the rounds
    counts: whether slower is a loss; ms of machines that differ are none
    """

    scenario: str
    backend: str
    old_ms: float
    new_ms: float
    old_speedup: float | None
    new_speedup: float | None
    slower: bool
    faster: bool
    counts: bool

    @property
    def ratio(self) -> float:
        """How many times the old ms."""
        return self.new_ms / self.old_ms


@dataclass(frozen=True)
class Comparison:
    """notes: what makes the two less alike; lost: what is worse other than a time"""

    pairs: list[Pair]
    notes: list[str]
    lost: list[str]

    @property
    def worse(self) -> bool:
        return bool(self.lost) or any(pair.slower and pair.counts for pair in self.pairs)


def compare_results(
    old: dict[str, Any], new: dict[str, Any], threshold: float = THRESHOLD, *, complete: bool = False
) -> Comparison:
    """Raises InputError where the two did not run the same thing.

    complete: whether a scenario that the second left out for time is a loss, and not a note
    """
    _check_models(old, new)
    scenarios = {one["name"]: one for one in new["scenarios"]}
    common = [(one, scenarios[one["name"]]) for one in old["scenarios"] if one["name"] in scenarios]
    for before, after in common:
        _check_sizes(before, after)
    unlike = list(_unlike(old, new))
    drift = _machine_slowdown(old, new), _machine_slowdown(new, old)
    pairs = [pair for both in common for pair in _pairs(*both, threshold, drift, alike=not unlike)]
    if not pairs:
        raise InputError("the two have no scenario and backend in common. Compare runs of one suite")
    absent = list(_absent(old, new, scenarios, complete))
    lost = [text for text, is_loss in absent if is_loss]
    for before, after in common:
        lost += _lost_in(before, after, threshold)
    lost += _newly_flagged(old, new)
    notes = [*unlike, *_notes(old, new, pairs), *(text for text, is_loss in absent if not is_loss)]
    return Comparison(pairs, notes, lost)


def _check_models(old: dict[str, Any], new: dict[str, Any]) -> None:
    if old["model"] != new["model"]:
        raise InputError(
            f"the first ran models of size {old['model']!r}, the second {new['model']!r}. Compare runs of one suite"
        )
    for what in ("dtype", "vae_dtype"):
        if old.get(what) != new.get(what):
            raise InputError(
                f"{what} differs: {old.get(what)} in the first, {new.get(what)} in the second, which is another job. "
                "Measure both with one --dtype"
            )
    for flag in ("checkpoint", "motion_module"):
        names = [_file_name(one["flags"].get(flag)) for one in (old, new)]
        if names[0] != names[1]:
            raise InputError(
                f"{flag} differs: {names[0]} in the first, {names[1]} in the second. Measure both with the same files"
            )


def _file_name(path: str | None) -> str:
    """A folder may be another on another machine."""
    return "random weights" if path is None else PurePath(str(path).replace("\\", "/")).name


def _check_sizes(old: dict[str, Any], new: dict[str, Any]) -> None:
    keys = {**old["sizes"], **new["sizes"]}
    for key in keys:
        if old["sizes"].get(key) != new["sizes"].get(key):
            raise InputError(
                f"scenario {old['name']!r} has {key} {old['sizes'].get(key)!r} in the first and "
                f"{new['sizes'].get(key)!r} in the second: these are different jobs. Measure both with one version"
            )


def _common_results(old: dict[str, Any], new: dict[str, Any]) -> Iterator[tuple[dict[str, Any], dict[str, Any]]]:
    results = {one["backend"]: one for one in new["results"]}
    return ((one, results[one["backend"]]) for one in old["results"] if one["backend"] in results)


def _pairs(
    old: dict[str, Any], new: dict[str, Any], threshold: float, drift: tuple[float, float], *, alike: bool
) -> Iterator[Pair]:
    """drift: how many times slower the machine was in the second, and in the first"""
    for one, other in _common_results(old, new):
        name, before, after = one["backend"], one["median_ms"], other["median_ms"]
        ratios, others = one["ratios_to_base"], other["ratios_to_base"]
        if old["base"] == new["base"] != name and min(ratios, default=0) > 0 < min(others, default=0):
            was, is_now = [1 / ratio for ratio in ratios], [1 / ratio for ratio in others]
            slower, faster = _exceeds(was, is_now, threshold), _exceeds(is_now, was, threshold)
            yield Pair(old["name"], name, before, after, one["speedup"], other["speedup"], slower, faster, counts=True)
        else:
            slower = _exceeds(one["runs_ms"], other["runs_ms"], threshold * drift[0])
            faster = _exceeds(other["runs_ms"], one["runs_ms"], threshold * drift[1])
            yield Pair(old["name"], name, before, after, None, None, slower, faster, counts=alike)


def _exceeds(old: Sequence[float], new: Sequence[float], threshold: float) -> bool:
    """Whether the median of ``new`` is past the threshold and where it may be lies above where that of ``old`` may be.

    Of few rounds that is no more than their range, which holds the median of three with 75 % only: there even the range
    must be past the threshold.
    """
    (low, middle, _), (_, former, high) = _median_within(new), _median_within(old)
    margin = 1.0 if min(len(old), len(new)) >= _ENOUGH_ROUNDS else threshold
    return middle > threshold * former and low > margin * high


def _median_within(values: Sequence[float]) -> tuple[float, float, float]:
    """Low, median and high: the order statistics that have between them, with 95 %, the median of what the values were
    drawn from, whatever its distribution; of fewer than nine values the full range."""
    ordered, n = sorted(values), len(values)
    cut = 0  # values on each side that are left out
    while 2 * sum(math.comb(n, k) for k in range(cut + 2)) <= (1 - _CERTAIN) * 2**n:
        cut += 1
    return ordered[cut], (ordered[(n - 1) // 2] + ordered[n // 2]) / 2, ordered[n - 1 - cut]


def _machine_slowdown(old: dict[str, Any], new: dict[str, Any]) -> float:
    """How many times slower the machine itself was, by the roofs that each run measured first; at least 1."""
    before: dict[str, float] = old["rates"] or {}
    after: dict[str, float] = new["rates"] or {}
    return max([1.0, *(before[name] / after[name] for name in before if name in after)])  # the schema has them above 0


def _unlike(old: dict[str, Any], new: dict[str, Any]) -> Iterator[str]:
    """What makes milliseconds say nothing about the code."""
    for what in _ALIKE_MACHINE:
        if old["machine"][what] != new["machine"][what]:
            yield f"the machines differ: {what} {old['machine'][what]} and {new['machine'][what]}"
    cards = [one["card"] or {"name": "no GPU"} for one in (old, new)]
    if cards[0]["name"] != cards[1]["name"]:
        yield f"the machines differ: {cards[0]['name']} and {cards[1]['name']}"
    elif cards[0].get("driver") != cards[1].get("driver"):
        yield f"the drivers differ: {cards[0].get('driver')} and {cards[1].get('driver')}"
    if old["threads"] != new["threads"]:
        yield f"threads differs: {old['threads']} and {new['threads']}"
    for name in old["versions"].keys() | new["versions"].keys():
        if name != "animdetail-trt" and old["versions"].get(name) != new["versions"].get(name):
            yield f"{name} differs: {old['versions'].get(name)} and {new['versions'].get(name)}"


def _notes(old: dict[str, Any], new: dict[str, Any], pairs: Sequence[Pair]) -> Iterator[str]:
    if old["suite"] != new["suite"]:
        yield f"suite differs: {old['suite']} and {new['suite']}"
    if (slowdown := _machine_slowdown(old, new)) > THRESHOLD:
        yield f"by the copies and products that it timed the machine was {slowdown:.2f} times slower in the second"
    for pair in pairs:
        if pair.slower and not pair.counts:
            yield (
                f"{pair.scenario} {pair.backend} took {pair.ratio:.2f} times as long: no loss, for it has no base to "
                "be judged by, and the two were not run alike"
            )
    for which, one in (("first", old), ("second", new)):
        if not one["complete"]:
            yield f"the {which} is not complete: it was stopped, or scenarios were left out"


def _absent(
    old: dict[str, Any], new: dict[str, Any], scenarios: dict[str, Any], complete: bool
) -> Iterator[tuple[str, bool]]:
    """What one of the two has not, and whether that is a loss."""
    for failure in new["failures"]:
        if failure not in old["failures"]:
            yield f"{failure['scenario']} {failure['backend']}: {failure['reason']}", True
    left_out = {one["scenario"]: one["reason"] for one in new["left_out"]}
    for one in old["scenarios"]:
        there = scenarios.get(one["name"])
        if there is None:
            reason = left_out.get(one["name"], "the second has no such scenario")
            yield f"{one['name']} was not measured: {reason}", complete or not reason.startswith(OUT_OF_TIME)
            continue
        there_now = {result["backend"] for result in there["results"]}
        reasons = {absent["backend"]: absent["reason"] for absent in there["absent"]}
        for result in one["results"]:
            if result["backend"] not in there_now:
                reason = reasons.get(result["backend"], "the second did not try it")
                yield f"{one['name']} {result['backend']} is absent now: {reason}", True
    for left in old["left_out"]:
        if left["scenario"] in scenarios:
            yield f"{left['scenario']} was not measured in the first: {left['reason']}", False


def _lost_in(old: dict[str, Any], new: dict[str, Any], threshold: float) -> Iterator[str]:
    """What a scenario lost in quality and memory."""
    for one, other in _common_results(old, new):
        where = f"{old['name']} {one['backend']}"
        before, after = one["quality"], other["quality"]
        if before is not None and after is None:
            yield f"{where}: nothing is known of its quality, for it or float32 torch holds NaN or infinity"
        if before is not None and after is not None and after["psnr_db"] is not None:
            was = math.inf if before["psnr_db"] is None else before["psnr_db"]
            if after["psnr_db"] < min(was - _PSNR_STEP_DB, _PSNR_GOOD_DB):
                told = "equal" if math.isinf(was) else f"{was:.1f} dB"
                yield f"{where}: PSNR {after['psnr_db']:.1f} dB, before {told}"
        for field, what in _MEMORY.items():
            peaks = one[field], other[field]
            own_process = old["kind"] == "pixels" and one["backend"] != "native_cuda"
            shared = field == "peak_host_bytes" and not own_process
            step = _SHARED_HEAP_STEP_BYTES if shared else _MEMORY_STEP_BYTES
            if None not in peaks and peaks[1] > max(threshold * peaks[0], peaks[0] + step):
                yield f"{where}: {what} {peaks[1] / 2**20:.0f} MiB, before {peaks[0] / 2**20:.0f}"


def _newly_flagged(old: dict[str, Any], new: dict[str, Any]) -> Iterator[str]:
    def named(document: dict[str, Any]) -> dict[tuple[str, ...], dict[str, Any]]:
        return {(one["kind"], one["backend"], one["of"], one["axis"]): one for one in document["growth"]}

    before = named(old)
    for key, one in named(new).items():
        if one["flagged"] and not (key in before and before[key]["flagged"]):
            kind, backend, what, axis = key
            was = f"before {before[key]['exponent']:.2f}" if key in before else "which the first did not measure"
            yield f"{kind} {backend}: {what} grows with {axis}^{one['exponent']:.2f}, {was}"
