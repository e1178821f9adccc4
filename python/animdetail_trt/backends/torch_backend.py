"""Models run by torch itself: the default and the fallback, and what the other backends are measured against."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from animdetail_trt.errors import EngineError, is_out_of_memory
from animdetail_trt.geometry import PIXELS_PER_LATENT

# Of the activations that one call may hold.
UNET_MEMORY_BYTES = 2 << 30
UNET_MEMORY_SHARE = 0.25  # of a GPU's own
VAE_MEMORY_BYTES = 2 << 30
# Tensors of 8 MiB: larger ones leave the caches, and above 32 MiB the C library maps fresh memory for each, in spite of
# cli/heap.py, whose page faults cost more than a larger call saves (benchmarks/README.md).
VAE_MEMORY_BYTES_ON_CPU = 32 << 20


class TorchUNet:
    """A diffusers UNet2DConditionModel (``positions`` None) or UNetMotionModel as a UNetRunner."""

    name = "torch"

    def __init__(self, module: Any, positions: int | None) -> None:
        self.module = module
        self.positions = positions
        self.token_dim: int = module.config.cross_attention_dim
        self.device, self.dtype = _placement(module)
        self.memory_bytes = UNET_MEMORY_BYTES
        if self.device.type == "cuda":
            self.memory_bytes = int(UNET_MEMORY_SHARE * torch.cuda.get_device_properties(self.device).total_memory)

    def frames_per_call(self, width: int, height: int) -> int:
        """At the widest level about 32 tensors of the first block's channels are alive (ComfyUI's estimate: 0.01 MiB
        per latent pixel and byte)."""
        channels: int = self.module.config.block_out_channels[0]
        latents = (width // PIXELS_PER_LATENT) * (height // PIXELS_PER_LATENT)
        bytes_per_frame = 32 * channels * latents * self.dtype.itemsize
        return max(1, self.memory_bytes // bytes_per_frame)

    @torch.inference_mode()
    def __call__(
        self, latents: Tensor, timestep: float, tokens: Tensor, residuals: Sequence[Tensor] | None = None
    ) -> Tensor:
        batch, frames = latents.shape[:2]
        latents = latents.to(self.device, self.dtype)
        time = torch.full((1,), timestep, dtype=torch.float32, device=self.device)
        # Frames are the batch of the spatial layers: every frame reads its window's prompt, or its own.
        tokens = tokens.to(self.device, self.dtype).expand(-1, frames, -1, -1).flatten(0, 1)
        control: dict[str, Any] = {}
        if residuals is not None:
            *skips, middle = (residual.to(self.device, self.dtype) for residual in residuals)
            control = {"down_block_additional_residuals": skips, "mid_block_additional_residual": middle}
        eps: Tensor
        if self.positions is None:
            (eps,) = self.module(latents.flatten(0, 1), time, tokens, return_dict=False, **control)
            return eps.float().reshape(batch, frames, *eps.shape[1:])
        (eps,) = self.module(latents.transpose(1, 2), time, tokens, return_dict=False, **control)
        return eps.transpose(1, 2).float()


class CompiledUNet(TorchUNet):
    """As TorchUNet, its repeated blocks compiled by torch.compile when they are first called, once for all sizes: block
    by block that takes a fraction of the whole UNet's time (PyTorch's recipe of regional compilation)."""

    name = "torch.compile"

    def __init__(self, module: Any, positions: int | None) -> None:
        super().__init__(_with_compiled_blocks(module), positions)

    @torch.inference_mode()
    def __call__(
        self, latents: Tensor, timestep: float, tokens: Tensor, residuals: Sequence[Tensor] | None = None
    ) -> Tensor:
        """As every UNetRunner. Raises EngineError where it does not compile."""
        # A view of one prompt, and a copy of several, would each be compiled for.
        tokens = tokens.expand(-1, latents.shape[1], -1, -1).clone(memory_format=torch.contiguous_format)
        try:
            # Blocks of every width share their code, and each is compiled for itself: more than the usual limit, by the
            # name that every torch knows.
            with torch._dynamo.config.patch(cache_size_limit=64):
                return super().__call__(latents, timestep, tokens, residuals)
        except Exception as error:  # of the compiler and of what it calls: many kinds
            if is_out_of_memory(error):
                raise
            cause = getattr(error, "inner_exception", error)  # BackendCompilerFailed only wraps it
            first = str(cause).strip().partition("\n")[0]
            raise EngineError(f"torch.compile failed: {type(cause).__name__}: {first}") from error


def _with_compiled_blocks(module: Any) -> Any:
    """A copy that shares the weights; ``module`` keeps its own code, for where compiling fails. The weights of both
    become channels last, in place: convolutions are then compiled without a change of layout before and after each."""
    from diffusers.models.attention_processor import AttnProcessor2_0

    module.to(memory_format=torch.channels_last)
    weights = {id(tensor): tensor for tensor in (*module.parameters(), *module.buffers())}
    compiled = copy.deepcopy(module, weights)
    for part in compiled.modules():
        if hasattr(part, "set_processor"):  # the reference's order of operations is lost to the compiler
            part.set_processor(AttnProcessor2_0())
        if type(part).__name__ in ("ResnetBlock2D", "BasicTransformerBlock"):
            part.compile(dynamic=True)
    return compiled


class TorchControlNet:
    """A diffusers ControlNetModel as a ControlRunner."""

    def __init__(self, module: Any, *, global_average_pooling: bool = False) -> None:
        self.module = module
        self.global_average_pooling = global_average_pooling
        self.token_dim: int = module.config.cross_attention_dim
        self.device, self.dtype = _placement(module)

    @torch.inference_mode()
    def __call__(self, latents: Tensor, timestep: float, tokens: Tensor, hints: Tensor) -> list[Tensor]:
        batch, frames = latents.shape[:2]
        time = torch.full((1,), timestep, dtype=torch.float32, device=self.device)
        skips, middle = self.module(
            latents.flatten(0, 1).to(self.device, self.dtype),
            time,
            tokens.to(self.device, self.dtype).expand(-1, frames, -1, -1).flatten(0, 1),
            hints.to(self.device, self.dtype).expand(frames, -1, -1, -1).repeat(batch, 1, 1, 1),
            return_dict=False,
        )
        return [*skips, middle]


class TorchVae:
    """A diffusers AutoencoderKL as a VaeRunner."""

    name = "torch"

    def __init__(self, module: Any, *, memory_bytes: int | None = None) -> None:
        self.module = module
        self.device, self.dtype = _placement(module)
        default = VAE_MEMORY_BYTES_ON_CPU if self.device.type == "cpu" else VAE_MEMORY_BYTES
        self.memory_bytes = default if memory_bytes is None else memory_bytes

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
        return pixels


def _placement(module: Any) -> tuple[torch.device, torch.dtype]:
    weight = next(module.parameters())
    return weight.device, weight.dtype
