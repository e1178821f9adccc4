"""``animdetail-trt bench``: how fast, how close to the limit, how close to the reference's pictures; and comparing."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from animdetail_trt.cli.numbers import between, whole_at_least
from animdetail_trt.errors import AnimDetailError, InputError

if TYPE_CHECKING:
    from animdetail_trt.bench.run import Report
    from animdetail_trt.bench.scenarios import Suite

EXIT_FAILED = 1
"""A picture that is black or holds NaN; nothing that could be measured; a file that could not be written; a comparison
that found a loss."""

SUITE_NAMES = ("quick", "full", "all", "cpu-full", "pixels")
WAY_NAMES = (
    "reference", "native", "native_cuda", "torch", "compile", "onnxruntime", "tensorrt", "tensorrt_rtx"
)  # fmt: skip


def add_parser(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    text = "measure speed, distance to the machine's limit, and quality; compare two results"
    parser = commands.add_parser(
        "bench", help=text, usage="%(prog)s [--suite NAME] [--output DIR] [options]",
        description=f"{text.capitalize()}. benchmarks/README.md says how it measures.",
        epilog="also: bench list (suites and scenarios), bench compare A.json B.json",
    )  # fmt: skip
    parser.set_defaults(run=run)
    parser.add_argument("--suite", choices=SUITE_NAMES, default="quick", help="what to measure (default: quick)")
    parser.add_argument("--output", "-o", type=Path, metavar="DIR", help="folder for bench.json and bench.html")
    parser.add_argument(
        "--scenario",
        action="append",
        default=[],
        metavar="NAME",
        help="run only this one of the suite, or unet-*; repeatable",
    )
    parser.add_argument(
        "--backend",
        action="append",
        default=[],
        choices=WAY_NAMES,
        help="run only this; repeatable (default: all that are present)",
    )
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda, cuda:N (default: auto)")
    parser.add_argument("--dtype", default="auto", help="of the UNet: auto, float32, float16, bfloat16 (default: auto)")
    parser.add_argument("--vae-dtype", default="auto", help="of the VAE (default: float32 beside a float16 UNet)")
    parser.add_argument(
        "--threads",
        type=whole_at_least(1),
        metavar="N",
        help="CPU threads of every backend (default: 1 in quick, else torch's own number)",
    )
    parser.add_argument(
        "--minutes",
        type=between(0.01, 1e5),
        metavar="N",
        help="time limit: a scenario that would outlast it is left out (default: the suite's)",
    )
    parser.add_argument("--checkpoint", type=Path, metavar="FILE", help="a real checkpoint instead of random weights")
    parser.add_argument("--motion-module", type=Path, metavar="FILE", help="goes with --checkpoint")
    parser.add_argument(
        "--engine-dir",
        type=Path,
        metavar="DIR",
        help="where to look for engines (default: where build-engines puts them)",
    )
    parser.add_argument(
        "--weights-dir", type=Path, metavar="DIR", help="where to keep random weights (default: the user's cache)"
    )
    parser.add_argument("-q", "--quiet", action="store_true", help="show no progress")
    _add_subcommands(parser)


def _add_subcommands(parser: argparse.ArgumentParser) -> None:
    actions = parser.add_subparsers(title="also", metavar="COMMAND", prog=parser.prog)
    listing = actions.add_parser("list", help="the suites and their scenarios")
    listing.set_defaults(run=run_list)
    comparing = actions.add_parser("compare", help="ratios of two results; exits 1 past the threshold")
    comparing.set_defaults(run=run_compare)
    comparing.add_argument("old", type=Path, metavar="A.json")
    comparing.add_argument("new", type=Path, metavar="B.json")
    comparing.add_argument(
        "--threshold", type=between(1, 1000), metavar="X", help="a loss is this many times slower (default: 1.10)"
    )
    comparing.add_argument("--complete", action="store_true", help="count what B left out for lack of time as a loss")


def run_list(args: argparse.Namespace) -> int:
    from animdetail_trt.bench.scenarios import SUITES
    from animdetail_trt.bench.tables import list_suites

    list_suites(SUITES.values())
    return 0


def run_compare(args: argparse.Namespace) -> int:
    from animdetail_trt.bench.compare import THRESHOLD, compare_results
    from animdetail_trt.bench.results import read_result
    from animdetail_trt.bench.tables import show_comparison

    threshold = args.threshold or THRESHOLD
    comparison = compare_results(read_result(args.old), read_result(args.new), threshold, complete=args.complete)
    show_comparison(comparison, threshold)
    return EXIT_FAILED if comparison.worse else 0


def run(args: argparse.Namespace) -> int:
    from animdetail_trt.bench.scenarios import SUITES, choose
    from animdetail_trt.bench.tables import show_result

    suite = choose(SUITES[args.suite], args.scenario)
    _check(args)
    report = _measure(args, suite)
    show_result(report.document)
    written = args.output is None or _write_all(args.output, report)
    for failure in report.document["failures"]:
        print(f"failed: {failure['scenario']} {failure['backend']}: {failure['reason']}", file=sys.stderr)
    measured = any(scenario["results"] for scenario in report.document["scenarios"])
    if not measured:
        print("failed: nothing was measured; what is absent or left out is listed above", file=sys.stderr)
    return EXIT_FAILED if report.document["failures"] or not measured or not written else 0


def _check(args: argparse.Namespace) -> None:
    """All that can be wrong, before minutes are spent."""
    from animdetail_trt.bench.results import HTML_NAME, JSON_NAME, PARTIAL_NAME
    from animdetail_trt.cli.paths import check_kinds
    from animdetail_trt.media.staging import check_writable

    if (args.checkpoint is None) != (args.motion_module is None):
        raise InputError("--checkpoint and --motion-module go together: the scenarios run a motion module")
    for path in (args.checkpoint, args.motion_module):
        if path is not None and not path.exists():
            raise InputError(f"{path} does not exist. Check the path")
    check_kinds(args)
    if args.output is not None:
        _make_folder(args.output)
        for name in (JSON_NAME, HTML_NAME, PARTIAL_NAME):
            check_writable(args.output / name)


def _make_folder(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"cannot make the folder {folder}: {error.strerror}. Choose another --output") from error


def _measure(args: argparse.Namespace, suite: Suite) -> Report:
    import tempfile
    import time

    import torch

    from animdetail_trt import ops
    from animdetail_trt.bench.results import PARTIAL_NAME, write_json
    from animdetail_trt.bench.run import Run
    from animdetail_trt.bench.ways import Ways
    from animdetail_trt.cli.progress import open_display

    started = time.monotonic()
    torch.set_num_threads(args.threads or suite.threads or torch.get_num_threads())
    ops.set_num_threads(torch.get_num_threads())
    torch.manual_seed(0)

    def keep(report: Report) -> None:
        if args.output is not None:
            write_json(args.output / PARTIAL_NAME, report.document)

    with open_display(quiet=args.quiet) as display, tempfile.TemporaryDirectory(prefix="animdetail-bench-") as scratch:
        with display.phase("model files"):
            ways = Ways(_models(args, suite, Path(scratch)), frozenset(args.backend))
        measuring = Run(suite, ways, _flags(args), args.minutes or suite.minutes, started)
        try:
            with display.steps("measuring") as step:
                return measuring.all(step, _warning_once(keep, display.note))
        except BaseException:
            try:
                keep(measuring.report)
                if args.output is not None and measuring.report.document["scenarios"]:
                    display.note(f"what was measured so far: {args.output / PARTIAL_NAME}")
            except (AnimDetailError, OSError) as error:  # which must not take the place of why it was stopped
                display.note(f"what was measured so far is lost: {error}")
            raise


def _warning_once(keep: Callable[[Report], None], note: Callable[[str], None]) -> Callable[[Report], None]:
    """``keep`` that does not end the measuring where the disk is full, say: the table is still to come."""
    warned = False

    def kept(report: Report) -> None:
        nonlocal warned
        try:
            keep(report)
        except (AnimDetailError, OSError) as error:
            if not warned:
                note(f"measuring goes on, but what was measured so far is not kept: {error}")
            warned = True

    return kept


def _flags(args: argparse.Namespace) -> dict[str, Any]:
    hidden = {"run", "command_line", "quiet", "output"}
    return {
        key: str(value) if isinstance(value, Path) else value for key, value in vars(args).items() if key not in hidden
    }


def _models(args: argparse.Namespace, suite: Suite, scratch: Path) -> Any:
    from animdetail_trt.backends.select import choose_device, choose_dtype, choose_vae_dtype
    from animdetail_trt.bench.ways import Models
    from animdetail_trt.bench.weights import ModelPaths, write_models
    from animdetail_trt.trt.system import default_folder

    device = choose_device(args.device)
    unet = choose_dtype(args.dtype, device)
    dtype, vae_dtype = (str(one).removeprefix("torch.") for one in (unet, choose_vae_dtype(args.vae_dtype, unet)))
    engines = args.engine_dir or default_folder()
    paths = ModelPaths(args.checkpoint, args.motion_module)
    if args.checkpoint is None:
        paths = write_models(args.weights_dir or default_folder().parent / "bench", suite.model)
    return Models(paths.checkpoint, paths.motion_module, device, dtype, vae_dtype, engines, scratch)


def _write_all(folder: Path, report: Report) -> bool:
    """Whether all of it could be written. An HTML report that lies there already goes where there is no new one."""
    from animdetail_trt.bench.html import write_html
    from animdetail_trt.bench.results import HTML_NAME, JSON_NAME, PARTIAL_NAME, write_json
    from animdetail_trt.errors import UnavailableError

    try:
        write_json(folder / JSON_NAME, report.document)
        (folder / PARTIAL_NAME).unlink(missing_ok=True)
        print(f"written: {folder / JSON_NAME}")
        (folder / HTML_NAME).unlink(missing_ok=True)
        write_html(folder / HTML_NAME, report)
        print(f"written: {folder / HTML_NAME}")
    except UnavailableError as error:
        print(f"no HTML report: {error}", file=sys.stderr)
    except (AnimDetailError, OSError) as error:
        print(f"failed: {error}", file=sys.stderr)
        return False
    return True
