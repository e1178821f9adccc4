"""A stand-in of ComfyUI that holds only what ``comfyui/host.py`` calls; this package's own sampling does its work."""

from __future__ import annotations

import copy
import sys
import types
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch
from torch import Tensor

import animdetail_trt as adt
from animdetail_trt.sampling.model import LATENT_SCALE, DiffusionModel
from animdetail_trt.sampling.noise import initial_noise
from animdetail_trt.sampling.run import NoiseMask, SampleSettings, sample_part
from animdetail_trt.sampling.schedules import schedule_sigmas


class InterruptedByUserError(Exception):
    """ComfyUI's InterruptProcessingException."""


@dataclass
class Seen:
    """What the host was told. interrupt_at: the bar's value at which the user presses the button"""

    progress: list[tuple[int, int]] = field(default_factory=list)
    previews: int = 0
    vae_batches: list[int] = field(default_factory=list)
    interrupt_at: int | None = None
    free_bytes: int = 1 << 40


class Model:
    """MODEL: ComfyUI's ModelPatcher around a model of this package."""

    load_device = torch.device("cpu")

    def __init__(self, inner: DiffusionModel) -> None:
        self.inner = inner
        self.patches_uuid = 0
        self.model: Any = types.SimpleNamespace(
            latent_format="SD15", process_latent_out=lambda latent: latent / LATENT_SCALE
        )
        self.model_options: dict[str, Any] = {"transformer_options": {}}
        self.attachments: dict[str, Any] = {}
        self.additional_models: dict[str, list[Any]] = {}
        self.wrappers: dict[str, Any] = {}
        self.object_patches: dict[str, Any] = {}
        self.weight_wrapper_patches: dict[str, Any] = {}
        self.injections: dict[str, Any] = {}
        self.hook_patches: dict[str, Any] = {}
        self.forced_hooks = None

    def clone(self) -> Model:
        clone = copy.copy(self)
        for name, value in vars(self).items():
            if isinstance(value, dict):
                setattr(clone, name, dict(value))
        return clone

    def add_patches(self, patches: dict[str, Any]) -> None:
        """Of weights, as a LoRA's."""
        self.patches_uuid += 1

    def set_model_unet_function_wrapper(self, wrapper: Any) -> None:
        self.model_options["model_function_wrapper"] = wrapper

    def set_additional_models(self, key: str, models: list[Any]) -> None:
        self.additional_models[key] = models

    def remove_additional_models(self, key: str) -> None:
        self.additional_models.pop(key, None)

    def get_additional_models_with_key(self, key: str) -> list[Any]:
        return self.additional_models.get(key, [])

    def get_model_object(self, name: str) -> Any:
        return getattr(self.inner, name)

    def set_model_denoise_mask_function(self, function: Any) -> None:
        self.model_options["denoise_mask_function"] = function

    def set_attachments(self, key: str, value: Any) -> None:
        self.attachments[key] = value

    def get_attachment(self, key: str) -> Any:
        return self.attachments.get(key)


class ModelPatcher:
    """What an engine is shown to model management as."""

    def __init__(self, model: Any, load_device: Any, offload_device: Any, size: int = 0) -> None:
        self.model, self.load_device, self.offload_device, self.size = model, load_device, offload_device, size
        model.model_loaded_weight_memory = 0

    def model_size(self) -> int:
        return self.size

    def loaded_size(self) -> int:
        return int(self.model.model_loaded_weight_memory)


class Vae:
    """VAE around one of this package."""

    latent_channels = 4
    vae_dtype = torch.float32
    device = torch.device("cpu")

    def __init__(self, inner: Any, seen: Seen) -> None:
        self.inner, self.seen = inner, seen

    def memory_used_encode(self, shape: tuple[int, ...], dtype: torch.dtype) -> int:
        return 1000 * shape[2] * shape[3]

    def memory_used_decode(self, shape: tuple[int, ...], dtype: torch.dtype) -> int:
        return 1000 * 64 * shape[2] * shape[3]

    def encode(self, pixels: Tensor) -> Tensor:
        assert pixels.shape[3] == 3
        self.seen.vae_batches.append(len(pixels))
        return self.inner.encode((pixels * 2 - 1).movedim(-1, 1))

    def decode(self, latents: Tensor) -> Tensor:
        self.seen.vae_batches.append(len(latents))
        return ((self.inner.decode(latents) + 1) / 2).clamp(0, 1).movedim(1, -1)


def pipe_of(pipe: adt.BasicPipe, seen: Seen) -> tuple[Any, ...]:
    """BASIC_PIPE as ComfyUI would hold it."""
    return Model(pipe.model), "clip", Vae(pipe.vae, seen), pipe.positive, pipe.negative


def enter(monkeypatch: pytest.MonkeyPatch, interface: dict[str, Any]) -> Seen:
    """Put the stand-in's modules where ``import comfy...`` finds them, until the test ends.

    interface: of the reference's detailer, whose samplers and schedulers the stand-in has
    """
    seen = Seen()
    lists = {name: interface["input"]["required"][name][0] for name in ("sampler_name", "scheduler")}
    own_schedulers = [name for name in lists["scheduler"] if not name.startswith(("AYS", "GITS"))]

    def module(name: str, **contents: Any) -> types.ModuleType:
        made = types.ModuleType(name)
        vars(made).update(contents)
        monkeypatch.setitem(sys.modules, name, made)
        return made

    def throw_if_interrupted() -> None:
        if seen.interrupt_at is not None and seen.progress and seen.progress[-1][0] >= seen.interrupt_at:
            raise InterruptedByUserError

    class ProgressBar:
        def __init__(self, total: int) -> None:
            self.total = total

        def update_absolute(self, value: int, total: int, preview: Any = None) -> None:
            seen.progress.append((value, total))
            seen.previews += preview is not None

    class Previewer:
        def decode_latent_to_preview_image(self, kind: str, latent: Tensor) -> tuple[str, Tensor]:
            return kind, latent

    class DifferentialDiffusion:
        @classmethod
        def execute(cls, model: Model) -> tuple[Model]:
            clone = model.clone()
            clone.set_model_denoise_mask_function("differential")
            return (clone,)

    samplers = module(
        "comfy.samplers",
        KSampler=types.SimpleNamespace(SAMPLERS=lists["sampler_name"], SCHEDULERS=own_schedulers),
        calculate_sigmas=lambda levels, scheduler, steps: torch.tensor(
            schedule_sigmas(levels, "euler", scheduler, steps)
        ),
        sampler_object=lambda name: name,
    )
    management = module(
        "comfy.model_management",
        throw_exception_if_processing_interrupted=throw_if_interrupted,
        InterruptProcessingException=InterruptedByUserError,
        get_torch_device=lambda: torch.device("cpu"),
        get_free_memory=lambda device: seen.free_bytes,
        unet_offload_device=lambda: torch.device("cpu"),
    )
    utils = module("comfy.utils", ProgressBar=ProgressBar, PROGRESS_BAR_ENABLED=False)
    sample = module(
        "comfy.sample",
        prepare_noise=lambda latent, seed: initial_noise(latent.shape, seed),
        sample_custom=_sample_custom,
    )
    k_sampling = module("comfy.k_diffusion.sampling")
    k_diffusion = module("comfy.k_diffusion", sampling=k_sampling)
    patcher = module("comfy.model_patcher", ModelPatcher=ModelPatcher)
    module(
        "comfy",
        samplers=samplers,
        model_management=management,
        utils=utils,
        sample=sample,
        k_diffusion=k_diffusion,
        model_patcher=patcher,
    )
    module("nodes", MAX_RESOLUTION=16384)
    module("latent_preview", get_previewer=lambda device, latent_format: Previewer())
    module("comfy_extras")
    module("comfy_extras.nodes_differential_diffusion", DifferentialDiffusion=DifferentialDiffusion)
    return seen


def _sample_custom(
    model: Model, noise: Tensor, cfg: float, sampler: str, sigmas: Tensor, positive: Any, negative: Any, latent: Tensor,
    noise_mask: Tensor, callback: Any, disable_pbar: bool, seed: int,
) -> Tensor:  # fmt: skip
    """ComfyUI's sampling; the callback's last estimate is the one that counts."""
    levels, last = sigmas.tolist(), len(sigmas) - 1
    settings = SampleSettings(seed, last, cfg, sampler, "normal", 1.0, lambda *_: levels)
    differential = model.model_options.get("denoise_mask_function") == "differential"

    def on_step(step: int, steps: int) -> None:
        if step < steps:
            callback(step - 1, latent, latent, steps)

    out = sample_part(
        model.inner, settings, positive, negative, latent, noise, 0, last,
        noise_mask=NoiseMask(noise_mask, differential), keep_noise=levels[-1] > 0, on_step=on_step,
    )  # fmt: skip
    callback(last - 1, out * LATENT_SCALE, out, last)
    return out
