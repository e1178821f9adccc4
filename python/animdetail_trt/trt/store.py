"""Engines kept in a folder, so that what is listed there is whole, whoever builds, waits or dies.

NAME.plan          the engine, and its companions NAME.*
NAME.json          its sidecar, written last: without one there is no engine
.partial-NAME-*/   a build at work, or one that died
.locks/            held by whoever builds NAME, or moves or removes its files; empty files that stay
set-aside/NAME-1/  an engine found damaged, and in its sidecar why
digests.json       see digests.py

Readers take no lock: a plan does not change under its name, it appears whole and disappears.
"""

from __future__ import annotations

import mmap
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from animdetail_trt.errors import EngineError
from animdetail_trt.trt.identity import Identity, Source, Target
from animdetail_trt.trt.layout import Layout, remove
from animdetail_trt.trt.leftovers import Leftover, leftovers_of
from animdetail_trt.trt.sidecar import DamagedError, Entry, NewerError, Part, UnreadableError, raw_sidecar, read_sidecar
from animdetail_trt.trt.system import DISK_FULL, locked, locked_if_free, refusal, refusals, to_disk, write_json


@dataclass(frozen=True)
class Build:
    """A place to build an engine in: for this process alone, and gone after the ``with``."""

    identity: Identity
    scratch: Path
    """An empty folder on the disk of the store."""
    _layout: Layout

    def path(self, suffix: str) -> Path:
        """Where to write the engine's file with this suffix. It keeps its name: an ONNX file may name its weights."""
        return self.scratch / f"{self.identity.name}{suffix}"

    def commit(self, plan: Path, about: Mapping[str, Any], companions: Sequence[Path] = ()) -> Entry:
        """Make files written to ``path(...)`` the engine. ``about`` is for the sidecar; a Path in it becomes text.

        EngineError: a file is missing or empty, or the folder cannot take them; then nothing of them stays.
        """
        files = [plan, *companions]
        for file in files:
            if file != self.path(file.suffix):
                raise ValueError(f"{file} was not written to Build.path(...)")
            if not file.is_file() or not file.stat().st_size:
                raise EngineError(f"the build left no {file.name}, or an empty one. Build it again")
        with refusals(self._layout.folder):
            for file in files:
                to_disk(file)
            parts = tuple(Part.of(file) for file in files)
            sidecar = self.path(".json")
            write_json(sidecar, Entry(self.identity, sidecar, parts, dict(about)).as_json())
            return self._move_in(files, sidecar)

    def _move_in(self, files: Sequence[Path], sidecar: Path) -> Entry:
        folder = self._layout.folder
        try:
            for file in files:
                file.replace(folder / file.name)
            to_disk(folder)
            sidecar.replace(folder / sidecar.name)
            to_disk(folder)
        except BaseException:
            remove(self._layout.files(self.identity.name))
            raise
        return read_sidecar(folder / sidecar.name)


class Store:
    """The engines in a folder. It need not exist yet; any number of processes may use it at once."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder.expanduser().absolute()
        self._layout = Layout(self.folder)

    def entries(self) -> list[Entry]:
        """Every engine with a sidecar that can be read and all its files, by name. What is in them ``verify`` reads."""
        with refusals(self.folder):
            names = self._layout.names()
        return [entry for name in names if (entry := self._entry(name))]

    def find(self, source: Source, target: Target) -> list[Entry]:
        """The engines of this source for this target, whatever their profiles."""
        wanted = Identity(source, target, ()).digest
        return [entry for entry in self.entries() if replace(entry.identity, profiles=()).digest == wanted]

    def get(self, identity: Identity) -> Entry | None:
        """As ``entries``, of one."""
        return self._entry(identity.name)

    @contextmanager
    def building(self, identity: Identity, waiting: Callable[[], None] | None = None) -> Iterator[Build | Entry]:
        """The engine where it is there and whole, else a Build, the only one of it in all processes.

        Where another process is building it, ``waiting`` is called once, and that engine is waited for. A damaged
        engine is set aside first. EngineError: the folder cannot be used, its disk is full, or it holds this engine
        as a later version of this package wrote it.
        """
        entry = self.get(identity)
        if entry is not None and self.verify(entry) is None:
            yield entry
            return
        with ExitStack() as held:
            with refusals(self.folder):
                held.enter_context(locked(self._layout.lock(identity.name), waiting))
                entry = self._settle(identity.name)
                if entry is None:
                    scratch = held.enter_context(self._scratch(identity.name))
            if entry is None:
                with refusals(self.folder, only=DISK_FULL):
                    yield Build(identity, scratch, self._layout)
                return
        yield entry

    def read(self, entry: Entry) -> mmap.mmap:
        """The plan's bytes, mapped; all its files are checked first, those that this process knows by size and times.
        Close it when the engine is loaded.

        EngineError: a file is damaged (then the engine is set aside) or cannot be read.
        """
        plan, *companions = entry.parts
        try:
            for companion in companions:
                companion.mapped().close()
            return plan.mapped()
        except DamagedError as damage:
            raise EngineError(
                f"engine {entry.name} is damaged: {damage}. {self._try_set_aside(entry, str(damage))}. "
                f"Build it again: {entry.command}"
            ) from None
        except OSError as error:
            raise refusal(error, self.folder) from error

    def verify(self, entry: Entry) -> str | None:
        """What is wrong with its files, in words; None where every byte is as it was built."""
        try:
            self.check(entry)
        except (DamagedError, OSError) as error:
            return str(error)
        return None

    def check(self, entry: Entry) -> None:
        """Read every byte. DamagedError: a file is not what it was; OSError, in words: it cannot be read now."""
        for part in entry.parts:
            try:
                part.mapped(anew=True).close()
            except OSError as error:
                raise OSError(f"{part.path.name} cannot be read: {error.strerror or error}") from error

    def set_aside(self, entry: Entry, reason: str) -> Path:
        """Move an engine out of the way, the reason in its sidecar; returns the folder where it then lies.

        EngineError: another process is building, has rebuilt or has removed it, or it cannot be moved.
        """
        with refusals(self.folder), locked_if_free(self._layout.lock(entry.name)) as free:
            if not free:
                raise EngineError(f"engine {entry.name} is in the hands of another process, nothing was moved")
            if self._recorded(entry.name) != entry.parts:
                raise EngineError(f"engine {entry.name} was rebuilt or removed meanwhile, nothing was moved")
            return self._move_aside(entry.name, reason)

    def prune(
        self, unwanted: Callable[[Entry], str | None] = lambda _: None, *, dry_run: bool = False
    ) -> list[Leftover]:
        """Remove dead builds, files without a sidecar, damaged sidecars, all that was set aside, and every engine that
        ``unwanted`` has a reason against. Returns what was removed, or would be; what another process holds stays.
        """
        pruned = []
        with refusals(self.folder):
            for name in self._layout.names():
                with locked_if_free(self._layout.lock(name)) as free:
                    for leftover in leftovers_of(self._layout, name, unwanted) if free else ():
                        pruned.append(leftover)
                        if not dry_run:
                            remove(leftover.paths)
        return pruned

    def _entry(self, name: str) -> Entry | None:
        with suppress(UnreadableError, OSError):
            entry = read_sidecar(self._layout.sidecar(name))
            return entry if entry.is_complete else None
        return None

    def _recorded(self, name: str) -> tuple[Part, ...] | None:
        """What the sidecar has of the files now; they need not be there."""
        with suppress(UnreadableError, FileNotFoundError):
            return read_sidecar(self._layout.sidecar(name)).parts
        return None

    def _try_set_aside(self, entry: Entry, reason: str) -> str:
        try:
            return f"It was set aside in {self.set_aside(entry, reason)}"
        except EngineError as error:
            return f"It could not be set aside: {error}"

    # From here on: only with the lock of the name held.

    def _settle(self, name: str) -> Entry | None:
        """The engine where it is whole; else nothing of it is left in the way of a new one."""
        sidecar = self._layout.sidecar(name)
        try:
            entry = read_sidecar(sidecar)
            wrong = self.verify(entry)
        except FileNotFoundError:
            remove(self._layout.files(name))
            return None
        except NewerError as error:
            raise EngineError(
                f"{error}. Upgrade animdetail-trt, or keep engines elsewhere: --engine-dir DIR"
            ) from error
        except UnreadableError as error:
            wrong = str(error)
        if wrong is None:
            return entry
        self._move_aside(name, wrong)
        return None

    @contextmanager
    def _scratch(self, name: str) -> Iterator[Path]:
        remove(self._layout.partials(name))  # of dead builds: a live one would hold the lock
        scratch = Path(tempfile.mkdtemp(prefix=f".partial-{name}-", dir=self.folder))
        try:
            yield scratch
        finally:
            shutil.rmtree(scratch, ignore_errors=True)

    def _move_aside(self, name: str, reason: str) -> Path:
        sidecar, files = self._layout.sidecar(name), self._layout.files(name)
        place = self._layout.new_place_aside(name)
        try:
            about_it = {"reason": reason, "time": datetime.now(UTC).isoformat(timespec="seconds")}
            write_json(place / sidecar.name, raw_sidecar(sidecar) | {"set_aside": about_it})
            sidecar.unlink()  # from here on it is no engine
        except BaseException:
            shutil.rmtree(place, ignore_errors=True)
            raise
        for file in files:
            if file != sidecar:
                file.replace(place / file.name)
        return place
