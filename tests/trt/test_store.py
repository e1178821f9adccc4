"""The store is never wrong, whatever dies when: rounds of kills, damage, full disks and rivals."""

from __future__ import annotations

import errno
import json
import os
import random
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import replace
from io import FileIO
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from animdetail_trt.errors import EngineError
from animdetail_trt.trt import sidecar
from animdetail_trt.trt.digests import sha256_of
from animdetail_trt.trt.identity import Identity, Source, Target
from animdetail_trt.trt.profile import Profile, Range
from animdetail_trt.trt.sidecar import Entry
from animdetail_trt.trt.store import Build, Store
from animdetail_trt.trt.system import default_folder

SOURCE = Source("unet", {"checkpoint": "ab" * 32}, "fp16", (("lora", "cd" * 32, 0.8),))
TARGET = Target("tensorrt_rtx", "1.7.1", "8.9")
IDENTITY = Identity(SOURCE, TARGET, [Profile({"h": Range(32, 64, 96)})])
NAME = IDENTITY.name
PLAN = bytes(range(256)) * 64

posix = pytest.mark.skipif(os.name == "nt", reason="kills and forks as POSIX has them")


def add(store: Store, identity: Identity = IDENTITY, plan: bytes = PLAN, about: dict | None = None) -> Entry:
    with store.building(identity) as build:
        assert isinstance(build, Build)
        build.path(".plan").write_bytes(plan)
        return build.commit(build.path(".plan"), about or {})


def add_onnx(store: Store) -> Entry:
    with store.building(IDENTITY) as build:
        assert isinstance(build, Build)
        build.path(".onnx").write_bytes(b"graph")
        build.path(".weights").write_bytes(b"weights")
        return build.commit(build.path(".onnx"), {}, [build.path(".weights")])


def build_half(store: Store, error: BaseException) -> None:
    with store.building(IDENTITY) as build:
        assert isinstance(build, Build)
        build.path(".plan").write_bytes(PLAN)
        raise error


def tree(folder: Path) -> dict[str, bytes]:
    """Every file and folder, with what is in it; not the locks, nor that there is a place for what is set aside."""
    return {
        path.relative_to(folder).as_posix(): path.read_bytes() if path.is_file() else b""
        for path in folder.rglob("*")
        if ".locks" not in path.parts and path.name != "set-aside"
    }


def flip(path: Path, index: int = 1000) -> None:
    data = bytearray(path.read_bytes())
    data[index] ^= 1
    path.write_bytes(data)


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "engines")


# Keeping and finding


def test_a_folder_that_is_not_there_is_empty(store: Store) -> None:
    assert store.entries() == []
    assert store.get(IDENTITY) is None
    assert store.prune() == []
    assert not store.folder.exists()


@pytest.mark.parametrize("kind", ["plain", "Zoë's größte Modelle 模型", "linked"])
def test_what_goes_in_comes_out(tmp_path: Path, kind: str) -> None:
    folder = tmp_path / kind
    if kind == "linked":
        (tmp_path / "far").mkdir()
        folder.symlink_to(tmp_path / "far", target_is_directory=True)
    about = {"build_s": 81.2, "files": {"checkpoint": folder / "sd15.safetensors"}, "output": {"eps": ["b", "f", 4]}}
    made = add(Store(folder), about=about)
    (entry,) = Store(folder).entries()
    assert entry == made == Store(folder).get(IDENTITY)
    assert entry.identity.as_json() == IDENTITY.as_json()
    assert entry.profiles == IDENTITY.profiles
    assert entry.about == about | {"files": {"checkpoint": str(folder / "sd15.safetensors")}}
    assert (entry.name, entry.plan, entry.size) == (NAME, folder / f"{NAME}.plan", len(PLAN))
    assert Store(folder).verify(entry) is None
    with Store(folder).read(entry) as plan:
        assert bytes(plan) == PLAN
    assert set(tree(folder)) == {f"{NAME}.plan", f"{NAME}.json"}


def test_the_sidecar_says_it_in_words(store: Store) -> None:
    said = json.loads(add(store).sidecar.read_text())
    assert said["format"] == 1
    assert said["identity"]["target"] == {"flavour": "tensorrt_rtx", "version": "1.7.1", "compute_capability": "8.9"}
    assert [(file["name"], file["bytes"]) for file in said["files"]] == [(f"{NAME}.plan", len(PLAN))]


def test_find_takes_any_profiles_and_no_other_target(store: Store) -> None:
    wider = replace(IDENTITY, profiles=[Profile({"h": Range(32, 64, 128)})])
    newer = replace(IDENTITY, target=replace(TARGET, version="1.8.0"))
    stronger = replace(IDENTITY, source=replace(SOURCE, loras=(("lora", "cd" * 32, 0.9),)))
    for identity in (IDENTITY, wider, newer, stronger):
        add(store, identity)
    found = store.find(replace(SOURCE, settings={}), TARGET)
    assert {entry.name for entry in found} == {IDENTITY.name, wider.name}
    assert [entry.name for entry in store.entries()] == sorted(i.name for i in (IDENTITY, wider, newer, stronger))


def test_an_engine_that_is_there_is_not_built_again(store: Store) -> None:
    made = add(store)
    with store.building(IDENTITY, waiting=lambda: pytest.fail("nobody builds it")) as entry:
        assert entry == made


def test_an_engine_in_a_folder_that_cannot_be_written_is_found(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    made = add(store)
    monkeypatch.setattr(os, "mkdir", refuse(errno.EROFS))
    monkeypatch.setattr(os, "open", refuse(errno.EROFS))
    with store.building(IDENTITY) as entry:
        assert entry == made


def test_companions_are_kept_and_checked(store: Store) -> None:
    entry = add_onnx(store)
    assert entry.plan.suffix == ".onnx"
    assert entry.size == len(b"graphweights")
    with store.read(entry) as graph:
        assert bytes(graph) == b"graph"
    weights = store.folder / f"{NAME}.weights"
    flip(weights, 3)
    assert "weights have changed" in (store.verify(entry) or "")
    with pytest.raises(EngineError, match=rf"{NAME}\.weights have changed"):
        store.read(entry)
    assert not weights.exists()
    assert store.entries() == []


def test_an_engine_is_hashed_once_by_a_process_while_it_stays_as_it_is(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    entry, hashed = add(store), []

    def counted(file: FileIO) -> str:
        hashed.append(file.name)
        return sha256_of(file)

    def age() -> None:
        os.utime(entry.plan, (time.time() - 60, time.time() - 60))

    monkeypatch.setattr(sidecar, "sha256_of", counted)
    for _ in range(2):
        store.read(entry).close()
    assert len(hashed) == 2, "just written: its clock may not tell a change yet"
    age()
    for _ in range(3):
        store.read(entry).close()
    assert len(hashed) == 3
    assert store.verify(entry) is None
    assert len(hashed) == 4, "every byte, whatever is remembered"
    flip(entry.plan, 3)
    age()  # of the size and the date that it had
    with pytest.raises(EngineError, match="have changed"):
        store.read(entry)


def test_commit_takes_only_whole_files_of_the_build(store: Store, tmp_path: Path) -> None:
    with store.building(IDENTITY) as build:
        assert isinstance(build, Build)
        with pytest.raises(EngineError, match="left no"):
            build.commit(build.path(".plan"), {})
        build.path(".plan").touch()
        with pytest.raises(EngineError, match="empty"):
            build.commit(build.path(".plan"), {})
        (tmp_path / f"{NAME}.plan").write_bytes(PLAN)
        with pytest.raises(ValueError, match="was not written to"):
            build.commit(tmp_path / f"{NAME}.plan", {})
    assert tree(store.folder) == {}


def test_a_build_that_raises_leaves_nothing(store: Store) -> None:
    with pytest.raises(KeyboardInterrupt):
        build_half(store, KeyboardInterrupt())
    assert tree(store.folder) == {}
    add(store)


# Rivals


def test_threads_build_an_engine_once(store: Store) -> None:
    built, waited, entries = [], [], []

    def build_it() -> None:
        with Store(store.folder).building(IDENTITY, lambda: waited.append(1)) as build:
            if isinstance(build, Build):
                built.append(1)
                time.sleep(0.2)
                build.path(".plan").write_bytes(PLAN)
                build.commit(build.path(".plan"), {})
            else:
                entries.append(build)

    threads = [threading.Thread(target=build_it) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert (len(built), len(entries)) == (1, 3)
    assert len(waited) <= 3


BUILDER = f"""
import sys, time
from pathlib import Path
from animdetail_trt.trt.identity import *
from animdetail_trt.trt.profile import *
from animdetail_trt.trt.store import *
SOURCE = {SOURCE!r}
TARGET = {TARGET!r}
IDENTITY = {IDENTITY!r}
def say(word): print(word, flush=True)
"""

ONE_BUILDS_ONE_WAITS = """
with Store(Path(sys.argv[1])).building(IDENTITY, lambda: say("waits")) as build:
    if isinstance(build, Build):
        with open(sys.argv[2], "a") as builds:
            builds.write("one\\n")
        say("builds")
        sys.stdin.readline()
        build.path(".plan").write_bytes(b"plan" * 1000)
        build.commit(build.path(".plan"), {})
    else:
        say(f"has {build.size} bytes")
"""


Child = Callable[..., "subprocess.Popen[str]"]


@pytest.fixture
def child() -> Iterator[Child]:
    """Starts a process that runs a script, and ends it with the test."""
    with ExitStack() as processes:

        def start(script: str, *arguments: object) -> subprocess.Popen[str]:
            command = [sys.executable, "-c", BUILDER + script, *map(str, arguments)]
            process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
            processes.enter_context(process)
            processes.callback(process.kill)
            too_long = threading.Timer(30, process.kill)  # a word that never comes fails, and does not hang
            too_long.start()
            processes.callback(too_long.cancel)
            return process

        yield start


def test_of_two_processes_one_builds_and_one_waits(store: Store, tmp_path: Path, child: Child) -> None:
    builds = tmp_path / "builds"
    first = child(ONE_BUILDS_ONE_WAITS, store.folder, builds)
    assert first.stdout.readline() == "builds\n"
    second = child(ONE_BUILDS_ONE_WAITS, store.folder, builds)
    assert second.stdout.readline() == "waits\n"
    assert store.prune() == []  # the build at work is not a dead one
    assert len(list(store.folder.glob(".partial-*"))) == 1
    first.communicate("go\n")
    assert second.stdout.read() == "has 4000 bytes\n"
    assert first.wait() == second.wait() == 0
    assert builds.read_text() == "one\n"
    assert store.verify(store.entries()[0]) is None


@posix
def test_the_one_that_waits_builds_when_the_builder_dies(store: Store, tmp_path: Path, child: Child) -> None:
    builds = tmp_path / "builds"
    first = child(ONE_BUILDS_ONE_WAITS, store.folder, builds)
    assert first.stdout.readline() == "builds\n"
    second = child(ONE_BUILDS_ONE_WAITS, store.folder, builds)
    assert second.stdout.readline() == "waits\n"
    first.kill()
    assert second.stdout.readline() == "builds\n"
    second.communicate("go\n")
    assert builds.read_text() == "one\none\n"
    assert set(tree(store.folder)) == {f"{NAME}.plan", f"{NAME}.json"}


def test_an_engine_in_other_hands_is_not_set_aside(store: Store, tmp_path: Path, child: Child) -> None:
    entry = add(store)
    entry.plan.unlink()
    assert child(ONE_BUILDS_ONE_WAITS, store.folder, tmp_path / "builds").stdout.readline() == "builds\n"
    with pytest.raises(EngineError, match="in the hands of another process"):
        store.set_aside(entry, "its plan is missing")


def test_an_engine_rebuilt_meanwhile_is_not_set_aside(store: Store) -> None:
    stale = add(store)
    store.set_aside(stale, "for the test")
    fresh = add(store, plan=PLAN[::-1])
    with pytest.raises(EngineError, match="rebuilt or removed"):
        store.set_aside(stale, "its bytes have changed")
    with pytest.raises(EngineError, match="rebuilt or removed"):
        store.read(stale)
    assert store.entries() == [fresh]


# Kills


SLOW_BUILD = """
import os
def slowed(call):
    def slow(*arguments, **options):
        time.sleep(0.02)
        return call(*arguments, **options)
    return slow
for name in ("fsync", "replace", "mkdir", "rmdir"):
    setattr(os, name, slowed(getattr(os, name)))
say("starts")
with Store(Path(sys.argv[1])).building(IDENTITY) as build, open(build.path(".plan"), "wb", buffering=0) as plan:
    for step in range(16):
        plan.write(bytes([step]) * (1 << 18))
        time.sleep(0.01)
    build.commit(build.path(".plan"), {})
"""


def check_after_a_kill(store: Store) -> None:
    """The next build succeeds without a wait; then what there is, is whole, and nothing is left of the dead one."""
    with store.building(IDENTITY, waiting=lambda: pytest.fail("the dead do not hold locks")) as build:
        if isinstance(build, Build):
            build.path(".plan").write_bytes(PLAN)
            build.commit(build.path(".plan"), {})
    store.prune()
    (entry,) = store.entries()
    assert store.verify(entry) is None
    assert set(tree(store.folder)) == {part.path.name for part in entry.parts} | {entry.sidecar.name}


@posix
def test_killed_at_ten_random_moments_of_a_build(tmp_path: Path, child: Child) -> None:
    def run(folder: Path, kill_after_s: float | None) -> tuple[int, float]:
        builder = child(SLOW_BUILD, folder)
        assert builder.stdout.readline() == "starts\n"
        start = time.perf_counter()
        if kill_after_s is not None:
            time.sleep(kill_after_s)
            builder.kill()
        return builder.wait(), time.perf_counter() - start

    code, whole_s = run(tmp_path / "whole", None)
    assert code == 0
    moments = random.Random(4)
    codes = []
    for round_number in range(10):
        store = Store(tmp_path / f"round {round_number}")
        codes.append(run(store.folder, moments.uniform(0, whole_s))[0])
        assert [store.verify(entry) for entry in store.entries()] in ([], [None])
        check_after_a_kill(store)
    assert set(codes) <= {0, -signal.SIGKILL}
    assert -signal.SIGKILL in codes


# The same at every step that changes the folder, where random moments may miss one.
DIES_AT = """
import os, signal
left = int(sys.argv[2])
def dying(call):
    def or_die(*arguments, **options):
        global left
        if left == 0:
            os.kill(os.getpid(), signal.SIGKILL)
        left -= 1
        return call(*arguments, **options)
    return or_die
for name in ("fsync", "replace", "mkdir", "rmdir", "unlink"):
    setattr(os, name, dying(getattr(os, name)))
store = Store(Path(sys.argv[1]))
"""
BUILD = """
with store.building(IDENTITY) as build:
    build.path(".onnx").write_bytes(b"another graph")
    build.path(".weights").write_bytes(b"weights")
    build.commit(build.path(".onnx"), {}, [build.path(".weights")])
"""
SET_ASIDE = "store.set_aside(store.entries()[0], 'a test')"
PRUNE = "store.prune(lambda entry: 'a test')"


@posix
@pytest.mark.parametrize(
    ("before", "script", "least"),
    [("empty", BUILD, 9), ("damaged", BUILD, 13), ("engine", SET_ASIDE, 5), ("all", PRUNE, 5)],
)
def test_killed_before_every_step(tmp_path: Path, child: Child, before: str, script: str, least: int) -> None:
    for step in range(100):
        store = Store(tmp_path / str(step))
        if before != "empty":
            add_onnx(store)
        if before == "damaged":
            flip(store.folder / f"{NAME}.weights", 0)
        if before == "all":
            store.set_aside(store.entries()[0], "the first")
            add_onnx(store)
            (store.folder / f".partial-{NAME}-abcdefgh").mkdir()
        code = child(DIES_AT + script, store.folder, step).wait()
        assert code in (0, -signal.SIGKILL)
        faults = [store.verify(entry) for entry in store.entries()]
        assert faults in ([], [None]) or (before == "damaged" and "have changed" in faults[0])
        check_after_a_kill(store)
        if code == 0:
            assert step >= least  # as many steps as there are to die at, or the kills do not bite
            return
    pytest.fail("it never ended by itself")


# Damage


def truncate(entry: Entry) -> None:
    os.truncate(entry.plan, 100)


def empty(entry: Entry) -> None:
    os.truncate(entry.plan, 0)


def lose(entry: Entry) -> None:
    entry.plan.unlink()


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (truncate, "has 100 bytes, it was built with 16,384"),
        (empty, "has 0 bytes"),
        (lambda entry: flip(entry.plan), "have changed"),
        (lose, "is missing"),
    ],
)
def test_a_damaged_plan_is_set_aside_and_built_again(store: Store, damage: Callable[[Entry], None], words: str) -> None:
    entry = add(store, about={"command": "animdetail-trt build-engines --checkpoint x.safetensors"})
    damage(entry)
    assert words in (store.verify(entry) or "")
    with pytest.raises(EngineError, match=rf"(?s){words}.*set-aside.*build-engines --checkpoint x\.safetensors"):
        store.read(entry)
    assert store.entries() == []
    (place,) = (store.folder / "set-aside").iterdir()
    aside = json.loads((place / f"{NAME}.json").read_text())
    assert words in aside["set_aside"]["reason"]
    assert aside["files"][0]["sha256"] == entry.sha256
    assert store.verify(add(store)) is None


def test_an_engine_without_its_plan_is_no_engine(store: Store) -> None:
    add(store).plan.unlink()
    assert store.entries() == []
    assert store.get(IDENTITY) is None
    assert [leftover.reason for leftover in store.prune()] == ["one of its files is missing"]
    assert tree(store.folder) == {}


def test_building_mends_what_is_damaged(store: Store) -> None:
    for number in (1, 2):
        flip(add(store).plan)
        assert store.verify(add(store)) is None
        assert len(list((store.folder / "set-aside").iterdir())) == number
        store.prune(lambda _: "start again")
        assert tree(store.folder) == {}
        for _ in range(number):
            store.set_aside(add(store), "a number taken")


def test_what_cannot_be_read_is_reported_and_stays(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    entry = add(store)
    monkeypatch.setattr(Path, "open", refuse(errno.EACCES))
    assert "cannot be read: Permission denied" in (store.verify(entry) or "")
    with pytest.raises(EngineError, match="Permission denied.*--engine-dir"):
        store.read(entry)
    monkeypatch.undo()
    assert store.entries() == [entry]


def edited(**changes: object) -> Callable[[bytes], bytes]:
    return lambda text: json.dumps(json.loads(text) | changes).encode()


GARBAGE = {
    "empty": lambda _: b"",
    "half": lambda text: text[: len(text) // 2],
    "no text": lambda _: bytes(range(128, 256)),
    "a list": lambda _: b"[]",
    "a number": lambda _: b"7",
    "too deep": lambda _: b"[" * 100_000,
    "no format": edited(format=None),
    "no identity": edited(identity={}),
    "another identity": lambda text: text.replace(b'"8.9"', b'"8.6"'),
    "no files": edited(files=[]),
    "files are words": edited(files="none"),
    "size in words": edited(files=[{"name": f"{NAME}.plan", "bytes": "many", "sha256": ""}]),
    "nothing in it": edited(files=[{"name": f"{NAME}.plan", "bytes": 0, "sha256": ""}]),
    "itself as plan": edited(files=[{"name": f"{NAME}.json", "bytes": 1, "sha256": ""}]),
    "somebody else's file": edited(files=[{"name": "precious.plan", "bytes": 8, "sha256": ""}]),
    "a file outside": edited(files=[{"name": f"../{NAME}.plan", "bytes": 8, "sha256": ""}]),
    "about is no object": edited(about=[1]),
}


@pytest.mark.parametrize("kind", GARBAGE)
def test_a_garbage_sidecar_is_no_engine_and_no_obstacle(store: Store, kind: str) -> None:
    precious = [store.folder / "precious.plan", store.folder.parent / f"{NAME}.plan"]
    sidecar = add(store).sidecar
    for path in precious:
        path.write_bytes(b"precious")
    garbage = GARBAGE[kind](sidecar.read_bytes())
    sidecar.write_bytes(garbage)
    assert store.entries() == []
    assert store.get(IDENTITY) is None
    assert [leftover.name for leftover in store.prune(dry_run=True)] == [NAME]
    assert store.verify(add(store)) is None
    (place,) = (store.folder / "set-aside").iterdir()
    assert "damaged" in json.loads((place / f"{NAME}.json").read_text())["set_aside"]["reason"]
    assert (place / f"{NAME}.plan").read_bytes() == PLAN
    assert [path.read_bytes() for path in precious] == [b"precious"] * 2


@given(st.integers(0, 10_000), st.binary(max_size=8))
def test_no_sidecar_stops_the_listing(tmp_path_factory: pytest.TempPathFactory, at: int, noise: bytes) -> None:
    store = Store(tmp_path_factory.mktemp("noise"))
    sidecar = add(store).sidecar
    text = sidecar.read_bytes()
    at %= len(text)
    sidecar.write_bytes(text[:at] + noise + text[at + len(noise) :])
    for entry in store.entries():
        assert entry.name == NAME
        store.verify(entry)
    store.prune(dry_run=True)


def test_a_later_format_is_not_read_and_not_touched(store: Store) -> None:
    sidecar = add(store).sidecar
    sidecar.write_bytes(edited(format=2, identity="told otherwise")(sidecar.read_bytes()))
    before = tree(store.folder)
    assert store.entries() == []
    with pytest.raises(EngineError, match="format 2.*reads up to 1.*Upgrade"), store.building(IDENTITY):
        pytest.fail("it would be written over")
    assert store.prune(lambda _: "everything") == []
    assert tree(store.folder) == before


# The disk


def refuse(number: int, after: int = 0) -> Callable[..., None]:
    calls = iter(range(after))

    def call(*_: object, **__: object) -> None:
        if next(calls, None) is None:
            raise OSError(number, os.strerror(number))

    return call


@pytest.mark.parametrize("call", ["fsync", "replace"])
def test_a_full_disk_leaves_nothing_half_written(store: Store, monkeypatch: pytest.MonkeyPatch, call: str) -> None:
    real = getattr(os, call)
    for step in range(20):
        full = refuse(errno.ENOSPC, step)

        def until_full(*arguments: object, full: Callable[..., None] = full) -> None:
            full()
            real(*arguments)

        monkeypatch.setattr(os, call, until_full)
        refused = ""
        try:
            add_onnx(store)
        except EngineError as error:
            refused = str(error)
        if not refused:
            assert step >= 3  # there are as many steps for the disk to be full at
            return
        assert f"the disk of the engine folder {store.folder} is full. Make room (animdetail-trt engines" in refused
        assert tree(store.folder) == {}
    pytest.fail("it never had enough")


@pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="looks up in /proc which file is meant")
def test_what_a_sidecar_vouches_for_is_on_the_disk_first(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """A kill does not lose what was written, a power cut does."""
    steps = []
    fsync, rename = os.fsync, os.replace

    def synced(number: int) -> None:
        steps.append(("sync", Path(os.readlink(f"/proc/self/fd/{number}")).suffix))
        fsync(number)

    def renamed(old: Path, new: Path) -> None:
        steps.append(("name", Path(new).suffix))
        rename(old, new)

    monkeypatch.setattr(os, "fsync", synced)
    monkeypatch.setattr(os, "replace", renamed)
    add_onnx(store)
    folder = ("sync", "")
    written, named, vouched = steps[:3], steps[3:5], steps[5:]
    assert set(written) == {("sync", ".onnx"), ("sync", ".weights"), ("sync", ".json")}
    assert set(named) == {("name", ".onnx"), ("name", ".weights")}
    assert vouched == [folder, ("name", ".json"), folder]


def test_a_disk_that_fills_during_the_build_is_named(store: Store) -> None:
    with pytest.raises(EngineError, match=r"disk.*is full.*--engine-dir"):
        build_half(store, OSError(errno.ENOSPC, "No space left on device"))
    assert tree(store.folder) == {}
    with pytest.raises(FileNotFoundError, match="the builder's own trouble"):
        build_half(store, FileNotFoundError(errno.ENOENT, "the builder's own trouble"))


def test_setting_aside_on_a_full_disk_moves_nothing(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    entry = add(store)
    flip(entry.plan)
    before = tree(store.folder)
    monkeypatch.setattr(Path, "write_text", refuse(errno.ENOSPC))
    with pytest.raises(EngineError, match=r"have changed.*could not be set aside: the disk.*is full"):
        store.read(entry)
    assert tree(store.folder) == before


def test_a_folder_that_is_a_file(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine")
    for folder in (tmp_path / "file", tmp_path / "file" / "below"):
        with pytest.raises(EngineError, match=r"file.*--engine-dir"), Store(folder).building(IDENTITY):
            pytest.fail("nothing can be built there")
    with pytest.raises(EngineError, match="is a file"):
        Store(tmp_path / "file").entries()
    assert (tmp_path / "file").read_text() == "mine"


def test_a_folder_that_cannot_be_written(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "mkdir", refuse(errno.EACCES))
    with (
        pytest.raises(EngineError, match=rf"{store.folder} cannot be used: Permission denied.*ANIMDETAIL_ENGINE_DIR"),
        store.building(IDENTITY),
    ):
        pytest.fail("nothing can be built there")


# Pruning


def strew(folder: Path) -> dict[str, bytes]:
    """Files that are none of the store's business."""
    for name in (
        "notes.txt",
        "mine.plan",
        "mine.json",
        "unet-fp16-short.plan",
        ".partial-mine-x/data",
        "set-aside/mine/x",
    ):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text("mine")
    return tree(folder)


def test_prune_removes_leftovers_and_says_why(store: Store) -> None:
    kept = add(store)
    files = tree(store.folder)
    files |= strew(store.folder)
    other = replace(IDENTITY, target=replace(TARGET, version="1.6.0"))
    old = add(store, other)
    (store.folder / f"{other.name}.cache").write_bytes(b"kernels")  # what lies beside an engine goes with it
    orphan = replace(IDENTITY, source=replace(SOURCE, precision="bf16")).name
    (store.folder / f"{orphan}.plan").write_bytes(b"0" * 10)
    partial = store.folder / f".partial-{orphan}-abc_1234"
    partial.mkdir()
    (partial / "half").write_bytes(b"0" * 20)
    broken = replace(IDENTITY, source=replace(SOURCE, precision="fp32"))
    place = store.set_aside(add(store, broken), "it does not load")

    def unwanted(entry: Entry) -> str | None:
        version = entry.identity.target.version
        return None if version == TARGET.version else f"built for {version}"

    everything = tree(store.folder)
    pruned = store.prune(unwanted, dry_run=True)
    assert tree(store.folder) == everything
    assert {(leftover.name, leftover.reason) for leftover in pruned} == {
        (other.name, "built for 1.6.0"),
        (orphan, "it has no sidecar: its build died"),
        (orphan, "a build that died"),
        (broken.name, "set aside: it does not load"),
    }
    sizes = {leftover.reason: leftover.size for leftover in pruned}
    assert sizes["a build that died"] == 20
    assert sizes["built for 1.6.0"] == len(PLAN) + len(everything[old.sidecar.name]) + len(b"kernels")
    assert sizes["set aside: it does not load"] == sum(
        (place / f"{broken.name}{s}").stat().st_size for s in (".plan", ".json")
    )

    assert store.prune(unwanted) == pruned
    assert tree(store.folder) == files
    assert store.entries() == [kept]
    assert store.prune(unwanted) == []


# Where


@pytest.mark.parametrize(
    ("platform", "env", "folder"),
    [
        ("linux", {"XDG_CACHE_HOME": "/caches"}, "/caches/animdetail-trt/engines"),
        ("linux", {"XDG_CACHE_HOME": "relative"}, "/home/zoë/.cache/animdetail-trt/engines"),
        ("linux", {}, "/home/zoë/.cache/animdetail-trt/engines"),
        ("darwin", {"XDG_CACHE_HOME": "/caches"}, "/home/zoë/Library/Caches/animdetail-trt/engines"),
        ("win32", {"LOCALAPPDATA": "/local"}, "/local/animdetail-trt/engines"),
        ("win32", {}, "/home/zoë/AppData/Local/animdetail-trt/engines"),
        ("linux", {"ANIMDETAIL_ENGINE_DIR": "~/my engines", "XDG_CACHE_HOME": "/caches"}, "/home/zoë/my engines"),
    ],
)
@posix
def test_default_folder(monkeypatch: pytest.MonkeyPatch, platform: str, env: dict[str, str], folder: str) -> None:
    for name in ("ANIMDETAIL_ENGINE_DIR", "XDG_CACHE_HOME", "LOCALAPPDATA"):
        monkeypatch.delenv(name, raising=False)
    for name, value in ({"HOME": "/home/zoë"} | env).items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(sys, "platform", platform)
    assert default_folder() == Path(folder)


def test_no_home_folder(monkeypatch: pytest.MonkeyPatch) -> None:
    def homeless(_: type[Path]) -> Path:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.delenv("ANIMDETAIL_ENGINE_DIR", raising=False)
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setattr(Path, "home", classmethod(homeless))
    with pytest.raises(EngineError, match="Set ANIMDETAIL_ENGINE_DIR"):
        default_folder()
