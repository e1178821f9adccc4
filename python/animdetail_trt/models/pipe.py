"""BASIC_PIPE and how to load one."""

from __future__ import annotations

import json
from pathlib import Path
from typing import NamedTuple

import torch

from animdetail_trt.backends.interface import VaeRunner
from animdetail_trt.backends.select import choose_backend, choose_device, choose_dtype
from animdetail_trt.backends.torch_backend import TorchUNet, TorchVae
from animdetail_trt.checks import is_finite
from animdetail_trt.errors import CheckpointError, InputError
from animdetail_trt.models.checkpoint import Placement, StateDict, read_tensors, reading, require_kind, shapes_of
from animdetail_trt.models.lora import LoraFiles, check_lora_files, merge_loras
from animdetail_trt.models.motion import MotionModule, load_motion_module, with_motion_loras, with_strength
from animdetail_trt.models.text import ClipText
from animdetail_trt.models.unet import build_unet, unet_from_ldm
from animdetail_trt.models.vae import build_vae, load_vae_file, vae_from_diffusers, vae_from_ldm
from animdetail_trt.sampling.conditioning import Conditioning
from animdetail_trt.sampling.context import ContextOptions
from animdetail_trt.sampling.model import DiffusionModel
from animdetail_trt.sampling.model_sampling import ModelSampling, check_beta_schedule


class BasicPipe(NamedTuple):
    """The Impact Pack's BASIC_PIPE: model, text encoder, VAE and the two conditionings, in that order.

    clip is None where the checkpoint holds no text encoder; a conditioning is None until it is given.
    """

    model: DiffusionModel
    clip: ClipText | None
    vae: VaeRunner
    positive: Conditioning | None
    negative: Conditioning | None

    def with_conditioning(
        self, positive: Conditioning | None = None, negative: Conditioning | None = None
    ) -> BasicPipe:
        """This pipe with other conditioning; what is not given stays."""
        return self._replace(
            positive=self.positive if positive is None else positive,
            negative=self.negative if negative is None else negative,
        )

    def with_prompt(self, positive: str, negative: str = "") -> BasicPipe:
        """This pipe with these prompts encoded; ``(word:1.2)`` weighs a word."""
        if self.clip is None:
            raise InputError(
                "this pipe has no text encoder, so it cannot read a prompt. "
                "Load a checkpoint that holds one, or give tensors with pipe.with_conditioning"
            )
        return self._replace(positive=self.clip.conditioning(positive), negative=self.clip.conditioning(negative))


class Parts(NamedTuple):
    """The tensors of a checkpoint's parts, in the diffusers layout, and what a folder says of its text encoder."""

    unet: StateDict
    vae: StateDict | None
    text: StateDict | None
    text_heads: int | None = None


def load_pipe(
    checkpoint: str | Path,
    *,
    motion_module: str | Path | None = None,
    vae: str | Path | None = None,
    loras: LoraFiles = (),
    motion_loras: LoraFiles = (),
    motion_scale: float = 1.0,
    motion_effect: float = 1.0,
    beta_schedule: str = "autoselect",
    context: ContextOptions | None = None,
    device: str | torch.device = "auto",
    dtype: str | torch.dtype = "auto",
    backend: str = "auto",
) -> BasicPipe:
    """Load SD 1.5, with an AnimateDiff motion module if one is given.

    checkpoint: a single-file safetensors checkpoint (LDM layout) or a diffusers folder
    motion_module: AnimateDiff v1, v2, v3 or AnimateLCM in its original layout, safetensors
    vae: a VAE file that takes the place of the checkpoint's own
    loras: ``[(path, strength), ...]``, merged in order into the UNet and the text encoder: LoRA, LoCon, LoHa, LoKr or
        DoRA in kohya's, diffusers' or peft's names; how much of a file found its place is logged
    motion_loras: the same, merged into the motion module
    motion_scale: of the motion module's attention keys: more is more motion; motion_effect: 0 none of it, 1 all of it
    beta_schedule: the noise levels; by default those that the motion module was trained on, see BETA_SCHEDULES
    context: windows for clips longer than the motion module's positions
    device: auto, cpu, cuda, cuda:N; dtype: auto, float32, float16, bfloat16 (of the UNet and the text encoder; the
    VAE, whose range float16 does not hold, runs in float32 then); backend: auto, torch

    Raises CheckpointError for a file that is missing, damaged, or of another kind, and InputError for an unknown name.
    """
    loras, motion_loras = check_lora_files("loras", loras), check_lora_files("motion_loras", motion_loras)
    for name, factor in (("motion_scale", motion_scale), ("motion_effect", motion_effect)):
        if not is_finite(factor):
            raise InputError(f"{name} must be a finite number, not {factor!r}")
    if motion_module is None and (motion_loras or (motion_scale, motion_effect) != (1, 1)):
        raise InputError("motion_loras, motion_scale and motion_effect need a motion module. Give motion_module=path")
    for name, path in (("checkpoint", checkpoint), ("motion_module", motion_module), ("vae", vae)):
        if not isinstance(path, str | Path) and (path is not None or name == "checkpoint"):
            raise InputError(f"{name} must be a path, not {path!r}")
    if context is not None and not isinstance(context, ContextOptions):
        raise InputError(f"context must be ContextOptions, not {context!r:.80}")
    if beta_schedule != "autoselect":
        check_beta_schedule(beta_schedule)
    choose_backend(backend)
    torch_device = choose_device(device)
    place = Placement(torch_device, choose_dtype(dtype, torch_device))
    vae_place = Placement(torch_device, torch.float32 if place.dtype == torch.float16 else place.dtype)

    source = str(checkpoint)
    with reading(str(motion_module)):
        motion = None if motion_module is None else load_motion_module(motion_module)
        if motion is not None:
            motion = with_strength(with_motion_loras(motion, motion_loras), motion_scale, motion_effect)
    replacement_vae = None if vae is None else load_vae_file(vae)
    with reading(source):
        parts = with_loras(read_parts(Path(checkpoint)), loras)
    vae_tensors = parts.vae if replacement_vae is None else replacement_vae
    if vae_tensors is None:
        raise CheckpointError(f"{source} holds no VAE. Give one with --vae, or vae=path")

    with reading(source):
        unet = build_unet(parts.unet, motion, source, place)
        clip = None
        if parts.text is not None:
            clip = ClipText.from_state_dict(
                parts.text, device=torch_device, dtype=place.dtype, num_heads=parts.text_heads
            )
    vae_source = source if vae is None else str(vae)
    with reading(vae_source):
        vae_module = build_vae(vae_tensors, vae_source, vae_place)
    model = DiffusionModel(TorchUNet(unet.module, unet.positions), model_sampling_for(motion, beta_schedule), context)
    return BasicPipe(model, clip, TorchVae(vae_module), None, None)


def model_sampling_for(motion: MotionModule | None, beta_schedule: str = "autoselect") -> ModelSampling:
    """Of the named schedule; by default SD 1.5's noise levels, or those that its motion modules were trained on."""
    if beta_schedule != "autoselect":
        return ModelSampling(check_beta_schedule(beta_schedule))
    if motion is None:
        return ModelSampling("linear")
    return ModelSampling("lcm" if motion.distilled else "sqrt_linear")


def with_loras(parts: Parts, loras: LoraFiles) -> Parts:
    """A checkpoint's parts with LoRAs merged into its UNet and text encoder; what each covered is logged."""
    unet, text = merge_loras(loras, parts.unet, parts.text)
    return parts._replace(unet=unet, text=text)


def read_parts(checkpoint: Path) -> Parts:
    """Read a single file or a diffusers folder."""
    return _read_folder(checkpoint) if checkpoint.is_dir() else _read_single_file(checkpoint)


def _read_single_file(path: Path) -> Parts:
    tensors = read_tensors(path)
    require_kind(path, shapes_of(tensors), ("sd15",), "a checkpoint")
    has_vae = any(key.startswith("first_stage_model.") for key in tensors)
    text = {key: value for key, value in tensors.items() if key.startswith("cond_stage_model.")}
    return Parts(unet_from_ldm(tensors), vae_from_ldm(tensors) if has_vae else None, text or None)


def _read_folder(folder: Path) -> Parts:
    unet = _folder_part(folder, "unet", "diffusion_pytorch_model")
    if unet is None:
        raise CheckpointError(f"{folder} is no diffusers folder: unet/diffusion_pytorch_model.safetensors is not in it")
    if "conv_in.weight" not in unet or any(key.startswith("add_embedding.") for key in unet):
        raise CheckpointError(f"{folder} does not hold a Stable Diffusion 1.5 UNet (SDXL, perhaps)")
    if unet["conv_in.weight"].shape[1] != 4:
        raise CheckpointError(
            f"{folder} holds an inpainting UNet of {unet['conv_in.weight'].shape[1]} input channels. "
            "Choose a Stable Diffusion 1.5 checkpoint, whose UNet has 4"
        )
    vae = _folder_part(folder, "vae", "diffusion_pytorch_model")
    text = _folder_part(folder, "text_encoder", "model")
    config = folder / "text_encoder" / "config.json"
    return Parts(unet, None if vae is None else vae_from_diffusers(vae), text, _head_count(config))


def _head_count(config: Path) -> int | None:
    if not config.exists():
        return None
    try:
        heads = json.loads(config.read_text(encoding="utf-8")).get("num_attention_heads")
    except (AttributeError, OSError, ValueError) as error:
        raise CheckpointError(f"cannot read {config}: {error}. Copy it again") from error
    if heads is not None and (not isinstance(heads, int) or heads < 1):
        raise CheckpointError(f"{config}: num_attention_heads is {heads!r}; it must be a whole number above 0")
    return heads


def _folder_part(folder: Path, part: str, stem: str) -> StateDict | None:
    for name in (f"{stem}.safetensors", f"{stem}.fp16.safetensors"):
        if (folder / part / name).exists():
            return read_tensors(folder / part / name)
    if (folder / part / f"{stem}.bin").exists():
        read_tensors(folder / part / f"{stem}.bin")  # raises: a pickle is refused
    return None
