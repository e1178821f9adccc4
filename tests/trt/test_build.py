"""Engines built for real, by TensorRT for RTX, which needs no GPU to build."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from small_models import needs_rtx

from animdetail_trt.errors import EngineError
from animdetail_trt.models import engines
from animdetail_trt.models.engines import Job, build, jobs_for
from animdetail_trt.models.files import ModelFiles
from animdetail_trt.trt.builder import Built
from animdetail_trt.trt.digests import Digests
from animdetail_trt.trt.flavour import Flavour, load_flavour
from animdetail_trt.trt.identity import Component, Precision, Target
from animdetail_trt.trt.layers import parse_layers, summary_of
from animdetail_trt.trt.profile import Profile, Range
from animdetail_trt.trt.recipe import parse_range, parse_sides, read_recipe
from animdetail_trt.trt.sidecar import Entry
from animdetail_trt.trt.store import Store

# What test_plans.py looks at is built while these and the next tests run.
pytestmark = [needs_rtx, pytest.mark.usefixtures("builds")]


@pytest.fixture
def rtx() -> Flavour:
    return load_flavour("tensorrt_rtx")


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "engines")


def job_for(component: Component, files: ModelFiles, rtx: Flavour, store: Store, precision: Precision = "fp16") -> Job:
    """As the command line makes it, for 64 to 128 pixels and 1 to 8 frames."""
    recipe = read_recipe().changed(precision, [parse_sides("64:64:128")], parse_range("1:4:8"))
    jobs = jobs_for(files, Target(rtx.name, rtx.version, "8.9"), recipe, Digests(store.folder))
    return next(job for job in jobs if job.component == component)


def test_a_profile_takes_the_memory_of_its_sizes(small: Path, rtx: Flavour, store: Store) -> None:
    job = job_for("vae_encoder", ModelFiles(small / "sd15"), rtx, store)
    profiles = [
        Profile({"f": Range(1, 1, 2), "h": latents, "w": latents}) for latents in (Range(8, 8, 16), Range(8, 16, 32))
    ]
    entry, _ = build(replace(job, identity=replace(job.identity, profiles=profiles)), store, rtx)
    smaller, larger = entry.about["activation_bytes"]
    assert 2 * smaller < larger < 5 * smaller
    assert entry.about["layers"]["unfused_softmax"] == ["/encoder/mid_block/attentions.0/Softmax"]


def test_float32(small: Path, rtx: Flavour, store: Store) -> None:
    """The VAE is float32 where the UNet is float16, too, but multiplied in TensorFloat-32: another engine."""
    files = ModelFiles(small / "sd15")
    mixed, whole = (job_for("vae_decoder", files, rtx, store, precision) for precision in ("fp16", "fp32"))
    assert [job.identity.source.precision for job in (mixed, whole)] == ["fp32", "fp32"]
    assert [job.identity.source.settings for job in (mixed, whole)] == [{"tf32": True}, {"tf32": False}]
    entry, _ = build(whole, store, rtx)
    assert store.verify(entry) is None
    assert store.get(mixed.identity) is None


def test_a_damaged_plan_is_set_aside_and_built_again(small: Path, rtx: Flavour, store: Store) -> None:
    command = ["animdetail-trt", "build-engines", "--checkpoint", "a folder"]
    job = job_for("vae_encoder", ModelFiles(small / "sd15"), rtx, store)
    entry, built = build(job, store, rtx, command=command)
    assert built
    with entry.plan.open("r+b") as file:
        file.seek(entry.size // 2)
        byte = file.read(1)
        file.seek(-1, 1)
        file.write(bytes([byte[0] ^ 1]))
    assert store.verify(entry) is not None
    again, built = build(job, store, rtx, command=command)
    assert built
    assert again.name == entry.name
    assert store.verify(again) is None
    (aside,) = (store.folder / "set-aside").iterdir()
    assert json.loads((aside / entry.sidecar.name).read_text())["set_aside"]["reason"].startswith("the bytes of")
    again.plan.write_bytes(b"")
    with pytest.raises(EngineError, match="Build it again: animdetail-trt build-engines --checkpoint 'a folder'"):
        store.read(again)


def test_a_lora_is_an_engine_of_its_own(
    small: Path, rtx: Flavour, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The plans here are the weights that the builder was given."""

    def write_weights(flavour: Flavour, graph: Any, profiles: Any, capability: str, path: Path, **_: Any) -> Built:
        path.write_bytes(graph.weights.read_bytes())
        return Built({}, [1], 1, 0.0)

    monkeypatch.setattr(engines, "build_plan", write_weights)
    lora = small / "lora.safetensors"

    def entry_of(**options: Any) -> Entry:
        job = job_for("unet", ModelFiles(small / "sd15", **options), rtx, store)
        return build(job, store, rtx, check=False)[0]

    plain, full = entry_of(), entry_of(loras=[(lora, 1.0)])
    assert plain.name != full.name
    assert plain.sha256 != full.sha256
    assert sorted(entry.name for entry in store.entries()) == sorted([plain.name, full.name])
    assert all(store.verify(entry) is None for entry in store.entries())
    assert full.about["loras"] == [[str(lora), 1.0]]
    half = job_for("unet", ModelFiles(small / "sd15", loras=[(lora, 0.5)]), rtx, store).identity
    assert [(role, strength) for role, _, strength in half.source.loras] == [("lora", 0.5)]
    assert half.name not in (plain.name, full.name)
    vaes = [job_for("vae_decoder", ModelFiles(small / "sd15", loras=loras), rtx, store) for loras in ([], [(lora, 1)])]
    assert vaes[0].identity == vaes[1].identity


def kernel(name: str, *sources: str) -> str:
    told = "".join(f"[ONNX Layer: {source}]" for source in sources)
    return f"Name: {name}, LayerType: kgen, Inputs: [], TacticName: {name}_0x1, StreamId: 0, Metadata: {told}"


def test_a_softmax_is_fused_where_a_kernel_for_attention_computes_it() -> None:
    """Copies that pad heads bear its name too; what is fused in one profile may stand alone in another."""
    layers = [
        kernel("__myl_MoveReplConc_myl0_3", "/a/MatMul", "/a/Softmax"),
        kernel("_gemm_mha_v2_myl0_4", "/a/MatMul", "/a/Softmax", "/a/MatMul_1"),
        kernel("__myl_SlicMove_myl0_5", "/a/Softmax"),
        kernel("_gemm_mha_v2_myl0_6", "/b/MatMul", "/b/Softmax", "/b/MatMul_1"),
        kernel("_gemm_mha_v2_myl1_4", "/a/MatMul", "/a/Softmax", "/a/MatMul_1"),
        kernel("__myl_MaxrSubExpSumDiv_myl1_5", "/b/Softmax"),
    ]
    found = summary_of(parse_layers("Layers:\n" + "\n".join(layers)))
    assert found == {"kinds": {"kgen": 6}, "fused_attention": 3, "unfused_softmax": ["/b/Softmax"]}
