"""The engines' shared buffer and their budget."""

from __future__ import annotations

from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from animdetail_trt.errors import UncoveredError
from animdetail_trt.trt import memory
from animdetail_trt.trt.memory import Residency, Workspace, in_words, workspace_of
from animdetail_trt.trt.profile import Inputs, Profile, Range
from animdetail_trt.trt.session import EngineSession
from fake_tensorrt import FakeTensorRT, affine_model, plan_bytes

CPU = torch.device("cpu")
INPUTS: Inputs = {"x": ("b", 4, "h", "w")}
PROFILE = Profile({"b": Range(1, 1, 4), "h": Range(1, 4, 64), "w": Range(1, 4, 64)})


class Loaded:
    """An engine that counts, and leaves when it is told to."""

    def __init__(self, workspace: Workspace, weights: int) -> None:
        self.workspace, self.weights, self.loads = workspace, weights, 0
        self.load()

    def load(self) -> None:
        self.workspace.admit(self, self.weights)
        self.loads += 1

    def unload(self) -> None:
        self.workspace.retire(self)

    @property
    def resident(self) -> bool:
        return self.workspace.residency.weights_of(self) > 0


def lend(workspace: Workspace, engine: Loaded, size: int) -> int:
    workspace.lend(engine, size, {"f": 16})
    return workspace.address


def test_the_buffer_grows_to_what_is_asked_and_stays() -> None:
    workspace = Workspace(CPU)
    engine = Loaded(workspace, 1)
    assert (workspace.size, workspace.address, workspace.generation) == (0, 0, 0)
    addresses = [lend(workspace, engine, size) for size in (0, 1000, 400, 1000, 3000, 1)]
    assert addresses[0] == 0
    assert addresses[1] == addresses[2] == addresses[3] != 0
    assert addresses[4] == addresses[5]
    assert (workspace.size, workspace.peak, workspace.generation) == (3000, 3000, 2)


def test_release_and_grow_again_is_another_generation() -> None:
    workspace = Workspace(CPU)
    engine = Loaded(workspace, 1)
    lend(workspace, engine, 1000)
    before = workspace.generation
    workspace.release()
    assert (workspace.size, workspace.address, workspace.peak) == (0, 0, 1000)
    lend(workspace, engine, 10)
    assert workspace.size == 10
    assert workspace.generation > before  # even if it lies where the larger one lay


def test_a_buffer_that_cannot_grow_is_gone_and_grows_later(monkeypatch: pytest.MonkeyPatch) -> None:
    workspace = Workspace(CPU)
    engine = Loaded(workspace, 1)
    lend(workspace, engine, 10)
    before = workspace.generation

    def full(*_: Any, **__: Any) -> None:
        raise torch.OutOfMemoryError

    with monkeypatch.context() as patch:
        patch.setattr(torch, "empty", full)
        with pytest.raises(torch.OutOfMemoryError):
            lend(workspace, engine, 20)
    assert workspace.size == 0
    assert workspace.generation > before
    assert lend(workspace, engine, 10) != 0


def test_the_least_recently_used_makes_room() -> None:
    workspace = Workspace(CPU, budget=100)
    a, b, c = (Loaded(workspace, 30) for _ in range(3))
    workspace.residency.use(a)
    d = Loaded(workspace, 40)
    assert [engine.resident for engine in (a, b, c, d)] == [True, False, True, True]
    assert workspace.residency.weights == 100


def test_a_growing_buffer_unloads_others_and_never_its_borrower() -> None:
    workspace = Workspace(CPU, budget=100)
    a, b = Loaded(workspace, 30), Loaded(workspace, 30)
    lend(workspace, a, 40)
    assert (a.resident, b.resident) == (True, True)
    lend(workspace, a, 41)  # a was used longer ago
    assert (a.resident, b.resident) == (True, False)
    lend(workspace, a, 70)
    with pytest.raises(
        UncoveredError, match="needs 30 bytes for its weights and 71 bytes to work in at f=16, and the "
    ):
        lend(workspace, a, 71)
    assert (workspace.size, a.resident) == (70, True)


def test_a_large_engine_takes_the_place_of_the_buffer() -> None:
    workspace = Workspace(CPU, budget=100)
    a = Loaded(workspace, 10)
    lend(workspace, a, 90)
    b = Loaded(workspace, 60)
    assert (workspace.size, a.resident, b.resident) == (0, False, True)


def test_an_engine_beyond_the_budget_is_refused_and_unloads_nothing() -> None:
    workspace = Workspace(CPU, budget=3 << 30)
    a = Loaded(workspace, 1 << 30)
    with pytest.raises(
        UncoveredError, match=r"needs 4 GiB for its weights, and the budget is 3 GiB\. Raise --vram-budg"
    ):
        Loaded(workspace, 4 << 30)
    assert a.resident
    assert len(workspace.residency) == 1


def test_the_last_engine_takes_the_buffer_along() -> None:
    workspace = Workspace(CPU)
    a, b = Loaded(workspace, 1), Loaded(workspace, 1)
    lend(workspace, a, 100)
    a.unload()
    assert workspace.size == 100
    b.unload()
    assert workspace.size == 0


def test_forgotten_engines_do_not_count() -> None:
    residency = Residency(10)
    workspace = Workspace(CPU)
    engine = Loaded(workspace, 5)
    residency.enter(engine, 10)
    assert not residency.fits(1)
    del engine
    assert residency.fits(10)
    assert len(residency) == 0


def test_a_buffer_that_forgotten_engines_left_makes_room() -> None:
    workspace = Workspace(CPU, budget=100)
    engine = Loaded(workspace, 10)
    lend(workspace, engine, 90)
    del engine
    Loaded(workspace, 60)
    assert workspace.size == 0


@given(
    st.lists(st.integers(1, 60), min_size=1, max_size=5),
    st.lists(st.tuples(st.integers(0, 4), st.integers(0, 120)), max_size=30),
)
def test_the_budget_always_holds(weights: list[int], runs: list[tuple[int, int]]) -> None:
    """Whatever runs when: what is asked for is there or is refused, and the sum stays within the budget."""
    workspace = Workspace(CPU, budget=100)
    engines: list[Loaded] = []
    for weight in weights:
        engines.append(Loaded(workspace, weight))
        assert workspace.residency.weights + workspace.size <= 100
    for index, size in runs:
        engine = engines[index % len(engines)]
        if not engine.resident:
            engine.load()
        workspace.residency.use(engine)
        if engine.weights + size > 100:
            with pytest.raises(UncoveredError):
                lend(workspace, engine, size)
        else:
            lend(workspace, engine, size)
            assert workspace.size >= size
        assert engine.resident
        assert workspace.residency.weights + workspace.size <= 100


def test_a_smaller_budget_holds_at_once_and_a_larger_one_for_what_comes() -> None:
    workspace = Workspace(CPU)
    first, second = Loaded(workspace, 30), Loaded(workspace, 40)
    lend(workspace, second, 100)
    workspace.bound(200)
    assert (first.resident, second.resident, workspace.size) == (True, True, 100)
    workspace.bound(100)
    assert (first.resident, second.resident, workspace.size) == (True, True, 0), "the buffer grows again, to less"
    workspace.bound(50)
    assert (first.resident, second.resident) == (False, True)
    with pytest.raises(UncoveredError, match="the budget is 50 bytes"):
        lend(workspace, second, 11)
    workspace.bound(51)
    lend(workspace, second, 11)


def test_a_card_has_one_workspace_whatever_it_is_called(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "_workspaces", {})
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 1)
    workspace = workspace_of(torch.device("cuda"), None)
    assert workspace.residency.budget is None
    for name, budget, holds in (("cuda:1", 8, 8), ("cuda", None, 8), ("cuda", 9, 9), ("cuda:1", 7, 7)):
        assert workspace_of(torch.device(name), budget) is workspace
        assert workspace.residency.budget == holds
    assert workspace_of(torch.device("cuda:0"), 5) is not workspace
    assert workspace.residency.budget == 7


def test_sessions_take_turns_within_a_budget(tmp_path: Path) -> None:
    """Two plans, and room for one: every run is right, and each turn costs a load; with room for both it does not."""
    plan = plan_bytes(affine_model(tmp_path / "m.onnx", INPUTS["x"]), [PROFILE])
    x = torch.randint(-9, 9, (1, 4, 8, 8)).float()
    expected = x * torch.arange(2, 6).reshape(-1, 1, 1) + torch.arange(4, 0, -1).reshape(-1, 1, 1)
    for budget, loads, first_stays in (
        (len(plan) + 1024, 6, False),
        (2 * len(plan) + 1023, 6, False),
        (2 * len(plan) + 1024, 2, True),
        (None, 2, True),
    ):
        trt, workspace = FakeTensorRT(), Workspace(CPU, budget)
        sessions = [EngineSession(trt, lambda: plan, INPUTS, [PROFILE], CPU, workspace) for _ in range(2)]
        for _ in range(3):
            for session in sessions:
                for _ in range(2):
                    assert torch.equal(session.run({"x": x}), expected)
        assert len(trt.called("deserialize_cuda_engine")) == loads
        assert [session.loaded for session in sessions] == [first_stays, True]


def test_the_session_that_ran_longest_ago_is_unloaded(tmp_path: Path) -> None:
    plan = plan_bytes(affine_model(tmp_path / "m.onnx", INPUTS["x"]), [PROFILE])
    workspace = Workspace(CPU, 2 * len(plan) + 1024)
    a, b, c = (EngineSession(FakeTensorRT(), lambda: plan, INPUTS, [PROFILE], CPU, workspace) for _ in range(3))
    for session in (a, b, a, c):
        session.run({"x": torch.ones(1, 4, 8, 8)})
    assert [session.loaded for session in (a, b, c)] == [True, False, True]


def test_a_run_beyond_the_budget_is_uncovered_and_smaller_ones_go_on(tmp_path: Path) -> None:
    plan = plan_bytes(affine_model(tmp_path / "m.onnx", INPUTS["x"]), [PROFILE])
    session = EngineSession(
        FakeTensorRT(), lambda: plan, INPUTS, [PROFILE], CPU, Workspace(CPU, len(plan) + 4 * 4 * 64)
    )
    assert session.run({"x": torch.ones(1, 4, 8, 8)}).shape == (1, 4, 8, 8)
    with pytest.raises(UncoveredError, match=r"2 KiB to work in at b=2 h=8 w=8, and the budget.*fewer frames"):
        session.run({"x": torch.ones(2, 4, 8, 8)})
    assert session.run({"x": torch.ones(1, 4, 8, 8)}).shape == (1, 4, 8, 8)


@pytest.mark.parametrize(
    ("count", "words"), [(0, "0 bytes"), (1023, "1.02e+03 bytes"), (1536, "1.5 KiB"), (5 << 40, "5.12e+03 GiB")]
)
def test_bytes_in_words(count: int, words: str) -> None:
    assert in_words(count) == words


class Stream:
    """Writes down who waits for whom."""

    def __init__(self, name: str, events: list[str]) -> None:
        self.name, self.events, self.cuda_stream = name, events, hash(name)

    def wait_stream(self, other: Stream) -> None:
        self.events.append(f"{self.name} waits for {other.name}")


@pytest.mark.parametrize("fails", [False, True])
def test_a_turn_lies_between_what_came_before_and_what_comes_after(
    monkeypatch: pytest.MonkeyPatch, fails: bool
) -> None:
    events: list[str] = []
    lane = Stream("lane", events)
    monkeypatch.setattr(torch.cuda, "device", lambda device: nullcontext())
    monkeypatch.setattr(torch.cuda, "current_stream", lambda: Stream("caller", events))
    monkeypatch.setattr(torch.cuda, "Stream", lambda device: lane)
    workspace = Workspace(torch.device("cuda", 0))
    with pytest.raises(KeyError) if fails else nullcontext(), workspace.turn() as handle:
        assert handle == lane.cuda_stream
        events.append("run")
        if fails:
            raise KeyError
    assert events == ["lane waits for caller", "run", "caller waits for lane"]
