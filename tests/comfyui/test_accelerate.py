"""When our UNet takes a MODEL's place, and what it then computes: the same, or the untouched model does."""

from __future__ import annotations

import copy
import gc
import json
import logging
import weakref
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import stand_in
import torch
from safetensors.torch import load_file
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

import animdetail_trt as adt
from animdetail_trt.comfyui import accelerate, host
from animdetail_trt.comfyui.accelerate import Accelerated, read_call
from animdetail_trt.comfyui.facts import ModelFacts, MotionFacts, why_not
from animdetail_trt.comfyui.settings import DetailerSettings, settings_of, with_settings
from animdetail_trt.comfyui.unet import Runner, Unavailable, UNetFiles, Weights, engines_for
from animdetail_trt.errors import (
    CheckpointError,
    EngineError,
    FullDeviceError,
    InputError,
    LostDeviceError,
    UncoveredError,
)
from golden_cases import relative_norm

INTERFACE = json.loads((Path(__file__).parents[1] / "golden" / "node_interfaces.json").read_text())
PLAIN = ModelFacts("SD15", 4)
V3 = MotionFacts("AnimateDiff", "v3")


@pytest.fixture
def seen(monkeypatch: pytest.MonkeyPatch) -> stand_in.Seen:
    return stand_in.enter(monkeypatch, INTERFACE["DetailerForEachPipeForAnimateDiff"])


@pytest.mark.parametrize(
    "facts",
    [
        PLAIN,
        replace(PLAIN, motion=(V3,)),
        replace(PLAIN, motion=(MotionFacts("AnimateLCM", "v1", scale=1.2, effect=0.5),)),
        replace(PLAIN, objects=("model_sampling",)),
    ],
)
def test_what_our_unet_reproduces(facts: ModelFacts) -> None:
    assert why_not(facts) is None


@pytest.mark.parametrize(
    ("facts", "reason"),
    [
        (replace(PLAIN, family="SDXL"), "SDXL"),
        (replace(PLAIN, in_channels=9), "9 input channels"),
        (replace(PLAIN, patches=("attn2_patch",)), "attn2_patch"),
        (replace(PLAIN, wrappers=("diffusion_model teacache",)), "teacache"),
        (replace(PLAIN, objects=("diffusion_model.time_embed",)), "time_embed"),
        (replace(PLAIN, injections=("bypass",)), "bypass"),
        (replace(PLAIN, hooked=True), "hooks"),
        (replace(PLAIN, motion=(V3, V3)), "2 motion models"),
        (replace(PLAIN, motion=(replace(V3, format="PIA"),)), "PIA"),
        (replace(PLAIN, motion=(replace(V3, special=("keyframes",)),)), "keyframes"),
        (replace(PLAIN, motion=(replace(V3, effect=None),)), "mask"),
        (replace(PLAIN, special=("context_ref",)), "context_ref"),
    ],
)
def test_what_comfyui_must_run(facts: ModelFacts, reason: str) -> None:
    assert reason in str(why_not(facts))


def _patcher(**changes: Any) -> Any:
    """A MODEL as ComfyUI's ModelPatcher has it, with AnimateDiff-Evolved's motion model."""
    keyframes = SimpleNamespace(keyframes=[SimpleNamespace(default=True)])
    attached = SimpleNamespace(
        timestep_percent_range=(0.0, 1.0), keyframes=keyframes, scale_multival=None, effect_multival=0.5
    )
    info = SimpleNamespace(mm_format="AnimateDiff", mm_version="v2")
    motion = SimpleNamespace(
        model=SimpleNamespace(mm_info=info), get_attachment=lambda key: attached, hook_patches={}, patches_uuid=2
    )
    params = SimpleNamespace(apply_v2_properly=True, context_options=SimpleNamespace(view_options=None, extras=None))
    config = type("SD15", (), {"unet_config": {"in_channels": 4}})()

    def forward_timestep_embed_patch_ade() -> None: ...

    options = {"patches": {"forward_timestep_embed_patch": [(object, forward_timestep_embed_patch_ade)]}}
    given = {
        "model": SimpleNamespace(model_config=config), "model_options": {"transformer_options": options},
        "get_additional_models_with_key": lambda key: [motion], "additional_models": {"ADE": [motion]}, "wrappers": {},
        "object_patches": {"model_sampling": 1}, "weight_wrapper_patches": {}, "injections": {"ADE": [1]},
        "hook_patches": {}, "forced_hooks": None, "get_attachment": lambda key: params, "attached": attached,
        "params": params, "motion": motion, "patches_uuid": 1,
    }  # fmt: skip
    return SimpleNamespace(**given | changes)


def test_facts_are_read() -> None:
    facts = host.facts_of(_patcher())
    assert facts == replace(PLAIN, objects=("model_sampling",), motion=(MotionFacts("AnimateDiff", "v2", 1.0, 0.5),))
    assert why_not(facts) is None
    assert host.facts_of(object()).family.startswith("unknown")


def test_a_model_that_cannot_be_read_is_comfyuis(seen: stand_in.Seen, pipe: adt.BasicPipe) -> None:
    """A unet_config without in_channels is a KeyError, options that are a list a TypeError."""
    model = stand_in.Model(pipe.model)
    model.model.model_config = type("SD15", (), {"unet_config": {}})()
    same, reason = accelerate.accelerate(model, DetailerSettings())
    assert same is model
    assert "KeyError: 'in_channels'" in str(reason)
    model.model.model_config.unet_config["in_channels"] = [4]
    assert "TypeError" in host.facts_of(model).family
    assert accelerate.accelerate(object(), DetailerSettings())[1] is not None


def test_facts_that_matter_are_found() -> None:
    model = _patcher(
        wrappers={"apply_model": {"x": [print]}, "outer_sample": {"y": [print]}}, weight_wrapper_patches={"k": 1},
        injections={"other": [1]}, hook_patches={"ref": 1},
    )  # fmt: skip
    model.model_options["transformer_options"]["patches"]["attn1_patch"] = [print]
    model.model_options["transformer_options"]["patches_replace"] = {"attn2": {("input", 1): print}}
    model.attached.keyframes.keyframes.append(SimpleNamespace(default=False))
    model.attached.scale_multival = torch.ones(1)
    model.attached.orig_camera_entries = [1]
    model.params.apply_v2_properly = False
    facts = host.facts_of(model)
    assert facts.patches == ("attn1_patch", "attn2 replaced")
    assert facts.wrappers == ("apply_model x",)
    assert facts.objects[-1] == "weights of k"
    assert facts.injections == ("other",)
    assert facts.hooked
    assert facts.motion[0].special == ("CameraCtrl", "keyframes")
    assert facts.motion[0].scale is None
    assert facts.special == ("run v2 motion models in the old way",)


def _conditions(batch: int, **changes: Any) -> dict[str, Any]:
    tokens = torch.randn(1, 7, 8).repeat(batch, 1, 1)
    return {"c_crossattn": tokens, "transformer_options": {"cond_or_uncond": [0, 1]}} | changes


def test_call_without_motion_is_split_by_prompt() -> None:
    x, t = torch.zeros(6, 4, 8, 8), torch.full((6,), 3.0)
    call = read_call(x, t, _conditions(6), motion=False)
    assert (call.prompts, call.frames, call.tokens.shape) == (2, 3, (2, 1, 7, 8))
    each = torch.randn(6, 7, 8)
    assert read_call(x, t, _conditions(6, c_crossattn=each), motion=False).tokens.shape == (2, 3, 7, 8)


def test_call_with_motion_is_split_by_window() -> None:
    x, t = torch.zeros(8, 4, 8, 8), torch.full((8,), 3.0)
    told = {"full_length": 9, "sub_idxs": [0, 1, 2, 3]}
    options = {"cond_or_uncond": [0, 1], "ad_params": told}
    call = read_call(x, t, _conditions(8, transformer_options=options), motion=True)
    assert (call.prompts, call.frames) == (2, 4)
    told.update(full_length=8, sub_idxs=None)
    assert read_call(x, t, _conditions(8, transformer_options=options), motion=True).frames == 8


_ZERO = torch.zeros(6, 1, 1, 1)


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"c_concat": _ZERO}, "c_concat"),
        ({"y": _ZERO}, "brings y"),
        ({"c_crossattn": None}, "no prompt"),
        ({"transformer_options": {"patches": {"attn2_patch": [print]}}}, "attn2_patch"),
        ({"transformer_options": {"wrappers": {"diffusion_model": {"fast": [print]}}}}, "fast"),
        ({"transformer_options": {"cond_or_uncond": [0, 1, 2, 3]}}, "not of windows"),
        ({"control": {"input": [_ZERO], "output": [], "middle": []}}, "T2I"),
        ({"control": {"output": [None] * 12, "middle": [_ZERO]}}, "some blocks alone"),
    ],
)
def test_calls_that_stay_comfyuis(changes: dict[str, Any], reason: str) -> None:
    with pytest.raises(EngineError, match=reason):
        read_call(torch.zeros(6, 4, 8, 8), torch.full((6,), 3.0), _conditions(6, **changes), motion=False)
    with pytest.raises(EngineError, match="different noise"):
        read_call(torch.zeros(6, 4, 8, 8), torch.arange(6.0), _conditions(6), motion=False)


def test_controls_come_in_the_order_of_the_skips() -> None:
    control = {"input": [], "output": [torch.full((6, 1), float(i)) for i in range(12)], "middle": [torch.ones(6, 1)]}
    call = read_call(torch.zeros(6, 4, 8, 8), torch.full((6,), 3.0), _conditions(6, control=control), motion=False)
    assert call.residuals is not None
    assert [float(part[0, 0]) for part in call.residuals] == [*range(12), 1]


class _Levels:
    """ComfyUI's model_sampling of noise-predicting models."""

    def __init__(self, inner: Any) -> None:
        self.inner = inner

    def calculate_input(self, sigma: Tensor, x: Tensor) -> Tensor:
        return x / (sigma.view(-1, 1, 1, 1) ** 2 + 1) ** 0.5

    def timestep(self, sigma: Tensor) -> Tensor:
        return torch.tensor([self.inner.timestep(float(value)) for value in sigma])

    def calculate_denoised(self, sigma: Tensor, eps: Tensor, x: Tensor) -> Tensor:
        return x - eps * sigma.view(-1, 1, 1, 1)


@pytest.fixture
def model(seen: stand_in.Seen, pipe: adt.BasicPipe, monkeypatch: pytest.MonkeyPatch) -> stand_in.Model:
    """A MODEL that our UNet can take the place of, and that is sampled now."""
    model = stand_in.Model(pipe.model)
    model.model.model_config = type("SD15", (), {"unet_config": {"in_channels": 4}})()
    model.model.model_sampling = _Levels(pipe.model.model_sampling)
    model.model.current_patcher = model
    runner = Runner("torch", None, lambda: pipe.model.unet, None)
    monkeypatch.setattr(accelerate, "engines_for", lambda *_: [])
    monkeypatch.setattr(accelerate, "make_runner", lambda *_: replace(runner))
    return model


@pytest.fixture
def wrapped(model: stand_in.Model) -> Accelerated:
    return _wrapper(accelerate.accelerate(model, DetailerSettings())[0])


def _wrapper(model: Any) -> Accelerated:
    wrapper = host.unet_wrapper(model)
    assert isinstance(wrapper, Accelerated)
    return wrapper


def _arguments(pipe: adt.BasicPipe) -> dict[str, Any]:
    x, tokens = torch.randn(6, 4, 8, 8), pipe.positive[0][0].repeat(6, 1, 1)
    conditions = {"c_crossattn": tokens, "transformer_options": {"cond_or_uncond": [1, 0]}}
    return {"input": x, "timestep": torch.full((6,), 4.0), "c": conditions, "cond_or_uncond": [1, 0]}


def _unused(*_: Any, **__: Any) -> Tensor:
    raise AssertionError("the untouched model was called")


def test_runner_takes_the_call(wrapped: Accelerated, pipe: adt.BasicPipe) -> None:
    args = _arguments(pipe)
    denoised = wrapped(_unused, args)
    x, levels = args["input"], pipe.model.model_sampling
    alone = pipe.model.unet(x[None] / 17**0.5, levels.timestep(4.0), pipe.positive[0][0][None])[0]
    assert relative_norm(denoised, x - 4.0 * alone) < 1e-5
    assert (wrapped.calls, wrapped.fallbacks) == (1, 0)


class _Waits(TorchDispatchMode):
    """Counts what makes the host wait for a GPU: single values asked for, whole tensors compared."""

    count = 0

    def __torch_dispatch__(self, op: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.count += op in (torch.ops.aten._local_scalar_dense.default, torch.ops.aten.equal.default)
        return op(*args, **(kwargs or {}))


def test_a_call_waits_for_the_gpu_once(
    wrapped: Accelerated, pipe: adt.BasicPipe, monkeypatch: pytest.MonkeyPatch
) -> None:
    timesteps = torch.tensor([871, 871, 871, 871, 871, 871])
    monkeypatch.setattr(wrapped.base_model.model_sampling, "timestep", lambda t: timesteps)
    asked: list[Any] = []
    monkeypatch.setattr(Tensor, "tolist", lambda self, of=Tensor.tolist: asked.append(of(self)) or asked[-1])
    told: list[float] = []

    def runner(latents: Tensor, timestep: float, tokens: Tensor, residuals: Any) -> Tensor:
        told.append(timestep)
        assert tokens.shape[1] == 1
        return latents

    wrapped.runner.open = lambda: runner  # type: ignore[assignment, return-value]
    args = _arguments(pipe)
    with _Waits() as waits:
        wrapped(_unused, args)
        assert (waits.count, len(asked), told) == (0, 1, [871.0])
        bool((args["timestep"] == 4.0).all())
        assert waits.count == 1  # as it was


def test_uncovered_calls_go_to_the_untouched_model(
    wrapped: Accelerated, pipe: adt.BasicPipe, caplog: pytest.LogCaptureFixture
) -> None:
    def refuse(*_: Any) -> Tensor:
        raise UncoveredError("the engine was built for 256 to 512 pixels high, and this is 64")

    wrapped.runner.open = lambda: refuse  # type: ignore[assignment, return-value]
    args, untouched = _arguments(pipe), torch.ones(6, 4, 8, 8)
    with caplog.at_level(logging.WARNING):
        for _ in range(3):
            assert wrapped(lambda x, t, **c: untouched, args) is untouched
    assert wrapped.fallbacks == 3
    assert [record.getMessage().count("256 to 512") for record in caplog.records] == [1]


def test_a_runner_that_fails_is_not_tried_again(
    wrapped: Accelerated, pipe: adt.BasicPipe, caplog: pytest.LogCaptureFixture
) -> None:
    calls = []

    def fail(*_: Any) -> Tensor:
        calls.append(1)
        raise AttributeError("no such binding\nand more")

    wrapped.runner.open = lambda: fail  # type: ignore[assignment, return-value]
    args, untouched = _arguments(pipe), torch.ones(6, 4, 8, 8)
    with caplog.at_level(logging.WARNING):
        for _ in range(3):
            assert wrapped(lambda x, t, **c: untouched, args) is untouched
    assert (len(calls), wrapped.fallbacks) == (1, 3)
    (line,) = [record.getMessage() for record in caplog.records]
    assert "torch failed unexpectedly, AttributeError: no such binding. Set run to comfyui in Detailer settings" in line
    assert "backend=" not in line


def _failing(wrapped: Accelerated, error: Exception) -> list[int]:
    """A runner that counts its calls and raises."""
    calls: list[int] = []

    def fail(*_: Any) -> Tensor:
        calls.append(1)
        raise error

    wrapped.runner.open = lambda: fail  # type: ignore[assignment, return-value]
    return calls


def test_a_runner_that_failed_is_tried_again_by_the_next_prompt(
    model: stand_in.Model, pipe: adt.BasicPipe, caplog: pytest.LogCaptureFixture
) -> None:
    """Of MODEL, as a detailer node decides anew, and of the accelerated one, as a node behind it does."""
    from animdetail_trt.comfyui.nodes import AccelerateModel, Engines

    def asked() -> list[str]:  # by ComfyUI, which otherwise takes the accelerated MODEL of the last prompt
        return [AccelerateModel.IS_CHANGED(), *(Engines.IS_CHANGED(action) for action in ("load", "build"))]

    accelerated, _ = accelerate.accelerate(model, DetailerSettings())
    args, untouched = _arguments(pipe), torch.ones(6, 4, 8, 8)
    calls, before = _failing(_wrapper(accelerated), EngineError("the engine cannot run")), asked()
    for times, given in enumerate((model, accelerated, model, accelerated), 1):
        caplog.clear()
        now, reason = accelerate.accelerate(given, DetailerSettings())
        assert reason is None
        for _ in range(3):
            assert _wrapper(now)(lambda x, t, **c: untouched, args) is untouched
        assert len(calls) == times
        assert [record.getMessage().count("cannot run") for record in caplog.records] == [1]
        assert all(old != new for old, new in zip(before, asked(), strict=True))
        before = asked()
    _wrapper(accelerated).runner.open = lambda: pipe.model.unet
    _wrapper(accelerate.accelerate(accelerated, DetailerSettings())[0])(_unused, args)
    assert asked() == before


def test_a_gpu_that_is_full_takes_the_next_call(wrapped: Accelerated, pipe: adt.BasicPipe) -> None:
    calls = _failing(wrapped, FullDeviceError("the engine cannot be read: Cuda Runtime (out of memory)"))
    args, untouched = _arguments(pipe), torch.ones(6, 4, 8, 8)
    for _ in range(2):
        assert wrapped(lambda x, t, **c: untouched, args) is untouched
    assert len(calls) == 2
    wrapped.runner.open = lambda: pipe.model.unet
    wrapped(_unused, args)


@pytest.mark.parametrize(
    ("error", "asked"),
    [
        (CheckpointError("the MODEL of ComfyUI has two different position tables"), 1),
        (InputError("motion_scale is -1"), 1),
        (EngineError("the index is in the hands of another process"), 2),
        (MemoryError("full"), 2),
    ],
)
def test_weights_that_are_not_ours_are_read_once(
    model: stand_in.Model, monkeypatch: pytest.MonkeyPatch, error: Exception, asked: int
) -> None:
    reads = []

    def read(*_: Any) -> Runner:
        reads.append(1)
        raise error

    monkeypatch.setattr(accelerate, "make_runner", read)
    reasons = [accelerate.accelerate(model, DetailerSettings())[1] for _ in range(2)]
    assert all(str(error) in str(reason) for reason in reasons)
    assert len(reads) == asked


def test_comfyui_is_not_asked_of_a_gpu_that_answers_nothing(wrapped: Accelerated, pipe: adt.BasicPipe) -> None:
    def fail(*_: Any) -> Tensor:
        raise LostDeviceError("the engine failed, and cuda:0 answers nothing any more")

    wrapped.runner.open = lambda: fail  # type: ignore[assignment, return-value]
    with pytest.raises(LostDeviceError, match="answers nothing"):
        wrapped(_unused, _arguments(pipe))


def test_another_wrapper_stays_around(wrapped: Accelerated, pipe: adt.BasicPipe) -> None:
    args = _arguments(pipe)
    alone = wrapped(_unused, args)

    def halve(apply_model: Any, given: dict[str, Any]) -> Tensor:
        return apply_model(given["input"], given["timestep"], **given["c"]) / 2

    both = Accelerated(wrapped.base_model, wrapped.runner, wrapped.weights, halve)
    assert torch.equal(both(_unused, args), alone / 2)


def test_cloning_a_model_copies_no_weights(wrapped: Accelerated) -> None:
    assert copy.deepcopy({"model_function_wrapper": wrapped})["model_function_wrapper"] is wrapped


def test_hooks_at_work_are_comfyuis(wrapped: Accelerated, pipe: adt.BasicPipe) -> None:
    wrapped.base_model.current_patcher.current_hooks = "lora over time"
    untouched = torch.ones(6, 4, 8, 8)
    assert wrapped(lambda x, t, **c: untouched, _arguments(pipe)) is untouched


def _weight_patched(model: stand_in.Model) -> None:
    model.add_patches({"diffusion_model.out.2.bias": 1})


def _object_patched(model: stand_in.Model) -> None:
    model.object_patches["diffusion_model.middle_block.1"] = print


def _untold(model: stand_in.Model) -> None:
    model.model.current_patcher = None


@pytest.mark.parametrize(
    ("change", "reason"), [(_weight_patched, "LoRA"), (_object_patched, "middle_block"), (_untold, "does not tell")]
)
def test_what_comes_after_is_not_ignored(
    model: stand_in.Model, pipe: adt.BasicPipe, caplog: pytest.LogCaptureFixture, change: Any, reason: str
) -> None:
    later = accelerate.accelerate(model, DetailerSettings())[0].clone()
    model.model.current_patcher = later
    _wrapper(later)(_unused, _arguments(pipe))
    change(later)
    untouched = torch.ones(6, 4, 8, 8)
    with caplog.at_level(logging.WARNING):
        for _ in range(3):
            assert _wrapper(later)(lambda x, t, **c: untouched, _arguments(pipe)) is untouched
    assert [record.getMessage().count(reason) for record in caplog.records] == [1]


def test_a_harmless_patch_after_it_changes_nothing(model: stand_in.Model, pipe: adt.BasicPipe) -> None:
    later = accelerate.accelerate(model, DetailerSettings())[0].clone()
    later.object_patches["model_sampling"] = 1
    later.hook_patches["of another prompt"] = 1
    model.model.current_patcher = later
    _wrapper(later)(_unused, _arguments(pipe))
    assert accelerate.accelerate(later, DetailerSettings())[0] is later


def test_an_accelerated_model_with_newer_patches_is_decided_on_anew(model: stand_in.Model, pipe: adt.BasicPipe) -> None:
    model.set_model_unet_function_wrapper(_unused)
    first = accelerate.accelerate(model, DetailerSettings())[0]
    assert accelerate.accelerate(first, DetailerSettings()) == (first, None)
    later = first.clone()
    _weight_patched(later)
    second, reason = accelerate.accelerate(later, DetailerSettings())
    assert reason is None
    assert _wrapper(second).runner is not _wrapper(first).runner
    assert _wrapper(second).inner is _unused
    assert _wrapper(second).weights != _wrapper(first).weights
    assert _wrapper(accelerate.accelerate(later, DetailerSettings())[0]).runner is _wrapper(second).runner
    _object_patched(later)
    bare, reason = accelerate.accelerate(later, DetailerSettings())
    assert "middle_block" in str(reason)
    assert host.unet_wrapper(bare) is _unused
    assert bare.additional_models == {}


def test_comfyui_when_asked_for_is_comfyui(model: stand_in.Model) -> None:
    accelerated, _ = accelerate.accelerate(model, DetailerSettings())
    bare, reason = accelerate.accelerate(accelerated, DetailerSettings(run="comfyui"))
    assert "ask for ComfyUI" in str(reason)
    assert host.unet_wrapper(bare) is None
    assert bare.additional_models == {}
    assert _wrapper(accelerated)


def test_the_last_node_on_the_wire_decides(model: stand_in.Model) -> None:
    from animdetail_trt.comfyui.nodes import AccelerateModel

    asked = with_settings(model, DetailerSettings(run="comfyui", vae_frames=3))
    (accelerated,) = AccelerateModel().doit(asked, "torch", "auto")
    assert settings_of(accelerated) == DetailerSettings(run="torch", vae_frames=3)
    assert accelerate.accelerate(accelerated, settings_of(accelerated)) == (accelerated, None)


@pytest.mark.parametrize("control", [7, {"output": 3}, {"output": [1] * 12, "middle": [2]}, {"middle": {}}])
def test_whatever_goes_wrong_comfyui_runs_the_call(wrapped: Accelerated, pipe: adt.BasicPipe, control: Any) -> None:
    args, untouched = _arguments(pipe), torch.ones(6, 4, 8, 8)
    args["c"]["control"] = control
    assert wrapped(lambda x, t, **c: untouched, args) is untouched


@pytest.mark.parametrize("error", [KeyError("sub_idxs"), IndexError(), TypeError("x"), torch.OutOfMemoryError("full")])
def test_every_error_of_a_runner_but_the_interrupt(wrapped: Accelerated, pipe: adt.BasicPipe, error: Exception) -> None:
    def fail(*_: Any) -> Tensor:
        raise error

    wrapped.runner.open = lambda: fail  # type: ignore[assignment, return-value]
    untouched = torch.ones(6, 4, 8, 8)
    assert wrapped(lambda x, t, **c: untouched, _arguments(pipe)) is untouched
    error, wrapped.runner.broken = stand_in.InterruptedByUserError(), None
    with pytest.raises(stand_in.InterruptedByUserError):
        wrapped(_unused, _arguments(pipe))


def test_a_runner_that_fails_gives_its_memory_back(wrapped: Accelerated, pipe: adt.BasicPipe) -> None:
    errors: list[Exception] = []
    freed: list[str] = []

    def fail(*_: Any) -> Tensor:
        raise errors[-1]

    wrapped.runner.open = lambda: fail  # type: ignore[assignment, return-value]
    wrapped.runner.free = lambda: freed.append("freed")
    for error, count in ((UncoveredError("too wide"), 0), (FullDeviceError("full"), 0), (EngineError("lost"), 1)):
        errors.append(error)
        wrapped(lambda x, t, **c: torch.ones(6, 4, 8, 8), _arguments(pipe))
        assert len(freed) == count


def test_reason_is_logged_once(seen: stand_in.Seen, pipe: adt.BasicPipe, caplog: pytest.LogCaptureFixture) -> None:
    model = stand_in.Model(pipe.model)
    model.model.model_config = type("SDXL", (), {"unet_config": {"in_channels": 4}})()
    vars(model).update(vars(_patcher(model=model.model, get_attachment=model.get_attachment)))
    with caplog.at_level(logging.INFO, logger="animdetail_trt"):
        for _ in range(3):
            same, reason = accelerate.accelerate(model, DetailerSettings())
            assert same is model
            assert "SDXL" in str(reason)
    assert len(caplog.records) == 1
    with pytest.raises(Unavailable, match="engines run on a CUDA GPU"):
        engines_for(model, PLAIN, DetailerSettings())


def test_effective_weights_are_files_that_are_found_again(tiny: Path, tmp_path: Path) -> None:
    unet = {key: value for key, value in load_file(tiny / "tiny_sd15.safetensors").items() if key.startswith("model.")}
    motion = load_file(tiny / "tiny_mm_v3.safetensors")
    weights = Weights(unet, motion, 1.0, 0.5)
    named = UNetFiles.of(weights, tmp_path, write=False)
    assert list(tmp_path.iterdir()) == []
    written = UNetFiles.of(weights, tmp_path, write=True)
    assert written == named
    assert torch.equal(
        written.read_parts(needs_vae=False).unet["conv_in.weight"],
        unet["model.diffusion_model.input_blocks.0.0.weight"],
    )
    read = written.read_motion()
    taken = weights.module("v3")
    assert read is not None
    assert taken is not None
    assert all(torch.equal(read.tensors[key], value) for key, value in taken.tensors.items())
    changed = {**unet, "model.diffusion_model.out.2.bias": unet["model.diffusion_model.out.2.bias"] + 1}
    assert UNetFiles.of(Weights(changed, None, 1, 1), tmp_path, write=False).checkpoint != named.checkpoint


def test_engine_is_counted_and_unloaded_when_asked(seen: stand_in.Seen, monkeypatch: pytest.MonkeyPatch) -> None:
    closed: list[bool] = []
    patcher = host.patcher_of_engine(lambda: closed.append(True), 1000)
    assert patcher.model_size() == 1000
    assert patcher.loaded_size() == 0
    assert patcher.partially_load("cuda") == 1000
    assert patcher.loaded_size() == 1000
    patcher.detach(unpatch_all=False)  # a clone takes its place
    assert not closed
    assert patcher.partially_unload("cpu", 10) == 1000
    assert closed == [True]
    assert patcher.loaded_size() == 0


def test_an_engine_goes_with_its_runner(seen: stand_in.Seen) -> None:
    """At once: what lies in a cycle keeps the GPU's memory until it is found."""

    class Engine:
        def unload(self) -> None: ...

    engine = Engine()
    gone, patcher = weakref.ref(engine), host.patcher_of_engine(engine.unload, 1000)
    gc.disable()
    try:
        del engine, patcher
        assert gone() is None
    finally:
        gc.enable()
