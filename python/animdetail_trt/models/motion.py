"""AnimateDiff motion modules v1, v2 and v3 (Guo et al. 2023, arXiv:2307.04725), as the reference computes them.

diffusers' UNetMotionModel holds the same weights but normalises otherwise: its motion transformers take GroupNorm
over all frames together, its other layers one frame at a time, whatever the version. The reference's v2 and v3
normalise every frame by itself everywhere, its v1 all frames of the window together everywhere. The norms are
replaced here, nothing else. The table of positions is the file's own.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from animdetail_trt.errors import CheckpointError
from animdetail_trt.models.checkpoint import StateDict, read_tensors, require_kind, shapes_of

Version = Literal["v1", "v2", "v3"]

_POSITION_TABLE = "attention_blocks.0.pos_encoder.pe"
_RENAMES = (
    (".temporal_transformer", ""),
    (_POSITION_TABLE, "pos_embed.pe"),
    (".attention_blocks.0", ".attn1"),
    (".attention_blocks.1", ".attn2"),
    (".norms.0", ".norm1"),
    (".norms.1", ".norm2"),
    (".ff_norm", ".norm3"),
)


@dataclass(frozen=True)
class MotionModule:
    """tensors: diffusers layout, with the position tables; positions: frames that they cover; source: the file."""

    tensors: StateDict
    version: Version
    positions: int
    source: str


def load_motion_module(path: str | Path) -> MotionModule:
    """Read a motion module in its original layout; the version is read from the weights, as the reference does."""
    raw = {key.removeprefix("module."): value for key, value in read_tensors(path).items()}
    require_kind(path, shapes_of(raw), ("motion-module",), "a motion module for SD 1.5")
    tables = [value for key, value in raw.items() if key.endswith(_POSITION_TABLE)]
    if not tables:
        raise CheckpointError(
            f"{path} has no table of positions: it is an AnimateLCM module, which this version does not read yet. "
            "Choose an AnimateDiff v1, v2 or v3 module"
        )
    positions = tables[0].shape[1]
    if any(key.startswith("mid_block.") for key in raw):
        version: Version = "v2"
    else:
        version = "v3" if positions == 32 else "v1"
    return MotionModule(_to_diffusers(raw, path), version, positions, str(path))


def _to_diffusers(raw: StateDict, path: str | Path) -> StateDict:
    tensors: StateDict = {}
    for key, value in raw.items():
        if key.endswith("attention_blocks.1.pos_encoder.pe"):
            # diffusers keeps one table for both attentions of a block.
            if not torch.equal(value, raw[key.replace("attention_blocks.1", "attention_blocks.0")]):
                raise CheckpointError(f"{path} has two different position tables in one block, at {key!r}")
            continue
        for old, new in _RENAMES:
            key = key.replace(old, new)
        tensors[key] = value
    return tensors


class PerFrameGroupNorm(nn.GroupNorm):
    """GroupNorm of each frame by itself, on (b, c, f, h, w)."""

    def forward(self, x: Tensor) -> Tensor:
        frames = x.transpose(1, 2)
        return super().forward(frames.flatten(0, 1)).view_as(frames).transpose(1, 2)


class WindowFrames:
    """The number of frames in the window being run, shared by the norms of one UNet."""

    count = 1


class WindowGroupNorm(nn.GroupNorm):
    """GroupNorm over all frames of the window together, on (b f, c, h, w)."""

    def __init__(self, norm: nn.GroupNorm, window: WindowFrames) -> None:
        super().__init__(norm.num_groups, norm.num_channels, norm.eps, norm.affine, device="meta")
        self.window = window

    def forward(self, x: Tensor) -> Tensor:
        windows = x.unflatten(0, (-1, self.window.count)).transpose(1, 2)
        return super().forward(windows).transpose(1, 2).flatten(0, 1)


def apply_motion_norms(unet: nn.Module, version: Version) -> None:
    """Replace the norms of a UNetMotionModel (on the meta device, before its weights come) as the version needs."""
    if version == "v1":
        _normalise_over_window(unet)
        return
    from diffusers.models.unets.unet_motion_model import AnimateDiffTransformer3D

    for module in unet.modules():
        if isinstance(module, AnimateDiffTransformer3D):
            norm = module.norm
            module.norm = PerFrameGroupNorm(norm.num_groups, norm.num_channels, norm.eps, device="meta")


def _normalise_over_window(unet: nn.Module) -> None:
    from diffusers.models.unets.unet_motion_model import AnimateDiffTransformer3D

    window = WindowFrames()
    for module in list(unet.modules()):
        if isinstance(module, AnimateDiffTransformer3D):
            continue  # its norm is over the window already
        for name, child in list(module.named_children()):
            if isinstance(child, nn.GroupNorm):
                setattr(module, name, WindowGroupNorm(child, window))

    def note_frames(_: nn.Module, args: tuple[Any, ...]) -> None:
        window.count = args[0].shape[2]

    unet.register_forward_pre_hook(note_frames)
