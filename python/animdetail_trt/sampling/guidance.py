"""From a UNet that predicts noise to a denoiser that follows a prompt."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, TypeAlias

import torch
from torch import Tensor

from animdetail_trt.errors import InputError
from animdetail_trt.sampling.context import ContextOptions, over_windows, windows
from animdetail_trt.sampling.masked import Denoiser
from animdetail_trt.sampling.model_sampling import ModelSampling

Conditioning: TypeAlias = list[list[Any]]
"""``[[tensor (1, tokens, dim), {extras}], ...]``, as ComfyUI has it."""

_UNDERSTOOD_EXTRAS = {"pooled_output"}


def prompt_tokens(conditioning: Conditioning | None, name: str) -> Tensor:
    """The (1, n, d) tokens of a conditioning that holds one plain entry."""
    if conditioning is None or (isinstance(conditioning, list) and not conditioning):
        raise InputError(f"{name} conditioning is empty. Give one with pipe.with_prompt or pipe.with_conditioning")
    try:
        entries = [(torch.as_tensor(tokens), dict(extras)) for tokens, extras in conditioning]
    except (TypeError, ValueError, RuntimeError):
        raise InputError(f"{name} conditioning must be [[tensor, {{}}]], not {conditioning!r:.80}") from None
    if len(entries) > 1:
        raise InputError(f"{name} conditioning has {len(entries)} entries; this version takes one")
    tokens, extras = entries[0]
    unknown = sorted(set(extras) - _UNDERSTOOD_EXTRAS)
    if unknown:
        raise InputError(f"{name} conditioning carries {', '.join(unknown)}, which this version does not apply")
    if tokens.ndim != 3 or tokens.shape[0] != 1:
        raise InputError(f"{name} conditioning must be (1, tokens, dim), not {tuple(tokens.shape)}")
    if not torch.isfinite(tokens).all():
        raise InputError(f"{name} conditioning holds NaN or infinity")
    return tokens


def guided(
    unet: Callable[[Tensor, float, Tensor], Tensor],
    model_sampling: ModelSampling,
    positive: Tensor,
    negative: Tensor,
    cfg: float,
    context: ContextOptions | None,
) -> Denoiser:
    """Classifier-free guidance (Ho & Salimans 2022): uncond + cfg (cond - uncond); at cfg 1 only cond is run."""
    alone = math.isclose(cfg, 1.0)
    prompts = [positive] if alone else [positive, negative]

    def denoise(x: Tensor, sigma: float) -> Tensor:
        scale = math.sqrt(sigma**2 + 1)
        timestep = model_sampling.timestep(sigma)

        def predict(frames: Tensor) -> Tensor:
            return run_prompts(unet, frames / scale, timestep, prompts)

        eps = over_windows(predict, x, windows(x.shape[0], context))
        denoised = x - sigma * eps
        return denoised[0] if alone else denoised[1] + cfg * (denoised[0] - denoised[1])

    return denoise


def run_prompts(
    unet: Callable[[Tensor, float, Tensor], Tensor], latents: Tensor, timestep: float, prompts: list[Tensor]
) -> Tensor:
    """eps (b, f, 4, lh, lw) for b prompts on the same frames: one call where the prompts are equally long, else b."""
    if len({prompt.shape for prompt in prompts}) > 1:
        return torch.cat([unet(latents[None], timestep, prompt) for prompt in prompts])
    return unet(latents.expand(len(prompts), *latents.shape), timestep, torch.cat(prompts))
