"""Exported graphs in onnxruntime against the torch runners of the same files, which know nothing of graphs."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
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

onnx = pytest.importorskip("onnx")
pytestmark = needs_onnx

OUTPUTS: dict[Component, str] = {"unet": "eps", "vae_encoder": "latents", "vae_decoder": "pixels"}
TOLERANCES = {"fp32": 1e-5, "fp16": 1e-2}
PLAIN = UNetVariant()
CONTROLLED = UNetVariant(controlnet=True)
ALL_INPUTS = UNetVariant(controlnet=True, frame_prompts=True)

both_precisions = pytest.mark.parametrize("precision", ["fp32", "fp16"])
every_unet = pytest.mark.parametrize(
    ("motion", "variant"),
    [
        pytest.param("v1", CONTROLLED, id="v1-controlnet"),
        pytest.param("v2", PLAIN, id="v2"),
        pytest.param(None, ALL_INPUTS, id="still-all_inputs"),
    ],
)
Exporter = Callable[..., tuple[Any, Graph]]


@pytest.fixture(scope="module")
def exported(small: Path, tmp_path_factory: pytest.TempPathFactory) -> Exporter:
    """The module and the graph of a component, exported once."""

    @cache
    def export(
        component: Component, precision: Precision, motion: str | None = None, variant: UNetVariant = PLAIN
    ) -> tuple[Any, Graph]:
        module = module_of(small, component, precision, motion, variant)
        return module, export_graph(module, tmp_path_factory.mktemp(component), component, OUTPUTS[component])

    return export


def module_of(
    folder: Path, component: Component, precision: Precision, motion: str | None = None, variant: UNetVariant = PLAIN
) -> Any:
    files = ModelFiles(folder / "sd15", motion and folder / f"mm_{motion}.safetensors")
    return graph_module(Job("", files, Identity(Source(component, {}, precision), Target("", "", ""), []), variant))


def in_torch(folder: Path, motion: str | None = None) -> adt.BasicPipe:
    """The runners that the graphs must agree with, in float32."""
    module = motion and folder / f"mm_{motion}.safetensors"
    return adt.load_pipe(folder / "sd15", motion_module=module, device="cpu", dtype="float32", backend="torch")


def sizes(b: int = 1, f: int = 1, h: int = 8, w: int = 8, n: int = 77, t: int = 1) -> dict[str, int]:
    return {"b": b, "f": f, "h": h, "w": w, "n": n, "t": t}


def assert_near(graph: Graph, reference: Callable[..., Tensor], cases: Sequence[dict[str, int]], bound: float) -> None:
    distances = compare_with_torch(graph, reference, cases)
    assert max(distances) <= bound, list(zip(cases, distances, strict=True))


@both_precisions
@every_unet
def test_unet(exported: Exporter, small: Path, motion: str | None, variant: UNetVariant, precision: Precision) -> None:
    _, graph = exported("unet", precision, motion, variant)
    unet = in_torch(small, motion).model.unet

    def reference(latents: Tensor, timestep: Tensor, tokens: Tensor, **residuals: Tensor) -> Tensor:
        added = [residual.flatten(0, 1) for residual in residuals.values()]
        return unet(latents, timestep.item(), tokens, added or None)

    most = unet.positions or 40
    cases = [sizes(b=2, f=3, h=9, w=11), sizes(h=13, n=154), sizes(b=3, f=2, w=10), sizes(f=most)]
    if variant.frame_prompts:
        cases += [sizes(b=2, f=3, h=11, w=9, t=3), sizes(f=most, n=154, t=most)]
    assert_near(graph, reference, cases, TOLERANCES[precision])


@both_precisions
def test_vae(exported: Exporter, small: Path, precision: Precision) -> None:
    cases = [sizes(f=3, h=9, w=11), sizes(f=1, h=13, w=8), sizes(f=17)]
    vae = in_torch(small).vae
    for component, reference in (("vae_encoder", vae.encode), ("vae_decoder", vae.decode)):
        _, graph = exported(component, precision)
        (name,) = graph.inputs
        assert_near(graph, lambda _name=name, _of=reference, **x: _of(x[_name]), cases, TOLERANCES[precision])


def initialisers(graph: Graph) -> dict[str, Any]:
    return {tensor.name: tensor for tensor in onnx.load(graph.path, load_external_data=False).graph.initializer}


@every_unet
def test_weights_bear_the_modules_names(exported: Exporter, motion: str | None, variant: UNetVariant) -> None:
    """With their values in the one file beside the graph, so that they can be found again. Of equal tensors, such as
    the position tables of motion modules, the exporter keeps one."""
    module, graph = exported("unet", "fp16", motion, variant)
    tensors, found = module.state_dict(), initialisers(graph)
    assert set(found) == set(graph.weight_names) <= set(tensors)
    for name in tensors.keys() - found.keys():
        assert name.endswith("pos_embed.pe")
        assert any(torch.equal(tensors[name], tensors[kept]) for kept in found if kept.endswith("pos_embed.pe"))
    stored = graph.weights.read_bytes()
    for name, tensor in found.items():
        place = {entry.key: entry.value for entry in tensor.external_data}
        assert place["location"] == graph.weights.name
        values = np.frombuffer(stored, np.float16, int(place["length"]) // 2, int(place["offset"]))
        assert np.array_equal(values, tensors[name].flatten().numpy()), name


@pytest.mark.parametrize("component", ["vae_encoder", "vae_decoder"])
def test_vae_weights_bear_their_names(exported: Exporter, component: Component) -> None:
    """Of its own half: the other is not in the graph."""
    module, graph = exported(component, "fp32")
    halves = {
        "vae_encoder": ("vae.encoder.", "vae.quant_conv."),
        "vae_decoder": ("vae.decoder.", "vae.post_quant_conv."),
    }
    assert initialisers(graph).keys() == {key for key in module.state_dict() if key.startswith(halves[component])}


def test_a_graph_is_two_files_and_always_the_same(exported: Exporter, small: Path, tmp_path: Path) -> None:
    _, graph = exported("vae_decoder", "fp32")
    again = export_graph(module_of(small, "vae_decoder", "fp32"), tmp_path, "vae_decoder", "pixels")
    assert sorted(tmp_path.iterdir()) == sorted([again.path, again.weights])
    assert again.path.read_bytes() == graph.path.read_bytes()
    assert again.weights.read_bytes() == graph.weights.read_bytes()
    assert again.path.stat().st_size < again.weights.stat().st_size / 4


def test_the_digest_is_of_the_graph_alone(exported: Exporter, small: Path, tmp_path: Path) -> None:
    """Another weight leaves it; another type, another half of the VAE or other inputs change it."""
    _, graph = exported("vae_decoder", "fp32")
    module = module_of(small, "vae_decoder", "fp32")
    module.vae.decoder.conv_in.weight.data[0, 0, 0, 0] += 1
    changed = export_graph(module, tmp_path, "vae_decoder", "pixels")
    assert changed.weights.read_bytes() != graph.weights.read_bytes()
    assert changed.sha256 == graph.sha256
    others = [exported("vae_decoder", "fp16"), exported("vae_encoder", "fp32"), exported("unet", "fp16", "v2", PLAIN)]
    assert len({graph.sha256, *(other.sha256 for _, other in others)}) == 4


def with_changed_weight(graph: Graph, folder: Path, name: str, change: Callable[[Any], Any]) -> Graph:
    """A copy of the graph in which ``change`` was done to one float32 weight."""
    for file in (graph.path, graph.weights):
        shutil.copy(file, folder)
    place = {entry.key: entry.value for entry in initialisers(graph)[name].external_data}
    stored = np.memmap(folder / graph.weights.name, np.float32, "r+", int(place["offset"]), int(place["length"]) // 4)
    stored[:] = change(stored)
    stored.flush()
    return replace(graph, path=folder / graph.path.name, weights=folder / graph.weights.name)


@pytest.mark.parametrize(
    ("component", "variant", "name", "change"),
    [
        ("unet", ALL_INPUTS, "unet.mid_block.attentions.0.transformer_blocks.0.attn1.to_q.weight", np.negative),
        ("unet", ALL_INPUTS, "unet.conv_out.bias", lambda bias: bias + 1e-3),
        ("vae_decoder", PLAIN, "vae.decoder.mid_block.attentions.0.to_k.weight", np.negative),
        ("vae_decoder", PLAIN, "vae.decoder.conv_out.bias", lambda bias: bias * np.nan),
    ],
)
def test_a_wrong_graph_is_found_out(
    exported: Exporter,
    tmp_path: Path,
    component: Component,
    variant: UNetVariant,
    name: str,
    change: Callable[..., Any],
) -> None:
    module, graph = exported(component, "fp32", None, variant)

    def check(graph: Graph) -> None:
        check_graph(graph, lambda **inputs: module(*inputs.values()), [sizes(b=2, f=2, h=9, w=11, t=2)], "fp32")

    check(graph)
    wrong = with_changed_weight(graph, tmp_path, name, change)
    with pytest.raises(
        EngineError, match=rf"{wrong.path.name} is (inf|\d\.\de-0\d) away from torch at .*'h': 9.*1e-05 is allowed"
    ):
        check(wrong)
