"""Builds that are killed, or stopped, at any moment: what the store then lists is whole, and nothing is in the way."""

from __future__ import annotations

import multiprocessing
import os
import random
import signal
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from multiprocessing.process import BaseProcess
from pathlib import Path
from types import ModuleType

import pytest
from small_builds import begin, line
from small_models import needs_rtx

from animdetail_trt.models.engines import Job, build, jobs_for
from animdetail_trt.models.files import ModelFiles
from animdetail_trt.trt.digests import Digests
from animdetail_trt.trt.flavour import load_flavour
from animdetail_trt.trt.identity import Target
from animdetail_trt.trt.profile import Profile, Range
from animdetail_trt.trt.recipe import read_recipe
from animdetail_trt.trt.store import Store

pytestmark = [needs_rtx, pytest.mark.skipif(sys.platform == "win32", reason="POSIX signals")]

KILLS = 10


def encoder_job(checkpoint: Path, store: Store, frames: int) -> Job:
    """Of the VAE's encoder, for up to so many frames: each number is another engine."""
    target = Target("tensorrt_rtx", load_flavour("tensorrt_rtx").version, "8.9")
    jobs = jobs_for(ModelFiles(checkpoint), target, read_recipe(), Digests(store.folder))
    job = next(job for job in jobs if job.component == "vae_encoder")
    profile = Profile({"f": Range(1, 1, frames), "h": Range(8, 8, 16), "w": Range(8, 8, 16)})
    return replace(job, identity=replace(job.identity, profiles=[profile]))


def build_encoder(checkpoint: Path, folder: Path, frames: int) -> None:
    store = Store(folder)
    build(encoder_job(checkpoint, store, frames), store, load_flavour("tensorrt_rtx"))


@pytest.fixture
def begin_build(small: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[Path, int], BaseProcess]:
    """Begins a build in a fork of a process that has imported everything, so that it starts at once."""
    monkeypatch.setitem(sys.modules, "__main__", ModuleType("__main__"))  # a child has no use for pytest's
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(
        [
            "animdetail_trt.models.engines",
            "diffusers.models.attention_processor",
            "diffusers.models.autoencoders.autoencoder_kl",
            "onnx",
            "onnxruntime",
            "polygraphy.backend.onnxrt",
            "polygraphy.comparator",
            "tensorrt_rtx",
        ]
    )

    def start(folder: Path, frames: int) -> BaseProcess:
        process = context.Process(target=build_encoder, args=(small / "sd15", folder, frames))
        process.start()
        return process

    return start


def test_killed_at_any_moment(begin_build: Callable[[Path, int], BaseProcess], tmp_path: Path) -> None:
    begin_build(tmp_path / "first", 1).join()  # starts the server
    start = time.monotonic()
    undisturbed = begin_build(tmp_path / "first", 2)
    undisturbed.join()
    elapsed = time.monotonic() - start
    assert undisturbed.exitcode == 0

    store, chance = Store(tmp_path / "engines"), random.Random(5)
    engine, kills = 0, 0
    while kills < KILLS:
        engine += 1
        start = time.monotonic()
        process = begin_build(store.folder, engine)
        process.join(elapsed * (kills + chance.random()) / KILLS)
        process.kill()
        process.join()
        if process.exitcode == 0:
            elapsed = time.monotonic() - start  # the machine is less busy now
        else:
            assert process.exitcode == -signal.SIGKILL
            kills += 1
        assert all(store.verify(entry) is None for entry in store.entries())
    assert len(list(store.folder.glob(".partial*"))) > KILLS / 2

    last = begin_build(store.folder, engine)
    last.join()
    assert last.exitcode == 0
    store.prune()
    entries = store.entries()
    assert engine in [entry.profiles[0].axes["f"].max for entry in entries]
    assert all(store.verify(entry) is None for entry in entries)
    kept = {path.name for entry in entries for path in (entry.plan, entry.sidecar)}
    assert {path.name for path in store.folder.iterdir()} <= kept | {"digests.json", ".locks"}


# Background jobs of a shell inherit an ignored SIGINT; a terminal's do not. It tells when TensorRT is at work.
_PROGRAM = """
import signal, sys
signal.signal(signal.SIGINT, signal.default_int_handler)
from animdetail_trt.cli import main
from animdetail_trt.models import engines
def build_plan(*args, built=engines.build_plan, **options):
    print("TensorRT builds", file=sys.stderr, flush=True)
    return built(*args, **options)
engines.build_plan = build_plan
sys.exit(main(sys.argv[1:]))
"""


def cpu_seconds(process: int) -> float:
    """That it has used so far, all threads together."""
    fields = Path(f"/proc/{process}/stat").read_text().rpartition(") ")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def cpu_seconds_of_children() -> float:
    """Of those that have ended."""
    import resource  # not on Windows

    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def test_interrupted_while_tensorrt_builds(small: Path, tmp_path: Path) -> None:
    """Within five seconds on two processors: counted in their time, which other work here does not lengthen."""
    ended_before = cpu_seconds_of_children()
    process = begin(line(small / "sd15", tmp_path), program=("-c", _PROGRAM))
    try:
        assert process.stderr is not None
        seen = ""
        while "TensorRT builds" not in seen:
            seen += process.stderr.readline()
            assert process.poll() is None, seen
        time.sleep(2)  # into the one step that takes nearly all the time
        assert process.poll() is None
        used = cpu_seconds(process.pid)
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=60)
    finally:
        process.kill()
    assert process.returncode == 130, err
    assert cpu_seconds_of_children() - ended_before - used < 2 * 5
    assert "interrupted: nothing half-written was left behind" in err
    assert "Traceback" not in err
    assert {path.name for path in tmp_path.iterdir()} <= {"digests.json", ".locks"}
