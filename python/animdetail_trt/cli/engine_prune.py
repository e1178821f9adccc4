"""``engines prune``: which engines are to go, a question, and what that frees."""

from __future__ import annotations

import sys
from collections import defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime

from rich.table import Table
from rich.text import Text

from animdetail_trt.cli.engine_folder import EngineFolder, note, open_console
from animdetail_trt.cli.engine_here import Here
from animdetail_trt.cli.engine_words import built_at, told_bytes
from animdetail_trt.errors import InputError
from animdetail_trt.trt.identity import Identity, Target
from animdetail_trt.trt.leftovers import Leftover
from animdetail_trt.trt.sidecar import Entry


@dataclass(frozen=True)
class Criteria:
    """An engine that any of these speaks against is to go."""

    older_than_days: float | None = None
    keep_latest: int | None = None
    """Of one source, whatever the target and the profiles."""
    other_versions: bool = False
    missing_models: bool = False
    all: bool = False


def prune_engines(folder: EngineFolder, criteria: Criteria, *, dry_run: bool, yes: bool) -> int:
    if not (yes or dry_run or (sys.stdin and sys.stdin.isatty())):
        raise InputError("nobody can be asked here. Add --yes, or --dry-run to see what would be removed")
    chosen = choose_unwanted(folder.entries.values(), criteria, Here(folder.store.folder))

    def unwanted(entry: Entry) -> str | None:
        """Only what was shown is removed: one that another process has built anew meanwhile stays."""
        seen, reason = chosen.get(entry.name, (None, None))
        return reason if seen == entry else None

    planned = folder.store.prune(unwanted, dry_run=True)
    if not planned:
        note(f"nothing to remove in {folder.store.folder}")
        return 0
    open_console().print(_table(planned))
    if dry_run:
        print(f"would remove {_told(planned)}")
        return 0
    if not (yes or _agreed(f"Remove {_told(planned)}? [y/N] ")):
        note("nothing was removed")
        return 0
    print(f"removed {_told(folder.store.prune(unwanted))}")
    return 0


def choose_unwanted(entries: Iterable[Entry], criteria: Criteria, here: Here) -> dict[str, tuple[Entry, str]]:
    """Name -> the engine, and why it is to go."""
    entries = list(entries)
    surplus = _surplus(entries, criteria.keep_latest)
    chosen = {}
    for entry in entries:
        if reasons := [*surplus.get(entry.name, []), *_against(entry, criteria, here)]:
            chosen[entry.name] = entry, "; ".join(reasons)
    return chosen


def _against(entry: Entry, criteria: Criteria, here: Here) -> Iterator[str]:
    if criteria.all:
        yield "all are to go"
    days = (datetime.now(UTC) - built_at(entry)).total_seconds() / 86400
    if criteria.older_than_days is not None and days > criteria.older_than_days:
        yield f"built {days:.0f} days ago"
    if criteria.other_versions:
        yield from here.other_version(entry)
    if criteria.missing_models:
        yield from (f"{path} is gone" for path in here.missing_models(entry))


def _surplus(entries: Iterable[Entry], count: int | None) -> dict[str, list[str]]:
    """Name -> why, of all but the ``count`` newest of each source."""
    if count is None:
        return {}
    by_source: dict[str, list[Entry]] = defaultdict(list)
    for entry in sorted(entries, key=lambda entry: (built_at(entry), entry.name), reverse=True):
        by_source[Identity(entry.identity.source, Target("", "", ""), ()).digest].append(entry)
    reason = f"{count} newer of the same models {'is' if count == 1 else 'are'} kept"
    return {entry.name: [reason] for newest_first in by_source.values() for entry in newest_first[count:]}


def _table(leftovers: Iterable[Leftover]) -> Table:
    table = Table(box=None, show_header=False, padding=(0, 2, 0, 0))
    table.add_column(no_wrap=True)
    table.add_column(no_wrap=True, justify="right")
    table.add_column(overflow="fold")
    for leftover in leftovers:
        table.add_row(leftover.name, told_bytes(leftover.size), Text(leftover.reason))
    return table


def _told(leftovers: list[Leftover]) -> str:
    return f"{len(leftovers)}: {told_bytes(sum(leftover.size for leftover in leftovers))}"


def _agreed(question: str) -> bool:
    print(question, end="", file=sys.stderr, flush=True)
    return sys.stdin.readline().strip().lower() in ("y", "yes")
