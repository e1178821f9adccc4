"""A VAE of ComfyUI as the detailer's, many frames in a call."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from animdetail_trt.comfyui import host


class HostVae:
    """A ``backends.interface.VaeRunner``. most_frames: in one call; 0: as many as ComfyUI finds memory for"""

    def __init__(self, original: Any, most_frames: int = 0) -> None:
        self.original, self.most_frames = original, most_frames
        self.device, self.dtype = torch.device("cpu"), torch.float32  # of IMAGEs

    def frames_per_call(self, width: int, height: int) -> int:
        return self.most_frames or host.vae_frames(self.original, width, height)

    def encode(self, pixels: Tensor) -> Tensor:
        host.throw_if_interrupted()
        return host.vae_encode(self.original, ((pixels + 1) / 2).movedim(1, -1)).float().cpu()

    def decode(self, latents: Tensor) -> Tensor:
        host.throw_if_interrupted()
        return (host.vae_decode(self.original, latents).float().cpu() * 2 - 1).movedim(-1, 1)
