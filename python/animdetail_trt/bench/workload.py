"""The job that all sides do: frames, segments, and a VAE that costs nothing."""

from __future__ import annotations

import time
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from animdetail_trt.backends.torch_backend import VAE_MEMORY_BYTES, VAE_MEMORY_BYTES_ON_CPU
from animdetail_trt.segs import SEG, SEGS

Region = tuple[int, int, int, int]


@dataclass(frozen=True)
class Segment:
    crop_region: Region
    size: tuple[int, int]  # (width, height) that the VAE sees
    mask: Tensor  # (h, w) in 0..1


class StandInVae:
    """A VaeRunner whose ``decode`` gives back what ``encode`` was given, in order. Its time and memory do not count; on
    a GPU its copy of the pixels does, for nobody waits for it.

    Like a real VAE it keeps no hold on its input, and its latents are of a real one's size.
    """

    dtype = torch.float32

    def __init__(self, frames: int, segment: Segment, device: torch.device = torch.device("cpu")) -> None:  # noqa: B008
        width, height = segment.size
        self.device = device
        # Ones: memory that is resident from the start.
        self.decoded = torch.ones(frames, 3, height, width, device=device)
        self.encoded_count = self.decoded_count = 0
        self.elapsed_ms = 0.0

    def frames_per_call(self, width: int, height: int) -> int:
        """As TorchVae for SD 1.5's VAE, whose first block has 128 channels, in float32."""
        most = VAE_MEMORY_BYTES_ON_CPU if self.device.type == "cpu" else VAE_MEMORY_BYTES
        return max(1, most // (4 * 128 * width * height * 4))

    def encode(self, pixels: Tensor) -> Tensor:
        """(n, 3, h, w) in -1..1 -> (n, 4, h / 8, w / 8)."""
        start = time.perf_counter()
        count, _, height, width = pixels.shape
        first = self.encoded_count % len(self.decoded)
        kept = self.decoded[first : first + count]
        if kept.is_cuda:
            kept.copy_(pixels)
        else:
            np.copyto(kept.numpy(), pixels.numpy())  # torch's threads would spin on after it
        self.encoded_count += count
        latents = torch.zeros(count, 4, height // 8, width // 8, device=self.device)
        self.elapsed_ms += 1e3 * (time.perf_counter() - start)
        return latents

    def decode(self, latents: Tensor) -> Tensor:
        first = self.decoded_count % len(self.decoded)
        self.decoded_count += len(latents)
        return self.decoded[first : first + len(latents)]


def make_frames(count: int, width: int, height: int, seed: int = 0) -> Tensor:
    """(f, h, w, 3), multiples of 1/255: noise over gradients. Made a frame at a time, to keep the memory's peak low."""
    generator = torch.Generator().manual_seed(seed)
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


def covered_whole(segment: Segment, feather_px: int) -> Region:
    """Where the feathered mask is 1, or near it where it is small: x1, y1, x2, y2 in the frame."""
    left, top, _, _ = segment.crop_region
    (x1, x2), (y1, y2) = (_inner(lines, feather_px) for lines in (segment.mask.any(dim=0), segment.mask.any(dim=1)))
    return left + x1, top + y1, left + x2, top + y2


def _inner(lines: Tensor, feather_px: int) -> tuple[int, int]:
    first, last = int(lines.nonzero().min()), int(lines.nonzero().max())
    inset = min(feather_px, (last + 1 - first) // 4)
    return first + inset, last + 1 - inset


def segs_of(segments: list[Segment], width: int, height: int) -> SEGS:
    """The same segments as the node takes them."""
    return (height, width), [
        SEG(None, segment.mask.numpy(), 1.0, segment.crop_region, segment.crop_region, f"segment {i}", None)
        for i, segment in enumerate(segments)
    ]
