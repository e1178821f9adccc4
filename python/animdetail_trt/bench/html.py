"""The report: one HTML file that needs nothing else, no network either."""

from __future__ import annotations

from html import escape
from pathlib import Path
from typing import Any

from animdetail_trt.bench import plots
from animdetail_trt.bench.growth import QUADRATIC
from animdetail_trt.bench.results import write_text
from animdetail_trt.bench.run import Report
from animdetail_trt.bench.tables import (
    QUALITY_HEADS,
    absent_lines,
    facts,
    quality_cells,
    speed_cells,
    speed_heads,
)
from animdetail_trt.bench.ways import WAYS

_STYLE = """
body { font: 15px/1.45 system-ui, sans-serif; color: #1a1a1a; max-width: 1080px; margin: 2em auto; padding: 0 1em }
h1 { font-size: 1.5em } h2 { font-size: 1.15em; margin-top: 2em }
table { border-collapse: collapse; font-size: 12.5px; width: 100% }
th, td { padding: 2px 7px; text-align: right; border-bottom: 1px solid #e4e4e4; font-variant-numeric: tabular-nums }
th:nth-child(-n+2), td:nth-child(-n+2) { text-align: left }
.facts { width: auto } .facts th { font-weight: 600; vertical-align: top; white-space: nowrap } .facts td { border: 0 }
.facts th { border: 0 } .flagged { color: #c00; font-weight: 600 }
td:nth-child(4) { white-space: nowrap } tr.first td { border-top: 2px solid #bbb }
svg { width: 100%; height: auto } figure { margin: 0 } figcaption { color: #555; font-size: 13px }
.pictures { display: grid; grid-template-columns: repeat(3, 1fr); gap: 8px; margin-bottom: 1.5em }
.pictures img { width: 100%; image-rendering: pixelated; border: 1px solid #ccc }
.fault { background: #fdd; padding: .5em 1em; border: 1px solid #c00 } .note { color: #555; font-size: 13px }
ul { font-size: 13px }
"""
_INCOMPLETE = "NOT COMPLETE: stopped, or scenarios were left out"


def write_html(path: Path, report: Report) -> None:
    """Raises UnavailableError where matplotlib is missing, MediaError where the file cannot be written."""
    plots.load_matplotlib()
    write_text(path, page(report))


def page(report: Report) -> str:
    document = report.document
    title = f"animdetail-trt bench: {document['suite']}"
    return "\n".join(
        [
            "<!doctype html>", '<html lang="en"><head><meta charset="utf-8">',
            f"<title>{escape(title)}</title><style>{_STYLE}</style></head><body>",
            f"<h1>{escape(title)}</h1>", _facts(document), _failures(document),
            *_section("Speed", plots.ratio_bars(document), "Bars: ratio of the medians. Black lines: from the slowest "
                      "of the single rounds to the fastest. Right of 1 is faster."),
            *_section("Figures", _table(document), "Speedup is against the reference's way, or torch eager where that "
                      "is the same. Of floor: the floor's time over the median. Quality is against float32 torch."),
            *_section("Stages", plots.stage_bars(document), "What the node's stages take, summed over the segments."),
            *_section("Distance to the limit", plots.roofline(document), "Roofs are measured in the same run. "
                      "What runs both the UNet and the VAE lies below a roof between theirs."),
            *_section("Growth", plots.growth_curves(document) + _growth(document), "k of a x^k, fitted to the time "
                      f"or memory of three sizes or more. Red: more than linear in frames, above {QUADRATIC}."),
            *(("<h2>Pictures</h2>", *map(_pictures, report.pictures)) if report.pictures else ()),
            "<h2>Absent</h2>", _list(absent_lines(document)),
            "</body></html>",
        ]
    )  # fmt: skip


def _section(title: str, body: str, caption: str) -> tuple[str, str]:
    return f"<h2>{escape(title)}</h2>", f"<figure>{body}<figcaption>{escape(caption)}</figcaption></figure>"


def _facts(document: dict[str, Any]) -> str:
    """What the figures hold for: a table of two columns."""
    seconds = {name: f"{ms / 1e3:.1f} s" for name, ms in document["load_ms"].items()}
    versions = {name: version for name, version in document["versions"].items() if version}
    rows = {
        **facts(document),
        "versions": ", ".join(f"{name} {version}" for name, version in versions.items()),
        "models loaded in": ", ".join(f"{name} {time}" for name, time in seconds.items()),
        "run": f"{document['started']}, {document['elapsed_s']:.0f} s",
        "": "" if document["complete"] else _INCOMPLETE,
    }
    cells = (f"<tr><th>{escape(name)}</th><td>{escape(told)}</td></tr>" for name, told in rows.items() if told)
    return f'<table class="facts">{"".join(cells)}</table>'


def _failures(document: dict[str, Any]) -> str:
    if not document["failures"]:
        return ""
    told = (f"{one['scenario']} {one['backend']}: {one['reason']}" for one in document["failures"])
    return '<p class="fault">Failed: ' + "<br>".join(map(escape, told)) + "</p>"


def _table(document: dict[str, Any]) -> str:
    rows = []
    for scenario in document["scenarios"]:
        for i, result in enumerate(scenario["results"]):
            cells = [
                scenario["name"] if i == 0 else "",
                result["backend"],
                *speed_cells(document, scenario, result),
                *quality_cells(document, scenario, result),
            ]
            columns = "".join(f"<td>{escape(cell)}</td>" for cell in cells)
            rows.append(f'<tr class="{"first" if i == 0 else ""}" title="{escape(scenario["what"])}">{columns}</tr>')
    names = ("scenario", "backend", *speed_heads(document), *QUALITY_HEADS)
    heads = "".join(f"<th>{escape(name)}</th>" for name in names)
    return f"<table><thead><tr>{heads}</tr></thead><tbody>{''.join(rows)}</tbody></table>"


def _growth(document: dict[str, Any]) -> str:
    """A row for each kind and backend, a column for each measure and axis that has an exponent."""
    fits = {(one["kind"], one["backend"], one["of"], one["axis"]): one for one in document["growth"]}
    columns = list(dict.fromkeys((of, axis) for _, _, of, axis in fits))
    if not columns:
        return ""
    heads = "".join(f"<th>{escape(f'{of}, {axis}')}</th>" for of, axis in columns)
    rows = []
    for kind, backend in dict.fromkeys((kind, backend) for kind, backend, _, _ in fits):
        cells = "".join(_exponent(fits.get((kind, backend, *column))) for column in columns)
        rows.append(f"<tr><td>{escape(kind)}</td><td>{escape(backend)}</td>{cells}</tr>")
    return f"<table><thead><tr><th>kind</th><th>backend</th>{heads}</tr></thead><tbody>{''.join(rows)}</tbody></table>"


def _exponent(fit: dict[str, Any] | None) -> str:
    if fit is None:
        return "<td>-</td>"
    return f'<td class="{"flagged" if fit["flagged"] else ""}">{fit["exponent"]:.2f}</td>'


def _pictures(pair: dict[str, Any]) -> str:
    title = f"{pair['scenario']}, frame {pair['frame']}"
    gain = f"times {pair['gain']:.3g}; the largest is {pair['largest']:.2e}" if pair["largest"] else "none"
    names = (pair["beside"], f"ours: {WAYS[pair['backend']]}", f"difference, {gain}")
    shown = "".join(
        f'<figure><img src="{uri}" alt="{escape(name)}"><figcaption>{escape(name)}</figcaption></figure>'
        for uri, name in zip(pair["images"], names, strict=True)
    )
    return f'<p class="note">{escape(title)}</p><div class="pictures">{shown}</div>'


def _list(lines: list[str]) -> str:
    return "<ul>" + "".join(f"<li>{escape(line)}</li>" for line in lines) + "</ul>"
