"""``engines verify``: every byte as it was built, or what is wrong and the way out."""

from __future__ import annotations

from collections.abc import Sequence

from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, SpinnerColumn, TextColumn, TimeRemainingColumn

from animdetail_trt.cli.engine_folder import BUILD_COMMAND, EngineFolder
from animdetail_trt.cli.engine_words import told_bytes
from animdetail_trt.errors import EngineError
from animdetail_trt.trt.sidecar import DamagedError, Entry
from animdetail_trt.trt.store import Store

EXIT_DAMAGED = 1


def verify_engines(folder: EngineFolder, wanted: Sequence[str], *, set_aside: bool) -> int:
    """Those wanted, or all; returns the exit code. set_aside: move what has changed away, as loading it would."""
    names = list(dict.fromkeys(folder.choose(name) for name in wanted)) or folder.names
    changed, closed = _damage(folder.store, [folder.entries[name] for name in names if name in folder.entries])
    wrong = {name: folder.unreadable[name] for name in names if name in folder.unreadable} | changed | closed
    for name in names:
        if name in closed:
            print(f"{name}: not read: {closed[name]}\n  check its permissions, and the disk")
        elif name in wrong:
            print(f"{name}: damaged: {wrong[name]}")
            _print_way_out(folder, name, wrong[name], set_aside=set_aside and name in changed)
        else:
            print(f"{name}: whole, {told_bytes(folder.entries[name].size)}")
    if not wanted:
        folder.note_what_is_left_out()
    return EXIT_DAMAGED if wrong else 0


def _damage(store: Store, entries: Sequence[Entry]) -> tuple[dict[str, str], dict[str, str]]:
    """Name -> what is wrong, of those that have changed, and of those that cannot be read now."""
    # Nothing is printed while the bar runs: rich would send stdout's lines to stderr.
    console = Console(stderr=True)
    columns = (SpinnerColumn(), TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TimeRemainingColumn())
    changed, closed = {}, {}
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as progress:
        task = progress.add_task("", total=sum(entry.size for entry in entries))
        for entry in entries:
            progress.update(task, description=f"reading {entry.name}")
            try:
                store.check(entry)
            except DamagedError as error:
                changed[entry.name] = str(error)
            except OSError as error:
                closed[entry.name] = str(error)
            progress.advance(task, entry.size)
    return changed, closed


def _print_way_out(folder: EngineFolder, name: str, wrong: str, *, set_aside: bool) -> None:
    entry = folder.entries.get(name)
    if entry is None:
        print("  remove it: animdetail-trt engines prune")
    elif set_aside:
        try:
            print(f"  set aside in {folder.store.set_aside(entry, wrong)}")
        except EngineError as error:  # the others are to be told of all the same
            print(f"  not set aside: {error}")
    print(f"  build it again: {BUILD_COMMAND if entry is None else entry.command}")
