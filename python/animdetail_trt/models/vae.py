"""The SD VAE (Kingma & Welling 2013; Rombach et al. 2022) as a diffusers AutoencoderKL built from the weights alone."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import torch
from torch import nn

from animdetail_trt.models.checkpoint import (
    Placement,
    StateDict,
    count_numbered,
    load_exactly,
    read_tensors,
    reading,
    require_kind,
    shapes_of,
)

LDM_PREFIX = "first_stage_model."
_OLD_ATTENTION_NAMES = {"query": "to_q", "key": "to_k", "value": "to_v", "proj_attn": "to_out.0"}


def load_vae_file(path: str | Path) -> StateDict:
    """A VAE file of its own, in the LDM or the diffusers layout, as diffusers names its tensors."""
    tensors = read_tensors(path)
    require_kind(path, shapes_of(tensors), ("vae", "sd15"), "a VAE")
    with reading(str(path), "VAE of Stable Diffusion"):
        return vae_from_diffusers(tensors) if any(".resnets." in key for key in tensors) else vae_from_ldm(tensors)


def vae_from_diffusers(tensors: StateDict) -> StateDict:
    """Rename the attention of files written before diffusers 0.15."""
    pattern = re.compile(r"(mid_block\.attentions\.0\.)(query|key|value|proj_attn)\.")
    return {pattern.sub(lambda m: f"{m[1]}{_OLD_ATTENTION_NAMES[m[2]]}.", key): value for key, value in tensors.items()}


def vae_from_ldm(tensors: StateDict) -> StateDict:
    """The VAE's tensors of a single-file checkpoint or of a VAE file, renamed to the diffusers layout."""
    from diffusers.loaders.single_file_utils import convert_ldm_vae_checkpoint

    prefix = LDM_PREFIX if any(key.startswith(LDM_PREFIX) for key in tensors) else ""
    vae = {key.removeprefix(prefix): value for key, value in tensors.items() if key.startswith(prefix)}
    vae = {key: value for key, value in vae.items() if not key.startswith(("loss.", "model_ema."))}
    levels = count_numbered(vae, r"encoder\.down\.(\d+)\.")
    blocks = {"down_block_types": ("DownEncoderBlock2D",) * levels, "up_block_types": ("UpDecoderBlock2D",) * levels}
    converted: StateDict = convert_ldm_vae_checkpoint(vae, blocks)
    return converted


def vae_config(tensors: StateDict) -> dict[str, Any]:
    """The diffusers configuration that these weights (diffusers layout) were made for, read from their shapes."""
    levels = count_numbered(tensors, r"encoder\.down_blocks\.(\d+)\.")
    return {
        "down_block_types": ("DownEncoderBlock2D",) * levels,
        "up_block_types": ("UpDecoderBlock2D",) * levels,
        "block_out_channels": tuple(
            tensors[f"encoder.down_blocks.{i}.resnets.0.conv1.weight"].shape[0] for i in range(levels)
        ),
        "layers_per_block": count_numbered(tensors, r"encoder\.down_blocks\.0\.resnets\.(\d+)\."),
        "latent_channels": tensors["post_quant_conv.weight"].shape[0],
    }


def build_vae(tensors: StateDict, source: str, place: Placement) -> nn.Module:
    """Build an AutoencoderKL on the meta device and give it the tensors."""
    from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL

    with torch.device("meta"):
        module: nn.Module = AutoencoderKL(**vae_config(tensors))
    load_exactly(module, tensors, f"the VAE of {source}", place)
    return module
