"""The models that ``detail`` is given: their options, what is wrong with them before any is read, and loading them."""

from __future__ import annotations

import argparse
import math
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from animdetail_trt.checks import is_part
from animdetail_trt.cli.numbers import between, whole_at_least
from animdetail_trt.cli.paths import user_path
from animdetail_trt.errors import CheckpointError, InputError

if TYPE_CHECKING:
    from animdetail_trt.models.pipe import BasicPipe
    from animdetail_trt.sampling.control import ControlNetWrapper

REFINER_RATIO = 0.2
"""The node's."""


def add_files(group: argparse._ArgumentGroup) -> None:
    """The options of ``ModelFiles``: what decides the weights, of a pipe as of engines."""
    add = group.add_argument
    add(
        "--checkpoint", type=user_path, required=True, metavar="FILE",
        help="Stable Diffusion 1.5: a .safetensors file or a diffusers folder",
    )  # fmt: skip
    add("--motion-module", type=user_path, metavar="FILE", help="AnimateDiff motion module (.safetensors)")
    add("--vae", type=user_path, metavar="FILE", help="use this VAE (.safetensors) instead of the checkpoint's")
    add(
        "--lora", type=parse_lora, action="append", default=[], metavar="FILE[:STRENGTH]",
        help="apply a LoRA (.safetensors), at strength 1 unless given; repeatable",
    )  # fmt: skip
    add(
        "--motion-lora", type=parse_lora, action="append", default=[], metavar="FILE[:STRENGTH]",
        help="apply a motion LoRA to the motion module; repeatable",
    )  # fmt: skip
    add(
        "--motion-scale", type=between(0, 100), default=1.0, metavar="X",
        help="strength of the motion module's attention; more moves more",
    )  # fmt: skip
    add(
        "--motion-effect", type=between(0, 100), default=1.0, metavar="X",
        help="how much of the motion module is used, from 0 (none) to 1 (all)",
    )  # fmt: skip


def add_models(parser: argparse.ArgumentParser) -> None:
    """All of ``load_pipe``'s options, those of a refiner and of ControlNets."""
    group = parser.add_argument_group("models")
    add_files(group)
    add = group.add_argument
    add(
        "--embedding", type=user_path, action="append", default=[], metavar="FILE",
        help="textual inversion (.safetensors), used in a prompt as embedding:NAME with the file's name; repeatable",
    )  # fmt: skip
    add(
        "--controlnet", type=parse_controlnet, action="append", default=[], metavar="FILE[:STRENGTH[:START[:END]]]",
        help="ControlNet (.safetensors) that sees each segment's crops, from START to END of the noise schedule "
        "(default: 1:0:1); repeatable, and several add up",
    )  # fmt: skip
    add(
        "--beta-schedule", default="autoselect", metavar="NAME",
        help="noise levels, for the refiner too; an unknown name lists the choices",
    )  # fmt: skip
    _add_refiner(parser)
    _add_windows(parser)
    _add_backend(parser)


def _add_windows(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument_group("long clips", "run as windows that overlap").add_argument
    add("--context-length", type=whole_at_least(1), metavar="N", help="frames in a window (usually 16)")
    add(
        "--context-overlap", type=whole_at_least(0), metavar="N",
        help="frames that neighbouring windows share (usually 4)",
    )  # fmt: skip
    add("--context-schedule", metavar="NAME", help="how windows are laid out; an unknown name lists the choices")
    add("--context-stride", type=whole_at_least(1), metavar="N", help="largest stride of the uniform schedules")
    add(
        "--closed-loop", action="store_true", default=None,
        help="with looped_uniform: let windows cross the clip's seam",
    )  # fmt: skip
    add("--fuse-method", metavar="NAME", help="how overlapping windows are averaged; an unknown name lists the choices")


def _add_backend(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument_group("device").add_argument
    add("--device", default="auto", help="auto, cpu, cuda or cuda:N")
    add("--dtype", default="auto", help="of the UNet: auto, float32, float16 or bfloat16")
    add(
        "--vae-dtype", default="auto", metavar="DTYPE",
        help="of the VAE: auto, float32 or bfloat16; auto is --dtype, or float32 where that is float16",
    )  # fmt: skip
    add("--backend", default="auto", metavar="NAME", help="what runs the models; an unknown name lists the choices")
    add(
        "--engine-dir", type=user_path, metavar="DIR",
        help="where to look for engines (default: where build-engines puts them)",
    )  # fmt: skip
    add("--vram-budget", type=between(0.5, 1024), metavar="GB", help="most GPU memory that engines may take")


def _add_refiner(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("refiner", "a second model that takes the last steps")
    add = group.add_argument
    add(
        "--refiner",
        type=user_path,
        metavar="CHECKPOINT",
        help="checkpoint of the refiner; without a text encoder of its own it uses the first checkpoint's",
    )
    add(
        "--refiner-ratio", type=between(0, 1), metavar="X",
        help=f"part of the steps that it takes (default: {REFINER_RATIO})",
    )  # fmt: skip
    add("--refiner-prompt", metavar="TEXT", help="its prompt (default: --prompt)")
    add("--refiner-negative", metavar="TEXT", help="its negative prompt (default: --negative)")
    add(
        "--refiner-lora", type=parse_lora, action="append", default=[], metavar="FILE[:STRENGTH]",
        help="apply a LoRA to the refiner, which --lora does not change; repeatable",
    )  # fmt: skip


def parse_lora(text: str) -> tuple[Path, float]:
    """``FILE`` or ``FILE:STRENGTH``; a colon that no number follows belongs to the name."""
    path, numbers = _path_and_numbers(text, 1)
    return path, numbers[0] if numbers else 1.0


def parse_controlnet(text: str) -> tuple[Path, float, float, float]:
    """``FILE``, and as many as are given of ``:STRENGTH:START:END``, read as in ``parse_lora``."""
    path, numbers = _path_and_numbers(text, 3)
    strength, start, end = (*numbers, *(1.0, 0.0, 1.0)[len(numbers) :])
    if not is_part(start, end):
        raise argparse.ArgumentTypeError(
            f"{text!r} acts from {start:g} to {end:g}. Use a start and an end from 0 to 1, the start first"
        )
    return path, strength, start, end


def _path_and_numbers(text: str, most: int) -> tuple[Path, list[float]]:
    """Split ``FILE:1:2`` from its end on, while a finite number follows a colon."""
    numbers: list[float] = []
    while len(numbers) < most:
        path, _, number = text.rpartition(":")
        if not path or not _is_finite(number):
            break
        text = path
        numbers.insert(0, float(number))
    return user_path(text), numbers


def _is_finite(text: str) -> bool:
    try:
        return math.isfinite(float(text))
    except ValueError:
        return False


def check_models(args: argparse.Namespace) -> None:
    """All that can be known to be wrong from the options and the files' headers."""
    from animdetail_trt.cli.paths import check_kinds, model_files

    _check_names(args)
    if args.motion_lora and args.motion_module is None:
        raise InputError("--motion-lora needs a motion module. Give one with --motion-module FILE.")
    for flag in ("ratio", "prompt", "negative", "lora"):
        if args.refiner is None and getattr(args, f"refiner_{flag}") not in (None, []):
            raise InputError(f"--refiner-{flag} needs a refiner. Give one with --refiner CHECKPOINT.")
    for flag, path in model_files(args):
        if not path.exists():
            raise CheckpointError(f"{flag} {path} does not exist. Check the path.")
    check_kinds(args)
    _check_text_encoder(args.checkpoint)
    _check_embeddings(args)


def _check_text_encoder(checkpoint: Path) -> None:
    """Raise CheckpointError where nothing could read the prompts; a refiner's are read by the checkpoint's, if it has
    none."""
    from animdetail_trt.models.files import has_text_encoder

    if not has_text_encoder(checkpoint):
        raise CheckpointError(
            f"--checkpoint {checkpoint} holds no text encoder, which reads the prompts. Give a full checkpoint, or a "
            "diffusers folder with text_encoder/model.safetensors."
        )


def _check_embeddings(args: argparse.Namespace) -> None:
    """Raise InputError for a textual inversion that no prompt names."""
    from animdetail_trt.models.embeddings import names_of
    from animdetail_trt.models.prompt import embeddings_in

    prompts = (args.prompt, args.negative, args.refiner_prompt, args.refiner_negative)
    called = {name for prompt in prompts for name in embeddings_in(prompt or "")}
    for name, path in names_of(args.embedding).items():
        if name not in called:
            written = name.replace("(", "\\(").replace(")", "\\)")
            raise InputError(
                f"--embedding {path} is in no prompt. Write embedding:{written} there, at its start or behind a space, "
                "or leave it out."
            )


def check_frames(args: argparse.Namespace, count: int) -> None:
    """Raise InputError where a window of a clip of ``count`` frames is longer than the motion module sees; only its
    header is read."""
    from animdetail_trt.models.motion import positions_of

    if args.motion_module is None:
        return
    context, positions = _context(args), positions_of(args.motion_module)
    length = count if context is None else min(context.context_length, count)
    if length > positions:
        what = "the clip has" if context is None else "a window has"
        raise InputError(
            f"{what} {length} frames, and the motion module sees {positions} at most. "
            f"Give --context-length {min(16, positions)}: longer clips run as overlapping windows."
        )


def _check_names(args: argparse.Namespace) -> None:
    from animdetail_trt.backends.select import choose_backend, choose_device, choose_dtype, choose_vae_dtype
    from animdetail_trt.sampling.model_sampling import check_beta_schedule

    if args.beta_schedule != "autoselect":
        check_beta_schedule(args.beta_schedule)
    device = choose_device(args.device)
    choose_backend(args.backend, device)
    choose_vae_dtype(args.vae_dtype, choose_dtype(args.dtype, device))
    _context(args)


def _context(args: argparse.Namespace) -> Any:
    from animdetail_trt.sampling import ContextOptions

    given = {
        name: value
        for name in ("context_length", "context_overlap", "context_stride", "closed_loop", "fuse_method")
        if (value := getattr(args, name)) is not None
    }
    if args.context_schedule is not None:
        given["schedule"] = args.context_schedule
    if not given:
        return None
    if "context_length" in given:
        given.setdefault("context_overlap", min(4, given["context_length"] // 4))
    return ContextOptions(**given)


class Models(NamedTuple):
    """What the detailer runs; the ControlNet is every segment's."""

    pipe: BasicPipe
    refiner: BasicPipe | None
    controlnet: ControlNetWrapper | None


def load_models(args: argparse.Namespace) -> Models:
    from animdetail_trt.models.pipe import load_pipe

    shared = {
        "beta_schedule": args.beta_schedule, "context": _context(args), "dtype": args.dtype, "backend": args.backend,
        "engine_dir": args.engine_dir, "vram_budget": None if args.vram_budget is None else int(args.vram_budget * 1e9),
        "embeddings": args.embedding,
    }  # fmt: skip
    pipe = load_pipe(
        args.checkpoint, motion_module=args.motion_module, vae=args.vae, loras=args.lora, motion_loras=args.motion_lora,
        motion_scale=args.motion_scale, motion_effect=args.motion_effect, device=args.device, vae_dtype=args.vae_dtype,
        **shared,
    ).with_prompt(args.prompt, args.negative)  # fmt: skip
    refiner = None
    if args.refiner is not None:
        refiner = load_pipe(args.refiner, vae=pipe.vae, loras=args.refiner_lora, device=pipe.vae.device, **shared)
        refiner = refiner._replace(clip=refiner.clip or pipe.clip).with_prompt(
            args.prompt if args.refiner_prompt is None else args.refiner_prompt,
            args.negative if args.refiner_negative is None else args.refiner_negative,
        )
    return Models(pipe, refiner, _load_controlnets(args))


def _load_controlnets(args: argparse.Namespace) -> ControlNetWrapper | None:
    from animdetail_trt.models.controlnet import load_controlnet
    from animdetail_trt.sampling.control import ControlNetWrapper

    chain = None
    for path, strength, start, end in args.controlnet:
        network = load_controlnet(path, device=args.device, dtype=args.dtype)
        chain = ControlNetWrapper(network, strength, start, end, previous=chain)
    return chain
