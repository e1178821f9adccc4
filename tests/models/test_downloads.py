"""What lies on a disk under a model's name: folders as diffusers writes them, and what failed downloads leave."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

import animdetail_trt as adt
from animdetail_trt.errors import CheckpointError
from animdetail_trt.models.checkpoint import read_tensors
from animdetail_trt.models.controlnet import controlnet_tensors
from animdetail_trt.models.files import ModelFiles
from animdetail_trt.models.motion import positions_of
from animdetail_trt.models.unet import unet_from_ldm
from animdetail_trt.models.vae import vae_from_ldm

NAMES = ("diffusion_pytorch_model.safetensors", "diffusion_pytorch_model.fp16.safetensors")


def written(tensors: dict[str, Tensor], path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    save_file({key: tensor.contiguous() for key, tensor in tensors.items()}, path)
    return path


@pytest.mark.parametrize("name", NAMES)
def test_a_folder_of_one_model_is_the_file_in_it(tiny: Path, tmp_path: Path, name: str) -> None:
    """MotionAdapters, VAEs, ControlNets and LoRAs as diffusers saves them; engines are found by the file."""
    sd15, mm = tiny / "tiny_sd15.safetensors", tiny / "tiny_mm_v3.safetensors"
    vae = written(vae_from_ldm(load_file(tiny / "tiny_refiner.safetensors")), tmp_path / "vae" / name)
    motion = written(load_file(mm), tmp_path / "motion" / name)
    control = written(
        controlnet_tensors(load_file(tiny / "tiny_controlnet.safetensors")), tmp_path / "controlnet" / name
    )
    lora = written(load_file(tiny / "tiny_lora.safetensors"), tmp_path / "lora" / "pytorch_lora_weights.safetensors")
    by_folder, by_file = (
        ModelFiles(sd15, motion_module=parts[0], vae=parts[1], loras=[(parts[2], 0.5)])
        for parts in ((motion.parent, vae.parent, lora.parent), (motion, vae, lora))
    )
    assert by_folder == by_file
    assert by_folder.weight_files("unet")["motion_module"] == motion
    assert positions_of(motion.parent) == 32
    folders, files = (adt.load_controlnet(path, device="cpu").module for path in (control.parent, control))
    assert all(torch.equal(a, b) for a, b in zip(folders.parameters(), files.parameters(), strict=True))


def test_the_command_line_takes_such_folders(tiny: Path, tmp_path: Path) -> None:
    from argparse import Namespace

    from animdetail_trt.cli.paths import check_kinds

    folder = written(load_file(tiny / "tiny_mm_v3.safetensors"), tmp_path / "motion" / NAMES[0]).parent
    check_kinds(Namespace(motion_module=folder))
    with pytest.raises(CheckpointError, match="motion/diffusion_pytorch_model.safetensors cannot be used as a VAE"):
        check_kinds(Namespace(vae=folder))


def test_weights_in_several_files_are_named(tiny: Path, tmp_path: Path) -> None:
    unet = unet_from_ldm(load_file(tiny / "tiny_sd15.safetensors"))
    for i in (1, 2):
        shard = {key: tensor for key, tensor in unet.items() if (len(key) % 2 == 0) is (i == 2)}
        written(shard, tmp_path / "sd" / "unet" / f"diffusion_pytorch_model-0000{i}-of-00002.safetensors")
    (tmp_path / "sd" / "unet" / "diffusion_pytorch_model.safetensors.index.json").write_text("{}")
    for load in (
        lambda: adt.load_pipe(tmp_path / "sd"),
        lambda: adt.load_pipe(tiny / "tiny_sd15.safetensors", motion_module=tmp_path / "sd" / "unet"),
    ):
        with pytest.raises(CheckpointError, match="unet holds its weights in several files.*max_shard_size"):
            load()


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"conv_in.weight": torch.zeros(32, 9, 3, 3)}, "an inpainting"),
        ({"add_embedding.linear_1.weight": torch.zeros(2, 2)}, "an SDXL checkpoint"),
        (
            {"down_blocks.0.attentions.0.transformer_blocks.0.attn2.to_k.weight": torch.zeros(32, 1024)},
            "a Stable Diffusion 2.x checkpoint",
        ),
    ],
)
def test_a_folder_of_another_family_is_named(tiny: Path, tmp_path: Path, change: dict[str, Tensor], words: str) -> None:
    unet = unet_from_ldm(load_file(tiny / "tiny_sd15.safetensors"))
    written(unet | change, tmp_path / "sd" / "unet" / NAMES[0])
    with pytest.raises(CheckpointError, match=f"sd cannot be used as a checkpoint: .*{words}.* Choose a Stable"):
        adt.load_pipe(tmp_path / "sd")


@pytest.mark.parametrize(("prediction", "refused"), [("v_prediction", True), ("epsilon", False)])
def test_a_folder_of_v_prediction_is_named(
    tiny_checkpoint: Path, tmp_path: Path, prediction: str, refused: bool
) -> None:
    """Its weights look like all others': what its scheduler is told says it."""
    tensors = load_file(tiny_checkpoint)
    written(unet_from_ldm(tensors), tmp_path / "sd" / "unet" / NAMES[0])
    written(vae_from_ldm(tensors), tmp_path / "sd" / "vae" / NAMES[0])
    (tmp_path / "sd" / "scheduler").mkdir()
    (tmp_path / "sd" / "scheduler" / "scheduler_config.json").write_text(f'{{"prediction_type": "{prediction}"}}')
    if refused:
        with pytest.raises(CheckpointError, match="it holds a Stable Diffusion 1.5 checkpoint of v-prediction"):
            adt.load_pipe(tmp_path / "sd")
    else:
        assert adt.load_pipe(tmp_path / "sd", device="cpu").clip is None


LFS = b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a214614\nsize 4265146304\n"


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "is empty: a download that was not finished"),
        (b"\0" * 4096, "is empty: a download that was not finished"),
        (LFS, "is a Git LFS pointer, which only names the file. Fetch it with `git lfs pull`"),
        (b"<!DOCTYPE html><html><title>Sign in</title></html>", "is a web page"),
        (b"\xef\xbb\xbf\r\n <html></html>", "is a web page"),
        (b'{"error": "Repository not found"}', "is a text in JSON"),
        (b"GGUF\3\0\0\0" + b"\0" * 64, "is a GGUF file"),
        (b"MZ\x90\0" * 20, "is damaged or not a safetensors file"),
    ],
)
def test_what_a_download_left_is_named(tmp_path: Path, content: bytes, words: str) -> None:
    path = tmp_path / "model.safetensors"
    path.write_bytes(content)
    with pytest.raises(CheckpointError) as told:
        adt.load_pipe(path)
    assert str(told.value).startswith(f"{path} {words}")


def test_a_file_that_may_not_be_read_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = written({"x": torch.ones(2)}, tmp_path / "model.safetensors")

    def refuse(*_: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "open", refuse)
    with pytest.raises(CheckpointError, match="cannot read .*model.safetensors: Permission denied. Check its permiss"):
        read_tensors(path)


@pytest.mark.parametrize("wrapped", [False, True])
def test_the_way_to_convert_a_pickle_works(tiny: Path, tmp_path: Path, wrapped: bool) -> None:
    """AnimateDiff's own files are such: tensors in 'state_dict' or bare, with a configuration between them."""
    tensors = load_file(tiny / "tiny_mm_v3.safetensors")
    bare = {key: tensor.t() if tensor.ndim == 2 else tensor for key, tensor in tensors.items()}
    pickled = {"state_dict": bare, "epoch": 3} if wrapped else bare | {"animatediff_config": {"use": True}}
    torch.save(pickled, tmp_path / "mm.ckpt")
    with pytest.raises(CheckpointError) as told:
        read_tensors(tmp_path / "mm.ckpt")
    code = str(told.value).split("in a place that you trust: ")[1].split(", with 'string_to_param'")[0]
    import safetensors.torch

    out = tmp_path / "out.safetensors"
    exec(code.replace("'out.safetensors'", repr(str(out))), {
        "torch": torch, "safetensors": safetensors, "path": tmp_path / "mm.ckpt",
    })  # fmt: skip
    assert load_file(out).keys() == tensors.keys()
    assert all(torch.equal(tensor, bare[key]) for key, tensor in load_file(out).items())


def test_a_folder_of_pickles_is_refused_unread(tiny: Path, tmp_path: Path) -> None:
    (tmp_path / "motion").mkdir()
    shutil.copy(tiny / "tiny_mm_v3.safetensors", tmp_path / "motion" / "diffusion_pytorch_model.bin")
    with pytest.raises(CheckpointError, match="diffusion_pytorch_model.bin is a pickle"):
        adt.load_pipe(tiny / "tiny_sd15.safetensors", motion_module=tmp_path / "motion")
