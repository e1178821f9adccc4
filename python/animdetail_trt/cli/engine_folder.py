"""The engine folder as the ``engines`` commands see it: every engine that has a sidecar, readable or not."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console

from animdetail_trt.errors import InputError
from animdetail_trt.trt.layout import Layout
from animdetail_trt.trt.sidecar import Entry, NewerError, UnreadableError, read_sidecar
from animdetail_trt.trt.store import Store
from animdetail_trt.trt.system import default_folder, refusals

BUILD_COMMAND = "animdetail-trt build-engines --checkpoint FILE"

_PIPE_WIDTH = 200  # where there is no terminal to fit, rows stay whole
_MOST_LISTED = 10


@dataclass(frozen=True)
class EngineFolder:
    """By name: the entries, one of whose files may be missing, and why a sidecar gives none."""

    store: Store
    entries: dict[str, Entry]
    unreadable: dict[str, str]
    newer: dict[str, str]
    """Of a later version of this package: not ours to judge."""

    @property
    def names(self) -> list[str]:
        return sorted([*self.entries, *self.unreadable])

    def choose(self, wanted: str) -> str:
        """The one engine whose name, or digest, begins so. InputError, which lists candidates: none or several do."""
        start = wanted.lower()
        matches = [name for name in self.names if name.startswith(start) or name.rsplit("-", 1)[1].startswith(start)]
        if len(matches) == 1:
            return matches[0]
        if matches:
            raise InputError(f"{wanted!r} may be {_listed(matches)}. Write more of the one that you mean")
        place = self.store.folder
        if not self.names:
            raise InputError(f"there is no engine {wanted!r}: {place} holds none. Build some: {BUILD_COMMAND}")
        raise InputError(f"there is no engine {wanted!r} in {place}. Choose {_listed(self.names)}")

    def note_what_is_left_out(self) -> None:
        """On stderr: that there is nothing, or that something was passed over."""
        if not self.names and not self.newer:
            note(f"no engines in {self.store.folder}. Build some: {BUILD_COMMAND}")
        for name, why in self.newer.items():
            note(f"{name} is passed over: {why}")


def open_folder(engine_dir: Path | None) -> EngineFolder:
    """InputError: the named one does not exist; by default it may not yet. EngineError: it cannot be read."""
    if engine_dir is not None and not engine_dir.is_dir():
        why = "is no folder" if engine_dir.exists() else "does not exist"
        raise InputError(f"--engine-dir {engine_dir} {why}. Check the path, or build engines there: {BUILD_COMMAND}")
    store = Store(default_folder() if engine_dir is None else engine_dir)
    found = EngineFolder(store, {}, {}, {})
    layout = Layout(store.folder)
    with refusals(store.folder):
        names = layout.names()
    for name in names:
        try:
            found.entries[name] = read_sidecar(layout.sidecar(name))
        except FileNotFoundError:  # a build at work, or what is left of one
            continue
        except NewerError as error:
            found.newer[name] = str(error)
        except UnreadableError as error:
            found.unreadable[name] = str(error)
        except OSError as error:
            found.unreadable[name] = f"{name}.json cannot be read: {error.strerror or error}"
    return found


def open_console() -> Console:
    """stdout, for tables."""
    fixed = not sys.stdout.isatty() and "COLUMNS" not in os.environ
    return Console(width=_PIPE_WIDTH if fixed else None, highlight=False)


def note(text: str) -> None:
    print(text, file=sys.stderr)


def _listed(names: Sequence[str]) -> str:
    shown = list(names[:_MOST_LISTED])
    if len(names) > _MOST_LISTED:
        shown.append(f"{len(names) - _MOST_LISTED} more")
    return " or ".join(filter(None, (", ".join(shown[:-1]), shown[-1])))
