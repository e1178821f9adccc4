"""The chart of ``engines inspect``: weights beside each profile's activations, and layers by kind."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from PIL import Image, ImageDraw, ImageFont

from animdetail_trt.cli.engine_words import built_at, told_bytes, told_sizes, told_target, told_title
from animdetail_trt.errors import EngineError
from animdetail_trt.media.staging import staged_file

if TYPE_CHECKING:
    from animdetail_trt.trt.sidecar import Entry

Rgb = tuple[int, int, int]

# The contact sheet's colours (media/preview.py, which would load torch).
_BACKGROUND: Rgb = (18, 20, 24)
_PANEL: Rgb = (29, 32, 38)
_TRACK: Rgb = (38, 42, 49)
_TEXT: Rgb = (233, 236, 240)
_DIM: Rgb = (148, 155, 166)
_WEIGHTS: Rgb = (76, 201, 240)
_ACTIVATIONS: Rgb = (249, 199, 79)
_FUSED: Rgb = (144, 190, 109)
_LAYERS: Rgb = (199, 125, 255)
_UNFUSED: Rgb = (249, 101, 110)

_WIDTH = 1200
_EDGE = 28
_INSET = 22
_TITLE_H = 78
_HEADING_H = 52
_ROW_H = 36
_BAR_H = 18
_LABEL_W = 230
_VALUE_W = 216
_GAP = 18
_KINDS = 10


class _Row(NamedTuple):
    """A label, stacked parts of a bar, and what stands at its end."""

    label: str
    parts: tuple[tuple[float, Rgb], ...]
    value: str


class _Panel(NamedTuple):
    heading: str
    legend: tuple[tuple[str, Rgb], ...]
    rows: tuple[_Row, ...]

    @property
    def height(self) -> int:
        return _HEADING_H + _ROW_H * len(self.rows) + _INSET


def draw_chart(entry: Entry) -> Image.Image:
    """EngineError: its sidecar says nothing of layers and memory, as a graph's for onnxruntime does not."""
    panels = [panel for panel in (_memory(entry), _attention(entry), _layers(entry)) if panel.rows]
    if not panels:
        raise EngineError(f"{entry.name} has no layers to draw: it is no TensorRT engine. Leave --chart out")
    height = _EDGE + _TITLE_H + sum(panel.height + _GAP for panel in panels) - _GAP + _EDGE
    chart = Image.new("RGB", (_WIDTH, height), _BACKGROUND)
    pen = _Pen(ImageDraw.Draw(chart))
    pen.text((_EDGE, _EDGE - 4), told_title(entry), 26, width=_WIDTH - 2 * _EDGE)
    pen.text((_EDGE, _EDGE + 36), _subtitle(entry), 15, _DIM, width=_WIDTH - 2 * _EDGE)
    top = _EDGE + _TITLE_H
    for panel in panels:
        pen.panel(top, panel)
        top += panel.height + _GAP
    return chart


def save_chart(path: Path, chart: Image.Image) -> None:
    """Write it whole or not at all."""
    with staged_file(path) as partial:
        chart.save(partial, format="PNG", optimize=True)


def _subtitle(entry: Entry) -> str:
    precision, plan = entry.identity.source.precision, told_bytes(entry.size)
    return f"{told_target(entry)}   {precision}   plan {plan}   built {built_at(entry):%Y-%m-%d}   {entry.name}"


def _memory(entry: Entry) -> _Panel:
    """On one scale: what an engine takes as long as it is loaded, and what its runs borrow."""
    weights, rows = entry.about.get("weights_bytes", 0), []
    for sizes, activations in zip(told_sizes(entry), entry.about.get("activation_bytes", []), strict=False):
        told = f"{told_bytes(weights)} + {told_bytes(activations)}"
        rows.append(_Row(sizes, ((weights, _WEIGHTS), (activations, _ACTIVATIONS)), told))
    legend = (("weights", _WEIGHTS), ("activations at the largest sizes", _ACTIVATIONS))
    return _Panel("GPU memory of each profile", legend, tuple(rows))


def _attention(entry: Entry) -> _Panel:
    layers = entry.about.get("layers")
    if not layers:
        return _Panel("", (), ())
    fused, alone = layers["fused_attention"], len(layers["unfused_softmax"])
    rows = [_Row("attention", ((fused, _FUSED), (alone, _UNFUSED)), f"{fused:,} fused, {alone:,} not")]
    legend = (("fused kernels", _FUSED), ("softmaxes that stand alone", _UNFUSED))
    return _Panel("Attention", legend, tuple(rows if fused + alone else ()))


def _layers(entry: Entry) -> _Panel:
    """The kinds with the most layers; the others together."""
    kinds: Mapping[str, int] = entry.about.get("layers", {}).get("kinds", {})
    counts = sorted(kinds.items(), key=lambda kind: -kind[1])
    rest = counts[_KINDS:]
    shown = counts[:_KINDS] + ([(f"{len(rest)} other kinds", sum(count for _, count in rest))] if rest else [])
    rows = tuple(_Row(kind, ((count, _LAYERS),), f"{count:,}") for kind, count in shown)
    among = f", in {len(entry.profiles)} profiles" if len(entry.profiles) > 1 else ""
    return _Panel(f"{sum(kinds.values()):,} layers by kind{among}", (), rows)


@dataclass(frozen=True)
class _Pen:
    draw: ImageDraw.ImageDraw

    def panel(self, top: int, panel: _Panel) -> None:
        self.draw.rounded_rectangle((_EDGE, top, _WIDTH - _EDGE, top + panel.height), 10, _PANEL)
        self.text((_EDGE + _INSET, top + 16), panel.heading, 18)
        self._legend(top + 18, panel.legend)
        most = max(sum(size for size, _ in row.parts) for row in panel.rows)
        for number, row in enumerate(panel.rows):
            self._row(top + _HEADING_H + number * _ROW_H, row, most)

    def text(self, place: tuple[float, float], text: str, size: int, colour: Rgb = _TEXT, *, width: float = 0) -> None:
        """One line; no longer than ``width``, if that is given."""
        font = _font(size)
        if width and font.getlength(text) > width:
            while text and font.getlength(f"{text}...") > width:
                text = text[:-1]
            text = f"{text}..."
        self.draw.text(place, text, colour, font=font)

    def _legend(self, top: int, legend: tuple[tuple[str, Rgb], ...]) -> None:
        right: float = _WIDTH - _EDGE - _INSET
        for name, colour in reversed(legend):
            right -= _font(14).getlength(name)
            self.text((right, top), name, 14, _DIM)
            self.draw.rounded_rectangle((right - 20, top + 2, right - 8, top + 14), 3, colour)
            right -= 44

    def _row(self, top: int, row: _Row, most: float) -> None:
        left, right = _EDGE + _INSET + _LABEL_W, _WIDTH - _EDGE - _INSET - _VALUE_W
        bar_top = top + (_ROW_H - _BAR_H) // 2
        self.text((_EDGE + _INSET, bar_top), row.label, 15, width=_LABEL_W - 12)
        self.draw.rounded_rectangle((left, bar_top, right, bar_top + _BAR_H), 4, _TRACK)
        start: float = left
        for size, colour in row.parts:
            end = start + size / most * (right - left)
            if size:
                self.draw.rounded_rectangle((start, bar_top, max(end, start + 2), bar_top + _BAR_H), 4, colour)
            start = end
        self.text((right + 16, bar_top), row.value, 15, _DIM, width=_VALUE_W - 16)


def _font(size: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    return ImageFont.load_default(size)
