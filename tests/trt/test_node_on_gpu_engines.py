"""The whole node on real engines in float16, against torch in float32 on the same card; LoRAs put into one."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from on_the_card import library_on_card
from torch import Tensor

import animdetail_trt as adt
from animdetail_trt.cli import main
from golden_cases import Case, load_case

pytestmark = pytest.mark.gpu

SIZES = ["--size", "64:64:256", "--frames", "1:8:32"]


@pytest.fixture(scope="module", params=["tensorrt", "tensorrt_rtx"])
def flavour(request: pytest.FixtureRequest) -> str:
    library_on_card(request.param)
    return str(request.param)


@pytest.fixture(scope="module")
def engine_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("engines")


def build(tiny: Path, engine_dir: Path, flavour: str, checkpoint: str, *flags: object) -> None:
    argv = ["build-engines", "--checkpoint", tiny / f"{checkpoint}.safetensors", "--flavour", flavour, "--quiet"]
    assert main([str(word) for word in [*argv, "--engine-dir", engine_dir, *SIZES, *flags]]) == 0


def psnr(out: Tensor, expected: Tensor) -> float:
    """In decibels, of frames in 0..1."""
    return float(-10 * torch.log10((out - expected).square().mean()))


def detail(case: Case, pipe: adt.BasicPipe, refiner: adt.BasicPipe | None) -> Tensor:
    image, *_ = adt.DetailerForEachPipeForAnimateDiff.doit(
        case.frames, case.segs, **case.settings["params"], basic_pipe=pipe, refiner_basic_pipe_opt=refiner
    )
    assert isinstance(image, Tensor)
    return image.cpu()


@pytest.mark.parametrize("name", ["basic", "motion_v2_two_segs", "refiner_motion", "context_overlap_linear"])
def test_float16_engines_give_the_frames_of_float32_torch(
    name: str, tiny: Path, engine_dir: Path, flavour: str
) -> None:
    case = load_case(name)
    motion = case.settings["motion_module"]
    build(
        tiny, engine_dir, flavour, "tiny_sd15", *(["--motion-module", tiny / f"{motion}.safetensors"] if motion else [])
    )

    def pipes(**options: Any) -> tuple[adt.BasicPipe, adt.BasicPipe | None]:
        refiner = case.pipe(tiny, "tiny_refiner", "refiner_", **options) if case.settings["refiner"] else None
        return case.pipe(tiny, **options), refiner

    expected = detail(case, *pipes(device="cuda", dtype="float32"))
    pipe, _ = pipes(device="cuda", dtype="float16", backend=flavour, engine_dir=engine_dir)
    _, refiner = pipes(device="cuda", dtype="float16")
    out = detail(case, pipe, refiner)
    assert pipe.model.unet.name == pipe.vae.name == "the engine"
    assert torch.isfinite(out).all()
    assert psnr(out, expected) >= 40


def test_loras_come_and_go_without_a_build(tiny: Path, engine_dir: Path, flavour: str) -> None:
    build(tiny, engine_dir, flavour, "tiny_sd15", "--refittable")
    x = torch.randn(2, 4, 4, 16, 12, generator=torch.Generator().manual_seed(0)).cuda()
    tokens = torch.randn(2, 1, 77, 64, generator=torch.Generator().manual_seed(1)).cuda()

    def eps(strength: float | None, **options: Any) -> Tensor:
        loras = [] if strength is None else [(tiny / "tiny_lora.safetensors", strength)]
        pipe = adt.load_pipe(tiny / "tiny_sd15.safetensors", loras=loras, device="cuda", **options)
        return pipe.model.unet(x, 300.0, tokens)

    engines = {"dtype": "float16", "backend": flavour, "engine_dir": engine_dir}
    first, second, again = eps(0.8, **engines), eps(0.3, **engines), eps(0.8, **engines)
    assert (
        float((first - again).norm() / first.norm()) < 1e-3
    )  # TensorRT for RTX may have compiled better kernels since
    for out, strength in ((first, 0.8), (second, 0.3)):
        expected = eps(strength, dtype="float32", backend="torch")
        assert float((out - expected).norm() / expected.norm()) < 1e-2
