"""``animdetail-trt engines list | verify | prune | inspect``: the engines that were built, and what they take."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias

from animdetail_trt.cli.numbers import between, whole_at_least
from animdetail_trt.cli.paths import user_path

if TYPE_CHECKING:
    _Actions: TypeAlias = argparse._SubParsersAction[argparse.ArgumentParser]


def add_parser(commands: _Actions) -> None:
    text = "list, verify, prune or inspect the engines that were built"
    parser = commands.add_parser("engines", help=text, description=f"{text.capitalize()}. None of it needs a GPU.")
    actions = parser.add_subparsers(title="actions", metavar="ACTION", required=True)
    for add_action in (_add_list, _add_verify, _add_prune, _add_inspect):
        add_action(actions).add_argument(
            "--engine-dir",
            type=user_path,
            metavar="DIR",
            help="where to look (default: $ANIMDETAIL_ENGINE_DIR, or the user's cache)",
        )


def _add_list(actions: _Actions) -> argparse.ArgumentParser:
    parser = actions.add_parser(
        "list",
        help="what was built, and whether it can be used here",
        description="What was built, for what, how large it is, and whether it can be used here: with this machine's "
        "libraries, GPU and model files. Those are not read: their sizes and times tell whether they have changed.",
    )
    parser.set_defaults(run=run_list)
    parser.add_argument("--json", action="store_true", help="as JSON on stdout")
    return parser


def _add_verify(actions: _Actions) -> argparse.ArgumentParser:
    parser = actions.add_parser(
        "verify",
        help="read every byte of the engines",
        description="Read every byte and compare it with what was built. Exits 1 where an engine is damaged, and moves "
        "that to set-aside/, where `engines prune` removes it. No engine is loaded into a GPU: whole ones may still be "
        "another machine's, which `engines list` tells.",
    )
    parser.set_defaults(run=run_verify)
    parser.add_argument("names", nargs="*", metavar="NAME", help="the start of a name, or of its digest; default: all")
    parser.add_argument("--report-only", action="store_true", help="leave the damaged ones where they are")
    return parser


def _add_prune(actions: _Actions) -> argparse.ArgumentParser:
    parser = actions.add_parser(
        "prune",
        help="remove what is not needed",
        description="Remove what builds that died have left, engines that lack a file or a readable sidecar, what was "
        "set aside, and the engines that any of the flags below names. It asks first. What another process is building "
        "stays.",
    )
    parser.set_defaults(run=run_prune)
    parser.add_argument("--dry-run", action="store_true", help="say what would be removed, and remove nothing")
    parser.add_argument("--yes", action="store_true", help="do not ask")
    remove = parser.add_argument_group("engines to remove").add_argument
    remove("--older-than", type=between(0, 36500), metavar="DAYS", help="those built longer ago")
    remove(
        "--keep-latest",
        type=whole_at_least(1),
        metavar="N",
        help="all but the N newest of the same models, LoRAs and precision, whatever their sizes and GPU",
    )
    remove(
        "--other-versions",
        action="store_true",
        help="those of another version of TensorRT than is installed, or of graphs that this package no longer makes",
    )
    remove(
        "--missing-models",
        action="store_true",
        help="those whose model files are gone from where they were (mount all disks first)",
    )
    remove("--all", action="store_true", help="every one")
    return parser


def _add_inspect(actions: _Actions) -> argparse.ArgumentParser:
    parser = actions.add_parser(
        "inspect",
        help="what an engine was made of, its layers and its memory",
        description="What an engine was made of, its inputs, layers, attention and memory, as its build wrote it down.",
    )
    parser.set_defaults(run=run_inspect)
    parser.add_argument("name", metavar="NAME", help="the start of a name, or of its digest")
    parser.add_argument("--chart", type=_png, metavar="PNG", help="draw memory and layers")
    return parser


def _png(text: str) -> Path:
    path = user_path(text)
    if path.suffix.lower() != ".png":
        raise argparse.ArgumentTypeError(f"{text!r} is no name for a chart. Let it end in .png")
    return path


def run_list(args: argparse.Namespace) -> int:
    from animdetail_trt.cli.engine_folder import open_folder
    from animdetail_trt.cli.engine_list import list_engines

    return list_engines(open_folder(args.engine_dir), as_json=args.json)


def run_verify(args: argparse.Namespace) -> int:
    from animdetail_trt.cli.engine_folder import open_folder
    from animdetail_trt.cli.engine_verify import verify_engines

    return verify_engines(open_folder(args.engine_dir), args.names, set_aside=not args.report_only)


def run_prune(args: argparse.Namespace) -> int:
    from animdetail_trt.cli.engine_folder import open_folder
    from animdetail_trt.cli.engine_prune import Criteria, prune_engines

    criteria = Criteria(args.older_than, args.keep_latest, args.other_versions, args.missing_models, args.all)
    return prune_engines(open_folder(args.engine_dir), criteria, dry_run=args.dry_run, yes=args.yes)


def run_inspect(args: argparse.Namespace) -> int:
    from animdetail_trt.cli.engine_folder import open_folder
    from animdetail_trt.cli.engine_inspect import inspect_engine

    return inspect_engine(open_folder(args.engine_dir), args.name, args.chart)
