"""``animdetail-trt detail IN -o OUT``: the segments of a clip, detailed.

Everything cheap is checked first (files, names, numbers, whether the output can be written), then the frames are
read and the segments found, and only then are the models loaded.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING, Any

from animdetail_trt.cli.models import REFINER_RATIO, Models, add_models, check_frames, check_models, load_models
from animdetail_trt.cli.numbers import between, whole_at_least, whole_between
from animdetail_trt.cli.paths import user_path
from animdetail_trt.cli.segments import FACE, FACE_CONFIDENCE, OBJECT_CONFIDENCE
from animdetail_trt.errors import DeviceError, InputError, MediaError, is_out_of_memory

if TYPE_CHECKING:
    from torch import Tensor

    from animdetail_trt.cli.progress import Display
    from animdetail_trt.detailer.improvements import Improvements
    from animdetail_trt.media.clip import Clip, Sink, Source
    from animdetail_trt.sampling.control import ControlNetWrapper
    from animdetail_trt.segs import SEGS

_MAX_SEED = 2**64 - 1
_SHEET_SUFFIXES = (".png", ".jpg", ".jpeg", ".webp")
_IMPROVEMENTS = ("round-to-8", "merge-masks", "scale-regions", "follow-motion")
"""Those of ``Improvements`` that a command line can meet: it has no hooks."""


_ONLY_WITH = {
    "mask_shape": ("detect",),
    "each_frame": ("detect",),
    "min_confidence": ("detect",),
    "combined": ("masks",),
    "bbox_fill": ("masks",),
    "contour_fill": ("masks",),
    "drop_size": ("masks",),
    "crop_factor": ("masks", "detect"),
    "preview_rows": ("preview",),
}
"""Options that say nothing without one of the others."""


def add_parser(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    parser = commands.add_parser(
        "detail",
        help="detail the segments of a video, an image folder or an image",
        usage="%(prog)s IN -o OUT --checkpoint FILE (--segs FILE | --masks PATH | --detect face|FILE) [options]",
        description="Detail the segments of a video, an image folder or an image. Frame rate, time stamps, colour "
        "tags and sound of a video are kept. The output appears under its name only once it is complete.",
        formatter_class=_HelpWithDefaults,
    )
    parser.set_defaults(run=run, default_of=parser.get_default)
    parser.add_argument(
        "input", type=user_path, metavar="IN", help="a video, an image (PNG, JPEG, WebP) or a folder of images"
    )
    parser.add_argument(
        "-o", "--output", type=user_path, required=True, metavar="OUT",
        help="a video (.mp4 .mov .m4v .mkv .webm), an image, or a folder for PNG files (a name without suffix)",
    )  # fmt: skip
    add_models(parser)
    _add_regions(parser)
    _add_sampling(parser)
    _add_output(parser)


def _add_regions(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("segments", "what to detail: exactly one of --segs, --masks and --detect")
    add = group.add_argument
    one = group.add_mutually_exclusive_group(required=True).add_argument
    one("--segs", type=user_path, metavar="FILE", help="read segments from a JSON file, as --save-segs writes it")
    one(
        "--masks",
        type=user_path,
        metavar="PATH",
        help="white on black: a video or a folder with one mask per frame, or one image for all frames",
    )
    one(
        "--detect", type=parse_detector, metavar="face|FILE.onnx",
        help="find faces, or whatever a YOLO detector finds (YOLOv8 or later, exported to ONNX by Ultralytics)",
    )  # fmt: skip
    add(
        "--label",
        type=parse_labels,
        metavar="NAMES",
        help="with --detect FILE.onnx: only these classes, such as hand,face",
    )
    add(
        "--crop-factor", type=between(1, 100), default=3.0, metavar="X",
        help="with --masks and --detect: size of the crop in bboxes",
    )  # fmt: skip
    add(
        "--mask-shape", choices=("oval", "box", "silhouette"),
        help="with --detect (default: silhouette if the detector is a segmentation model, else oval)",
    )  # fmt: skip
    add(
        "--each-frame",
        action="store_true",
        help="with --detect: search every frame and give each its own mask",
    )
    add(
        "--min-confidence", type=between(0, 1), metavar="X",
        help=f"with --detect (default: {FACE_CONFIDENCE} for face, {OBJECT_CONFIDENCE} for a file)",
    )  # fmt: skip
    add("--combined", action="store_true", help="with --masks: make one segment of everything")
    add("--bbox-fill", action="store_true", help="with --masks: fill each segment's bbox")
    add("--contour-fill", action="store_true", help="with --masks: fill each segment's outline")
    add(
        "--drop-size", type=whole_at_least(1), default=10, metavar="PX",
        help="with --masks: drop segments smaller than this",
    )  # fmt: skip


def _add_sampling(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("sampling")
    add = group.add_argument
    add("--prompt", default="", metavar="TEXT", help="what to draw; (word:1.2) weights a word")
    add("--negative", default="", metavar="TEXT", help="what not to draw")
    add("--steps", type=whole_between(1, 10000), default=20, metavar="N", help="sampler steps")
    add("--cfg", type=between(0, 100), default=8.0, metavar="X", help="guidance scale; 1 ignores --negative")
    add("--seed", type=whole_between(0, _MAX_SEED), default=0, metavar="N", help="seed of the noise")
    add("--sampler", default="euler", metavar="NAME", help="an unknown name lists the choices")
    add("--scheduler", default="simple", metavar="NAME", help="an unknown name lists the choices")
    add("--denoise", type=between(0.0001, 1), default=0.5, metavar="X", help="how much is drawn anew, up to 1 (all)")
    add("--guide-size", type=between(64, 16384), default=512, metavar="PX", help="enlarge the short side to this")
    add("--guide-size-for", choices=("bbox", "crop_region"), default="bbox", help="whose short side")
    add(
        "--max-size", type=between(64, 16384), default=1024, metavar="PX",
        help="enlarge no side beyond this; larger crops stay as they are",
    )  # fmt: skip
    add("--feather", type=whole_between(0, 100), default=5, metavar="PX", help="soft edge of the paste")
    add(
        "--noise-mask-feather", type=whole_between(0, 100), default=20, metavar="PX",
        help="soft edge of the mask while sampling",
    )  # fmt: skip
    add(
        "--pass-order", choices=("pillow13", "horizontal_first"), default="pillow13",
        help="order of the resize passes: as in Pillow 13, or as in Pillow up to 12",
    )  # fmt: skip
    add(
        "--improve", type=parse_improvements, metavar="LIST",
        help=f"do better than the reference node: all, or some of {', '.join(_IMPROVEMENTS)}, joined by commas",
    )  # fmt: skip


def _add_output(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("output")
    add = group.add_argument
    add("--fps", type=parse_rate, metavar="RATE", help="frame rate of a video made of images, such as 8 or 30000/1001")
    add("--no-sound", action="store_true", help="leave the sound out")
    add("--lossless", action="store_true", help="write FFV1 in RGB; .mkv only")
    add(
        "--preview",
        type=user_path,
        metavar="PNG",
        help="write a contact sheet: frame, crop, mask, detailed crop, result",
    )
    add("--preview-rows", type=whole_between(1, 64), default=4, metavar="N", help="frames on the contact sheet")
    add("--report", type=user_path, metavar="JSON", help="write a run report: stage times, sizes, seed, versions")
    add("--save-segs", type=user_path, metavar="JSON", help="write the segments to a file that --segs reads")
    add("-q", "--quiet", action="store_true", help="show no progress")


class _HelpWithDefaults(argparse.HelpFormatter):
    """Tells the defaults that say something."""

    def _get_help_string(self, action: argparse.Action) -> str | None:
        if action.default in (None, "", [], argparse.SUPPRESS) or action.default is False:
            return action.help
        return f"{action.help} (default: %(default)s)"


def parse_rate(text: str) -> Fraction:
    try:
        rate = Fraction(text)
    except (ValueError, ZeroDivisionError):
        raise argparse.ArgumentTypeError(f"{text!r} is no frame rate. Write 8, 23.976 or 30000/1001") from None
    rate = rate.limit_denominator(1001)
    if not 0 < rate <= 1000:
        raise argparse.ArgumentTypeError(f"{text} frames per second is out of range. Use 1/1001 to 1000")
    return rate


def parse_detector(text: str) -> str | Path:
    return text if text == FACE else user_path(text)


def parse_labels(text: str) -> tuple[str, ...]:
    names = tuple(name.strip() for name in text.split(","))
    if "" in names:
        raise argparse.ArgumentTypeError(f"{text!r} has an empty name. Write hand or hand,face")
    return names


def parse_improvements(text: str) -> tuple[str, ...]:
    names = _IMPROVEMENTS if text == "all" else tuple(name.strip() for name in text.split(","))
    if unknown := [name for name in names if name not in _IMPROVEMENTS]:
        raise argparse.ArgumentTypeError(f"{unknown[0]!r} is none of all, {', '.join(_IMPROVEMENTS)}")
    return names


@dataclass
class Timings:
    """Milliseconds that each phase took, in order."""

    elapsed_ms: dict[str, float] = field(default_factory=dict)

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        start = time.perf_counter()
        yield
        self.elapsed_ms[name] = (time.perf_counter() - start) * 1e3


def run(args: argparse.Namespace) -> int:
    from animdetail_trt.cli.progress import log_shown, open_display
    from animdetail_trt.media.preview import check_sheet

    timings = Timings()
    with open_display(quiet=args.quiet) as display, log_shown(display), _out_of_memory_hint():
        with timings.phase("check"), display.phase("checking"), _file_errors():
            source, sink = _check(args)
            find_segs = _segment_finder(args, source)
        with timings.phase("read"), display.phase(f"reading {source.path.name}", source.frame_count or None) as tick:
            clip = source.read(tick)
        check_frames(args, len(clip.frames))
        with (
            timings.phase("find"),
            display.phase("finding segments", len(clip.frames) if args.each_frame else None) as tick,
        ):
            segs = find_segs(clip, tick)
            if args.preview:
                check_sheet(args.preview, min(args.preview_rows, len(clip.frames)), len(segs[1]))
        _run_models(args, clip, sink, segs, timings, display)
    count = len(segs[1])
    print(f"{sink.path}: {_describe(clip)}, {count} segment{'s' if count != 1 else ''} detailed")
    return 0


def _describe(clip: Clip) -> str:
    count, height, width, _ = clip.frames.shape
    return f"{count} frame{'s' if count != 1 else ''} of {width}x{height}"


def _run_models(
    args: argparse.Namespace, clip: Clip, sink: Sink, segs: SEGS, timings: Timings, display: Display
) -> None:
    from animdetail_trt.cli.progress import Observers
    from animdetail_trt.cli.report import write_report
    from animdetail_trt.detailer.report import RunReport
    from animdetail_trt.media.segs_file import write_segs

    painted = _scaled(args, clip, segs)
    if args.save_segs:
        write_segs(args.save_segs, segs)
    with timings.phase("load"), display.phase("loading models"):
        models = load_models(args)
    segs = _steered(segs, models.controlnet)
    report = RunReport()
    with timings.phase("detail"):
        frames = _detail(args, clip, segs, models, Observers([display.observer(), report]))
    with timings.phase("write"), display.phase(f"writing {sink.path.name}", len(frames)) as tick:
        sink.write(frames, clip, tick)
    if args.preview:
        with timings.phase("preview"), display.phase("drawing the contact sheet"):
            _write_preview(args, clip, frames, painted)
    if args.report:
        write_report(args, clip, painted, models.pipe, report, timings.elapsed_ms)


def _check(args: argparse.Namespace) -> tuple[Source, Sink]:
    """All that can be known to be wrong before the first frame is decoded."""
    from animdetail_trt.cli.paths import check_paths_differ
    from animdetail_trt.media.clip import open_sink, open_source
    from animdetail_trt.media.staging import check_writable

    _check_effects(args)
    _check_samplers(args)
    check_models(args)
    if args.preview and args.preview.suffix.lower() not in _SHEET_SUFFIXES:
        raise MediaError(f"--preview {args.preview} is no image name. Use one of {', '.join(_SHEET_SUFFIXES)}.")
    for path in (args.preview, args.report, args.save_segs):
        if path is not None:
            check_writable(path)
    if args.save_segs is not None:
        _check_saved_segs(args.save_segs)
    source = open_source(args.input)
    check_frames(args, len(source.images))  # how many a video has is certain only once it is read
    check_paths_differ(args, source)
    return source, open_sink(args.output, source, fps=args.fps, sound=not args.no_sound, lossless=args.lossless)


def _check_effects(args: argparse.Namespace) -> None:
    """Raise InputError for an option whose value would be passed over; its default is taken for not given."""
    for name, others in _ONLY_WITH.items():
        if getattr(args, name) != args.default_of(name) and all(getattr(args, other) is None for other in others):
            needed = " or ".join(f"--{other}" for other in others)
            raise InputError(f"--{name.replace('_', '-')} has no effect without {needed}. Leave it out.")
    if args.label is not None and not isinstance(args.detect, Path):
        raise InputError("--label has no effect without --detect FILE.onnx. Leave it out.")


def _check_samplers(args: argparse.Namespace) -> None:
    from animdetail_trt.sampling import SAMPLER_NAMES, SCHEDULER_NAMES

    for flag, name, names in (
        ("--sampler", args.sampler, SAMPLER_NAMES),
        ("--scheduler", args.scheduler, SCHEDULER_NAMES),
    ):
        if name not in names:
            raise InputError(f"{flag} {name!r} is unknown. Choose one of: {', '.join(names)}.")


def _check_saved_segs(path: Path) -> None:
    """The masks beside a SEGS file replace none that belong to another."""
    from animdetail_trt.media.segs_file import masks_path_of
    from animdetail_trt.media.staging import check_writable

    masks_path = masks_path_of(path)
    if masks_path.exists() and not path.exists():
        raise MediaError(f"--save-segs would write its masks over {masks_path}. Choose another name.")
    check_writable(masks_path)


def _segment_finder(args: argparse.Namespace, source: Source) -> Any:
    """Read what the segments come from, now; return Clip -> SEGS for when the frames are there."""
    from animdetail_trt.cli.segments import detector_finder, file_finder, masks_finder

    if args.segs is not None:
        return file_finder(args.segs)
    if args.masks is not None:
        return masks_finder(
            args.masks, source, combined=args.combined, crop_factor=args.crop_factor, bbox_fill=args.bbox_fill,
            drop_size=args.drop_size, contour_fill=args.contour_fill,
        )  # fmt: skip
    return detector_finder(
        args.detect, args.label, args.min_confidence, crop_factor=args.crop_factor, mask=args.mask_shape,
        each_frame=args.each_frame,
    )  # fmt: skip


def _improvements(args: argparse.Namespace) -> Improvements | None:
    """None where none is asked for."""
    from animdetail_trt.detailer.improvements import Improvements

    if args.improve is None:
        return None
    return Improvements(call_hooks=False, **{name.replace("-", "_"): name in args.improve for name in _IMPROVEMENTS})


def _scaled(args: argparse.Namespace, clip: Clip, segs: SEGS) -> SEGS:
    """The segments as the detailer scales them to the frames: preview and report then show what is painted."""
    from animdetail_trt.detailer.improvements import REFERENCE
    from animdetail_trt.detailer.plan import scale_segs

    frame_size = (clip.frames.shape[1], clip.frames.shape[2])
    return scale_segs(segs, frame_size, _improvements(args) or REFERENCE, args.pass_order)


def _steered(segs: SEGS, controlnet: ControlNetWrapper | None) -> SEGS:
    header, found = segs
    return header, [seg._replace(control_net_wrapper=controlnet) for seg in found]


def _detail(args: argparse.Namespace, clip: Clip, segs: SEGS, models: Models, observer: Any) -> Tensor:
    from animdetail_trt.detailer.detailer import DetailerForEachPipeForAnimateDiff

    frames: Tensor
    frames, *_ = DetailerForEachPipeForAnimateDiff.doit(
        clip.frames,
        segs,
        guide_size=args.guide_size,
        guide_size_for=args.guide_size_for == "bbox",
        max_size=args.max_size,
        seed=args.seed,
        steps=args.steps,
        cfg=args.cfg,
        sampler_name=args.sampler,
        scheduler=args.scheduler,
        denoise=args.denoise,
        feather=args.feather,
        basic_pipe=models.pipe,
        refiner_ratio=REFINER_RATIO if args.refiner_ratio is None else args.refiner_ratio,
        refiner_basic_pipe_opt=models.refiner,
        noise_mask_feather=args.noise_mask_feather,
        reference_mode=args.improve is None,
        improvements=_improvements(args),
        pass_order=args.pass_order,
        observer=observer,
    )
    return frames


def _write_preview(args: argparse.Namespace, clip: Clip, frames: Tensor, segs: SEGS) -> None:
    from animdetail_trt.media.preview import SheetFrame, contact_sheet, pick_rows, save_sheet

    rows = []
    for index in pick_rows(len(frames), args.preview_rows):
        seconds = clip.seconds(index)
        caption = "" if seconds is None else f"{seconds:.2f} s"
        rows.append(SheetFrame(f"frame {index + 1}", caption, clip.frames[index], frames[index], index))
    sampling = f"{args.sampler} / {args.scheduler}   {args.steps} steps   cfg {args.cfg:g}"
    title = f"{clip.source.path.name}   {_describe(clip)}"
    subtitle = f"{sampling}   denoise {args.denoise:g}   seed {args.seed}"
    save_sheet(args.preview, contact_sheet(rows, segs, title, subtitle))


@contextmanager
def _file_errors() -> Iterator[None]:
    """One line for what the file system says to a look at a path."""
    try:
        yield
    except OSError as error:
        raise MediaError(
            f"cannot use {error.filename or 'a file'}: {error.strerror or error}. Check the path."
        ) from error
    except RuntimeError as error:
        if "Symlink loop" not in str(error):  # pathlib's, from resolve()
            raise
        raise MediaError(f"{error}. Check the path.") from error


@contextmanager
def _out_of_memory_hint() -> Iterator[None]:
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        raise DeviceError(
            f"out of memory{f': {error}' if str(error) else ''}. "
            "Use a smaller --max-size, --guide-size or --crop-factor, a shorter --context-length, or fewer frames."
        ) from error
