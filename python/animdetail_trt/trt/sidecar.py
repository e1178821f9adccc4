"""The JSON beside an engine: what it is, in words, and how its files look when they are whole."""

from __future__ import annotations

import json
import mmap
import os
import re
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

from animdetail_trt.checks import is_whole
from animdetail_trt.trt.digests import is_settled, sha256_of, stamp_of
from animdetail_trt.trt.identity import Component, Identity, Precision
from animdetail_trt.trt.profile import Profile

FORMAT = 1
"""Of the sidecars written here. One with a larger number is not read, and not touched."""

NAME = re.compile(rf"(?:{'|'.join(get_args(Component))})-(?:{'|'.join(get_args(Precision))})-[0-9a-f]{{16}}")
"""An engine's name. The files NAME.* are its own; all others are none of our business."""


class UnreadableError(Exception):
    """A sidecar that says nothing; the message says why."""


class NewerError(UnreadableError):
    """A sidecar of a later version of this package."""


class DamagedError(Exception):
    """A file is not what its sidecar says; the message says how."""


@dataclass(frozen=True)
class Part:
    """One file of an engine as it was when it was built: ``size`` in bytes, SHA-256."""

    path: Path
    size: int
    sha256: str

    @classmethod
    def of(cls, path: Path) -> Part:
        with path.open("rb", buffering=0) as file:
            return cls(path, os.fstat(file.fileno()).st_size, sha256_of(file))

    def mapped(self, *, anew: bool = False) -> mmap.mmap:
        """Its bytes, checked and in no memory of ours. DamagedError: gone or changed. OSError: it cannot be read.

        anew: read all of it even where this process has, and its size and times are still the same
        """
        try:
            with self.path.open("rb", buffering=0) as file:
                stat, now = os.fstat(file.fileno()), time.time_ns()
                if stat.st_size != self.size:
                    raise DamagedError(f"{self.path.name} has {stat.st_size:,} bytes, it was built with {self.size:,}")
                known = not anew and _whole.get(self) == stamp_of(stat)
                # Read, not looked at through the map, where a bad sector is a signal that ends the process. Of a file
                # that was read whole before and looks the same since, that risk is taken.
                if not known and sha256_of(file) != self.sha256:
                    _whole.pop(self, None)
                    raise DamagedError(f"the bytes of {self.path.name} have changed (its SHA-256 is another)")
                if is_settled(stat, now):
                    _whole[self] = stamp_of(stat)
                return mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        except FileNotFoundError:
            raise DamagedError(f"{self.path.name} is missing") from None


_whole: dict[Part, list[int]] = {}
"""What this process has read and found whole, and how it looked then: an engine of gigabytes is loaded many times."""


@dataclass(frozen=True)
class Entry:
    """An engine in the store: the plan and its companions (ONNX has its weights in a file of their own)."""

    identity: Identity
    sidecar: Path
    parts: tuple[Part, ...]
    """The plan first."""
    about: dict[str, Any]
    """What the builder wanted to have said."""

    @property
    def name(self) -> str:
        return self.identity.name

    @property
    def profiles(self) -> Sequence[Profile]:
        return self.identity.profiles

    @property
    def plan(self) -> Path:
        return self.parts[0].path

    @property
    def sha256(self) -> str:
        """Of the plan."""
        return self.parts[0].sha256

    @property
    def size(self) -> int:
        """Bytes of all its files."""
        return sum(part.size for part in self.parts)

    @property
    def command(self) -> str:
        """What builds it again: ``about["command"]``, which the builder knows."""
        return str(self.about.get("command", "animdetail-trt build-engines, with the same files and options"))

    @property
    def is_complete(self) -> bool:
        """All files are there; what is in them is not looked at."""
        return all(part.path.is_file() for part in self.parts)

    def as_json(self) -> dict[str, Any]:
        return {
            "format": FORMAT,
            "identity": self.identity.as_json(),
            "files": [{"name": part.path.name, "bytes": part.size, "sha256": part.sha256} for part in self.parts],
            "about": self.about,
        }


def read_sidecar(path: Path) -> Entry:
    """Raises UnreadableError, or NewerError, for what is no sidecar of ours; OSError where there is none."""
    text = path.read_bytes()
    try:
        data = json.loads(text)
        if not is_whole(data["format"]):
            raise TypeError("its format is no number")
        if data["format"] > FORMAT:
            raise NewerError(f"it has format {data['format']}, this version reads up to {FORMAT}")
        entry = Entry(Identity.from_json(data["identity"]), path, _parts(path, data["files"]), data["about"])
        if entry.name != path.stem:
            raise ValueError(f"it describes {entry.name}")
        if not isinstance(entry.about, dict):
            raise TypeError("its about is no object")
    except (ValueError, TypeError, LookupError, AttributeError, RecursionError) as error:
        raise UnreadableError(f"{path.name} is damaged ({type(error).__name__}: {error})") from error
    return entry


def raw_sidecar(path: Path) -> dict[str, Any]:
    """What stands in a sidecar, or in the ruins of one; empty where there is none."""
    try:
        text = path.read_text(encoding="utf-8", errors="replace")
        data = json.loads(text)
    except FileNotFoundError:
        return {}
    except (ValueError, RecursionError):
        return {"sidecar": text}
    return data if isinstance(data, dict) else {"sidecar": text}


def _parts(sidecar: Path, files: Any) -> tuple[Part, ...]:
    parts = tuple(Part(sidecar.with_name(file["name"]), file["bytes"], file["sha256"]) for file in files)
    if not parts or not all(_is_sound(part, sidecar) for part in parts):
        raise ValueError("its files are not those of an engine")
    return parts


def _is_sound(part: Part, sidecar: Path) -> bool:
    named = part.path.stem == sidecar.stem and part.path != sidecar
    return named and is_whole(part.size) and part.size > 0 and isinstance(part.sha256, str)
