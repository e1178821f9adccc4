"""torch.compile of the UNet's blocks: the same function, compiled once for all sizes, and torch where that fails."""

from __future__ import annotations

from functools import partialmethod
from typing import Any

import pytest
import torch
from diffusers.models.unets.unet_motion_model import UNetMotionModel
from torch import nn
from torch._dynamo.utils import counters

from animdetail_trt.backends.interface import UNetRunner
from animdetail_trt.backends.torch_backend import CompiledUNet, TorchUNet
from animdetail_trt.errors import EngineError
from animdetail_trt.models.motion import Version, apply_motion_norms

COMPILE = nn.Module.compile


def small_unet(device: str = "cpu", norms: Version = "v2") -> Any:
    """Of two levels: its blocks have every kind of neighbour that a whole one's have."""
    with torch.device("meta"):
        module = UNetMotionModel(
            block_out_channels=(32, 64),
            down_block_types=("CrossAttnDownBlockMotion", "DownBlockMotion"),
            up_block_types=("UpBlockMotion", "CrossAttnUpBlockMotion"),
            layers_per_block=1,
            cross_attention_dim=16,
            num_attention_heads=2,
            motion_num_attention_heads=2,
            use_motion_mid_block=False,
        )
    apply_motion_norms(module, norms)
    module.to_empty(device=device)
    torch.manual_seed(0)
    with torch.no_grad():
        for name, tensor in (*module.named_parameters(), *module.named_buffers()):
            tensor.copy_(torch.randn(tensor.shape) * 0.1 + (1 if tensor.ndim == 1 and name.endswith("weight") else 0))
    return module.eval()


def call(unet: UNetRunner, batch: int, frames: int, side: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(1)
    latents = torch.randn(batch, frames, 4, side, side, generator=generator)
    return unet(latents, 500.0, torch.randn(batch, 1, 77, 16, generator=generator))


@pytest.mark.parametrize("norms", ["v1", "v2"])  # over the window, for each frame
def test_one_compilation_serves_all_sizes(monkeypatch: pytest.MonkeyPatch, norms: Version) -> None:
    """Dynamo decides what is compiled anew; its backend here runs the graphs as they are, in seconds."""
    monkeypatch.setattr(nn.Module, "compile", partialmethod(COMPILE, backend="eager"))
    torch.compiler.reset()
    counters.clear()
    module = small_unet(norms=norms)
    compiled, plain = CompiledUNet(module, 32), TorchUNet(module, 32)
    graphs = []
    for sizes in [(2, 4, 16), (2, 3, 24), (3, 5, 16), (1, 4, 16), (1, 6, 32)]:
        torch.testing.assert_close(call(compiled, *sizes), call(plain, *sizes))
        graphs.append(counters["stats"]["unique_graphs"])
    of_one_prompt = graphs[-1] if norms == "v1" else graphs[0]  # a window axis of 1 is compiled for itself
    assert graphs == [graphs[0]] * 3 + [of_one_prompt] * 2
    assert 1 < graphs[0] <= of_one_prompt < 24
    assert sum(counters["graph_break"].values()) == 0


def test_where_it_does_not_compile_the_module_runs_as_it_was(monkeypatch: pytest.MonkeyPatch) -> None:
    def no_compiler(*_: object) -> None:
        raise OSError("no C++ compiler")

    monkeypatch.setattr(nn.Module, "compile", partialmethod(COMPILE, backend=no_compiler))
    torch.compiler.reset()
    module = small_unet()
    compiled, plain = CompiledUNet(module, 32), TorchUNet(module, 32)
    with pytest.raises(EngineError, match=r"torch\.compile failed: OSError: no C\+\+ compiler$"):
        call(compiled, 2, 4, 16)
    assert call(plain, 2, 4, 16).isfinite().all()


@pytest.mark.gpu
def test_kernels_of_a_gpu_compute_the_same() -> None:
    torch.compiler.reset()
    module = small_unet("cuda")
    compiled, plain = CompiledUNet(module, 32), TorchUNet(module, 32)
    for sizes in [(2, 16, 16), (1, 8, 24)]:
        expected = call(plain, *sizes)
        assert (call(compiled, *sizes) - expected).norm() < 1e-2 * expected.norm()  # products in TF32


def test_out_of_memory_is_no_failure_to_compile(monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise RuntimeError("DefaultCPUAllocator: can't allocate memory")

    monkeypatch.setattr(TorchUNet, "__call__", full)
    with pytest.raises(RuntimeError, match="can't allocate"):
        call(CompiledUNet(small_unet(), 32), 1, 2, 16)
