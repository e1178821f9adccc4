"""CUDA graphs by the driver's own calls: the order of these, and what is left when one fails."""

from __future__ import annotations

import gc
from types import SimpleNamespace
from typing import Any

import pytest

from animdetail_trt.errors import EngineError
from animdetail_trt.trt.replay import capture

CALLS = (
    "cuStreamBeginCapture", "cuStreamEndCapture", "cuGraphInstantiate", "cuGraphDestroy", "cuGraphLaunch",
    "cuGraphExecDestroy",
)  # fmt: skip
STREAM = 7
WORKSPACE: Any = SimpleNamespace(stream=lambda: SimpleNamespace(cuda_stream=STREAM))


@pytest.fixture
def driver(monkeypatch: pytest.MonkeyPatch) -> Any:
    """The real module's names; ``calls`` holds what was called, ``fails`` names a call that is refused."""
    real = pytest.importorskip("cuda.bindings.driver")
    calls: list[tuple[Any, ...]] = []
    answers = {"cuStreamEndCapture": ("graph",), "cuGraphInstantiate": ("executable",)}

    def call(name: str) -> Any:
        assert callable(getattr(real, name))

        def answer(*arguments: Any) -> tuple[Any, ...]:
            calls.append((name, *arguments))
            if pretended.fails == name:
                return real.CUresult.CUDA_ERROR_STREAM_CAPTURE_INVALIDATED, None
            return real.CUresult.CUDA_SUCCESS, *answers.get(name, ())

        return answer

    pretended = SimpleNamespace(
        **{name: call(name) for name in CALLS},
        CUresult=real.CUresult, CUstreamCaptureMode=real.CUstreamCaptureMode, calls=calls, fails=None,
    )  # fmt: skip
    monkeypatch.setattr("animdetail_trt.trt.replay.optional", lambda module, purpose: pretended)
    return pretended


def names(driver: Any) -> list[str]:
    return [name for name, *_ in driver.calls]


def test_a_run_is_captured_once_launched_often_and_freed(driver: Any) -> None:
    launch = capture(lambda: driver.calls.append(("enqueue",)), WORKSPACE)
    thread_local = driver.CUstreamCaptureMode.CU_STREAM_CAPTURE_MODE_THREAD_LOCAL
    assert driver.calls == [
        ("cuStreamBeginCapture", STREAM, thread_local),
        ("enqueue",),
        ("cuStreamEndCapture", STREAM),
        ("cuGraphInstantiate", "graph", 0),
        ("cuGraphDestroy", "graph"),
    ]
    launch()
    launch()
    assert driver.calls[5:] == [("cuGraphLaunch", "executable", STREAM)] * 2
    del launch
    gc.collect()
    assert driver.calls[7:] == [("cuGraphExecDestroy", "executable")]


def test_a_run_that_fails_leaves_no_stream_in_capture(driver: Any) -> None:
    def fail() -> None:
        raise EngineError("the engine cannot run")

    with pytest.raises(EngineError, match="the engine cannot run"):
        capture(fail, WORKSPACE)
    assert names(driver) == ["cuStreamBeginCapture", "cuStreamEndCapture", "cuGraphDestroy"]


@pytest.mark.parametrize(
    ("fails", "called"),
    [
        ("cuStreamBeginCapture", []),
        ("cuStreamEndCapture", ["enqueue", "cuStreamEndCapture"]),
        ("cuGraphInstantiate", ["enqueue", "cuStreamEndCapture", "cuGraphInstantiate", "cuGraphDestroy"]),
    ],
)
def test_a_call_that_is_refused_is_told(driver: Any, fails: str, called: list[str]) -> None:
    driver.fails = fails
    with pytest.raises(EngineError, match="CUDA_ERROR_STREAM_CAPTURE_INVALIDATED. Use backend='torch'"):
        capture(lambda: driver.calls.append(("enqueue",)), WORKSPACE)
    assert names(driver) == ["cuStreamBeginCapture", *called]


def test_a_capture_that_was_broken_off_has_no_graph_to_destroy(driver: Any) -> None:
    def fail() -> None:
        driver.fails = "cuStreamEndCapture"
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        capture(fail, WORKSPACE)
    assert names(driver) == ["cuStreamBeginCapture", "cuStreamEndCapture"]
