"""Two results, scenario by scenario: how much slower the second is, beyond what the runs themselves differ by."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from animdetail_trt.errors import InputError

THRESHOLD = 1.10
"""A time that is more than this many times the old one is a loss."""


@dataclass(frozen=True)
class Pair:
    """One scenario in one way; times in ms. ratio: new over old; slower: past the threshold and beyond the spread"""

    scenario: str
    backend: str
    old_ms: float
    new_ms: float
    slower: bool
    faster: bool

    @property
    def ratio(self) -> float:
        return self.new_ms / self.old_ms


@dataclass(frozen=True)
class Comparison:
    """notes: what makes the two less alike; lost: what the old one has and the new one has not, and is a loss"""

    pairs: list[Pair]
    notes: list[str]
    lost: list[str]

    @property
    def worse(self) -> bool:
        return bool(self.lost) or any(pair.slower for pair in self.pairs)


def compare_results(old: dict[str, Any], new: dict[str, Any], threshold: float = THRESHOLD) -> Comparison:
    """Raises InputError where the two did not run the same thing."""
    if old["model"] != new["model"]:
        raise InputError(
            f"the first ran models of size {old['model']!r}, the second {new['model']!r}. Compare runs of one suite"
        )
    scenarios = {one["name"]: one for one in new["scenarios"]}
    common = [one for one in old["scenarios"] if one["name"] in scenarios]
    for one in common:
        _check_sizes(one, scenarios[one["name"]])
    pairs = [pair for one in common for pair in _pairs(one, scenarios[one["name"]], threshold)]
    if not pairs:
        raise InputError("the two have no scenario and backend in common. Compare runs of one suite")
    return Comparison(pairs, list(_notes(old, new)), list(_lost(old, new, scenarios)))


def _check_sizes(old: dict[str, Any], new: dict[str, Any]) -> None:
    keys = {**old["sizes"], **new["sizes"]}
    for key in keys:
        if old["sizes"].get(key) != new["sizes"].get(key):
            raise InputError(
                f"scenario {old['name']!r} has {key} {old['sizes'].get(key)!r} in the first and "
                f"{new['sizes'].get(key)!r} in the second: these are different jobs. Measure both with one version"
            )


def _pairs(old: dict[str, Any], new: dict[str, Any], threshold: float) -> Iterator[Pair]:
    results = {one["backend"]: one for one in new["results"]}
    for one in old["results"]:
        other = results.get(one["backend"])
        if other is None:
            continue
        before, after = one["median_ms"], other["median_ms"]
        slower = after > threshold * before and other["quartiles_ms"][0] > one["quartiles_ms"][1]
        faster = before > threshold * after and one["quartiles_ms"][0] > other["quartiles_ms"][1]
        yield Pair(old["name"], one["backend"], before, after, slower, faster)


def _notes(old: dict[str, Any], new: dict[str, Any]) -> Iterator[str]:
    for what in ("cpu", "usable_processors"):
        if old["machine"][what] != new["machine"][what]:
            yield f"the machines differ: {what} {old['machine'][what]} and {new['machine'][what]}"
    names = [(one["card"] or {}).get("name", "no GPU") for one in (old, new)]
    if names[0] != names[1]:
        yield f"the machines differ: {names[0]} and {names[1]}"
    for what in ("dtype", "threads", "suite"):
        if old[what] != new[what]:
            yield f"{what} differs: {old[what]} and {new[what]}"
    for name, version in old["versions"].items():
        if new["versions"].get(name) != version:
            yield f"{name} differs: {version} and {new['versions'].get(name)}"
    for which, one in (("first", old), ("second", new)):
        if not one["complete"]:
            yield f"the {which} is not complete: it was stopped, or scenarios were left out"


def _lost(old: dict[str, Any], new: dict[str, Any], scenarios: dict[str, Any]) -> Iterator[str]:
    for failure in new["failures"]:
        if failure not in old["failures"]:
            yield f"{failure['scenario']} {failure['backend']}: {failure['reason']}"
    left_out = {one["scenario"]: one["reason"] for one in new["left_out"]}
    for one in old["scenarios"]:
        there = scenarios.get(one["name"])
        if there is None:
            yield f"{one['name']} was not measured: {left_out.get(one['name'], 'the second has no such scenario')}"
            continue
        there_now = {result["backend"] for result in there["results"]}
        reasons = {absent["backend"]: absent["reason"] for absent in there["absent"]}
        for result in one["results"]:
            if result["backend"] not in there_now:
                reason = reasons.get(result["backend"], "the second did not try it")
                yield f"{one['name']} {result['backend']} is absent now: {reason}"
