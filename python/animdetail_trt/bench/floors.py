"""How fast the machine could do it: a roofline (Williams, Waterman & Patterson 2009) of rates measured in the same run.

The floor of a job is the longer of two times: its floating-point operations at the rate at which torch multiplies large
matrices or convolves, whichever is higher, and its compulsory bytes at the rate at which torch copies memory. The
fraction reached is the floor over the time.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, astuple, dataclass
from typing import Any

import torch
from torch import Tensor

from animdetail_trt.bench.scenarios import NODE_KINDS, Scenario
from animdetail_trt.bench.timing import CPU, repeat

FLOAT_BYTES = 4
_UNET_CLASSES = ("UNetMotionModel", "UNet2DConditionModel")


@dataclass(frozen=True)
class Rates:
    """What this machine reaches: bytes read plus written per ms of a copy, operations per ms of the UNet's dtype and of
    the VAE's (a multiplication and an addition are two)."""

    copy_bytes_per_ms: float
    unet_flops_per_ms: float
    vae_flops_per_ms: float

    def or_faster(self, others: Rates) -> Rates:
        return Rates(*(max(mine, theirs) for mine, theirs in zip(astuple(self), astuple(others), strict=True)))


@dataclass(frozen=True)
class Work:
    """bytes_moved: inputs and weights read, outputs written"""

    bytes_moved: int
    unet_flops: int = 0
    vae_flops: int = 0

    @property
    def flops(self) -> int:
        return self.unet_flops + self.vae_flops

    def floor(self, rates: Rates) -> dict[str, Any]:
        flops_ms = self.unet_flops / rates.unet_flops_per_ms + self.vae_flops / rates.vae_flops_per_ms
        bytes_ms = self.bytes_moved / rates.copy_bytes_per_ms
        bound = "arithmetic" if flops_ms > bytes_ms else "memory"
        times = {"flops_ms": flops_ms, "bytes_ms": bytes_ms, "floor_ms": max(flops_ms, bytes_ms)}
        return {**asdict(self), "flops": self.flops, **times, "bound": bound}


@dataclass(frozen=True)
class WeightBytes:
    """Of the models as they are run."""

    unet: int = 0
    vae_encoder: int = 0
    vae_decoder: int = 0


def bytes_moved(scenario: Scenario, weights: WeightBytes) -> int:
    """The least traffic of a scenario: inputs read once, outputs written once, weights read once in every step.

    What is kept between the steps of a job (crops, activations) might stay in caches and does not count; the pictures
    of the pixel path do, for its VAE is another's.
    """
    pictures = FLOAT_BYTES * scenario.frames * 3 * scenario.side**2
    latents = FLOAT_BYTES * scenario.frames * 4 * (scenario.side // 8) ** 2
    if scenario.kind == "vae_encode":
        return pictures + latents + weights.vae_encoder
    if scenario.kind == "vae_decode":
        return latents + pictures + weights.vae_decoder
    if scenario.kind == "unet":
        return 2 * scenario.prompts * latents + weights.unet
    if scenario.kind == "windows":
        return 2 * latents + weights.unet
    frames = FLOAT_BYTES * scenario.frames * 3 * scenario.width * scenario.height
    mask = FLOAT_BYTES * scenario.crop**2
    if scenario.kind in NODE_KINDS:
        models = weights.vae_encoder + scenario.steps * weights.unet + weights.vae_decoder
        return 2 * frames + scenario.segments * (models + mask)
    return 2 * frames + scenario.segments * (2 * pictures + mask)


def copy_bytes_per_ms(device: torch.device = CPU, mebibytes: int = 256, runs: int = 15) -> float:
    """Bytes read plus written per millisecond by torch's copy, on its threads, between buffers beyond any cache: the
    best run, for a limit is what the machine can do."""
    source = torch.zeros(mebibytes * 2**18, device=device)
    target = torch.zeros_like(source)
    moved = 2 * source.numel() * source.element_size()
    return moved / min(repeat(lambda: target.copy_(source), runs, device).runs_ms)


def flops_per_ms(device: torch.device, dtype: torch.dtype, runs: int = 10) -> float:
    """Operations per millisecond of torch's product of two matrices, or of its 3x3 convolution where that is faster (on
    a CPU another library computes it), both large enough to keep the device busy: the best run."""
    side, channels, images = (8192, 512, 16) if device.type == "cuda" else (1024, 128, 1)
    left, right = (torch.randn(side, side, device=device).to(dtype) for _ in range(2))
    pictures = torch.randn(images, channels, 64, 64, device=device).to(dtype)
    kernels = torch.randn(channels, channels, 3, 3, device=device).to(dtype)
    out = torch.empty_like(left)
    product = repeat(lambda: torch.mm(left, right, out=out), runs, device)
    convolution = repeat(lambda: torch.conv2d(pictures, kernels, padding=1), runs, device)
    return max(2 * side**3 / min(product.runs_ms), 2 * kernels.numel() * images * 64 * 64 / min(convolution.runs_ms))


def count_flops(call: Callable[[], Tensor]) -> tuple[Tensor, int, int]:
    """The call's result and the operations of its products and convolutions as torch counts them: of the UNet, and of
    the rest, which is the VAE."""
    from torch.utils.flop_counter import FlopCounterMode

    with FlopCounterMode(display=False) as counter:
        result = call()
    by_module = counter.get_flop_counts()
    unet = sum(sum(by_module.get(name, {}).values()) for name in _UNET_CLASSES)
    return result, unet, counter.get_total_flops() - unet
