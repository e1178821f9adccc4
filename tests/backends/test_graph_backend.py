"""Engines built at several times: each call goes to one that covers it."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch

from animdetail_trt.backends.graph_backend import GraphUNet
from animdetail_trt.errors import UncoveredError
from animdetail_trt.trt.profile import Profile, Range


def session(frames: int, latents: int) -> Any:
    side = Range(8, 8, latents)
    profile = Profile({"b": Range(1, 2, 2), "f": Range(1, 1, frames), "n": Range(77, 77, 77), "h": side, "w": side})
    return SimpleNamespace(profiles=[profile], covers=lambda sizes: profile.misfit(sizes) is None)


def test_frames_per_call_are_those_of_the_engines_that_cover_the_size() -> None:
    unet = GraphUNet([session(32, 32), session(8, 64)], positions=32, token_dim=64, device=torch.device("cpu"))
    assert unet.frames_per_call(256, 256) == 2 * 32
    assert unet.frames_per_call(512, 256) == 2 * 8
    with pytest.raises(UncoveredError, match="64 to 512 pixels high, and this is 1024"):
        unet.frames_per_call(512, 1024)
