"""ControlNet files: layouts, the full-size shapes, and what is said of wrong and damaged ones."""

from __future__ import annotations

import json
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

import animdetail_trt as adt
from animdetail_trt.errors import CheckpointError, InputError
from animdetail_trt.models.checkpoint import Placement
from animdetail_trt.models.controlnet import build_controlnet, controlnet_tensors

FULL_SIZE = json.loads((Path(__file__).parents[1] / "golden" / "full_size_shapes.json").read_text())
CPU = {"device": "cpu", "dtype": "float32"}


@pytest.fixture
def tensors(tiny: Path) -> dict[str, Tensor]:
    return load_file(tiny / "tiny_controlnet.safetensors")


def residuals(path: Path, batch: int = 1) -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)
    latents = torch.randn(1, 2, 4, 11, 16, generator=generator)
    tokens = torch.randn(1, 1, 77, 64, generator=generator)
    hints = torch.rand(2, 3, 88, 128, generator=generator)
    network = adt.load_controlnet(path, **CPU)
    return network(latents.repeat(batch, 1, 1, 1, 1), 500.0, tokens.repeat(batch, 1, 1, 1), hints)


def test_there_is_a_residual_for_every_skip_and_the_middle(tiny: Path) -> None:
    shapes = [tuple(residual.shape) for residual in residuals(tiny / "tiny_controlnet.safetensors")]
    levels = [((11, 16), 32)] * 3 + [((6, 8), 32)] + [((6, 8), 64)] * 2 + [((3, 4), 64)] * 3 + [((2, 2), 64)] * 4
    assert shapes == [(2, channels, *size) for size, channels in levels]


def test_layouts_agree(tiny: Path, tensors: dict[str, Tensor], tmp_path: Path) -> None:
    save_file({k.removeprefix("control_model."): v for k, v in tensors.items()}, tmp_path / "bare.safetensors")
    diffusers = {k: v.contiguous() for k, v in controlnet_tensors(tensors).items()}
    save_file(diffusers, tmp_path / "diffusers.safetensors")
    # The first files held the checkpoint that they were trained on as well.
    save_file(tensors | {"model.diffusion_model.out.2.bias": torch.zeros(4)}, tmp_path / "with_unet.safetensors")
    expected = residuals(tiny / "tiny_controlnet.safetensors")
    for name in ("bare", "diffusers", "with_unet"):
        for actual, wanted in zip(residuals(tmp_path / f"{name}.safetensors"), expected, strict=True):
            assert torch.equal(actual, wanted), name


def test_prompts_share_the_pictures(tiny: Path) -> None:
    one, two = (residuals(tiny / "tiny_controlnet.safetensors", batch) for batch in (1, 2))
    for single, double in zip(one, two, strict=True):
        torch.testing.assert_close(torch.cat([single, single]), double, rtol=1e-3, atol=1e-4)


def test_a_shuffle_file_is_averaged(tiny: Path, tmp_path: Path) -> None:
    """As in the reference, its name says so."""
    assert adt.load_controlnet(tiny / "tiny_controlnet.safetensors", **CPU).global_average_pooling is False
    for name in ("control_v11e_sd15_shuffle", "control_v11e_sd15_shuffle_fp16"):
        (tmp_path / f"{name}.safetensors").symlink_to(tiny / "tiny_controlnet.safetensors")
        assert adt.load_controlnet(tmp_path / f"{name}.safetensors", **CPU).global_average_pooling is True


@pytest.mark.parametrize(
    ("folder", "config", "pools"),
    [
        ("control_v11e_sd15_shuffle", "{}", True),
        ("shuffle", '{"global_pool_conditions": true}', True),
        ("shuffle", '{"global_pool_conditions": false}', False),
    ],
)
def test_a_shuffle_folder_is_averaged(
    tensors: dict[str, Tensor], tmp_path: Path, folder: str, config: str, pools: bool
) -> None:
    """The file in a folder of diffusers has the name that all have."""
    (tmp_path / folder).mkdir()
    save_file(tensors, tmp_path / folder / "diffusion_pytorch_model.safetensors")
    (tmp_path / folder / "config.json").write_text(config)
    assert adt.load_controlnet(tmp_path / folder, **CPU).global_average_pooling is pools
    (tmp_path / folder / "config.json").write_text("[")
    with pytest.raises(CheckpointError, match="cannot read .*config.json"):
        adt.load_controlnet(tmp_path / folder, **CPU)


def test_full_size_shapes_are_taken() -> None:
    """The real UNet's way down with the published hint block and zero convolutions (ControlNet 1.0 and 1.1)."""
    unet = {key.removeprefix("model.diffusion_model."): shape for key, shape in FULL_SIZE["sd15_unet"].items()}
    shapes = {k: s for k, s in unet.items() if k.startswith(("input_blocks.", "middle_block.", "time_embed."))}
    widths = [320] * 4 + [640] * 3 + [1280] * 5
    for i, width in enumerate(widths):
        shapes |= {f"zero_convs.{i}.0.weight": [width, width, 1, 1], f"zero_convs.{i}.0.bias": [width]}
    shapes |= {"middle_block_out.0.weight": [1280, 1280, 1, 1], "middle_block_out.0.bias": [1280]}
    hint = [3, 16, 16, 32, 32, 96, 96, 256, 320]
    for i, (before, after) in enumerate(pairwise(hint)):
        shapes |= {f"input_hint_block.{2 * i}.weight": [after, before, 3, 3], f"input_hint_block.{2 * i}.bias": [after]}
    ldm = {f"control_model.{key}": torch.zeros(1).expand(shape) for key, shape in shapes.items()}
    place = Placement(torch.device("cpu"), torch.float32)
    config = build_controlnet(controlnet_tensors(ldm), "full size", place).config
    assert config.block_out_channels == (320, 640, 1280, 1280)
    assert config.cross_attention_dim == 768
    assert config.conditioning_embedding_out_channels == (16, 32, 96, 256)


def save(tensors: dict[str, Tensor], folder: Path) -> Path:
    save_file(tensors, folder / "bad.safetensors")
    return folder / "bad.safetensors"


@pytest.mark.parametrize(
    ("lost", "words"),
    [
        ("control_model.zero_convs.3.0.weight", "lacks 1 tensors.*controlnet_down_blocks.3.weight"),
        ("control_model.input_hint_block.6.bias", "lacks 1 tensors.*controlnet_cond_embedding"),
        ("control_model.input_hint_block.0.weight", "lacks a part that every ControlNet"),
        ("control_model.middle_block.1.proj_in.weight", "lacks 1 tensors.*mid_block"),
    ],
)
def test_an_incomplete_file_is_named(tensors: dict[str, Tensor], tmp_path: Path, lost: str, words: str) -> None:
    del tensors[lost]
    with pytest.raises(CheckpointError, match=f"bad.safetensors {words}"):
        adt.load_controlnet(save(tensors, tmp_path), **CPU)


def test_nothing_but_numbers_in_float8(tensors: dict[str, Tensor], tmp_path: Path) -> None:
    key = "control_model.zero_convs.3.0.weight"
    eight = {name: tensor.to(torch.float8_e4m3fn) for name, tensor in tensors.items()}
    assert adt.load_controlnet(save(eight, tmp_path), **CPU)
    with pytest.raises(CheckpointError, match="bad.safetensors holds NaN or infinity in 'controlnet_down_blocks.3"):
        adt.load_controlnet(save(eight | {key: (tensors[key] * torch.nan).to(torch.float8_e4m3fn)}, tmp_path), **CPU)


def test_damaged_files_are_named(tiny: Path, tensors: dict[str, Tensor], tmp_path: Path) -> None:
    key = "control_model.zero_convs.3.0.weight"
    with pytest.raises(
        CheckpointError, match="bad.safetensors has misshapen 1 tensors.*controlnet_down_blocks.3.weight"
    ):
        adt.load_controlnet(save(tensors | {key: torch.zeros(64, 64, 1, 1)}, tmp_path), **CPU)
    with pytest.raises(CheckpointError, match="bad.safetensors holds NaN or infinity in 'controlnet_down_blocks.3"):
        adt.load_controlnet(save(tensors | {key: tensors[key] * float("nan")}, tmp_path), **CPU)
    with pytest.raises(CheckpointError, match="bad.safetensors has quantised 1 tensors"):
        adt.load_controlnet(save(tensors | {key: tensors[key].to(torch.int8)}, tmp_path), **CPU)
    cut = tmp_path / "cut.safetensors"
    cut.write_bytes((tiny / "tiny_controlnet.safetensors").read_bytes()[:-10])
    with pytest.raises(CheckpointError, match="cut.safetensors is damaged"):
        adt.load_controlnet(cut, **CPU)
    with pytest.raises(CheckpointError, match="no such file: .*nowhere"):
        adt.load_controlnet(tmp_path / "nowhere.safetensors")


@pytest.mark.parametrize(
    ("extra", "words"),
    [
        ("lora_controlnet", "a Control-LoRA"),
        ("difference", "the difference of a ControlNet to a checkpoint"),
        ("control_model.label_emb.0.0.weight", "a ControlNet for SDXL"),
    ],
)
def test_other_kinds_of_controlnets_are_named(
    tensors: dict[str, Tensor], tmp_path: Path, extra: str, words: str
) -> None:
    with pytest.raises(CheckpointError, match=f"it is {words}.*Choose a ControlNet for Stable Diffusion 1.5"):
        adt.load_controlnet(save(tensors | {extra: torch.zeros(1)}, tmp_path), **CPU)


def test_pictures_of_other_channels_are_named(tensors: dict[str, Tensor], tmp_path: Path) -> None:
    key = "control_model.input_hint_block.0.weight"
    with pytest.raises(CheckpointError, match="reads pictures of 4 channels"):
        adt.load_controlnet(save(tensors | {key: torch.zeros(16, 4, 3, 3)}, tmp_path), **CPU)


def test_other_files_and_arguments_are_named(tiny: Path) -> None:
    with pytest.raises(CheckpointError, match="cannot be used as a ControlNet: it is a LoRA. Give it as a LoRA"):
        adt.load_controlnet(tiny / "tiny_lora.safetensors")
    with pytest.raises(CheckpointError, match="it is a ControlNet .*Give it as a ControlNet: detail --controlnet FILE"):
        adt.load_pipe(tiny / "tiny_controlnet.safetensors")
    for arguments, words in (({"path": None}, "must be a path"), ({"path": "x", "dtype": "int8"}, "unknown dtype")):
        with pytest.raises(InputError, match=words):
            adt.load_controlnet(**arguments)
