"""YUV <-> RGB with the matrix and range that a video says it has, and the tags that say so.

The arithmetic is done here and not by swscale, which rounds down by default, is off by half a level in full range
even when asked not to, and knows fewer matrices in older PyAV. Only chroma planes are scaled by it.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

if TYPE_CHECKING:
    import av

_LIMITED, _FULL = 1, 2  # AVCOL_RANGE_MPEG, AVCOL_RANGE_JPEG
_UNSPECIFIED = 2  # of matrix, primaries and transfer

_KR_KB = {
    1: (0.2126, 0.0722),  # bt709
    4: (0.30, 0.11),  # FCC 73.682
    5: (0.299, 0.114),  # bt470bg: bt601, 625 lines
    6: (0.299, 0.114),  # smpte170m: bt601, 525 lines
    7: (0.212, 0.087),  # smpte240m
    9: (0.2627, 0.0593),  # bt2020, non-constant luminance
    10: (0.2627, 0.0593),
}
"""Matrix coefficients by their number in ISO/IEC 23091-2: how much red and blue weigh in luma."""

# SWS_BICUBIC, SWS_FULL_CHR_H_INT, SWS_FULL_CHR_H_INP and SWS_ACCURATE_RND: the default flags round down.
_SCALE_CHROMA = 0x4 | 0x2000 | 0x4000 | 0x40000


@dataclass(frozen=True)
class Colour:
    """How a video's YUV is meant, and its four tags as they stand in the file (numbers of ISO/IEC 23091-2)."""

    kr: float
    kb: float
    """Where the file does not say, players' guess: bt709 from 720 lines on, bt601 below."""
    full_range: bool
    tags: tuple[int, int, int, int]
    """matrix, range, primaries, transfer."""

    @classmethod
    def of_frame(cls, frame: av.VideoFrame, codec: av.VideoCodecContext) -> Colour:
        if frame.format.is_rgb:  # its matrix and range describe no YUV; what is written from it does
            primaries, transfer = int(codec.color_primaries), int(codec.color_trc)
            unknown = (0, _UNSPECIFIED)
            tags = 1, _LIMITED, 1 if primaries in unknown else primaries, 1 if transfer in unknown else transfer
            return replace(BT709, tags=tags)
        matrix, value_range = int(frame.colorspace), int(frame.color_range)
        # The yuvj formats are full range by name, whatever the tag says.
        full_range = value_range == _FULL or frame.format.name.startswith("yuvj")
        kr, kb = _KR_KB.get(matrix, _KR_KB[1 if frame.height >= 720 else 6])
        tags = (matrix, _FULL if full_range else value_range, int(codec.color_primaries), int(codec.color_trc))
        return cls(kr, kb, full_range, tags)

    def tag(self, codec: av.VideoCodecContext) -> None:
        """Write the tags into an encoder's context; of an RGB one, those that say which red, green and blue."""
        matrix, value_range, codec.color_primaries, codec.color_trc = self.tags
        if codec.pix_fmt != "bgr0":
            codec.colorspace, codec.color_range = matrix, value_range

    @property
    def range(self) -> int:
        return _FULL if self.full_range else _LIMITED

    def from_yuv(self) -> tuple[Tensor, Tensor]:
        """(3, 3) and (3,): rgb = matrix @ yuv + offset, all in 0..255."""
        matrix, offset = self.to_yuv()
        inverse = torch.linalg.inv(matrix)
        return inverse, -inverse @ offset

    def to_yuv(self) -> tuple[Tensor, Tensor]:
        """(3, 3) and (3,): yuv = matrix @ rgb + offset, all in 0..255."""
        kr, kb = self.kr, self.kb
        luma = torch.tensor([kr, 1 - kr - kb, kb], dtype=torch.float64)
        red, blue = torch.eye(3, dtype=torch.float64)[[0, 2]]
        matrix = torch.stack([luma, (blue - luma) / (2 - 2 * kb), (red - luma) / (2 - 2 * kr)])
        if self.full_range:
            return matrix, torch.tensor([0, 128, 128], dtype=torch.float64)
        scale = torch.tensor([[219], [224], [224]], dtype=torch.float64) / 255
        return matrix * scale, torch.tensor([16, 128, 128], dtype=torch.float64)


BT709 = Colour(*_KR_KB[1], full_range=False, tags=(1, _LIMITED, 1, 1))
"""What is written for pictures that come from no video."""


def to_rgb(frame: av.VideoFrame, colour: Colour) -> np.ndarray:
    """A decoded frame as uint8 (h, w, 3), rounded half up."""
    if frame.format.is_rgb:
        return frame.to_ndarray(format="rgb24")
    matrix, offset = colour.from_yuv()
    # Older swscale takes a change from a yuvj format to another one for a change of range.
    full_chroma = "yuvj444p" if frame.format.name.startswith("yuvj") else "yuv444p"
    yuv = torch.from_numpy(_reformat(frame, full_chroma, colour).to_ndarray())
    return _affine(yuv, matrix, offset).permute(1, 2, 0).numpy()


def from_rgb(picture: np.ndarray, pix_fmt: str, colour: Colour) -> av.VideoFrame:
    """A uint8 (h, w, 3) picture as a frame in the pixel format of an encoder."""
    import av

    if pix_fmt == "bgr0":
        return av.VideoFrame.from_ndarray(picture, format="rgb24").reformat(format=pix_fmt)
    yuv = _affine(torch.from_numpy(picture).permute(2, 0, 1), *colour.to_yuv())
    return _reformat(av.VideoFrame.from_ndarray(yuv.numpy(), format="yuv444p"), pix_fmt, colour)


def _affine(channels: Tensor, matrix: Tensor, offset: Tensor) -> Tensor:
    """uint8 (3, h, w) -> uint8 (3, h, w): matrix @ channels + offset, rounded half up."""
    flat = torch.addmm(offset.float()[:, None] + 0.5, matrix.float(), channels.reshape(3, -1).float())
    return flat.clamp_(0, 255).to(torch.uint8).view(channels.shape)


def _reformat(frame: av.VideoFrame, pix_fmt: str, colour: Colour) -> av.VideoFrame:
    """Scale the chroma planes to another YUV format; the range stays."""
    if frame.format.name == pix_fmt:
        return frame
    value_range = colour.range
    return frame.reformat(
        format=pix_fmt, src_color_range=value_range, dst_color_range=value_range, interpolation=_SCALE_CHROMA
    )
