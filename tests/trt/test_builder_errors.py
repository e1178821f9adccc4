"""What build-engines refuses, before it builds anything: each message names the value and the remedy."""

from __future__ import annotations

import errno
import re
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from on_the_card import onnx_model, random_weights
from small_models import needs_rtx

from animdetail_trt.errors import EngineError
from animdetail_trt.extras import install_command
from animdetail_trt.models import engines
from animdetail_trt.trt import flavour
from animdetail_trt.trt.builder import _configure, _Options, _write_timings, build_plan
from animdetail_trt.trt.export import Graph
from animdetail_trt.trt.flavour import load_flavour
from animdetail_trt.trt.identity import Target
from animdetail_trt.trt.profile import Profile, Range
from outcome import Outcome

Refused = Callable[..., str]
TARGET = Target("tensorrt_rtx", "1.7.1", "8.9")


@pytest.fixture
def command(small: Path, tmp_path: Path, run: Callable[..., Outcome]) -> Callable[..., Outcome]:
    """build-engines for a card that is not here, into an empty folder; later options win."""
    defaults = ("--checkpoint", small / "sd15", "--target-sm", 89, "--engine-dir", tmp_path / "engines")
    return lambda *options: run("build-engines", *defaults, *options)


@pytest.fixture
def refused(command: Callable[..., Outcome], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Refused:
    """What it says when it refuses. It exports nothing before."""
    monkeypatch.setattr(engines, "export_graph", None)

    def call(*options: Any) -> str:
        outcome = command(*options)
        assert outcome.code == 2
        assert outcome.out == ""
        assert "Traceback" not in outcome.err
        assert not list(tmp_path.rglob("*.plan"))
        return outcome.told

    return call


@needs_rtx
def test_a_card_that_rtx_does_not_know(refused: Refused) -> None:
    told = refused("--target-sm", 90)
    assert re.search(
        r"error: tensorrt_rtx [\d.]+ builds for compute capability 7\.5, 8\.0, 8\.6, 8\.9, 12\.0.*, not 9\.0\. "
        r"Use --flavour tensorrt on such a card$",
        told,
    )


@pytest.mark.parametrize("sm", ["x", "8", "8.9.0.1", "8.90", "12", "1.2", "1200", "sm_89"])
def test_no_compute_capability(refused: Refused, sm: str) -> None:
    assert f"'{sm}' is no compute capability. Write 89 or 8.9, and 120 or 12.0" in refused("--target-sm", sm)


@needs_rtx
def test_no_gpu_and_none_named(
    run: Callable[..., Outcome], small: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(flavour, "find_cards", lambda: ([], "no CUDA device"))
    outcome = run("build-engines", "--checkpoint", small / "sd15", "--engine-dir", tmp_path)
    assert outcome.code == 2
    assert "there is no GPU here to build for (no CUDA device)" in outcome.told
    assert "--target-sm 89" in outcome.told


@pytest.fixture
def without(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Makes packages impossible to import."""

    def hide(*modules: str) -> None:
        for module in modules:
            monkeypatch.setitem(sys.modules, module, None)
            monkeypatch.delitem(flavour._found, module, raising=False)

    return hide


def test_tensorrt_is_not_installed(refused: Refused, without: Callable[..., None]) -> None:
    without("tensorrt")
    told = refused("--flavour", "tensorrt")
    assert "cannot use TensorRT engines: tensorrt cannot be imported" in told
    assert f"Run: {install_command('tensorrt')}" in told


def test_no_flavour_is_installed(
    refused: Refused,
    without: Callable[..., None],
    run: Callable[..., Outcome],
    small: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    without("tensorrt", "tensorrt_rtx")
    assert f"Run: {install_command('rtx')}" in refused()
    monkeypatch.setattr(flavour, "find_cards", lambda: ([], "no CUDA device"))
    told = run("build-engines", "--checkpoint", small / "sd15").told
    assert "no TensorRT is installed" in told
    assert install_command("rtx") in told
    assert install_command("tensorrt") in told


@needs_rtx
def test_onnx_is_not_installed(command: Callable[..., Outcome], without: Callable[..., None], tmp_path: Path) -> None:
    without("onnx")
    outcome = command()
    assert outcome.code == 2
    assert "cannot export a model: onnx cannot be imported" in outcome.told
    assert f"Run: {install_command('rtx')}" in outcome.told
    assert not list(tmp_path.rglob(".partial*"))


def test_tensorrt_builds_on_no_other_card(
    refused: Refused, monkeypatch: pytest.MonkeyPatch, without: Callable[..., None]
) -> None:
    without("tensorrt")
    monkeypatch.setitem(flavour._found, "tensorrt", flavour.Flavour("tensorrt", SimpleNamespace(__version__="11.4")))
    monkeypatch.setattr(flavour, "find_cards", lambda: ([], "no CUDA device"))
    told = refused("--flavour", "tensorrt")
    assert "--target-sm 8.9 is not the GPU of this machine. Use --flavour tensorrt_rtx" in told


def test_tensorrt_builds_for_the_card_of_that_generation(
    command: Callable[..., Outcome], monkeypatch: pytest.MonkeyPatch
) -> None:
    cards = [flavour.Card(0, "T4", "7.5", 1, "13.0"), flavour.Card(1, "L4", "8.9", 1, "13.0")]
    monkeypatch.setitem(flavour._found, "tensorrt", flavour.Flavour("tensorrt", SimpleNamespace(__version__="11.4")))
    monkeypatch.setattr(flavour, "find_cards", lambda: (cards, ""))
    told = command("--flavour", "tensorrt", "--dry-run").out
    assert "for tensorrt 11.4, L4, in " in told


def test_the_builders_thread_takes_the_targets_card(monkeypatch: pytest.MonkeyPatch) -> None:
    runtime = pytest.importorskip("cuda.bindings.runtime")
    chosen: list[int] = []
    answers = [runtime.cudaError_t.cudaSuccess, runtime.cudaError_t.cudaSuccess, runtime.cudaError_t.cudaErrorNoDevice]
    monkeypatch.setattr(runtime, "cudaSetDevice", lambda index: (answers[len(chosen)], chosen.append(index))[:1])
    monkeypatch.setattr(runtime, "cudaGetErrorString", lambda status: (None, b"it is gone"))
    cards = [flavour.Card(0, "T4", "7.5", 1, "13.0"), flavour.Card(1, "L4", "8.9", 1, "13.0")]
    monkeypatch.setattr(flavour, "find_cards", lambda: (cards, ""))
    for card, capability in (("L4", "8.9"), ("T4", "7.5"), ("L4", "7.5")):
        flavour.use_card(Target("tensorrt", "11.4", capability, card))
    assert chosen == [1, 0]
    with pytest.raises(EngineError, match="cannot build on L4: it is gone"):
        flavour.use_card(Target("tensorrt", "11.4", "8.9", "L4"))


@needs_rtx
def test_what_the_builder_is_told(tmp_path: Path) -> None:
    """With the real library's objects, as either flavour."""
    trt = load_flavour("tensorrt_rtx").trt
    ahead = flavour.Flavour("tensorrt_rtx", trt)
    others = SimpleNamespace(**{name: getattr(trt, name) for name in dir(trt) if name != "ComputeCapability"})
    there = flavour.Flavour("tensorrt", others)
    builder = trt.Builder(ahead.log.handle)
    network = builder.create_network(0)
    parser = trt.OnnxParser(network, ahead.log.handle)
    assert parser.parse(onnx_model(random_weights()))
    graph = Graph(tmp_path / "g.onnx", tmp_path, {}, "y", "", tuple(random_weights()))
    resize = trt.PreviewFeature.RUNTIME_ACTIVATION_RESIZE_10_10
    for one, resizes in ((ahead, False), (there, True)):
        config = builder.create_builder_config()
        config.set_preview_feature(resize, False)  # TensorRT's default
        _configure(one, config, network, graph, TARGET, _Options(False, True, None))
        assert config.get_preview_feature(resize) is resizes
        assert not config.get_flag(trt.BuilderFlag.TF32)
        assert config.get_flag(trt.BuilderFlag.REFIT_INDIVIDUAL)
        assert all(network.are_weights_marked_refittable(name) for name in random_weights())
    unknown = replace(graph, weight_names=("nothing",))
    with pytest.raises(EngineError, match=r"g\.onnx has no weights nothing to be set anew. Build without --refittable"):
        _configure(ahead, builder.create_builder_config(), network, unknown, TARGET, _Options(False, True, None))


@pytest.mark.parametrize(
    ("option", "value", "told"),
    [
        ("--size", "100", "'100': sides are multiples of 8 pixels from 64 to 4096, not 100"),
        ("--size", "32:64:128", "not 32"),
        ("--size", "512:512:8192", "not 8192"),
        ("--size", "512:256:1024", "512:256:1024 is no range. Write it as MIN:OPT:MAX"),
        ("--size", "256:512", "'256:512' is no range. Write MIN:OPT:MAX, such as 8:16:32, or one number"),
        ("--size", "large", "'large' is no range"),
        ("--size", "", "'' is no range"),
        ("--frames", "0", "0:0:0 is no range"),
        ("--frames", "8:4:16", "8:4:16 is no range"),
        ("--frames", "1:2.5:8", "'1:2.5:8' is no range"),
        ("--precision", "fp8", "argument --precision: invalid choice: 'fp8'"),
        ("--flavour", "rtx", "argument --flavour: invalid choice: 'rtx'"),
        ("--lora", "absent.safetensors", "no such file: absent.safetensors"),
        ("--recipe", "sd35", "there is no recipe sd35. Give a .toml file, or sd15"),
        ("--recipe", "absent.toml", "there is no recipe absent.toml. Give a .toml file, or sd15"),
    ],
)
def test_bad_options(refused: Refused, option: str, value: str, told: str) -> None:
    assert told in refused(option, value)


RECIPE = """
precision = "fp16"
sizes = ["256:512:512"]
unet = { frames = "1:16:32", prompts = "1:2:2", tokens = "77:77:308" }
vae = { pixels_per_call = 2097152 }
"""


@pytest.mark.parametrize(
    ("old", "new", "told"),
    [
        ("precision =", "Precision =", "lacks or misspells 'precision'. Compare it with sd15.toml"),
        (', tokens = "77:77:308"', "", "lacks or misspells 'tokens'"),
        ("vae = {", "vea = {", "lacks or misspells 'vae'"),
        ("{ pixels_per_call = 2097152 }", "3", "lacks or misspells"),
        ("2097152", '"many"', "lacks or misspells"),
        ('"fp16"', '"fp8"', "unknown precision 'fp8'. Choose fp16, bf16, fp32"),
        ('"256:512:512"', '"250"', "'250': sides are multiples of 8"),
        ('"1:2:2"', "2", "lacks or misspells"),
        ('"1:16:32"', '"32:16:1"', "32:16:1 is no range"),
        ("sizes = [", "sizes = (", "cannot read the recipe"),
    ],
)
def test_bad_recipes(refused: Refused, tmp_path: Path, old: str, new: str, told: str) -> None:
    path = tmp_path / "mine.toml"
    assert old in RECIPE
    path.write_text(RECIPE.replace(old, new))
    message = refused("--recipe", path)
    assert told in message
    assert f"the recipe {path}" in message


def test_wrong_models(refused: Refused, small: Path, tmp_path: Path) -> None:
    motion = small / "mm_v2.safetensors"
    told = refused("--checkpoint", motion)
    assert f"{motion} cannot be used as a checkpoint: it is an AnimateDiff motion module" in told
    assert "--motion-module FILE" in told
    assert "it is a LoRA" in refused("--motion-module", small / "lora.safetensors")
    assert f"{small / 'refiner'} is a folder; a VAE is a .safetensors file" in refused("--vae", small / "refiner")
    assert "no such file" in refused("--refiner", tmp_path / "absent.safetensors")
    assert "need a motion module" in refused("--motion-scale", 1.5)
    assert str(tmp_path) in refused("--checkpoint", tmp_path)


@needs_rtx
@pytest.mark.parametrize("place", ["a file", "below a file"])
def test_a_folder_that_cannot_hold_engines(refused: Refused, tmp_path: Path, place: str) -> None:
    (tmp_path / "taken").write_text("")
    folder = tmp_path / "taken" if place == "a file" else tmp_path / "taken" / "engines"
    told = refused("--engine-dir", folder)
    assert f"{folder} cannot hold engines" in told
    assert "--engine-dir DIR" in told


@needs_rtx
def test_a_folder_without_permission(refused: Refused, tmp_path: Path) -> None:
    folder = tmp_path / "closed"
    folder.mkdir(mode=0o500)
    try:
        (folder / "probe").touch()
        pytest.skip("this user may write everywhere")
    except PermissionError:
        pass
    told = refused("--engine-dir", folder)
    assert f"the engine folder {folder} cannot be used" in told


@needs_rtx
def test_what_tensorrt_cannot_read(tmp_path: Path) -> None:
    """The parser's own words are told, and no plan is left."""
    path = tmp_path / "graph.onnx"
    path.write_bytes(b"\xff no graph")
    graph = Graph(path, path, {"x": ("b",)}, "y", "", ())
    with pytest.raises(EngineError, match=r"tensorrt_rtx [\d.]+ cannot read the graph graph\.onnx: .*\w.*report this"):
        build_plan(load_flavour("tensorrt_rtx"), graph, [Profile({"b": Range(1, 1, 1)})], TARGET, tmp_path / "x.plan")
    assert not (tmp_path / "x.plan").exists()


@pytest.mark.parametrize("step", ["write_bytes", "replace"])
def test_timings_that_cannot_be_kept_lose_no_engine(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, step: str
) -> None:
    """They are written when the plan is done: the disk may be full of it."""
    path = tmp_path / "timings.cache"
    path.write_bytes(b"before")
    write = getattr(Path, step)

    def half(self: Path, what: Any) -> None:
        if step == "write_bytes":
            write(self, what[:3])
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(Path, step, half)
        _write_timings(SimpleNamespace(serialize=lambda: b"timings"), path)
    assert "timings of kernels are not kept for the next build: [Errno 28] No space" in caplog.text
    assert {file.name: file.read_bytes() for file in tmp_path.iterdir()} == {"timings.cache": b"before"}
    _write_timings(SimpleNamespace(serialize=lambda: b"timings"), path)
    assert path.read_bytes() == b"timings"


@needs_rtx
def test_frames_are_bounded_by_the_motion_module(command: Callable[..., Outcome], small: Path, tmp_path: Path) -> None:
    for version, most in (("v1", 24), ("v2", 32)):
        told = command("--motion-module", small / f"mm_{version}.safetensors", "--frames", "1:16:64", "--dry-run")
        assert told.code == 0
        assert f"; frames: 1 to {most}, best 16; " in told.out
        assert f"warning: --frames 1:16:64: the motion module, and its engine, see {most} at most\n" in told.err
    told = command("--frames", "1:16:64", "--dry-run")
    assert "; frames: 1 to 64, best 16; " in told.out
    assert "prompts in a call: 1 to 2, best 2; " in told.out
    assert "; tokens of a prompt: 77 to 308, best 77; sides in pixels: 256 to 512, best 512\n" in told.out
    assert "warning" not in told.err
    assert (
        "; frames: 32; "
        in command("--motion-module", small / "mm_v2.safetensors", "--frames", "48:48:64", "--dry-run").out
    )
    assert not list(tmp_path.rglob("*.plan"))
