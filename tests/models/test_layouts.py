"""Checkpoint layouts: real full-size key tables load, folders equal single files, and each wrong file is named."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

import animdetail_trt as adt
from animdetail_trt.errors import CheckpointError
from animdetail_trt.models import files, motion
from animdetail_trt.models.checkpoint import Placement, read_shapes, require_kind
from animdetail_trt.models.kinds import recognise
from animdetail_trt.models.unet import build_unet, unet_from_ldm
from animdetail_trt.models.vae import build_vae, vae_from_ldm

GOLDEN = Path(__file__).parents[1] / "golden"
FULL_SIZE = json.loads((GOLDEN / "full_size_shapes.json").read_text())
CPU = Placement(torch.device("cpu"), torch.float32)


def weightless(table: str) -> dict[str, torch.Tensor]:
    """Tensors of the real shapes that take no memory: one zero, seen through strides of nought."""
    return {key: torch.zeros(1).expand(shape) for key, shape in FULL_SIZE[table].items()}


@pytest.fixture
def full_size_motion(monkeypatch: pytest.MonkeyPatch):
    def load(version: str) -> motion.MotionModule:
        monkeypatch.setattr(motion, "read_tensors", lambda path: weightless(f"mm_sd15_{version}"))
        return motion.load_motion_module(f"{version}.safetensors")

    return load


@pytest.mark.parametrize(("version", "positions"), [("v1", 24), ("v2", 32), ("v3", 32)])
def test_full_size_unet_takes_every_tensor(full_size_motion, version: str, positions: int) -> None:
    module = full_size_motion(version)
    assert (module.version, module.positions) == (version, positions)
    unet = build_unet(unet_from_ldm(weightless("sd15_unet")), module, "full size", CPU)
    assert unet.positions == positions
    assert unet.module.config.block_out_channels == (320, 640, 1280, 1280)
    assert unet.module.config.cross_attention_dim == 768


def test_full_size_vae_takes_every_tensor() -> None:
    vae = build_vae(vae_from_ldm(weightless("sd15_vae")), "full size", CPU)
    assert vae.config.block_out_channels == (128, 256, 512, 512)


def test_a_folder_is_the_single_file(tiny: Path, tiny_checkpoint: Path, tmp_path: Path) -> None:
    """A diffusers folder made of the same weights gives the same noise prediction and the same latents."""
    tensors = load_file(tiny_checkpoint)
    for part, name, converted in (
        ("unet", "diffusion_pytorch_model", unet_from_ldm(tensors)),
        ("vae", "diffusion_pytorch_model", vae_from_ldm(tensors)),
        (
            "text_encoder",
            "model",
            {k.split("transformer.")[1]: v for k, v in tensors.items() if k.startswith("cond_stage_model")},
        ),
    ):
        (tmp_path / part).mkdir()
        save_file({k: v.contiguous() for k, v in converted.items()}, tmp_path / part / f"{name}.safetensors")
    single, folder = (adt.load_pipe(p, device="cpu", dtype="float32") for p in (tiny_checkpoint, tmp_path))
    generator = torch.Generator().manual_seed(0)
    latents, tokens = torch.randn(1, 2, 4, 8, 8, generator=generator), torch.randn(1, 1, 77, 64, generator=generator)
    assert torch.equal(single.model.unet(latents, 500, tokens), folder.model.unet(latents, 500, tokens))
    pixels = torch.rand(1, 3, 64, 64, generator=generator) * 2 - 1
    assert torch.equal(single.vae.encode(pixels), folder.vae.encode(pixels))
    prompts = [pipe.with_prompt("a face").positive[0][0] for pipe in (single, folder)]
    assert torch.equal(*prompts)


def test_an_own_vae_replaces_the_checkpoints(tiny: Path, tmp_path: Path) -> None:
    vae = {
        key.removeprefix("first_stage_model."): value
        for key, value in load_file(tiny / "tiny_refiner.safetensors").items()
        if key.startswith("first_stage_model.")
    }
    save_file(vae, tmp_path / "vae.safetensors")
    replaced = adt.load_pipe(tiny / "tiny_sd15.safetensors", vae=tmp_path / "vae.safetensors", device="cpu")
    other = adt.load_pipe(tiny / "tiny_refiner.safetensors", device="cpu")
    pixels = torch.rand(1, 3, 64, 64, generator=torch.Generator().manual_seed(0)) * 2 - 1
    assert torch.equal(replaced.vae.encode(pixels), other.vae.encode(pixels))


def test_another_pipes_vae_is_shared(tiny: Path, tmp_path: Path) -> None:
    """A refiner's own is not looked at: not even whether there is one, nor whether an engine was built of it."""
    unet = {key: value for key, value in load_file(tiny / "tiny_refiner.safetensors").items() if "diffusion" in key}
    save_file(unet, tmp_path / "unet.safetensors")
    pipe = adt.load_pipe(tiny / "tiny_sd15.safetensors", device="cpu")
    assert adt.load_pipe(tmp_path / "unet.safetensors", vae=pipe.vae, device="cpu").vae is pipe.vae
    with pytest.raises(CheckpointError, match="unet.safetensors holds no VAE"):
        adt.load_pipe(tmp_path / "unet.safetensors", device="cpu")


KINDS = {
    "tiny_sd15": "sd15",
    "tiny_mm_v1": "motion-module",
    "tiny_mm_v2": "motion-module",
    "tiny_mm_v3": "motion-module",
    "tiny_lora": "lora",
    "tiny_controlnet": "controlnet",
    "tiny_clip": "text-encoder",
}


@pytest.mark.parametrize(("name", "kind"), KINDS.items())
def test_files_are_recognised(tiny: Path, name: str, kind: str) -> None:
    assert recognise(read_shapes(tiny / f"{name}.safetensors")) == kind


@pytest.mark.parametrize(
    ("keys", "words"),
    [
        ({"model.diffusion_model.label_emb.0.0.weight": (1,)}, "SDXL checkpoint"),
        ({"conditioner.embedders.1.model.ln_final.weight": (1,)}, "SDXL checkpoint"),
        ({"model.diffusion_model.input_blocks.0.0.weight": (320, 9, 3, 3)}, "inpainting"),
        (
            {
                "model.diffusion_model.input_blocks.0.0.weight": (320, 4, 3, 3),
                "model.diffusion_model.input_blocks.1.1.transformer_blocks.0.attn2.to_k.weight": (320, 1024),
            },
            "Stable Diffusion 2",
        ),
        ({"lora_unet_down_blocks_0.lora_up.weight": (1,)}, "it is a LoRA"),
        ({"model.diffusion_model.double_blocks.0.img_attn.qkv.weight": (1,)}, "Flux"),
        ({"emb_params": (1, 768)}, "textual inversion"),
        ({"decoder.foo": (1,)}, "no model of a kind that is known"),
    ],
)
def test_a_wrong_checkpoint_is_named(keys: dict[str, tuple[int, ...]], words: str) -> None:
    with pytest.raises(CheckpointError, match=words):
        require_kind("file.safetensors", keys, ("sd15",), "a checkpoint")


def test_wrong_files_in_wrong_places(tiny: Path, tmp_path: Path) -> None:
    sd15 = tiny / "tiny_sd15.safetensors"
    with pytest.raises(CheckpointError, match="it is a LoRA. Give it as a LoRA"):
        adt.load_pipe(tiny / "tiny_lora.safetensors")
    with pytest.raises(CheckpointError, match="it is an AnimateDiff motion module. Give it as the motion module"):
        adt.load_pipe(tiny / "tiny_mm_v2.safetensors")
    with pytest.raises(CheckpointError, match=r"used as a motion module.*--checkpoint FILE, or load_pipe\(path\)"):
        adt.load_pipe(sd15, motion_module=sd15)
    with pytest.raises(CheckpointError, match="cannot be used as a VAE"):
        adt.load_pipe(sd15, vae=tiny / "tiny_mm_v2.safetensors")
    three_levels = {
        key: value
        for key, value in load_file(tiny / "tiny_mm_v2.safetensors").items()
        if "down_blocks.3." not in key and "up_blocks.3." not in key
    }
    save_file(three_levels, tmp_path / "sdxl_mm.safetensors")
    with pytest.raises(CheckpointError, match="motion module for SDXL"):
        adt.load_pipe(sd15, motion_module=tmp_path / "sdxl_mm.safetensors")


def test_missing_and_damaged_files(tiny: Path, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="no such file: .*nowhere.safetensors"):
        adt.load_pipe(tmp_path / "nowhere.safetensors")
    cut = tmp_path / "cut.safetensors"
    cut.write_bytes((tiny / "tiny_sd15.safetensors").read_bytes()[:100_000])
    with pytest.raises(CheckpointError, match="cut.safetensors is damaged or not a safetensors file"):
        adt.load_pipe(cut)
    with pytest.raises(CheckpointError, match="no diffusers folder.* Give the folder that holds unet and vae"):
        adt.load_pipe(tmp_path)


@pytest.mark.parametrize(
    ("part", "stem", "name"),
    [
        ("unet", "diffusion_pytorch_model", "diffusion_pytorch_model.bin"),
        ("text_encoder", "model", "pytorch_model.bin"),
    ],
)
def test_a_pickle_in_a_folder_is_refused_unread(tmp_path: Path, part: str, stem: str, name: str) -> None:
    """By the names that diffusers gives them."""
    (tmp_path / part).mkdir()
    (tmp_path / part / name).write_bytes(b"PK")
    with pytest.raises(CheckpointError, match="is a pickle"):
        files._folder_part(tmp_path, part, stem)


@pytest.mark.parametrize("suffix", [".ckpt", ".safetensors"])
def test_a_pickle_is_refused_unread(tmp_path: Path, suffix: str) -> None:
    """Also under a false name."""
    path = tmp_path / f"model{suffix}"
    torch.save({"state_dict": {}}, path)
    with pytest.raises(CheckpointError, match="is a pickle"):
        adt.load_pipe(path)


@pytest.mark.parametrize(
    ("lost", "words"),
    [
        ("model.diffusion_model.out.2.bias", "lacks 1 tensors, the first of them 'conv_out.bias'"),
        ("model.diffusion_model.out.2.weight", "lacks a part that every.*conv_out.weight"),
        ("first_stage_model.quant_conv.bias", "the VAE of .*lacks 1 tensors"),
        ("first_stage_model.post_quant_conv.weight", "lacks a part that every.*post_quant_conv.weight"),
    ],
)
def test_an_incomplete_checkpoint_is_named(tiny: Path, tmp_path: Path, lost: str, words: str) -> None:
    tensors = load_file(tiny / "tiny_sd15.safetensors")
    del tensors[lost]
    save_file(tensors, tmp_path / "incomplete.safetensors")
    with pytest.raises(CheckpointError, match=words):
        adt.load_pipe(tmp_path / "incomplete.safetensors")


def test_an_inpainting_folder_is_named(tiny: Path, tmp_path: Path) -> None:
    unet = unet_from_ldm(load_file(tiny / "tiny_sd15.safetensors"))
    unet["conv_in.weight"] = torch.zeros(32, 9, 3, 3)
    (tmp_path / "unet").mkdir()
    save_file({k: v.contiguous() for k, v in unet.items()}, tmp_path / "unet" / "diffusion_pytorch_model.safetensors")
    with pytest.raises(CheckpointError, match="it holds an inpainting"):
        adt.load_pipe(tmp_path)


def test_a_motion_module_that_lacks_a_table_is_named(tiny: Path, tmp_path: Path) -> None:
    tensors = load_file(tiny / "tiny_mm_v3.safetensors")
    del tensors[next(key for key in tensors if key.endswith("attention_blocks.0.pos_encoder.pe"))]
    save_file(tensors, tmp_path / "mm.safetensors")
    with pytest.raises(CheckpointError, match="mm.safetensors lacks a part"):
        adt.load_pipe(tiny / "tiny_sd15.safetensors", motion_module=tmp_path / "mm.safetensors")


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float8_e4m3fn])
def test_precision_and_training_leftovers_change_no_weight(tiny_checkpoint: Path, tmp_path: Path, dtype) -> None:
    """A pruned file is the full one: averages, schedules, an optimizer and a manager of words are left out."""
    tensors = {key: tensor.to(dtype) for key, tensor in load_file(tiny_checkpoint).items()}
    text = "cond_stage_model.transformer.text_model.embeddings."
    leftovers = {f"model_ema.{k.removeprefix('model.').replace('.', '')}": t.clone() for k, t in tensors.items()}
    leftovers |= {"model_ema.decay": torch.tensor(0.9), "model_ema.num_updates": torch.tensor(7)}
    leftovers |= {"betas": torch.ones(1000), "alphas_cumprod": torch.ones(1000), "optimizer_states.0": torch.ones(2)}
    leftovers |= {"embedding_manager.string_to_param_dict.*": torch.ones(1, 64), "global_step": torch.tensor(3)}
    leftovers |= {f"{text}position_ids": torch.arange(77)[None].half(), "cond_stage_model.logit_scale": torch.ones(())}
    save_file(tensors | leftovers, tmp_path / "full.safetensors")
    parts = files.read_parts(tmp_path / "full.safetensors")
    assert parts.vae is not None
    assert all(tensor.dtype == dtype for tensor in (*parts.unet.values(), *parts.vae.values()))
    expected = files.read_parts(tiny_checkpoint)
    for actual, wanted in ((parts.unet, expected.unet), (parts.vae, expected.vae)):
        assert wanted is not None
        assert actual.keys() == wanted.keys()
        assert all(torch.equal(actual[key].float(), tensor.to(dtype).float()) for key, tensor in wanted.items())


def test_a_quantised_checkpoint_is_named(tiny: Path, tmp_path: Path) -> None:
    tensors = load_file(tiny / "tiny_sd15.safetensors")
    tensors["model.diffusion_model.out.2.weight"] = tensors["model.diffusion_model.out.2.weight"].to(torch.int8)
    save_file(tensors, tmp_path / "int8.safetensors")
    with pytest.raises(CheckpointError, match="has quantised 1 tensors"):
        adt.load_pipe(tmp_path / "int8.safetensors")


def test_unknown_choices_list_the_known(tiny: Path) -> None:
    sd15 = tiny / "tiny_sd15.safetensors"
    for arguments, words in (
        ({"backend": "tensorflow"}, "unknown backend 'tensorflow'. Choose one of auto, torch"),
        ({"dtype": "int8"}, "unknown dtype 'int8'. Choose auto, float32"),
        ({"device": "gpu"}, "unknown device 'gpu'"),
        ({"device": "mps"}, "device 'mps' is not supported"),
        ({"vae": 5}, "vae must be a path, or the vae of another pipe, not 5"),
        ({"context": 16}, "context must be ContextOptions, not 16"),
        ({"loras": [("a.safetensors", 1.0)]}, "no such file: a.safetensors"),
    ):
        with pytest.raises(adt.AnimDetailError, match=words):
            adt.load_pipe(sd15, **arguments)
