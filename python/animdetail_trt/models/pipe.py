"""BASIC_PIPE and how to load one."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import torch

from animdetail_trt.backends.interface import VaeRunner
from animdetail_trt.backends.select import choose_backend, choose_device, choose_dtype, choose_vae_dtype
from animdetail_trt.checks import is_whole
from animdetail_trt.errors import InputError
from animdetail_trt.models.checkpoint import expanded, reading
from animdetail_trt.models.embeddings import read_embeddings
from animdetail_trt.models.files import ModelFiles
from animdetail_trt.models.lora import LoraFiles
from animdetail_trt.models.motion import MotionModule
from animdetail_trt.models.runners import Runners
from animdetail_trt.models.text import ClipText
from animdetail_trt.sampling.conditioning import Conditioning
from animdetail_trt.sampling.context import ContextOptions
from animdetail_trt.sampling.model import DiffusionModel
from animdetail_trt.sampling.model_sampling import ModelSampling, check_beta_schedule

logger = logging.getLogger(__name__)

SMALLEST_BUDGET = 100_000_000
"""Bytes: no engine runs in less, and who gives less means gigabytes."""


class BasicPipe(NamedTuple):
    """The Impact Pack's BASIC_PIPE: model, text encoder, VAE and the two conditionings, in that order.

    clip is None where the checkpoint holds no text encoder; a conditioning is None until it is given.
    """

    model: DiffusionModel
    clip: ClipText | None
    vae: VaeRunner
    positive: Conditioning | None
    negative: Conditioning | None

    def __repr__(self) -> str:
        parts = (
            f"{name}={'[...]' if isinstance(part, list) else 'None' if part is None else type(part).__name__}"
            for name, part in zip(self._fields, self, strict=True)
        )
        return f"BasicPipe({', '.join(parts)})"

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


def load_pipe(
    checkpoint: str | Path,
    *,
    motion_module: str | Path | None = None,
    vae: str | Path | VaeRunner | None = None,
    loras: LoraFiles = (),
    motion_loras: LoraFiles = (),
    embeddings: Sequence[str | Path] = (),
    motion_scale: float = 1.0,
    motion_effect: float = 1.0,
    beta_schedule: str = "autoselect",
    context: ContextOptions | None = None,
    device: str | torch.device = "auto",
    dtype: str | torch.dtype = "auto",
    vae_dtype: str | torch.dtype = "auto",
    backend: str = "auto",
    engine_dir: str | Path | None = None,
    vram_budget: int | None = None,
) -> BasicPipe:
    """Load SD 1.5, with an AnimateDiff motion module if one is given.

    checkpoint: a single-file safetensors checkpoint (LDM layout) or a diffusers folder
    motion_module: AnimateDiff v1, v2, v3, Lightning or AnimateLCM, safetensors, in its original layout or diffusers',
        or a MotionAdapter folder
    vae: a VAE file or folder that takes the place of the checkpoint's own; or another pipe's vae, and none is loaded
    loras: ``[(path, strength), ...]``, merged in order into the UNet and the text encoder: LoRA, LoCon, LoHa, LoKr or
        DoRA in kohya's, diffusers' or peft's names; how much of a file found its place is logged
    motion_loras: the same, merged into the motion module
    embeddings: textual inversions, ``[path, ...]``; ``embedding:NAME`` in a prompt is the file of that name
    motion_scale: of the motion module's attention keys: more is more motion; motion_effect: 0 none of it, 1 all of it
    beta_schedule: the noise levels; by default those that the motion module was trained on, see BETA_SCHEDULES
    context: windows for clips longer than the motion module's positions
    device: auto, cpu, cuda, cuda:N; dtype: auto, float32, float16, bfloat16, of the UNet and the text encoder
    vae_dtype: of the VAE where torch runs it. auto: as dtype, but float32 where that is float16, whose range it leaves;
        float32; bfloat16, as ComfyUI has it on newer GPUs: faster there, and a little coarser
    backend: what runs the UNet and the VAE. auto: on a GPU the engines that were built for these files (build-engines),
        and torch where there are none or they do not fit; torch; compile (torch.compile); tensorrt, tensorrt_rtx: as
        auto, and an error where there are none; onnxruntime: the exported graphs on the CPU, to check them
    engine_dir: where engines lie, by default where build-engines puts them
    vram_budget: bytes of GPU memory that engines may take: all that are on the card, whichever pipe they are of. The
        last load_pipe that gives one sets it, also for the pipes before; None leaves it, which is unbounded at first

    A path may begin with ~. Raises CheckpointError for a file that is missing, damaged, or of another kind, and
    InputError for an unknown name or a value that cannot be.
    """
    vae_file, vae_runner = _file_or_runner(vae)
    files = ModelFiles(checkpoint, motion_module, vae_file, loras, motion_loras, motion_scale, motion_effect)
    if context is not None and not isinstance(context, ContextOptions):
        raise InputError(f"context must be ContextOptions, not {context!r:.80}")
    if vram_budget is not None and not (is_whole(vram_budget) and vram_budget >= SMALLEST_BUDGET):
        raise InputError(
            f"vram_budget must be a whole number of bytes, at least {SMALLEST_BUDGET:_}, not {vram_budget!r:.80}. "
            "For 8 GB give 8_000_000_000"
        )
    if beta_schedule != "autoselect":
        check_beta_schedule(beta_schedule)
    torch_device = choose_device(device)
    dtype = choose_dtype(dtype, torch_device)
    vae_type = choose_vae_dtype(vae_dtype, dtype)
    choice = choose_backend(backend, torch_device)
    if (backend, device, torch_device.type) == ("auto", "auto", "cpu"):
        logger.info("the models run in torch on the CPU: torch sees no CUDA device")

    words = read_embeddings(embeddings)
    motion = files.read_motion()
    parts = files.read_parts(needs_vae=vae_runner is None)
    engine_dir = None if engine_dir is None else expanded(engine_dir)
    runners = Runners(files, torch_device, dtype, choice, engine_dir, vram_budget, vae_dtype=vae_type)
    unet = runners.unet(parts, motion)
    vae_runner = vae_runner or runners.vae(parts)
    clip = None
    if parts.text is not None:
        with reading(str(checkpoint)):
            clip = ClipText.from_state_dict(
                parts.text, device=torch_device, dtype=dtype, num_heads=parts.text_heads, embeddings=words
            )
    model = DiffusionModel(unet, model_sampling_for(motion, beta_schedule), context)
    return BasicPipe(model, clip, vae_runner, None, None)


def _file_or_runner(vae: str | Path | VaeRunner | None) -> tuple[str | Path | None, VaeRunner | None]:
    if vae is None or isinstance(vae, str | Path):
        return vae, None
    if not hasattr(vae, "frames_per_call"):
        raise InputError(f"vae must be a path, or the vae of another pipe, not {vae!r:.80}")
    return None, vae


def model_sampling_for(motion: MotionModule | None, beta_schedule: str = "autoselect") -> ModelSampling:
    """Of the named schedule; by default SD 1.5's noise levels, or those that its motion modules were trained on."""
    if beta_schedule != "autoselect":
        return ModelSampling(check_beta_schedule(beta_schedule))
    if motion is None:
        return ModelSampling("linear")
    return ModelSampling("lcm" if motion.distilled else "sqrt_linear")
