"""Every call into ComfyUI. The rest of this folder names none of its modules, so a test can stand in for all of it.

Made against ComfyUI 0.3.64; only what its own nodes and other packs use is called, and nothing of it is patched.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from animdetail_trt.comfyui.facts import ModelFacts, MotionFacts

logger = logging.getLogger(__name__)

OnLatent = Callable[[int, Tensor], None]
"""Called after each step with its number, from 0, and the estimate of the clean latent, as the model sees it."""

# Their noise follows a path between the two ends of the whole schedule, not of the part that is run.
_BROWNIAN = ("dpmpp_sde", "dpmpp_sde_gpu", "dpmpp_2m_sde", "dpmpp_2m_sde_gpu", "dpmpp_3m_sde", "dpmpp_3m_sde_gpu")


def sampler_names() -> list[str]:
    import comfy.samplers

    return list(comfy.samplers.KSampler.SAMPLERS)


def scheduler_names() -> list[str]:
    """ComfyUI's own, without those that are nodes there (AYS, GITS)."""
    import comfy.samplers

    return list(comfy.samplers.KSampler.SCHEDULERS)


def longest_side_px() -> int:
    import nodes

    return int(nodes.MAX_RESOLUTION)


def throw_if_interrupted() -> None:
    import comfy.model_management

    comfy.model_management.throw_exception_if_processing_interrupted()


def is_interrupt(error: BaseException) -> bool:
    """Whether it is the user's, who stops the run."""
    import comfy.model_management

    return isinstance(error, comfy.model_management.InterruptProcessingException)


class ProgressBar:
    """The bar of the node that runs, with its preview picture."""

    def __init__(self, total: int) -> None:
        import comfy.utils

        self._bar = comfy.utils.ProgressBar(total)

    def update(self, done: int, total: int, preview: Any = None) -> None:
        """Raises where the user has interrupted the run."""
        self._bar.update_absolute(done, total, preview)
        throw_if_interrupted()


def previewer(model: Any) -> Callable[[Tensor], Any]:
    """Makes what the progress bar shows of a latent; None where previews are off."""
    import latent_preview

    made = latent_preview.get_previewer(model.load_device, model.model.latent_format)
    return lambda latent: None if made is None else made.decode_latent_to_preview_image("JPEG", latent)


def schedule(model: Any, scheduler: str, steps: int) -> Tensor:
    """The sigmas (steps + 1 as a rule) of one of ComfyUI's own schedulers."""
    import comfy.samplers

    sigmas: Tensor = comfy.samplers.calculate_sigmas(model.get_model_object("model_sampling"), scheduler, steps)
    return sigmas


def noise_of(latent: Tensor, seed: int) -> Tensor:
    import comfy.sample

    noise: Tensor = comfy.sample.prepare_noise(latent, seed)
    return noise


def masks_of_grey(model: Any) -> bool:
    """Whether something decides already what a grey noise mask means."""
    return "denoise_mask_function" in model.model_options


def with_differential_diffusion(model: Any) -> Any:
    """A clone of MODEL for which a grey noise mask means later, by ComfyUI's own node."""
    from comfy_extras.nodes_differential_diffusion import DifferentialDiffusion

    if hasattr(DifferentialDiffusion, "execute"):
        return DifferentialDiffusion.execute(model)[0]
    return DifferentialDiffusion().apply(model)[0]


def sample(
    model: Any,
    latent: Tensor,
    noise: Tensor,
    noise_mask: Tensor,
    sigmas: Tensor,
    sigma_range: tuple[Tensor, Tensor],
    sampler_name: str,
    seed: int,
    cfg: float,
    positive: Any,
    negative: Any,
    on_latent: OnLatent,
) -> tuple[Tensor, Tensor]:
    """Run MODEL down ``sigmas`` -> the latent with what noise is left, and the last estimate of it without.

    latent, noise: (f, 4, lh, lw), before the model's own scaling, as are the results; noise_mask: (1 or f, h, w)
    sigma_range: the least above 0 and the largest sigma of the schedule that ``sigmas`` is a part of
    """
    import comfy.model_management
    import comfy.sample
    import comfy.utils

    device = comfy.model_management.get_torch_device()
    last_estimate: Tensor | None = None

    def after_step(step: int, denoised: Tensor, x: Tensor, total: int) -> None:
        nonlocal last_estimate
        last_estimate = denoised
        on_latent(step, denoised)

    out: Tensor = comfy.sample.sample_custom(
        model,
        noise.to(device),
        cfg,
        _sampler(sampler_name, sigma_range),
        sigmas,
        positive,
        negative,
        latent.to(device),
        noise_mask=noise_mask.to(device),
        callback=after_step,
        disable_pbar=not comfy.utils.PROGRESS_BAR_ENABLED,
        seed=seed,
    )
    return out, out if last_estimate is None else model.model.process_latent_out(last_estimate.cpu())


def _sampler(name: str, sigma_range: tuple[Tensor, Tensor]) -> Any:
    import comfy.k_diffusion.sampling as k_diffusion
    import comfy.samplers

    if name not in _BROWNIAN:
        return comfy.samplers.sampler_object(name)
    function = getattr(k_diffusion, f"sample_{name}")

    def with_noise(model: Any, x: Tensor, sigmas: Tensor, **options: Any) -> Tensor:
        seed = (options.get("extra_args") or {}).get("seed")
        if seed is not None:
            options["noise_sampler"] = k_diffusion.BrownianTreeNoiseSampler(
                x, *sigma_range, seed=seed, cpu=not name.endswith("_gpu")
            )
        sampled: Tensor = function(model, x, sigmas, **options)
        return sampled

    return comfy.samplers.KSAMPLER(with_noise)


def vae_frames(vae: Any, width: int, height: int) -> int:
    """How many frames of this size fit into the memory that is free, by ComfyUI's own estimate; 1 where it has none."""
    import comfy.model_management

    try:
        latent = (1, vae.latent_channels, height // 8, width // 8)
        needed = max(
            vae.memory_used_encode((1, 3, height, width), vae.vae_dtype), vae.memory_used_decode(latent, vae.vae_dtype)
        )
        free = comfy.model_management.get_free_memory(vae.device)
    except (AttributeError, IndexError, TypeError):  # another pack's VAE
        return 1
    return max(1, int(free / max(1, needed)))


def vae_encode(vae: Any, pixels: Tensor) -> Tensor:
    """Latents (f, 4, h / 8, w / 8) of pixels (f, h, w, 3) in 0..1."""
    latents: Tensor = vae.encode(pixels)
    return latents


def vae_decode(vae: Any, latents: Tensor) -> Tensor:
    """Pixels (f, 8 lh, 8 lw, 3) in 0..1 of latents (f, 4, lh, lw)."""
    pixels: Tensor = vae.decode(latents)
    return pixels


def attach(model: Any, key: str, value: Any) -> Any:
    """A clone of MODEL that carries ``value``, which further clones keep."""
    clone = model.clone()
    clone.set_attachments(key, value)
    return clone


def keep(model: Any, key: str, value: Any) -> None:
    """Put ``value`` on MODEL itself; it changes nothing of what MODEL computes."""
    if hasattr(model, "set_attachments"):
        model.set_attachments(key, value)


def attachment(model: Any, key: str) -> Any:
    """What ``attach`` put there, else None."""
    return model.get_attachment(key) if hasattr(model, "get_attachment") else None


def inference_device() -> torch.device:
    import comfy.model_management

    device: torch.device = comfy.model_management.get_torch_device()
    return device


_ADE = "ADE"
_ADE_PATCH = "forward_timestep_embed_patch_ade"  # runs the motion modules, which our UNet has inside
_INNER_WRAPPERS = ("apply_model", "diffusion_model")
# What an attachment of AnimateDiff-Evolved's motion model holds where a special input is in effect.
_ADE_INPUTS = {
    "orig_img_latents": "AnimateLCM-I2V pictures",
    "orig_camera_entries": "CameraCtrl",
    "orig_pia_images": "PIA pictures",
    "orig_fancy_images": "FancyVideo pictures",
    "orig_RT": "MotionCtrl",
    "per_block_list": "a strength for each block",
}


def facts_of(model: Any) -> ModelFacts:
    """What ``facts.why_not`` decides on. A MODEL that is not made as ComfyUI's own is of no known family."""
    try:
        return _facts_of(model)
    except Exception as error:  # whatever it is made of, ComfyUI can run it
        logger.debug("no facts", exc_info=True)
        return ModelFacts(f"unknown ({type(error).__name__}: {error})", 0)


def _facts_of(model: Any) -> ModelFacts:
    weights_id(model)  # raises where MODEL cannot tell its weights from others
    config = model.model.model_config
    options = model.model_options.get("transformer_options", {})
    motion = model.get_additional_models_with_key(_ADE)
    others = [str(key) for key, models in model.additional_models.items() if models and key not in (_ADE, RUNNER_KEY)]
    return ModelFacts(
        family=type(config).__name__,
        in_channels=int(config.unet_config["in_channels"]),
        patches=patch_names(options),
        wrappers=_wrapper_names(model.wrappers) + wrapper_names(options),
        objects=tuple(map(str, model.object_patches))
        + tuple(f"weights of {key}" for key in model.weight_wrapper_patches),
        injections=tuple(str(key) for key, made in model.injections.items() if made and key != _ADE) + tuple(others),
        hooked=bool(model.hook_patches or model.forced_hooks),
        motion=tuple(_motion_facts(patcher) for patcher in motion),
        special=_ade_special(model) if motion else (),
    )


def patch_names(transformer_options: dict[str, Any]) -> tuple[str, ...]:
    """Patches into the UNet's forward pass, AnimateDiff-Evolved's own aside."""
    found = []
    for name, patches in transformer_options.get("patches", {}).items():
        own = [
            patch for patch in patches if isinstance(patch, tuple) and getattr(patch[1], "__name__", "") == _ADE_PATCH
        ]
        if len(own) < len(patches):
            found.append(str(name))
    found += [f"{name} replaced" for name, patches in transformer_options.get("patches_replace", {}).items() if patches]
    return tuple(found)


def wrapper_names(transformer_options: dict[str, Any]) -> tuple[str, ...]:
    """Wrappers around the UNet's call, AnimateDiff-Evolved's norms over the window aside, which our UNet has."""
    return _wrapper_names(transformer_options.get("wrappers", {}))


def _wrapper_names(wrappers: dict[str, Any]) -> tuple[str, ...]:
    return tuple(
        f"{kind} {key}" if key else kind
        for kind in _INNER_WRAPPERS
        for key, functions in wrappers.get(kind, {}).items()
        if functions and key != "ADE_groupnormed_diffusion_model"
    )


def _motion_facts(patcher: Any) -> MotionFacts:
    info, attached = patcher.model.mm_info, patcher.get_attachment(_ADE)
    special = [words for name, words in _ADE_INPUTS.items() if getattr(attached, name, None) is not None]
    if attached.timestep_percent_range != (0.0, 1.0):
        special.append("a part of the schedule that it acts in")
    if any(not keyframe.default for keyframe in attached.keyframes.keyframes):
        special.append("keyframes")
    if patcher.hook_patches:
        special.append("hooks")
    if getattr(patcher.model, "img_encoder", None) is not None:
        special.append("a picture encoder")
    return MotionFacts(
        str(info.mm_format), str(info.mm_version), _number(attached.scale_multival), _number(attached.effect_multival),
        tuple(special),
    )  # fmt: skip


def _number(value: Any) -> float | None:
    """Of a strength: 1 where it is not set, None where it is a tensor."""
    if value is None:
        return 1.0
    return float(value) if isinstance(value, int | float) else None


def _ade_special(model: Any) -> tuple[str, ...]:
    params = model.get_attachment("ADE_params")
    if params is None:
        return ()
    found = [] if params.apply_v2_properly else ["run v2 motion models in the old way"]
    context = params.context_options
    if getattr(context, "view_options", None) is not None:
        found.append("views inside of context windows")
    extras = getattr(context, "extras", None)
    found += [name for name in ("context_ref", "naive_reuse") if getattr(extras, name, None) is not None]
    return tuple(found)


def weights_id(model: Any) -> tuple[Any, ...]:
    """Changes where the effective weights of MODEL or of its motion model do."""
    return (id(model.model), model.patches_uuid, *((id(m.model), m.patches_uuid) for m in _motion_patchers(model)))


def _motion_patchers(model: Any) -> list[Any]:
    return list(model.get_additional_models_with_key(_ADE))


def unet_weights(model: Any) -> dict[str, Tensor]:
    """The UNet's effective weights on the CPU, by their names in a single-file checkpoint."""
    return {f"model.{key}": value for key, value in _effective(model, "diffusion_model.").items()}


def motion_weights(model: Any) -> dict[str, Tensor] | None:
    """The effective weights of its motion model on the CPU, in the original layout; None where it has none."""
    patchers = _motion_patchers(model)
    return _effective(patchers[0], "") if patchers else None


def _effective(patcher: Any, prefix: str) -> dict[str, Tensor]:
    """Weights with their patches merged by ComfyUI's own arithmetic, on copies."""
    import comfy.lora

    merged = {}
    with _ejected(patcher):
        found = patcher.get_key_patches(prefix)
    for key, (first, *patches) in found.items():
        weight, convert = first if isinstance(first, tuple) else (first, None)
        if convert is not None:
            weight = convert(weight, inplace=False)
        if patches:
            weight = comfy.lora.calculate_weight(patches, weight.to("cpu", torch.float32, copy=True), key).to(
                weight.dtype
            )
        merged[key] = weight.detach().to("cpu")
    return merged


@contextmanager
def _ejected(patcher: Any) -> Iterator[None]:
    """The model without what was injected into it: motion modules shift the names of the layers behind them.

    Where a clone of ``patcher`` is loaded, it is the clone that knows of them.
    """
    import comfy.model_management

    if not _holds_motion(patcher):
        yield
        if patcher.is_injected and _holds_motion(patcher):  # put in by a clone's memory of an earlier state
            patcher.eject_model()
        return
    clones = (
        other for other in comfy.model_management.loaded_models() if other.is_clone(patcher) and other.is_injected
    )
    owner = patcher if patcher.is_injected else next(clones, patcher)
    with owner.use_ejected():
        yield


def _holds_motion(patcher: Any) -> bool:
    """A MODEL, whose UNet it is; not a motion model by itself."""
    layers = getattr(patcher.model, "diffusion_model", None)
    return layers is not None and any(".temporal_transformer." in key for key in layers.state_dict())


def model_dtype(model: Any) -> torch.dtype:
    """What MODEL computes in."""
    dtype: torch.dtype = getattr(model.model, "manual_cast_dtype", None) or model.model_dtype()
    return dtype


def sampled_model(base_model: Any) -> Any:
    """The MODEL over ``base_model`` that is sampled at this moment; None where ComfyUI does not tell."""
    return getattr(base_model, "current_patcher", None)


def hooks_active(base_model: Any) -> bool:
    """Whether the weights are at this moment changed by hooks of the conditioning."""
    return getattr(sampled_model(base_model), "current_hooks", None) is not None


UNetWrapper = Callable[[Callable[..., Tensor], dict[str, Any]], Tensor]


def unet_wrapper(model: Any) -> UNetWrapper | None:
    """None where there is none; of what is no MODEL of ComfyUI's too."""
    wrapper: UNetWrapper | None = getattr(model, "model_options", {}).get("model_function_wrapper")
    return wrapper


def with_unet_wrapper(model: Any, wrapper: UNetWrapper, patcher: Any) -> Any:
    """A clone of MODEL whose UNet is called by ``wrapper``, and that is loaded together with ``patcher``."""
    clone = model.clone()
    clone.set_model_unet_function_wrapper(wrapper)
    clone.set_additional_models(RUNNER_KEY, [patcher])
    return clone


def without_unet_wrapper(model: Any, inner: UNetWrapper | None) -> Any:
    """A clone of MODEL before ``with_unet_wrapper``: ``inner`` is the wrapper that it had, if any."""
    clone = model.clone()
    clone.model_options.pop("model_function_wrapper", None)
    if inner is not None:
        clone.set_model_unet_function_wrapper(inner)
    clone.remove_additional_models(RUNNER_KEY)
    return clone


RUNNER_KEY = "animdetail_trt.unet"


def patcher_of_module(module: torch.nn.Module) -> Any:
    """What ComfyUI's model management loads, moves and counts of a module of ours."""
    import comfy.model_management
    import comfy.model_patcher

    holder = torch.nn.Module()  # on which it writes; a module of diffusers refuses that
    holder.add_module("unet", module)
    return comfy.model_patcher.ModelPatcher(
        holder, comfy.model_management.get_torch_device(), comfy.model_management.unet_offload_device()
    )


def patcher_of_engine(close: Callable[[], None], size_bytes: int) -> Any:
    """What ComfyUI's model management counts of an engine, which loads itself when it runs; ``close`` unloads it."""
    import comfy.model_management
    import comfy.model_patcher

    class EnginePatcher(comfy.model_patcher.ModelPatcher):  # type: ignore[misc]
        def partially_load(self, device_to: Any, extra_memory: float = 0, force_patch_weights: bool = False) -> int:
            before = self.model.model_loaded_weight_memory
            self.model.model_loaded_weight_memory = self.size
            self.model.device = device_to
            return int(self.size - before)

        def partially_unload(self, device_to: Any, memory_to_free: float = 0) -> int:
            freed = self.model.model_loaded_weight_memory
            self.detach()
            return int(freed)

        def detach(self, unpatch_all: bool = True) -> Any:
            if unpatch_all:  # else a clone takes over
                self.model.close()
                self.model.model_loaded_weight_memory = 0
                self.model.device = self.offload_device
            return self.model

    holder = torch.nn.Module()
    holder.name = "TensorRT engine"  # type: ignore[assignment]
    # Here, and not in the class: of a class there is always a cycle, and the engine would stay until it is found.
    holder.close = close  # type: ignore[assignment]
    management = comfy.model_management
    return EnginePatcher(
        holder, management.get_torch_device(), management.unet_offload_device(), size=max(1, size_bytes)
    )
