"""YUV <-> RGB with the matrix and range that a video says it has, and the tags that say so."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    import av

_UNSPECIFIED = 2  # in matrix, primaries and transfer alike (ISO/IEC 23091-2)
_FULL_RANGE = 2  # AVCOL_RANGE_JPEG
_LIMITED_RANGE = 1  # AVCOL_RANGE_MPEG

_SWSCALE_MATRIX = {1: "ITU709", 4: "FCC", 5: "ITU601", 6: "ITU601", 7: "SMPTE240M", 9: "BT2020", 10: "BT2020"}
"""ISO/IEC 23091-2 matrix coefficients -> swscale's name for them."""

# swscale's default flags round down, which darkens every picture by more than a level: ask for bicubic chroma,
# SWS_FULL_CHR_H_INT, SWS_FULL_CHR_H_INP and SWS_ACCURATE_RND.
_SWSCALE_FLAGS = 0x4 | 0x2000 | 0x4000 | 0x40000


@dataclass(frozen=True)
class Colour:
    """How a video's YUV is meant, and its four tags as they stand in the file (numbers of ISO/IEC 23091-2)."""

    matrix: str
    """swscale's name. Where the file says nothing, players' guess: bt709 from 720 lines on, bt601 below."""
    full_range: bool
    tags: tuple[int, int, int, int]
    """matrix, range, primaries, transfer."""

    @classmethod
    def of_frame(cls, frame: av.VideoFrame, codec: av.VideoCodecContext) -> Colour:
        if frame.format.is_rgb:  # its tags describe no YUV; what is written from it does
            return BT709
        matrix, value_range = int(frame.colorspace), int(frame.color_range)
        guess = "ITU709" if frame.height >= 720 else "ITU601"
        # The yuvj formats are full range by name, whatever the tag says.
        full_range = value_range == _FULL_RANGE or frame.format.name.startswith("yuvj")
        tags = (matrix, _FULL_RANGE if full_range else value_range, int(codec.color_primaries), int(codec.color_trc))
        return cls(_SWSCALE_MATRIX.get(matrix, guess), full_range, tags)

    def tag(self, codec: av.VideoCodecContext) -> None:
        """Write the tags into an encoder's context; an RGB one needs none."""
        if codec.pix_fmt == "bgr0":
            return
        codec.colorspace, codec.color_range, codec.color_primaries, codec.color_trc = self.tags

    @property
    def range_name(self) -> str:
        return "JPEG" if self.full_range else "MPEG"


BT709 = Colour("ITU709", False, (1, _LIMITED_RANGE, 1, 1))
"""What is written for pictures that come from no video."""


def to_rgb(frame: av.VideoFrame, colour: Colour) -> np.ndarray:
    """A decoded frame as uint8 (h, w, 3)."""
    if frame.format.is_rgb:
        return frame.to_ndarray(format="rgb24")
    return frame.reformat(
        format="rgb24",
        src_colorspace=colour.matrix,
        src_color_range=colour.range_name,
        dst_color_range="JPEG",
        interpolation=_SWSCALE_FLAGS,
    ).to_ndarray()


def from_rgb(frame: av.VideoFrame, pix_fmt: str, colour: Colour) -> av.VideoFrame:
    """An rgb24 frame in the pixel format of an encoder."""
    if pix_fmt == "bgr0":
        return frame.reformat(format=pix_fmt)
    return frame.reformat(
        format=pix_fmt,
        dst_colorspace=colour.matrix,
        src_color_range="JPEG",
        dst_color_range=colour.range_name,
        interpolation=_SWSCALE_FLAGS,
    )
