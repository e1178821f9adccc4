"""Attention in the reference's order: the same function as torch's, and torch's own where scores would not fit."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from diffusers.models.attention_processor import Attention, AttnProcessor2_0
from torch import nn

import animdetail_trt as adt
from animdetail_trt.models import attention
from animdetail_trt.models.attention import ReferenceAttention


@pytest.mark.parametrize("limit", [attention.SCORES_BYTES, 0])
@pytest.mark.parametrize("context_dim", [None, 24])
def test_it_is_attention(monkeypatch: pytest.MonkeyPatch, limit: int, context_dim: int | None) -> None:
    monkeypatch.setattr(attention, "SCORES_BYTES", limit)
    layer = Attention(query_dim=16, cross_attention_dim=context_dim, heads=4, dim_head=8).eval()
    x = torch.randn(3, 10, 16)
    context = None if context_dim is None else torch.randn(3, 7, context_dim)
    with torch.inference_mode():
        layer.set_processor(AttnProcessor2_0())
        expected = layer(x, context)
        layer.set_processor(ReferenceAttention())
        torch.testing.assert_close(layer(x, context), expected, rtol=1e-5, atol=1e-6)


def test_the_time_is_embedded_by_frame_and_means_the_same(tiny: Path) -> None:
    """As many rows as frames go through the embedding, and one for each window comes out."""
    pipe = adt.load_pipe(
        tiny / "tiny_sd15.safetensors", motion_module=tiny / "tiny_mm_v2.safetensors", device="cpu", dtype="float32"
    )
    embedding = pipe.model.unet.module.time_embedding  # type: ignore[attr-defined]
    rows = []
    embedding.linear_1.register_forward_hook(lambda _, args, out: rows.append(len(out)))
    out = pipe.model.unet(torch.randn(2, 5, 4, 8, 8), 500.0, torch.randn(2, 1, 77, 64))
    assert rows == [10]
    assert out.shape == (2, 5, 4, 8, 8)


def test_it_is_for_the_cpu_in_float32(tiny: Path) -> None:
    def processors(dtype: str) -> set[type]:
        pipe = adt.load_pipe(tiny / "tiny_sd15.safetensors", device="cpu", dtype=dtype)
        module: nn.Module = pipe.model.unet.module  # type: ignore[attr-defined]
        return {type(part.processor) for part in module.modules() if hasattr(part, "set_processor")}

    assert processors("float32") == {ReferenceAttention}
    assert ReferenceAttention not in processors("bfloat16")
