"""Tensors between the host and a device, through pinned memory, while the device computes.

Pinned, or page-locked, memory is what a device copies from and to by itself; of other memory the driver makes a pinned
copy first and keeps the host waiting. Here the host fills or empties one buffer while the device copies the other.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache
from typing import Protocol

import torch
from torch import Tensor

BUFFER_BYTES = 64 << 20


class CopyStream(Protocol):
    """Copies on a device, beside what it computes."""

    device: torch.device

    def empty(self, shape: torch.Size, dtype: torch.dtype) -> Tensor:
        """Memory on the device that nothing computes with."""
        ...

    def staging(self, size: int) -> Tensor:
        """Bytes of the host that the device can copy."""
        ...

    def copy(self, target: Tensor, source: Tensor) -> Callable[[], None]:
        """Begin to copy after the copies before; return what waits until it is done."""
        ...

    def follow(self, source: Tensor) -> None:
        """Let the copies to come wait for what the device has been asked to compute, ``source`` among it."""
        ...

    def lead(self, target: Tensor) -> None:
        """Let what the device will be asked to compute, with ``target``, wait for the copies so far."""
        ...


class CudaCopyStream:
    """A stream of its own beside torch's current one of a CUDA device."""

    def __init__(self, device: torch.device) -> None:
        # With its number, as the devices of tensors have it: "cuda" and "cuda:0" are not equal.
        self.device = torch.device("cuda", torch.cuda.current_device() if device.index is None else device.index)
        self._stream = _stream_of(self.device)

    def empty(self, shape: torch.Size, dtype: torch.dtype) -> Tensor:
        with torch.cuda.stream(self._stream):
            return torch.empty(shape, dtype=dtype, device=self.device)

    def staging(self, size: int) -> Tensor:
        return torch.empty(size, dtype=torch.uint8, pin_memory=True)

    def copy(self, target: Tensor, source: Tensor) -> Callable[[], None]:
        with torch.cuda.stream(self._stream):
            target.copy_(source, non_blocking=True)
            event = torch.cuda.Event()
            event.record(self._stream)
        return event.synchronize

    def follow(self, source: Tensor) -> None:
        self._stream.wait_stream(torch.cuda.current_stream(self.device))
        source.record_stream(self._stream)

    def lead(self, target: Tensor) -> None:
        current = torch.cuda.current_stream(self.device)
        current.wait_stream(self._stream)
        target.record_stream(current)


@cache
def _stream_of(device: torch.device) -> torch.cuda.Stream:
    """One for all runs: torch keeps freed memory for the stream that it was made in."""
    return torch.cuda.Stream(device)


@dataclass
class _Buffer:
    memory: Tensor | None = None
    wait: Callable[[], None] | None = None
    deliver: Callable[[], None] | None = None

    def settle(self) -> None:
        """Wait for the copy that uses it, and hand on what arrived."""
        wait, deliver, self.wait, self.deliver = self.wait, self.deliver, None, None
        if wait is not None:
            wait()
        if deliver is not None:
            deliver()


class Lane:
    """Carries tensors, axis 0 of which are frames, in pieces of up to ``buffer_bytes`` or one frame."""

    def __init__(self, stream: CopyStream, buffer_bytes: int = BUFFER_BYTES) -> None:
        self.device = stream.device
        self._stream = stream
        self._buffer_bytes = buffer_bytes
        self._buffers = [_Buffer(), _Buffer()]

    def empty(self, shape: torch.Size) -> Tensor:
        """Float32 on the device, to be given to :meth:`upload` as its target."""
        return self._stream.empty(shape, torch.float32)

    def upload(self, source: Tensor, target: Tensor | None = None) -> Tensor:
        """``source``, of the host and any strides, on the device; in ``target`` where that is given, which nothing may
        compute with yet. The host may change it at once."""
        if target is None:
            target = self._stream.empty(source.shape, source.dtype)
        for part in self._pieces(source):
            buffer, staged = self._next(source[part])
            staged.copy_(source[part])
            buffer.wait = self._stream.copy(target[part], staged)
        self._stream.lead(target)
        return target

    def download(self, source: Tensor, target: Tensor) -> None:
        """Bring ``source`` of the device to ``target`` of the host, both float32, or uint8 to float32 in 0..1. It is
        there after :meth:`finish`."""
        self._stream.follow(source)
        for part in self._pieces(source):
            buffer, staged = self._next(source[part])
            buffer.wait = self._stream.copy(staged, source[part])
            buffer.deliver = lambda staged=staged, into=target[part]: _store(staged, into)

    def then(self, call: Callable[[], object]) -> None:
        """Call as soon as all that was asked for before is there, at the latest in :meth:`finish`."""
        buffer = self._buffers[-1]
        before = buffer.deliver

        def deliver() -> None:
            if before is not None:
                before()
            call()

        buffer.deliver = deliver

    def finish(self) -> None:
        """Wait until all downloads are there, and call what waits for them; uploads may be on their way still."""
        for buffer in self._buffers:  # the older first
            if buffer.deliver is not None:
                buffer.settle()

    def _pieces(self, frames: Tensor) -> Iterator[slice]:
        bytes_per_frame = frames[0].numel() * frames.element_size()
        return parts(len(frames), max(1, self._buffer_bytes // bytes_per_frame))

    def _next(self, like: Tensor) -> tuple[_Buffer, Tensor]:
        """The buffer that has been in use the longest, and its memory in the form of ``like``."""
        buffer = self._buffers.pop(0)
        self._buffers.append(buffer)
        buffer.settle()
        size = like.numel() * like.element_size()
        if buffer.memory is None or len(buffer.memory) < size:
            buffer.memory = self._stream.staging(size)
        return buffer, buffer.memory[:size].view(like.dtype).view(like.shape)


def parts(frame_count: int, at_once: int) -> Iterator[slice]:
    """All frames, so many at a time."""
    for first in range(0, frame_count, at_once):
        yield slice(first, min(first + at_once, frame_count))


def _store(staged: Tensor, target: Tensor) -> None:
    if staged.dtype == torch.uint8:
        torch.div(staged, 255, out=target)
    else:
        target.copy_(staged)
