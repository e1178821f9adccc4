"""A device for the tests: memory of the host, whose copies happen as late as a real one's may."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor


class LateCopyStream:
    """Copies what lies in memory when somebody waits for it: too early a change of it shows in the result."""

    device = torch.device("cpu")

    def __init__(self) -> None:
        self.queued: list[Callable[[], object]] = []
        self.staged_bytes = self.copies = 0

    def empty(self, shape: torch.Size, dtype: torch.dtype) -> Tensor:
        return torch.full(shape, 7, dtype=dtype)

    def staging(self, size: int) -> Tensor:
        self.staged_bytes += size
        return torch.full((size,), 99, dtype=torch.uint8)

    def copy(self, target: Tensor, source: Tensor) -> Callable[[], None]:
        done = False

        def copy() -> None:
            nonlocal done
            target.copy_(source)
            done = True

        def wait() -> None:
            while not done:
                self.queued.pop(0)()

        self.queued.append(copy)
        self.copies += 1
        return wait

    def follow(self, source: Tensor) -> None:
        """What it computes, it has computed at once."""

    def lead(self, target: Tensor) -> None:
        while self.queued:
            self.queued.pop(0)()
