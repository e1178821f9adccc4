"""``doctor`` looks at everything, never fails, and gives a command for what is missing."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from typing import Any

import pytest

from animdetail_trt.cli import doctor

_LOOKED_AT = {
    "python", "native extension", "torch", "cuda driver", "cuda device", "diffusers", "transformers", "safetensors",
    "video (av)", "opencv", "face weights", "tensorrt", "tensorrt_rtx", "onnx", "polygraphy", "cuda",
}  # fmt: skip


def test_json(run: Callable[..., Any]) -> None:
    outcome = run("doctor", "--json")
    assert outcome.code == 0
    document = json.loads(outcome.out)
    assert {finding["name"] for finding in document["findings"]} == _LOOKED_AT
    for finding in document["findings"]:
        assert finding["status"] in ("ok", "missing", "optional")
        assert finding["detail"]
        assert (finding["status"] == "ok") == (finding["remedy"] == "")


def test_text_names_every_remedy(run: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    outcome = run("doctor")
    assert outcome.code == 0
    for finding in doctor.examine():
        assert finding.name in outcome.out
        assert finding.remedy in outcome.out


def test_everything_missing_is_still_exit_0(run: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> None:
    for module in ("animdetail_trt._C", "torch", "av", "cv2"):
        monkeypatch.setitem(sys.modules, module, None)
    monkeypatch.setattr(doctor.importlib.util, "find_spec", lambda name: None)
    outcome = run("doctor", "--json")
    assert outcome.code == 0
    document = json.loads(outcome.out)
    assert {f["name"] for f in document["findings"] if f["status"] == "ok"} <= {"python", "cuda driver"}
    assert not any(document["abilities"].values())


def test_abilities_follow_from_findings() -> None:
    models = ("native extension", "torch", "diffusers", "transformers", "safetensors")
    assert not any(doctor.judge([]).values())
    able = doctor.judge([doctor.Finding(name, "ok", "") for name in (*models, "video (av)")])
    assert [name for name, given in able.items() if given] == ["detail image folders on the CPU", "detail videos"]
    able = doctor.judge([doctor.Finding(name, "ok", "") for name in (*models, "cuda device")])
    assert able["detail on a CUDA GPU"]
    assert not able["TensorRT engines"]


def test_nothing_is_to_be_installed_for_engines(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor.importlib.util, "find_spec", lambda name: None)
    engines = ("tensorrt", "tensorrt_rtx", "onnx", "polygraphy", "cuda")
    remedies = [finding.remedy for finding in doctor.examine() if finding.name in engines]
    assert len(remedies) == len(engines)
    assert all("come with a later version" in remedy and "pip" not in remedy for remedy in remedies)
