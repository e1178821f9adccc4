"""Model files of the real layout with random weights: Stable Diffusion 1.5 and an AnimateDiff v2 module, whole or tiny.

Shapes come from diffusers' modules, built without memory. A weight's spread is 1 / sqrt(inputs), so that activations
keep their size through the layers as in a trained model; no speed depends on the values.
"""

from __future__ import annotations

import math
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from animdetail_trt.media.staging import write_weights

Shapes = Mapping[str, tuple[int, ...]]


@dataclass(frozen=True)
class ModelSize:
    """channels: of the UNet's four levels; vae_channels: of the VAE's; token_dim: of the prompt; positions: frames that
    the motion module knows"""

    name: str
    channels: tuple[int, int, int, int]
    vae_channels: tuple[int, int, int, int]
    token_dim: int
    positions: int = 32


SD15 = ModelSize("sd15", (320, 640, 1280, 1280), (128, 256, 512, 512), 768)
TINY = ModelSize("tiny", (32, 64, 64, 64), (32, 64, 64, 64), 64)
SIZES = {size.name: size for size in (SD15, TINY)}

_HEADS = 8
# Of a motion module: diffusers' names, and the original's that load_pipe reads.
_MOTION_NAMES = (
    (".attn1.", ".attention_blocks.0."),
    (".attn2.", ".attention_blocks.1."),
    (".norm1.", ".norms.0."),
    (".norm2.", ".norms.1."),
    (".norm3.", ".ff_norm."),
    (".pos_embed.", ".attention_blocks.0.pos_encoder."),
)
# Beside these a random model's pictures would be all black and white.
_GAINS = {"decoder.conv_out.weight": 0.5, "temporal_transformer.proj_out.weight": 0.5}


@dataclass(frozen=True)
class ModelPaths:
    """A diffusers folder and a motion module."""

    checkpoint: Path
    motion_module: Path


def write_models(folder: Path, size: ModelSize) -> ModelPaths:
    """Write the files below ``folder``, float16, unless they are there: 2.7 GB for SD15, 7 MB for TINY."""
    paths = ModelPaths(folder / size.name, folder / f"{size.name}-motion-v2.safetensors")
    unet, vae = (paths.checkpoint / part / "diffusion_pytorch_model.safetensors" for part in ("unet", "vae"))
    if all(path.exists() for path in (unet, vae, paths.motion_module)):
        return paths
    unet_part, motion_part = unet_shapes(size)
    for path, shapes in ((unet, unet_part), (vae, vae_shapes(size)), (paths.motion_module, motion_part)):
        if not path.exists():
            path.parent.mkdir(parents=True, exist_ok=True)
            _write(path, shapes)
    return paths


def unet_shapes(size: ModelSize) -> tuple[Shapes, Shapes]:
    """Of the UNet, in diffusers' layout, and of its motion module in its original one."""
    from diffusers.models.unets.unet_motion_model import UNetMotionModel

    with torch.device("meta"):
        module = UNetMotionModel(
            block_out_channels=size.channels,
            cross_attention_dim=size.token_dim,
            num_attention_heads=_HEADS,
            motion_num_attention_heads=_HEADS,
            motion_max_seq_length=size.positions,
            use_motion_mid_block=True,
        )
    shapes = _shapes_of(module)
    motion: dict[str, tuple[int, ...]] = {}
    for key in [key for key in shapes if ".motion_modules." in key]:
        name = _motion_name(key)
        motion[name] = shapes.pop(key)
        if name.endswith(".pos_encoder.pe"):  # one table for each attention, though they are the same
            motion[name.replace("attention_blocks.0", "attention_blocks.1")] = motion[name]
    return shapes, motion


def _motion_name(key: str) -> str:
    start, number, rest = key.partition(".motion_modules.")[0], *key.partition(".motion_modules.")[2].split(".", 1)
    name = f".{rest}"
    for theirs, original in _MOTION_NAMES:
        name = name.replace(theirs, original)
    return f"{start}.motion_modules.{number}.temporal_transformer{name}"


def vae_shapes(size: ModelSize) -> Shapes:
    from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL

    with torch.device("meta"):
        module = AutoencoderKL(
            down_block_types=("DownEncoderBlock2D",) * 4,
            up_block_types=("UpDecoderBlock2D",) * 4,
            block_out_channels=size.vae_channels,
            layers_per_block=2,
            latent_channels=4,
        )
    return _shapes_of(module)


def _shapes_of(module: Any) -> dict[str, tuple[int, ...]]:
    return {key: tuple(tensor.shape) for key, tensor in module.state_dict().items()}


def _write(path: Path, shapes: Shapes) -> None:
    write_weights(path, {key: _random(key, shape) for key, shape in shapes.items()})


def _random(key: str, shape: tuple[int, ...]) -> Tensor:
    """float16: the same on every run, whatever else is in the file."""
    if key.endswith(".pos_encoder.pe"):
        return _sinusoids(shape)
    generator = torch.Generator().manual_seed(zlib.crc32(key.encode()))
    values = torch.randn(shape, generator=generator)
    if len(shape) == 1:
        values = 1 + 0.1 * values if key.endswith("weight") else 0.05 * values
    else:
        gain = next((gain for end, gain in _GAINS.items() if key.endswith(end)), 1.0)
        values *= gain / math.sqrt(math.prod(shape[1:]))
    return values.half()


def _sinusoids(shape: tuple[int, ...]) -> Tensor:
    """The table of positions (Vaswani et al. 2017, sec. 3.5)."""
    _, positions, channels = shape
    rate = torch.exp(torch.arange(0, channels, 2) * (-math.log(10000.0) / channels))
    angle = torch.arange(positions)[:, None] * rate
    return torch.stack([angle.sin(), angle.cos()], dim=-1).reshape(shape).half()
