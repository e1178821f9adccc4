"""Models run by torch itself: the default and the fallback, and what the other backends are measured against."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

# Of the activations that one VAE call may hold.
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

    def frames_per_call(self, width: int, height: int) -> int:
        """At the widest level about four tensors of the first block's channels are alive."""
        channels: int = self.module.config.block_out_channels[0]
        bytes_per_frame = 4 * channels * width * height * self.dtype.itemsize
        return max(1, self.memory_bytes // bytes_per_frame)

    @torch.inference_mode()
    def encode(self, pixels: Tensor) -> Tensor:
        latents: Tensor = self.module.encode(pixels.to(self.device, self.dtype), return_dict=False)[0].mean
        return latents.float()

    @torch.inference_mode()
    def decode(self, latents: Tensor) -> Tensor:
        pixels: Tensor = self.module.decode(latents.to(self.device, self.dtype), return_dict=False)[0]
        return pixels.float()


def _placement(module: Any) -> tuple[torch.device, torch.dtype]:
    weight = next(module.parameters())
    return weight.device, weight.dtype
