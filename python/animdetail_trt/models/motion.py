"""AnimateDiff motion modules v1, v2 and v3 (Guo et al. 2023, arXiv:2307.04725) and AnimateLCM's, as the reference
computes them.

diffusers' UNetMotionModel holds the same weights but normalises otherwise: its motion transformers take GroupNorm
over all frames together, its other layers one frame at a time, whatever the version. The reference's v2 and v3
normalise every frame by itself everywhere, its v1 all frames of the window together everywhere. The norms are
replaced here, nothing else. The table of positions is the file's own.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from animdetail_trt.errors import CheckpointError
from animdetail_trt.models.checkpoint import StateDict, read_shapes, read_tensors, require_kind, shapes_of, weights_in
from animdetail_trt.models.lora import LoraFiles, merge_motion_loras
from animdetail_trt.models.lora_names import plain_name

Version = Literal["v1", "v2", "v3"]

ANIMATE_LCM_POSITIONS = 64
_POSITION_TABLES = ("attention_blocks.0.pos_encoder.pe", "pos_embed.pe")
"""In the original layout, where each attention of a block has one, and in diffusers'."""
_RENAMES = (
    (".temporal_transformer", ""),
    _POSITION_TABLES,
    (".attention_blocks.0", ".attn1"),
    (".attention_blocks.1", ".attn2"),
    (".norms.0", ".norm1"),
    (".norms.1", ".norm2"),
    (".ff_norm", ".norm3"),
)


@dataclass(frozen=True)
class MotionModule:
    """tensors: diffusers layout, with the position tables; positions: frames that they cover; source: the file;
    distilled: an AnimateLCM module (Wang et al. 2024, arXiv:2402.00769), made for a few steps of lcm."""

    tensors: StateDict
    version: Version
    positions: int
    source: str
    distilled: bool = False


def load_motion_module(path: str | Path) -> MotionModule:
    """Read a motion module, in its original layout or diffusers'; the version is read from the weights, as the
    reference does."""
    return motion_of(read_tensors(weights_in(path)), path)


def motion_of(tensors: StateDict, source: str | Path) -> MotionModule:
    """A motion module of the tensors of one, in either layout. source: what messages call it

    What else a file holds is left out: a trainer's UNet, which would take the checkpoint's place, and its counters.
    """
    require_kind(source, shapes_of(tensors), ("motion-module",), "a motion module for SD 1.5")
    raw = {key.removeprefix("module."): value for key, value in tensors.items() if ".motion_modules." in key}
    tensors = _to_diffusers(raw, source)
    tables = [value for key, value in tensors.items() if key.endswith(_POSITION_TABLES)]
    distilled = not tables
    if distilled:
        tensors |= _computed_tables(tensors)
    positions = ANIMATE_LCM_POSITIONS if distilled else tables[0].shape[1]
    if any(key.startswith("mid_block.") for key in tensors):
        version: Version = "v2"
    else:
        version = "v3" if positions == 32 else "v1"
    return MotionModule(tensors, version, positions, str(source), distilled)


def positions_of(path: str | Path) -> int:
    """The frames that a motion module has positions for, from the file's header alone."""
    shapes = read_shapes(weights_in(path))
    require_kind(path, shapes, ("motion-module",), "a motion module for SD 1.5")
    return next((shape[1] for key, shape in shapes.items() if key.endswith(_POSITION_TABLES)), ANIMATE_LCM_POSITIONS)


def _computed_tables(tensors: StateDict) -> StateDict:
    """The position tables that an AnimateLCM file leaves out: the sinusoids of Vaswani et al. 2017, sec. 3.5."""
    tables: StateDict = {}
    for key, value in tensors.items():
        if key.endswith("attn1.to_q.weight"):
            channels = value.shape[1]
            position = torch.arange(ANIMATE_LCM_POSITIONS)[:, None]
            rate = torch.exp(torch.arange(0, channels, 2) * (-math.log(10000.0) / channels))
            table = torch.stack([(position * rate).sin(), (position * rate).cos()], dim=-1).reshape(1, -1, channels)
            tables[key.replace("attn1.to_q.weight", "pos_embed.pe")] = table
    return tables


def _to_diffusers(raw: StateDict, path: str | Path) -> StateDict:
    tensors: StateDict = {}
    for key, value in raw.items():
        if key.endswith("attention_blocks.1.pos_encoder.pe"):
            # diffusers keeps one table for both attentions of a block.
            if not torch.equal(value.float(), raw[key.replace("attention_blocks.1", "attention_blocks.0")].float()):
                raise CheckpointError(f"{path} has two different position tables in one block, at {key!r}")
            continue
        tensors[_diffusers_name(key)] = value
    return tensors


def _diffusers_name(name: str) -> str:
    for old, new in _RENAMES:
        name = name.replace(old, new)
    return name


def with_motion_loras(motion: MotionModule, files: LoraFiles) -> MotionModule:
    """The module with motion LoRAs merged, which are trained for one camera move each."""
    merged = merge_motion_loras(files, motion.tensors, lambda name: _diffusers_name(plain_name(name)))
    return replace(motion, tensors=merged)


def with_strength(motion: MotionModule, scale: float, effect: float) -> MotionModule:
    """The module with AnimateDiff-Evolved's scale and effect, 1 each by default, worked into its weights.

    scale: the keys of its attentions are multiplied by it: more is more motion
    effect: its output is ``x (1 - effect) + module(x) effect``; what it adds to x comes from its last projection
    """
    factors = {".to_k.weight": scale, ".proj_out.weight": effect, ".proj_out.bias": effect}
    changed = {
        key: value.float() * factor
        for key, value in motion.tensors.items()
        for end, factor in factors.items()
        if key.endswith(end) and factor != 1
    }
    return replace(motion, tensors=motion.tensors | changed)


class PerFrameGroupNorm(nn.GroupNorm):
    """GroupNorm of each frame by itself, on (b, c, f, h, w)."""

    def forward(self, x: Tensor) -> Tensor:
        frames = x.transpose(1, 2)
        return super().forward(frames.flatten(0, 1)).view_as(frames).transpose(1, 2)


class WindowFrames:
    """As long as the window being run, shared by the norms of one UNet: a tensor, for torch.compile takes a length for
    one that changes, and an int for a constant."""

    frames = torch.empty(1)


class WindowGroupNorm(nn.GroupNorm):
    """GroupNorm over all frames of the window together, on (b f, c, h, w)."""

    def __init__(self, norm: nn.GroupNorm, window: WindowFrames) -> None:
        super().__init__(norm.num_groups, norm.num_channels, norm.eps, norm.affine, device="meta")
        self.window = window

    def forward(self, x: Tensor) -> Tensor:
        windows = x.unflatten(0, (-1, len(self.window.frames))).transpose(1, 2)
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


def _normalise_over_window(unet: Any) -> None:
    from diffusers.models.unets.unet_motion_model import AnimateDiffTransformer3D

    unet.window = WindowFrames()  # of the UNet, so that a copy of it has one of its own, which its own norms read
    for module in list(unet.modules()):
        if isinstance(module, AnimateDiffTransformer3D):
            continue  # its norm is over the window already
        for name, child in list(module.named_children()):
            if isinstance(child, nn.GroupNorm):
                setattr(module, name, WindowGroupNorm(child, unet.window))

    def note_frames(unet: Any, args: tuple[Any, ...]) -> None:
        unet.window.frames = torch.empty(args[0].shape[2])

    unet.register_forward_pre_hook(note_frames)
