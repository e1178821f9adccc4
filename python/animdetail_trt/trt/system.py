"""The engine folder: where it lies, and how to write in it so that other processes, and crashes, see whole files."""

from __future__ import annotations

import errno
import json
import os
import sys
from collections.abc import Callable, Container, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from animdetail_trt.errors import EngineError

ENGINE_DIR = "ANIMDETAIL_ENGINE_DIR"
DISK_FULL = {errno.ENOSPC, errno.EDQUOT}
_NO_FOLDER = {errno.ENOTDIR, errno.EEXIST}


def default_folder() -> Path:
    """``$ANIMDETAIL_ENGINE_DIR``, else ``animdetail-trt/engines`` in the user's cache folder. EngineError: no home."""
    if chosen := os.environ.get(ENGINE_DIR):
        return Path(chosen).expanduser().absolute()
    try:
        return _cache_folder() / "animdetail-trt" / "engines"
    except RuntimeError as error:
        raise EngineError(f"there is no home folder to keep engines in ({error}). Set {ENGINE_DIR}") from error


def _cache_folder() -> Path:
    if sys.platform == "win32":
        return Path(os.environ.get("LOCALAPPDATA") or Path.home() / "AppData" / "Local")
    if sys.platform == "darwin":
        return Path.home() / "Library" / "Caches"
    cache = Path(os.environ.get("XDG_CACHE_HOME", ""))
    return cache if cache.is_absolute() else Path.home() / ".cache"  # the standard has relative paths ignored


def refusal(error: OSError, folder: Path) -> EngineError:
    """What the system refused, in words, with a way out."""
    elsewhere = f"choose another folder with --engine-dir DIR or {ENGINE_DIR}=DIR"
    if error.errno in DISK_FULL:
        return EngineError(
            f"the disk of the engine folder {folder} is full. "
            f"Make room (animdetail-trt engines prune removes what is not needed), or {elsewhere}"
        )
    if error.errno in _NO_FOLDER:
        return EngineError(
            f"{folder} cannot hold engines: it, or a part of its path, is a file. Rename that, or {elsewhere}"
        )
    path = error.filename or folder
    reason = error.strerror or str(error)
    return EngineError(
        f"the engine folder {folder} cannot be used: {reason} ({path}). Mend its permissions, or {elsewhere}"
    )


@contextmanager
def refusals(folder: Path, only: Container[int | None] | None = None) -> Iterator[None]:
    """OSErrors, or ``only`` those of certain numbers, leave as EngineErrors."""
    try:
        yield
    except OSError as error:
        if only is None or error.errno in only:
            raise refusal(error, folder) from error
        raise


@contextmanager
def locked(lock_file: Path, waiting: Callable[[], None] | None = None) -> Iterator[None]:
    """Hold a lock that the system frees when this process dies, however it dies.

    ``waiting`` is called once if another process has it. The file stays: removing one that somebody waits for would
    let two in.
    """
    lock_file.parent.mkdir(parents=True, exist_ok=True)
    lock = FileLock(lock_file, poll_interval=0.1)
    try:
        lock.acquire(timeout=0)
    except Timeout:
        if waiting is not None:
            waiting()
        lock.acquire()
    try:
        yield
    finally:
        lock.release()


@contextmanager
def locked_if_free(lock_file: Path) -> Iterator[bool]:
    """True while it is held; False, at once, where another has it."""
    lock_file.parent.mkdir(parents=True, exist_ok=True)
    lock = FileLock(lock_file)
    try:
        lock.acquire(timeout=0)
    except Timeout:
        yield False
        return
    try:
        yield True
    finally:
        lock.release()


def write_json(path: Path, data: Mapping[str, Any]) -> None:
    """To the disk before it returns. What JSON does not know (a Path) is written as its text."""
    path.write_text(json.dumps(data, indent=2, default=str) + "\n", encoding="utf-8")
    to_disk(path)


def to_disk(path: Path) -> None:
    """Have the system write out a file or, where it can, a folder's list of names."""
    if path.is_dir():
        if os.name == "nt":
            return
        number = os.open(path, os.O_RDONLY)
    else:
        number = os.open(path, os.O_RDWR | getattr(os, "O_BINARY", 0))
    try:
        os.fsync(number)
    finally:
        os.close(number)
