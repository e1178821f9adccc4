"""What the command line built: engines for a GPU that is not there."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path

import pytest
from small_builds import Builds
from small_models import needs_rtx

from animdetail_trt.models import engines
from animdetail_trt.models.engines import Job, UNetVariant, graph_module
from animdetail_trt.models.files import ModelFiles
from animdetail_trt.trt.flavour import load_flavour
from animdetail_trt.trt.sidecar import Entry
from animdetail_trt.trt.store import Store
from outcome import Outcome

pytestmark = needs_rtx


def attentions_in(files: ModelFiles, entry: Entry) -> int:
    source = entry.identity.source
    module = graph_module(Job("", files, entry.identity, UNetVariant(bool((source.settings or {})["controlnet"]))))
    return sum(hasattr(layer, "to_q") for layer in module.modules())


def assert_attention_is_fused(entry: Entry, files: ModelFiles) -> None:
    layers = entry.about["layers"]
    assert layers["unfused_softmax"] == []
    assert layers["fused_attention"] == attentions_in(files, entry) * len(entry.profiles)


def test_attention_is_fused(builds: Builds, small: Path) -> None:
    unet, *vae, refiner = builds.v2.entries
    assert_attention_is_fused(unet, ModelFiles(small / "sd15", small / "mm_v2.safetensors"))
    assert_attention_is_fused(refiner, ModelFiles(small / "refiner"))
    assert "not fused" not in builds.v2.told, "the VAE's one attention is known"
    assert [entry.about["layers"]["unfused_softmax"] for entry in vae] == [
        ["/encoder/mid_block/attentions.0/Softmax"],
        ["/decoder/mid_block/attentions.0/Softmax"],
    ]


def test_attention_is_fused_with_controlnet(builds: Builds, small: Path) -> None:
    unet, *_ = builds.v1.entries
    assert_attention_is_fused(unet, ModelFiles(small / "sd15", small / "mm_v1.safetensors"))
    residuals = {name: dims for name, dims in unet.about["inputs"].items() if name.startswith("residual_")}
    assert len(residuals) == 9
    (profile,) = unet.profiles
    assert profile.shapes(residuals["residual_00"]) == ((1, 1, 96, 8, 8), (2, 4, 96, 8, 8), (2, 8, 96, 16, 16))
    assert profile.shapes(residuals["residual_08"]) == ((1, 1, 96, 1, 1), (2, 4, 96, 1, 1), (2, 8, 96, 2, 2))


def test_small_heads_are_warned_of(builds: Builds) -> None:
    """The golden checkpoints' heads have 4 and 8 channels."""
    told = builds.tiny[0].told
    unet, *vae = builds.tiny[0].entries
    softmaxes = unet.about["layers"]["unfused_softmax"]
    assert len(vae) == 2
    assert len(softmaxes) == 32
    assert "warning: UNet of tiny_sd15.safetensors: 32 attention layers are not fused, " in told
    assert f"the first of them {softmaxes[0]}." in told
    assert told.count("warning") == 1


def test_two_at_once_build_once(builds: Builds) -> None:
    """One of two processes builds, the other waits for it, and both have the engine."""
    first, second = builds.tiny
    assert [entry.name for entry in first.entries] == [entry.name for entry in second.entries]
    for lines in zip(first.out.splitlines(), second.out.splitlines(), strict=True):
        assert sorted(re.findall(r": (built|was there), ", "".join(lines))) == ["built", "was there"]
    assert "UNet of tiny_sd15.safetensors: another process is building it; waiting" in first.told + second.told
    folder = first.entries[0].plan.parent
    assert not list(folder.glob(".partial*"))
    assert not (folder / "set-aside").exists()


def test_every_engine_is_whole_and_says_what_it_is(builds: Builds, small: Path) -> None:
    made = {entry.name: entry for outcome in (builds.v2, builds.v1) for entry in outcome.entries}
    store = Store(builds.folder)
    assert [entry.name for entry in store.entries()] == sorted(made)
    assert all(store.verify(entry) is None for entry in made.values())
    assert not list(builds.folder.glob(".partial*"))

    unet = builds.v2.entries[0]
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
    made = builds.v2.entries
    times = [entry.plan.stat().st_mtime_ns for entry in made]
    monkeypatch.setattr(engines, "build_plan", None)
    monkeypatch.setattr(engines, "export_graph", None)
    again = run(*builds.v2_line)
    assert [entry.name for entry in again.entries] == [entry.name for entry in made]
    assert all(re.search(r": was there, \d+\.\d MB$", line) for line in again.out.splitlines())
    assert [entry.plan.stat().st_mtime_ns for entry in made] == times


def test_a_dry_run_names_what_is_then_built(builds: Builds, run: Callable[..., Outcome], tmp_path: Path) -> None:
    made = builds.v1.entries
    elsewhere = tmp_path / "none"
    dry = run(*builds.v1_line, "--engine-dir", elsewhere, "--dry-run")
    assert dry.code == 0
    told = re.findall(r"^(.+): (\w+-fp\d\d-[0-9a-f]{16}): about (\d+\.\d) MB, (\d+) s$", dry.out, re.MULTILINE)
    assert [name for _, name, *_ in told] == [entry.name for entry in made]
    assert told[0][0] == "UNet of sd15 with mm_v1.safetensors"
    weights = [entry.about["weights_bytes"] / 1e6 for entry in made]
    assert [float(size) for _, _, size, _ in told] == pytest.approx(weights, rel=0.05, abs=0.1)
    assert re.search(rf"compute capability 8.9, in {re.escape(str(elsewhere))}; \d+ (s|min) in all$", dry.out.strip())
    assert not list(tmp_path.rglob("*.plan"))
    assert run(*builds.v1_line, "--dry-run").out.count(": is there\n") == len(made)


def test_the_engines_commands_know_them(builds: Builds, run: Callable[..., Outcome]) -> None:
    made = builds.v2.entries
    folder = ("--engine-dir", builds.folder)
    listed = run("engines", "list", *folder)
    assert listed.code == 0
    assert run("engines", "verify", *folder).code == 0
    inspected = run("engines", "inspect", made[0].name, *folder)
    assert inspected.code == 0, inspected.err
    assert "mm_v2" in inspected.out
