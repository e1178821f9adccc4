"""ControlNets for SD 1.5 as diffusers ControlNetModels built from the weights alone."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import torch

from animdetail_trt.backends.select import choose_device, choose_dtype
from animdetail_trt.backends.torch_backend import TorchControlNet
from animdetail_trt.errors import CheckpointError, InputError
from animdetail_trt.models.attention import use_reference_order
from animdetail_trt.models.checkpoint import (
    Placement,
    StateDict,
    all_finite,
    expanded,
    load_exactly,
    read_config,
    read_tensors,
    reading,
    require_kind,
    shapes_of,
    weights_in,
)
from animdetail_trt.models.unet import ATTENTION_HEADS, encoder_config, ldm_layers_per_block

LDM_PREFIX = "control_model."
_POOLED_ENDINGS = ("_shuffle", "_shuffle_fp16")


def load_controlnet(
    path: str | Path, *, device: str | torch.device = "auto", dtype: str | torch.dtype = "auto"
) -> TorchControlNet:
    """Load a ControlNet for SD 1.5: a safetensors file in the LDM or the diffusers layout, or a folder of diffusers.

    device: auto, cpu, cuda, cuda:N; dtype: auto, float32, float16, bfloat16
    A file whose name ends in ``_shuffle`` or ``_shuffle_fp16`` has its residuals averaged over the picture, and so has
    a folder of diffusers whose name does, or whose config.json says it.

    Raises CheckpointError for a file that is missing, damaged, or of another kind, and InputError for an unknown name.
    """
    if not isinstance(path, str | Path):
        raise InputError(f"the ControlNet must be a path, not {path!r:.80}")
    pools, path = _pools(expanded(path)), weights_in(expanded(path))
    torch_device = choose_device(device)
    place = Placement(torch_device, choose_dtype(dtype, torch_device))
    tensors = read_tensors(path)
    require_kind(path, shapes_of(tensors), ("controlnet",), "a ControlNet")
    with reading(str(path), "ControlNet for Stable Diffusion 1.5"):
        module = build_controlnet(controlnet_tensors(tensors), str(path), place)
    return TorchControlNet(module, global_average_pooling=pools)


def _pools(path: str | Path) -> bool:
    """Whether a ControlNet's residuals are averaged: no weight tells."""
    path = Path(path)
    if not path.is_dir():
        return path.stem.endswith(_POOLED_ENDINGS)
    config = read_config(path / "config.json")
    return path.name.endswith(_POOLED_ENDINGS) or config.get("global_pool_conditions") is True


def controlnet_tensors(tensors: StateDict) -> StateDict:
    """The ControlNet's tensors of a file, in the diffusers layout."""
    prefix = LDM_PREFIX if any(key.startswith(LDM_PREFIX) for key in tensors) else ""
    network = {key.removeprefix(prefix): value for key, value in tensors.items() if key.startswith(prefix)}
    if "controlnet_cond_embedding.conv_in.weight" in network:
        return network
    from diffusers.loaders.single_file_utils import convert_controlnet_checkpoint

    converted: StateDict = convert_controlnet_checkpoint(network, {"layers_per_block": ldm_layers_per_block(network)})
    # What the file lacks comes as None, and is named when the module is loaded.
    return {key: value for key, value in converted.items() if value is not None}


def controlnet_config(tensors: StateDict) -> dict[str, Any]:
    """The diffusers configuration that these weights (diffusers layout) were made for, read from their shapes."""
    embedding = "controlnet_cond_embedding"
    steps = sorted(int(m[1]) for m in map(re.compile(rf"{embedding}\.blocks\.(\d+)\.weight").match, tensors) if m)
    first = tensors[f"{embedding}.conv_in.weight"]
    # Every second convolution halves the picture and widens the channels.
    widths = [tensors[f"{embedding}.blocks.{step}.weight"].shape[0] for step in steps[1::2]]
    return encoder_config(tensors) | {
        "conditioning_channels": first.shape[1],
        "conditioning_embedding_out_channels": (first.shape[0], *widths),
    }


def build_controlnet(tensors: StateDict, source: str, place: Placement) -> torch.nn.Module:
    """Build a ControlNetModel on the meta device and give it the tensors (diffusers layout)."""
    from diffusers.models.controlnets.controlnet import ControlNetModel

    for key, tensor in tensors.items():
        if tensor.is_floating_point() and not all_finite(tensor):
            raise CheckpointError(
                f"{source} holds NaN or infinity in {key!r}. It is damaged; download or copy it again"
            )
    config = controlnet_config(tensors)
    if config["conditioning_channels"] != 3:
        raise CheckpointError(
            f"{source} reads pictures of {config['conditioning_channels']} channels; 3 are given here"
        )
    config["down_block_types"] = tuple(f"{name}2D" for name in config["down_block_types"])
    with torch.device("meta"):
        module: torch.nn.Module = ControlNetModel(**config, attention_head_dim=ATTENTION_HEADS)
    load_exactly(module, tensors, source, place)
    use_reference_order(module, place)
    return module
