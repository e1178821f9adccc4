"""Pictures to test on, and Pillow's own answer for them."""

from __future__ import annotations

from typing import Any

import numpy as np
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image

Bytes = NDArray[np.uint8]
Floats = NDArray[np.float32]

SIDES = st.one_of(st.sampled_from([1, 2, 3, 7, 8, 63, 64, 65, 127]), st.integers(1, 40), st.integers(1, 300))
SEEDS = st.integers(0, 2**32 - 1)


def noise(seed: int, shape: tuple[int, ...], *, extremes: bool = False) -> Bytes:
    """Random bytes. Black and white alone make both passes clip, where their order shows most."""
    values: Bytes = np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)
    return np.where(values > 127, 255, 0).astype(np.uint8) if extremes else values


def unit(values: Bytes) -> Floats:
    """0..255 -> floats in 0..1 that quantise to the same byte again (k / 255 itself may truncate to k - 1)."""
    return np.minimum((values.astype(np.float32) + np.float32(0.5)) / np.float32(255), np.float32(1))


def image(values: Bytes) -> Floats:
    """0..255 -> k / 255 in float32, as ComfyUI makes it."""
    return values.astype(np.float32) / np.float32(255)


def pillow(frames: Bytes, size: tuple[int, int]) -> Bytes:
    """(f, h, w, c) -> (f, height, width, c) by Pillow. Each channel by itself: with an alpha Pillow premultiplies."""

    def resize(channel: Any) -> Bytes:
        return np.asarray(Image.fromarray(channel).resize(size, Image.Resampling.LANCZOS))

    planes = [[resize(np.ascontiguousarray(frame[..., c])) for c in range(frame.shape[-1])] for frame in frames]
    return np.stack([np.stack(channels, -1) for channels in planes])


def pillow_horizontal_first(frames: Bytes, size: tuple[int, int]) -> Bytes:
    """What Pillow up to 12 gives: a resize along one axis is one pass, whatever the version."""
    return pillow(pillow(frames, (size[0], frames.shape[1])), size)
