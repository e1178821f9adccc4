"""The command line: ``animdetail-trt COMMAND``. Each command is a module with ``add_parser`` and ``run``.

Only argparse is imported here; a command imports what it needs when it runs, so that ``--help`` is quick.
"""

from __future__ import annotations

import argparse
import errno
import io
import os
import signal
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from types import FrameType

from animdetail_trt import __version__
from animdetail_trt.cli import bench, build_engines, comfyui, detail, doctor, engines
from animdetail_trt.cli.heap import keep_freed_memory
from animdetail_trt.errors import AnimDetailError

EXIT_ERROR = 2
EXIT_INTERRUPTED = 130  # 128 + SIGINT, as shells have it
EXIT_BROKEN_PIPE = 141  # 128 + SIGPIPE

_COMMANDS = (detail, build_engines, engines, comfyui, bench, doctor)


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit code.

    0 done, 1 measured and found wanting (bench), 2 an error that names its remedy on stderr, 128 + N stopped by signal
    N: Ctrl-C, a reader that left.
    """
    # onnxruntime, once imported, writes a device id and a database of its telemetry into the user's cache.
    os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="replace")  # a tick or a name that the terminal's encoding lacks
    keep_freed_memory()
    try:
        args = build_parser().parse_args(argv)
        args.command_line = ["animdetail-trt", *(sys.argv[1:] if argv is None else argv)]
        with _signals_as_exit():
            code: int = args.run(args)
        sys.stdout.flush()
        return code
    except BrokenPipeError:
        _drop_stdout()
        return EXIT_BROKEN_PIPE
    except OSError as error:
        if error.errno != errno.ENOSPC:
            raise
        _drop_stdout()
        print(f"error: {error.strerror}. Free some space, or write elsewhere", file=sys.stderr)
        return EXIT_ERROR
    except AnimDetailError as error:
        print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
        return EXIT_ERROR
    except KeyboardInterrupt:
        print("interrupted: nothing half-written was left behind", file=sys.stderr)
        return EXIT_INTERRUPTED


def _drop_stdout() -> None:
    """Python flushes it once more at the end, which must not fail again."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="animdetail-trt",
        description="Crop, enlarge, re-sample and paste back the segments of a clip: an AnimateDiff detailer.",
    )
    parser.add_argument("--version", action="version", version=f"animdetail-trt {__version__}")
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)
    for command in _COMMANDS:
        command.add_parser(commands)
    return parser


@contextmanager
def _signals_as_exit() -> Iterator[None]:
    """Let SIGTERM and SIGHUP unwind the stack as Ctrl-C does, so that partial files are removed."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def leave(number: int, _frame: FrameType | None) -> None:
        raise SystemExit(128 + number)

    stops = {signal.SIGTERM, getattr(signal, "SIGHUP", signal.SIGTERM)}  # Windows has no SIGHUP
    # nohup ignores SIGHUP, and so it stays.
    before = {number: signal.signal(number, leave) for number in stops if signal.getsignal(number) != signal.SIG_IGN}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
