"""Motion modules as they lie on disks: every layout is the module of the original one, and strangers are left out."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from diffusers.loaders.single_file_utils import convert_animatediff_checkpoint_to_diffusers
from safetensors.torch import load_file, save_file
from torch import Tensor

import animdetail_trt as adt
from animdetail_trt.errors import CheckpointError
from animdetail_trt.models.motion import MotionModule, load_motion_module, positions_of
from animdetail_trt.models.unet import unet_from_ldm

VERSIONS = ("v1", "v2", "v3", "lcm")
BLOCK = "down_blocks.0.motion_modules.0.temporal_transformer.transformer_blocks.0"


def as_diffusers_writes(original: dict[str, Tensor]) -> dict[str, Tensor]:
    """By diffusers' own converter, and with the table that its modules keep: one for both attentions of a block."""
    tables = {
        key.replace(".temporal_transformer", "").replace("attention_blocks.0.pos_encoder.pe", "pos_embed.pe"): table
        for key, table in original.items()
        if key.endswith("attention_blocks.0.pos_encoder.pe")
    }
    return convert_animatediff_checkpoint_to_diffusers(original) | tables


def written(tensors: dict[str, Tensor], folder: Path, name: str = "mm.safetensors") -> Path:
    folder.mkdir(exist_ok=True)
    save_file({key: tensor.contiguous() for key, tensor in tensors.items()}, folder / name)
    return folder / name


def assert_same(actual: MotionModule, expected: MotionModule) -> None:
    assert (actual.version, actual.positions, actual.distilled) == (
        expected.version, expected.positions, expected.distilled,
    )  # fmt: skip
    assert actual.tensors.keys() == expected.tensors.keys()
    assert all(torch.equal(actual.tensors[key], tensor) for key, tensor in expected.tensors.items())


@pytest.mark.parametrize("version", VERSIONS)
def test_diffusers_layout_is_the_original_one(tiny: Path, tmp_path: Path, version: str) -> None:
    """As AnimateDiff-Lightning's *_diffusers files and MotionAdapter folders have it."""
    original = tiny / f"tiny_mm_{version}.safetensors"
    file = written(as_diffusers_writes(load_file(original)), tmp_path)
    assert_same(load_motion_module(file), load_motion_module(original))
    assert positions_of(file) == positions_of(original)


@pytest.mark.parametrize("version", VERSIONS)
def test_what_else_a_file_holds_is_left_out(tiny: Path, tmp_path: Path, version: str) -> None:
    """A trainer saves its own UNet, wrapper and counters beside the module: they do not take the checkpoint's place."""
    original = tiny / f"tiny_mm_{version}.safetensors"
    unet = unet_from_ldm(load_file(tiny / "tiny_refiner.safetensors"))
    counters = {"epoch": torch.tensor(3), "optimizer_state.0": torch.ones(4), "mm.version": torch.tensor(2)}
    tensors = {f"module.{key}": tensor for key, tensor in (unet | load_file(original)).items()}
    file = written(tensors | counters, tmp_path)
    assert_same(load_motion_module(file), load_motion_module(original))


def test_a_trainer_s_unet_does_not_replace_the_checkpoint_s(tiny: Path, tmp_path: Path) -> None:
    original = tiny / "tiny_mm_v2.safetensors"
    stranger = unet_from_ldm(load_file(tiny / "tiny_refiner.safetensors"))
    assert not torch.equal(
        stranger["conv_in.weight"], unet_from_ldm(load_file(tiny / "tiny_sd15.safetensors"))["conv_in.weight"]
    )
    file = written(load_file(original) | stranger, tmp_path)
    latents = torch.randn(1, 3, 4, 16, 16, generator=torch.Generator().manual_seed(0))
    with_stranger, alone = (
        adt.load_pipe(tiny / "tiny_sd15.safetensors", motion_module=mm, device="cpu").model.unet(
            latents, 500, torch.zeros(1, 1, 77, 64)
        )
        for mm in (file, original)
    )
    assert torch.equal(with_stranger, alone)


def test_a_table_of_64_positions_is_v1(tiny: Path, tmp_path: Path) -> None:
    """LongAnimateDiff's; the reference tells v3 by 32 positions alone."""
    tensors = load_file(tiny / "tiny_mm_v3.safetensors")
    longer = {key: torch.cat([t, t], dim=1) if key.endswith(".pe") else t for key, t in tensors.items()}
    module = load_motion_module(written(longer, tmp_path))
    assert (module.version, module.positions, module.distilled) == ("v1", 64, False)


@pytest.mark.parametrize(
    ("extra", "words"),
    [
        ({"img_encoder.conv_in.weight": torch.ones(32, 4, 1, 1)}, "it is AnimateLCM-I2V"),
        ({"conv_in.weight": torch.ones(32, 9, 3, 3), "conv_in.bias": torch.ones(32)}, "it is PIA"),
        ({"FancyVideo": torch.ones(1), "conv_in.weight": torch.ones(32, 9, 3, 3)}, "it is FancyVideo"),
        ({f"{BLOCK}.cc_projection.weight": torch.ones(2, 2)}, "it is MotionCtrl"),
        ({"controlnet_cond_embedding.conv_in.weight": torch.ones(2, 2)}, "it is SparseCtrl"),
    ],
)
@pytest.mark.parametrize("layout", [dict, as_diffusers_writes])
def test_modules_that_need_more_than_a_prompt_are_named(
    tiny: Path, tmp_path: Path, layout: type, extra: dict[str, Tensor], words: str
) -> None:
    file = written(layout(load_file(tiny / "tiny_mm_v2.safetensors")) | extra, tmp_path)
    with pytest.raises(CheckpointError, match=f"{words}.*Choose an AnimateDiff motion module"):
        load_motion_module(file)
