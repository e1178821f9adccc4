"""The contact sheet: for some frames, where each segment lies, what was cropped, its mask, and what became of it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from animdetail_trt.errors import MediaError
from animdetail_trt.geometry import scale_region
from animdetail_trt.media.pixels import to_uint8
from animdetail_trt.media.staging import staged_file
from animdetail_trt.segs import SEG, SEGS, CropRegion

if TYPE_CHECKING:
    from PIL import Image, ImageDraw, ImageFont

Rgb = tuple[int, int, int]

_BACKGROUND: Rgb = (18, 20, 24)
_PANEL: Rgb = (29, 32, 38)
_TEXT: Rgb = (233, 236, 240)
_DIM: Rgb = (148, 155, 166)
_ACCENTS: tuple[Rgb, ...] = ((76, 201, 240), (249, 199, 79), (144, 190, 109), (249, 101, 110), (199, 125, 255))

_CELL_H = 168
_MAX_CELL_W = 300
_GAP = 10
_EDGE = 22
_LABEL_W = 86
_TITLE_H = 58
_HEADING_H = 30
_SEGMENT_H = 34
_HEADINGS = ("frame", "crop", "mask", "detailed", "result")
_MAX_HEIGHT = {".jpg": 65500, ".jpeg": 65500, ".webp": 16383}
"""Pixels that the formats hold (libjpeg's JPEG_MAX_DIMENSION, WebP's 14 bits); PNG holds any sheet."""


@dataclass(frozen=True)
class SheetFrame:
    """One row of the sheet."""

    label: str
    caption: str
    before: Tensor
    """float (h, w, 3) in 0..1."""
    after: Tensor
    index: int
    """Which of a segment's per-frame masks belongs to it."""


def pick_rows(frame_count: int, rows: int) -> list[int]:
    """Up to ``rows`` frame indices, evenly spread, away from both ends."""
    rows = min(rows, frame_count)
    return [int((row + 0.5) * frame_count / rows) for row in range(rows)]


def check_sheet(path: Path, rows: int, segment_count: int) -> None:
    """Raise MediaError where ``path``'s format cannot hold a sheet of so many rows for each segment."""
    suffix, height = path.suffix.lower(), _sheet_height(rows, segment_count)
    if height > _MAX_HEIGHT.get(suffix, height):
        raise MediaError(
            f"a contact sheet of {rows} rows for each of {segment_count} segments is {height} pixels tall, {suffix} "
            f"holds {_MAX_HEIGHT[suffix]}. Use fewer --preview-rows, or .png."
        )


def contact_sheet(frames: Sequence[SheetFrame], segs: SEGS, title: str, subtitle: str = "") -> Image.Image:
    """Draw the sheet: per segment one block, per frame one row. Sizes follow the frame's and the crops' shapes, and the
    words where those are narrower."""
    from PIL import Image, ImageDraw

    header, entries = segs
    height, width = frames[0].before.shape[:2]
    placed = [_Placed.of(seg, header, (height, width), _ACCENTS[i % len(_ACCENTS)]) for i, seg in enumerate(entries)]
    frame_cell = _fit(width, height)
    widest_crop = max((_fit(*p.size)[0] for p in placed), default=frame_cell[0])
    columns = [frame_cell[0], widest_crop, widest_crop, widest_crop, frame_cell[0]]
    title_w, subtitle_w = _font(24).getlength(title), _font(14).getlength(subtitle)
    room = max(_LABEL_W + sum(columns) + _GAP * (len(columns) - 1), math.ceil(title_w), math.ceil(subtitle_w))
    sheet_w = 2 * _EDGE + room
    sheet = Image.new("RGB", (sheet_w, _sheet_height(len(frames), len(placed))), _BACKGROUND)
    draw = ImageDraw.Draw(sheet)
    draw.text((_EDGE, _EDGE), title, _TEXT, font=_font(24))
    if title_w + 2 * _EDGE + subtitle_w <= room:
        draw.text((sheet_w - _EDGE, _EDGE + 9), subtitle, _DIM, font=_font(14), anchor="ra")
    else:
        draw.text((_EDGE, _EDGE + 33), subtitle, _DIM, font=_font(14))

    lefts = [_EDGE + _LABEL_W + sum(columns[:i]) + _GAP * i for i in range(len(columns))]
    for left, column, heading in zip(lefts, columns, _HEADINGS, strict=True):
        draw.text((left + column / 2, _EDGE + _TITLE_H + 4), heading, _DIM, font=_font(16), anchor="ma")
    top = _EDGE + _TITLE_H + _HEADING_H
    for number, segment in enumerate(placed, 1):
        draw.rectangle((_EDGE, top + 12, _EDGE + 10, top + 22), fill=segment.accent)
        draw.text((_EDGE + 20, top + 8), segment.describe(number, len(placed)), _TEXT, font=_font(14))
        top += _SEGMENT_H
        for frame in frames:
            draw.text((_EDGE, top + _CELL_H / 2 - 20), frame.label, _TEXT, font=_font(15))
            draw.text((_EDGE, top + _CELL_H / 2), frame.caption, _DIM, font=_font(13))
            for left, column, cell in zip(lefts, columns, _cells(frame, segment, placed), strict=True):
                draw.rectangle((left, top, left + column - 1, top + _CELL_H - 1), fill=_PANEL)
                sheet.paste(cell, (left + (column - cell.width) // 2, top + (_CELL_H - cell.height) // 2))
            top += _CELL_H + _GAP
    return sheet


def save_sheet(path: Path, sheet: Image.Image) -> None:
    """Write the sheet whole or not at all; the format follows the suffix."""
    with staged_file(path) as partial:
        sheet.save(partial, optimize=True)


def _sheet_height(rows: int, segment_count: int) -> int:
    block_h = _SEGMENT_H + rows * (_CELL_H + _GAP)
    return _EDGE + _TITLE_H + _HEADING_H + block_h * segment_count + _EDGE - _GAP


@dataclass(frozen=True)
class _Placed:
    """A segment in the pixels of these frames."""

    seg: SEG
    crop: CropRegion
    bbox: CropRegion
    accent: Rgb

    @classmethod
    def of(cls, seg: SEG, header: tuple[int, int], frame_size: tuple[int, int], accent: Rgb) -> _Placed:
        height, width = frame_size
        regions = []
        for region in (seg.crop_region, seg.bbox):
            x1, y1, x2, y2 = scale_region(region, header, frame_size)
            x1, y1 = min(max(x1, 0), width - 1), min(max(y1, 0), height - 1)
            regions.append((x1, y1, min(max(x2, x1 + 1), width), min(max(y2, y1 + 1), height)))
        return cls(seg, regions[0], regions[1], accent)

    @property
    def size(self) -> tuple[int, int]:
        return self.crop[2] - self.crop[0], self.crop[3] - self.crop[1]

    def describe(self, number: int, count: int) -> str:
        name = self.seg.label or "segment"
        width, height = self.size
        which = f"{number} of {count}   " if count > 1 else ""
        return f"{which}{name}   confidence {float(self.seg.confidence):.2f}   crop {width} x {height} px"

    def mask(self, frame_index: int) -> np.ndarray:
        """float (h, w) in 0..1 at the crop's own size."""
        from PIL import Image

        mask = torch.as_tensor(self.seg.cropped_mask, dtype=torch.float32)
        if mask.ndim == 3:
            mask = mask[min(frame_index, len(mask) - 1)]
        image = Image.fromarray(to_uint8(mask)).resize(self.size, Image.Resampling.BILINEAR)
        return np.asarray(image, dtype=np.float32) / 255


def _cells(frame: SheetFrame, segment: _Placed, everything: Sequence[_Placed]) -> list[Image.Image]:
    from PIL import Image

    x1, y1, x2, y2 = segment.crop
    before, after = to_uint8(frame.before), to_uint8(frame.after)
    crop = before[y1:y2, x1:x2]
    return [
        _with_regions(_scaled(before), before.shape[1], segment, everything),
        _scaled(crop),
        Image.fromarray(_tinted(np.asarray(_scaled(crop)), segment, frame.index)),
        _scaled(after[y1:y2, x1:x2]),
        _scaled(after),
    ]


def _tinted(crop: np.ndarray, segment: _Placed, frame_index: int) -> np.ndarray:
    """The crop in dim grey, in the segment's colour where its mask is."""
    from PIL import Image

    size = crop.shape[1], crop.shape[0]
    mask = Image.fromarray((segment.mask(frame_index) * 255).astype(np.uint8)).resize(size, Image.Resampling.BILINEAR)
    weight = np.asarray(mask, dtype=np.float32)[..., None] / 255
    grey = crop.mean(axis=2, keepdims=True)
    lit = (0.35 + 0.65 * grey / 255) * np.array(segment.accent)
    mixed: np.ndarray = (lit * weight + grey * 0.35 * (1 - weight)).astype(np.uint8)
    return mixed


def _with_regions(
    picture: Image.Image, frame_width: int, segment: _Placed, everything: Sequence[_Placed]
) -> Image.Image:
    """Crop region as a solid frame, bbox dashed; the other segments' crops thin."""
    from PIL import ImageDraw

    scale = picture.width / frame_width
    draw = ImageDraw.Draw(picture)
    for other in everything:
        if other is not segment:
            draw.rectangle(_scaled_region(other.crop, scale), outline=other.accent, width=1)
    outer = _scaled_region(segment.crop, scale)
    draw.rectangle(outer, outline=_BACKGROUND, width=4)
    draw.rectangle((outer[0] + 1, outer[1] + 1, outer[2] - 1, outer[3] - 1), outline=segment.accent, width=2)
    _dashed(draw, _scaled_region(segment.bbox, scale), segment.accent)
    return picture


def _dashed(draw: ImageDraw.ImageDraw, region: tuple[float, float, float, float], colour: Rgb, dash: int = 5) -> None:
    x1, y1, x2, y2 = region
    for x in np.arange(x1, x2, 2 * dash):
        for y in (y1, y2):
            draw.line((x, y, min(x + dash, x2), y), colour, 2)
    for y in np.arange(y1, y2, 2 * dash):
        for x in (x1, x2):
            draw.line((x, y, x, min(y + dash, y2)), colour, 2)


def _scaled_region(region: CropRegion, scale: float) -> tuple[float, float, float, float]:
    x1, y1, x2, y2 = region
    return x1 * scale, y1 * scale, x2 * scale - 1, y2 * scale - 1


def _scaled(pixels: np.ndarray) -> Image.Image:
    from PIL import Image

    size = _fit(pixels.shape[1], pixels.shape[0])
    return Image.fromarray(np.ascontiguousarray(pixels)).resize(size, Image.Resampling.LANCZOS)


def _fit(width: int, height: int) -> tuple[int, int]:
    """The largest (width, height) of this shape within a cell."""
    scale = min(_CELL_H / height, _MAX_CELL_W / width)
    return max(round(width * scale), 1), max(round(height * scale), 1)


def _font(size: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    from PIL import ImageFont

    return ImageFont.load_default(size)
