"""EngineSession on the CPU, over a library as strict as TensorRT: what it hands over, refuses, keeps and frees."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from animdetail_trt.errors import EngineError, FullDeviceError, InputError, UncoveredError
from animdetail_trt.trt import execution, runtime_cache, session
from animdetail_trt.trt.log import engine_log
from animdetail_trt.trt.memory import Workspace
from animdetail_trt.trt.profile import Inputs, Profile, Range
from animdetail_trt.trt.session import EngineSession, choose_profile, read_sizes
from fake_tensorrt import (
    Context,
    CudaGraphStrategy,
    Engine,
    ExecutionContextAllocationStrategy,
    FakeTensorRT,
    Refitter,
    RtxRuntimeConfig,
    Runtime,
    RuntimeCache,
    Severity,
    affine_model,
    plan_bytes,
)

CPU = torch.device("cpu")
INPUTS: Inputs = {"x": ("b", 4, "h", "w")}
SMALL = Profile({"b": Range(1, 1, 2), "h": Range(2, 4, 8), "w": Range(2, 4, 8)})
LARGE = Profile({"b": Range(1, 2, 4), "h": Range(4, 8, 16), "w": Range(4, 8, 16)})

FLAVOURS = {"10.8": {}, "10.13": {"runtime_config": True}, "11": {"runtime_config": True, "release": True}}
ALL_FLAVOURS = FLAVOURS | {"rtx": {"rtx": True, "release": True}}


@pytest.fixture
def trt() -> FakeTensorRT:
    return FakeTensorRT()


@pytest.fixture
def workspace() -> Workspace:
    return Workspace(CPU)


@pytest.fixture
def open_session(tmp_path: Path, trt: FakeTensorRT, workspace: Workspace) -> Callable[..., EngineSession]:
    """A session of the affine model; ``reads`` has an item for each time that its plan was read."""

    def make(trt: FakeTensorRT = trt, dtype: Any = np.float32, **options: Any) -> EngineSession:
        inputs, profiles = options.pop("inputs", INPUTS), options.pop("profiles", (SMALL, LARGE))
        path = affine_model(tmp_path / "affine.onnx", options.pop("dims", inputs["x"]), dtype=dtype)
        plan = plan_bytes(path, profiles)

        reads: list[str] = []  # not counted on the session, which would be part of a cycle then

        def read() -> bytes:
            reads.append("read")
            return plan

        opened = EngineSession(trt, read, inputs, profiles, CPU, options.pop("workspace", workspace), **options)
        opened.reads = reads  # type: ignore[attr-defined]
        return opened

    return make


def batch(b: int = 1, h: int = 4, w: int = 4, seed: int = 0, c: int = 4) -> Tensor:
    """Small whole numbers: what is computed of them is exact."""
    return torch.randint(-64, 64, (b, c, h, w), generator=torch.Generator().manual_seed(seed)).float()


def affine(x: Tensor) -> Tensor:
    c = x.shape[1]
    return x * torch.arange(2, 2 + c).reshape(-1, 1, 1) + torch.arange(c, 0, -1).reshape(-1, 1, 1)


# What comes out


@pytest.mark.parametrize("flavour", ALL_FLAVOURS)
def test_every_flavour_computes_the_model_at_any_shape(open_session: Any, flavour: str) -> None:
    engine = open_session(FakeTensorRT(**ALL_FLAVOURS[flavour]))
    for seed, (b, h, w) in enumerate([(1, 4, 4), (2, 8, 3), (2, 8, 3), (4, 16, 5), (1, 2, 2), (3, 9, 9), (1, 4, 4)]):
        x = batch(b, h, w, seed)
        assert torch.equal(engine.run({"x": x}), affine(x))


@pytest.mark.parametrize(
    "change",
    [
        lambda x: x.transpose(2, 3).contiguous().transpose(2, 3),
        lambda x: torch.nn.functional.pad(x, (3, 1))[..., 3:-1],
        lambda x: x.half(),
        lambda x: x.double(),
    ],
    ids=["transposed", "cropped", "float16", "float64"],
)
def test_inputs_of_any_strides_and_dtype(open_session: Any, change: Callable[[Tensor], Tensor]) -> None:
    x = batch(2, 5, 7)
    assert torch.equal(open_session().run({"x": change(x)}), affine(x))


def test_the_engines_own_dtype(open_session: Any) -> None:
    x = batch()
    out = open_session(dtype=np.float16).run({"x": x})
    assert out.dtype == torch.float16
    assert torch.equal(out.float(), affine(x))


def test_a_fitting_input_is_read_where_it_lies(open_session: Any, trt: FakeTensorRT) -> None:
    x = batch()
    out = open_session().run({"x": x})
    assert trt.called("set_tensor_address") == [["x", x.data_ptr()], ["y", out.data_ptr()]]
    assert np.from_dlpack(out).ctypes.data == torch.from_dlpack(out).data_ptr() == out.data_ptr()


def test_an_output_is_the_next_engines_input_without_a_copy(open_session: Any, trt: FakeTensorRT) -> None:
    """Both work in the same buffer, which is scribbled over in between."""
    first, second, x = open_session(), open_session(), batch()
    middle = first.run({"x": x})
    out = second.run({"x": middle})
    assert ["x", middle.data_ptr()] in trt.called("set_tensor_address")
    assert torch.equal(middle, affine(x))
    assert torch.equal(out, affine(affine(x)))
    assert first.workspace.generation == 1


def test_outputs_are_the_callers(open_session: Any) -> None:
    engine = open_session()
    outs = [engine.run({"x": batch(seed=seed)}) for seed in range(4)]
    assert all(torch.equal(out, affine(batch(seed=seed))) for seed, out in enumerate(outs))


def test_inside_and_outside_of_inference_mode(open_session: Any) -> None:
    engine, x = open_session(), batch()
    engine.run({"x": x})
    with torch.inference_mode():
        inner = engine.run({"x": x})
    with torch.enable_grad():
        assert torch.equal(engine.run({"x": x.requires_grad_()}), inner)


# Profiles and shapes


def test_the_tightest_profile_is_set_once(open_session: Any, trt: FakeTensorRT) -> None:
    engine = open_session()
    for h in (4, 5, 16, 12, 4):
        engine.run({"x": batch(h=h)})
    assert trt.called("set_optimization_profile_async") == [[0], [1], [0]]


def test_the_same_shapes_are_not_set_again(open_session: Any, trt: FakeTensorRT) -> None:
    engine = open_session()
    for _ in range(3):
        engine.run({"x": batch()})
    assert len(trt.called("set_input_shape")) == len(trt.called("update_device_memory_size_for_shapes")) == 1
    assert len(trt.called("execute_async_v3")) == 3


def test_memory_is_for_the_shapes_and_not_for_the_profiles(open_session: Any, workspace: Workspace) -> None:
    engine = open_session()
    engine.run({"x": batch(1, 4, 4)})
    assert workspace.size == 4 * 64
    engine.run({"x": batch(4, 16, 16)})
    assert workspace.size == 4 * 4096
    engine.run({"x": batch(1, 2, 2)})
    assert workspace.size == workspace.peak == 4 * 4096


def test_what_no_profile_covers_is_named(open_session: Any) -> None:
    engine = open_session()
    assert engine.covers({"b": 4, "h": 16, "w": 16})
    assert not engine.covers({"b": 1, "h": 17, "w": 4})
    assert not engine.covers({"b": 1, "h": 2, "w": 16})  # each is in some profile, both are in none
    with pytest.raises(
        UncoveredError, match=r"covers h from 4 to 16 \(latents, 8 pixels each\), this run has h=17.*--size"
    ):
        engine.run({"x": batch(h=17)})
    assert len(engine.reads) == 0


@pytest.mark.parametrize(("axis", "option"), [("f", "--frames"), ("w", "--size"), ("n", "other --frames or --size")])
def test_the_option_that_widens(axis: str, option: str) -> None:
    with pytest.raises(UncoveredError, match=rf"covers {axis} from 1 to 2.*{axis}=3.*build-engines with {option}"):
        choose_profile([Profile({axis: Range(1, 1, 2)})], {axis: 3})


def test_sizes_of_an_axis_that_only_comes_eightfold(open_session: Any) -> None:
    inputs: Inputs = {"x": ("b", 4, "8h", "8w")}
    engine = open_session(inputs=inputs, profiles=[SMALL])
    x = batch(1, 64, 16)
    assert read_sizes(inputs, {"x": x}) == {"b": 1, "h": 8, "w": 2}
    assert torch.equal(engine.run({"x": x}), affine(x))
    with pytest.raises(UncoveredError, match="h=9"):
        engine.run({"x": batch(1, 72, 16)})
    with pytest.raises(InputError, match=r"x is \(1, 4, 63, 16\).*\(1, 4, 56, 16\)"):
        engine.run({"x": batch(1, 63, 16)})


@pytest.mark.parametrize(
    ("tensors", "complaint"),
    [
        ({}, "was given , and reads x"),
        ({"x": torch.zeros(1, 4, 4, 4), "z": torch.zeros(1)}, "was given x, z, and reads x"),
        ({"x": torch.zeros(4, 4, 4)}, "must have 4 dimensions"),
        ({"x": torch.zeros(1, 5, 4, 4)}, r"x is \(1, 5, 4, 4\); it must be"),
    ],
)
def test_wrong_inputs_are_refused_before_anything_is_loaded(
    open_session: Any, tensors: Mapping[str, Tensor], complaint: str
) -> None:
    engine = open_session()
    with pytest.raises(InputError, match=complaint):
        engine.run(tensors)
    assert len(engine.reads) == 0


def test_axes_must_agree_between_inputs() -> None:
    inputs: Inputs = {"latents": ("f", 4, "h", "w"), "residual": ("f", 8, "h/2", "w/2")}
    tensors = {"latents": torch.zeros(3, 4, 9, 8), "residual": torch.zeros(3, 8, 5, 4)}
    assert read_sizes(inputs, tensors) == {"f": 3, "h": 9, "w": 8}
    with pytest.raises(InputError, match=r"residual is \(3, 8, 4, 4\); it must be .*, here \(3, 8, 5, 4\)"):
        read_sizes(inputs, tensors | {"residual": torch.zeros(3, 8, 4, 4)})


# Loading and unloading


def test_lazy_load_and_unload(open_session: Any, trt: FakeTensorRT, workspace: Workspace) -> None:
    engine, x = open_session(), batch()
    assert (len(engine.reads), engine.loaded) == (0, False)
    engine.unload()
    for load in (1, 2):
        assert torch.equal(engine.run({"x": x}), affine(x))
        engine.run({"x": x})
        assert (len(engine.reads), engine.loaded, len(trt.alive)) == (load, True, 1)
        engine.unload()
        assert (engine.loaded, len(trt.alive), workspace.size, len(workspace.residency)) == (False, 0, 0, 0)


def test_a_session_that_is_forgotten_frees_its_engine(tmp_path: Path, trt: FakeTensorRT, workspace: Workspace) -> None:
    plan = plan_bytes(affine_model(tmp_path / "m.onnx", INPUTS["x"]), [SMALL])
    engine = EngineSession(trt, lambda: plan, INPUTS, [SMALL], CPU, workspace)
    engine.run({"x": batch()})
    del engine
    assert len(trt.alive) == len(workspace.residency) == 0


def test_a_plan_that_the_library_refuses(trt: FakeTensorRT, workspace: Workspace) -> None:
    engine = EngineSession(trt, lambda: b"no plan", INPUTS, [SMALL], CPU, workspace)
    for _ in range(2):
        with pytest.raises(EngineError, match="cannot be read: .*Magic tag does not match.*build-engines"):
            engine.run({"x": batch()})
        assert not engine.loaded
        assert len(workspace.residency) == 0


def test_a_plan_of_other_inputs_or_profiles_than_its_sidecar_says(tmp_path: Path, workspace: Workspace) -> None:
    plan = plan_bytes(affine_model(tmp_path / "m.onnx", INPUTS["x"]), [SMALL])
    for inputs, profiles in ((INPUTS, [SMALL, LARGE]), ({"z": INPUTS["x"]}, [SMALL])):
        trt = FakeTensorRT()
        engine = EngineSession(trt, lambda: plan, inputs, profiles, CPU, workspace)
        with pytest.raises(EngineError, match="the plan has inputs x and 1 profiles; what is written beside it says"):
            engine.run({name: batch() for name in inputs})
        assert len(trt.alive) == len(workspace.residency) == 0


def test_the_workspace_must_be_the_devices(trt: FakeTensorRT, workspace: Workspace) -> None:
    with pytest.raises(InputError, match="run on meta, and its workspace lies on cpu"):
        EngineSession(trt, bytes, INPUTS, [SMALL], torch.device("meta"), workspace)


# Failures


@pytest.mark.parametrize(
    "call", ["set_optimization_profile_async", "set_input_shape", "set_tensor_address", "execute_async_v3"]
)
@pytest.mark.parametrize("raises", [False, True])
def test_a_refused_call_is_an_engine_error_with_the_librarys_words(
    open_session: Any, trt: FakeTensorRT, monkeypatch: pytest.MonkeyPatch, call: str, raises: bool
) -> None:
    engine = open_session()
    engine.run({"x": batch(h=16)})

    def refuse(context: Context, *arguments: Any) -> bool:
        if call == "set_optimization_profile_async":
            context.profile, context.shapes = None, {}
        context.engine.logger.log(Severity.WARNING, "not this line")
        context.engine.logger.log(Severity.ERROR, "the reason")
        if raises:
            raise RuntimeError("an exception")
        return False

    with monkeypatch.context() as patch:
        patch.setattr(Context, call, refuse)
        with pytest.raises(
            EngineError, match=r"the engine cannot .*: the reason(; an exception)?\. Use backend"
        ) as error:
            engine.run({"x": batch(h=2)})
        assert "not this line" not in str(error.value)
        assert ("an exception" in str(error.value)) == raises
    for h in (16, 2):
        x = batch(h=h)
        assert torch.equal(engine.run({"x": x}), affine(x))


@pytest.mark.parametrize(
    ("line", "full"),
    [
        ("IExecutionContext::enqueueV3: Error Code 1: Cuda Runtime (out of memory)", True),
        ("Error Code 2: OutOfMemory (Requested size was 1 bytes.)", True),
        ("Error Code 3: API Usage Error (the memory format is not supported)", False),
    ],
)
def test_a_full_gpu_is_told_from_other_failures(
    open_session: Any, monkeypatch: pytest.MonkeyPatch, line: str, full: bool
) -> None:
    def refuse(context: Context, stream: int) -> bool:
        context.engine.logger.log(Severity.ERROR, line)
        return False

    monkeypatch.setattr(Context, "execute_async_v3", refuse)
    with pytest.raises(EngineError) as error:
        open_session().run({"x": batch(h=2)})
    assert isinstance(error.value, FullDeviceError) == full


def test_shapes_that_were_set_half_way_are_set_again(
    tmp_path: Path, trt: FakeTensorRT, workspace: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    inputs: Inputs = {**INPUTS, "offset": ("b", 1, 1, 1)}
    plan = plan_bytes(affine_model(tmp_path / "m.onnx", INPUTS["x"], offset=True), [SMALL])
    engine = EngineSession(trt, lambda: plan, inputs, [SMALL], CPU, workspace)
    set_input_shape = Context.set_input_shape

    def refuse_second(context: Context, name: str, shape: tuple[int, ...]) -> bool:
        return name == "x" and set_input_shape(context, name, shape)

    x, offset = batch(), torch.full((1, 1, 1, 1), 3.0)
    assert torch.equal(engine.run({"x": x, "offset": offset}), affine(x) + 3)
    with monkeypatch.context() as patch:
        patch.setattr(Context, "set_input_shape", refuse_second)
        with pytest.raises(EngineError, match=r"the engine cannot take offset of shape \(2, 1, 1, 1\)"):
            engine.run({"x": batch(2), "offset": offset.expand(2, 1, 1, 1)})
    assert torch.equal(engine.run({"x": x, "offset": offset}), affine(x) + 3)


def test_words_of_an_older_failure_are_not_repeated(trt: FakeTensorRT) -> None:
    log = engine_log(trt)
    log.handle.log(Severity.ERROR, "first")
    assert "first" in str(log.failure("a", "b"))
    assert str(log.failure("a", "b")) == "a: the library does not say why. b"


def test_one_logger_for_a_library_and_listeners_hear_all(trt: FakeTensorRT) -> None:
    log, heard = engine_log(trt), []
    assert engine_log(trt) is log
    with log.heard_by(lambda severity, message: heard.append((severity, message))):
        log.handle.log(Severity.VERBOSE, "layers")
    log.handle.log(Severity.VERBOSE, "more")
    assert heard == [(Severity.VERBOSE, "layers")]


@pytest.mark.parametrize("which", ["buffer", "output"])
def test_out_of_memory_passes_through(open_session: Any, monkeypatch: pytest.MonkeyPatch, which: str) -> None:
    engine, x = open_session(), batch(2, 8, 8)
    engine.run({"x": batch()})
    empty = torch.empty

    def full(*shape: Any, dtype: torch.dtype, **options: Any) -> Tensor:
        if (dtype == torch.uint8) == (which == "buffer"):
            raise torch.OutOfMemoryError("CUDA out of memory")
        return empty(*shape, dtype=dtype, **options)

    with monkeypatch.context() as patch:
        patch.setattr(torch, "empty", full)
        with pytest.raises(torch.OutOfMemoryError):
            engine.run({"x": x})
    assert torch.equal(engine.run({"x": x}), affine(x))


# CUDA graphs: the fake records runs, and a session that captures is asked to do so on the CPU


@pytest.fixture
def captures(monkeypatch: pytest.MonkeyPatch, trt: FakeTensorRT) -> list[str]:
    """Lets sessions capture on the CPU; lists every capture and launch."""
    events: list[str] = []

    def capture(enqueue: Callable[[], None], workspace: Workspace) -> Callable[[], None]:
        with trt.capturing() as recorded:
            enqueue()
        events.append("capture")

        def launch() -> None:
            events.append("launch")
            for run in recorded:
                run()

        return launch

    monkeypatch.setattr(session, "capture", capture)
    monkeypatch.setattr(session, "GRAPH_DEVICE", CPU.type)
    return events


def test_a_shape_is_captured_at_its_second_run_and_launched_from_the_third(
    open_session: Any, captures: list[str]
) -> None:
    engine = open_session()
    outs = [engine.run({"x": batch(seed=seed)}) for seed in range(5)]
    assert captures == ["capture", "launch", "launch", "launch"]
    assert all(torch.equal(out, affine(batch(seed=seed))) for seed, out in enumerate(outs))


def test_shapes_that_take_turns_are_captured_all(open_session: Any, trt: FakeTensorRT, captures: list[str]) -> None:
    engine = open_session()
    engine.run({"x": batch(4, 16, 16)})  # the buffer is as large as it gets
    for turn in range(4):
        for h in (4, 5, 16):
            x = batch(h=h, seed=turn)
            assert torch.equal(engine.run({"x": x}), affine(x))
    assert captures.count("capture") == 3
    assert captures.count("launch") == 3 * 2
    assert len(trt.called("execute_async_v3")) == 1 + 3 * 2 + 3


def test_few_captures_are_kept_the_last_used(open_session: Any, captures: list[str]) -> None:
    engine = open_session(cuda_graphs=2)
    engine.run({"x": batch(4, 16, 16)})
    for h in (4, 4, 5, 5, 4, 6, 6):  # the third is captured in place of 5
        engine.run({"x": batch(h=h)})
    assert (len(engine._held.replays), captures.count("capture"), captures.count("launch")) == (2, 3, 1)
    engine.run({"x": batch(h=4)})
    assert captures[-1] == "launch"
    engine.run({"x": batch(h=5)})
    assert captures[-1] == "capture"


def test_runs_with_large_tensors_are_not_captured(
    open_session: Any, captures: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(session, "CAPTURED_BYTES", 2 * 4 * 64)
    engine = open_session()
    for _ in range(3):
        engine.run({"x": batch(1, 4, 4)})
        engine.run({"x": batch(1, 4, 5)})
    assert len(engine._held.replays) == 1


def test_no_captures_where_none_are_wanted(open_session: Any, captures: list[str]) -> None:
    engine = open_session(cuda_graphs=0)
    for _ in range(4):
        engine.run({"x": batch()})
    assert captures == []


def test_a_buffer_that_grew_drops_what_was_captured_with_the_old_one(
    open_session: Any, workspace: Workspace, captures: list[str]
) -> None:
    engine, other = open_session(), open_session()
    for _ in range(3):
        engine.run({"x": batch()})
    assert captures == ["capture", "launch"]
    old = workspace.generation
    other.run({"x": batch(4, 16, 16)})
    assert workspace.generation > old
    x = batch(seed=5)
    assert torch.equal(engine.run({"x": x}), affine(x))
    assert captures == ["capture", "launch", "capture"]  # run plainly, and captured anew
    workspace.release()
    assert torch.equal(engine.run({"x": x}), affine(x))
    assert captures == ["capture", "launch", "capture", "capture"]


def test_a_capture_that_fails_is_said_once_and_runs_go_on(
    open_session: Any, monkeypatch: pytest.MonkeyPatch, captures: list[str], caplog: pytest.LogCaptureFixture
) -> None:
    def fail(enqueue: Callable[[], None], workspace: Workspace) -> Callable[[], None]:
        captures.append("failed")
        raise RuntimeError("operation not permitted when stream is capturing")

    monkeypatch.setattr(session, "capture", fail)
    engine = open_session()
    for h in (4, 4, 4, 5, 5, 5):
        x = batch(h=h)
        assert torch.equal(engine.run({"x": x}), affine(x))
    assert captures == ["failed"]
    assert [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING] == [
        "no CUDA graphs for this engine, it runs without: operation not permitted when stream is capturing"
    ]


def test_unloading_drops_captures(open_session: Any, captures: list[str]) -> None:
    engine, x = open_session(), batch()
    for _ in range(3):
        engine.run({"x": x})
    engine.unload()
    assert len(engine._held.replays) == 0
    assert torch.equal(engine.run({"x": x}), affine(x))


def prepared(engine: EngineSession, h: int, tensors: tuple[Tensor, Tensor]) -> execution.Context:
    """A context of the engine's for pictures of h x 4, bound to input and output."""
    assert engine._held.execution is not None
    context = engine._held.execution.open_context()
    engine.workspace.lend(engine, context.prepare(0, {"x": (1, 4, h, 4)}, 0), {})
    context.lend_memory(engine.workspace.address, engine.workspace.size, engine.workspace.generation)
    context.bind({"x": tensors[0]}, tensors[1])
    return context


def test_the_fake_refuses_a_capture_that_nothing_has_settled(open_session: Any, trt: FakeTensorRT) -> None:
    """So that the tests above could fail."""
    engine = open_session()
    engine.run({"x": batch()})
    context = prepared(engine, 5, (batch(h=5), batch(h=5)))
    with trt.capturing(), pytest.raises(EngineError, match="cannot be captured before a run"):
        context.enqueue(0)


@pytest.mark.parametrize("change", ["shapes", "memory", "addresses", "freed"])
def test_the_fake_refuses_a_graph_whose_context_was_changed(
    open_session: Any, trt: FakeTensorRT, workspace: Workspace, change: str
) -> None:
    """So that the tests above could fail."""
    engine, x, out = open_session(), batch(h=5), batch(h=5)
    engine.run({"x": batch(h=8)})
    context = prepared(engine, 5, (x, out))
    context.enqueue(0)
    with trt.capturing() as recorded:
        context.enqueue(0)
    (launch,) = recorded
    launch()
    assert torch.equal(out, affine(x))
    if change == "shapes":
        context.prepare(0, {"x": (1, 4, 4, 4)}, 0)
    elif change == "memory":
        context.lend_memory(workspace.address, workspace.size - 1, -1)
    elif change == "addresses":
        context.bind({"x": x.clone()}, out)
    else:
        del context
    with pytest.raises(AssertionError, match="gone" if change == "freed" else "has been changed"):
        launch()


def test_a_buffer_that_grows_for_a_capture_drops_the_other_captures(
    open_session: Any, workspace: Workspace, captures: list[str]
) -> None:
    engine, x = open_session(), batch(h=4)
    large = batch(2, 8, 8)
    engine.run({"x": large})
    workspace.release()
    for _ in range(3):
        engine.run({"x": x})  # captured with a buffer of its own size
    assert torch.equal(engine.run({"x": large}), affine(large))  # captured too, with a larger one
    assert captures[-1] == "capture"
    assert torch.equal(engine.run({"x": x}), affine(x))
    assert captures[-2:] == ["capture", "capture"], "the first was captured anew"


# TensorRT-RTX


@pytest.fixture
def rtx() -> FakeTensorRT:
    return FakeTensorRT(rtx=True)


def strategies(rtx: FakeTensorRT) -> list[CudaGraphStrategy]:
    configs = [config for (config,) in rtx.called("create_execution_context")]
    assert all(config.strategy is ExecutionContextAllocationStrategy.USER_MANAGED for config in configs)
    return [config.cuda_graph_strategy for config in configs]


def test_rtx_captures_itself_once_for_each_shape_that_comes_again(
    open_session: Any, rtx: FakeTensorRT, captures: list[str]
) -> None:
    engine = open_session(rtx)
    engine.run({"x": batch(4, 16, 16)})  # the buffer is as large as it gets
    for turn in range(4):
        for h in (4, 5, 16):
            x = batch(h=h, seed=turn)
            assert torch.equal(engine.run({"x": x}), affine(x))
    assert len(rtx.called("captured_itself")) == 3
    own, ours = CudaGraphStrategy.WHOLE_GRAPH_CAPTURE, CudaGraphStrategy.DISABLED
    assert strategies(rtx) == [ours, own, own, own], "runs at changing addresses would be captured each time"
    assert captures == []


def test_rtx_makes_no_graphs_where_none_are_wanted(open_session: Any, rtx: FakeTensorRT, captures: list[str]) -> None:
    engine = open_session(rtx, cuda_graphs=0)
    for _ in range(4):
        engine.run({"x": batch()})
    assert strategies(rtx) == [CudaGraphStrategy.DISABLED]


def test_rtx_contexts_share_the_compiled_kernels_and_the_time_to_write_them(
    open_session: Any, rtx: FakeTensorRT, captures: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    now, path = 1000.0, tmp_path / "unet.cache"
    monkeypatch.setattr(runtime_cache.time, "monotonic", lambda: now)
    engine = open_session(rtx, runtime_cache=path)
    for _ in range(3):
        engine.run({"x": batch()})
    assert len({id(config.cache) for (config,) in rtx.called("create_execution_context")}) == 1
    now += runtime_cache.SAVE_AFTER_S
    engine.run({"x": batch()})  # launched, and the file is due all the same
    assert path.read_bytes().count(b"\n") == 1


def test_compiled_kernels_are_kept_for_the_next_process(open_session: Any, rtx: FakeTensorRT, tmp_path: Path) -> None:
    path = tmp_path / "new folder" / "unet.cache"
    engine = open_session(rtx, runtime_cache=path)
    engine.run({"x": batch()})
    assert not path.exists()  # kernels are compiled behind the first run
    engine.unload()
    written = path.read_bytes()
    assert written.count(b"\n") == 1

    other = open_session(FakeTensorRT(rtx=True), runtime_cache=path)
    other.run({"x": batch(h=5)})
    other.unload()
    assert path.read_bytes().startswith(written)
    assert path.read_bytes().count(b"\n") == 2
    assert [file.name for file in path.parent.iterdir()] == ["unet.cache"]


def test_the_cache_is_written_a_while_after_a_new_shape(
    open_session: Any, rtx: FakeTensorRT, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = 1000.0
    monkeypatch.setattr(runtime_cache.time, "monotonic", lambda: now)
    path = tmp_path / "unet.cache"
    engine = open_session(rtx, runtime_cache=path)
    engine.run({"x": batch()})
    now += runtime_cache.SAVE_AFTER_S - 1
    engine.run({"x": batch()})
    assert not path.exists()
    now += 1
    engine.run({"x": batch()})
    assert path.exists()
    path.unlink()
    for h in (5, 4, 5):
        now += runtime_cache.SAVE_AFTER_S
        engine.run({"x": batch(h=h)})
    assert path.exists()  # for h=5
    path.unlink()
    for h in (4, 5, 4):
        now += runtime_cache.SAVE_AFTER_S
        engine.run({"x": batch(h=h)})
    engine.unload()
    assert not path.exists()  # nothing new


@pytest.mark.parametrize("blob", [b"", b"damaged", b"FAKECACHE sm_120\nkernel"])
def test_a_cache_that_is_refused_is_dropped(open_session: Any, rtx: FakeTensorRT, tmp_path: Path, blob: bytes) -> None:
    path = tmp_path / "unet.cache"
    path.write_bytes(blob)
    engine, x = open_session(rtx, runtime_cache=path), batch()
    assert torch.equal(engine.run({"x": x}), affine(x))
    assert not path.exists()
    engine.unload()
    assert path.read_bytes().startswith(b"FAKECACHE sm_89")


def test_a_refused_cache_in_a_folder_that_is_only_read_stops_nothing(
    open_session: Any, rtx: FakeTensorRT, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "unet.cache"
    path.write_bytes(b"FAKECACHE sm_120\nkernel")

    def refuse(self: Path, *_: Any, **__: Any) -> None:
        raise PermissionError(13, "Permission denied", str(self))

    for change in ("unlink", "write_bytes", "replace"):
        monkeypatch.setattr(Path, change, refuse)
    engine, x = open_session(rtx, runtime_cache=path), batch()
    assert torch.equal(engine.run({"x": x}), affine(x))
    engine.unload()


def test_a_cache_that_cannot_be_written_stops_nothing(
    open_session: Any, rtx: FakeTensorRT, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "file").write_text("")
    engine = open_session(rtx, runtime_cache=tmp_path / "file" / "unet.cache")
    engine.run({"x": batch()})
    engine.unload()
    assert "compiled kernels are not kept" in caplog.text


def test_other_flavours_write_no_cache(open_session: Any, trt: FakeTensorRT, tmp_path: Path) -> None:
    engine = open_session(trt, runtime_cache=tmp_path / "unet.cache")
    engine.run({"x": batch()})
    engine.unload()
    assert not (tmp_path / "unet.cache").exists()


# What is left when something goes wrong, and when nobody unloads


@pytest.fixture
def waits(workspace: Workspace, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Every wait of the host for the workspace's stream."""
    seen: list[str] = []
    monkeypatch.setattr(workspace, "synchronize", lambda: seen.append("wait"))
    return seen


def test_the_host_waits_only_before_a_context_that_ran_changes(open_session: Any, waits: list[str]) -> None:
    engine = open_session()
    told = []
    for b, h in [(1, 4), (1, 4), (2, 4), (2, 4), (2, 16), (2, 16), (1, 4)]:  # 16 is another profile
        engine.run({"x": batch(b, h)})
        told.append(len(waits))
    assert told == [0, 0, 1, 1, 2, 2, 3]


def test_the_output_is_asked_for_before_the_stream_follows_the_caller(
    open_session: Any, workspace: Workspace, captures: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    order: list[str] = []
    monkeypatch.setattr(workspace, "follow", lambda: order.append("follow"))
    for name in ("empty", "empty_like"):
        real = getattr(torch, name)
        monkeypatch.setattr(torch, name, lambda *a, _real=real, **k: order.append("output") or _real(*a, **k))
    monkeypatch.setattr(execution.Context, "enqueue", lambda *_: order.append("run"))
    engine = open_session()
    workspace.lend(engine, 1 << 20, {})
    order.clear()
    engine.run({"x": batch()})
    assert order == ["output", "follow", "run"]
    engine.run({"x": batch()})  # of buffers of its own, and once more for the graph
    assert order[-4:] == ["output", "follow", "run", "run"]


def test_an_engine_that_is_dropped_takes_its_memory_with_it(
    open_session: Any, workspace: Workspace, trt: FakeTensorRT
) -> None:
    engine = open_session()
    engine.run({"x": batch()})
    assert (workspace.size > 0, len(trt.alive)) == (True, 1)
    del engine
    assert (workspace.size, len(workspace.residency), len(trt.alive)) == (0, 0, 0)


def test_an_engine_that_is_dropped_leaves_the_buffer_to_others(open_session: Any, workspace: Workspace) -> None:
    engine, other = open_session(), open_session()
    for each in (engine, other):
        each.run({"x": batch()})
    del engine
    assert (workspace.size > 0, len(workspace.residency)) == (True, 1)
    assert torch.equal(other.run({"x": batch()}), affine(batch()))


def test_kernels_of_an_engine_that_nobody_unloads_are_kept(
    open_session: Any, rtx: FakeTensorRT, tmp_path: Path
) -> None:
    engine = open_session(rtx, runtime_cache=tmp_path / "unet.cache")
    engine.run({"x": batch()})
    del engine
    assert (tmp_path / "unet.cache").read_bytes().count(b"\n") == 1


def test_kernels_that_come_after_the_cache_was_written_are_written_too(
    open_session: Any, rtx: FakeTensorRT, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    now, path = 1000.0, tmp_path / "unet.cache"
    monkeypatch.setattr(runtime_cache.time, "monotonic", lambda: now)
    engine = open_session(rtx, runtime_cache=path)
    engine.run({"x": batch()})
    now += runtime_cache.SAVE_AFTER_S
    engine.run({"x": batch()})
    (cache,) = {config.cache for (config,) in rtx.called("create_execution_context")}
    cache.kernels.append("of the background")
    now += runtime_cache.SAVE_AFTER_S
    engine.run({"x": batch()})
    assert b"of the background" in path.read_bytes()
    now, written = now + runtime_cache.SAVE_AFTER_S, path.stat().st_ino
    engine.run({"x": batch()})
    assert path.stat().st_ino == written  # nothing new


def test_an_interrupt_while_weights_are_set_leaves_no_engine_with_the_old_ones(
    tmp_path: Path, trt: FakeTensorRT, workspace: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan = plan_bytes(affine_model(tmp_path / "affine.onnx", INPUTS["x"]), (SMALL,), refittable=True)
    base = {"scale": torch.arange(2.0, 6).reshape(4, 1, 1), "shift": torch.arange(4.0, 0, -1).reshape(4, 1, 1)}
    changed = {"scale": base["scale"] + 1}
    engine = EngineSession(trt, lambda: plan, INPUTS, [SMALL], CPU, workspace, weights_at_load=lambda: (base, changed))
    refit = Refitter.refit_cuda_engine_async

    def interrupted(self: Refitter, stream: int) -> bool:
        monkeypatch.setattr(Refitter, "refit_cuda_engine_async", refit)
        raise KeyboardInterrupt

    monkeypatch.setattr(Refitter, "refit_cuda_engine_async", interrupted)
    with pytest.raises(KeyboardInterrupt):
        engine.run({"x": batch()})
    assert (engine.loaded, len(workspace.residency)) == (False, 0)
    assert torch.equal(engine.run({"x": batch()}), batch() * changed["scale"] + base["shift"])


def test_memory_that_the_library_does_not_take_is_told(open_session: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """It returns nothing of a refusal, and would run in what it was lent before."""
    engine, take = open_session(), Context.set_device_memory

    def refuse(self: Context, memory: int, size: int) -> None:
        self._refuse("setDeviceMemoryV2", "memory is not aligned")

    monkeypatch.setattr(Context, "set_device_memory", refuse)
    for _ in range(2):
        with pytest.raises(EngineError, match="cannot take memory: .*not aligned"):
            engine.run({"x": batch()})
    monkeypatch.setattr(Context, "set_device_memory", take)
    assert torch.equal(engine.run({"x": batch()}), affine(batch()))


def test_an_error_of_an_earlier_call_is_no_reason_of_a_later_one(open_session: Any, trt: FakeTensorRT) -> None:
    """A builder logs one for a kernel that it passes over."""
    engine = open_session()
    engine_log(trt).handle.log(Severity.ERROR, "[tacticRunner] OutOfMemory: tactic skipped")
    engine._plan_reader = lambda: b"no plan"
    with pytest.raises(EngineError, match="Magic tag does not match") as caught:
        engine.run({"x": batch()})
    assert not isinstance(caught.value, FullDeviceError)


def test_a_full_device_unloads_the_other_engines_once(
    open_session: Any, workspace: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    idle, engine = open_session(), open_session()
    idle.run({"x": batch()})
    allocate = workspace._allocate

    def device(size: int) -> None:
        if idle.loaded:
            raise torch.OutOfMemoryError("CUDA out of memory")
        allocate(size)

    monkeypatch.setattr(workspace, "_allocate", device)
    assert torch.equal(engine.run({"x": batch(4, 16, 16)}), affine(batch(4, 16, 16)))
    assert not idle.loaded

    def full(size: int) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory")

    workspace.release()
    monkeypatch.setattr(workspace, "_allocate", full)
    with pytest.raises(torch.OutOfMemoryError):
        engine.run({"x": batch()})


def test_an_output_that_finds_the_device_full_unloads_the_other_engines(
    open_session: Any, workspace: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    idle, engine = open_session(), open_session()
    for each in (idle, engine):
        each.run({"x": batch()})
    empty = torch.empty

    def full(*arguments: Any, **options: Any) -> Tensor:
        if idle.loaded:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return empty(*arguments, **options)

    monkeypatch.setattr(torch, "empty", full)
    assert torch.equal(engine.run({"x": batch()}), affine(batch()))
    assert not idle.loaded


def test_a_plan_that_finds_the_device_full_unloads_the_other_engines(
    open_session: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    idle, engine = open_session(), open_session()
    idle.run({"x": batch()})
    read = Runtime.deserialize_cuda_engine

    def full(self: Runtime, plan: Any) -> Any:
        if idle.loaded:
            self._logger.log(Severity.ERROR, "Error Code 2: OutOfMemory (no further information)")
            return None
        return read(self, plan)

    monkeypatch.setattr(Runtime, "deserialize_cuda_engine", full)
    assert torch.equal(engine.run({"x": batch()}), affine(batch()))
    assert not idle.loaded


def test_what_is_dropped_while_an_engine_runs_is_freed_afterwards(
    open_session: Any, workspace: Workspace, captures: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A garbage collection may come at any time: within a capture a wait for the stream would break it off."""
    engine, waste = open_session(), [open_session()]
    waste[0].run({"x": batch()})
    inside: list[bool] = []
    waits: list[bool] = []
    capture = session.capture

    def collected(enqueue: Callable[[], None], workspace: Workspace) -> Callable[[], None]:
        inside.append(True)
        waste.clear()
        launch = capture(enqueue, workspace)
        inside.clear()
        return launch

    monkeypatch.setattr(workspace, "synchronize", lambda: waits.append(bool(inside)))
    monkeypatch.setattr(session, "capture", collected)
    for _ in range(3):
        assert torch.equal(engine.run({"x": batch()}), affine(batch()))
    assert captures == ["capture", "launch"]
    assert (waits, len(workspace.residency)) == ([False], 1)


def test_what_another_thread_drops_is_freed_by_the_one_at_work(workspace: Workspace) -> None:
    freed: list[str] = []
    with workspace.occupied():
        other = threading.Thread(target=workspace.drop, args=[lambda: freed.append(threading.current_thread().name)])
        other.start()
        other.join()
        assert freed == []
    assert freed == [threading.current_thread().name]
    workspace.drop(lambda: freed.append("at once"))
    assert freed[1:] == ["at once"]


@pytest.mark.parametrize("error", [KeyboardInterrupt, RuntimeError("CUDA error: unspecified launch failure")])
def test_a_wait_that_fails_while_cleaning_up_leaves_nothing_loaded(
    tmp_path: Path, trt: FakeTensorRT, workspace: Workspace, monkeypatch: pytest.MonkeyPatch, error: Any
) -> None:
    plan = plan_bytes(affine_model(tmp_path / "affine.onnx", INPUTS["x"]), (SMALL,), refittable=True)
    base = {"scale": torch.arange(2.0, 6).reshape(4, 1, 1), "shift": torch.arange(4.0, 0, -1).reshape(4, 1, 1)}
    changed = {"scale": base["scale"] + 1}
    engine = EngineSession(trt, lambda: plan, INPUTS, [SMALL], CPU, workspace, weights_at_load=lambda: (base, changed))

    def fail(*_: Any) -> Any:
        raise error

    with monkeypatch.context() as patch:
        patch.setattr(Refitter, "refit_cuda_engine_async", fail)
        patch.setattr(workspace, "synchronize", fail)
        with pytest.raises((KeyboardInterrupt, RuntimeError)):
            engine.run({"x": batch()})
    assert (engine.loaded, len(workspace.residency)) == (False, 0)
    assert torch.equal(engine.run({"x": batch()}), batch() * changed["scale"] + base["shift"])


def test_an_interrupted_capture_is_waited_for(
    open_session: Any, captures: list[str], waits: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = open_session()
    engine.run({"x": batch()})

    def interrupted(*_: Any) -> Any:
        raise KeyboardInterrupt

    monkeypatch.setattr(session, "capture", interrupted)
    before = len(waits)
    with pytest.raises(KeyboardInterrupt):
        engine.run({"x": batch()})
    assert len(waits) == before + 1


# The real library, which has no device here


def test_the_fake_has_only_what_the_real_library_has() -> None:
    real = pytest.importorskip("tensorrt_rtx")
    pairs = {
        Context: real.IExecutionContext,
        Engine: real.ICudaEngine,
        Refitter: real.Refitter,
        Runtime: real.Runtime,
        RtxRuntimeConfig: real.IRuntimeConfig,
        RuntimeCache: real.IRuntimeCache,
    }
    ours = {Engine: {"load", "weights"}}  # the fake's own
    for fake, genuine in pairs.items():
        names = {name for kind in fake.__mro__[:-1] for name in vars(kind) if not name.startswith("_")}
        assert {name for name in names - ours.get(fake, set()) if not hasattr(genuine, name)} == set()
    module = FakeTensorRT(rtx=True)
    own = {"rtx", "runtime_config", "release", "card", "calls", "recording", "alive", "logger"}
    assert {name for name in vars(module).keys() - own if not hasattr(real, name)} == set()
    for name in ("CudaGraphStrategy", "ExecutionContextAllocationStrategy", "DataType", "TensorIOMode"):
        for member in getattr(module, name):
            assert hasattr(getattr(real, name), member.name)


def test_the_real_library_refuses_a_damaged_plan_in_its_own_words(workspace: Workspace) -> None:
    real = pytest.importorskip("tensorrt_rtx")
    engine = EngineSession(real, lambda: b"no plan" * 100, INPUTS, [SMALL], CPU, workspace)
    with pytest.raises(EngineError, match="the engine cannot be read: ") as error:
        engine.run({"x": batch()})
    assert "does not say why" not in str(error.value)
