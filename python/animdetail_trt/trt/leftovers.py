"""What need not stay in the engine folder."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from animdetail_trt.trt.layout import Layout, bytes_of
from animdetail_trt.trt.sidecar import Entry, NewerError, UnreadableError, raw_sidecar, read_sidecar


@dataclass(frozen=True)
class Leftover:
    """What ``Store.prune`` removes of an engine, or would: files or folders, their bytes, and why."""

    name: str
    paths: tuple[Path, ...]
    size: int
    reason: str


def leftovers_of(layout: Layout, name: str, unwanted: Callable[[Entry], str | None]) -> list[Leftover]:
    """Of one engine, whose lock is held: dead builds, what was set aside, and its files where nothing keeps them."""
    found = [_leftover(name, [path], "a build that died") for path in layout.partials(name)]
    found += [_leftover(name, [place], f"set aside: {_why_aside(place, name)}") for place in layout.set_aside(name)]
    if files := layout.files(name):
        reason = _why_remove(layout.sidecar(name), unwanted)
        found += [_leftover(name, files, reason)] if reason else []
    return found


def _why_remove(sidecar: Path, unwanted: Callable[[Entry], str | None]) -> str | None:
    try:
        entry = read_sidecar(sidecar)
    except FileNotFoundError:
        return "it has no sidecar: its build died"
    except NewerError:
        return None
    except UnreadableError as error:
        return str(error)
    return unwanted(entry) if entry.is_complete else "one of its files is missing"


def _why_aside(place: Path, name: str) -> str:
    told = raw_sidecar(place / f"{name}.json").get("set_aside")
    return str(told.get("reason")) if isinstance(told, dict) else "its sidecar is damaged"


def _leftover(name: str, paths: Sequence[Path], reason: str) -> Leftover:
    return Leftover(name, tuple(paths), sum(map(bytes_of, paths)), reason)
