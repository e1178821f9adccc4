"""``engines inspect``: what an engine was made of, its sizes, layers and memory. The sidecar knows it all."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

from rich.console import Console
from rich.table import Table
from rich.text import Text

from animdetail_trt.cli.engine_folder import EngineFolder, open_console
from animdetail_trt.cli.engine_here import Here
from animdetail_trt.cli.engine_words import (
    AXES,
    built_at,
    loras_of,
    models_of,
    told_bytes,
    told_range,
    told_sizes,
    told_target,
    told_title,
)
from animdetail_trt.errors import EngineError
from animdetail_trt.trt.sidecar import Entry

_BAR = 32
_MOST_NAMES = 6
_DIGEST = 16


def inspect_engine(folder: EngineFolder, wanted: str, chart: Path | None) -> int:
    """Print the report, and draw the chart if there is to be one."""
    name = folder.choose(wanted)
    if name in folder.unreadable:
        raise EngineError(f"{folder.unreadable[name]}. Remove it, then build it again: animdetail-trt engines prune")
    entry = folder.entries[name]
    if chart is not None:
        from animdetail_trt.cli.engine_chart import draw_chart, save_chart

        save_chart(chart, draw_chart(entry))
    print_report(open_console(), entry, Here(folder.store.folder).lacks(entry))
    return 0


def print_report(console: Console, entry: Entry, reasons: Sequence[str]) -> None:
    """reasons: why it cannot be used here."""
    console.print(Text(told_title(entry), "bold"), Text(str(entry.sidecar), "dim"), sep="\n", soft_wrap=True)
    about = entry.about
    _print_rows(console, "built", [
        ("for", f"{told_target(entry)}, {entry.identity.source.precision}"),
        ("when", f"{built_at(entry):%Y-%m-%d %H:%M}" + (f", in {about['build_s']:g} s" if "build_s" in about else "")),
        ("by", ", ".join(f"{name} {version}" for name, version in about.get("versions", {}).items())),
        *(("file", f"{part.path.name}, {told_bytes(part.size)}, SHA-256 {part.sha256[:_DIGEST]}")
          for part in entry.parts),
        ("usable here", f"no: {'; '.join(reasons)}" if reasons else "yes"),
    ])  # fmt: skip
    _print_rows(console, "made of", _made_of(entry))
    inputs = about.get("inputs", {})
    _print_rows(console, "inputs", [
        *((name, " x ".join(map(str, dims))) for name, dims in inputs.items()),
        ("gives", str(about.get("output", ""))),
    ])  # fmt: skip
    _print_heading(console, "covers")
    console.print("  any size" if told_sizes(entry) == ["any size"] else _sizes(entry))
    _print_rows(console, "memory", _memory(entry))
    _print_layers(console, entry)


def _made_of(entry: Entry) -> Iterable[tuple[str, str]]:
    strengths = {path: strength for path, _, strength in loras_of(entry)}
    for role, path, digest in models_of(entry):
        strength = f", strength {strengths[path]:g}" if path in strengths else ""
        yield role.replace("_", " "), f"{path}{strength}, SHA-256 {digest[:_DIGEST]}"
    for name, value in (entry.identity.source.settings or {}).items():
        yield name.replace("_", " "), {True: "yes", False: "no"}[value] if isinstance(value, bool) else f"{value:g}"
    graph = str(entry.about.get("graph_sha256", ""))[:_DIGEST]
    yield "graph", f"version {entry.identity.source.graph_version}" + (f", SHA-256 {graph}" if graph else "")


def _sizes(entry: Entry) -> Table:
    """A row for each axis, a column for each profile."""
    table = Table(box=None, padding=(0, 3, 0, 0), header_style="dim")
    for heading in ("  axis", "", *told_sizes(entry)):
        table.add_column(heading)
    for axis in filter(entry.profiles[0].axes.__contains__, AXES):
        table.add_row(f"  {axis}", AXES[axis], *(told_range(profile.axes[axis]) for profile in entry.profiles))
    return table


def _memory(entry: Entry) -> Iterable[tuple[str, str]]:
    weights, activations = entry.about.get("weights_bytes"), entry.about.get("activation_bytes", [])
    if weights is not None:
        yield "weights", told_bytes(weights)
    for sizes, count in zip(told_sizes(entry), activations, strict=False):
        yield "activations", f"{told_bytes(count)} at the most for {sizes}"


def _print_layers(console: Console, entry: Entry) -> None:
    layers = entry.about.get("layers")
    if layers is None:
        return
    kinds = layers["kinds"]
    most = max(kinds.values(), default=1)
    among = f" in {len(entry.profiles)} profiles" if len(entry.profiles) > 1 else ""
    _print_rows(console, f"{sum(kinds.values())} layers{among}", [
        (kind, f"{count:5}  {'█' * max(1, round(count / most * _BAR))}") for kind, count in kinds.items()
    ])  # fmt: skip
    alone = layers["unfused_softmax"]
    rows = [
        ("fused", f"{layers['fused_attention']} kernels"),
        ("not fused", f"{len(alone)} softmax{'' if len(alone) == 1 else 'es'}"),
    ]
    rows += [("", name) for name in alone[:_MOST_NAMES]]
    if len(alone) > _MOST_NAMES:
        rows.append(("", f"and {len(alone) - _MOST_NAMES} more, in {entry.sidecar.name}"))
    _print_rows(console, "attention", rows)


def _print_rows(console: Console, heading: str, rows: Iterable[tuple[str, str]]) -> None:
    table = Table(box=None, show_header=False, padding=(0, 2, 0, 0))
    table.add_column(no_wrap=True)
    table.add_column(overflow="fold")
    for name, told in rows:
        if told:
            table.add_row(Text(f"  {name}"), Text(told))
    if table.row_count:
        _print_heading(console, heading)
        console.print(table)


def _print_heading(console: Console, heading: str) -> None:
    console.print(Text(f"\n{heading}", "bold"))
