"""Which files a pipe is made of, and their tensors."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import torch

from animdetail_trt.checks import is_finite
from animdetail_trt.errors import CheckpointError, InputError
from animdetail_trt.models.checkpoint import (
    FOLDER_STEM,
    Placement,
    StateDict,
    check_folder,
    expanded,
    find_weights,
    read_config,
    read_shapes,
    read_tensors,
    reading,
    require_kind,
    shapes_of,
    weights_in,
)
from animdetail_trt.models.kinds import ARTICLE, recognise
from animdetail_trt.models.lora import LoraFiles, check_lora_files, merge_loras
from animdetail_trt.models.motion import MotionModule, load_motion_module, with_motion_loras, with_strength
from animdetail_trt.models.unet import UNet, build_unet, unet_from_ldm
from animdetail_trt.models.vae import build_vae, load_vae_file, vae_from_diffusers, vae_from_ldm

_TEXT = "cond_stage_model."


@dataclass(frozen=True)
class ModelFiles:
    """The files, and how they are merged: all that decides a pipe's weights. Fields as ``load_pipe`` has them."""

    checkpoint: str | Path
    motion_module: str | Path | None = None
    vae: str | Path | None = None
    loras: LoraFiles = ()
    motion_loras: LoraFiles = ()
    motion_scale: float = 1.0
    motion_effect: float = 1.0

    def __post_init__(self) -> None:
        for name in ("loras", "motion_loras"):
            object.__setattr__(self, name, check_lora_files(name, getattr(self, name)))
        for name in ("motion_scale", "motion_effect"):
            if not is_finite(getattr(self, name)):
                raise InputError(f"{name} must be a finite number, not {getattr(self, name)!r}")
        if self.motion_module is None and (self.motion_loras or (self.motion_scale, self.motion_effect) != (1, 1)):
            raise InputError(
                "motion_loras, motion_scale and motion_effect need a motion module. Give motion_module=path"
            )
        for name in ("checkpoint", "motion_module", "vae"):
            path = getattr(self, name)
            if not isinstance(path, str | Path) and (path is not None or name == "checkpoint"):
                raise InputError(f"{name} must be a path, not {path!r}")
            if path is not None:
                path = expanded(path)
                object.__setattr__(self, name, path if name == "checkpoint" else weights_in(path))

    def read_motion(self) -> MotionModule | None:
        """The motion module with its LoRAs, scale and effect."""
        with reading(str(self.motion_module)):
            if self.motion_module is None:
                return None
            motion = with_motion_loras(load_motion_module(self.motion_module), self.motion_loras)
            return with_strength(motion, self.motion_scale, self.motion_effect)

    def read_parts(self, *, needs_vae: bool = True) -> Parts:
        """The checkpoint's tensors, LoRAs merged, and the VAE that takes the place of its own."""
        replacement = None if self.vae is None else load_vae_file(self.vae)
        with reading(str(self.checkpoint)):
            parts = with_loras(read_parts(Path(self.checkpoint)), self.loras)
        parts = parts if replacement is None else parts._replace(vae=replacement)
        if needs_vae and parts.vae is None:
            raise CheckpointError(f"{self.checkpoint} holds no VAE. Give one with --vae, or vae=path")
        return parts

    def weight_files(self, component: str) -> dict[str, Path]:
        """The files that a component's weights come from, by what each is; LoRAs aside."""
        if component != "unet":
            return {"checkpoint": self._file_of("vae")} if self.vae is None else {"vae": Path(self.vae)}
        files = {"checkpoint": self._file_of("unet")}
        return files if self.motion_module is None else files | {"motion_module": Path(self.motion_module)}

    def _file_of(self, part: str) -> Path:
        """The checkpoint itself, or the file of this part in a diffusers folder."""
        checkpoint = Path(self.checkpoint)
        return (find_weights(checkpoint / part, FOLDER_STEM) or checkpoint) if checkpoint.is_dir() else checkpoint

    def unet(self, parts: Parts, motion: MotionModule | None, place: Placement) -> UNet:
        with reading(str(self.checkpoint)):
            return build_unet(parts.unet, motion, str(self.checkpoint), place)

    def vae_module(self, parts: Parts, place: Placement) -> torch.nn.Module:
        source = str(self.checkpoint if self.vae is None else self.vae)
        with reading(source):
            assert parts.vae is not None  # read_parts saw to it
            return build_vae(parts.vae, source, place)


class Parts(NamedTuple):
    """The tensors of a checkpoint's parts, in the diffusers layout, and what a folder says of its text encoder."""

    unet: StateDict
    vae: StateDict | None
    text: StateDict | None
    text_heads: int | None = None


def with_loras(parts: Parts, loras: LoraFiles) -> Parts:
    """A checkpoint's parts with LoRAs merged into its UNet and text encoder; what each covered is logged."""
    unet, text = merge_loras(loras, parts.unet, parts.text)
    return parts._replace(unet=unet, text=text)


def has_text_encoder(checkpoint: Path) -> bool:
    """Whether a single file or a diffusers folder holds a text encoder, from names and headers alone."""
    if not checkpoint.is_dir():
        return any(key.startswith(_TEXT) for key in read_shapes(checkpoint))
    folder = checkpoint / "text_encoder"
    # A pickled one is refused when it is read.
    return find_weights(folder, "model") is not None or any(folder.glob("*.bin"))


def read_parts(checkpoint: Path) -> Parts:
    """Read a single file or a diffusers folder."""
    return _read_folder(checkpoint) if checkpoint.is_dir() else _read_single_file(checkpoint)


def _read_single_file(path: Path) -> Parts:
    tensors = read_tensors(path)
    require_kind(path, shapes_of(tensors), ("sd15",), "a checkpoint")
    has_vae = any(key.startswith("first_stage_model.") for key in tensors)
    text = {key: value for key, value in tensors.items() if key.startswith(_TEXT)}
    return Parts(unet_from_ldm(tensors), vae_from_ldm(tensors) if has_vae else None, text or None)


def _read_folder(folder: Path) -> Parts:
    unet = _folder_part(folder, "unet", FOLDER_STEM)
    if unet is None:
        raise CheckpointError(
            f"{folder} is no diffusers folder: unet/diffusion_pytorch_model.safetensors is not in it. Give the folder "
            "that holds unet and vae, or a checkpoint file"
        )
    kind = recognise(shapes_of(unet))
    if read_config(folder / "scheduler" / "scheduler_config.json").get("prediction_type") == "v_prediction":
        kind = "sd15-v" if kind == "unet" else kind
    if kind != "unet":
        raise CheckpointError(
            f"{folder} cannot be used as a checkpoint: it holds {ARTICLE[kind]}. Choose {ARTICLE['sd15']}"
        )
    vae = _folder_part(folder, "vae", FOLDER_STEM)
    text = _folder_part(folder, "text_encoder", "model")
    config = folder / "text_encoder" / "config.json"
    return Parts(unet, None if vae is None else vae_from_diffusers(vae), text, _head_count(config))


def _head_count(config: Path) -> int | None:
    heads = read_config(config).get("num_attention_heads")
    if heads is not None and (not isinstance(heads, int) or heads < 1):
        raise CheckpointError(f"{config}: num_attention_heads is {heads!r}; it must be a whole number above 0")
    return heads


def _folder_part(folder: Path, part: str, stem: str) -> StateDict | None:
    if path := find_weights(folder / part, stem):
        return read_tensors(path)
    check_folder(folder / part)
    return None
