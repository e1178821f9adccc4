"""Write beside, then rename: a file, or a new folder, is either the whole new one or what was there before.

Of a folder that is there already that is true of each file.
"""

from __future__ import annotations

import errno
import os
import secrets
import shutil
import stat
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING

from animdetail_trt.errors import MediaError

if TYPE_CHECKING:
    from torch import Tensor


@contextmanager
def staged_file(target: Path) -> Iterator[Path]:
    """Yield a path beside ``target`` to write to; rename it over ``target`` when the block ends well.

    On any exception, KeyboardInterrupt too, the partial file is removed and ``target`` stays as it was.
    A link is kept: the file that it leads to is replaced.
    Raises MediaError, with the remedy, where the disk is full or the folder cannot be written to.
    """
    partial = _partial_path(target)
    try:
        with _write_errors(target):
            yield partial
            partial.replace(target.resolve())
    finally:
        _remove(partial)


def write_weights(target: Path, tensors: Mapping[str, Tensor]) -> None:
    """Write a model's tensors to the safetensors file ``target``, without a second copy of them in memory.

    Raises MediaError as ``staged_file``: safetensors has an error of its own for what the system says.
    """
    from safetensors import SafetensorError
    from safetensors.torch import save_file

    with staged_file(target) as partial:
        partial.touch()
        mode = partial.stat().st_mode  # the user's choice; safetensors would keep other users from reading it
        try:
            save_file({key: tensor.contiguous() for key, tensor in tensors.items()}, partial)
        except SafetensorError as error:
            raise MediaError(
                f"cannot write a model's weights to {target.parent}: {error}. Free some space there"
            ) from error
        partial.chmod(mode)


@contextmanager
def staged_folder(target: Path) -> Iterator[Path]:
    """As ``staged_file`` for a folder of files: renamed to ``target`` when the block ends well.

    A ``target`` that is there already keeps its other files: the new ones, all whole by then, are moved into it one by
    one, and where that fails in the middle those before it stay.
    """
    partial = _partial_path(target)
    with _write_errors(target):
        partial.mkdir(parents=True)  # outside the try: one that was there already is not removed
        try:
            yield partial
            if not target.exists():
                partial.rename(target.resolve())
                return
            for path in sorted(partial.iterdir()):
                path.replace(target / path.name)
        finally:
            shutil.rmtree(partial, ignore_errors=True)


def check_writable(target: Path) -> None:
    """Raise MediaError unless the file ``target`` can be made or replaced now; leaves nothing behind."""
    with _write_errors(target):
        mode = _mode_of(target)
    if mode is not None and not stat.S_ISREG(mode):
        what = "a folder" if stat.S_ISDIR(mode) else "no ordinary file"
        raise MediaError(f"cannot write {target}: it is {what}. Name a file.")
    _check_parent(target)


@contextmanager
def staged_probe(target: Path) -> Iterator[Path]:
    """Yield a path beside ``target`` that is removed in every case: for trying out whether a write would do.

    Raises MediaError as ``staged_file``.
    """
    probe = _partial_path(target)
    try:
        with _write_errors(target):
            yield probe
    finally:
        _remove(probe)


def check_folder_free(target: Path, names: Sequence[str]) -> None:
    """Raise MediaError unless the folder ``target`` can be written and holds no file but ``names``, and what file
    managers leave in every folder.

    Old frames between new ones would be read as one clip later, and emptying a folder is not ours to do.
    """
    with _write_errors(target):
        mode = _mode_of(target)
    if mode is not None and not stat.S_ISDIR(mode):
        raise MediaError(f"{target} is a file; the frames need a folder. Choose another output.")
    if target.is_dir() and not os.access(target, os.W_OK):
        raise MediaError(f"the folder {target} cannot be written to. Choose another or change its permissions.")
    there = {path.name for path in target.iterdir() if not path.name.startswith(".")} if target.is_dir() else set()
    strangers = sorted(there - {"Thumbs.db", "desktop.ini"} - set(names))
    if strangers:
        raise MediaError(
            f"the output folder {target} already holds {strangers[0]!r}"
            + (f" and {len(strangers) - 1} more" if len(strangers) > 1 else "")
            + ", which this run would leave between its frames. Empty the folder or choose a new one."
        )
    _check_parent(target)


def _check_parent(target: Path) -> None:
    """Raise MediaError unless something can be made beside ``target``, or beside what it links to."""
    if str(target) == "-":
        raise MediaError("'-' is no name for an output. Name a file or a folder.")
    with staged_probe(target) as probe:
        if not probe.parent.is_dir():
            raise MediaError(f"cannot write {target}: the folder {probe.parent} does not exist. Make it first.")
        probe.touch(exist_ok=False)


def _remove(partial: Path) -> None:
    """As far as it can be: what is raised already, that the file system is read-only say, must not be replaced."""
    with suppress(OSError):
        partial.unlink()


def _mode_of(path: Path) -> int | None:
    """The kind of file, links followed; None where there is none."""
    try:
        return path.stat().st_mode
    except FileNotFoundError:
        return None


def _partial_path(target: Path) -> Path:
    # Beside the file that a link leads to, short whatever the name, and the suffix last: it chooses the container.
    # Random, not the process's number: containers that share a folder are all number 1.
    return target.resolve().parent / f".animdetail-{secrets.token_hex(8)}{target.suffix}"


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
