"""Several ways to run a model, tried from the fastest down."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from functools import partial

import pytest
import torch
from torch import Tensor

from animdetail_trt.backends.failures import engine_failures
from animdetail_trt.backends.interface import UNetRunner, VaeRunner
from animdetail_trt.backends.ladder import LadderUNet, LadderVae, Rung
from animdetail_trt.errors import EngineError, FullDeviceError, InputError, LostDeviceError, UncoveredError

CPU = torch.device("cpu")
LATENTS, TOKENS = torch.zeros(2, 3, 4, 8, 8), torch.zeros(2, 1, 77, 64)


class Model:
    """A UNet and a VAE that adds ``step``, and raises what ``fails`` says of its input."""

    device = CPU
    positions = None
    token_dim = 64

    def __init__(self, step: float, fails: Callable[[Tensor], Exception | None] = lambda x: None) -> None:
        self.step, self.fails = step, fails
        self.calls: list[int] = []

    def frames_per_call(self, width: int, height: int) -> int:
        return 16

    def __call__(
        self, latents: Tensor, timestep: float, tokens: Tensor, residuals: Sequence[Tensor] | None = None
    ) -> Tensor:
        return self.encode(latents)

    def encode(self, pixels: Tensor) -> Tensor:
        self.calls.append(len(pixels))
        if error := self.fails(pixels):
            raise error
        return pixels + self.step

    decode = encode


def unet(*models: Model) -> LadderUNet:
    rungs: list[Rung[UNetRunner]] = [Rung(f"rung {i}", lambda m=model: m) for i, model in enumerate(models)]
    return LadderUNet(rungs, positions=None, token_dim=64, device=CPU)


def vae(*models: Model) -> LadderVae:
    rungs: list[Rung[VaeRunner]] = [Rung(f"rung {i}", lambda m=model: m) for i, model in enumerate(models)]
    return LadderVae(rungs, device=CPU)


def run(ladder: LadderUNet, latents: Tensor = LATENTS) -> float:
    return float(ladder(latents, 1.0, TOKENS).mean())


def test_the_first_runs_and_the_others_are_not_even_made() -> None:
    made = []

    def second() -> UNetRunner:
        made.append(1)
        return Model(2)

    ladder = LadderUNet([Rung("a", lambda: Model(1)), Rung("b", second)], positions=None, token_dim=64, device=CPU)
    assert run(ladder) == 1
    assert made == []
    assert ladder.name == "a"


def test_what_one_does_not_cover_the_next_does_for_that_call_alone(caplog: pytest.LogCaptureFixture) -> None:
    wide = Model(1, lambda x: UncoveredError("built for 8, this is 9") if x.shape[-1] == 9 else None)
    ladder = unet(wide, Model(2))
    with caplog.at_level(logging.WARNING):
        assert run(ladder, torch.zeros(1, 3, 4, 8, 9)) == 2
        assert run(ladder, torch.zeros(1, 3, 4, 8, 9)) == 2
    assert run(ladder) == 1
    assert [record.getMessage() for record in caplog.records] == [
        "UNet: rung 1 instead of rung 0: built for 8, this is 9"
    ], "said once"


@pytest.mark.parametrize("error", [EngineError("the driver is too old"), FullDeviceError("4 GiB are not free")])
def test_one_that_fails_is_not_tried_again(error: Exception) -> None:
    broken = Model(1, lambda x: error)
    ladder = unet(broken, Model(2))
    assert [run(ladder), run(ladder)] == [2, 2]
    assert broken.calls == [2]
    assert ladder.name == "rung 1"


def test_one_that_fails_is_unloaded_before_the_next_is_made(caplog: pytest.LogCaptureFixture) -> None:
    steps: list[str] = []

    class Engine(Model):
        def unload(self) -> None:
            steps.append("unloaded")
            raise RuntimeError("the context is gone")

    def second() -> UNetRunner:
        steps.append("made")
        return Model(2)

    engine = Rung[UNetRunner]("the engine", lambda: Engine(1, lambda x: EngineError("it cannot run")))
    ladder = LadderUNet([engine, Rung("torch", second)], positions=None, token_dim=64, device=CPU)
    assert [run(ladder), run(ladder)] == [2, 2]
    assert steps == ["unloaded", "made"]
    assert engine.runner is None


def test_a_rung_that_cannot_be_made_is_passed_over() -> None:
    def fails() -> UNetRunner:
        raise EngineError("the plan is damaged")

    ladder = LadderUNet([Rung("a", fails), Rung("b", lambda: Model(2))], positions=None, token_dim=64, device=CPU)
    assert run(ladder) == 2
    assert ladder.frames_per_call(64, 64) == 16


def guarded(*models: Model, device: torch.device = CPU) -> LadderUNet:
    """A ladder whose first rung is an engine's."""
    ladder = unet(*models)
    ladder.ladder.rungs[0].guard = partial(engine_failures, device)
    return ladder


@pytest.mark.parametrize(
    "error",
    [
        AttributeError("'IRuntimeConfig' object has no attribute 'cuda_graph_strategy'"),
        TypeError("incompatible function arguments:\n    1. (self, arg0: int)"),
        RuntimeError(""),
        KeyError("DataType.FP4"),
        PermissionError(13, "Permission denied"),
    ],
    ids=lambda error: type(error).__name__,
)
def test_an_engine_that_fails_as_nobody_foresaw_is_passed_over(
    error: Exception, caplog: pytest.LogCaptureFixture
) -> None:
    broken = Model(1, lambda x: error)
    ladder = guarded(broken, Model(2))
    with caplog.at_level(logging.WARNING):
        assert [run(ladder), run(ladder)] == [2, 2]
    assert broken.calls == [2], "and not tried again"
    (line,) = [record.getMessage() for record in caplog.records]
    assert line.startswith("UNet: rung 1 instead of rung 0: the engine failed unexpectedly, ")
    assert f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"[:60] in line
    assert "\n" not in line


def test_what_the_engine_is_not_to_blame_for_passes() -> None:
    for error in (InputError("wrong"), MemoryError("full"), UncoveredError("no"), torch.OutOfMemoryError("full")):
        with pytest.raises(type(error)), engine_failures(CPU):
            raise error
    with pytest.raises(KeyboardInterrupt):
        run(guarded(Model(1, lambda x: KeyboardInterrupt()), Model(2)))  # type: ignore[arg-type, return-value]
    with pytest.raises(TypeError):
        run(unet(Model(1, lambda x: TypeError("a mistake of ours")), Model(2)))


@pytest.mark.parametrize(
    "error",
    [
        RuntimeError("CUDA error: an illegal memory access"),
        EngineError("cannot run"),
        EngineError("CUDA error: out of memory"),
    ],
)
def test_a_gpu_that_answers_nothing_any_more_ends_the_run(error: Exception, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: True)
    asked: list[torch.device] = []
    monkeypatch.setattr(torch.cuda, "synchronize", asked.append)
    cuda, failing = torch.device("cuda", 1), Model(1, lambda x: error)
    assert run(guarded(failing, Model(2), device=cuda)) == 2, "it answers"
    assert asked == [cuda]

    def dead(device: torch.device) -> None:
        raise RuntimeError("CUDA error: an illegal memory access was encountered")

    monkeypatch.setattr(torch.cuda, "synchronize", dead)
    below = Model(2)
    with pytest.raises(
        LostDeviceError, match=f"cuda:1 answers nothing any more in this process: .*{error}. Start it again"
    ):
        run(guarded(failing, below, device=cuda))
    assert below.calls == []
    told = pytest.raises(LostDeviceError, match="Start it again. Set run to comfyui, and report")
    with told, engine_failures(cuda, remedy="Set run to comfyui"):
        raise error


def test_the_last_ones_error_is_the_callers() -> None:
    refuses = Model(1, lambda x: UncoveredError("no"))
    with pytest.raises(UncoveredError, match="no"):
        run(unet(refuses))
    with pytest.raises(InputError, match="wrong"):  # not a matter of how it is run
        run(unet(Model(1, lambda x: InputError("wrong")), Model(2)))


OUT_OF_MEMORY = pytest.mark.parametrize(
    "full",
    [
        torch.OutOfMemoryError("full"),
        MemoryError(),
        RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes"),
    ],
    ids=lambda error: type(error).__name__,
)


@OUT_OF_MEMORY
def test_out_of_memory_is_the_callers_while_it_can_divide(full: Exception) -> None:
    small = Model(1, lambda x: full)
    ladder = guarded(small, Model(2))
    with pytest.raises(type(full)):
        run(ladder)  # two windows: the caller halves
    assert run(ladder, LATENTS[:1]) == 2
    assert small.calls == [2, 1]


@OUT_OF_MEMORY
def test_the_vae_halves_before_it_goes_down(full: Exception) -> None:
    small = Model(1, lambda x: full if len(x) > 2 else None)
    below = Model(2)
    out = vae(small, below).encode(torch.zeros(7, 3, 8, 8))
    assert out.shape[0] == 7
    assert float(out.mean()) == 1
    assert below.calls == []
    assert small.calls == [7, 4, 2, 2, 2, 1]
    tiny = Model(1, lambda x: full)
    assert float(vae(tiny, Model(2)).decode(torch.zeros(3, 4, 1, 1)).mean()) == 2


def test_the_vae_remembers_how_many_frames_fitted_and_for_which_size() -> None:
    full = torch.OutOfMemoryError("full")
    model = Model(1, lambda x: full if len(x) * x[0].numel() > 4 * 3 * 16 * 16 else None)
    ladder = vae(model)
    large, small = torch.rand(10, 3, 16, 16), torch.rand(10, 3, 8, 8)
    for _ in range(2):
        assert torch.equal(ladder.encode(large), large + 1)
        assert torch.equal(ladder.encode(small), small + 1)
    assert model.calls == [10, 5, 3, 3, 3, 1, 10, 3, 3, 3, 1, 10]
    model.calls.clear()
    assert len(ladder.encode(large[:2])) == 2
    assert len(ladder.decode(torch.rand(10, 4, 2, 2))) == 10
    assert model.calls == [2, 10]
