"""``engines list``: what was built, and whether it can be used here."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Sequence

from rich.table import Table
from rich.text import Text

from animdetail_trt.cli.engine_folder import EngineFolder, note, open_console
from animdetail_trt.cli.engine_here import Here
from animdetail_trt.cli.engine_words import as_record, built_at, told_bytes, told_loras, told_sizes, told_title
from animdetail_trt.trt.sidecar import Entry

_Engine = tuple[Entry, list[str]]
"""With why it cannot be used here."""


def list_engines(folder: EngineFolder, *, as_json: bool) -> int:
    here = Here(folder.store.folder)
    engines = [(entry, here.lacks(entry)) for entry in folder.entries.values() if entry.is_complete]
    if as_json:
        print(json.dumps([as_record(entry, reasons) for entry, reasons in engines], indent=2))
    elif engines:
        console = open_console()
        console.print(_table(engines), "")
        for reason, names in _by_reason(engines).items():
            console.print(Text(f"{reason}: {names}", "yellow"))
        total = told_bytes(sum(entry.size for entry, _ in engines))
        console.print(Text(f"{_count(len(engines))}, {total}, in {folder.store.folder}"), soft_wrap=True)
    if damaged := len(folder.names) - len(engines):
        note(f"{damaged} more cannot be read, or lack a file. Look closer: animdetail-trt engines verify")
    folder.note_what_is_left_out()
    return 0


def _table(engines: Sequence[_Engine]) -> Table:
    """Four columns of several lines each, so that it fits a terminal of 80."""
    table = Table(box=None, padding=(0, 2, 1, 0), pad_edge=False, header_style="dim")
    table.add_column("engine", overflow="fold", min_width=max(len(entry.name) for entry, _ in engines))
    for heading in ("built for", "size", "here"):
        table.add_column(heading)
    for entry, reasons in engines:
        target, precision = entry.identity.target, entry.identity.source.precision
        loras = [f"LoRA {told}" for told in told_loras(entry)]
        table.add_row(
            Text.assemble((told_title(entry), "bold"), "\n", (entry.name, "dim"), *(f"\n{lora}" for lora in loras)),
            Text(f"{target.flavour} {target.version}\n{target.compute_capability}, {precision}\n")
            + Text("\n".join(told_sizes(entry))),
            Text(f"{told_bytes(entry.size)}\n{built_at(entry):%Y-%m-%d\n%H:%M}"),
            Text("no", "yellow") if reasons else Text("yes", "green"),
        )
    return table


def _by_reason(engines: Sequence[_Engine]) -> dict[str, str]:
    """Why an engine cannot be used here -> which."""
    names: dict[str, list[str]] = defaultdict(list)
    for entry, reasons in engines:
        for reason in reasons:
            names[reason].append(entry.name)
    return {
        reason: ", ".join(those) if len(those) < len(engines) else f"all {len(those)}"
        for reason, those in names.items()
    }


def _count(engines: int) -> str:
    return f"{engines} engine{'' if engines == 1 else 's'}"
