"""The job that both sides do: frames, segments, and a VAE that costs nothing."""

from __future__ import annotations

import time
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

Region = tuple[int, int, int, int]


@dataclass(frozen=True)
class Segment:
    crop_region: Region
    size: tuple[int, int]  # (width, height) that the VAE sees
    mask: Tensor  # (h, w) in 0..1


class StandInVae:
    """Gives back in ``decode`` what ``encode`` was given. Its own time and memory are left out of every figure.

    Like a real VAE it keeps no hold on its input, and its latents are of a real one's size.
    """

    def __init__(self, frames: int, segment: Segment) -> None:
        width, height = segment.size
        self.decoded = torch.ones(frames, 3, height, width)  # ones: memory that is resident from the start
        self.elapsed_ms = 0.0

    def encode(self, pixels: Tensor, first: int) -> Tensor:
        """(n, 3, h, w) in -1..1, of the frames from ``first`` on -> (n, 4, h / 8, w / 8)."""
        start = time.perf_counter()
        count, _, height, width = pixels.shape
        # By NumPy: torch's threads would keep spinning for a while after it, on the processors that are timed.
        np.copyto(self.decoded[first : first + count].numpy(), pixels.numpy())
        latents = torch.from_numpy(np.zeros((count, 4, height // 8, width // 8), np.float32))
        self.elapsed_ms += 1e3 * (time.perf_counter() - start)
        return latents

    def decode(self, latents: Tensor, first: int) -> Tensor:
        return self.decoded[first : first + len(latents)]


def make_frames(count: int, width: int, height: int) -> Tensor:
    """(f, h, w, 3), multiples of 1/255: noise over gradients. Made a frame at a time, to keep the memory's peak low."""
    generator = torch.Generator().manual_seed(0)
    frames = torch.empty(count, height, width, 3)
    ramp = torch.linspace(0, 160, width)[None, :, None]
    for frame in frames:
        noise = torch.randint(0, 96, frame.shape, generator=generator, dtype=torch.uint8)
        torch.div(torch.add(ramp, noise).floor_(), 255, out=frame)
    return frames


def make_segments(width: int, height: int, count: int, crop: int, size: int) -> list[Segment]:
    """Apart from one another, so that no rounding difference of one paste can flip a byte of the next crop."""
    mask = torch.zeros(crop, crop)
    mask[crop // 6 : -crop // 6, crop // 6 : -crop // 6] = 1
    step = width // count
    assert step >= crop
    assert height >= crop
    top = (height - crop) // 2
    lefts = [i * step + (step - crop) // 2 for i in range(count)]
    return [Segment((left, top, left + crop, top + crop), (size, size), mask) for left in lefts]
