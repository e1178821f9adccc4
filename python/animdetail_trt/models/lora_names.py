"""What the modules of SD 1.5 are called in LoRA files.

kohya's trainer writes underscores for dots, after ``lora_unet_`` or ``lora_te_``, and uses the names of diffusers or of
the original Stable Diffusion files (LDM); diffusers and peft keep the dots, after a prefix or none.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from typing import TypeAlias

from animdetail_trt.models.checkpoint import count_numbered

Names: TypeAlias = Mapping[str, str]
"""Every name that a module may have in a file, as ``plain_name`` gives it -> the key of its weight."""

_DOTTED_PREFIXES = re.compile(
    r"^(?:(?:base_model\.model|module|model|diffusion_model|unet|text_encoder|text_encoders|clip_l|transformer)\.)+"
)


def plain_name(module: str) -> str:
    """A dotted name as diffusers has it now: without prefixes and attention processors, ``to_out`` as ``to_out.0``."""
    module = _DOTTED_PREFIXES.sub("", module).replace(".processor.", ".")
    return f"{module}.0" if module.endswith(".to_out") else module


def unet_names(unet: Collection[str]) -> Names:
    """Names of a UNet's modules, by its keys in the diffusers layout."""
    layers = count_numbered(unet, r"down_blocks\.0\.resnets\.(\d+)\.")
    names: dict[str, str] = {}
    for key in unet:
        if key.endswith(".weight"):
            diffusers = key.removesuffix(".weight")
            for name in (diffusers, ldm_name(diffusers, layers, unet)):
                flat = name.replace(".", "_")
                names |= {name: key, f"lora_unet_{flat}": key, f"lycoris_{flat}": key}
    return names


def text_names(text: Collection[str]) -> Names:
    """Names of a text encoder's modules, by its keys with any prefix, or none."""
    names: dict[str, str] = {}
    for key in text:
        found = re.search(r"(?:^|\.)((?:encoder|embeddings|final_layer_norm)\b.*)\.weight$", key)
        if found:
            name = f"text_model.{found[1]}"
            flat = name.replace(".", "_")
            names |= {name: key, f"lora_te_{flat}": key, f"lora_te1_{flat}": key}
    return names


def motion_names(motion: Collection[str]) -> Names:
    """Names of a motion module's modules, by its keys in the diffusers layout."""
    return {key.removesuffix(".weight"): key for key in motion if key.endswith(".weight")}


_BLOCK = re.compile(r"(down|mid|up)_blocks?\.(?:(\d+)\.)?(resnets|attentions|downsamplers|upsamplers)\.(\d+)\.(.+)")
_LDM_TOP = {
    "time_embedding.linear_1": "time_embed.0",
    "time_embedding.linear_2": "time_embed.2",
    "conv_in": "input_blocks.0.0",
    "conv_norm_out": "out.0",
    "conv_out": "out.2",
}
_LDM_RESNET = {
    "norm1": "in_layers.0",
    "conv1": "in_layers.2",
    "time_emb_proj": "emb_layers.1",
    "norm2": "out_layers.0",
    "conv2": "out_layers.3",
    "conv_shortcut": "skip_connection",
}


def ldm_name(module: str, layers_per_block: int, unet: Collection[str]) -> str:
    """The name in LDM of what diffusers calls ``module``. Blocks are counted through all levels there, and begin with
    a resnet; an attention, then an upsampler follow in the same block."""
    match = _BLOCK.match(module)
    if match is None:
        return _LDM_TOP.get(module, module)
    side, level, kind, index, rest = match[1], int(match[2] or 0), match[3], int(match[4]), match[5]
    first = level * (layers_per_block + 1)
    attention = int(kind == "attentions")
    if kind == "resnets":
        rest = _LDM_RESNET.get(rest, rest)
    if side == "mid":
        return f"middle_block.{2 * index + attention}.{rest}"
    if kind == "downsamplers":
        return f"input_blocks.{first + layers_per_block + 1}.0.op"
    if kind == "upsamplers":
        place = 2 if f"up_blocks.{level}.attentions.0.norm.weight" in unet else 1
        return f"output_blocks.{first + layers_per_block}.{place}.conv"
    block = f"input_blocks.{first + index + 1}" if side == "down" else f"output_blocks.{first + index}"
    return f"{block}.{attention}.{rest}"
