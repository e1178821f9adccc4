"""The plots of the report, as SVG to be put into a page: matplotlib, which the extra ``bench`` brings."""

from __future__ import annotations

import importlib
import io
import re
from collections.abc import Mapping, Sequence
from typing import Any

from animdetail_trt.bench.growth import AXES, QUADRATIC
from animdetail_trt.bench.ways import WAYS
from animdetail_trt.errors import UnavailableError
from animdetail_trt.extras import install_command

# Okabe and Ito's, which people who are colour-blind can tell apart.
_COLOURS = dict(
    zip(WAYS, ("#999999", "#f0e442", "#56b4e9", "#0072b2", "#cc79a7", "#e69f00", "#009e73", "#d55e00"), strict=True)
)
_STAGES = {"encode": "#56b4e9", "sample": "#0072b2", "decode": "#e69f00", "paste": "#009e73", "hook": "#cc79a7",
           "other": "#999999"}  # fmt: skip
_WIDTH_IN, _ROW_IN = 9.5, 0.2
Document = Mapping[str, Any]


def load_matplotlib() -> Any:
    """matplotlib.figure. Raises UnavailableError, which says what to install."""
    try:
        return importlib.import_module("matplotlib.figure")
    except ImportError as error:
        raise UnavailableError(
            f"the HTML report's plots need matplotlib ({error}). Run: {install_command('bench')}"
        ) from error


def _svg(figure: Any, salt: str) -> str:
    """Without the file's head and metadata, which name addresses; ids differ from those of other figures."""
    import matplotlib

    file = io.StringIO()
    with matplotlib.rc_context({"svg.hashsalt": salt, "svg.fonttype": "none", "font.family": "sans-serif"}):
        figure.savefig(file, format="svg", bbox_inches="tight")
    text = file.getvalue()
    text = re.sub(r"<metadata>.*?</metadata>", "", text[text.index("<svg") :], flags=re.DOTALL)
    return re.sub(r'\bid="((?:figure|axes|patch|line2d|text|matplotlib|xtick|ytick|LineCollection|legend)[^"]*)"',
                  rf'id="{salt}-\1"', text)  # fmt: skip


def _rows_figure(rows: int) -> tuple[Any, Any]:
    figure = load_matplotlib().Figure(figsize=(_WIDTH_IN, 1.0 + _ROW_IN * max(rows, 3)))
    axes = figure.add_subplot()
    axes.spines[["top", "right"]].set_visible(False)
    return figure, axes


def _label_rows(axes: Any, labels: Sequence[str]) -> None:
    axes.set_yticks(range(len(labels)), labels, fontsize=8)
    axes.invert_yaxis()
    axes.margins(y=0.01)


def ratio_bars(document: Document) -> str:
    """How many times faster than the base each way is; the line on a bar goes from its slowest round to its fastest."""
    rows = [
        (scenario, result)
        for scenario in document["scenarios"]
        for result in scenario["results"]
        if result["speedup"] is not None and result["backend"] != scenario["base"]
    ]
    figure, axes = _rows_figure(len(rows))
    for y, (_, result) in enumerate(rows):
        low, high = min(result["ratios_to_base"]), max(result["ratios_to_base"])
        speedup = result["speedup"]
        axes.barh(y, speedup - 1, left=1, color=_COLOURS[result["backend"]], height=0.75)
        axes.plot([low, high], [y, y], color="black", linewidth=1.2)
        axes.annotate(f" {speedup:.2f}x", (max(speedup, high, 1), y), va="center", fontsize=7)
    axes.set_xscale("log")
    axes.axvline(1, color="black", linewidth=0.8)
    _plain_log(axes.xaxis)
    axes.tick_params(axis="x", which="both", labelsize=8)
    axes.margins(x=0.12)
    axes.set_xlabel("times as fast as the base (the reference's way; torch eager where that is the same)")
    _label_rows(axes, [f"{scenario['name']}  {result['backend']}" for scenario, result in rows])
    return _svg(figure, "ratios")


def _plain_log(axis: Any) -> None:
    """Numbers without powers of ten on a logarithmic axis."""
    axis.set_major_formatter(_plain_number)
    axis.set_minor_formatter(_sparse_number)


def _plain_number(value: float, _position: Any = None) -> str:
    return f"{value:g}"


def _sparse_number(value: float, _position: Any = None) -> str:
    return f"{value:g}" if f"{value:.0e}"[0] in "25" else ""


def stage_bars(document: Document) -> str:
    """Where the time of segments and clips goes."""
    rows = [
        (scenario["name"], result)
        for scenario in document["scenarios"]
        for result in scenario["results"]
        if result["stages_ms"]
    ]
    figure, axes = _rows_figure(len(rows))
    for y, (_, result) in enumerate(rows):
        stages, left = result["stages_ms"], 0.0
        other_ms = max(0.0, result["median_ms"] - sum(stages.values()))
        total = sum(stages.values()) + other_ms
        for stage, ms in (*stages.items(), ("other", other_ms)):
            share = 100 * ms / total
            axes.barh(y, share, left=left, color=_STAGES.get(stage, _STAGES["other"]), height=0.75)
            if share > 6:
                axes.annotate(f"{ms:.0f}", (left + share / 2, y), ha="center", va="center", fontsize=7, color="white")
            left += share
    handles = [axes.barh(0, 0, color=colour, label=stage) for stage, colour in _STAGES.items() if stage != "hook"]
    figure.legend(handles=handles, ncols=len(handles), loc="upper center", frameon=False, fontsize=8)
    axes.set_xlim(0, 100)
    axes.set_xlabel("per cent of the whole; numbers are milliseconds")
    _label_rows(axes, [f"{name}  {result['backend']}" for name, result in rows])
    return _svg(figure, "stages")


def roofline(document: Document) -> str:
    """Operations a second over operations a byte, below the roofs measured in the same run: one of the copies, one of
    the products in the UNet's type and, where the VAE's is another, one of those."""
    rates = document["rates"]
    bandwidth, peaks = rates["copy_gb_per_s"], _product_roofs(rates)
    highest = max(peaks.values())
    figure = load_matplotlib().Figure(figsize=(_WIDTH_IN, 4.2))
    axes = figure.add_subplot()
    points = [
        (scenario, result)
        for scenario in document["scenarios"]
        if scenario["floor"]["flops"]
        for result in scenario["results"]
    ]
    intensities = [scenario["floor"]["flops"] / scenario["floor"]["bytes_moved"] for scenario, _ in points]
    low, high = min([*intensities, 1.0]) / 2, max([*intensities, highest / bandwidth]) * 3
    axes.plot([low, highest / bandwidth], [low * bandwidth, highest], color="black", linewidth=1)
    axes.annotate(f"copy {bandwidth:.0f} GB/s", (low, low * bandwidth), fontsize=8, rotation=0, va="bottom")
    for (whose, peak), style in zip(peaks.items(), ("-", "--"), strict=False):
        axes.plot([peak / bandwidth, high], [peak, peak], style, color="black", linewidth=1)
        told = f"{whose}: matrix product or convolution, the faster: {peak:.0f} GFLOP/s"
        axes.annotate(told, (high, peak), fontsize=8, ha="right", va="bottom")
    seen: set[str] = set()
    for (scenario, result), intensity in zip(points, intensities, strict=True):
        backend = result["backend"]
        reached = scenario["floor"]["flops"] / result["median_ms"] / 1e6
        label = None if backend in seen else backend
        seen.add(backend)
        marker = {"unet": "o", "vae_encode": "^", "vae_decode": "v"}.get(scenario["kind"], "s")
        axes.plot(intensity, reached, marker, color=_COLOURS[backend], label=label, markersize=6, alpha=0.75)
    axes.set(xscale="log", yscale="log", xlabel="operations per compulsory byte", ylabel="GFLOP/s reached")
    _plain_log(axes.yaxis)
    axes.tick_params(which="both", labelsize=8)
    axes.grid(alpha=0.25)
    if seen:
        axes.legend(fontsize=8, frameon=False, loc="lower right")
    axes.set_title("circle: UNet; triangles: VAE; square: steps, segments, clips", fontsize=8, loc="left")
    return _svg(figure, "roofline")


def _product_roofs(rates: Mapping[str, float]) -> dict[str, float]:
    """Whose operations -> GFLOP/s at most."""
    unet, vae = rates["unet_gflop_per_s"], rates["vae_gflop_per_s"]
    return {"UNet and VAE": unet} if unet == vae else {"UNet": unet, "VAE": vae}


def growth_curves(document: Document) -> str:
    """Time over frames, area and segments, with the exponents of the fits."""
    figure = load_matplotlib().Figure(figsize=(_WIDTH_IN, 3.4))
    for place, axis in enumerate(AXES):
        axes = figure.add_subplot(1, len(AXES), place + 1)
        lines = [one for one in document["growth"] if one["axis"] == axis and one["of"] == "time"]
        for one in lines:
            xs, ys = zip(*one["points"], strict=True)
            style = {"unet": "-", "clip": "--"}.get(one["kind"], ":")
            colour = "red" if one["flagged"] else _COLOURS[one["backend"]]
            label = f"{one['kind']} {one['backend']}: {one['exponent']:.2f}"
            axes.plot(xs, ys, style, marker="o", markersize=3, color=colour, label=label)
        axes.set(xscale="log", yscale="log", xlabel="pixels of a picture" if axis == "area" else axis)
        axes.xaxis.set_major_formatter(_plain_number)
        ticks = sorted({x for one in lines for x, _ in one["points"]})
        axes.set_xticks(ticks, [_plain_number(tick) for tick in ticks])
        axes.set_xticks([], minor=True)
        _plain_log(axes.yaxis)
        axes.tick_params(which="both", labelsize=7)
        axes.set_title(f"milliseconds over {axis}; exponents", fontsize=8)
        if lines:
            axes.legend(fontsize=6.5, frameon=False)
        else:
            axes.annotate("fewer than three sizes", (0.5, 0.5), xycoords="axes fraction", ha="center", fontsize=8)
    figure.text(0.01, -0.02, f"red: an exponent in frames above {QUADRATIC}", fontsize=8)
    figure.tight_layout()
    return _svg(figure, "growth")
