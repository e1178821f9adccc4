"""What the library logs: its error lines are the only words that say why a call of it failed."""

from __future__ import annotations

import functools
import logging
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any, TypeAlias

from animdetail_trt.errors import EngineError, FullDeviceError

Listener: TypeAlias = Callable[[Any, str], None]
"""Is given the severity (a member of ``trt.ILogger.Severity``) and the message."""

logger = logging.getLogger(__name__)

_LINES = 3
_LINE_CHARACTERS = 300


class EngineLog:
    """The logger of one library, ``handle`` being what its calls take. Get it from :func:`engine_log`."""

    def __init__(self, trt: Any) -> None:
        self.handle = _adapter(trt, self._hear)
        self._errors: deque[str] = deque(maxlen=_LINES)
        self._listeners: list[Listener] = []
        self._serious = (trt.ILogger.INTERNAL_ERROR, trt.ILogger.ERROR)

    @contextmanager
    def heard_by(self, listener: Listener) -> Iterator[None]:
        """Give ``listener`` every message meanwhile, verbose ones too."""
        self._listeners.append(listener)
        try:
            yield
        finally:
            self._listeners.remove(listener)

    def failure(self, what: str, remedy: str, error: Exception | None = None) -> EngineError:
        """The error to raise where a call failed: what failed, the last error lines, and the remedy."""
        lines = [*self._errors, *([] if error is None else [_short(str(error))])]
        self._errors.clear()
        kind = FullDeviceError if _tells_of_full_memory(lines) else EngineError
        return kind(f"{what}: {'; '.join(lines) or 'the library does not say why'}. {remedy}")

    def forget(self) -> None:
        """The error lines so far belong to no failure: a builder that passes over a kernel logs one too."""
        self._errors.clear()

    @property
    def has_errors(self) -> bool:
        """Whether there is an error line since the last failure, or since ``forget``."""
        return bool(self._errors)

    @property
    def tells_of_full_memory(self) -> bool:
        """Whether one of those lines does."""
        return _tells_of_full_memory(self._errors)

    def _hear(self, severity: Any, message: str) -> None:
        if severity in self._serious:
            self._errors.append(_short(message))
            logger.debug("%s", message)
        for listener in list(self._listeners):
            listener(severity, message)


@functools.cache
def engine_log(trt: Any) -> EngineLog:
    """The one log of a library: it keeps the first logger that a process gives it and ignores every other."""
    return EngineLog(trt)


def _tells_of_full_memory(lines: Iterable[str]) -> bool:
    """By TensorRT's words for cudaErrorMemoryAllocation and its own ErrorCode."""
    return any(words in line.lower() for line in lines for words in ("out of memory", "outofmemory"))


def _short(message: str) -> str:
    return " ".join(message.split())[:_LINE_CHARACTERS].rstrip(". ")


def _adapter(trt: Any, hear: Listener) -> Any:
    class Logger(trt.ILogger):  # type: ignore[misc]
        def __init__(self) -> None:
            trt.ILogger.__init__(self)

        def log(self, severity: Any, msg: str) -> None:
            hear(severity, msg)

    return Logger()
