"""Attention on a CPU, in the reference's order of operations.

A sampler can amplify the last bit of its UNet a thousandfold (docs/sampling.md), so outputs that are to be the
reference's need its bits: whole scores, softmax, one product, as ComfyUI's sub-quadratic attention computes them where
memory allows. torch's own scaled_dot_product_attention sums in another order.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn

from animdetail_trt.models.checkpoint import Placement

# Scores above this are never held: torch's attention, which needs no memory for them, takes over.
SCORES_BYTES = 256 << 20
# More of them leave the caches, and above 32 MiB the C library maps fresh memory for them, whose page faults cost more
# than the products.
SCORES_BYTES_AT_ONCE = 4 << 20


class ReferenceAttention:
    """A diffusers attention processor for the transformer blocks of an SD 1.5 UNet."""

    def __call__(
        self, attn: Any, hidden_states: Tensor, encoder_hidden_states: Tensor | None = None, **_: Any
    ) -> Tensor:
        context = hidden_states if encoder_hidden_states is None else encoder_hidden_states
        query, key, value = (
            projected.unflatten(2, (attn.heads, -1)).transpose(1, 2)
            for projected in (attn.to_q(hidden_states), attn.to_k(context), attn.to_v(context))
        )
        held = query.shape[:3].numel() * key.shape[2] * query.itemsize <= SCORES_BYTES
        attend = _attend if held else F.scaled_dot_product_attention
        out: Tensor = attn.to_out[0](attend(query, key, value).transpose(1, 2).flatten(2))
        return out


def _attend(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """(b, heads, n, d) of query (b, heads, n, d), key and value (b, heads, m, d)."""
    shape = query.shape
    # Laid out as the reference lays them out: it decides which kernel multiplies them.
    rows, columns = query.flatten(0, 1).contiguous(), key.transpose(2, 3).flatten(0, 1).contiguous()
    values = value.flatten(0, 1).contiguous()
    # Every head is a product of its own, so how many are computed together changes no bit.
    at_once = max(1, SCORES_BYTES_AT_ONCE // (rows.shape[1] * columns.shape[2] * query.itemsize))
    parts = zip(rows.split(at_once), columns.split(at_once), values.split(at_once), strict=True)
    out = [torch.bmm(_scores(row, column, shape[-1]).softmax(-1), part) for row, column, part in parts]
    return (out[0] if len(out) == 1 else torch.cat(out)).view(shape)


def _scores(rows: Tensor, columns: Tensor, d: int) -> Tensor:
    return torch.baddbmm(rows.new_empty(1, 1, 1), rows, columns, beta=0, alpha=d**-0.5)


def use_reference_order(unet: Any, place: Placement) -> None:
    """Give a diffusers UNet or ControlNet the reference's order where diffusers' differs; on the CPU in float32 only,
    where it makes bits equal."""
    from diffusers.models.unets.unet_motion_model import UNetMotionModel

    if place != Placement(torch.device("cpu"), torch.float32):
        return
    for module in unet.modules():
        if hasattr(module, "set_processor"):
            module.set_processor(ReferenceAttention())
    if isinstance(unet, UNetMotionModel):
        _embed_time_by_frame(unet)


def _embed_time_by_frame(unet: Any) -> None:
    """UNetMotionModel embeds the timestep once a window, the reference once a frame: the same rows of a taller product,
    which other kernels compute."""
    embed = unet.time_embedding
    frames = 1

    def note_frames(_: nn.Module, args: tuple[Any, ...]) -> None:
        nonlocal frames
        frames = args[0].shape[2]

    def repeat(_: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
        return args[0].repeat_interleave(frames, dim=0), *args[1:]

    unet.register_forward_pre_hook(note_frames)
    embed.register_forward_pre_hook(repeat)
    embed.register_forward_hook(lambda _, args, out: out[::frames])
