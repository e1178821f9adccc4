"""``doctor`` looks at everything, never fails, and gives a command for what is missing."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from animdetail_trt.cli import doctor
from animdetail_trt.extras import install_command
from animdetail_trt.trt.identity import Identity, Source, Target
from animdetail_trt.trt.store import Build, Store

_LOOKED_AT = {
    "python", "native extension", "torch", "cuda driver", "cuda device", "cuda kernels", "diffusers", "transformers",
    "safetensors",
    "video (av)", "opencv", "face weights", "tensorrt", "tensorrt_rtx", "onnx", "onnxruntime", "polygraphy", "cuda",
    "engine gpu", "engine folder",
}  # fmt: skip
_MODELS = ("native extension", "torch", "diffusers", "transformers", "safetensors")


@pytest.fixture(autouse=True)
def engine_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("ANIMDETAIL_ENGINE_DIR", str(tmp_path / "engines"))
    return tmp_path / "engines"


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
    for module in ("animdetail_trt._C", "torch", "av", "cv2", *(module for _, module, _, _ in doctor._FOR_ENGINES)):
        monkeypatch.setitem(sys.modules, module, None)
    monkeypatch.setattr(doctor.importlib.util, "find_spec", lambda name: None)
    outcome = run("doctor", "--json")
    assert outcome.code == 0
    document = json.loads(outcome.out)
    assert {f["name"] for f in document["findings"] if f["status"] == "ok"} <= {
        "python",
        "cuda driver",
        "engine folder",
    }
    assert not any(document["abilities"].values())


def test_onnxruntime_leaves_nothing_in_the_users_home(tmp_path: Path) -> None:
    pytest.importorskip("onnxruntime")
    code = """
from animdetail_trt.cli import doctor, main
doctor.examine = lambda: [doctor._for_engines("onnxruntime", "onnxruntime", "", "rtx")]
main(["doctor"])
"""
    home = {name: str(tmp_path / "home") for name in ("HOME", "USERPROFILE", "XDG_CACHE_HOME")}
    (tmp_path / "home").mkdir()
    environment = {name: value for name, value in os.environ.items() if name != "ORT_DISABLE_TELEMETRY"} | home
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment, check=True)
    assert "onnxruntime" in done.stdout
    assert list((tmp_path / "home").iterdir()) == []


def test_abilities_follow_from_findings() -> None:
    assert not any(doctor.judge([]).values())
    able = doctor.judge([doctor.Finding(name, "ok", "") for name in (*_MODELS, "video (av)")])
    assert [name for name, given in able.items() if given] == ["detail image folders on the CPU", "detail videos"]
    able = doctor.judge([doctor.Finding(name, "ok", "") for name in (*_MODELS, "cuda device")])
    assert able["run the models on a CUDA GPU"]
    assert not able["keep the pixels on it too"]
    assert not able["build engines"]
    assert not able["run engines"]


def test_an_extension_without_kernels_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    from types import SimpleNamespace

    for has_cuda, status in ((False, "optional"), (True, "ok")):
        monkeypatch.setitem(sys.modules, "animdetail_trt._C", SimpleNamespace(has_cuda=has_cuda))
        finding = doctor._cuda_kernels()
        assert finding.status == status
        assert ("CUDA toolkit" in finding.remedy) is not has_cuda


@pytest.mark.parametrize(
    ("there", "builds", "runs"),
    [
        (["tensorrt_rtx", "onnx"], True, False),
        (["tensorrt_rtx"], False, False),
        (["tensorrt", "onnx"], False, False),  # it builds on the GPU that it builds for
        (["tensorrt", "onnx", "cuda device"], True, False),
        (["tensorrt", "cuda device", "engine gpu"], False, True),
        (["tensorrt_rtx", "onnx", "cuda device", "engine gpu"], True, True),
    ],
)
def test_what_engines_need(there: list[str], builds: bool, runs: bool) -> None:
    able = doctor.judge([doctor.Finding(name, "ok", "") for name in (*_MODELS, *there)])
    assert (able["build engines"], able["run engines"]) == (builds, runs)
    assert not any(doctor.judge([doctor.Finding(name, "ok", "") for name in there]).values())


def test_what_is_missing_for_engines_can_be_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    for _, module, _, _ in doctor._FOR_ENGINES:
        monkeypatch.setitem(sys.modules, module, None)
    for name, module, purpose, extra in doctor._FOR_ENGINES:
        finding = doctor._for_engines(name, module, purpose, extra)
        assert finding.detail == f"not installed; {purpose}"
        assert finding.remedy == install_command(extra)


def test_a_library_that_does_not_load_is_not_taken_for_absent(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "tensorrt.py").write_text("raise ImportError('libnvinfer.so.11: cannot open shared object file')")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "tensorrt", raising=False)
    finding = doctor._for_engines(*doctor._FOR_ENGINES[0])
    assert finding.status == "optional"
    assert "installed, and does not load (libnvinfer.so.11" in finding.detail
    assert "--force-reinstall" in finding.remedy


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> Callable[[int, int, list[str]], doctor.Finding]:
    """What is found where torch sees a GPU of this capability, and TensorRT for RTX knows those."""
    import torch

    from animdetail_trt.trt import flavour

    def look(major: int, minor: int, known: list[str]) -> doctor.Finding:
        device = SimpleNamespace(name="A card", total_memory=24 << 30, major=major, minor=minor)
        kinds = SimpleNamespace(**{f"SM{capability.replace('.', '')}": 0 for capability in known})
        rtx = flavour.Flavour("tensorrt_rtx", SimpleNamespace(ComputeCapability=kinds, __version__="1"))
        monkeypatch.setattr(flavour, "installed_flavours", lambda: [rtx] if known else [])
        monkeypatch.setattr(torch.cuda, "is_available", lambda: major > 0)
        monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
        monkeypatch.setattr(torch.cuda, "get_device_properties", lambda index: device)
        return doctor._engine_gpu()

    return look


def test_a_gpu_that_engines_run_on(gpu: Callable[..., doctor.Finding]) -> None:
    finding = gpu(8, 9, ["8.6", "8.9"])
    assert (finding.status, finding.detail) == ("ok", "A card with tensorrt_rtx")


def test_gpus_that_no_engine_runs_on(gpu: Callable[..., doctor.Finding]) -> None:
    finding = gpu(9, 0, ["8.6", "8.9"])
    assert finding.status == "optional"
    assert "A card (9.0)" in finding.detail
    assert "8.6, 8.9" in finding.detail
    assert install_command("tensorrt") in finding.remedy
    assert "pip install" in gpu(8, 9, []).remedy
    assert "--target-sm" in gpu(0, 0, ["8.9"]).remedy


def test_engine_folder_with_engines(engine_folder: Path) -> None:
    assert doctor._engine_folder().detail == f"0 engines, 0 kB, in {engine_folder}, writable"
    assert not engine_folder.exists()
    identity = Identity(Source("unet", {"checkpoint": "ab"}, "fp16"), Target("tensorrt", "10", "8.9"), [])
    with Store(engine_folder).building(identity) as build:
        assert isinstance(build, Build)
        build.path(".plan").write_bytes(bytes(5_000_000))
        build.commit(build.path(".plan"), {})
    assert doctor._engine_folder().detail == f"1 engine, 5.0 MB, in {engine_folder}, writable"


def test_engine_folder_that_cannot_be_used(engine_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    engine_folder.mkdir()
    monkeypatch.setattr(doctor.os, "access", lambda path, mode: path != engine_folder)
    finding = doctor._engine_folder()
    assert (finding.status, "cannot be written to" in finding.detail) == ("optional", True)
    assert "ANIMDETAIL_ENGINE_DIR" in finding.remedy
    engine_folder.rmdir()
    engine_folder.write_text("a file")
    finding = doctor._engine_folder()
    assert (finding.status, "is a file" in finding.detail) == ("optional", True)
    assert "ANIMDETAIL_ENGINE_DIR" in finding.remedy
