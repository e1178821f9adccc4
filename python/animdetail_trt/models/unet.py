"""The SD 1.5 UNet, with or without a motion module, as a diffusers module built from the weights alone."""

from __future__ import annotations

import re
from typing import Any, NamedTuple

import torch
from torch import nn

from animdetail_trt.models.attention import use_reference_order
from animdetail_trt.models.checkpoint import Placement, StateDict, count_numbered, load_exactly
from animdetail_trt.models.motion import MotionModule, apply_motion_norms

LDM_PREFIX = "model.diffusion_model."
# SD 1.5 and AnimateDiff use eight heads at every level; the weights do not tell.
ATTENTION_HEADS = 8


class UNet(NamedTuple):
    module: nn.Module
    positions: int | None
    """The longest window in frames that the motion module has positions for; None without a motion module."""


def unet_from_ldm(tensors: StateDict) -> StateDict:
    """The UNet's tensors of a single-file checkpoint, renamed to the diffusers layout."""
    from diffusers.loaders.single_file_utils import convert_ldm_unet_checkpoint

    unet = {k: v for k, v in tensors.items() if k.startswith(LDM_PREFIX)}
    converted: StateDict = convert_ldm_unet_checkpoint(unet, {"layers_per_block": ldm_layers_per_block(unet)})
    return converted


def ldm_layers_per_block(unet: StateDict) -> int:
    """Input block 0 is the first convolution and the first downsampler ends the first level."""
    found = [re.search(r"input_blocks\.(\d+)\.0\.op\.weight", key) for key in unet]
    downsamplers = [int(match[1]) for match in found if match]
    if not downsamplers:
        raise KeyError("input_blocks.3.0.op.weight")
    return min(downsamplers) - 1


def unet_config(tensors: StateDict) -> dict[str, Any]:
    """The diffusers configuration that these weights (diffusers layout) were made for, read from their shapes."""
    config = encoder_config(tensors)
    return config | {
        "out_channels": tensors["conv_out.weight"].shape[0],
        "up_block_types": tuple(
            "CrossAttnUpBlock" if f"up_blocks.{i}.attentions.0.norm.weight" in tensors else "UpBlock"
            for i in range(len(config["block_out_channels"]))
        ),
    }


def encoder_config(tensors: StateDict) -> dict[str, Any]:
    """The part of it that a ControlNet shares with the UNet: its way down."""
    levels = count_numbered(tensors, r"down_blocks\.(\d+)\.")
    return {
        "in_channels": tensors["conv_in.weight"].shape[1],
        "block_out_channels": tuple(tensors[f"down_blocks.{i}.resnets.0.conv1.weight"].shape[0] for i in range(levels)),
        "layers_per_block": count_numbered(tensors, r"down_blocks\.0\.resnets\.(\d+)\."),
        "cross_attention_dim": next(t for k, t in tensors.items() if k.endswith("attn2.to_k.weight")).shape[1],
        "down_block_types": tuple(
            "CrossAttnDownBlock" if f"down_blocks.{i}.attentions.0.norm.weight" in tensors else "DownBlock"
            for i in range(levels)
        ),
        "norm_num_groups": 32,
    }


def build_unet(tensors: StateDict, motion: MotionModule | None, source: str, place: Placement) -> UNet:
    """Build the module on the meta device and give it the tensors, which are copied only to change their type.

    tensors: the spatial UNet, diffusers layout
    source: what error messages call the file
    """
    unet = assemble_unet(tensors, motion, source, place)
    use_reference_order(unet.module, place)
    return unet


def assemble_unet(tensors: StateDict, motion: MotionModule | None, source: str, place: Placement) -> UNet:
    """As ``build_unet``, with attention as diffusers has it."""
    from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
    from diffusers.models.unets.unet_motion_model import UNetMotionModel

    config = unet_config(tensors)
    suffix = "2D" if motion is None else "Motion"
    for side in ("down_block_types", "up_block_types"):
        config[side] = tuple(name + suffix for name in config[side])
    with torch.device("meta"):
        if motion is None:
            module = UNet2DConditionModel(**config, attention_head_dim=ATTENTION_HEADS)
        else:
            module = UNetMotionModel(
                **config,
                num_attention_heads=ATTENTION_HEADS,
                motion_num_attention_heads=ATTENTION_HEADS,
                motion_max_seq_length=motion.positions,
                use_motion_mid_block=motion.version == "v2",
            )
    if motion is not None:
        apply_motion_norms(module, motion.version)
        tensors = tensors | motion.tensors
        source = f"{source} with {motion.source}"
    load_exactly(module, tensors, source, place)
    return UNet(module, None if motion is None else motion.positions)
