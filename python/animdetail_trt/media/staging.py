"""Write beside, then rename: an output is either the whole new one or what was there before."""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from animdetail_trt.errors import MediaError


@contextmanager
def staged_file(target: Path) -> Iterator[Path]:
    """Yield a path beside ``target`` to write to; rename it over ``target`` when the block ends well.

    On any exception, KeyboardInterrupt too, the partial file is removed and ``target`` stays as it was.
    Raises MediaError, with the remedy, where the disk is full or the folder cannot be written to.
    """
    partial = _partial_path(target)
    try:
        with _write_errors(target):
            yield partial
            partial.replace(target)
    finally:
        partial.unlink(missing_ok=True)


@contextmanager
def staged_folder(target: Path) -> Iterator[Path]:
    """As ``staged_file`` for a folder of files: renamed to ``target`` when the block ends well.

    A ``target`` that is there already keeps its other files: the new ones are moved into it one by one.
    """
    partial = _partial_path(target)
    try:
        with _write_errors(target):
            partial.mkdir(parents=True)
            yield partial
            if not target.exists():
                partial.rename(target)
                return
            for path in sorted(partial.iterdir()):
                path.replace(target / path.name)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def check_writable(target: Path) -> None:
    """Raise MediaError unless a file can be made beside ``target`` now; leaves nothing behind."""
    if not target.parent.is_dir():
        raise MediaError(f"cannot write {target}: the folder {target.parent} does not exist. Make it first.")
    with staged_probe(target) as probe, _write_errors(target):
        probe.touch(exist_ok=False)


@contextmanager
def staged_probe(target: Path) -> Iterator[Path]:
    """Yield a path beside ``target`` that is removed in every case: for trying out whether a write would do."""
    probe = _partial_path(target)
    try:
        yield probe
    finally:
        probe.unlink(missing_ok=True)


def check_folder_free(target: Path, names: Sequence[str]) -> None:
    """Raise MediaError if the folder ``target`` holds anything that writing ``names`` would not replace.

    Old frames between new ones would be read as one clip later, and emptying a folder is not ours to do.
    """
    if target.exists() and not target.is_dir():
        raise MediaError(f"{target} is a file; the frames need a folder. Choose another output.")
    if target.is_dir() and not os.access(target, os.W_OK):
        raise MediaError(f"the folder {target} cannot be written to. Choose another or change its permissions.")
    strangers = sorted({path.name for path in target.iterdir()} - set(names)) if target.is_dir() else []
    if strangers:
        raise MediaError(
            f"the output folder {target} already holds {strangers[0]!r}"
            + (f" and {len(strangers) - 1} more" if len(strangers) > 1 else "")
            + ", which this run would leave between its frames. Empty the folder or choose a new one."
        )


def _partial_path(target: Path) -> Path:
    # The suffix stays last: a video's container is chosen by it.
    return target.with_name(f".{target.stem}.partial-{os.getpid()}{target.suffix}")


@contextmanager
def _write_errors(target: Path) -> Iterator[None]:
    """Turn the OSErrors that a user can mend into MediaErrors."""
    try:
        yield
    except MediaError:
        raise
    except OSError as error:  # PyAV's errors about files are OSErrors too
        if error.errno == errno.ENOSPC:
            reason = "the disk is full. Free some space or write elsewhere"
        elif error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
            reason = f"{target.parent} cannot be written to. Choose another folder or change its permissions"
        else:
            reason = error.strerror or str(error)
        raise MediaError(f"cannot write {target}: {reason}.") from error
