"""VAE files as they lie on disks: every layout is the checkpoint's VAE, and VAEs of other families are named."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

import animdetail_trt as adt
from animdetail_trt.errors import CheckpointError
from animdetail_trt.models.vae import load_vae_file, vae_from_ldm

PREFIX = "first_stage_model."
OLD_NAMES = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}


@pytest.fixture
def ldm(tiny: Path) -> dict[str, Tensor]:
    tensors = load_file(tiny / "tiny_sd15.safetensors")
    return {key.removeprefix(PREFIX): value for key, value in tensors.items() if key.startswith(PREFIX)}


def averages(ldm: dict[str, Tensor]) -> dict[str, Tensor]:
    """What kl-f8-anime and vae-ft-mse carry from their training."""
    return {f"model_ema.{key.replace('.', '')}": tensor for key, tensor in ldm.items()} | {
        "model_ema.decay": torch.tensor(0.9999),
        "model_ema.num_updates": torch.tensor(3),
        "loss.logvar": torch.tensor(0.0),
        "loss.perceptual_loss.net.slice1.0.weight": torch.ones(64, 3, 3, 3),
        "loss.discriminator.main.3.num_batches_tracked": torch.tensor(5),
    }


def old_names(diffusers: dict[str, Tensor]) -> dict[str, Tensor]:
    pattern = re.compile(r"(attentions\.0\.)(to_q|to_k|to_v|to_out\.0)\.")
    return {pattern.sub(lambda m: f"{m[1]}{OLD_NAMES[m[2]]}.", key): tensor for key, tensor in diffusers.items()}


LAYOUTS = {
    "LDM": lambda ldm: ldm,
    "LDM with its training": lambda ldm: ldm | averages(ldm),
    "of a checkpoint": lambda ldm: {PREFIX + key: value for key, value in ldm.items()},
    "of a checkpoint with schedules": lambda ldm: (
        {PREFIX + key: value for key, value in ldm.items()}
        | {"betas": torch.ones(1000), "loss.logvar": torch.tensor(0.0)}
    ),
    "diffusers": vae_from_ldm,
    "diffusers before 0.15": lambda ldm: old_names(vae_from_ldm(ldm)),
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_layout_is_the_same_vae(ldm: dict[str, Tensor], tmp_path: Path, layout: str) -> None:
    tensors = {key: tensor.contiguous().clone() for key, tensor in LAYOUTS[layout](ldm).items()}
    save_file(tensors, tmp_path / "vae.safetensors")
    loaded, expected = load_vae_file(tmp_path / "vae.safetensors"), vae_from_ldm(ldm)
    assert loaded.keys() == expected.keys()
    assert all(torch.equal(loaded[key], tensor) for key, tensor in expected.items())


@pytest.mark.parametrize(
    ("tensors", "words"),
    [
        ({"encoder.block.0.layer.0.SelfAttention.q.weight": torch.ones(2, 2)}, "it is a text encoder alone"),
        ({"encoder.conv1.weight": torch.ones(2, 2, 3, 3, 3)}, "it is a VAE of another family"),
        ({"taesd_decoder.1.weight": torch.ones(2, 4, 3, 3)}, "it is a tiny VAE for previews"),
        ({"encoder.conv_in.weight": torch.ones(2, 3, 3, 3)}, r"lacks a part that every VAE of .*encoder\.down\.0"),
    ],
)
def test_other_files_are_named(tiny: Path, tmp_path: Path, tensors: dict[str, Tensor], words: str) -> None:
    save_file(tensors, tmp_path / "vae.safetensors")
    with pytest.raises(CheckpointError, match=words):
        adt.load_pipe(tiny / "tiny_sd15.safetensors", vae=tmp_path / "vae.safetensors")


def test_wide_latents_are_named(tiny: Path, ldm: dict[str, Tensor], tmp_path: Path) -> None:
    """SD 3's and Flux's VAEs have the same names, but 16 channels, and no quant_conv."""
    wide = {key: value for key, value in ldm.items() if "quant_conv" not in key}
    wide["decoder.conv_in.weight"] = torch.zeros(64, 16, 3, 3)
    save_file(wide, tmp_path / "ae.safetensors")
    with pytest.raises(CheckpointError, match="it is a VAE of another family.*Choose a VAE alone for Stable"):
        adt.load_pipe(tiny / "tiny_sd15.safetensors", vae=tmp_path / "ae.safetensors")
