"""What load_pipe makes of the types that it is asked for."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

import animdetail_trt as adt
from animdetail_trt.errors import CheckpointError, InputError
from animdetail_trt.models.files import ModelFiles


def load(tiny: Path, **place: Any) -> Any:
    return adt.load_pipe(tiny / "tiny_sd15.safetensors", device="cpu", **place)


@pytest.mark.parametrize(("given", "unet", "vae"), [
    ({}, torch.float32, torch.float32),
    ({"dtype": "float16"}, torch.float16, torch.float32),  # whose range it leaves
    ({"dtype": "bfloat16"}, torch.bfloat16, torch.bfloat16),
    ({"dtype": torch.float16, "vae_dtype": torch.bfloat16}, torch.float16, torch.bfloat16),
    ({"dtype": "bfloat16", "vae_dtype": "float32"}, torch.bfloat16, torch.float32),
])  # fmt: skip
def test_the_types_of_unet_and_vae(tiny: Path, given: dict[str, Any], unet: torch.dtype, vae: torch.dtype) -> None:
    pipe = load(tiny, **given)
    assert (pipe.model.unet.dtype, pipe.vae.dtype) == (unet, vae)


def test_paths_in_the_home_folder(tiny: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tiny))
    pipe = adt.load_pipe(
        "~/tiny_sd15.safetensors", device="cpu", motion_module=Path("~/tiny_mm_v1.safetensors"), engine_dir="~/engines"
    )
    assert pipe.model.unet.positions == 24
    files = ModelFiles("sd15.safetensors", vae="~/vae.safetensors", loras=[("~/lora.safetensors", 1)])
    assert (files.checkpoint, files.vae) == ("sd15.safetensors", f"{tiny}/vae.safetensors")
    assert files.loras == [(f"{tiny}/lora.safetensors", 1.0)]
    adt.load_controlnet("~/tiny_controlnet.safetensors", device="cpu")
    with pytest.raises(CheckpointError, match="no such file: ~nobody-here/sd15"):
        adt.load_pipe("~nobody-here/sd15.safetensors")
    assert repr(pipe.with_conditioning([[torch.zeros(1, 77, 64), {}]])) == (
        "BasicPipe(model=DiffusionModel, clip=None, vae=TorchVae, positive=[...], negative=None)"
    )


def test_a_vae_in_bfloat16_gives_nearly_the_same_frames(tiny: Path) -> None:
    generator = torch.Generator().manual_seed(1)
    frames, mask = torch.rand(1, 64, 64, 3, generator=generator), torch.zeros(64, 64)
    mask[16:48, 16:48] = 1
    (segs,) = adt.MaskToSEGS_for_AnimateDiff.doit(mask, crop_factor=1.5)
    prompt = [[torch.randn(1, 77, 64, generator=generator), {}]]
    settings = {"guide_size": 64, "steps": 1, "denoise": 0.5, "seed": 7}

    def detailed(vae_dtype: str) -> torch.Tensor:
        pipe = load(tiny, vae_dtype=vae_dtype).with_conditioning(prompt, prompt)
        image, *_ = adt.DetailerForEachPipeForAnimateDiff.doit(frames, segs, basic_pipe=pipe, **settings)
        assert isinstance(image, torch.Tensor)
        assert image.dtype == torch.float32
        return image

    error = detailed("bfloat16") - detailed("float32")
    assert 0 < error.square().mean() < 1e-4  # PSNR above 40 dB


@pytest.mark.parametrize("wrong", ["float16", "int8", None])
def test_a_type_that_a_vae_cannot_run_in_is_refused(tiny: Path, wrong: Any) -> None:
    with pytest.raises(InputError, match="the VAE cannot run in .* Choose auto, float32, or bfloat16"):
        load(tiny, vae_dtype=wrong)
