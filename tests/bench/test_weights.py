"""Random weights: the real shapes, the same on every run, and readable by what reads real ones."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

import animdetail_trt as adt
from animdetail_trt.bench.weights import SD15, TINY, unet_shapes, vae_shapes, write_models
from animdetail_trt.errors import MediaError
from animdetail_trt.models.unet import unet_from_ldm
from animdetail_trt.models.vae import vae_from_ldm

SHAPES = json.loads((Path(__file__).parents[1] / "golden" / "full_size_shapes.json").read_text())


def test_full_size_shapes_are_stable_diffusions() -> None:
    """Those of the published files, whose single-file layout is converted here."""

    def published(name: str) -> dict[str, torch.Tensor]:
        return {key: torch.empty(shape, device="meta") for key, shape in SHAPES[name].items()}

    unet, motion = unet_shapes(SD15)
    assert motion == {key: tuple(shape) for key, shape in SHAPES["mm_sd15_v2"].items()}
    assert unet == {key: tuple(tensor.shape) for key, tensor in unet_from_ldm(published("sd15_unet")).items()}
    converted = {key: tuple(tensor.shape) for key, tensor in vae_from_ldm(published("sd15_vae")).items()}
    # The file has the VAE's attention as 1x1 convolutions.
    assert vae_shapes(SD15).keys() == converted.keys()
    for key, shape in vae_shapes(SD15).items():
        assert torch.Size(shape).numel() == torch.Size(converted[key]).numel(), key


def test_tiny_models_load_and_run(tmp_path: Path) -> None:
    paths = write_models(tmp_path, TINY)
    first = load_file(paths.motion_module)
    assert sum(path.stat().st_size for path in tmp_path.rglob("*.safetensors")) < 20e6
    before = paths.motion_module.stat().st_mtime_ns
    assert write_models(tmp_path, TINY) == paths  # they are there: nothing is written again
    assert paths.motion_module.stat().st_mtime_ns == before
    assert write_models(tmp_path / "again", TINY).motion_module.read_bytes() == paths.motion_module.read_bytes()
    assert all(torch.isfinite(tensor).all() for tensor in first.values())
    pipe = adt.load_pipe(paths.checkpoint, motion_module=paths.motion_module, device="cpu")
    eps = pipe.model.unet(torch.randn(1, 2, 4, 8, 8), 500.0, torch.randn(1, 1, 77, TINY.token_dim))
    assert 0.1 < float(eps.std()) < 10
    pixels = pipe.vae.decode(torch.randn(1, 4, 8, 8))
    assert 0.1 < float(pixels.std()) < 1  # neither grey nor black and white


def test_a_disk_that_is_full_for_them_is_told_of(tmp_path: Path) -> None:
    """safetensors tells of it in an error of its own."""
    resource = pytest.importorskip("resource")
    limit, most = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (2 << 20, most))
    try:
        with pytest.raises(MediaError, match="cannot write a model's weights to .*Free some space"):
            write_models(tmp_path, TINY)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, most))
    assert max((path.stat().st_size for path in tmp_path.rglob("*") if path.is_file()), default=0) < 2 << 20
    assert list(tmp_path.rglob(".animdetail-*")) == []


@pytest.mark.parametrize("size", [SD15, TINY])
def test_levels_are_four(size: object) -> None:
    unet, motion = unet_shapes(size)  # type: ignore[arg-type]
    assert any(key.startswith("down_blocks.3.") for key in unet)
    assert any(key.startswith("mid_block.") for key in motion)
    assert not any(".motion_modules." in key for key in unet)
