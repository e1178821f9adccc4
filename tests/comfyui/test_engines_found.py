"""A MODEL's engine is found whenever it was built, and nothing is read of the MODEL where there can be none."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import stand_in
import torch
from safetensors.torch import load_file

from animdetail_trt.comfyui import accelerate, build, host, unet
from animdetail_trt.comfyui.accelerate import Accelerated
from animdetail_trt.comfyui.facts import ModelFacts, MotionFacts
from animdetail_trt.comfyui.settings import DetailerSettings
from animdetail_trt.models import runners
from animdetail_trt.models.engines import UNetVariant
from animdetail_trt.trt.flavour import Card, Flavour
from animdetail_trt.trt.profile import Range

INTERFACE = json.loads((Path(__file__).parents[1] / "golden" / "node_interfaces.json").read_text())
FLAVOUR = Flavour("tensorrt", SimpleNamespace(__version__="10.1"))
MOTION = MotionFacts("AnimateDiff", "v3")


class Computer:
    """With a GPU, TensorRT and ComfyUI. reads: of a MODEL's weights; facts, dtype: of every MODEL"""

    def __init__(self, unet_weights: dict[str, torch.Tensor], motion: dict[str, torch.Tensor]) -> None:
        self.unet_weights, self.motion = unet_weights, motion
        self.facts = ModelFacts("SD15", 4, motion=(MOTION,))
        self.dtype = torch.float16
        self.reads = 0
        self.fails: Exception | None = None

    def read(self, model: Any) -> dict[str, torch.Tensor]:
        self.reads += 1
        if self.fails is not None:
            raise self.fails
        patched = {"model.diffusion_model.out.2.bias": torch.full((4,), float(model.patches_uuid))}
        return self.unet_weights | patched

    def model(self) -> stand_in.Model:
        return stand_in.Model(SimpleNamespace())  # type: ignore[arg-type]

    def build(self, model: Any, most_px: int = 512) -> None:
        sizes = build.Sizes(Range(256, 512, most_px), Range(1, 16, 32))
        build.build_engine(model, DetailerSettings(), sizes, UNetVariant())


@pytest.fixture
def computer(tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Computer:
    stand_in.enter(monkeypatch, INTERFACE["DetailerForEachPipeForAnimateDiff"])
    weights = load_file(tiny / "tiny_sd15.safetensors")
    computer = Computer(
        {key: value for key, value in weights.items() if key.startswith("model.")},
        load_file(tiny / "tiny_mm_v3.safetensors"),
    )

    def commit(job: Any, store: Any, flavour: Any, **_: Any) -> Any:
        with store.building(job.identity) as place:
            plan = place.path(".plan")
            plan.write_bytes(job.identity.name.encode())
            files = {role: str(path) for role, path in job.files.weight_files("unet").items()}
            return place.commit(plan, {"files": files, "inputs": {}}), True

    monkeypatch.setenv("ANIMDETAIL_ENGINE_DIR", str(tmp_path))
    for name, answer in {
        "facts_of": lambda model: computer.facts,
        "unet_weights": computer.read,
        "motion_weights": lambda model: computer.motion if computer.facts.motion else None,
        "model_dtype": lambda model: computer.dtype,
        "inference_device": lambda: torch.device("cuda", 0),
    }.items():
        monkeypatch.setattr(host, name, answer)
    monkeypatch.setattr(build, "find_cards", lambda: ([Card(0, "a", "8.9", 1, "13")], ""))
    monkeypatch.setattr(build, "choose_flavour", lambda name, capability: FLAVOUR)
    monkeypatch.setattr(build, "check_target", lambda flavour, capability: capability)
    monkeypatch.setattr(build, "build", commit)
    for module in (unet, runners):
        monkeypatch.setattr(module, "installed_flavours", lambda: [FLAVOUR])
        monkeypatch.setattr(module, "capability_of", lambda device: "8.9")
        monkeypatch.setattr(module, "card_name_of", lambda device: "a")
    monkeypatch.setattr(runners, "EngineSession", lambda trt, read, inputs, profiles, *_, **__: profiles)
    return computer


def _runner(model: Any) -> Any:
    """What runs the MODEL's UNet now; None: ComfyUI."""
    accelerated, reason = accelerate.accelerate(model, DetailerSettings())
    wrapper = host.unet_wrapper(accelerated)
    assert isinstance(wrapper, Accelerated) == (reason is None)
    return wrapper.runner if isinstance(wrapper, Accelerated) else None


def test_an_engine_built_after_the_first_run_is_used(computer: Computer, caplog: pytest.LogCaptureFixture) -> None:
    model = computer.model()
    with caplog.at_level(logging.INFO, logger="animdetail_trt.comfyui"):
        assert [_runner(model), _runner(model)] == [None, None]
        clone = model.clone()
        assert _runner(clone) is None
        computer.build(model)
        runner = _runner(model)
        assert runner is not None
        assert _runner(model) is runner
        assert _runner(clone) is not None
    assert [record.getMessage().split(": ")[-1] for record in caplog.records] == [
        "no engine of a MODEL is built on this machine (node TensorRT engines)",
        "its UNet runs in a TensorRT engine",
        "its UNet runs in a TensorRT engine",  # of the clone, which has gone its own way
    ]


def test_an_engine_of_more_sizes_is_used(computer: Computer) -> None:
    model = computer.model()
    computer.build(model)
    assert len(_runner(model).open().sessions) == 1
    computer.build(model, most_px=1024)
    assert len(_runner(model).open().sessions) == 2


def test_an_engine_of_other_weights_costs_one_reading(computer: Computer) -> None:
    model, other = computer.model(), computer.model()
    other.add_patches({})
    computer.build(other)
    computer.reads = 0
    assert [_runner(model), _runner(model), _runner(model.clone())] == [None] * 3
    assert computer.reads == 1
    computer.build(model)
    assert _runner(model) is not None


def _other_precision(computer: Computer) -> None:
    computer.dtype = torch.bfloat16


def _no_motion(computer: Computer) -> None:
    computer.facts = replace(computer.facts, motion=())


def _other_effect(computer: Computer) -> None:
    computer.facts = replace(computer.facts, motion=(replace(MOTION, effect=0.5),))


@pytest.mark.parametrize("change", [_other_precision, _no_motion, _other_effect])
def test_a_model_of_another_kind_is_not_read(computer: Computer, change: Callable[[Computer], None]) -> None:
    model = computer.model()
    computer.build(model)
    change(computer)
    computer.reads = 0
    assert _runner(model) is None
    assert computer.reads == 0
    computer.build(model)
    assert _runner(model) is not None


def test_an_engine_for_another_gpu_is_not_this_ones(computer: Computer, monkeypatch: pytest.MonkeyPatch) -> None:
    model = computer.model()
    computer.build(model)
    computer.reads = 0
    monkeypatch.setattr(unet, "capability_of", lambda device: "9.0")
    assert _runner(model) is None
    monkeypatch.setattr(unet, "capability_of", lambda device: "8.9")
    monkeypatch.setattr(unet, "card_name_of", lambda device: "another of 8.9")
    assert _runner(model) is None
    assert computer.reads == 0


def test_what_fails_once_is_tried_again(computer: Computer, caplog: pytest.LogCaptureFixture) -> None:
    model = computer.model()
    computer.build(model)
    computer.fails = torch.OutOfMemoryError("full")
    with caplog.at_level(logging.INFO, logger="animdetail_trt.comfyui"):
        assert [_runner(model), _runner(model)] == [None, None]
    assert len(caplog.records) == 1
    assert "OutOfMemoryError: full" in caplog.text
    computer.fails = None
    assert _runner(model) is not None


def test_nodes_are_asked_again_when_an_engine_was_built(computer: Computer) -> None:
    from animdetail_trt.comfyui.nodes import AccelerateModel, Engines

    before = AccelerateModel.IS_CHANGED(model=None, run="auto"), Engines.IS_CHANGED(model=None, action="load")
    asked_to_build = Engines.IS_CHANGED(model=None, action="build where there is none")
    computer.build(computer.model())
    after = AccelerateModel.IS_CHANGED(model=None, run="auto"), Engines.IS_CHANGED(model=None, action="load")
    assert before[0] != after[0]
    assert before[1] != after[1]
    assert Engines.IS_CHANGED(model=None, action="build where there is none") == asked_to_build
    assert after[0] == AccelerateModel.IS_CHANGED(model=None, run="auto")


def test_weights_are_told_apart_by_all_that_they_are(tmp_path: Path) -> None:
    tensor = torch.arange(6, dtype=torch.float16)
    told = [
        {"a": tensor}, {"b": tensor}, {"a": tensor.bfloat16()}, {"a": tensor.view(torch.bfloat16)},
        {"a": tensor.reshape(2, 3)}, {"a": tensor, "b": tensor[:0]}, {"a": tensor[0]}, {"a": tensor + 1},
    ]  # fmt: skip
    names = {unet.UNetFiles.of(unet.Weights(given, None, 1, 1), tmp_path, write=False).checkpoint for given in told}
    assert len(names) == len(told)
    strided = torch.stack([tensor, tensor], 1)[:, 0]
    assert unet.UNetFiles.of(unet.Weights({"a": strided}, None, 1, 1), tmp_path, write=False).checkpoint in names
