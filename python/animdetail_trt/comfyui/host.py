"""Every call into ComfyUI. The rest of this folder names none of its modules, so a test can stand in for all of it.

Made against ComfyUI 0.3.64; only what its own nodes and other packs use is called, and nothing of it is patched.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

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


def attachment(model: Any, key: str) -> Any:
    """What ``attach`` put there, else None."""
    return model.get_attachment(key) if hasattr(model, "get_attachment") else None


def inference_device() -> torch.device:
    import comfy.model_management

    device: torch.device = comfy.model_management.get_torch_device()
    return device
