"""Which file lies where in the engine folder. Files that carry no engine's name are none of its business."""

from __future__ import annotations

import re
import shutil
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import count
from pathlib import Path

from animdetail_trt.trt.sidecar import NAME

_ENGINE_FILE = re.compile(rf"({NAME.pattern})\.\w+")
_PARTIAL = re.compile(rf"\.partial-({NAME.pattern})-\w+")
_SET_ASIDE = re.compile(rf"({NAME.pattern})-\d+")


@dataclass(frozen=True)
class Layout:
    folder: Path

    def sidecar(self, name: str) -> Path:
        return self.folder / f"{name}.json"

    def lock(self, name: str) -> Path:
        return self.folder / ".locks" / f"{name}.lock"

    def names(self) -> list[str]:
        """Of every engine that has left something here."""
        matches = [
            *(_ENGINE_FILE.fullmatch(path.name) or _PARTIAL.fullmatch(path.name) for path in _children(self.folder)),
            *(_SET_ASIDE.fullmatch(path.name) for path in _children(self.folder / "set-aside")),
        ]
        return sorted({match[1] for match in matches if match})

    def files(self, name: str) -> list[Path]:
        """All of an engine's files, the sidecar first: removed in this order, no rest is taken for an engine."""
        return sorted(_matching(self.folder, _ENGINE_FILE, name), key=lambda path: (path.suffix != ".json", path.name))

    def partials(self, name: str) -> list[Path]:
        """The folders of builds at work, or dead."""
        return list(_matching(self.folder, _PARTIAL, name))

    def set_aside(self, name: str) -> list[Path]:
        """The folders of engines that were set aside."""
        return list(_matching(self.folder / "set-aside", _SET_ASIDE, name))

    def new_place_aside(self, name: str) -> Path:
        taken = self.set_aside(name)
        place = next(path for i in count(1) if (path := self.folder / "set-aside" / f"{name}-{i}") not in taken)
        place.mkdir(parents=True)
        return place


def remove(paths: Iterable[Path]) -> None:
    for path in paths:
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)


def bytes_of(path: Path) -> int:
    """Of a file, or of all files in a folder."""
    files = path.rglob("*") if path.is_dir() else [path]
    return sum(file.stat().st_size for file in files if file.is_file())


def _children(folder: Path) -> list[Path]:
    return sorted(folder.iterdir()) if folder.exists() else []


def _matching(folder: Path, pattern: re.Pattern[str], name: str) -> Iterator[Path]:
    return (path for path in _children(folder) if (match := pattern.fullmatch(path.name)) and match[1] == name)
