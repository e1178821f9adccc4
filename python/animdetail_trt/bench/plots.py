"""The plots of the report, as SVG to be put into a page: matplotlib, which the extra ``bench`` brings."""

from __future__ import annotations

import importlib
import io
import re
from collections.abc import Callable, Mapping, Sequence
from functools import wraps
from typing import Any

from animdetail_trt.bench.growth import AXES
from animdetail_trt.bench.ways import WAYS
from animdetail_trt.errors import UnavailableError
from animdetail_trt.extras import install_command

# Okabe and Ito's, which people who are colour-blind can tell apart.
_COLOURS = dict(
    zip(WAYS, ("#999999", "#f0e442", "#56b4e9", "#0072b2", "#cc79a7", "#e69f00", "#009e73", "#d55e00"), strict=True)
)
_STAGES = {"encode": "#56b4e9", "sample": "#0072b2", "decode": "#e69f00", "paste": "#009e73", "hook": "#cc79a7",
           "other": "#999999"}  # fmt: skip
_SHAPES = {"unet": ("o", "UNet"), "vae_encode": ("^", "VAE encoder"), "vae_decode": ("v", "VAE decoder")}
_OTHER_SHAPE = ("s", "steps, segments, clips")
_WIDTH_IN, _ROW_IN = 9.5, 0.2
_LOOK: dict[Any, Any] = {
    "font.family": "sans-serif", "font.size": 8, "axes.labelsize": 8.5, "axes.titlesize": 8.5,
    "axes.titlelocation": "left", "axes.spines.top": False, "axes.spines.right": False, "axes.edgecolor": "#888888",
    "axes.axisbelow": True, "grid.color": "#e4e4e4", "xtick.color": "#888888", "ytick.color": "#888888",
    "xtick.labelcolor": "black", "ytick.labelcolor": "black", "legend.frameon": False, "legend.fontsize": 8,
    "svg.fonttype": "none",
}  # fmt: skip
Document = Mapping[str, Any]


def load_matplotlib() -> Any:
    """matplotlib.figure. Raises UnavailableError, which says what to install."""
    try:
        return importlib.import_module("matplotlib.figure")
    except ImportError as error:
        raise UnavailableError(
            f"the HTML report's plots need matplotlib ({error}). Run: {install_command('bench')}"
        ) from error


def _drawn(name: str) -> Callable[[Callable[[Document], Any]], Callable[[Document], str]]:
    """Makes a function that draws a figure one that returns it as SVG; ``name`` keeps its ids apart from others'."""

    def decorate(draw: Callable[[Document], Any]) -> Callable[[Document], str]:
        @wraps(draw)
        def svg(document: Document) -> str:
            load_matplotlib()
            from matplotlib import rc_context

            file = io.StringIO()
            with rc_context({**_LOOK, "svg.hashsalt": name}):
                draw(document).savefig(file, format="svg", bbox_inches="tight")
            return _inline(file.getvalue(), name)

        return svg

    return decorate


def _inline(text: str, salt: str) -> str:
    """Without the file's head and metadata, which name addresses."""
    text = re.sub(r"<metadata>.*?</metadata>", "", text[text.index("<svg") :], flags=re.DOTALL)
    return re.sub(r'\bid="((?:figure|axes|patch|line2d|text|matplotlib|xtick|ytick|LineCollection|legend)[^"]*)"',
                  rf'id="{salt}-\1"', text)  # fmt: skip


def _rows_figure(labels: Sequence[str]) -> tuple[Any, Any]:
    """A figure of horizontal bars, the first at the top."""
    figure = load_matplotlib().Figure(figsize=(_WIDTH_IN, 0.8 + _ROW_IN * max(len(labels), 3)))
    axes = figure.add_subplot()
    axes.set_yticks(range(len(labels)), labels)
    axes.tick_params(axis="y", length=0)
    axes.set_ylim(max(len(labels), 3) - 0.4, -0.6)
    return figure, axes


@_drawn("ratios")
def ratio_bars(document: Document) -> Any:
    """How many times faster than the base each way is; the line on a bar goes from its slowest round to its fastest."""
    rows = [
        (scenario, result)
        for scenario in document["scenarios"]
        for result in scenario["results"]
        if result["speedup"] is not None and result["backend"] != scenario["base"]
    ]
    figure, axes = _rows_figure([f"{scenario['name']}  {result['backend']}" for scenario, result in rows])
    for y, (_, result) in enumerate(rows):
        low, high = min(result["ratios_to_base"]), max(result["ratios_to_base"])
        speedup = result["speedup"]
        axes.barh(y, speedup - 1, left=1, color=_COLOURS[result["backend"]], height=0.75)
        axes.plot([low, high], [y, y], color="black", linewidth=1)
        axes.annotate(
            f"{speedup:.2f}x", (max(speedup, high, 1), y), xytext=(4, 0), textcoords="offset points", va="center"
        )
    axes.set_xscale("log")
    axes.axvline(1, color="black", linewidth=0.8)
    axes.grid(axis="x", which="both")
    _plain_log(axes.xaxis)
    axes.margins(x=0.12)
    axes.set_xlabel("times as fast as the base (the reference's way; torch eager where that is the same)")
    return figure


def _plain_log(axis: Any) -> None:
    """Numbers without powers of ten on a logarithmic axis."""
    axis.set_major_formatter(_plain_number)
    axis.set_minor_formatter(_sparse_number)


def _plain_number(value: float, _position: Any = None) -> str:
    return f"{value:g}"


def _sparse_number(value: float, _position: Any = None) -> str:
    return f"{value:g}" if f"{value:.0e}"[0] in "25" else ""


@_drawn("stages")
def stage_bars(document: Document) -> Any:
    """Where the time of segments and clips goes."""
    rows = [
        (scenario["name"], result)
        for scenario in document["scenarios"]
        for result in scenario["results"]
        if result["stages_ms"]
    ]
    figure, axes = _rows_figure([f"{name}  {result['backend']}" for name, result in rows])
    for y, (_, result) in enumerate(rows):
        stages, left = result["stages_ms"], 0.0
        other_ms = max(0.0, result["median_ms"] - sum(stages.values()))
        total = sum(stages.values()) + other_ms
        for stage, ms in (*stages.items(), ("other", other_ms)):
            share = 100 * ms / total
            axes.barh(y, share, left=left, color=_STAGES.get(stage, _STAGES["other"]), height=0.75)
            if share > 6:
                axes.annotate(f"{ms:.0f}", (left + share / 2, y), ha="center", va="center", color="white")
            left += share
    handles = [axes.barh(0, 0, color=colour, label=stage) for stage, colour in _STAGES.items() if stage != "hook"]
    axes.legend(handles=handles, ncols=len(handles), loc="lower left", bbox_to_anchor=(0, 1), borderaxespad=0.2)
    axes.set_xlim(0, 100)
    axes.set_xlabel("per cent of the whole; numbers are milliseconds")
    return figure


@_drawn("roofline")
def roofline(document: Document) -> Any:
    """Operations a second over operations a byte, below the roofs measured in the same run: one of the copies, one of
    the products in the UNet's type and, where the VAE's is another, one of those."""
    bandwidth, peaks = document["rates"]["copy_gb_per_s"], _product_roofs(document["rates"])
    points = [
        (scenario, result, scenario["floor"]["flops"] / scenario["floor"]["bytes_moved"])
        for scenario in document["scenarios"]
        if scenario["floor"]["flops"]
        for result in scenario["results"]
    ]
    intensities = [intensity for _, _, intensity in points]
    figure = load_matplotlib().Figure(figsize=(_WIDTH_IN, 4.2))
    axes = figure.add_subplot()
    low, high = min([*intensities, 1.0]) / 2, max([*intensities, max(peaks.values()) / bandwidth]) * 3
    _draw_roofs(axes, bandwidth, peaks, (low, high))
    for scenario, result, intensity in points:
        reached = scenario["floor"]["flops"] / result["median_ms"] / 1e6
        marker, _ = _SHAPES.get(scenario["kind"], _OTHER_SHAPE)
        axes.plot(intensity, reached, marker, color=_COLOURS[result["backend"]], markersize=6, alpha=0.75)
    axes.set(xscale="log", yscale="log", xlabel="operations per compulsory byte", ylabel="GFLOP/s reached")
    _plain_log(axes.xaxis)
    _plain_log(axes.yaxis)
    axes.grid()
    _explain_points(axes, [result["backend"] for _, result, _ in points], [scenario["kind"] for scenario, *_ in points])
    return figure


def _draw_roofs(axes: Any, bandwidth: float, peaks: Mapping[str, float], ends: tuple[float, float]) -> None:
    (low, high), highest = ends, max(peaks.values())
    axes.plot([low, highest / bandwidth], [low * bandwidth, highest], color="black", linewidth=1)
    start = (low, low * bandwidth)
    axes.annotate(f"copy: {bandwidth:.0f} GB/s", start, xytext=(10, 0), textcoords="offset points", va="center")
    for (whose, peak), style in zip(peaks.items(), ("-", "--"), strict=False):
        axes.plot([peak / bandwidth, high], [peak, peak], style, color="black", linewidth=1)
        told = f"{whose}: matrix product or convolution, the faster: {peak:.0f} GFLOP/s"
        axes.annotate(told, (high, peak), xytext=(0, 2), textcoords="offset points", ha="right", va="bottom")


def _explain_points(axes: Any, backends: Sequence[str], kinds: Sequence[str]) -> None:
    """A legend of the colours that there are and of the shapes."""
    handles = [axes.plot([], [], "o", color=_COLOURS[name], label=name)[0] for name in _COLOURS if name in backends]
    shapes = dict.fromkeys(_SHAPES.get(kind, _OTHER_SHAPE) for kind in kinds)
    handles += [axes.plot([], [], marker, color="black", mfc="none", label=label)[0] for marker, label in shapes]
    if handles:
        axes.legend(handles=handles, ncols=len(handles), loc="lower left", bbox_to_anchor=(0, 1), borderaxespad=0.2)


def _product_roofs(rates: Mapping[str, float]) -> dict[str, float]:
    """Whose operations -> GFLOP/s at most."""
    unet, vae = rates["unet_gflop_per_s"], rates["vae_gflop_per_s"]
    return {"UNet and VAE": unet} if unet == vae else {"UNet": unet, "VAE": vae}


@_drawn("growth")
def growth_curves(document: Document) -> Any:
    """Time over frames, area and segments, with the exponents of the fits."""
    figure = load_matplotlib().Figure(figsize=(_WIDTH_IN, 3.6), layout="constrained")
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
        ticks = sorted({x for one in lines for x, _ in one["points"]})
        axes.set_xticks(ticks, [_plain_number(tick) for tick in ticks])
        axes.set_xticks([], minor=True)
        axes.grid(axis="y", which="both")
        _plain_log(axes.yaxis)
        axes.set_title(f"milliseconds over {axis}")
        if lines:
            axes.legend(loc="upper left", bbox_to_anchor=(-0.05, -0.16), title="exponents", alignment="left")
        else:
            axes.annotate("fewer than three sizes", (0.5, 0.5), xycoords="axes fraction", ha="center")
    return figure
