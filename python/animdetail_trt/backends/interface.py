"""The calls that every backend answers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import torch
from torch import Tensor


class UNetRunner(Protocol):
    """Predicts the noise in a batch of windows."""

    @property
    def device(self) -> torch.device: ...

    @property
    def positions(self) -> int | None:
        """Frames that one window may hold; None where frames do not see each other."""

    @property
    def token_dim(self) -> int:
        """d of the prompt tokens that it reads."""

    def frames_per_call(self, width: int, height: int) -> int:
        """How many frames of this size, in pixels, one call may hold without leaving its memory bound; 1 or more."""
        ...

    def __call__(
        self, latents: Tensor, timestep: float, tokens: Tensor, residuals: Sequence[Tensor] | None = None
    ) -> Tensor:
        """Return eps, float32 (b, f, 4, lh, lw), for latents of that shape and prompt tokens (b, 1 or f, n, d).

        residuals: what a ControlNet adds: to the skips, in the order of the down blocks, and last to the middle
        """
        ...


class ControlRunner(Protocol):
    """Makes a ControlNet's residuals of what the UNet is given and of the pictures that steer it."""

    @property
    def device(self) -> torch.device: ...

    @property
    def token_dim(self) -> int:
        """d of the prompt tokens that it reads."""

    @property
    def global_average_pooling(self) -> bool:
        """Whether its residuals count by their mean over the picture."""

    def __call__(self, latents: Tensor, timestep: float, tokens: Tensor, hints: Tensor) -> list[Tensor]:
        """Return the residuals (b * f, c, h, w) that ``UNetRunner`` adds, in its order.

        latents, timestep, tokens: as the UNet is given them
        hints: pictures (1 or f, 3, 8 lh, 8 lw) in 0..1, the same for every b
        """
        ...


class VaeRunner(Protocol):
    """Pixels to latents and back, many frames in a call."""

    @property
    def device(self) -> torch.device: ...

    @property
    def dtype(self) -> torch.dtype:
        """That of pixels which :meth:`encode` reads as they are; others it converts."""

    def frames_per_call(self, width: int, height: int) -> int:
        """How many frames of this size, in pixels, one call may hold without leaving its memory bound; 1 or more."""
        ...

    def encode(self, pixels: Tensor) -> Tensor:
        """The posterior's mean, float32 (f, 4, h / 8, w / 8), of pixels (f, 3, h, w) in -1..1."""
        ...

    def decode(self, latents: Tensor) -> Tensor:
        """Pixels, floats (f, 3, 8 lh, 8 lw), about -1..1 and not clipped, of latents (f, 4, lh, lw)."""
        ...
