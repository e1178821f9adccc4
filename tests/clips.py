"""Clips made with PyAV alone, so that what is under test does not make its own input."""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np


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
) -> Path:
    """Encode uint8 (f, h, w, 3) pictures, nearly without loss, with a sine as sound if a codec is named."""
    import av

    with av.open(str(path), "w") as container:
        stream: Any = container.add_stream(codec, rate=rate, options={"qp": "1"} if codec == "libx264" else {})
        stream.width, stream.height, stream.pix_fmt = pictures.shape[2], pictures.shape[1], pix_fmt
        time_base = time_base or 1 / rate
        stream.codec_context.time_base = time_base
        context = stream.codec_context
        context.colorspace, context.color_range, context.color_primaries, context.color_trc = tags
        audio: Any = container.add_stream(sound, rate=48000) if sound else None
        for index, picture in enumerate(pictures):
            frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(picture), format="rgb24")
            frame = _convert(frame, pix_fmt, tags)
            frame.pts, frame.time_base = (stamps[index] if stamps else index), time_base
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
        if audio is not None:
            _add_sine(container, audio, seconds=len(pictures) / float(rate))
    return path


def _convert(frame: Any, pix_fmt: str, tags: tuple[int, int, int, int]) -> Any:
    matrix = {1: "ITU709", 9: "BT2020"}.get(tags[0], "ITU601")
    value_range = "JPEG" if tags[1] == 2 else "MPEG"
    accurate = 0x4 | 0x2000 | 0x4000 | 0x40000
    return frame.reformat(
        format=pix_fmt,
        dst_colorspace=matrix,
        src_color_range="JPEG",
        dst_color_range=value_range,
        interpolation=accurate,
    )


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
