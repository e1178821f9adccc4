"""Files on the command line: models are what they are taken for, and no output takes the place of an input, nor of
another output."""

from __future__ import annotations

import argparse
import os
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from animdetail_trt.errors import CheckpointError, MediaError

if TYPE_CHECKING:
    from animdetail_trt.media.clip import Source
    from animdetail_trt.models.kinds import Kind

NamedFile = tuple[str, Path]
"""What the user calls it, and where it is."""


def user_path(text: str) -> Path:
    """An option's path; a shell leaves the ``~`` of ``--checkpoint=~/sd15.safetensors`` as it is."""
    return Path(os.path.expanduser(text))  # no error for a user that is not there, as Path's has


def model_files(args: argparse.Namespace) -> list[NamedFile]:
    """The models that were given."""
    files = [("--checkpoint", args.checkpoint), ("--motion-module", args.motion_module), ("--vae", args.vae)]
    files += [("--lora", path) for path, _ in args.lora]
    files += [("--motion-lora", path) for path, _ in args.motion_lora]
    files += [("--embedding", path) for path in args.embedding]
    files += [("--controlnet", path) for path, *_ in args.controlnet]
    files += [("--refiner", args.refiner), *(("--refiner-lora", path) for path, _ in args.refiner_lora)]
    return [(name, path) for name, path in files if path is not None]


# What the file of an option may be, and what it is used as.
_USES: dict[str, tuple[tuple[Kind, ...], str]] = {
    "checkpoint": (("sd15",), "a checkpoint"),
    "refiner": (("sd15",), "a refiner's checkpoint"),
    "motion_module": (("motion-module",), "a motion module for SD 1.5"),
    "vae": (("vae", "sd15"), "a VAE"),
    "lora": (("lora",), "a LoRA"),
    "refiner_lora": (("lora",), "a LoRA"),
    "motion_lora": (("motion-lora",), "a motion LoRA"),
    "embedding": (("embedding", "unknown"), "a textual inversion"),
    "controlnet": (("controlnet",), "a ControlNet"),
}


def check_kinds(args: argparse.Namespace) -> None:
    """Look at the headers of the models that were given, with whichever of the options the command has: a checkpoint
    may be a folder too. Raises CheckpointError."""
    from animdetail_trt.models.checkpoint import check_file, weights_in

    for option, (kinds, purpose) in _USES.items():
        given = getattr(args, option, None)
        several = given if isinstance(given, list) else [given]
        for one in several:
            path = one[0] if isinstance(one, tuple) else one  # with strengths, or without
            if not isinstance(path, Path):  # not given; or the switch --controlnet of build-engines
                continue
            if path.is_dir() and purpose.endswith("checkpoint"):
                continue
            file = Path(weights_in(path))
            if file.is_dir():
                raise CheckpointError(f"{path} is a folder; {purpose} is a .safetensors file")
            check_file(file, kinds, purpose)


def check_paths_differ(args: argparse.Namespace, source: Source) -> None:
    """Compare every file that will be written with every file that is read. Raises MediaError for the first clash, and
    for an image that the next run would read with those of a folder."""
    from animdetail_trt.media.images import IMAGE_SUFFIXES

    seen = {path.resolve(): name for name, path in _files_read(args, source)}
    folders = {path.resolve(): name for name, path in _folders_read(args, source)}
    for name, path in _files_written(args, source):
        other = seen.setdefault(path.resolve(), name)
        if other != name:
            raise MediaError(f"{name} {path} is the same file as {other}. Choose another name.")
        # How many frames a video has may show only in the end; and the next run would take it for a frame.
        if name != "--output" and path.resolve().parent == args.output.resolve():
            raise MediaError(f"{name} {path} lies among the frames of --output. Choose another folder.")
        if path.suffix.lower() in IMAGE_SUFFIXES and (images := folders.get(path.resolve().parent)):
            raise MediaError(f"{name} {path} lies among {images}, where the next run would read it. Write elsewhere.")


def _files_read(args: argparse.Namespace, source: Source) -> Iterator[NamedFile]:
    from animdetail_trt.media.images import list_images
    from animdetail_trt.media.segs_file import named_masks

    for path in source.images or (source.path,):
        yield "IN", path
    if args.segs is not None:
        yield "--segs", args.segs
        for path in named_masks(args.segs):
            yield "a mask of --segs", path
    if args.masks is not None:
        for path in list_images(args.masks) if args.masks.is_dir() else [args.masks]:
            yield "--masks", path
    if isinstance(args.detect, Path):
        yield "--detect", args.detect
    for name, path in model_files(args):
        for file in path.rglob("*") if path.is_dir() else [path]:
            yield name, file


def _folders_read(args: argparse.Namespace, source: Source) -> Iterator[NamedFile]:
    """Those of which every image is read. A SEGS file's masks are taken for such, but where they lie beside it."""
    from animdetail_trt.media.segs_file import named_masks

    if source.path.is_dir():
        yield "the frames of IN", source.path
    if args.masks is not None and args.masks.is_dir():
        yield "--masks", args.masks
    if args.segs is not None:
        for path in named_masks(args.segs):
            if path.resolve().parent != args.segs.resolve().parent:
                yield "the masks of --segs", path.parent


def _files_written(args: argparse.Namespace, source: Source) -> Iterator[NamedFile]:
    from animdetail_trt.media.clip import written_files
    from animdetail_trt.media.segs_file import masks_path_of

    for path in (args.output, *written_files(args.output, source)):
        yield "--output", path
    for name, path in (("--preview", args.preview), ("--report", args.report), ("--save-segs", args.save_segs)):
        if path is not None:
            yield name, path
    if args.save_segs is not None:
        yield "the masks of --save-segs", masks_path_of(args.save_segs)
