"""Small Stable Diffusion models with heads that TensorRT can fuse, as the files that a user has.

Eight heads of 12 channels at every level, one layer a block: as few nodes as a UNet of four levels can have. The tiny
golden checkpoints have heads of 4 and 8 channels, for which TensorRT has no kernel.
"""

from __future__ import annotations

import importlib.util
import os
import zlib
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

CHANNELS = 96
TOKEN_DIM = 96
SEED = 40
REFINER_SEED = 41

_RENAMES = (
    (".pos_embed.pe", ".attention_blocks.0.pos_encoder.pe"),
    (".attn1.", ".attention_blocks.0."),
    (".attn2.", ".attention_blocks.1."),
    (".norm1.", ".norms.0."),
    (".norm2.", ".norms.1."),
    (".norm3.", ".ff_norm."),
)


def _missing(*modules: str) -> bool:
    return "CI" not in os.environ and any(importlib.util.find_spec(module) is None for module in modules)


needs_onnx = pytest.mark.skipif(
    _missing("onnx", "onnxruntime", "polygraphy"), reason="needs onnx, onnxruntime and polygraphy: the extra rtx"
)
needs_rtx = pytest.mark.skipif(
    _missing("tensorrt_rtx", "onnx", "onnxruntime", "polygraphy"), reason="needs the extra rtx"
)


def write_small_models(folder: Path) -> None:
    """``sd15`` and ``refiner``, diffusers folders of one VAE; ``mm_v1``, ``mm_v2``, ``lora``, .safetensors files."""
    for name, seed in (("sd15", SEED), ("refiner", REFINER_SEED)):
        _save(_weights(_unet(), seed), folder / name / "unet" / "diffusion_pytorch_model.safetensors")
        _save(_weights(_vae(), SEED), folder / name / "vae" / "diffusion_pytorch_model.safetensors")
    for version, positions, middle in (("v1", 24, False), ("v2", 32, True)):
        _save(_motion_module(positions, middle), folder / f"mm_{version}.safetensors")
    _save(_lora(), folder / "lora.safetensors")


def _save(tensors: dict[str, Tensor], path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    save_file(tensors, path)


def _unet() -> Any:
    from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel

    with torch.device("meta"):
        return UNet2DConditionModel(**_unet_config("2D"), attention_head_dim=8)


def _unet_config(suffix: str) -> dict[str, Any]:
    return {
        "block_out_channels": (CHANNELS,) * 4,
        "layers_per_block": 1,
        "cross_attention_dim": TOKEN_DIM,
        "norm_num_groups": 32,
        "down_block_types": tuple(f"{name}{suffix}" for name in ("CrossAttnDownBlock",) * 3 + ("DownBlock",)),
        "up_block_types": tuple(f"{name}{suffix}" for name in ("UpBlock",) + ("CrossAttnUpBlock",) * 3),
    }


def _vae() -> Any:
    from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL

    with torch.device("meta"):
        return AutoencoderKL(
            down_block_types=("DownEncoderBlock2D",) * 4,
            up_block_types=("UpDecoderBlock2D",) * 4,
            block_out_channels=(32, 32, 32, 64),
            layers_per_block=1,
            latent_channels=4,
        )


def _motion_module(positions: int, middle: bool) -> dict[str, Tensor]:
    """In the original layout (``motion_modules.0.temporal_transformer``), with a position table for each attention."""
    from diffusers.models.unets.unet_motion_model import UNetMotionModel

    with torch.device("meta"):
        unet = UNetMotionModel(
            **_unet_config("Motion"),
            motion_num_attention_heads=8,
            motion_max_seq_length=positions,
            use_motion_mid_block=middle,
        )
    tensors = {}
    for key, value in _weights(unet, SEED + positions).items():
        block, is_motion, rest = key.partition(".motion_modules.")
        number, _, rest = rest.partition(".")
        if is_motion:
            tensors[f"{block}.motion_modules.{number}.temporal_transformer.{_original_name(rest)}"] = value
    tables = {key: value for key, value in tensors.items() if key.endswith(".pe")}
    seconds = {key.replace("attention_blocks.0", "attention_blocks.1"): value.clone() for key, value in tables.items()}
    return tensors | seconds


def _original_name(name: str) -> str:
    for ours, theirs in _RENAMES:
        name = name.replace(ours, theirs)
    return name


def _lora() -> dict[str, Tensor]:
    """One layer's, in kohya's names."""
    name = "lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_attn1_to_k"
    shapes = {f"{name}.lora_down.weight": (4, CHANNELS), f"{name}.lora_up.weight": (CHANNELS, 4)}
    return {key: _drawn(key, torch.Size(shape), SEED) for key, shape in shapes.items()}


def _weights(module: Any, seed: int) -> dict[str, Tensor]:
    """Every tensor of a module on the meta device, float16."""
    return {key: _drawn(key, value.shape, seed) for key, value in module.state_dict().items()}


def _drawn(key: str, shape: torch.Size, seed: int) -> Tensor:
    """Of a scale that keeps activations near one (golden/tiny_models.py); the same for the same key and seed."""
    if key.endswith("pos_embed.pe"):
        return _sinusoid(shape)
    normal = torch.randn(shape, generator=torch.Generator().manual_seed(zlib.crc32(key.encode()) + seed))
    if len(shape) == 1:
        return (1 + 0.1 * normal if key.endswith("weight") else 0.05 * normal).half()
    gain = 0.5 if key.endswith(("decoder.conv_out.weight", "proj_out.weight")) else 1.0
    return (normal * gain / shape[1:].numel() ** 0.5).half()


def _sinusoid(shape: torch.Size) -> Tensor:
    """The positional table of a motion module, (1, frames, channels)."""
    _, length, channels = shape
    angle = torch.arange(length)[:, None] * 10000.0 ** (-torch.arange(0, channels, 2) / channels)
    return torch.stack([angle.sin(), angle.cos()], dim=-1).reshape(shape).half()
