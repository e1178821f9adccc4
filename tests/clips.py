"""Clips made with PyAV alone, so that what is under test does not make its own input."""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np

CROP = (10, 8, 42, 40)
"""The crop region of the tests' SEGS file."""


def patches(width: int, height: int, count: int = 1, seed: int = 0) -> np.ndarray:
    """uint8 (count, height, width, 3) of flat 16-pixel patches: chroma subsampling leaves their middles alone."""
    rng = np.random.default_rng(seed)
    colours = rng.integers(0, 256, (count, -(-height // 16), -(-width // 16), 3), dtype=np.uint8)
    return colours.repeat(16, axis=1).repeat(16, axis=2)[:, :height, :width]


def make_video(
    path: Path,
    pictures: np.ndarray,
    *,
    codec: str = "libx264",
    pix_fmt: str = "yuv420p",
    rate: Fraction = Fraction(25),
    time_base: Fraction | None = None,
    stamps: Sequence[int] | None = None,
    tags: tuple[int, int, int, int] = (2, 0, 2, 2),
    sound: str | None = None,
    qp: int = 1,
) -> Path:
    """Encode uint8 (f, h, w, 3) pictures, nearly without loss at ``qp`` 1, with a sine as sound if a codec is named."""
    import av

    with av.open(str(path), "w") as container:
        stream: Any = container.add_stream(codec, rate=rate, options={"qp": str(qp)} if codec == "libx264" else {})
        stream.width, stream.height, stream.pix_fmt = pictures.shape[2], pictures.shape[1], pix_fmt
        time_base = time_base or 1 / rate
        stream.codec_context.time_base = time_base
        context = stream.codec_context
        context.colorspace, context.color_range, context.color_primaries, context.color_trc = tags
        audio: Any = container.add_stream(sound, rate=48000) if sound else None
        for index, picture in enumerate(pictures):
            frame = _frame_of(picture, pix_fmt, tags)
            frame.pts, frame.time_base = (stamps[index] if stamps else index), time_base
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
        if audio is not None:
            _add_sine(container, audio, seconds=len(pictures) / float(rate))
    return path


def _frame_of(picture: np.ndarray, pix_fmt: str, tags: tuple[int, int, int, int]) -> Any:
    """A frame in bgr0 or yuv420p; the YUV by the textbook (ITU-R BT.709, section 3), chroma the mean of 2x2 pixels."""
    import av

    if pix_fmt == "bgr0":
        return av.VideoFrame.from_ndarray(np.ascontiguousarray(picture), format="rgb24").reformat(format="bgr0")
    kr, kb = {1: (0.2126, 0.0722), 9: (0.2627, 0.0593)}.get(tags[0], (0.299, 0.114))
    r, g, b = (picture[..., i] / 255 for i in range(3))
    y = kr * r + (1 - kr - kb) * g + kb * b
    cb, cr = (b - y) / (1 - kb) / 2, (r - y) / (1 - kr) / 2
    cb, cr = (c.reshape(c.shape[0] // 2, 2, c.shape[1] // 2, 2).mean((1, 3)) for c in (cb, cr))
    full = tags[1] == 2
    planes = [y * 255 if full else 16 + y * 219, *(128 + c * (255 if full else 224) for c in (cb, cr))]
    flat = np.concatenate([plane.ravel() for plane in planes]).round().clip(0, 255).astype(np.uint8)
    return av.VideoFrame.from_ndarray(flat.reshape(-1, picture.shape[1]), format="yuv420p")


def _add_sine(container: Any, stream: Any, seconds: float) -> None:
    import av

    samples = np.sin(np.arange(int(48000 * seconds)) * 2 * np.pi * 440 / 48000).astype(np.float32)
    for start in range(0, len(samples), 1024):
        chunk = samples[None, start : start + 1024]
        frame = av.AudioFrame.from_ndarray(np.ascontiguousarray(chunk), format="fltp", layout="mono")
        frame.sample_rate, frame.pts, frame.time_base = 48000, start, Fraction(1, 48000)
        container.mux(stream.encode(frame))
    container.mux(stream.encode(None))


def sound_packets(path: Path) -> list[tuple[Fraction, bytes]]:
    """(seconds, bytes) of every audio packet."""
    import av

    with av.open(str(path)) as container:
        stream = container.streams.audio[0]
        return [(p.pts * p.time_base, bytes(p)) for p in container.demux(stream) if p.dts is not None]


def write_mask(path: Path, size: tuple[int, int], box: tuple[int, int, int, int]) -> Path:
    """Write a mask of (width, height) that is white inside the box; makes its folder."""
    from PIL import Image

    mask = np.zeros((size[1], size[0]), np.uint8)
    x1, y1, x2, y2 = box
    mask[y1:y2, x1:x2] = 255
    path.parent.mkdir(exist_ok=True)
    Image.fromarray(mask).save(path)
    return path
