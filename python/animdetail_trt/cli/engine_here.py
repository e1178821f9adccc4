"""What keeps an engine from being used on this machine, now."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime
from functools import cached_property
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

from animdetail_trt.cli.engine_words import ONNXRUNTIME, built_at, models_of
from animdetail_trt.errors import CheckpointError, UnavailableError
from animdetail_trt.trt.digests import Digests
from animdetail_trt.trt.flavour import FLAVOUR_NAMES, Card, find_cards
from animdetail_trt.trt.identity import GRAPH_VERSION
from animdetail_trt.trt.optional import optional

if TYPE_CHECKING:
    from animdetail_trt.trt.identity import Target
    from animdetail_trt.trt.sidecar import Entry

_LIBRARIES = (*FLAVOUR_NAMES, ONNXRUNTIME)


class Here:
    """This machine's libraries, cards and model files, each asked once and only where an engine needs it."""

    def __init__(self, folder: Path) -> None:
        self._digests = Digests(folder)
        self._versions: dict[str, str | None] = {}

    def lacks(self, entry: Entry) -> list[str]:
        """Why this engine cannot be used here, in words; empty where it can."""
        reasons = [*self.other_version(entry), *self._missing_library(entry)]
        if not reasons and entry.identity.target.flavour != ONNXRUNTIME:
            reasons += self._missing_card(entry.identity.target)
        return reasons + list(self._other_models(entry))

    def library_version(self, flavour: str) -> str | None:
        """Of a flavour that can be imported, or of onnxruntime; None where it cannot."""
        if flavour not in _LIBRARIES:
            return None
        if flavour not in self._versions:
            try:
                self._versions[flavour] = str(optional(flavour, "run engines").__version__)
            except UnavailableError:
                self._versions[flavour] = None
        return self._versions[flavour]

    def other_version(self, entry: Entry) -> Iterator[str]:
        """Where the library here, or this package, has come to be another than what built it: it is never found."""
        target, graph = entry.identity.target, entry.identity.source.graph_version
        installed = self.library_version(target.flavour)
        if installed is not None and installed != target.version:
            yield f"it needs {target.flavour} {target.version}; {installed} is installed"
        if graph != GRAPH_VERSION:
            yield f"its graph has version {graph}; this animdetail-trt makes version {GRAPH_VERSION}"

    def missing_models(self, entry: Entry) -> list[Path]:
        """The files that it was made of and that no longer lie where they were."""
        return [path for _, path, _ in models_of(entry) if not path.is_file()]

    def _missing_library(self, entry: Entry) -> Iterator[str]:
        flavour = entry.identity.target.flavour
        if self.library_version(flavour) is None:
            broken = flavour in _LIBRARIES and find_spec(flavour) is not None
            yield f"{flavour} {'cannot be imported (see: animdetail-trt doctor)' if broken else 'is not installed'}"

    def _missing_card(self, target: Target) -> Iterator[str]:
        cards, reason = self._cards
        if not cards:
            yield f"no GPU here ({reason})"
        elif target.compute_capability not in (there := sorted({card.capability for card in cards})):
            yield f"no GPU of compute capability {target.compute_capability} here; there is {', '.join(there)}"
        elif target.flavour == "tensorrt" and not target.card:
            yield "it is for no one model of GPU: build it again"
        elif target.card and target.card not in (names := sorted({card.name for card in cards})):
            yield f"no {target.card} here; there is {', '.join(names)}"

    def _other_models(self, entry: Entry) -> Iterator[str]:
        for _, path, digest in models_of(entry):
            try:
                known = self._known_digest(path)
                changed = known != digest if known else _written(path) > built_at(entry)
            except (OSError, CheckpointError):
                yield f"{path} {'cannot be read' if path.exists() else 'is gone'}"
                continue
            if changed:
                yield f"{path} has changed since"

    def _known_digest(self, path: Path) -> str | None:
        """A file's SHA-256 where it is remembered; it may be gigabytes, and is not read through for a list."""

        def stop(done: int, size: int) -> None:
            raise _NotKnownError

        try:
            return self._digests.of(path, stop)
        except _NotKnownError:
            return None

    @cached_property
    def _cards(self) -> tuple[list[Card], str]:
        return find_cards()


class _NotKnownError(Exception):
    pass


def _written(path: Path) -> datetime:
    return datetime.fromtimestamp(path.stat().st_mtime, UTC)
