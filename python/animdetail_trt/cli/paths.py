"""Files on the command line: models are what they are taken for, and no output takes the place of an input, nor of
another output."""

from __future__ import annotations

import argparse
from collections.abc import Collection, Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from animdetail_trt.errors import CheckpointError, MediaError

if TYPE_CHECKING:
    from animdetail_trt.media.clip import Source
    from animdetail_trt.models.checkpoint import Kind

NamedFile = tuple[str, Path]
"""What the user calls it, and where it is."""


def model_files(args: argparse.Namespace) -> list[NamedFile]:
    """The models that were given."""
    files = [("--checkpoint", args.checkpoint), ("--motion-module", args.motion_module), ("--vae", args.vae)]
    files += [("--lora", path) for path, _ in args.lora]
    files += [("--motion-lora", path) for path, _ in args.motion_lora]
    files += [("--controlnet", path) for path, *_ in args.controlnet]
    files += [("--refiner", args.refiner), *(("--refiner-lora", path) for path, _ in args.refiner_lora)]
    return [(name, path) for name, path in files if path is not None]


def check_kinds(files: Iterable[tuple[Path | None, Collection[Kind], str]]) -> None:
    """Look at the headers of those that were given, each with the kinds that it may be and what it is used as: a
    checkpoint, which may be a folder too, or something else. Raises CheckpointError."""
    from animdetail_trt.models.checkpoint import check_file

    for path, kinds, purpose in files:
        if path is not None and not path.is_dir():
            check_file(path, kinds, purpose)
        elif path is not None and not purpose.endswith("checkpoint"):
            raise CheckpointError(f"{path} is a folder; {purpose} is a .safetensors file")


def check_paths_differ(args: argparse.Namespace, source: Source) -> None:
    """Compare every file that will be written with every file that is read. Raises MediaError for the first clash."""
    seen = {path.resolve(): name for name, path in _files_read(args, source)}
    for name, path in _files_written(args, source):
        other = seen.setdefault(path.resolve(), name)
        if other != name:
            raise MediaError(f"{name} {path} is the same file as {other}. Choose another name.")
        # How many frames a video has may show only in the end; and the next run would take it for a frame.
        if name != "--output" and path.resolve().parent == args.output.resolve():
            raise MediaError(f"{name} {path} lies among the frames of --output. Choose another folder.")


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
    for name, path in model_files(args):
        for file in path.rglob("*") if path.is_dir() else [path]:
            yield name, file


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
