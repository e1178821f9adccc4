"""New weights in a built engine: always from the base, all or none."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import numpy_helper
from torch import Tensor

from animdetail_trt.errors import EngineError
from animdetail_trt.trt.memory import Workspace
from animdetail_trt.trt.profile import Inputs, Profile, Range
from animdetail_trt.trt.session import EngineSession
from fake_tensorrt import Engine, FakeTensorRT, Refitter, Severity, affine_model, plan_bytes

CPU = torch.device("cpu")
INPUTS: Inputs = {"x": ("b", 4, "h", "w")}
PROFILE = Profile({"b": Range(1, 1, 4), "h": Range(1, 4, 8), "w": Range(1, 4, 8)})
X = torch.arange(64.0).reshape(1, 4, 4, 4)


class LazyBase(Mapping[str, Tensor]):
    """Weights of a file, read one by one; ``reads`` lists them."""

    def __init__(self, tensors: Mapping[str, Tensor]) -> None:
        self.tensors, self.reads = tensors, list[str]()

    def __getitem__(self, name: str) -> Tensor:
        self.reads.append(name)
        return self.tensors[name].clone()

    def __contains__(self, name: object) -> bool:
        return name in self.tensors

    def __iter__(self) -> Iterator[str]:
        return iter(self.tensors)

    def __len__(self) -> int:
        return len(self.tensors)


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return affine_model(tmp_path / "affine.onnx", INPUTS["x"])


def base_of(model: Path) -> LazyBase:
    tensors = onnx.load(model).graph.initializer
    return LazyBase({tensor.name: torch.from_numpy(numpy_helper.to_array(tensor).copy()) for tensor in tensors})


def open_session(
    model: Path, trt: FakeTensorRT, *, base: Mapping[str, Tensor] | None = None, fused: Any = (), **options: Any
) -> EngineSession:
    plan = plan_bytes(model, [PROFILE], refittable=options.pop("refittable", True), fused=fused)
    base = base_of(model) if base is None else base
    options = {"weights_at_load": lambda: (base, {})} | options
    return EngineSession(trt, lambda: plan, INPUTS, [PROFILE], CPU, Workspace(CPU), **options)


def weights_in(trt: FakeTensorRT) -> dict[str, bytes]:
    (engine,) = trt.alive
    return engine.weights


def random(seed: int) -> Tensor:
    return torch.randn(4, 1, 1, generator=torch.Generator().manual_seed(seed))


def bits(tensor: Tensor) -> bytes:
    return tensor.contiguous().numpy().tobytes()


def test_a_b_a_leaves_the_first_bits(model: Path) -> None:
    trt = FakeTensorRT()
    session = open_session(model, trt)
    plain = session.run({"x": X})
    a, b = {"scale": random(1)}, {"shift": random(2)}
    assert str(session.set_weights(a)) == "1 of 1 weights"
    out_a, weights_a = session.run({"x": X}), weights_in(trt)
    session.set_weights(b)
    out_b = session.run({"x": X})
    session.set_weights(a)
    assert torch.equal(session.run({"x": X}), out_a)
    assert weights_in(trt) == weights_a
    base = base_of(model)
    assert torch.allclose(out_a, X * a["scale"] + base["shift"])
    assert torch.allclose(out_b, X * base["scale"] + b["shift"])
    session.set_weights({})
    assert torch.equal(session.run({"x": X}), plain)


@settings(max_examples=30)
@given(st.lists(st.dictionaries(st.sampled_from(["scale", "shift"]), st.integers(0, 9)), max_size=6))
def test_only_the_last_set_counts(tmp_path_factory: pytest.TempPathFactory, sets: list[dict[str, int]]) -> None:
    model = affine_model(tmp_path_factory.mktemp("m") / "affine.onnx", INPUTS["x"])
    trt = FakeTensorRT()
    session = open_session(model, trt)
    for seeds in sets:
        session.set_weights({name: random(seed) for name, seed in seeds.items()})
    session.run({"x": X})
    last = {name: random(seed) for name, seed in (sets[-1] if sets else {}).items()}
    assert weights_in(trt) == {name: bits(tensor) for name, tensor in (base_of(model).tensors | last).items()}


def test_the_base_is_read_only_where_it_is_needed(model: Path) -> None:
    base = base_of(model)
    session = open_session(model, FakeTensorRT(), base=base)
    session.set_weights({"scale": random(1)})
    assert set(base.reads) == {"scale"}
    base.reads.clear()
    session.set_weights({"shift": random(1)})
    assert set(base.reads) == {"scale", "shift"}
    base.reads.clear()
    session.set_weights({"shift": random(2)})
    assert set(base.reads) == {"shift"}


def test_any_dtype_and_strides(tmp_path: Path) -> None:
    model = affine_model(tmp_path / "half.onnx", INPUTS["x"], dtype=np.float16)
    trt = FakeTensorRT()
    session = open_session(model, trt)
    scale = torch.randn(1, 1, 8, dtype=torch.float64)[..., ::2].permute(2, 0, 1)
    session.set_weights({"scale": scale})
    assert weights_in(trt)["scale"] == bits(scale.half())


def test_names_of_the_engines_own(model: Path) -> None:
    trt, base = FakeTensorRT(), base_of(model)
    named = {"conv.weight": base["scale"], "shift": base["shift"]}
    session = open_session(model, trt, base=named, weight_names={"conv.weight": "scale"}, fused=[["scale", "shift"]])
    session.set_weights({"shift": random(1)})
    session.set_weights({"conv.weight": random(2)})
    assert weights_in(trt) == {"scale": bits(random(2)), "shift": bits(base["shift"])}


def test_weights_that_lie_together_are_given_together(model: Path) -> None:
    """Both must be set at once: the other comes from the base, not from the set before."""
    trt = FakeTensorRT()
    session = open_session(model, trt, fused=[["scale", "shift"]])
    for name in ("scale", "shift", "scale"):
        session.set_weights({name: random(3)})
        expected = base_of(model).tensors | {name: random(3)}
        assert weights_in(trt) == {key: bits(tensor) for key, tensor in expected.items()}
    assert trt.called("set_named_weights")[:2] == [["scale"], ["shift"]]


@pytest.mark.parametrize(
    ("changed", "complaint"),
    [
        ({"scale": random(1), "other": random(1)}, r"covers 1 of 2 weights; it has no other\. Merge the LoRA"),
        ({"other": random(1), "another": random(2)}, r"covers 0 of 2 weights; it has no other \(and 1 more\)"),
        ({"scale": torch.zeros(4)}, r"the new weight scale is \(4,\), in the engine \(4, 1, 1\)"),
    ],
)
def test_incomplete_coverage_is_refused_before_anything_is_set(
    model: Path, changed: dict[str, Tensor], complaint: str
) -> None:
    trt = FakeTensorRT()
    session = open_session(model, trt)
    session.set_weights({"shift": random(7)})
    before, calls = weights_in(trt), len(trt.called("set_named_weights"))
    with pytest.raises(EngineError, match=complaint):
        session.set_weights(changed)
    assert len(trt.called("set_named_weights")) == calls
    assert weights_in(trt) == before
    assert len(trt.called("deserialize_cuda_engine")) == 1


def test_a_weight_without_a_base_is_not_covered(model: Path) -> None:
    base = {"scale": base_of(model)["scale"]}
    session = open_session(model, FakeTensorRT(), base=base)
    with pytest.raises(EngineError, match="covers 0 of 1 weights; it has no shift"):
        session.set_weights({"shift": random(1)})


def test_a_companion_without_a_base(model: Path) -> None:
    base = {"scale": base_of(model)["scale"]}
    session = open_session(model, FakeTensorRT(), base=base, fused=[["scale", "shift"]])
    with pytest.raises(EngineError, match="cannot be given new weights without shift"):
        session.set_weights({"scale": random(1)})


def test_an_engine_that_was_not_built_for_it(model: Path) -> None:
    session = open_session(model, FakeTensorRT(), refittable=False)
    with pytest.raises(EngineError, match="not built to take other weights. Merge the LoRA"):
        session.set_weights({"scale": random(1)})
    session = open_session(model, FakeTensorRT(), weights_at_load=None)
    with pytest.raises(EngineError, match="own weights are not at hand"):
        session.set_weights({"scale": random(1)})
    assert session.run({"x": X}).shape == X.shape


def half_done(refitter: Refitter, stream: int) -> bool:
    """What False means: a subset may have been refitted."""
    first, *_ = refitter._set.items()
    refitter._set = dict([first])
    refitter._engine.fused = []
    REFIT(refitter, stream)
    refitter._logger.log(Severity.ERROR, "the second failed")
    return False


REFIT: Callable[[Refitter, int], bool] = Refitter.refit_cuda_engine_async


def test_a_refit_that_fails_half_way_leaves_the_weights_from_before(
    model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trt = FakeTensorRT()
    session = open_session(model, trt)
    session.set_weights({"shift": random(1)})
    before = session.run({"x": X})
    with monkeypatch.context() as patch:
        patch.setattr(Refitter, "refit_cuda_engine_async", half_done)
        with pytest.raises(EngineError, match="took only some of its new weights: the second failed"):
            session.set_weights({"scale": random(2), "shift": random(3)})
    assert not session.loaded  # what it holds is neither
    assert torch.equal(session.run({"x": X}), before)


def test_a_refit_that_fails_at_a_load_leaves_nothing_loaded(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    trt = FakeTensorRT()
    session = open_session(model, trt)
    session.set_weights({"scale": random(1)})
    after = session.run({"x": X})
    session.unload()
    with monkeypatch.context() as patch:
        patch.setattr(Refitter, "refit_cuda_engine_async", half_done)
        with pytest.raises(EngineError, match="took only some"):
            session.run({"x": X})
    assert (session.loaded, len(trt.alive), len(session.workspace.residency)) == (False, 0, 0)
    assert torch.equal(session.run({"x": X}), after)


def test_weights_outlive_an_unload(model: Path) -> None:
    trt = FakeTensorRT()
    session = open_session(model, trt)
    session.set_weights({"scale": random(1)})
    before = session.run({"x": X})
    session.unload()
    assert len(trt.alive) == 0
    assert torch.equal(session.run({"x": X}), before)
    session.set_weights({})
    assert weights_in(trt) == {name: bits(tensor) for name, tensor in base_of(model).tensors.items()}


@pytest.mark.parametrize("release", [False, True])
def test_what_the_library_keeps_for_a_refit_is_released(model: Path, release: bool) -> None:
    trt = FakeTensorRT(release=release)
    open_session(model, trt).set_weights({"scale": random(1)})
    assert len(trt.called("release_refit_resources")) == release


def test_captured_graphs_are_dropped(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    trt = FakeTensorRT()
    session = open_session(model, trt)

    def capture(enqueue: Callable[[], None], workspace: Workspace) -> Callable[[], None]:
        return enqueue

    monkeypatch.setattr("animdetail_trt.trt.session.capture", capture)
    monkeypatch.setattr("animdetail_trt.trt.session.GRAPH_DEVICE", CPU.type)
    for _ in range(3):
        session.run({"x": X})
    assert len(session._held.replays) == 1
    session.set_weights({"scale": random(1)})
    assert len(session._held.replays) == 0
    assert torch.allclose(session.run({"x": X}), X * random(1) + base_of(model)["shift"])


def test_the_fake_reads_weights_when_it_refits(model: Path) -> None:
    """So that a tensor that was freed too early would show."""
    trt = FakeTensorRT()
    runtime = trt.Runtime(trt.ILogger())
    engine: Engine = runtime.deserialize_cuda_engine(plan_bytes(model, [PROFILE], refittable=True))
    refitter, tensor = trt.Refitter(engine, trt.ILogger()), random(1)
    weights = trt.Weights(trt.DataType.FLOAT, tensor.data_ptr(), 4)
    assert refitter.set_named_weights("scale", weights)
    tensor.fill_(5)
    assert refitter.refit_cuda_engine_async(0)
    assert engine.weights["scale"] == bits(torch.full((4, 1, 1), 5.0))
