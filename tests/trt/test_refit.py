"""New weights in a built engine, at each load: all or none."""

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
    model: Path,
    trt: FakeTensorRT,
    changed: Mapping[str, Tensor],
    *,
    base: Mapping[str, Tensor] | None = None,
    refittable: bool = True,
    fused: Any = (),
) -> EngineSession:
    plan = plan_bytes(model, [PROFILE], refittable=refittable, fused=fused)
    base = base_of(model) if base is None else base
    return EngineSession(
        trt, lambda: plan, INPUTS, [PROFILE], CPU, Workspace(CPU), weights_at_load=lambda: (base, changed)
    )


def weights_in(trt: FakeTensorRT) -> dict[str, bytes]:
    (engine,) = trt.alive
    return engine.weights


def random(seed: int) -> Tensor:
    return torch.randn(4, 1, 1, generator=torch.Generator().manual_seed(seed))


def bits(tensor: Tensor) -> bytes:
    return tensor.contiguous().numpy().tobytes()


@settings(max_examples=30)
@given(st.dictionaries(st.sampled_from(["scale", "shift"]), st.integers(0, 9)))
def test_the_engine_has_the_new_weights_and_the_base_s(
    tmp_path_factory: pytest.TempPathFactory, seeds: dict[str, int]
) -> None:
    """At each load."""
    model = affine_model(tmp_path_factory.mktemp("m") / "affine.onnx", INPUTS["x"])
    trt, changed = FakeTensorRT(), {name: random(seed) for name, seed in seeds.items()}
    session = open_session(model, trt, changed)
    expected = base_of(model).tensors | changed
    for _ in range(2):
        assert torch.allclose(session.run({"x": X}), X * expected["scale"] + expected["shift"])
        assert weights_in(trt) == {name: bits(tensor) for name, tensor in expected.items()}
        session.unload()
        assert len(trt.alive) == 0


def test_the_base_is_read_only_where_it_is_needed(model: Path) -> None:
    base = base_of(model)
    open_session(model, FakeTensorRT(), {"scale": random(1)}, base=base).run({"x": X})
    assert set(base.reads) == {"scale"}


def test_any_dtype_and_strides(tmp_path: Path) -> None:
    model = affine_model(tmp_path / "half.onnx", INPUTS["x"], dtype=np.float16)
    trt = FakeTensorRT()
    scale = torch.randn(1, 1, 8, dtype=torch.float64)[..., ::2].permute(2, 0, 1)
    session = open_session(model, trt, {"scale": scale})
    session.run({"x": X})
    assert weights_in(trt)["scale"] == bits(scale.half())


@pytest.mark.parametrize("name", ["scale", "shift"])
def test_weights_that_lie_together_are_given_together(model: Path, name: str) -> None:
    """Both must be set at once: the other comes from the base."""
    trt = FakeTensorRT()
    session = open_session(model, trt, {name: random(3)}, fused=[["scale", "shift"]])
    session.run({"x": X})
    expected = base_of(model).tensors | {name: random(3)}
    assert weights_in(trt) == {key: bits(tensor) for key, tensor in expected.items()}
    assert trt.called("set_named_weights") == [[name], *[[other] for other in expected if other != name]]


def refused(session: EngineSession, complaint: str) -> None:
    """And nothing is loaded."""
    with pytest.raises(EngineError, match=complaint):
        session.run({"x": X})
    assert (session.loaded, len(session.workspace.residency)) == (False, 0)


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
    refused(open_session(model, trt, changed), complaint)
    assert trt.called("set_named_weights") == []
    assert len(trt.alive) == 0


def test_a_weight_without_a_base_is_not_covered(model: Path) -> None:
    base = {"scale": base_of(model)["scale"]}
    refused(
        open_session(model, FakeTensorRT(), {"shift": random(1)}, base=base),
        "covers 0 of 1 weights; it has no shift",
    )


def test_a_companion_without_a_base(model: Path) -> None:
    base = {"scale": base_of(model)["scale"]}
    refused(
        open_session(model, FakeTensorRT(), {"scale": random(1)}, base=base, fused=[["scale", "shift"]]),
        "cannot be given new weights without shift",
    )


def test_an_engine_that_was_not_built_for_it(model: Path) -> None:
    session = open_session(model, FakeTensorRT(), {"scale": random(1)}, refittable=False)
    refused(session, "not built to take other weights. Merge the LoRA")
    assert open_session(model, FakeTensorRT(), {}, refittable=False).run({"x": X}).shape == X.shape


def half_done(refitter: Refitter, stream: int) -> bool:
    """What False means: a subset may have been refitted."""
    first, *_ = refitter._set.items()
    refitter._set = dict([first])
    refitter._engine.fused = []
    REFIT(refitter, stream)
    refitter._logger.log(Severity.ERROR, "the second failed")
    return False


REFIT: Callable[[Refitter, int], bool] = Refitter.refit_cuda_engine_async


def test_a_refit_that_fails_half_way_leaves_nothing_loaded(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What it holds is neither; the next run starts anew."""
    trt, changed = FakeTensorRT(), {"scale": random(2), "shift": random(3)}
    session = open_session(model, trt, changed)
    with monkeypatch.context() as patch:
        patch.setattr(Refitter, "refit_cuda_engine_async", half_done)
        refused(session, "took only some of its new weights: the second failed")
    assert len(trt.alive) == 0
    assert torch.allclose(session.run({"x": X}), X * changed["scale"] + changed["shift"])


@pytest.mark.parametrize("release", [False, True])
def test_what_the_library_keeps_for_a_refit_is_released(model: Path, release: bool) -> None:
    trt = FakeTensorRT(release=release)
    open_session(model, trt, {"scale": random(1)}).run({"x": X})
    assert len(trt.called("release_refit_resources")) == release


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
