"""``animdetail-trt build-engines``: a user's models as TensorRT engines, built once and found from then on."""

from __future__ import annotations

import argparse
import os
import re
from typing import TYPE_CHECKING

from animdetail_trt.cli.engine_words import told_bytes, told_ranges
from animdetail_trt.cli.models import add_files
from animdetail_trt.cli.paths import user_path
from animdetail_trt.errors import AnimDetailError, InputError

if TYPE_CHECKING:
    from animdetail_trt.cli.progress import Display
    from animdetail_trt.models.engines import Job
    from animdetail_trt.models.files import ModelFiles
    from animdetail_trt.trt.flavour import Flavour
    from animdetail_trt.trt.identity import Target
    from animdetail_trt.trt.profile import Range
    from animdetail_trt.trt.recipe import Recipe
    from animdetail_trt.trt.store import Store


def add_parser(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    parser = commands.add_parser(
        "build-engines",
        help="build TensorRT engines of models, once",
        usage="%(prog)s --checkpoint FILE [options]",
        description="Turn models into TensorRT engines, once; `detail` and load_pipe find and use them. What is built "
        "already is not built again. With TensorRT for RTX no GPU is needed here.",
    )
    parser.set_defaults(run=run)
    group = parser.add_argument_group("models", "a LoRA is merged, so each set of them is an engine")
    add_files(group)
    models = group.add_argument
    models("--refiner", type=user_path, metavar="FILE", help="checkpoint of a refiner")
    models("--controlnet", action="store_true", help="let the UNet take a ControlNet's residuals")
    models("--frame-prompts", action="store_true", help="let the UNet take a prompt for each frame")
    models(
        "--refittable",
        action="store_true",
        help="let the UNet take LoRAs later, within seconds, instead of an engine for each; needs a GPU here",
    )
    build = parser.add_argument_group("engines").add_argument
    build(
        "--engine-dir",
        type=user_path,
        metavar="DIR",
        help="where to put them (default: $ANIMDETAIL_ENGINE_DIR, or the user's cache)",
    )
    build(
        "--flavour",
        default="auto",
        choices=("auto", "tensorrt", "tensorrt_rtx"),
        help="auto: tensorrt if it is installed and there is a GPU, else tensorrt_rtx",
    )
    build(
        "--target-sm", type=parse_sm, metavar="SM", help="build for this GPU generation, such as 89; needs tensorrt_rtx"
    )
    build(
        "--recipe",
        type=os.path.expanduser,
        default="sd15",
        metavar="NAME",
        help="which sizes to build for: a name, or a .toml file",
    )
    build("--precision", choices=("fp16", "bf16", "fp32"), help="of the UNet")
    build("--frames", type=_range, metavar="MIN:OPT:MAX", help="frames in a window")
    build(
        "--size",
        type=_sides,
        action="append",
        default=[],
        metavar="MIN:OPT:MAX",
        help="pixels of a side; repeat it for several profiles",
    )
    build(
        "--check", action="store_true", help="compare every graph with torch before building it (minutes at full size)"
    )
    build(
        "--dry-run", action="store_true", help="say what would be built, how large and in what time, and build nothing"
    )
    build("-q", "--quiet", action="store_true", help="show no progress")


_OLDEST_GENERATION = 5  # Maxwell's; below, 12 would be read as 1.2


def parse_sm(text: str) -> str:
    """``89`` or ``8.9`` as a compute capability."""
    match = re.fullmatch(r"(\d{1,2})\.?(\d)", text)
    if match is None or int(match[1]) < _OLDEST_GENERATION:
        raise argparse.ArgumentTypeError(f"{text!r} is no compute capability. Write 89 or 8.9, and 120 or 12.0")
    return f"{match[1]}.{match[2]}"


def _range(text: str) -> Range:
    from animdetail_trt.trt.recipe import parse_range

    try:
        return parse_range(text)
    except AnimDetailError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def _sides(text: str) -> Range:
    from animdetail_trt.trt.recipe import parse_sides

    try:
        return parse_sides(text)
    except AnimDetailError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def run(args: argparse.Namespace) -> int:
    from animdetail_trt.cli.progress import log_shown, open_display
    from animdetail_trt.models.engines import UNetVariant, jobs_for
    from animdetail_trt.trt.digests import Digests
    from animdetail_trt.trt.store import Store
    from animdetail_trt.trt.system import default_folder

    files = _check_files(args)
    recipe = _recipe(args)
    flavour, target = _target(args)
    store = Store(default_folder() if args.engine_dir is None else args.engine_dir)
    lines: list[str] = []
    try:
        with open_display(quiet=args.quiet) as display, log_shown(display):
            with display.phase("reading the models' digests"):
                variant = UNetVariant(args.controlnet, args.frame_prompts, args.refittable)
                digests = Digests(store.folder)
                jobs = list(jobs_for(files, target, recipe, digests, refiner=args.refiner, variant=variant))
            _tell_of_fewer_frames(args, display)
            if args.dry_run:
                lines += _plan_lines(jobs, store, target)
            else:
                for number, job in enumerate(jobs, 1):
                    lines.append(_build(args, job, f"{number}/{len(jobs)}", store, flavour, display))
    finally:  # once the bars are gone: while they run, rich takes stdout for its own
        if lines:
            print("\n".join(lines))
    return 0


def _check_files(args: argparse.Namespace) -> ModelFiles:
    """What the files' headers tell, before anything is read or built."""
    from animdetail_trt.cli.paths import check_kinds
    from animdetail_trt.models.files import ModelFiles

    files = ModelFiles(
        args.checkpoint,
        args.motion_module,
        args.vae,
        args.lora,
        args.motion_lora,
        args.motion_scale,
        args.motion_effect,
    )
    check_kinds(args)
    return files


def _recipe(args: argparse.Namespace) -> Recipe:
    from animdetail_trt.trt.recipe import read_recipe

    return read_recipe(args.recipe).changed(args.precision, args.size, args.frames)


def _tell_of_fewer_frames(args: argparse.Namespace, display: Display) -> None:
    from animdetail_trt.models.motion import positions_of

    if args.frames is None or args.motion_module is None:
        return
    positions = positions_of(args.motion_module)
    if args.frames.max > positions:
        display.note(f"warning: --frames {args.frames}: the motion module, and its engine, see {positions} at most")


def _target(args: argparse.Namespace) -> tuple[Flavour, Target]:
    from animdetail_trt.trt.builder import check_target
    from animdetail_trt.trt.flavour import choose_flavour, find_cards

    cards, reason = find_cards()
    card = next((card for card in cards if args.target_sm in (None, card.capability)), None)
    capability = args.target_sm or (card.capability if card else None)
    flavour = choose_flavour("tensorrt_rtx" if args.target_sm and args.flavour == "auto" else args.flavour, capability)
    if args.target_sm and not flavour.builds_ahead and card is None:
        raise InputError(f"--target-sm {args.target_sm} is not the GPU of this machine. Use --flavour tensorrt_rtx")
    if capability is None:
        raise InputError(
            f"there is no GPU here to build for ({reason}). Name the one that the engines will run on: --target-sm 89"
        )
    if args.refittable and not cards:
        raise InputError(
            f"--refittable needs a GPU here: {flavour.name} builds such engines on no other machine ({reason}). "
            "Leave it out: a LoRA is then merged, and an engine built for it with --lora"
        )
    return flavour, flavour.target(check_target(flavour, capability), card.name if card else "")


def _build(args: argparse.Namespace, job: Job, number: str, store: Store, flavour: Flavour, display: Display) -> str:
    """Returns the line that tells of it."""
    from animdetail_trt.models.engines import build, unfused_attention

    with display.steps(f"{number} {job.title}") as progress:
        entry, built = build(
            job, store, flavour, check=args.check or None, progress=progress, command=args.command_line,
            waiting=lambda: display.note(f"{job.title}: another process is building it; waiting"),
        )  # fmt: skip
    unfused = unfused_attention(entry)
    if unfused:
        display.note(
            f"warning: {job.title}: {len(unfused)} attention layers are not fused, the first of them {unfused[0]}. "
            "They are slow and take much memory: their heads are smaller than 12 channels, or larger than 256"
        )
    return f"{entry.plan}: {'built' if built else 'was there'}, {told_bytes(entry.size)}"


def _plan_lines(jobs: list[Job], store: Store, target: Target) -> list[str]:
    """What would be built, and about how long it takes."""
    lines, total = [], 0.0
    for job in jobs:
        entry = store.get(job.identity)
        seconds = 0.0 if entry else _seconds(job, store)
        total += seconds
        told = "is there" if entry else f"about {told_bytes(job.weight_bytes())}, {_time(seconds)}"
        lines.append(f"{job.title}: {job.identity.name}: {told}")
        lines += [f"  {told_ranges(profile)}" for profile in job.identity.profiles]
    built_for = f"for {target.flavour} {target.version}, {target.where}"
    return [*lines, f"{built_for}, in {store.folder}; {_time(total)} in all"]


# Seconds to export, and to build a profile, on two processors of an AMD EPYC (docs/engines.md). The number of layers
# decides, not the size of the weights.
_SECONDS = {"unet": (30.0, 45.0), "vae_encoder": (2.0, 2.0), "vae_decoder": (2.0, 2.0)}


def _seconds(job: Job, store: Store) -> float:
    """As long as the last such component took on this machine for each profile; else as long as elsewhere."""
    target, profiles = job.identity.target, len(job.identity.profiles)
    known = [
        entry
        for entry in store.entries()
        if entry.identity.target == target and entry.identity.source.component == job.component
    ]
    if known:
        last = max(known, key=lambda entry: str(entry.about["built"]))
        return float(last.about["build_s"]) / len(last.identity.profiles) * profiles
    export, build = _SECONDS[job.component]
    return export + build * profiles


def _time(seconds: float) -> str:
    return f"{seconds:.0f} s" if seconds < 90 else f"{seconds / 60:.0f} min"
