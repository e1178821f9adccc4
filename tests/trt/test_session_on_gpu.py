"""EngineSession with the real libraries on a card: built here, run here, against torch in float16."""

from __future__ import annotations

import gc
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from on_the_card import CHANNELS, INPUTS, PROFILES, build, by_torch, library_on_card, random_weights
from torch import Tensor

from animdetail_trt.errors import EngineError, UncoveredError
from animdetail_trt.trt.execution import Context
from animdetail_trt.trt.memory import Workspace
from animdetail_trt.trt.session import EngineSession

pytestmark = pytest.mark.gpu

SIZES = [(1, 16, 16), (2, 32, 8), (4, 128, 96), (1, 9, 31), (1, 16, 16), (3, 33, 64)]
TOLERANCE = 1e-2  # of float16 against float16 with sums in another order, as a relative norm
SLEEP_CYCLES = 1_000_000_000  # some 0.5 s of a GPU's time


@pytest.fixture(scope="module", params=["tensorrt", "tensorrt_rtx"])
def library(request: pytest.FixtureRequest) -> tuple[Any, bytes]:
    return library_on_card(request.param)


@pytest.fixture
def workspace() -> Workspace:
    return Workspace(torch.device("cuda"))


@pytest.fixture
def make(library: tuple[Any, bytes], workspace: Workspace) -> Callable[..., EngineSession]:
    def session(plan: bytes = library[1], **options: Any) -> EngineSession:
        return open_plan(library[0], plan, workspace, **options)

    return session


def open_plan(trt: Any, plan: bytes, workspace: Workspace, **options: Any) -> EngineSession:
    inputs = options.pop("inputs", INPUTS)
    return EngineSession(trt, lambda: plan, inputs, PROFILES, workspace.device, workspace, **options)


def noise(b: int, h: int, w: int, seed: int = 0) -> Tensor:
    return torch.randn(b, CHANNELS, h, w, generator=torch.Generator().manual_seed(seed)).cuda()


def away(out: Tensor, expected: Tensor) -> float:
    return ((out - expected).norm() / expected.norm()).item()


@pytest.mark.parametrize("cuda_graphs", [0, 2])
def test_several_shapes_again_and_again(make: Any, cuda_graphs: int) -> None:
    session, weights = make(cuda_graphs=cuda_graphs), random_weights()
    for turn in range(4):
        for size in SIZES:
            x = noise(*size, seed=turn)
            out = session.run({"x": x})
            assert out.dtype == torch.float32
            assert away(out, by_torch(weights, x)) < TOLERANCE
    assert len(session._held.replays) <= cuda_graphs


def test_a_replay_is_the_plain_run_to_the_bit(make: Any) -> None:
    session, plain = make(), make(cuda_graphs=0)
    outs = []
    for seed in range(6):
        x = noise(2, 24, 24, seed)
        outs.append((session.run({"x": x}), plain.run({"x": x}), by_torch(random_weights(), x)))
    captures_itself = session._held.execution.captures_itself  # and then changes kernels between runs
    assert len(session._held.replays) == 1
    for out, expected, reference in outs:
        assert away(out, reference) < TOLERANCE
        assert captures_itself or torch.equal(out, expected)


def test_a_capture_survives_no_growth_of_the_buffer(make: Any) -> None:
    session, x = make(), noise(1, 16, 16)
    for _ in range(3):
        first = session.run({"x": x})
    session.run({"x": noise(4, 128, 128)})
    for _ in range(3):
        assert away(session.run({"x": x}), first) < TOLERANCE


def test_engines_share_the_buffer_and_hand_tensors_on_without_a_copy(make: Any, workspace: Workspace) -> None:
    weights, others = random_weights(), random_weights(1)
    first, second = make(), make(build(make()._trt, others))
    for seed in range(4):
        x = noise(2, 64, 64, seed)
        middle = first.run({"x": x})
        out = second.run({"x": middle})
        if seed == 0:  # later runs may be replays, with inputs of their own
            assert second._held.execution.context.handle.get_tensor_address("x") == middle.data_ptr()
        assert away(middle, by_torch(weights, x)) < TOLERANCE
        assert away(out, by_torch(others, by_torch(weights, x))) < TOLERANCE
    assert workspace.size == workspace.peak


def test_runs_keep_their_place_in_the_callers_stream_and_wait_for_nothing(make: Any) -> None:
    session, weights = make(), random_weights()
    values = noise(1, 32, 32, seed=3)
    for _ in range(4):  # loaded, and captured where it captures
        session.run({"x": values})
    for stream in (torch.cuda.default_stream(), torch.cuda.Stream()):
        x = torch.zeros_like(values)
        torch.cuda.synchronize()
        with torch.cuda.stream(stream):
            session.run({"x": x}).mul(2)  # torch has memory for this stream now
            torch.cuda.synchronize()
            torch.cuda._sleep(SLEEP_CYCLES)
            started = time.perf_counter()
            x.copy_(values)
            out = session.run({"x": x})
            x.fill_(torch.nan)
            doubled = out * 2
            waited_s = time.perf_counter() - started
            busy = not stream.query()
        torch.cuda.synchronize()
        assert away(doubled, 2 * by_torch(weights, values)) < TOLERANCE
        assert busy, f"the run took {waited_s:.3f} s and waited for the device"


@pytest.mark.parametrize("cuda_graphs", [0, 4])
def test_profiles_take_turns_and_outputs_are_read_at_the_end(make: Any, cuda_graphs: int) -> None:
    session, weights = make(cuda_graphs=cuda_graphs), random_weights()
    pictures = [noise(*size, seed) for seed in range(6) for size in ((1, 16, 16), (4, 128, 128), (2, 32, 32))]
    outs = [session.run({"x": x}) for x in pictures]
    for x, out in zip(pictures, outs, strict=True):
        assert away(out, by_torch(weights, x)) < TOLERANCE


def test_a_small_picture_asks_for_less_memory_than_a_large_one(make: Any, workspace: Workspace) -> None:
    session = make(build(make()._trt, random_weights(hidden=1024)), cuda_graphs=0)
    needed = []
    for size in ((1, 33, 33), (4, 128, 128)):  # of one profile
        session.run({"x": noise(*size)})
        needed.append(workspace.peak)
    assert 0 < needed[0] < needed[1] / 4


def test_a_capture_that_fails_leaves_the_card_as_it_was(
    make: Any, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    session, weights, x = make(), random_weights(), noise(1, 24, 24)
    session.run({"x": x})
    if session._held.execution.captures_itself:
        pytest.skip("this library captures by itself")
    enqueue, calls = Context.enqueue, []

    def forbidden(self: Context, stream: int) -> None:
        enqueue(self, stream)
        calls.append(stream)
        if len(calls) == 2:  # the first settles the shapes
            session.workspace.stream().synchronize()  # which no capture outlives

    monkeypatch.setattr(Context, "enqueue", forbidden)
    session.run({"x": x})
    assert "no CUDA graphs for this engine" in caplog.text
    monkeypatch.undo()
    for seed in range(4):
        x = noise(1, 24, 24, seed)
        assert away(session.run({"x": x}), by_torch(weights, x)) < TOLERANCE
    torch.empty(1 << 20, device="cuda").zero_().sum().item()


def test_an_engine_that_is_dropped_frees_the_card(make: Any, workspace: Workspace) -> None:
    plan = build(make()._trt, random_weights(hidden=8192))
    session, x = make(plan), noise(2, 64, 64)
    for _ in range(3):
        session.run({"x": x})
    torch.cuda.synchronize()
    before = torch.cuda.mem_get_info()[0]
    held = workspace.size
    del session
    gc.collect()
    assert (workspace.size, len(workspace.residency)) == (0, 0)
    assert torch.cuda.mem_get_info()[0] - before >= held > 0


def test_unloading_frees_the_card(make: Any, workspace: Workspace) -> None:
    hidden = 8192  # 64 MiB to work in for a picture of 64x64
    plan = build(make()._trt, random_weights(hidden=hidden))
    session = make(plan)
    x = noise(2, 64, 64)

    def free_bytes() -> int:
        torch.cuda.synchronize()
        torch.cuda.empty_cache()
        return torch.cuda.mem_get_info()[0]

    first = session.run({"x": x})  # the library and the driver keep some memory from then on
    session.unload()
    before = free_bytes()
    session.run({"x": x})
    held = before - free_bytes()
    assert held >= workspace.size > 0
    session.unload()
    assert workspace.size == 0
    assert before - free_bytes() < held / 4
    assert away(session.run({"x": x}), first) < TOLERANCE


def test_sizes_beyond_the_profiles_and_the_budget(library: tuple[Any, bytes]) -> None:
    trt, plan = library
    workspace = Workspace(torch.device("cuda"), budget=len(plan))
    session = open_plan(trt, plan, workspace)
    with pytest.raises(UncoveredError, match="h=200"):
        session.run({"x": noise(1, 200, 16)})
    with pytest.raises(UncoveredError, match="the budget is"):
        session.run({"x": noise(4, 128, 128)})


def test_a_damaged_plan_is_refused(library: tuple[Any, bytes], workspace: Workspace) -> None:
    trt, plan = library
    with pytest.raises(EngineError, match="cannot be read"):
        open_plan(trt, b"\0" * 64 + plan[64:], workspace).run({"x": noise(1, 16, 16)})


def test_a_runtime_cache_is_written_and_taken_again(make: Any, tmp_path: Path) -> None:
    session = make(runtime_cache=tmp_path / "engine.cache")
    session.run({"x": noise(1, 16, 16)})
    if session._held.execution.runtime_cache is None:
        pytest.skip("this library keeps none")
    session.unload()
    written = (tmp_path / "engine.cache").stat()
    again = make(runtime_cache=tmp_path / "engine.cache")
    again.run({"x": noise(1, 16, 16)})
    assert (tmp_path / "engine.cache").stat().st_ino == written.st_ino  # a refused one would be gone


def test_new_weights_at_each_load(library: tuple[Any, bytes], workspace: Workspace) -> None:
    trt, _ = library
    base = random_weights()
    try:
        plan = build(trt, base, refit=True)
    except EngineError as error:
        pytest.skip(f"no refittable engine here: {error}")
    x = noise(2, 32, 32)
    a, b = random_weights(1), random_weights(2)
    sets: list[dict[str, Tensor]] = [
        {},
        {"first.weight": a["first.weight"]},
        {name: b[name] for name in ("first.bias", "last.weight")},
    ]

    def opened(changed: dict[str, Tensor]) -> EngineSession:
        return open_plan(trt, plan, workspace, weights_at_load=lambda: (base, changed))

    for changed in sets:
        session = opened(changed)
        for _ in range(2):
            out = [session.run({"x": x}) for _ in range(3)][-1]
            assert away(out, by_torch({**base, **changed}, x)) < TOLERANCE
            session.unload()
    session = opened({"other": a["first.weight"]})
    with pytest.raises(EngineError, match="covers 0 of 1 weights; it has no other"):
        session.run({"x": x})
    assert not session.loaded
