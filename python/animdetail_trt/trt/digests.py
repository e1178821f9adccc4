"""SHA-256 of files of several gigabytes, taken once for as long as a file stays as it is."""

from __future__ import annotations

import hashlib
import json
import os
import time
from collections.abc import Callable
from contextlib import suppress
from io import FileIO
from pathlib import Path
from typing import Any, TypeAlias

from animdetail_trt.errors import CheckpointError
from animdetail_trt.trt.system import locked, write_json

Progress: TypeAlias = Callable[[int, int], None]
"""Called with the bytes done and the bytes in all."""

_CHUNK_BYTES = 1 << 22
_SETTLED_NS = 2_000_000_000  # the coarsest clock of a file system in use (FAT's)


def sha256_of(file: FileIO, progress: Progress | None = None) -> str:
    """The SHA-256 of all of a file opened with ``buffering=0``: 64 hexadecimal digits."""
    digest, done, size = hashlib.sha256(), 0, os.fstat(file.fileno()).st_size
    buffer = memoryview(bytearray(_CHUNK_BYTES))
    while count := file.readinto(buffer):
        digest.update(buffer[:count])
        done += count
        if progress is not None:
            progress(done, size)
    return digest.hexdigest()


class Digests:
    """Remembers in ``folder/digests.json`` what it has hashed, by path, size and times.

    A digests.json that is damaged, or cannot be written, costs time and nothing else.
    """

    def __init__(self, folder: Path) -> None:
        self._file = folder / "digests.json"
        self._lock = folder / ".locks" / "digests.lock"
        self._known = self._read()

    def of(self, path: Path, progress: Progress | None = None) -> str:
        """The SHA-256 of a model file. CheckpointError: it cannot be read, or changes meanwhile."""
        try:
            path = path.resolve(strict=True)
            with path.open("rb", buffering=0) as file:
                stat, now = os.fstat(file.fileno()), time.time_ns()
                stamp = stamp_of(stat)
                if digest := self._recall(path, stamp):
                    return digest
                digest = sha256_of(file, progress)
                changed = stamp_of(os.fstat(file.fileno())) != stamp
        except OSError as error:
            reason = error.strerror or str(error)
            raise CheckpointError(f"cannot read {path}: {reason}. Check the path and its permissions") from error
        if changed:
            raise CheckpointError(f"{path} changed while it was read. Try again once it is written to the end")
        if is_settled(stat, now):
            self._remember(path, stamp, digest)
        return digest

    def _recall(self, path: Path, stamp: list[int]) -> str | None:
        record = self._known.get(str(path))
        if isinstance(record, dict) and record.get("stamp") == stamp and isinstance(record.get("sha256"), str):
            return str(record["sha256"])
        return None

    def _remember(self, path: Path, stamp: list[int], digest: str) -> None:
        self._known[str(path)] = {"stamp": stamp, "sha256": digest}
        partial = self._file.with_name(".digests.partial")
        with suppress(OSError), locked(self._lock):
            self._known = self._read() | self._known  # what other processes have learnt meanwhile stays
            write_json(partial, self._known)
            partial.replace(self._file)

    def _read(self) -> dict[str, Any]:
        try:
            known = json.loads(self._file.read_text(encoding="utf-8"))
        except (OSError, ValueError, RecursionError):
            return {}
        return known if isinstance(known, dict) else {}


def stamp_of(stat: os.stat_result) -> list[int]:
    """Changes when the content does; its last time moves even for a copy that keeps the date of its original."""
    return [stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns]


def is_settled(stat: os.stat_result, now_ns: int) -> bool:
    """A younger file may change again before its clock ticks: then its stamp stays."""
    return now_ns - stat.st_mtime_ns > _SETTLED_NS
