"""The modules as they are exported: diffusers' layers, called so that every size stays an axis of the graph.

What differs from diffusers' own ``forward``, each for a reason that was measured (docs/engines.md):

- Sizes are read once, from the inputs, and handed on. Of sizes that are computed back from other shapes (a batch
  divided by its frames) TensorRT knows no good bound, and a plan takes three times the memory.
- A skip's size is always handed to the upsampler, so that latents need not be multiples of 8.
- A prompt's keys and values are made once for all frames of its window.
- Attention is MatMul, Softmax, MatMul, which TensorRT fuses into one kernel.
- Norms stay what TensorRT knows as norms: it sums them in float32 whatever their type (INormalizationLayer), since a
  value above 255 has a square that float16 cannot hold. Casts around them, tried, take a third more memory.
"""

from __future__ import annotations

from typing import Any, ClassVar

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn

from animdetail_trt.trt.profile import Inputs, shape_of


class WindowSizes:
    """b prompts and f frames of the call that is being traced."""

    b: int
    f: int


class UNetGraph(nn.Module):
    """eps (b, f, 4, h, w) of latents (b, f, 4, h, w), timestep (1,), tokens (b, t, n, d) and residuals (b, f, c, ., .).

    Everything goes in and comes out in float32; between, the module's own dtype holds.
    module: a UNet2DConditionModel or a UNetMotionModel; it is changed for good: keep no other use for it
    over_window: norms are taken over the window's frames together (motion modules v1), not frame by frame
    control: there are residuals, of a ControlNet
    frame_prompts: t may be f; else it is 1, which takes a quarter less memory
    """

    def __init__(
        self,
        module: Any,
        *,
        motion: bool,
        over_window: bool = False,
        control: bool = False,
        frame_prompts: bool = False,
    ) -> None:
        super().__init__()
        self.unet = module
        self.motion, self.control, self.frame_prompts = motion, control, frame_prompts
        self.sizes = WindowSizes()
        _prepare(module, _Attention(self.sizes if frame_prompts else None), self.sizes, over_window)

    @property
    def inputs(self) -> Inputs:
        named: dict[str, tuple[int | str, ...]] = {
            "latents": ("b", "f", 4, "h", "w"),
            "timestep": (1,),
            "tokens": ("b", "t" if self.frame_prompts else 1, "n", self.unet.config.cross_attention_dim),
        }
        if self.control:
            for i, (channels, level) in enumerate(self._residual_levels()):
                named[f"residual_{i:02}"] = ("b", "f", channels, _halved("h", level), _halved("w", level))
        return named

    def _residual_levels(self) -> list[tuple[int, int]]:
        """(channels, level) of the skips in the order of the down blocks, and last of the middle."""
        config = self.unet.config
        widths: tuple[int, ...] = config.block_out_channels
        levels = [(widths[0], 0)]
        for level, width in enumerate(widths):
            levels += [(width, level)] * config.layers_per_block
            if level + 1 < len(widths):
                levels.append((width, level + 1))
        return [*levels, (widths[-1], len(widths) - 1)]

    def forward(self, latents: Tensor, timestep: Tensor, tokens: Tensor, *residuals: Tensor) -> Tensor:
        unet, dtype = self.unet, self.unet.conv_in.weight.dtype
        b, f, c, h, w = latents.shape
        self.sizes.b, self.sizes.f = b, f
        frames = {"num_frames": f} if self.motion else {}
        prompt = {"encoder_hidden_states": tokens.to(dtype).flatten(0, 1)}
        # A row for every frame: what is broadcast takes more memory.
        emb = unet.time_embedding(unet.time_proj(timestep).to(dtype))
        emb = emb.expand(b * f, emb.shape[1])
        x = unet.conv_in(latents.to(dtype).reshape(b * f, c, h, w))
        skips = [x]
        for block in unet.down_blocks:
            x, made = block(hidden_states=x, temb=emb, **(prompt if _reads_prompt(block) else {}), **frames)
            skips += made
        added = [residual.to(dtype).flatten(0, 1) for residual in residuals]
        skips = [skip + residual for skip, residual in zip(skips, added, strict=False)] if added else skips
        x = unet.mid_block(x, emb, **prompt, **(frames if hasattr(unet.mid_block, "motion_modules") else {}))
        x = x + added[-1] if added else x
        for block in unet.up_blocks:
            count = len(block.resnets)
            own, skips = tuple(skips[-count:]), skips[:-count]
            size = {"upsample_size": skips[-1].shape[2:]} if skips else {}
            x = block(
                hidden_states=x, temb=emb, res_hidden_states_tuple=own,
                **(prompt if _reads_prompt(block) else {}), **size, **frames,
            )  # fmt: skip
        eps: Tensor = unet.conv_out(unet.conv_act(unet.conv_norm_out(x)))
        return eps.float().reshape(b, f, -1, h, w)


class VaeEncoderGraph(nn.Module):
    """The posterior's mean, latents (f, 4, h, w), of pixels (f, 3, 8h, 8w) in -1..1; an AutoencoderKL's."""

    inputs: ClassVar[Inputs] = {"pixels": ("f", 3, "8h", "8w")}

    def __init__(self, module: Any) -> None:
        super().__init__()
        self.vae = module
        _prepare_vae(module)

    def forward(self, pixels: Tensor) -> Tensor:
        moments = self.vae.quant_conv(self.vae.encoder(pixels.to(self.vae.dtype)))
        mean: Tensor = moments[:, : moments.shape[1] // 2]
        return mean.float()


class VaeDecoderGraph(nn.Module):
    """Pixels (f, 3, 8h, 8w), about -1..1, of latents (f, 4, h, w); an AutoencoderKL's."""

    inputs: ClassVar[Inputs] = {"latents": ("f", 4, "h", "w")}

    def __init__(self, module: Any) -> None:
        super().__init__()
        self.vae = module
        _prepare_vae(module)

    def forward(self, latents: Tensor) -> Tensor:
        pixels: Tensor = self.vae.decoder(self.vae.post_quant_conv(latents.to(self.vae.dtype)))
        return pixels.float()


def _halved(axis: str, level: int) -> str:
    return axis if level == 0 else f"{axis}/{2**level}"


def _reads_prompt(block: Any) -> bool:
    return bool(getattr(block, "has_cross_attention", False))


def _prepare(unet: Any, attention: _Attention, sizes: WindowSizes, over_window: bool) -> None:
    from diffusers.models.unets.unet_motion_model import AnimateDiffTransformer3D

    for module in list(unet.modules()):
        if hasattr(module, "set_processor"):
            module.set_processor(attention)
        for name, child in list(module.named_children()):
            if isinstance(child, AnimateDiffTransformer3D):
                setattr(module, name, _MotionTransformer(child, sizes, over_window))
            elif isinstance(child, nn.GroupNorm) and over_window:
                setattr(module, name, _GroupNorm(child, sizes))


def _prepare_vae(vae: Any) -> None:
    from diffusers.models.attention_processor import AttnProcessor

    for module in list(vae.modules()):
        if hasattr(module, "set_processor"):
            module.set_processor(AttnProcessor())


class _Attention:
    """A diffusers attention processor for the transformer blocks of the UNet and of its motion modules.

    sizes: given where every frame may have a prompt of its own; keys and values are then repeated for every frame.
        Else the frames of a window are one long row of queries, which needs no copy.
    """

    def __init__(self, sizes: WindowSizes | None) -> None:
        self.sizes = sizes

    def __call__(
        self, attn: Any, hidden_states: Tensor, encoder_hidden_states: Tensor | None = None, **_: Any
    ) -> Tensor:
        context = hidden_states if encoder_hidden_states is None else encoder_hidden_states
        query, key, value = attn.to_q(hidden_states), attn.to_k(context), attn.to_v(context)
        if encoder_hidden_states is not None:
            if self.sizes is None:
                query = query.reshape(key.shape[0], -1, query.shape[2])
            else:
                key, value = (_for_every_frame(x, self.sizes.b, self.sizes.f) for x in (key, value))
        channels = attn.to_q.out_features // attn.heads
        query, key, value = (
            x.reshape(x.shape[0], -1, attn.heads, channels).transpose(1, 2) for x in (query, key, value)
        )
        scores = (query * channels**-0.5) @ key.transpose(2, 3)
        out: Tensor = attn.to_out[0]((scores.softmax(-1) @ value).transpose(1, 2).reshape(hidden_states.shape))
        return out


def _for_every_frame(x: Tensor, b: int, f: int) -> Tensor:
    """(b f, n, d) of (b t, n, d), where t is 1 or f."""
    _, n, d = x.shape
    return x.reshape(b, -1, n, d).expand(b, f, n, d).reshape(b * f, n, d)


class _MotionTransformer(nn.Module):
    """A motion module's transformer over the frames of every pixel, on (b f, c, h, w)."""

    def __init__(self, transformer: Any, sizes: WindowSizes, over_window: bool) -> None:
        super().__init__()
        self.proj_in, self.proj_out = transformer.proj_in, transformer.proj_out
        self.transformer_blocks = transformer.transformer_blocks
        # The norm of the module itself runs over the window, or was replaced by one that does not (models/motion.py).
        self.norm = _GroupNorm(transformer.norm, sizes if over_window else None)
        self.sizes = sizes

    def forward(self, hidden_states: Tensor, *_: Any, **__: Any) -> Tensor:
        b, f = self.sizes.b, self.sizes.f
        c, h, w = hidden_states.shape[1:]
        x = self.norm(hidden_states).reshape(b, f, c, h * w).permute(0, 3, 1, 2).reshape(b * (h * w), f, c)
        x = self.proj_in(x)
        for block in self.transformer_blocks:
            x = block(x)
        out: Tensor = self.proj_out(x).reshape(b, h * w, f, c).permute(0, 2, 3, 1).reshape(b * f, c, h, w)
        return hidden_states + out


class _GroupNorm(nn.Module):
    """GroupNorm on (n, c, ...): of each row, or of a window's frames together."""

    def __init__(self, norm: nn.GroupNorm, window: WindowSizes | None) -> None:
        super().__init__()
        self.groups, self.eps = norm.num_groups, norm.eps
        self.weight, self.bias = norm.weight, norm.bias
        self.window = window

    def forward(self, x: Tensor) -> Tensor:
        if self.window is None:
            return F.group_norm(x, self.groups, self.weight, self.bias, self.eps)
        b, f = self.window.b, self.window.f
        windows = x.reshape(b, f, x.shape[1], -1).transpose(1, 2)
        normed = F.group_norm(windows, self.groups, self.weight, self.bias, self.eps)
        return normed.transpose(1, 2).reshape(x.shape)


def example_inputs(inputs: Inputs, sizes: dict[str, int], seed: int = 0) -> dict[str, Tensor]:
    """Inputs of these sizes to trace and to check a graph with: standard normal, and timestep 500."""
    generator = torch.Generator().manual_seed(seed)
    made = {name: torch.randn(shape_of(dims, sizes), generator=generator) for name, dims in inputs.items()}
    return made | ({"timestep": torch.full((1,), 500.0)} if "timestep" in inputs else {})
