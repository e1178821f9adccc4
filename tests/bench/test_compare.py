"""``bench compare``: ratios, exit codes, and what it refuses."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

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
    new = a_result(slower=1.3)
    new["scenarios"][0]["results"][0]["quartiles_ms"] = [9.0, 20.0]
    assert compare(run, tmp_path, a_result(), new).code == 0


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


@pytest.mark.parametrize("left_out", [[], [{"scenario": "gone", "reason": "the suite's time was over"}]])
def test_a_scenario_that_went_is_a_loss(run: Run, tmp_path: Path, left_out: list[dict[str, str]]) -> None:
    old, new = a_result(), a_result()
    old["scenarios"].append(dict(old["scenarios"][0], name="gone"))
    done = compare(run, tmp_path, old, new | {"left_out": left_out})
    assert done.code == 1
    assert "lost: gone was not measured: " + ("the suite's time" if left_out else "the second has") in done.out


@pytest.mark.parametrize("change", [{"model": 3}, {"scenarios": [{}]}, {"machine": {}}])
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
