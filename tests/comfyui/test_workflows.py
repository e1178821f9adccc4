"""The example workflows fit the nodes, and what is built for a MODEL is found for it again."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import stand_in
import torch
from safetensors.torch import load_file

from animdetail_trt.comfyui import build, host, unet
from animdetail_trt.comfyui.facts import ModelFacts, MotionFacts
from animdetail_trt.comfyui.settings import DetailerSettings
from animdetail_trt.errors import InputError, MediaError
from animdetail_trt.models.engines import UNetVariant
from animdetail_trt.models.runners import Runners
from animdetail_trt.trt.flavour import Card, Flavour
from animdetail_trt.trt.profile import Range

ROOT = Path(__file__).parents[2]
INTERFACE = json.loads((ROOT / "tests" / "golden" / "node_interfaces.json").read_text())
NAMES = ("detail_animatediff", "accelerate_any_sampler")


@pytest.fixture
def seen(monkeypatch: pytest.MonkeyPatch) -> stand_in.Seen:
    return stand_in.enter(monkeypatch, INTERFACE["DetailerForEachPipeForAnimateDiff"])


def _read(name: str) -> Any:
    return json.loads((ROOT / "examples" / "workflows" / f"{name}.json").read_text())


def _is_widget(spec: Any) -> bool:
    return isinstance(spec[0], list) or spec[0] in ("INT", "FLOAT", "STRING", "BOOLEAN")


@pytest.mark.parametrize("name", NAMES)
def test_workflow_gives_our_nodes_what_they_take(seen: stand_in.Seen, name: str) -> None:
    from animdetail_trt.comfyui.nodes import NODE_CLASS_MAPPINGS

    api = _read(f"{name}_api")
    ours = [node for node in api.values() if node["class_type"] in NODE_CLASS_MAPPINGS]
    assert ours
    for node in ours:
        types = NODE_CLASS_MAPPINGS[node["class_type"]].INPUT_TYPES()
        specs = types["required"] | types.get("optional", {})
        assert set(types["required"]) <= set(node["inputs"]) <= set(specs)
        for key, value in node["inputs"].items():
            if isinstance(specs[key][0], list):
                assert value in specs[key][0]
            elif not _is_widget(specs[key]):
                source, output = value
                assert source in api
                assert isinstance(output, int)


@pytest.mark.parametrize("name", NAMES)
def test_both_forms_say_the_same(seen: stand_in.Seen, name: str) -> None:
    from animdetail_trt.comfyui.nodes import NODE_CLASS_MAPPINGS

    api, page = _read(f"{name}_api"), _read(name)
    assert [node["type"] for node in page["nodes"]] == [node["class_type"] for node in api.values()]
    values = [value for node in api.values() for value in node["inputs"].values()]
    assert len(page["links"]) == sum(isinstance(value, list) for value in values)
    for node, called in zip(page["nodes"], api.values(), strict=True):
        if node["type"] in NODE_CLASS_MAPPINGS:
            values = [value for value in called["inputs"].values() if not isinstance(value, list)]
            assert [value for value in node["widgets_values"] if value != "fixed"] == values


@pytest.fixture
def model(seen: stand_in.Seen, tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """A MODEL of the tiny checkpoint with a motion model, in a ComfyUI on a GPU; engines lie in tmp_path."""
    weights = load_file(tiny / "tiny_sd15.safetensors")
    monkeypatch.setenv("ANIMDETAIL_ENGINE_DIR", str(tmp_path))
    answers = {
        "facts_of": ModelFacts("SD15", 4, motion=(MotionFacts("AnimateDiff", "v3"),)),
        "unet_weights": {key: value for key, value in weights.items() if key.startswith("model.")},
        "motion_weights": load_file(tiny / "tiny_mm_v3.safetensors"),
        "model_dtype": torch.float16,
    }
    for name, answer in answers.items():
        monkeypatch.setattr(host, name, lambda model, answer=answer: answer)
    return object()


def test_what_is_built_is_what_is_looked_for(model: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    flavour = Flavour("tensorrt", SimpleNamespace(__version__="10.1"))
    built: list[Any] = []

    def note(job: Any, store: Any, given: Any, **options: Any) -> Any:
        options["progress"]("building", 1, 4)
        options["poll"]()
        built.append(job)
        return SimpleNamespace(name="unet-1"), True

    monkeypatch.setattr(build, "find_cards", lambda: ([Card(0, "a", "7.5", 1, "13"), Card(1, "b", "8.9", 1, "13")], ""))
    monkeypatch.setattr(host, "inference_device", lambda: torch.device("cuda", 1))
    monkeypatch.setattr(build, "choose_flavour", lambda name, capability: flavour)
    monkeypatch.setattr(build, "check_target", lambda flavour, capability: capability)
    monkeypatch.setattr(build, "build", note)
    sizes = build.Sizes(Range(256, 512, 768), Range(1, 16, 64))
    line = build.build_engine(model, DetailerSettings(), sizes, UNetVariant(controlnet=True))
    assert line == "unet-1: built for tensorrt 10.1, 8.9"
    (job,) = built
    (profile,) = job.identity.profiles
    assert (str(profile.axes["h"]), str(profile.axes["f"])) == ("32:64:96", "1:16:32")  # v3 has 32 positions
    assert job.identity.source.precision == "fp16"

    weights = unet.read_weights(model, host.facts_of(model))
    files = unet.UNetFiles.of(weights, tmp_path, write=False)
    runners = Runners(files, torch.device("cpu"), torch.float16, "auto", tmp_path, digests=unet.NamedDigests(tmp_path))
    looked_for: list[Any] = []
    monkeypatch.setattr(runners, "_capability", lambda: "8.9")
    monkeypatch.setattr("animdetail_trt.models.runners.card_name_of", lambda device: "b")
    monkeypatch.setattr(runners.store, "find", lambda source, target: looked_for.append((source, target)) or [])
    assert runners._entries(files, "unet", flavour) == []
    assert (job.identity.source, job.identity.target) in looked_for


def test_build_says_why_it_cannot(model: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    sizes = build.Sizes(Range(256, 512, 768), Range(1, 16, 32))
    monkeypatch.setattr(build, "find_cards", lambda: ([], "no driver"))
    with pytest.raises(InputError, match="no GPU here .*no driver"):
        build.build_engine(model, DetailerSettings(), sizes, UNetVariant())
    monkeypatch.setattr(build, "find_cards", lambda: ([Card(0, "a", "7.5", 1, "13")], ""))
    monkeypatch.setattr(host, "inference_device", lambda: torch.device("cuda", 1))
    with pytest.raises(InputError, match="GPU 1, and only 1"):
        build.build_engine(model, DetailerSettings(), sizes, UNetVariant())
    monkeypatch.setattr(host, "facts_of", lambda model: ModelFacts("SDXL", 4))
    with pytest.raises(InputError, match="SDXL"):
        build.build_engine(model, DetailerSettings(), sizes, UNetVariant())


def test_weights_on_a_full_disk_leave_nothing(tmp_path: Path) -> None:
    """Of a disk that takes files of half the size."""
    resource = pytest.importorskip("resource")
    limit, most = resource.getrlimit(resource.RLIMIT_FSIZE)
    weights = unet.Weights({"model.x": torch.ones(1 << 20)}, None, 1, 1)
    resource.setrlimit(resource.RLIMIT_FSIZE, (2 << 20, most))
    try:
        with pytest.raises(MediaError, match=r"cannot write a model's weights to .*File too large.*Free some space"):
            unet.UNetFiles.of(weights, tmp_path, write=True)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, most))
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == []
    written = unet.UNetFiles.of(weights, tmp_path, write=True).checkpoint
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == [written]


def test_weights_are_written_without_a_copy_and_for_all_to_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("safetensors.torch.save", None)  # which would hold the file in memory
    written = unet.UNetFiles.of(unet.Weights({"model.x": torch.ones(9)}, None, 1, 1), tmp_path, write=True).checkpoint
    (tmp_path / "other").touch()
    assert written.stat().st_mode == (tmp_path / "other").stat().st_mode


@pytest.mark.parametrize("run", ["torch", "auto"])
def test_a_motion_model_that_is_read_otherwise_stays_comfyuis(model: Any, run: str) -> None:
    facts = ModelFacts("SD15", 4, motion=(MotionFacts("AnimateDiff", "v1"),))
    with pytest.raises(unet.Unavailable, match="v1 for AnimateDiff-Evolved, and v3 here"):
        unet.make_runner(model, facts, DetailerSettings(run=run))
