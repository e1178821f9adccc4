"""Models run by torch itself: the default and the fallback, and what the other backends are measured against."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

# Of the activations that one VAE call may hold. Frames are encoded and decoded in batches that stay below it.
VAE_MEMORY_BYTES = 2 << 30


class TorchUNet:
    """A diffusers UNet2DConditionModel (``positions`` None) or UNetMotionModel as a UNetRunner."""

    def __init__(self, module: Any, positions: int | None) -> None:
        self.module = module
        self.positions = positions
        self.token_dim: int = module.config.cross_attention_dim
        self.device, self.dtype = _placement(module)

    @torch.inference_mode()
    def __call__(self, latents: Tensor, timestep: float, tokens: Tensor) -> Tensor:
        batch, frames = latents.shape[:2]
        latents = latents.to(self.device, self.dtype)
        time = torch.tensor([timestep], dtype=torch.float32, device=self.device)
        # Frames are the batch of the spatial layers: every frame reads its window's prompt.
        tokens = tokens.to(self.device, self.dtype).repeat_interleave(frames, dim=0)
        eps: Tensor
        if self.positions is None:
            (eps,) = self.module(latents.flatten(0, 1), time, tokens, return_dict=False)
            return eps.float().reshape(batch, frames, *eps.shape[1:])
        (eps,) = self.module(latents.transpose(1, 2), time, tokens, return_dict=False)
        return eps.transpose(1, 2).float()


class TorchVae:
    """A diffusers AutoencoderKL as a VaeRunner."""

    def __init__(self, module: Any, *, memory_bytes: int = VAE_MEMORY_BYTES) -> None:
        self.module = module
        self.device, self.dtype = _placement(module)
        self.memory_bytes = memory_bytes

    @torch.inference_mode()
    def encode(self, pixels: Tensor) -> Tensor:
        def mean(batch: Tensor) -> Tensor:
            latents: Tensor = self.module.encode(batch, return_dict=False)[0].mean
            return latents

        return self._in_batches(mean, pixels, pixels_per_frame=pixels.shape[2] * pixels.shape[3])

    @torch.inference_mode()
    def decode(self, latents: Tensor) -> Tensor:
        def decoded(batch: Tensor) -> Tensor:
            pixels: Tensor = self.module.decode(batch, return_dict=False)[0]
            return pixels

        return self._in_batches(decoded, latents, pixels_per_frame=64 * latents.shape[2] * latents.shape[3])

    def _in_batches(self, run: Callable[[Tensor], Tensor], frames: Tensor, *, pixels_per_frame: int) -> Tensor:
        size = self.frames_per_batch(pixels_per_frame)
        batches = [run(batch.to(self.device, self.dtype)).float() for batch in frames.split(size)]
        return batches[0] if len(batches) == 1 else torch.cat(batches)

    def frames_per_batch(self, pixels_per_frame: int) -> int:
        """How many frames fit: at the widest level about four tensors of the first block's channels are alive."""
        channels: int = self.module.config.block_out_channels[0]
        bytes_per_frame = 4 * channels * pixels_per_frame * self.dtype.itemsize
        return max(1, self.memory_bytes // bytes_per_frame)


def _placement(module: Any) -> tuple[torch.device, torch.dtype]:
    weight = next(module.parameters())
    return weight.device, weight.dtype
