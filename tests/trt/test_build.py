"""Engines built for real, by TensorRT for RTX, which needs no GPU to build."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from small_models import needs_rtx

from animdetail_trt.errors import EngineError
from animdetail_trt.models import engines
from animdetail_trt.models.engines import Job, UNetVariant, build, graph_module, jobs_for
from animdetail_trt.models.files import ModelFiles
from animdetail_trt.trt.builder import Built
from animdetail_trt.trt.digests import Digests
from animdetail_trt.trt.flavour import Flavour, load_flavour
from animdetail_trt.trt.identity import Component, Precision, Target
from animdetail_trt.trt.layers import parse_layers, summary_of
from animdetail_trt.trt.profile import Range
from animdetail_trt.trt.recipe import parse_range, parse_sides, read_recipe
from animdetail_trt.trt.sidecar import Entry
from animdetail_trt.trt.store import Store
from conftest import Builds, Outcome

pytestmark = needs_rtx


@pytest.fixture
def rtx() -> Flavour:
    return load_flavour("tensorrt_rtx")


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "engines")


def job_for(
    component: Component,
    files: ModelFiles,
    rtx: Flavour,
    store: Store,
    *sizes: str,
    frames: str = "1:4:8",
    precision: Precision = "fp16",
    variant: UNetVariant = UNetVariant(),
) -> Job:
    """As the command line makes it."""
    recipe = read_recipe().changed(precision, [parse_sides(size) for size in sizes], parse_range(frames))
    target = Target(rtx.name, rtx.version, "8.9")
    jobs = jobs_for(files, target, recipe, Digests(store.folder), variant=variant)
    return next(job for job in jobs if job.component == component)


# The cheap ones come first: meanwhile the fixture's processes build.


def test_profiles_take_the_memory_of_their_sizes(small: Path, builds: Builds, rtx: Flavour, store: Store) -> None:
    job = job_for("vae_encoder", ModelFiles(small / "sd15"), rtx, store, "128:128:256", "64:64:128")
    entry, _ = build(job, store, rtx)
    assert [profile.axes["h"] for profile in entry.profiles] == [Range(8, 8, 16), Range(16, 16, 32)]
    smaller, larger = entry.about["activation_bytes"]
    assert 0 < smaller < larger
    assert entry.about["layers"]["unfused_softmax"] == ["/encoder/mid_block/attentions.0/Softmax"]


def test_a_damaged_plan_is_set_aside_and_built_again(small: Path, rtx: Flavour, store: Store) -> None:
    command = ["animdetail-trt", "build-engines", "--checkpoint", "a folder"]
    job = job_for("vae_encoder", ModelFiles(small / "sd15"), rtx, store, "64")
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
        job = job_for("unet", ModelFiles(small / "sd15", **options), rtx, store, "64")
        return build(job, store, rtx, check=False)[0]

    plain, full, half = entry_of(), entry_of(loras=[(lora, 1.0)]), entry_of(loras=[(lora, 0.5)])
    assert len({plain.name, full.name, half.name}) == len({plain.sha256, full.sha256, half.sha256}) == 3
    assert sorted(entry.name for entry in store.entries()) == sorted([plain.name, full.name, half.name])
    assert all(store.verify(entry) is None for entry in store.entries())
    assert full.about["loras"] == [[str(lora), 1.0]]
    assert [(role, strength) for role, _, strength in half.identity.source.loras] == [("lora", 0.5)]
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


def entries_of(outcome: Outcome) -> list[Entry]:
    """The engines that a command line says it made or found, in order."""
    assert outcome.code == 0, outcome.err
    plans = [Path(line.partition(":")[0]) for line in outcome.out.splitlines()]
    found = {entry.plan: entry for entry in Store(plans[0].parent).entries()}
    return [found[plan] for plan in plans]


def attentions_in(files: ModelFiles, entry: Entry) -> int:
    source = entry.identity.source
    module = graph_module(Job("", files, entry.identity, UNetVariant(bool((source.settings or {})["controlnet"]))))
    return sum(hasattr(layer, "to_q") for layer in module.modules())


def assert_attention_is_fused(entry: Entry, files: ModelFiles) -> None:
    layers = entry.about["layers"]
    assert layers["unfused_softmax"] == []
    assert layers["fused_attention"] == attentions_in(files, entry) * len(entry.profiles)


def test_attention_is_fused(builds: Builds, small: Path) -> None:
    unet, *vae, refiner = entries_of(builds.v2.outcome)
    assert_attention_is_fused(unet, ModelFiles(small / "sd15", small / "mm_v2.safetensors"))
    assert_attention_is_fused(refiner, ModelFiles(small / "refiner"))
    assert "not fused" not in builds.v2.outcome.told, "the VAE's one attention is known"
    assert [entry.about["layers"]["unfused_softmax"] for entry in vae] == [
        ["/encoder/mid_block/attentions.0/Softmax"],
        ["/decoder/mid_block/attentions.0/Softmax"],
    ]


def test_attention_is_fused_with_controlnet(builds: Builds, small: Path) -> None:
    unet, *_ = entries_of(builds.v1.outcome)
    assert_attention_is_fused(unet, ModelFiles(small / "sd15", small / "mm_v1.safetensors"))
    residuals = {name: dims for name, dims in unet.about["inputs"].items() if name.startswith("residual_")}
    assert len(residuals) == 9
    (profile,) = unet.profiles
    assert profile.shapes(residuals["residual_00"]) == ((1, 1, 96, 8, 8), (2, 4, 96, 8, 8), (2, 8, 96, 16, 16))
    assert profile.shapes(residuals["residual_08"]) == ((1, 1, 96, 1, 1), (2, 4, 96, 1, 1), (2, 8, 96, 2, 2))


def test_float32_is_built_without_complaint(builds: Builds) -> None:
    """TensorRT fuses no attention there, which is no news."""
    unet, encoder, _ = entries_of(builds.still.outcome)
    assert unet.about["layers"]["fused_attention"] == 0
    assert "warning" not in builds.still.outcome.told
    assert encoder.identity.source.settings == {"tf32": False}


def test_small_heads_are_warned_of(builds: Builds) -> None:
    """The golden checkpoints' heads have 4 and 8 channels."""
    unet, *vae = entries_of(builds.tiny[0].outcome)
    assert len(vae) == 2
    softmaxes = unet.about["layers"]["unfused_softmax"]
    assert len(softmaxes) == 32
    assert (
        f"warning: UNet of tiny_sd15.safetensors: {len(softmaxes)} attention layers are not fused, "
        f"the first of them {softmaxes[0]}" in builds.tiny[0].outcome.told
    )


def test_every_engine_is_whole_and_says_what_it_is(builds: Builds, small: Path) -> None:
    commands = builds.v2, builds.v1, builds.still
    made = {entry.name: entry for command in commands for entry in entries_of(command.outcome)}
    store = Store(builds.folder)
    assert [entry.name for entry in store.entries()] == sorted(made)
    assert all(store.verify(entry) is None for entry in made.values())
    assert not list(builds.folder.glob(".partial*"))

    unet = entries_of(builds.v2.outcome)[0]
    data = json.loads(unet.sidecar.read_text())
    source, about = data["identity"]["source"], data["about"]
    assert (source["component"], source["precision"]) == ("unet", "fp16")
    assert source["weights"].keys() == about["files"].keys() == {"checkpoint", "motion_module"}
    assert data["identity"]["target"] == {
        "flavour": "tensorrt_rtx",
        "version": load_flavour("tensorrt_rtx").version,
        "compute_capability": "8.9",
    }
    assert data["identity"]["profiles"] == [
        {"b": [1, 2, 2], "f": [1, 4, 8], "h": [8, 8, 16], "w": [8, 8, 16], "n": [77, 77, 308]}
    ]
    assert about["title"] == "UNet of sd15 with mm_v2.safetensors"
    assert about["files"]["motion_module"] == str(small / "mm_v2.safetensors")
    assert about["command"].startswith("animdetail-trt build-engines --checkpoint ")
    assert about["inputs"] == {"latents": ["b", "f", 4, "h", "w"], "timestep": [1], "tokens": ["b", 1, "n", 96]}
    assert about["output"] == "eps"
    assert re.fullmatch(r"[0-9a-f]{64}", about["graph_sha256"])
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d[+-]\d{4}", about["built"])
    assert 17e6 < about["weights_bytes"] < 19e6
    assert 20e6 < about["activation_bytes"][0] < 27e6
    assert about["build_s"] > 0
    assert about["versions"].keys() >= {"animdetail_trt", "torch", "diffusers"}


def test_what_is_built_is_not_built_again(
    builds: Builds, run: Callable[..., Outcome], monkeypatch: pytest.MonkeyPatch
) -> None:
    made = entries_of(builds.v2.outcome)
    times = [entry.plan.stat().st_mtime_ns for entry in made]
    monkeypatch.setattr(engines, "build_plan", None)
    monkeypatch.setattr(engines, "export_graph", None)
    again = run(*builds.v2.argv)
    assert [entry.name for entry in entries_of(again)] == [entry.name for entry in made]
    assert all(re.search(r": was there, \d+\.\d MB$", line) for line in again.out.splitlines())
    assert [entry.plan.stat().st_mtime_ns for entry in made] == times


def test_a_dry_run_names_what_is_then_built(builds: Builds, run: Callable[..., Outcome], tmp_path: Path) -> None:
    made = entries_of(builds.v1.outcome)
    elsewhere = tmp_path / "none"
    dry = run(*builds.v1.argv, "--engine-dir", elsewhere, "--dry-run")
    assert dry.code == 0
    told = re.findall(r"^(.+): (\w+-fp\d\d-[0-9a-f]{16}): about (\d+\.\d) MB, (\d+) s$", dry.out, re.MULTILINE)
    assert [name for _, name, *_ in told] == [entry.name for entry in made]
    assert told[0][0] == "UNet of sd15 with mm_v1.safetensors"
    weights = [entry.about["weights_bytes"] / 1e6 for entry in made]
    assert [float(size) for _, _, size, _ in told] == pytest.approx(weights, rel=0.05, abs=0.1)
    assert re.search(rf"compute capability 8.9, in {re.escape(str(elsewhere))}; \d+ (s|min) in all$", dry.out.strip())
    assert not list(tmp_path.rglob("*.plan"))
    assert run(*builds.v1.argv, "--dry-run").out.count(": is there\n") == len(made)


def test_the_engines_commands_know_them(builds: Builds, run: Callable[..., Outcome]) -> None:
    made = entries_of(builds.v2.outcome)
    folder = ("--engine-dir", builds.folder)
    listed = run("engines", "list", *folder)
    assert listed.code == 0
    assert run("engines", "verify", *folder).code == 0
    inspected = run("engines", "inspect", made[0].name, *folder)
    assert inspected.code == 0, inspected.err
    assert "mm_v2" in inspected.out
