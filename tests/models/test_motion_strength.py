"""Motion LoRAs, and a motion module's scale and effect."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

import animdetail_trt as adt
from animdetail_trt.errors import CheckpointError
from animdetail_trt.models.motion import load_motion_module, with_motion_loras, with_strength

BLOCK = "down_blocks.0.motion_modules.0.temporal_transformer.transformer_blocks.0.attention_blocks.1"
DIFFUSERS = "down_blocks.0.motion_modules.0.transformer_blocks.0.attn2"


def randn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def eps(pipe: adt.BasicPipe, frames: int = 3) -> Tensor:
    return pipe.model.unet(randn(1, frames, 4, 16, 16), 500, randn(1, 1, 77, 64, seed=1))


def motion_pipe(tiny: Path, module: Path | None = None, **options: object) -> adt.BasicPipe:
    return adt.load_pipe(
        tiny / "tiny_sd15.safetensors", motion_module=module or tiny / "tiny_mm_v2.safetensors", device="cpu",
        dtype="float32", **options,
    )  # fmt: skip


@pytest.mark.parametrize(
    ("module", "up", "down"),
    [
        (f"{BLOCK}.processor.to_out", "_lora.up.weight", "_lora.down.weight"),
        (f"module.{BLOCK}.processor.to_out", "_lora.up.weight", "_lora.down.weight"),
        (f"{DIFFUSERS}.processor.to_out", "_lora.up.weight", "_lora.down.weight"),
        (f"unet.{DIFFUSERS}.to_out.0", ".lora_B.weight", ".lora_A.weight"),
    ],
)
def test_motion_loras_find_their_modules(tiny: Path, tmp_path: Path, module: str, up: str, down: str) -> None:
    save_file({f"{module}{up}": randn(32, 4), f"{module}{down}": randn(4, 32, seed=1)}, tmp_path / "pan.safetensors")
    motion = load_motion_module(tiny / "tiny_mm_v2.safetensors")
    merged = with_motion_loras(motion, [(tmp_path / "pan.safetensors", 0.5)])
    key = f"{DIFFUSERS}.to_out.0.weight"
    torch.testing.assert_close(
        merged.tensors[key], motion.tensors[key].float() + 0.5 * randn(32, 4) @ randn(4, 32, seed=1)
    )
    assert {k for k in merged.tensors if merged.tensors[k] is not motion.tensors[k]} == {key}


def test_what_a_module_does_not_have_is_named(tiny: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """v2's motion LoRAs reach into the mid block, which v1 and v3 have not."""
    tensors = {}
    for block in (BLOCK, BLOCK.replace("down_blocks.0", "mid_block")):
        width = 32 if "down" in block else 64
        tensors |= {f"{block}.processor.to_q_lora.up.weight": randn(width, 4)}
        tensors |= {f"{block}.processor.to_q_lora.down.weight": randn(4, width)}
    save_file(tensors, tmp_path / "pan.safetensors")
    options = {"motion_loras": [(tmp_path / "pan.safetensors", 1.0)]}
    with caplog.at_level(logging.INFO, "animdetail_trt"):
        plain, panned = motion_pipe(tiny), motion_pipe(tiny, **options)
        motion_pipe(tiny, tiny / "tiny_mm_v3.safetensors", **options)
    assert not torch.allclose(eps(plain), eps(panned), atol=1e-4)
    assert [record.getMessage() for record in caplog.records[:2]] == [
        "pan.safetensors: 4 of 4 tensors",
        "pan.safetensors: 2 of 4 tensors",
    ]
    assert "no place for mid_block" in caplog.records[2].getMessage()


def test_a_lora_is_no_motion_lora_and_the_other_way(tiny: Path, tmp_path: Path) -> None:
    save_file({f"{BLOCK}.processor.to_q_lora.up.weight": randn(32, 4)}, tmp_path / "pan.safetensors")
    with pytest.raises(CheckpointError, match="it is a motion LoRA. Give it as a motion LoRA"):
        adt.load_pipe(tiny / "tiny_sd15.safetensors", loras=[(tmp_path / "pan.safetensors", 1.0)])
    with pytest.raises(CheckpointError, match="it is a LoRA. Give it as a LoRA"):
        motion_pipe(tiny, motion_loras=[(tiny / "tiny_lora.safetensors", 1.0)])


def test_scale_multiplies_what_attention_compares(tiny: Path, tmp_path: Path) -> None:
    """Twice the keys is twice the queries: either doubles every logit."""
    doubled = {
        key: tensor.float() * (2 if key.endswith(".to_q.weight") else 1)
        for key, tensor in load_file(tiny / "tiny_mm_v2.safetensors").items()
    }
    save_file(doubled, tmp_path / "doubled.safetensors")
    scaled = eps(motion_pipe(tiny, motion_scale=2))
    torch.testing.assert_close(scaled, eps(motion_pipe(tiny, tmp_path / "doubled.safetensors")), rtol=1e-3, atol=1e-4)
    assert not torch.allclose(scaled, eps(motion_pipe(tiny)), atol=1e-3)


@pytest.mark.parametrize("effect", [0.0, 0.4, 1.5])
def test_effect_is_the_share_of_what_a_module_adds(tiny: Path, effect: float) -> None:
    pipe, weaker = motion_pipe(tiny), motion_pipe(tiny, motion_effect=effect)
    x = randn(3, 32, 8, 8)
    whole, part = (p.model.unet.module.down_blocks[0].motion_modules[0](x, num_frames=3) for p in (pipe, weaker))
    torch.testing.assert_close(part - x, effect * (whole - x), rtol=1e-4, atol=1e-5)


def test_without_effect_frames_do_not_see_each_other(tiny: Path) -> None:
    still = adt.load_pipe(tiny / "tiny_sd15.safetensors", device="cpu", dtype="float32")
    torch.testing.assert_close(eps(motion_pipe(tiny, motion_effect=0)), eps(still), rtol=1e-3, atol=1e-4)


def test_one_is_the_module_as_it_is(tiny: Path) -> None:
    motion = load_motion_module(tiny / "tiny_mm_v2.safetensors")
    same = with_strength(motion, 1.0, 1.0)
    assert all(same.tensors[key] is tensor for key, tensor in motion.tensors.items())
