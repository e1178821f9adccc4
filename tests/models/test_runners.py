"""load_pipe finds the engines that were built for its files, falls back where they do not fit, and says so.

The library is imitated (fake_tensorrt): its plans are the exported graphs.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

import animdetail_trt as adt
from animdetail_trt.backends.graph_backend import GraphUNet
from animdetail_trt.errors import EngineError, UnavailableError
from animdetail_trt.models import engines, runners
from animdetail_trt.models.checkpoint import read_tensors
from animdetail_trt.models.engines import Job, UNetVariant, jobs_for, lora_weights
from animdetail_trt.models.files import ModelFiles
from animdetail_trt.trt import memory
from animdetail_trt.trt.builder import Built
from animdetail_trt.trt.digests import Digests
from animdetail_trt.trt.flavour import Flavour
from animdetail_trt.trt.identity import Target
from animdetail_trt.trt.memory import Workspace, workspace_of
from animdetail_trt.trt.profile import Range
from animdetail_trt.trt.recipe import Recipe
from animdetail_trt.trt.session import EngineSession
from animdetail_trt.trt.store import Store
from fake_tensorrt import FakeTensorRT, plan_bytes

RECIPE = Recipe("fp32", (Range(64, 64, 128),), Range(1, 4, 8), Range(1, 2, 2), Range(77, 77, 154), 2 * 128 * 128)
TOKENS = torch.randn(2, 1, 77, 64, generator=torch.Generator().manual_seed(1))


def latents(b: int, f: int, h: int, w: int) -> Tensor:
    return torch.randn(b, f, 4, h, w, generator=torch.Generator().manual_seed(2))


class Library(FakeTensorRT):
    __version__ = "11.4"


@pytest.fixture
def library(monkeypatch: pytest.MonkeyPatch) -> Iterator[Library]:
    """A TensorRT that builds and runs on a "GPU" which is the CPU."""
    library = Library()
    flavour = Flavour("tensorrt", library)
    workspace = Workspace(torch.device("cpu"))

    def build_plan(flavour: Flavour, graph: Any, profiles: Any, capability: str, path: Path, **options: Any) -> Built:
        path.write_bytes(plan_bytes(graph.path, profiles, inputs=graph.inputs, refittable=options["refittable"]))
        return Built({}, [1], graph.weight_bytes, 0.0)

    monkeypatch.setattr(engines, "build_plan", build_plan)
    monkeypatch.setattr(runners, "installed_flavours", lambda: [flavour])
    monkeypatch.setattr(runners, "load_flavour", lambda name: flavour)
    monkeypatch.setattr(runners, "workspace_of", lambda device, budget: workspace)
    monkeypatch.setattr(runners.Runners, "_capability", lambda self: "8.9")
    return library


def jobs(files: ModelFiles, folder: Path, library: Library, variant: UNetVariant) -> Iterator[Job]:
    """The UNet's is the first."""
    return jobs_for(files, Target("tensorrt", library.__version__, "8.9"), RECIPE, Digests(folder), variant=variant)


def build(files: ModelFiles, folder: Path, library: Library, variant: UNetVariant = UNetVariant()) -> None:  # noqa: B008
    for job in jobs(files, folder, library, variant):
        engines.build(job, Store(folder), Flavour("tensorrt", library), check=False)


def load(tiny: Path, folder: Path, **options: Any) -> adt.BasicPipe:
    options = {"device": "cpu", "dtype": "float32", "engine_dir": folder} | options
    return adt.load_pipe(tiny / "tiny_sd15.safetensors", **options)


def far(out: Tensor, expected: Tensor) -> float:
    return float((out - expected).norm() / expected.norm())


def test_engines_are_found_and_the_rest_is_torchs(
    tiny: Path, tmp_path: Path, library: Library, caplog: pytest.LogCaptureFixture
) -> None:
    build(ModelFiles(tiny / "tiny_sd15.safetensors"), tmp_path, library)
    plain = load(tiny, tmp_path, backend="torch")
    with caplog.at_level(logging.INFO, "animdetail_trt"):
        pipe = load(tiny, tmp_path)
    assert [record.getMessage() for record in caplog.records] == [
        "unet: tensorrt fp32", "vae_encoder: tensorrt fp32", "vae_decoder: tensorrt fp32"
    ]  # fmt: skip
    # Five windows in calls of two; the VAE in calls of two frames.
    x = latents(5, 3, 9, 8)
    tokens = TOKENS[:1].expand(5, -1, -1, -1)
    assert far(pipe.model.unet(x, 300.0, tokens), plain.model.unet(x, 300.0, tokens)) < 1e-5
    assert pipe.model.unet.frames_per_call(64, 72) == 2 * 8
    pixels = torch.rand(5, 3, 64, 72) * 2 - 1
    assert far(pipe.vae.encode(pixels), plain.vae.encode(pixels)) < 1e-5
    assert far(pipe.vae.decode(x[0]), plain.vae.decode(x[0])) < 1e-5
    assert pipe.model.unet.name == pipe.vae.name == "the engine"
    assert library.calls

    caplog.clear()
    wide = latents(1, 9, 8, 8)
    assert far(pipe.model.unet(wide, 300.0, TOKENS[:1]), plain.model.unet(wide, 300.0, TOKENS[:1])) < 1e-5
    assert [record.getMessage() for record in caplog.records] == [
        "UNet: torch on cpu instead of the engine: the engine was built for 1 to 8 frames, and this is 9 "
        "(build-engines --frames 1:8:9 widens it)"
    ]
    assert pipe.model.unet.name == "torch on cpu"
    each = TOKENS[:1].expand(-1, 3, -1, -1)
    pipe.model.unet(latents(1, 3, 8, 8), 300.0, each)
    assert "takes one prompt for all frames (build-engines --frame-prompts)" in caplog.text
    assert pipe.vae.frames_per_call(256, 256) >= 1
    assert "built for 64 to 128 pixels high, and this is 256" in caplog.text


def test_an_engine_with_all_inputs_serves_calls_without_them(tiny: Path, tmp_path: Path, library: Library) -> None:
    variant = UNetVariant(controlnet=True, frame_prompts=True)
    build(ModelFiles(tiny / "tiny_sd15.safetensors"), tmp_path, library, variant)
    pipe, plain = load(tiny, tmp_path), load(tiny, tmp_path, backend="torch")
    x = latents(2, 3, 9, 8)
    network = adt.load_controlnet(tiny / "tiny_controlnet.safetensors", device="cpu", dtype="float32")
    residuals = network(x, 300.0, TOKENS, torch.rand(1, 3, 72, 64))
    each = torch.randn(2, 3, 77, 64)
    for tokens, added in ((TOKENS, None), (TOKENS, residuals), (each, None), (each, residuals)):
        expected = plain.model.unet(x, 300.0, tokens, added)
        assert far(pipe.model.unet(x, 300.0, tokens, added), expected) < 1e-5
    assert pipe.model.unet.name == "the engine"


def test_no_engine_is_taken_for_another(
    tiny: Path, tmp_path: Path, library: Library, caplog: pytest.LogCaptureFixture
) -> None:
    build(ModelFiles(tiny / "tiny_sd15.safetensors"), tmp_path, library)
    others: list[dict[str, Any]] = [
        {"loras": [(tiny / "tiny_lora.safetensors", 0.8)]},
        {"motion_module": tiny / "tiny_mm_v2.safetensors"},
        {"dtype": "bfloat16"},
    ]
    for other in others:
        caplog.clear()
        with caplog.at_level(logging.INFO, "animdetail_trt"):
            assert load(tiny, tmp_path, **other).model.unet.name == "torch"
        assert "unet: torch instead of an engine: none is built for these files" in caplog.text
    with pytest.raises(UnavailableError, match="no tensorrt engine of the unet of .*tiny_refiner"):
        runners.Runners(
            ModelFiles(tiny / "tiny_refiner.safetensors"), torch.device("cpu"), torch.float32, "tensorrt", tmp_path
        )._engines("unet")


def test_a_lora_is_put_into_a_refittable_engine(
    tiny: Path, tmp_path: Path, library: Library, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    build(ModelFiles(tiny / "tiny_sd15.safetensors"), tmp_path, library, UNetVariant(refittable=True))
    refittable = runners.Runners._refittable
    monkeypatch.setattr(runners.Runners, "_refittable", lambda *given: refittable(*given) * 2)  # two, of one plan
    reads: list[Any] = []
    monkeypatch.setattr(runners, "lora_weights", lambda *given: reads.append(given) or lora_weights(*given))
    x = latents(2, 3, 9, 8)
    loras = {"loras": [(tiny / "tiny_lora.safetensors", 0.8)]}
    before = load(tiny, tmp_path).model.unet(x, 300.0, TOKENS)
    expected = load(tiny, tmp_path, backend="torch", **loras).model.unet(x, 300.0, TOKENS)
    loads = len(library.called("deserialize_cuda_engine"))
    with caplog.at_level(logging.INFO, "animdetail_trt"):
        pipe = load(tiny, tmp_path, **loras)
        assert reads == []
        out = pipe.model.unet(x, 300.0, TOKENS)
    assert far(out, expected) < 1e-5
    assert far(out, before) > 1e-2
    assert "the LoRAs are put into the engine" in caplog.text
    assert "the engine took " in caplog.text
    assert len(library.called("deserialize_cuda_engine")) == loads + 1, "the one that is used"
    sessions = pipe.model.unet.ladder.rungs[0].get().sessions
    second = GraphUNet(sessions[1:], positions=None, token_dim=64, device=torch.device("cpu"))
    assert torch.equal(second(x, 300.0, TOKENS), out)
    assert len(reads) == 1
    assert sessions[0]._weights is sessions[1]._weights
    assert torch.equal(load(tiny, tmp_path).model.unet(x, 300.0, TOKENS), before)


def test_the_files_under_a_lora_are_read_once(tiny: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """And give what a pipe with it is made of."""
    checkpoint, motion = tiny / "tiny_sd15.safetensors", tiny / "tiny_mm_v2.safetensors"
    files = ModelFiles(checkpoint, motion, loras=[(tiny / "tiny_lora.safetensors", 0.8)])
    expected = {f"unet.{key}": tensor for key, tensor in files.read_parts().unet.items()}
    reads: list[Any] = []
    for module in ("files", "motion"):
        monkeypatch.setattr(
            f"animdetail_trt.models.{module}.read_tensors", lambda path: reads.append(path) or read_tensors(path)
        )
    base, changed = lora_weights(files, "fp32")
    assert sorted(reads) == sorted([checkpoint, motion])
    assert changed.keys() == {key for key in expected if not torch.equal(expected[key], base[key])} != set()
    assert all(torch.equal(tensor, expected[key]) for key, tensor in changed.items())


def test_a_damaged_engine_ends_in_torch(
    tiny: Path, tmp_path: Path, library: Library, caplog: pytest.LogCaptureFixture
) -> None:
    build(ModelFiles(tiny / "tiny_sd15.safetensors"), tmp_path, library)
    (plan,) = tmp_path.glob("unet-*.plan")
    plan.write_bytes(plan.read_bytes()[:-1])
    pipe = load(tiny, tmp_path)
    x = latents(1, 2, 8, 8)
    expected = load(tiny, tmp_path, backend="torch").model.unet(x, 1.0, TOKENS[:1])
    with caplog.at_level(logging.WARNING, "animdetail_trt"):
        assert far(pipe.model.unet(x, 1.0, TOKENS[:1]), expected) < 1e-5
    assert "is damaged" in caplog.text
    assert list((tmp_path / "set-aside").rglob("unet-*.plan"))


def test_bindings_that_are_not_as_expected_end_in_torch(
    tiny: Path, tmp_path: Path, library: Library, caplog: pytest.LogCaptureFixture
) -> None:
    build(ModelFiles(tiny / "tiny_sd15.safetensors"), tmp_path, library)
    del library.TensorIOMode  # type: ignore[attr-defined]
    pipe, x = load(tiny, tmp_path), latents(1, 2, 8, 8)
    expected = load(tiny, tmp_path, backend="torch").model.unet(x, 1.0, TOKENS[:1])
    with caplog.at_level(logging.WARNING, "animdetail_trt"):
        assert far(pipe.model.unet(x, 1.0, TOKENS[:1]), expected) < 1e-5
    assert "failed unexpectedly, AttributeError: 'Library' object has no attribute 'TensorIOMode'" in caplog.text


def test_a_refiner_without_a_vae_runs_in_engines(
    tiny: Path, tmp_path: Path, library: Library, caplog: pytest.LogCaptureFixture
) -> None:
    checkpoint = tmp_path / "unet.safetensors"
    whole = load_file(tiny / "tiny_sd15.safetensors")
    save_file({key: value for key, value in whole.items() if key.startswith("model.")}, checkpoint)
    base = load(tiny, tmp_path, backend="torch")
    options: dict[str, Any] = {"vae": base.vae, "loras": [(tiny / "tiny_lora.safetensors", 0.8)]}
    options |= {"device": "cpu", "dtype": "float32", "engine_dir": tmp_path}
    x = latents(2, 3, 9, 8)
    expected = adt.load_pipe(checkpoint, backend="torch", **options).model.unet(x, 300.0, TOKENS)
    exported = adt.load_pipe(checkpoint, backend="onnxruntime", **options)
    assert far(exported.model.unet(x, 300.0, TOKENS), expected) < 1e-5

    job, *_ = jobs(ModelFiles(checkpoint), tmp_path, library, UNetVariant(refittable=True))
    engines.build(job, Store(tmp_path), Flavour("tensorrt", library), check=False)
    pipe = adt.load_pipe(checkpoint, **options)
    with caplog.at_level(logging.INFO, "animdetail_trt"):
        assert far(pipe.model.unet(x, 300.0, TOKENS), expected) < 1e-5
    assert pipe.model.unet.name == "the engine"
    assert "the engine took " in caplog.text


def test_the_last_pipe_that_is_loaded_sets_the_budget(
    tiny: Path, tmp_path: Path, library: Library, monkeypatch: pytest.MonkeyPatch
) -> None:
    build(ModelFiles(tiny / "tiny_sd15.safetensors"), tmp_path, library)
    monkeypatch.setattr(memory, "_workspaces", {})
    monkeypatch.setattr(runners, "workspace_of", workspace_of)
    first, second = (load(tiny, tmp_path, vram_budget=budget) for budget in (2_000_000_000, 1_000_000_000))
    residency = workspace_of(torch.device("cpu"), None).residency
    assert residency.budget == 1_000_000_000
    for pipe in (second, first, load(tiny, tmp_path)):
        pipe.model.unet(latents(1, 2, 8, 8), 1.0, TOKENS[:1])
        assert pipe.model.unet.name == "the engine"
        assert residency.budget == 1_000_000_000


def test_an_engine_that_fails_leaves_its_memory_to_torch(
    tiny: Path, tmp_path: Path, library: Library, monkeypatch: pytest.MonkeyPatch
) -> None:
    build(ModelFiles(tiny / "tiny_sd15.safetensors"), tmp_path, library)
    pipe, x = load(tiny, tmp_path), latents(1, 2, 8, 8)
    pipe.model.unet(x, 1.0, TOKENS[:1])
    pipe.vae.decode(pipe.vae.encode(torch.zeros(1, 3, 64, 64)))
    assert len(library.alive) == 3

    def fails(session: EngineSession, inputs: Any) -> Tensor:
        raise EngineError("it cannot run")

    monkeypatch.setattr(EngineSession, "run", fails)
    pipe.model.unet(x, 1.0, TOKENS[:1])
    assert len(library.alive) == 2
    pipe.vae.decode(x[0])
    assert len(library.alive) == 0, "the encoder goes with the decoder"
