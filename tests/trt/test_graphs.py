"""Exported graphs in onnxruntime against the torch runners of the same files, which know nothing of graphs."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from small_models import needs_onnx
from torch import Tensor

import animdetail_trt as adt
from animdetail_trt.errors import EngineError
from animdetail_trt.models.engines import Job, UNetVariant, graph_module
from animdetail_trt.models.files import ModelFiles
from animdetail_trt.trt.export import Graph, check_graph, compare_with_torch, export_graph
from animdetail_trt.trt.identity import Component, Identity, Precision, Source, Target

pytestmark = needs_onnx

OUTPUTS: dict[Component, str] = {"unet": "eps", "vae_encoder": "latents", "vae_decoder": "pixels"}
TOLERANCES = {"fp32": 1e-5, "fp16": 1e-2}

PLAIN = UNetVariant()
CONTROLLED = UNetVariant(controlnet=True)
FRAME_PROMPTS = UNetVariant(frame_prompts=True)
ALL_INPUTS = UNetVariant(controlnet=True, frame_prompts=True)


def job_for(
    folder: Path, component: Component, motion: str | None, precision: Precision, variant: UNetVariant = PLAIN
) -> Job:
    files = ModelFiles(folder / "sd15", motion and folder / f"mm_{motion}.safetensors")
    return Job("", files, Identity(Source(component, {}, precision), Target("", "", ""), []), variant)


def export(job: Job, folder: Path) -> tuple[Any, Graph]:
    module = graph_module(job)
    return module, export_graph(module, folder, job.component, OUTPUTS[job.component])


def sizes(b: int = 1, f: int = 1, h: int = 8, w: int = 8, n: int = 77, t: int = 1) -> dict[str, int]:
    return {"b": b, "f": f, "h": h, "w": w, "n": n, "t": t}


def unet_reference(pipe: adt.BasicPipe) -> Callable[..., Tensor]:
    def call(latents: Tensor, timestep: Tensor, tokens: Tensor, **residuals: Tensor) -> Tensor:
        added = [residual.flatten(0, 1) for residual in residuals.values()] or None
        return pipe.model.unet(latents, timestep.item(), tokens, added)

    return call


def assert_near(graph: Graph, reference: Callable[..., Tensor], cases: Sequence[dict[str, int]], bound: float) -> None:
    distances = compare_with_torch(graph, reference, cases)
    assert max(distances) <= bound, list(zip(cases, distances, strict=True))


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
@pytest.mark.parametrize(
    ("motion", "most_frames", "variant"),
    [
        pytest.param("v1", 24, CONTROLLED, id="v1-controlnet"),
        pytest.param("v2", 32, PLAIN, id="v2"),
        pytest.param("v3", 32, FRAME_PROMPTS, id="v3-frame_prompts"),
        pytest.param(None, 40, ALL_INPUTS, id="still-all_inputs"),
    ],
)
def test_unet(
    small: Path, tmp_path: Path, motion: str | None, most_frames: int, variant: UNetVariant, precision: Precision
) -> None:
    if motion == "v3" and precision == "fp16":
        pytest.skip("v2's layers but one, and ten seconds to load")
    _, graph = export(job_for(small, "unet", motion, precision, variant), tmp_path)
    pipe = adt.load_pipe(
        small / "sd15",
        motion_module=motion and small / f"mm_{motion}.safetensors",
        device="cpu",
        dtype="float32",
        backend="torch",
    )
    cases = [
        sizes(b=2, f=3, h=9, w=11),
        sizes(f=1, h=13, w=8, n=154),
        sizes(b=2, f=2, h=8, w=10),
        sizes(f=most_frames),
    ]
    if variant.frame_prompts:
        cases += [sizes(b=2, f=3, h=11, w=9, t=3), sizes(f=1, t=1, n=154), sizes(f=most_frames, t=most_frames)]
    assert_near(graph, unet_reference(pipe), cases, TOLERANCES[precision])
