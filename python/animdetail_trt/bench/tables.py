"""What the terminal shows."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from animdetail_trt.bench.compare import Comparison
from animdetail_trt.bench.growth import QUADRATIC
from animdetail_trt.bench.scenarios import KINDS, Suite

MIB = 2**20


def show_result(document: dict[str, Any], console: Console | None = None) -> None:
    console = console or open_console()
    for name, told in facts(document).items():
        if told:
            console.print(f"{name + ':':8}{escape(told)}", highlight=False, soft_wrap=True)
    if any(scenario["results"] for scenario in document["scenarios"]):
        console.print(_results(document, speed_heads(document), speed_cells))
        console.print(_results(document, QUALITY_HEADS, quality_cells))
    for scenario in document["scenarios"]:
        if ops := scenario.get("ops"):
            console.print(_ops(ops))
    for line in (*growth_lines(document), *absent_lines(document)):
        console.print(escape(line), highlight=False, soft_wrap=True)


def open_console() -> Console:
    """Of the terminal's width; wide enough for the tables where there is no terminal."""
    console = Console()
    return console if console.is_terminal else Console(width=100)


def facts(document: dict[str, Any]) -> dict[str, str]:
    """What was measured, on what, and what that reaches; name -> words."""
    machine, card, rates = document["machine"], document["card"], document["rates"] or {}
    units = {"copy_gb_per_s": "GB/s copied", "unet_gflop_per_s": "GFLOP/s (UNet's type)",
             "vae_gflop_per_s": "GFLOP/s (VAE's)"}  # fmt: skip
    return {
        "GPU": "" if card is None else f"{card['name']}, driver {card['driver']}",
        "CPU": f"{machine['cpu']}, {machine['usable_processors']} processors, {document['threads']} of torch's threads",
        "limits": ", ".join(f"{rates[name]:.0f} {unit}" for name, unit in units.items() if name in rates),
        "models": f"{document['model']}, {document['dtype']}",
        "commit": str(document["commit"]),
    }


Cells = Callable[[dict[str, Any], dict[str, Any], dict[str, Any]], list[str]]
"""Of a document, one of its scenarios and one of that one's results."""

_TIME_HEADS = ("median ms", "quartiles", "speedup", "of floor")
QUALITY_HEADS = ("PSNR dB", "SSIM", "max difference", "flicker", "added")
IS_TRUTH = "is the truth"


def speed_heads(document: dict[str, Any]) -> tuple[str, ...]:
    return (*_TIME_HEADS, *(f"{where}MiB" for where in _memories(document).values()))


def _memories(document: dict[str, Any]) -> dict[str, str]:
    """The fields that are shown, and where each is measured: the host's alone needs no name."""
    results = [result for scenario in document["scenarios"] for result in scenario["results"]]
    if any(result["peak_device_bytes"] is not None for result in results):
        return {"peak_host_bytes": "host ", "peak_device_bytes": "device "}
    return {"peak_host_bytes": ""}


def is_truth(document: dict[str, Any], scenario: dict[str, Any], result: dict[str, Any]) -> bool:
    """Whether it is what quality is measured against, so that it says nothing: the reference's way in pixels, torch in
    float32 on a CPU. On a GPU the truth is a run of its own, without TF32."""
    if scenario["kind"] == "pixels":
        return bool(result["backend"] == "reference")
    return bool(result["backend"] == "torch" and document["dtype"] == "float32" and document["card"] is None)


def _results(document: dict[str, Any], heads: tuple[str, ...], cells: Cells) -> Table:
    table = Table("scenario", "backend", box=SIMPLE_HEAD, pad_edge=False, padding=(0, 1, 0, 0))
    for head in heads:
        table.add_column(head, justify="right", no_wrap=True)
    for scenario in document["scenarios"]:
        for i, result in enumerate(scenario["results"]):
            name = scenario["name"] if i == 0 else ""
            table.add_row(name, result["backend"], *cells(document, scenario, result))
    return table


def speed_cells(document: dict[str, Any], scenario: dict[str, Any], result: dict[str, Any]) -> list[str]:
    low, high = result["quartiles_ms"]
    memories = [result[field] for field in _memories(document)]
    return [
        digits(result["median_ms"]),
        f"{digits(low)} - {digits(high)}",
        "-" if result["speedup"] is None else f"{result['speedup']:.2f}x",
        f"{result['fraction_of_floor']:.0%}",
        *("-" if memory is None else f"{memory / MIB:.0f}" for memory in memories),
    ]


def quality_cells(document: dict[str, Any], scenario: dict[str, Any], result: dict[str, Any]) -> list[str]:
    quality = result["quality"]
    if quality is None:
        return ["NaN"] * len(QUALITY_HEADS)
    known = quality["flicker"] is not None
    flicker = f"{quality['flicker']:.2f}" if known else "-"
    if is_truth(document, scenario, result):
        return [IS_TRUTH, "-", "-", flicker, "-"]
    return [
        "equal" if quality["psnr_db"] is None else f"{quality['psnr_db']:.1f}",
        f"{quality['ssim']:.5f}",
        f"{quality['max_difference']:.1e}",
        flicker,
        f"{quality['flicker_added']:.1e}" if known else "-",
    ]


def digits(value: float) -> str:
    """Three of them at least, and no exponent."""
    return f"{value:.0f}" if value >= 100 else f"{value:.3g}"


def _ops(ops: list[dict[str, Any]]) -> Table:
    table = Table("op, one segment", box=SIMPLE_HEAD, pad_edge=False)
    for head in ("MB moved", "floor ms", "median ms", "of floor"):
        table.add_column(head, justify="right")
    for op in ops:
        moved, floor = f"{op['bytes_moved'] / 1e6:.1f}", f"{op['floor_ms']:.2f}"
        table.add_row(op["name"], moved, floor, f"{op['median_ms']:.2f}", f"{op['fraction_of_floor']:.0%}")
    return table


def growth_lines(document: dict[str, Any]) -> list[str]:
    """An exponent for each kind, backend and axis; what grows faster than it should is said so."""
    lines = []
    for one in document["growth"]:
        warning = f"  MORE THAN LINEAR: above {QUADRATIC}" if one["flagged"] else ""
        lines.append(
            f"{one['kind']} {one['backend']}: {one['of']} grows with {one['axis']}^{one['exponent']:.2f}{warning}"
        )
    return lines


def absent_lines(document: dict[str, Any]) -> list[str]:
    """One line for each way that is absent and each reason, with the scenarios that it is absent from."""
    scenarios: dict[tuple[str, str], list[str]] = {}
    for scenario in document["scenarios"]:
        for one in scenario["absent"]:
            scenarios.setdefault((one["backend"], one["reason"]), []).append(scenario["name"])
    lines = []
    for (backend, reason), names in scenarios.items():
        where = names[0] if len(names) == 1 else f"{len(names)} scenarios"
        lines.append(f"absent: {backend} ({where}): {reason}")
    return lines + [f"left out: {one['scenario']}: {one['reason']}" for one in document["left_out"]]


def show_comparison(comparison: Comparison, threshold: float, console: Console | None = None) -> None:
    console = console or open_console()
    table = Table("scenario", "backend", box=SIMPLE_HEAD, pad_edge=False, padding=(0, 1, 0, 0))
    for head in ("A ms", "B ms", "B / A", "A speedup", "B", ""):
        table.add_column(head, justify="right", no_wrap=True)
    for pair in comparison.pairs:
        speedups = ("-" if one is None else f"{one:.2f}x" for one in (pair.old_speedup, pair.new_speedup))
        slower = "[red]slower[/]" if pair.counts else "slower"
        told = slower if pair.slower else "[green]faster[/]" if pair.faster else ""
        times = f"{pair.old_ms:.2f}", f"{pair.new_ms:.2f}", f"{pair.ratio:.2f}"
        table.add_row(pair.scenario, pair.backend, *times, *speedups, told)
    console.print(table)
    for note in comparison.notes:
        console.print(escape(f"note: {note}"), highlight=False, soft_wrap=True)
    for lost in comparison.lost:
        console.print(escape(f"lost: {lost}"), highlight=False, soft_wrap=True)
    slower_ones = sum(pair.slower and pair.counts for pair in comparison.pairs)
    console.print(
        f"{slower_ones} of {len(comparison.pairs)} are more than {threshold:g} times slower, beyond their rounds' "
        "spread: by the speedup, or by ms where there is none",
        highlight=False, soft_wrap=True,
    )  # fmt: skip


def list_suites(suites: Iterable[Suite], console: Console | None = None) -> None:
    console = console or open_console()
    for suite in suites:
        console.print(f"[bold]{suite.name}[/]: {suite.what} (models: {suite.model.name})", highlight=False)
        table = Table("scenario", "what", box=None, padding=(0, 2, 0, 2))
        for scenario in suite.scenarios:
            table.add_row(scenario.name, KINDS[scenario.kind])
        console.print(table)
