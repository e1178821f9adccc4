"""A MODEL whose UNet runs elsewhere: in an engine, or in this package's own UNet. All around the call stays ComfyUI's:
samplers, guidance, masks, windows, ControlNets; where the runner cannot take a call, the untouched model does."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import torch
from torch import Tensor

from animdetail_trt.backends.failures import engine_failures
from animdetail_trt.backends.interface import UNetRunner
from animdetail_trt.comfyui import host
from animdetail_trt.comfyui.facts import ModelFacts, why_not
from animdetail_trt.comfyui.settings import DetailerSettings
from animdetail_trt.comfyui.unet import Runner, Unavailable, engines_for, make_runner
from animdetail_trt.errors import (
    AnimDetailError,
    CheckpointError,
    EngineError,
    FullDeviceError,
    InputError,
    LostDeviceError,
    UncoveredError,
)

logger = logging.getLogger(__name__)

_KEY = "animdetail_trt.runner"
_TOLD = "animdetail_trt.told"
_SKIPS = 12  # of SD 1.5's UNet, to each of which a ControlNet adds
_REMEDY = "Set run to comfyui in Detailer settings, or bypass the node that accelerates the MODEL"
_KNOWN = {"c_crossattn", "control", "transformer_options"}


@dataclass(frozen=True)
class _Made:
    """What was made of a MODEL, for the next time: ``key`` tells whether it, and the engines, are the same still."""

    key: tuple[Any, ...]
    runner: Runner | None
    reason: str | None = None


def accelerate(model: Any, settings: DetailerSettings) -> tuple[Any, str | None]:
    """A clone of MODEL whose UNet runs as ``settings.run`` says, and None; or MODEL itself, and the reason why not.

    The decision is logged once for a MODEL, and again where it has become another.
    """
    wrapper, bare = host.unet_wrapper(model), model
    if isinstance(wrapper, Accelerated):
        if settings.run != "comfyui" and wrapper.why_not(model) is None:
            wrapper.try_again()
            return model, None
        bare = host.without_unet_wrapper(model, wrapper.inner)  # and decide anew
    if settings.run == "comfyui":
        return bare, "the settings ask for ComfyUI"
    facts = host.facts_of(bare)
    reason = why_not(facts)
    runner = None
    if reason is None:
        try:
            runner = _runner(model, bare, facts, settings)
        except (Unavailable, EngineError) as error:
            reason = str(error)
        except LostDeviceError:  # ComfyUI could not either
            raise
        except Exception as error:  # whatever it is, ComfyUI can run the MODEL
            logger.debug("no runner", exc_info=True)
            reason = f"its weights cannot be taken over: {type(error).__name__}: {error}"
    _tell(model, facts, f"ComfyUI runs it: {reason}" if runner is None else f"its UNet runs in {runner.name}")
    if runner is None:
        return bare, reason
    accelerated = Accelerated(bare.model, runner, weights_of(bare, facts), host.unet_wrapper(bare))
    return host.with_unet_wrapper(bare, accelerated, runner.patcher), None


def _runner(model: Any, bare: Any, facts: ModelFacts, settings: DetailerSettings) -> Runner:
    """That of ``bare``, made once and kept on ``model``, which ComfyUI and its clones keep from run to run.

    So is the reason why there is none, in the MODEL or in its weights, until other engines are built. What fails
    otherwise (a GPU that is full for the moment) is tried again.
    """
    engines = engines_for(bare, facts, settings) if settings.run == "auto" else []
    built = tuple((entry.name, entry.sha256) for entry in engines)
    key = (facts, settings.run, settings.precision, built, *host.weights_id(bare))
    made = host.attachment(model, _KEY)
    if not isinstance(made, _Made) or made.key != key:
        try:
            made = _Made(key, make_runner(bare, facts, settings))
        except Unavailable as error:
            made = _Made(key, None, str(error))
        except (CheckpointError, InputError) as error:  # it took the merging of all weights to find out
            made = _Made(key, None, f"its weights cannot be taken over: {error}")
        host.keep(model, _KEY, made)
    if made.runner is None:
        raise Unavailable(made.reason)
    made.runner.broken = None  # by an earlier prompt
    return made.runner


def _tell(model: Any, facts: ModelFacts, told: str) -> None:
    if host.attachment(model, _TOLD) != told:
        host.keep(model, _TOLD, told)
        logger.info("animdetail: MODEL %s: %s", facts.family, told)


def weights_of(model: Any, facts: ModelFacts) -> tuple[Any, ...]:
    """What a runner is made of: it is another where they differ."""
    return (*host.weights_id(model), facts.motion)


class Accelerated:
    """ComfyUI's ``model_function_wrapper``.

    weights: ``weights_of`` the MODEL that the runner was made of
    inner: another wrapper that was there: it wraps what runs, as before
    failures: of all runners in this process; a MODEL that ComfyUI kept since then is to be decided on anew
    """

    failures: ClassVar[int] = 0

    def __init__(
        self, base_model: Any, runner: Runner, weights: tuple[Any, ...], inner: host.UNetWrapper | None = None
    ) -> None:
        self.base_model, self.runner, self.weights, self.inner = base_model, runner, weights, inner
        self.calls = self.fallbacks = 0
        self._told: set[str] = set()

    def __deepcopy__(self, memo: Any) -> Accelerated:
        return self  # a clone of a MODEL copies its options, and shares its weights

    def __call__(self, apply_model: Callable[..., Tensor], args: dict[str, Any]) -> Tensor:
        def apply(x: Tensor, t: Tensor, **conditions: Any) -> Tensor:
            return self._apply(apply_model, x, t, conditions)

        if self.inner is not None:
            return self.inner(apply, args)
        return apply(args["input"], args["timestep"], **args["c"])

    def why_not(self, model: Any) -> str | None:
        """The reason for which MODEL, which came from the accelerated one, is not what the runner computes any more."""
        if model is None:
            return "ComfyUI does not tell which MODEL is sampled"
        facts = replace(host.facts_of(model), hooked=False)  # hooks matter in the calls that they are at work in
        reason = why_not(facts)
        if reason is None and weights_of(model, facts) != self.weights:
            reason = "its weights or motion model changed after it was accelerated (a LoRA?): accelerate it last"
        return reason

    def try_again(self) -> None:
        """A runner that failed in an earlier prompt, and tell if it fails again."""
        if self.runner.broken is not None:
            self._told.discard(self.runner.broken)
            self.runner.broken = None

    def _apply(self, apply_model: Callable[..., Tensor], x: Tensor, t: Tensor, conditions: dict[str, Any]) -> Tensor:
        """The estimate of the clean latent, (b f, 4, lh, lw), of x at sigmas t (b f)."""
        self.calls += 1
        try:
            reason = self.why_not(host.sampled_model(self.base_model))
            if reason is not None:
                raise EngineError(reason)
            timesteps = self.base_model.model_sampling.timestep(t)
            call = read_call(x, t, conditions, self.runner.positions is not None, timesteps)
            if host.hooks_active(self.base_model):
                raise EngineError("its weights are changed by hooks for this prompt")
            return self._denoised(call, x, t)
        except Exception as error:  # whatever it is, ComfyUI can run the call; the GPU out of memory too
            if host.is_interrupt(error) or isinstance(error, LostDeviceError):
                raise
            self.fallbacks += 1
            reason = str(error) if isinstance(error, AnimDetailError) else f"{type(error).__name__}: {error}"
            if reason not in self._told:
                self._told.add(reason)
                logger.warning("animdetail: ComfyUI runs its own UNet for some calls: %s", reason)
        return apply_model(x, t, **conditions)

    def _denoised(self, call: Call, x: Tensor, t: Tensor) -> Tensor:
        levels = self.base_model.model_sampling
        scaled = levels.calculate_input(t, x)
        eps = self._eps(scaled.reshape(call.prompts, call.frames, *x.shape[1:]), call)
        denoised: Tensor = levels.calculate_denoised(t, eps.reshape(x.shape).to(x), x)
        return denoised

    def _eps(self, latents: Tensor, call: Call) -> Tensor:
        """A runner that does not cover a call, or finds the GPU full, is passed over for it alone; one that fails is
        until ``accelerate`` is asked again."""
        if self.runner.broken is not None:
            raise EngineError(self.runner.broken)
        try:
            with engine_failures(latents.device, self.runner.name, host.is_interrupt, _REMEDY):
                runner: UNetRunner = self.runner.open()
                return runner(latents, call.timestep, call.tokens, call.residuals)
        except (UncoveredError, FullDeviceError):
            raise
        except EngineError as error:
            self.runner.broken = str(error)
            Accelerated.failures += 1
            with suppress(Exception):  # that it failed is said; what it fails at now is no other news
                self.runner.free()
            raise


@dataclass(frozen=True)
class Call:
    """One call of the UNet: (b, f) of the batch, timestep 0..999, tokens (b, 1 or f, n, d), residuals as
    ``UNetRunner`` takes them."""

    prompts: int
    frames: int
    timestep: float
    tokens: Tensor
    residuals: Sequence[Tensor] | None


def read_call(x: Tensor, t: Tensor, conditions: dict[str, Any], motion: bool, timesteps: Tensor | None = None) -> Call:
    """What ComfyUI asks of its UNet, in our terms. Raises EngineError where it asks for something else.

    timesteps (b f,): those of the sigmas t; t itself where there are none
    """
    unknown = sorted(key for key, value in conditions.items() if key not in _KNOWN and value is not None)
    if unknown:
        raise EngineError(f"the conditioning brings {', '.join(unknown)}")
    options = conditions.get("transformer_options") or {}
    patches = (*host.patch_names(options), *host.wrapper_names(options))
    if patches:
        raise EngineError(f"patches came with the conditioning: {', '.join(patches)}")
    tokens = conditions.get("c_crossattn")
    if tokens is None:
        raise EngineError("the conditioning has no prompt")
    frames = _frames(options, len(x), motion)
    if not frames or len(x) % frames or len(tokens) != len(x):
        raise EngineError(f"a batch of {len(x)} frames and {len(tokens)} prompts is not of windows of {frames}")
    tokens = tokens.reshape(-1, frames, *tokens.shape[1:])
    # Asked for together: for each the host waits until the GPU has done all that it was given before.
    one_level, one_prompt, timestep = _on_host(
        (t == t[0]).all(), (tokens == tokens[:, :1]).all(), (t if timesteps is None else timesteps)[0]
    )
    if not one_level:
        raise EngineError("the frames are at different noise levels")
    tokens = tokens[:, :1] if one_prompt else tokens
    return Call(len(x) // frames, frames, timestep, tokens, _residuals(conditions.get("control"), len(x)))


def _on_host(*values: Tensor) -> list[float]:
    """The numbers in tensors () of one device, as float32 has them."""
    found: list[float] = torch.stack([value.float() for value in values]).tolist()
    return found


def _frames(options: dict[str, Any], batch: int, motion: bool) -> int:
    """Of a window, as AnimateDiff-Evolved tells it; without motion, those of a prompt. 0 where they do not divide."""
    if not motion:
        prompts = max(1, len(options.get("cond_or_uncond", ())))
        return 0 if batch % prompts else batch // prompts
    told = options.get("ad_params")
    if told is None:
        raise EngineError("AnimateDiff-Evolved does not say how many frames a window has")
    return len(told["sub_idxs"]) if told["sub_idxs"] is not None else int(told["full_length"])


def _residuals(control: dict[str, Any] | None, batch: int) -> list[Tensor] | None:
    """Those of the skips in the order of the down blocks, then the middle's."""
    if control is None:
        return None
    skips, middle = list(control.get("output", ())), list(control.get("middle", ()))
    if any(part is not None for part in control.get("input", ())):
        raise EngineError("a T2I adapter adds to the blocks on the way down")
    residuals = [*skips, *middle]
    if len(skips) != _SKIPS or len(middle) != 1 or any(part is None or len(part) != batch for part in residuals):
        raise EngineError("a ControlNet adds to some blocks alone")
    return residuals
