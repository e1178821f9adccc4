"""The frames of a run, (f, H, W, 3) in 0..1, where they are cropped and painted.

On a GPU the pixel work runs where the VAE does. A clip that fits is uploaded once, as the first segment asks for it,
and downloaded once, as the last one is pasted. A longer one stays on the host, and each segment's crops go to the GPU
and come back.
"""

from __future__ import annotations

import logging
from functools import partial
from typing import Protocol

import torch
from torch import Tensor

from animdetail_trt import ops
from animdetail_trt.backends.interface import VaeRunner
from animdetail_trt.detailer.transfer import CudaCopyStream, Lane
from animdetail_trt.segs import CropRegion

logger = logging.getLogger(__name__)

MEMORY_SHARE = 0.25
"""Of a GPU's free memory, which a clip may take up for a whole run."""
CPU = torch.device("cpu")


class Canvas(Protocol):
    """device: where crops are given, and patches made; home: where the frames lie, and weights are needed."""

    device: torch.device
    home: torch.device
    shape: tuple[int, ...]

    def crop(self, part: slice, region: CropRegion) -> Tensor:
        """Pixels (n, h, w, 3) of some frames, on ``device``: a view, or a copy."""
        ...

    def on_host(self, region: CropRegion) -> Tensor:
        """A region of all frames, float32 on the host, in memory of their own."""
        ...

    def beside(self, pixels: Tensor) -> Canvas:
        """Other frames, of the host, to work on in their place and on the same device."""
        ...

    def room_for(self, kept: Tensor) -> Tensor:
        """Where the patch is made, on ``device``, that :meth:`keep` brings to ``kept`` of the host."""
        ...

    def keep(self, patch: Tensor, kept: Tensor) -> None:
        """Bring what was made in ``room_for(kept)`` to ``kept``; it is there after :meth:`finish`."""
        ...

    def paste(self, part: slice, patch: Tensor, kept: Tensor, weight: Tensor, left_top: tuple[int, int]) -> None:
        """Blend a patch (n, h, w, 3) into some frames, as ``ops.alpha_paste`` does; one that was made on ``device`` has
        been given to :meth:`keep` before."""
        ...

    def send(self, part: slice) -> None:
        """Nothing more is pasted into these frames: they may travel to the host."""
        ...

    def finish(self) -> Tensor:
        """All frames, float32 on the host."""
        ...


class HostCanvas:
    """Frames of the host, painted there. lane: what takes crops to a device; None: they stay."""

    home = CPU

    def __init__(self, frames: Tensor, lane: Lane | None = None) -> None:
        self._frames = frames
        self._lane = lane
        self.device = CPU if lane is None else lane.device
        self.shape = tuple(frames.shape)

    def crop(self, part: slice, region: CropRegion) -> Tensor:
        pixels = window(self.finish()[part], region)
        return pixels if self._lane is None else self._lane.upload(pixels)

    def on_host(self, region: CropRegion) -> Tensor:
        return window(self.finish(), region).clone()

    def beside(self, pixels: Tensor) -> HostCanvas:
        return HostCanvas(pixels, self._lane)

    def room_for(self, kept: Tensor) -> Tensor:
        return kept if self._lane is None else _bytes_on(self.device, kept)

    def keep(self, patch: Tensor, kept: Tensor) -> None:
        if self._lane is not None:
            self._lane.download(patch, kept)

    def paste(self, part: slice, patch: Tensor, kept: Tensor, weight: Tensor, left_top: tuple[int, int]) -> None:
        blend = partial(ops.alpha_paste, self._frames[part], kept, weight, left_top)
        blend() if self._lane is None else self._lane.then(blend)

    def send(self, part: slice) -> None:
        """They are there."""

    def finish(self) -> Tensor:
        if self._lane is not None:
            self._lane.finish()
        return self._frames


ON_HOST = HostCanvas(torch.empty(0, 0, 0, 3))
"""No frames, for patches that are made on the host."""


class DeviceCanvas:
    """Frames on a device. frames: those to begin with, of the host; not changed."""

    def __init__(self, frames: Tensor, lane: Lane) -> None:
        self.device = self.home = lane.device
        self.shape = tuple(frames.shape)
        self._lane = lane
        self._source = frames
        self._frames = lane.empty(frames.shape)
        self._uploaded = 0  # frames
        self._result: Tensor | None = None
        self._sent = 0  # frames

    def crop(self, part: slice, region: CropRegion) -> Tensor:
        return window(self._upload(part)[part], region)

    def on_host(self, region: CropRegion) -> Tensor:
        pixels = window(self._upload(slice(None)), region).contiguous()
        arrived = torch.empty(pixels.shape)
        self._lane.download(pixels, arrived)
        self._lane.finish()
        return arrived

    def beside(self, pixels: Tensor) -> HostCanvas:
        return HostCanvas(pixels, self._lane)

    def room_for(self, kept: Tensor) -> Tensor:
        return _bytes_on(self.device, kept)

    def keep(self, patch: Tensor, kept: Tensor) -> None:
        self._lane.download(patch, kept)

    def paste(self, part: slice, patch: Tensor, kept: Tensor, weight: Tensor, left_top: tuple[int, int]) -> None:
        patch = patch if patch.device == self.device else self._lane.upload(patch)
        ops.alpha_paste(self._upload(part)[part], patch, weight, left_top)

    def send(self, part: slice) -> None:
        if self._result is None:
            self._result = torch.empty(self.shape)
        frames = self._upload(part)[part]
        self._lane.download(frames, self._result[part])
        self._sent += len(frames)

    def finish(self) -> Tensor:
        if self._sent != len(self._frames):
            self.send(slice(None))
        self._lane.finish()
        assert self._result is not None
        return self._result

    def _upload(self, part: slice) -> Tensor:
        """All frames, of which those up to the end of ``part`` are there: while the device works on these, the host
        makes the next ready."""
        _, last, _ = part.indices(len(self._frames))
        if last > self._uploaded:
            missing = slice(self._uploaded, last)
            self._lane.upload(self._source[missing], self._frames[missing])
            self._uploaded = last
        return self._frames


def open_canvas(frames: Tensor, vae: VaeRunner, *, hooked: bool) -> Canvas:
    """A canvas of ``frames`` (f, H, W, 3), float32 on the host, which stay as they are.

    hooked: a hook looks at the frames after every segment, so they had better stay on the host
    """
    lane = lane_beside(vae)
    if lane is None or hooked or not _fits(frames, lane.device):
        return HostCanvas(ops.working_copy(frames), lane)
    return DeviceCanvas(frames, lane)


def lane_beside(vae: VaeRunner) -> Lane | None:
    """The way to the device that pixels are worked on: the VAE's, if the extension was built for it."""
    if vae.device.type != "cuda":
        return None
    if not ops.has_cuda():
        logger.info("the pixels stay on the CPU: the extension was built without CUDA kernels (animdetail-trt doctor)")
        return None
    return Lane(CudaCopyStream(vae.device))


def window(frames: Tensor, region: CropRegion) -> Tensor:
    x1, y1, x2, y2 = region
    return frames[:, y1:y2, x1:x2]


def _bytes_on(device: torch.device, kept: Tensor) -> Tensor:
    """What comes of a resize is multiples of 1/255: as bytes it takes a quarter of the way."""
    return torch.empty(kept.shape, dtype=torch.uint8, device=device)


def _fits(frames: Tensor, device: torch.device) -> bool:
    free, _ = torch.cuda.mem_get_info(device)
    free += torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)  # kept by torch, and unused
    return frames.numel() * frames.element_size() <= MEMORY_SHARE * free
