"""``engines``: what it says of a folder, what it removes, and that it never takes more than it was asked to."""

from __future__ import annotations

import io
import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from PIL import Image

from animdetail_trt.cli import engine_here
from animdetail_trt.cli.engine_words import told_bytes, told_ranges
from animdetail_trt.errors import UnavailableError
from animdetail_trt.trt.digests import Digests
from animdetail_trt.trt.flavour import Card
from animdetail_trt.trt.identity import GRAPH_VERSION, Identity, Source, Target
from animdetail_trt.trt.layout import bytes_of
from animdetail_trt.trt.profile import Profile, Range
from animdetail_trt.trt.sidecar import Entry, Part
from animdetail_trt.trt.store import Build, Store

TARGET = Target("tensorrt_rtx", "1.7.1", "8.9")
SMALL = Profile({"b": Range(1, 2, 2), "f": Range(1, 16, 32), "h": Range(32, 64, 64), "w": Range(32, 64, 64)})
WIDE = Profile({"b": Range(1, 2, 2), "f": Range(1, 1, 1), "h": Range(32, 64, 64), "w": Range(32, 96, 128)})
SOFTMAX = "/down_blocks.0/attentions.0/Softmax"
LAYERS = {"kinds": {"kgen": 875, "gemm": 178, "cast": 1}, "fused_attention": 74, "unfused_softmax": [SOFTMAX]}


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "engine folder ä")


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """A model file, older than every engine."""
    path = tmp_path / "sd15.safetensors"
    path.write_bytes(b"weights")
    long_ago = time.time() - 1e6
    os.utime(path, (long_ago, long_ago))
    return path


@pytest.fixture
def engines(run: Callable[..., Any], store: Store, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Any]:
    """Run ``engines ACTION`` on the store; nothing wraps."""
    monkeypatch.setenv("COLUMNS", "500")
    store.folder.mkdir(exist_ok=True)
    return lambda *argv: run("engines", *argv, "--engine-dir", store.folder)


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """What this machine has, to be changed: versions of libraries, cards. It can run what is built for TARGET."""
    here = SimpleNamespace(versions={"tensorrt_rtx": "1.7.1"}, cards=[Card(0, "L4", "8.9", 24 << 30, "13.0")])

    def optional(module: str, purpose: str) -> Any:
        if module not in here.versions:
            raise UnavailableError(f"{module} is not there")
        return SimpleNamespace(__version__=here.versions[module])

    monkeypatch.setattr(engine_here, "optional", optional)
    monkeypatch.setattr(engine_here, "find_spec", lambda name: None)
    monkeypatch.setattr(engine_here, "find_cards", lambda: (here.cards, "" if here.cards else "no CUDA device"))
    return here


def add(
    store: Store,
    *,
    model: Path | None = None,
    sha256: str = "ab" * 32,
    target: Target = TARGET,
    profiles: tuple[Profile, ...] = (SMALL,),
    days_ago: float = 0,
    lora: Path | None = None,
    graph_version: int = GRAPH_VERSION,
    layers: dict[str, Any] | None = LAYERS,
    title: str = "UNet of sd15.safetensors",
) -> Entry:
    loras = () if lora is None else (("lora", "cd" * 32, 0.8),)
    source = Source("unet", {"checkpoint": sha256}, "fp16", loras, {"motion_scale": 1.5, "controlnet": False})
    source = Source(**(vars(source) | {"graph_version": graph_version}))
    about = {
        "title": title,
        "files": {} if model is None else {"checkpoint": str(model)},
        "loras": [] if lora is None else [[str(lora), 0.8]],
        "inputs": {"latents": ["b", "f", 4, "h", "w"], "timestep": [1]},
        "output": "eps",
        "weights_bytes": 1_700_000_000,
        "built": (datetime.now(UTC) - timedelta(days=days_ago)).isoformat(),
        "build_s": 81.2,
        "versions": {"torch": "2.13.0"},
        "command": "animdetail-trt build-engines --checkpoint sd15.safetensors --frames 1:16:32",
    }
    if layers is not None:
        about |= {"layers": layers, "activation_bytes": [1_300_000_000, 5_870_000_000][: len(profiles)]}
    with store.building(Identity(source, target, profiles)) as build:
        assert isinstance(build, Build)
        build.path(".plan").write_bytes(b"plan" * 1000)
        return build.commit(build.path(".plan"), about)


def add_dead_build(store: Store, entry: Entry) -> Path:
    partial = store.folder / f".partial-{entry.name}-abc123"
    partial.mkdir()
    (partial / "half.plan").write_bytes(b"half" * 500)
    return partial


def damage(entry: Entry) -> None:
    data = bytearray(entry.plan.read_bytes())
    data[1000] ^= 1
    entry.plan.write_bytes(data)


def names(store: Store) -> set[str]:
    return {entry.name for entry in store.entries()}


# list


def test_list_shows_it_all(engines: Callable[..., Any], store: Store, model: Path, machine: SimpleNamespace) -> None:
    lora = model.with_name("detail.safetensors")
    lora.write_bytes(b"lora")
    os.utime(lora, (0, 0))
    entry = add(store, model=model, lora=lora, profiles=(SMALL, WIDE))
    outcome = engines("list")
    assert outcome.code == 0
    for told in (
        "UNet of sd15.safetensors", entry.name, "tensorrt_rtx 1.7.1", "8.9, fp16", "256-512 px, 1-32 frames",
        "256-1024 x 256-512 px, 1 frame ", "LoRA detail.safetensors 0.8", "4 kB", f"{datetime.now():%Y-}", "yes",
        f"1 engine, 4 kB, in {store.folder}",
    ):  # fmt: skip
        assert told in outcome.out
    assert outcome.err == ""


def test_list_as_json(engines: Callable[..., Any], store: Store, model: Path, machine: SimpleNamespace) -> None:
    entry = add(store, model=model, lora=model, profiles=(SMALL, WIDE))
    machine.cards = []
    (told,) = json.loads(engines("list", "--json").out)
    assert told["name"] == entry.name
    assert told["target"] == {"flavour": "tensorrt_rtx", "version": "1.7.1", "compute_capability": "8.9"}
    assert told["profiles"][1]["width_px"] == [256, 768, 1024]
    assert told["profiles"][1]["height_px"] == [256, 512, 512]
    assert told["profiles"][0]["f"] == [1, 16, 32]
    assert told["loras"] == [{"file": str(model), "strength": 0.8}]
    assert [file["role"] for file in told["models"]] == ["checkpoint", "lora"]
    assert told["settings"] == {"motion_scale": 1.5, "controlnet": False}
    assert told["bytes"] == 4000
    assert told["activation_bytes"] == [1_300_000_000, 5_870_000_000]
    assert datetime.fromisoformat(told["built"]).tzinfo is not None
    assert told["usable_here"] is False
    assert told["reasons"] == ["no GPU here (no CUDA device)"]


def lacks(engines: Callable[..., Any]) -> list[str]:
    (told,) = json.loads(engines("list", "--json").out)
    assert told["usable_here"] == (not told["reasons"])
    reasons: list[str] = told["reasons"]
    return reasons


def test_usable_where_all_is_there(
    engines: Callable[..., Any], store: Store, model: Path, machine: SimpleNamespace
) -> None:
    add(store, model=model)
    assert lacks(engines) == []


@pytest.mark.parametrize(
    ("versions", "capability", "reason"),
    [
        ({}, "8.9", "tensorrt_rtx is not installed"),
        ({"tensorrt_rtx": "1.8"}, "8.9", "it needs tensorrt_rtx 1.7.1; 1.8 is installed"),
        ({"tensorrt_rtx": "1.7.1"}, "9.0", "no GPU of compute capability 8.9 here; there is 9.0"),
    ],
)
def test_not_usable_on_another_machine(
    engines: Callable[..., Any],
    store: Store,
    model: Path,
    machine: SimpleNamespace,
    versions: dict[str, str],
    capability: str,
    reason: str,
) -> None:
    machine.versions, machine.cards = versions, [Card(0, "H100", capability, 80 << 30, "13.0")]
    add(store, model=model)
    assert lacks(engines) == [reason]


def test_tensorrt_s_engines_are_for_one_model_of_gpu(
    engines: Callable[..., Any], store: Store, model: Path, machine: SimpleNamespace
) -> None:
    machine.versions = {"tensorrt": "11.4"}
    add(store, model=model, target=Target("tensorrt", "11.4", "8.9"))
    assert lacks(engines) == ["it is for no one model of GPU: build it again"]
    for file in store.folder.glob("unet-*"):
        file.unlink()
    add(store, model=model, target=Target("tensorrt", "11.4", "8.9", "L40S"))
    assert lacks(engines) == ["no L40S here; there is L4"]
    machine.cards.append(Card(1, "L40S", "8.9", 48 << 30, "13.0"))
    assert lacks(engines) == []


def test_installed_and_broken_is_not_absent(
    engines: Callable[..., Any], store: Store, machine: SimpleNamespace, monkeypatch: pytest.MonkeyPatch
) -> None:
    machine.versions = {}
    monkeypatch.setattr(engine_here, "find_spec", lambda name: SimpleNamespace())
    add(store)
    assert lacks(engines) == ["tensorrt_rtx cannot be imported (see: animdetail-trt doctor)"]


def test_a_library_that_a_sidecar_makes_up_is_not_imported(
    engines: Callable[..., Any], store: Store, machine: SimpleNamespace
) -> None:
    machine.versions["antigravity"] = "1"
    add(store, target=Target("antigravity", "1", "8.9"))
    assert lacks(engines) == ["antigravity is not installed"]


def test_onnxruntime_needs_no_gpu(engines: Callable[..., Any], store: Store, machine: SimpleNamespace) -> None:
    machine.versions, machine.cards = {"onnxruntime": "1.31"}, []
    add(store, target=Target("onnxruntime", "1.31", "cpu"))
    assert lacks(engines) == []
    assert "any size" in engines("list").out


def test_a_graph_of_another_version_is_never_found(
    engines: Callable[..., Any], store: Store, machine: SimpleNamespace
) -> None:
    add(store, graph_version=GRAPH_VERSION + 1)
    (reason,) = lacks(engines)
    assert f"version {GRAPH_VERSION + 1}" in reason


def test_model_files_gone_or_changed(
    engines: Callable[..., Any], store: Store, model: Path, machine: SimpleNamespace
) -> None:
    lora = model.with_name("lora.safetensors")
    lora.write_bytes(b"lora")
    os.utime(lora, (0, 0))
    add(store, model=model, lora=lora)
    assert lacks(engines) == []
    soon = time.time() + 100
    os.utime(model, (soon, soon))
    lora.unlink()
    assert lacks(engines) == [f"{model} has changed since", f"{lora} is gone"]


def test_a_file_put_in_place_with_an_old_date(
    engines: Callable[..., Any], store: Store, model: Path, machine: SimpleNamespace
) -> None:
    add(store, model=model, sha256="12" * 32)
    assert lacks(engines) == []
    Digests(store.folder).of(model)  # `detail` has read it since, and remembers that it is another
    assert lacks(engines) == [f"{model} has changed since"]


def test_list_reads_no_model(engines: Callable[..., Any], store: Store, model: Path, machine: SimpleNamespace) -> None:
    with model.open("ab") as file:
        file.truncate(1 << 34)  # a hole of 16 GB
    os.utime(model, (0, 0))
    add(store, model=model)
    start = time.perf_counter()
    assert lacks(engines) == []
    assert time.perf_counter() - start < 3


def test_a_reason_is_told_once(engines: Callable[..., Any], store: Store, machine: SimpleNamespace) -> None:
    machine.cards = []
    first = add(store)
    add(store, profiles=(WIDE,))
    add(store, target=Target("tensorrt", "10.13", "8.9"))
    machine.versions["tensorrt"] = "11.0"
    assert engines("list").out.count("no GPU here") == 1
    assert "it needs tensorrt 10.13; 11.0 is installed: unet" in engines("list").out
    assert first.name in engines("list").out


def test_a_title_is_no_markup(engines: Callable[..., Any], store: Store, machine: SimpleNamespace) -> None:
    entry = add(store, title="UNet of [bold]sd[/x].safetensors")
    assert "[bold]sd[/x].safetensors" in engines("list").out
    assert "[bold]sd[/x].safetensors" in engines("inspect", entry.name).out


@pytest.mark.parametrize("columns", ["80", "60"])
def test_list_keeps_names_whole_in_a_narrow_terminal(
    engines: Callable[..., Any],
    store: Store,
    machine: SimpleNamespace,
    monkeypatch: pytest.MonkeyPatch,
    columns: str,
) -> None:
    entry = add(store, title="UNet of a_checkpoint_with_a_long_name.safetensors with mm.safetensors")
    monkeypatch.setenv("COLUMNS", columns)
    assert entry.name in engines("list").out


@pytest.mark.parametrize("action", [["list"], ["verify"]])
def test_no_engines(engines: Callable[..., Any], store: Store, action: list[str]) -> None:
    outcome = engines(*action)
    assert (outcome.code, outcome.out) == (0, "")
    assert str(store.folder) in outcome.err
    assert "animdetail-trt build-engines" in outcome.err
    assert not list(store.folder.iterdir())


def test_no_engines_as_json(engines: Callable[..., Any]) -> None:
    assert json.loads(engines("list", "--json").out) == []


def test_what_cannot_be_listed_is_mentioned(
    engines: Callable[..., Any], store: Store, machine: SimpleNamespace
) -> None:
    whole, unreadable, incomplete, newer = (
        add(store, profiles=(Profile(SMALL.axes | {"f": Range(1, 1, frames)}),)) for frames in (1, 2, 3, 4)
    )
    unreadable.sidecar.write_text("{")
    incomplete.plan.unlink()
    newer.sidecar.write_text(json.dumps(json.loads(newer.sidecar.read_text()) | {"format": 99}))
    outcome = engines("list")
    assert outcome.code == 0
    assert whole.name in outcome.out
    assert "2 more cannot be read, or lack a file" in outcome.err
    assert f"{newer.name} is passed over" in outcome.err


@pytest.mark.parametrize("action", [["list"], ["verify"], ["prune", "--yes"], ["inspect", "unet"]])
def test_a_folder_that_is_a_file(run: Callable[..., Any], tmp_path: Path, action: list[str]) -> None:
    (tmp_path / "file").write_text("")
    outcome = run("engines", *action, "--engine-dir", tmp_path / "file")
    assert outcome.code == 2
    assert "error: " in outcome.err
    assert "--engine-dir" in outcome.err


@pytest.mark.parametrize("action", [["list"], ["verify"], ["prune", "--yes", "--all"], ["inspect", "unet"]])
def test_a_named_folder_that_does_not_exist(run: Callable[..., Any], tmp_path: Path, action: list[str]) -> None:
    outcome = run("engines", *action, "--engine-dir", tmp_path / "none")
    assert (outcome.code, outcome.out) == (2, "")
    assert f"error: --engine-dir {tmp_path / 'none'} does not exist. Check the path" in outcome.err


def test_the_default_folder_may_not_be_there_yet(
    run: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ANIMDETAIL_ENGINE_DIR", str(tmp_path / "none"))
    outcome = run("engines", "list")
    assert (outcome.code, f"no engines in {tmp_path / 'none'}" in outcome.err) == (0, True)
    assert not (tmp_path / "none").exists()


@pytest.mark.parametrize(
    ("profile", "told"),
    [
        (SMALL, "prompts in a call: 1 to 2, best 2; frames: 1 to 32, best 16; sides in pixels: 256 to 512, best 512"),
        (
            WIDE,
            "prompts in a call: 1 to 2, best 2; frames: 1; height in pixels: 256 to 512, best 512; "
            "width in pixels: 256 to 1024, best 768",
        ),
    ],
)
def test_a_profile_is_told_in_words(profile: Profile, told: str) -> None:
    assert told_ranges(profile) == told


@pytest.mark.parametrize("action", [["list"], ["verify"], ["prune", "--dry-run", "--all"], ["inspect", "unet"]])
def test_starts_without_torch(store: Store, model: Path, action: list[str]) -> None:
    add(store, model=model, target=Target("tensorrt_rtx", "0", "8.9"))
    argv = ["engines", *action, "--engine-dir", str(store.folder)]
    code = f"import sys; from animdetail_trt.cli import main; main({argv!r}); assert 'torch' not in sys.modules"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")


# verify


def test_verify_says_which_and_how_to_rebuild(engines: Callable[..., Any], store: Store) -> None:
    whole, damaged = add(store), add(store, profiles=(WIDE,))
    assert engines("verify").code == 0
    damage(damaged)
    outcome = engines("verify", "--report-only")
    assert outcome.code == 1
    assert f"{whole.name}: whole, 4 kB" in outcome.out
    assert f"{damaged.name}: damaged: the bytes of {damaged.plan.name} have changed" in outcome.out
    assert f"build it again: {damaged.command}" in outcome.out
    assert damaged.plan.exists()
    assert engines("verify", whole.name).code == 0


def test_verify_sees_what_is_listed_nowhere(engines: Callable[..., Any], store: Store) -> None:
    unreadable, incomplete = add(store), add(store, profiles=(WIDE,))
    unreadable.sidecar.write_text("{")
    incomplete.plan.unlink()
    outcome = engines("verify")
    assert outcome.code == 1
    assert f"{unreadable.name}: damaged: {unreadable.name}.json is damaged" in outcome.out
    assert "animdetail-trt engines prune" in outcome.out
    assert f"{incomplete.name}: damaged: {incomplete.plan.name} is missing" in outcome.out


def test_verify_leaves_a_later_versions_engine_alone(engines: Callable[..., Any], store: Store) -> None:
    newer = add(store)
    newer.sidecar.write_text(json.dumps(json.loads(newer.sidecar.read_text()) | {"format": 99}))
    outcome = engines("verify")
    assert (outcome.code, outcome.out) == (0, "")
    assert f"{newer.name} is passed over" in outcome.err
    assert newer.plan.exists()


def test_verify_sets_aside(engines: Callable[..., Any], store: Store) -> None:
    whole, damaged = add(store), add(store, profiles=(WIDE,))
    damage(damaged)
    outcome = engines("verify")
    assert outcome.code == 1
    assert f"set aside in {store.folder / 'set-aside'}" in outcome.out
    assert names(store) == {whole.name}
    assert engines("verify").code == 0
    assert damaged.name not in engines("list").out
    assert list(store.folder.glob("set-aside/*/*.plan"))
    outcome = engines("prune", "--yes")
    assert f"set aside: the bytes of {damaged.plan.name} have changed" in outcome.out
    assert not list(store.folder.glob("set-aside/*"))


def test_verify_moves_nothing_that_it_cannot_read(
    engines: Callable[..., Any], store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    entry = add(store)

    def closed(*_: Any, **__: Any) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Part, "mapped", closed)
    outcome = engines("verify")
    assert outcome.code == 1
    assert f"{entry.name}: not read: {entry.plan.name} cannot be read: Permission denied" in outcome.out
    assert "check its permissions" in outcome.out
    assert "damaged" not in outcome.out
    assert names(store) == {entry.name}


def test_a_name_may_be_cut_short(engines: Callable[..., Any], store: Store) -> None:
    first, second = add(store), add(store, profiles=(WIDE,))
    for wanted in (
        first.name,
        first.identity.digest,
        first.identity.digest[:8],
        f"unet-fp16-{first.identity.digest[:6]}",
    ):
        outcome = engines("verify", wanted)
        assert outcome.out == f"{first.name}: whole, 4 kB\n"
    assert engines("verify", first.name, first.identity.digest).out.count("whole") == 1
    outcome = engines("verify", "unet")
    assert outcome.code == 2
    assert f"{' or '.join(sorted([first.name, second.name]))}. Write more" in outcome.err


def test_a_name_that_is_not_there(engines: Callable[..., Any], store: Store) -> None:
    outcome = engines("inspect", "vae")
    assert outcome.code == 2
    assert "build-engines" in outcome.err
    entries = [add(store, profiles=(Profile(SMALL.axes | {"f": Range(1, 1, frames)}),)) for frames in range(1, 13)]
    outcome = engines("inspect", "vae")
    assert outcome.code == 2
    assert sum(entry.name in outcome.err for entry in entries) == 10
    assert "or 2 more" in outcome.err


# prune


def test_prune_alone_takes_leftovers_only(engines: Callable[..., Any], store: Store) -> None:
    entry, damaged = add(store, days_ago=1000, target=Target("tensorrt", "1", "1.0")), add(store)
    partial = add_dead_build(store, entry)
    store.set_aside(damaged, "for a test")
    before = bytes_of(store.folder)
    outcome = engines("prune", "--yes")
    assert outcome.code == 0
    assert "a build that died" in outcome.out
    assert "set aside: for a test" in outcome.out
    assert f"removed 2: {told_bytes(before - bytes_of(store.folder))}" in outcome.out
    assert not partial.exists()
    assert names(store) == {entry.name}
    outcome = engines("prune", "--yes")
    assert (outcome.code, outcome.out) == (0, "")
    assert "nothing to remove" in outcome.err


def test_prune_dry_run_removes_nothing(engines: Callable[..., Any], store: Store) -> None:
    entry = add(store)
    partial = add_dead_build(store, entry)
    outcome = engines("prune", "--all", "--dry-run")
    assert outcome.code == 0
    assert entry.name in outcome.out
    assert "would remove 2: " in outcome.out
    assert partial.exists()
    assert names(store) == {entry.name}


def test_prune_asks_nobody_where_nobody_is(engines: Callable[..., Any], store: Store) -> None:
    entry = add(store)
    outcome = engines("prune", "--all")
    assert outcome.code == 2
    assert "--yes" in outcome.err
    assert "--dry-run" in outcome.err
    assert names(store) == {entry.name}


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.mark.parametrize(
    ("answer", "goes"), [("y\n", True), ("Yes\n", True), ("\n", False), ("n\n", False), ("", False)]
)
def test_prune_asks_on_a_terminal(
    engines: Callable[..., Any], store: Store, monkeypatch: pytest.MonkeyPatch, answer: str, goes: bool
) -> None:
    add(store)
    monkeypatch.setattr(sys, "stdin", Terminal(answer))
    outcome = engines("prune", "--all")
    assert outcome.code == 0
    assert "Remove 1: " in outcome.err
    assert ("removed 1: " in outcome.out) == goes
    assert (not names(store)) == goes


def test_what_was_built_anew_while_it_asked_stays(
    engines: Callable[..., Any], store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    entry = add(store, days_ago=50)

    class Slow(Terminal):
        def readline(self, size: int = -1) -> str:
            store.prune(lambda _: "by another process")
            add(store, days_ago=0)
            return "y\n"

    monkeypatch.setattr(sys, "stdin", Slow())
    assert "removed 0: " in engines("prune", "--older-than", "7").out
    assert names(store) == {entry.name}


def test_prune_older_than(engines: Callable[..., Any], store: Store) -> None:
    old, young = add(store, days_ago=40), add(store, days_ago=20, profiles=(WIDE,))
    outcome = engines("prune", "--older-than", "30", "--yes")
    assert f"{old.name}  " in outcome.out
    assert "built 40 days ago" in outcome.out
    assert names(store) == {young.name}


def test_prune_keeps_the_latest_of_each_source(engines: Callable[..., Any], store: Store) -> None:
    kept = [
        add(store, days_ago=2),
        add(store, days_ago=1, target=Target("tensorrt", "10", "9.0")),
        add(store, days_ago=900, sha256="99" * 32),
    ]
    gone = [add(store, days_ago=4, profiles=(SMALL, WIDE)), add(store, days_ago=3, profiles=(WIDE,))]
    outcome = engines("prune", "--keep-latest", "2", "--yes")
    assert "2 newer of the same models are kept" in outcome.out
    assert all(entry.name in outcome.out for entry in gone)
    assert names(store) == {entry.name for entry in kept}
    assert engines("prune", "--keep-latest", "0", "--yes").code == 2


def test_prune_other_versions(engines: Callable[..., Any], store: Store, machine: SimpleNamespace) -> None:
    kept = [add(store), add(store, target=Target("tensorrt", "10.13", "8.9"))]  # that library is not here to compare
    add(store, target=Target("tensorrt_rtx", "1.6", "8.9"))
    add(store, graph_version=GRAPH_VERSION + 1)
    outcome = engines("prune", "--other-versions", "--yes")
    assert "it needs tensorrt_rtx 1.6; 1.7.1 is installed" in outcome.out
    assert names(store) == {entry.name for entry in kept}


def test_prune_missing_models(engines: Callable[..., Any], store: Store, model: Path) -> None:
    kept = [add(store, model=model), add(store, sha256="99" * 32)]  # the second does not say what it was made of
    add(store, model=model, lora=model.with_name("gone.safetensors"))
    outcome = engines("prune", "--missing-models", "--yes")
    assert f"{model.with_name('gone.safetensors')} is gone" in outcome.out
    assert names(store) == {entry.name for entry in kept}


def test_prune_takes_what_any_criterion_names(engines: Callable[..., Any], store: Store, model: Path) -> None:
    add(store, days_ago=40, model=model)
    add(store, model=model.with_name("gone"), sha256="99" * 32)
    kept = add(store, model=model, sha256="98" * 32)
    assert engines("prune", "--older-than", "30", "--missing-models", "--yes").code == 0
    assert names(store) == {kept.name}


def test_prune_all_leaves_what_is_not_ours(engines: Callable[..., Any], store: Store) -> None:
    add(store)
    (store.folder / "notes.txt").write_text("mine")
    assert engines("prune", "--all", "--yes").code == 0
    assert names(store) == set()
    assert (store.folder / "notes.txt").read_text() == "mine"


# inspect


def test_inspect_needs_the_sidecar_only(
    engines: Callable[..., Any], store: Store, model: Path, machine: SimpleNamespace
) -> None:
    lora = model.with_name("detail.safetensors")
    entry = add(store, model=model, lora=lora, profiles=(SMALL, WIDE))
    entry.plan.unlink()
    outcome = engines("inspect", entry.identity.digest)
    assert outcome.code == 0
    for told in (
        "tensorrt_rtx 1.7.1 for compute capability 8.9, fp16", "in 81.2 s", "torch 2.13.0",
        f"{model}, SHA-256 abababababababab", f"{lora}, strength 0.8, SHA-256 cdcdcdcdcdcdcdcd",
        "b x f x 4 x h x w", "32 to 128, best 96",
        "256-1024 x 256-512 px, 1 frame", "1.70 GB", "1.30 GB at the most for 256-512 px", "5.87 GB at the most",
        "1054 layers in 2 profiles", "875", "74 kernels", "1 softmax ", SOFTMAX, f"no: {lora} is gone",
    ):  # fmt: skip
        assert told in outcome.out
    assert re.search(r"motion scale +1\.5\b", outcome.out)
    assert re.search(r"controlnet +no\b", outcome.out)


def test_inspect_of_a_sidecar_that_says_little(
    engines: Callable[..., Any], store: Store, machine: SimpleNamespace
) -> None:
    entry = add(store)
    sidecar = json.loads(entry.sidecar.read_text())
    entry.sidecar.write_text(json.dumps(sidecar | {"about": {}}))
    for action in (["list"], ["list", "--json"], ["inspect", "unet"], ["prune", "--older-than", "1", "--yes"]):
        assert engines(*action).code == 0
    assert names(store) == {entry.name}  # as old as its sidecar


def test_inspect_of_a_damaged_sidecar(engines: Callable[..., Any], store: Store) -> None:
    entry = add(store)
    entry.sidecar.write_text("{")
    outcome = engines("inspect", entry.name)
    assert outcome.code == 2
    assert "engines prune" in outcome.err


def test_chart_bars_are_as_long_as_what_they_stand_for(
    engines: Callable[..., Any], store: Store, tmp_path: Path, machine: SimpleNamespace
) -> None:
    from animdetail_trt.cli import engine_chart

    add(store, profiles=(SMALL, WIDE))
    assert engines("inspect", "unet", "--chart", tmp_path / "chart.png").code == 0
    with Image.open(tmp_path / "chart.png") as chart:
        assert chart.format == "PNG"
        memory = chart.convert("RGB").crop((0, 130, chart.width, 250))  # without the legend above the bars
        counts = {colour: count for count, colour in memory.getcolors(1 << 20)}
    weights, activations = counts[engine_chart._WEIGHTS], counts[engine_chart._ACTIVATIONS]
    assert activations / weights == pytest.approx((1.30 + 5.87) / (2 * 1.70), rel=0.05)  # rounded corners


def test_chart_of_a_graph_and_other_suffixes(
    engines: Callable[..., Any], store: Store, tmp_path: Path, machine: SimpleNamespace
) -> None:
    add(store, layers=None)
    outcome = engines("inspect", "unet", "--chart", tmp_path / "chart.png")
    assert outcome.code == 2
    assert "--chart" in outcome.err
    assert engines("inspect", "unet", "--chart", tmp_path / "chart.gif").code == 2
    assert not list(tmp_path.glob("chart*"))


def test_chart_of_long_names_and_none_fused(
    engines: Callable[..., Any], store: Store, tmp_path: Path, machine: SimpleNamespace
) -> None:
    kinds = {f"kind_{number}_{'x' * 60}": number for number in range(1, 30)}
    add(store, title="UNet " * 100, layers={"kinds": kinds, "fused_attention": 0, "unfused_softmax": []})
    assert engines("inspect", "unet", "--chart", tmp_path / "chart.png").code == 0
    with Image.open(tmp_path / "chart.png") as chart:
        edge = chart.convert("RGB").crop((chart.width - 20, 0, chart.width, chart.height))
        assert len(edge.getcolors()) == 1  # nothing runs off it
