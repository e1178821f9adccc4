"""What TensorRT-RTX compiles on the user's card, kept on disk: the next process need not compile it again."""

from __future__ import annotations

import hashlib
import logging
import math
import os
import time
from collections.abc import Hashable
from contextlib import suppress
from pathlib import Path
from typing import Any

logger = logging.getLogger(__name__)

SAVE_AFTER_S = 20.0
"""How long after a new shape's first run the file is written: its kernels are compiled in the background meanwhile."""


class RuntimeCache:
    """The cache of an engine's runtime configurations, read from and written to a file, whose failures stop no run."""

    def __init__(self, path: Path, config: Any) -> None:
        self._path = path
        self._due = math.inf
        self._seen: set[Hashable] = set()
        self._cache = config.create_runtime_cache()
        self._kept = self._read()
        self.serve(config)

    def serve(self, config: Any) -> None:
        """What contexts of this configuration compile is found here, and kept here."""
        config.set_runtime_cache(self._cache)

    def expect_kernels(self, shapes: Hashable) -> None:
        """These shapes are run; where they are new, kernels for them are compiled."""
        if shapes in self._seen:
            return
        self._seen.add(shapes)
        self._due = min(self._due, time.monotonic() + SAVE_AFTER_S)

    def save_if_due(self) -> None:
        if time.monotonic() >= self._due:
            self.save()

    def save(self) -> None:
        """Write it where something was compiled since: whole or not at all. Then more may be on its way."""
        self._due = math.inf
        blob = self._cache.serialize() if self._seen else None
        if blob is None or self._kept == (digest := _digest(blob)):
            return
        self._kept, self._due = digest, time.monotonic() + SAVE_AFTER_S
        partial = self._path.with_name(f".{self._path.name}.{os.getpid()}")
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            partial.write_bytes(blob)
            partial.replace(self._path)
        except OSError as error:
            with suppress(OSError):
                partial.unlink()
            logger.warning("compiled kernels are not kept for the next run: %s", error)

    def _read(self) -> bytes | None:
        """What was there, as ``_digest`` has it."""
        try:
            blob = self._path.read_bytes()
        except OSError:
            return None
        if not self._cache.deserialize(blob):  # another card, driver or version, or damaged
            logger.info("%s was made elsewhere: its kernels are compiled again", self._path)
            with suppress(OSError):  # of a shared folder that may only be read
                self._path.unlink()
            return None
        return _digest(blob)


def _digest(blob: Any) -> bytes:
    return hashlib.sha256(memoryview(blob)).digest()
