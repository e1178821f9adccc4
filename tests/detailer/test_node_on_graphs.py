"""The whole node driven by the exported graphs, against the golden cases: what engines are built from is right, and so
is all that lies between a sampler and an engine."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import animdetail_trt as adt
from animdetail_trt.backends.graph_backend import GraphUNet, GraphVae
from animdetail_trt.trt.memory import Workspace
from animdetail_trt.trt.onnx_session import OnnxSession
from animdetail_trt.trt.profile import Profile, Range
from animdetail_trt.trt.session import EngineSession
from fake_tensorrt import FakeTensorRT, plan_bytes
from golden_cases import NODE, Case, load_case
from tolerances import assert_frames_match

CASES = sorted(path.stem for path in NODE.glob("*.safetensors"))


@pytest.fixture(scope="module")
def engine_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Every case finds the graphs that an earlier one exported."""
    return tmp_path_factory.mktemp("graphs")


@pytest.fixture(scope="module", autouse=True)
def _load_each_graph_once() -> Iterator[None]:
    """onnxruntime takes four seconds to load a UNet, whatever its size."""
    loaded: dict[Path, Any] = {}
    load = OnnxSession._loaded

    def load_once(session: OnnxSession) -> Any:
        if session.path not in loaded:
            loaded[session.path] = load(session)
        return loaded[session.path]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(OnnxSession, "_loaded", load_once)
        yield


def pipes(case: Case, tiny: Path, engine_dir: Path) -> tuple[adt.BasicPipe, adt.BasicPipe | None]:
    options: dict[str, Any] = {"backend": "onnxruntime", "engine_dir": engine_dir}
    refiner = case.pipe(tiny, "tiny_refiner", "refiner_", **options) if case.settings["refiner"] else None
    return case.pipe(tiny, **options), refiner


def detail(case: Case, tiny: Path, pipe: adt.BasicPipe, refiner: adt.BasicPipe | None) -> Tensor:
    hook = RedTint() if case.settings["hook"] else None
    image, *_ = adt.DetailerForEachPipeForAnimateDiff.doit(
        case.frames, case.controlled_segs(tiny), **case.settings["params"], basic_pipe=pipe, detailer_hook=hook,
        refiner_basic_pipe_opt=refiner,
    )  # fmt: skip
    return image


class RedTint:
    def post_paste(self, frames: Tensor) -> Tensor:
        frames = frames.clone()
        frames[..., 0] = 0.9 * frames[..., 0] + 0.1
        return frames


@pytest.mark.parametrize("name", CASES)
def test_node_on_onnxruntime(name: str, tiny: Path, engine_dir: Path) -> None:
    case = load_case(name)
    assert_frames_match(detail(case, tiny, *pipes(case, tiny, engine_dir)), case.tensors["out.image"])


def on_engines(pipe: adt.BasicPipe, trt: FakeTensorRT, workspace: Workspace) -> adt.BasicPipe:
    """The pipe with its graphs in plans of the imitated TensorRT, all in one workspace."""
    latents = {"h": Range(4, 8, 32), "w": Range(4, 8, 32)}
    unet_axes = {"b": Range(1, 2, 2), "f": Range(1, 16, 32), "n": Range(77, 77, 308)} | latents
    vae_axes = {"f": Range(1, 4, 4)} | latents

    def session(graph: OnnxSession, axes: dict[str, Range]) -> EngineSession:
        named = {dim for dims in graph.inputs.values() for dim in dims}
        profiles = [Profile(axes | ({"t": axes["f"]} if "t" in named else {}))]
        plan = plan_bytes(graph.path, profiles, inputs=graph.inputs)
        return EngineSession(trt, lambda: plan, graph.inputs, profiles, torch.device("cpu"), workspace)

    unet: Any = pipe.model.unet
    sessions = [session(graph, unet_axes) for rung in unet.ladder.rungs for graph in rung.get().sessions]
    runner = GraphUNet(sessions, positions=unet.positions, token_dim=unet.token_dim, device=unet.device)
    vae: Any = pipe.vae
    halves = [[session(graph, vae_axes)] for graph in (*vae.encoders, *vae.decoders)]
    return pipe._replace(model=replace(pipe.model, unet=runner), vae=GraphVae(*halves, device=vae.device))


@pytest.mark.parametrize(
    "name",
    ["basic", "motion_v2_two_segs", "refiner_motion", "controlnet_motion_window"],
)
def test_node_on_engine_sessions(name: str, tiny: Path, engine_dir: Path) -> None:
    case = load_case(name)
    trt, workspace = FakeTensorRT(), Workspace(torch.device("cpu"))
    pipe, refiner = (
        None if pipe is None else on_engines(pipe, trt, workspace) for pipe in pipes(case, tiny, engine_dir)
    )
    assert pipe is not None
    assert_frames_match(detail(case, tiny, pipe, refiner), case.tensors["out.image"])
    assert {call[0] for call in trt.calls} >= {"execute_async_v3", "set_tensor_address"}


def test_graphs_are_exported_once(tiny: Path, engine_dir: Path) -> None:
    case = load_case("basic")
    pipes(case, tiny, engine_dir)
    before = {path.name: path.stat().st_mtime_ns for path in engine_dir.glob("*.onnx")}
    pipes(case, tiny, engine_dir)
    assert {path.name: path.stat().st_mtime_ns for path in engine_dir.glob("*.onnx")} == before
