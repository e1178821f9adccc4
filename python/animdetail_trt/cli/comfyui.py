"""``animdetail-trt comfyui install | uninstall | swap``: the nodes, in a ComfyUI and in its workflows."""

from __future__ import annotations

import argparse
import json
import shutil
import sys
from pathlib import Path

from animdetail_trt.cli.paths import user_path
from animdetail_trt.comfyui.install import install, python_of, uninstall, why_not_importable
from animdetail_trt.comfyui.swap import swap
from animdetail_trt.errors import InputError
from animdetail_trt.media.staging import check_writable, staged_file


def add_parser(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    text = "put the nodes into a ComfyUI, take them out, or swap them in a workflow"
    parser = commands.add_parser("comfyui", help=text, description=f"{text.capitalize()}.")
    actions = parser.add_subparsers(title="actions", metavar="ACTION", required=True)

    installing = actions.add_parser("install", help="write one small file into its custom_nodes")
    installing.add_argument("comfyui", type=user_path, metavar="PATH_TO_COMFYUI", help="the folder that holds main.py")
    installing.add_argument("--python", type=user_path, help="the Python that ComfyUI runs with, to check it")
    installing.set_defaults(run=run_install)

    removing = actions.add_parser("uninstall", help="remove that file; all else stays")
    removing.add_argument("comfyui", type=user_path, metavar="PATH_TO_COMFYUI", help="the folder that holds main.py")
    removing.set_defaults(run=run_uninstall)

    swapping = actions.add_parser("swap", help="put our nodes in the place of the Impact Pack's in a workflow")
    swapping.add_argument(
        "workflow",
        type=user_path,
        help="JSON, as the menu saves or exports it (API), or a PNG of ComfyUI's that holds it",
    )
    swapping.add_argument("-o", "--output", type=user_path, help="default: stdout")
    swapping.add_argument("--back", action="store_true", help="the Impact Pack's nodes in the place of ours")
    swapping.set_defaults(run=run_swap)


def run_install(args: argparse.Namespace) -> int:
    if args.python is not None and shutil.which(args.python) is None:
        raise InputError(f"--python {args.python} is no program. Give the Python that ComfyUI runs with")
    path, new = install(args.comfyui)
    print(f"{'wrote' if new else 'already there:'} {path}")
    python = args.python or python_of(args.comfyui)
    reason = why_not_importable(python or Path(sys.executable))
    if reason is None:
        whose = python or f"{sys.executable} (where ComfyUI runs with another Python, name it with --python)"
        print(f"the nodes can be imported by {whose}. Start ComfyUI anew: they are under Add Node > animdetail")
        return 0
    python = python or Path(sys.executable)
    print(
        f"error: {python} cannot import the nodes: {reason}. Run: {python} -m pip install FOLDER, with "
        "the folder of animdetail-trt's sources",
        file=sys.stderr,
    )
    return 1


def run_uninstall(args: argparse.Namespace) -> int:
    removed = uninstall(args.comfyui)
    for path in removed:
        print(f"removed {path}")
    if not removed:
        print(f"nothing of this program is in {args.comfyui}")
    return 0


def run_swap(args: argparse.Namespace) -> int:
    if args.output is not None and args.output.suffix.lower() != ".json":
        raise InputError(f"a workflow is written as JSON, not as {args.output}. Let the name end in .json")
    try:
        workflow = json.loads(_read_workflow(args.workflow))
        swapped, count = swap(workflow, back=args.back)
        # In ASCII every title can be written, half of a surrogate pair too.
        text = json.dumps(swapped, indent=2) + "\n"
    except RecursionError:
        raise InputError(f"{args.workflow} is nested too deeply for a workflow") from None
    except (OSError, ValueError) as error:
        raise InputError(f"cannot read the workflow {args.workflow}: {error}") from None
    if not count:
        raise InputError(f"{args.workflow} holds none of the nodes that this program has another of")
    if args.output is None:
        sys.stdout.write(text)
        return 0
    if args.output.exists() and args.output.samefile(args.workflow):
        raise InputError(f"the output {args.output} is the workflow itself. Choose another name")
    check_writable(args.output)
    with staged_file(args.output) as scratch:
        scratch.write_text(text, encoding="ascii")
    print(f"swapped {count} node{'s' if count > 1 else ''}: {args.output}")
    return 0


def _read_workflow(path: Path) -> str:
    """The JSON of a file, or of the picture that ComfyUI put it into. Raises OSError or ValueError."""
    if path.suffix.lower() != ".png":
        return path.read_text(encoding="utf-8-sig")  # as some editors write it, with a mark before the text
    from PIL import Image

    try:
        with Image.open(path) as picture:
            if "workflow" not in picture.info:
                raise ValueError("this picture holds none. Save it as JSON in ComfyUI's menu")
            return str(picture.info["workflow"])
    except Image.DecompressionBombError as error:
        raise ValueError(error) from None
