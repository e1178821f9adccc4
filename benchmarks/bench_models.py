"""What the models themselves cost: SD 1.5 at full size with an AnimateDiff v2 module, random weights, through torch.

    python benchmarks/bench_models.py --output build/bench

One UNet call is one sampler step's: 16 frames, the positive and the negative prompt together.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

import animdetail_trt as adt
from animdetail_trt.backends.torch_backend import TorchVae

SHAPES = Path(__file__).parents[1] / "tests" / "golden" / "full_size_shapes.json"
FRAMES, PROMPTS, TOKENS = 16, 2, (77, 768)


def write_random(path: Path, *names: str) -> None:
    """A float16 file of the real shapes; small weights, so that no activation overflows, and no positions."""
    shapes = json.loads(SHAPES.read_text(encoding="utf-8"))
    generator = torch.Generator().manual_seed(0)
    tensors = {
        key: (torch.randn(shape, generator=generator) * (0.0 if key.endswith(".pe") else 0.02)).half()
        for name in names
        for key, shape in shapes[name].items()
    }
    save_file(tensors, path)


def load_random(device: str, dtype: str) -> adt.BasicPipe:
    with tempfile.TemporaryDirectory() as folder:
        checkpoint, motion = Path(folder) / "sd15.safetensors", Path(folder) / "mm.safetensors"
        write_random(checkpoint, "sd15_unet", "sd15_vae")
        write_random(motion, "mm_sd15_v2")
        return adt.load_pipe(checkpoint, motion_module=motion, device=device, dtype=dtype, backend="torch")


def time_calls(call: Callable[[], Tensor], device: torch.device, rounds: int) -> list[float]:
    """Milliseconds of each call, after two that are not counted."""
    times = []
    for i in range(rounds + 2):
        start = time.perf_counter()
        call()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        if i >= 2:
            times.append((time.perf_counter() - start) * 1000)
    return times


def measure(device: torch.device, dtype: str, size: int, rounds: int) -> tuple[dict[str, Any], str]:
    """The times of each call, and the dtype that the VAE runs in."""
    pipe = load_random(str(device), dtype)
    unet, vae = pipe.model.unet, pipe.vae
    assert isinstance(vae, TorchVae)
    latents = torch.randn(PROMPTS, FRAMES, 4, size // 8, size // 8, device=device)
    tokens = torch.randn(PROMPTS, 1, *TOKENS, device=device)
    pixels = torch.rand(FRAMES, 3, size, size, device=device) * 2 - 1
    batch = vae.frames_per_call(size, size)
    calls: dict[str, Callable[[], Tensor]] = {
        "unet": lambda: unet(latents, 500.0, tokens),
        "vae encode": lambda: torch.cat([vae.encode(part) for part in pixels.split(batch)]),
        "vae decode": lambda: torch.cat([vae.decode(part) for part in latents[0].split(batch)]),
    }
    results = {}
    for name, call in calls.items():
        times = time_calls(call, device, rounds)
        results[name] = {"median_ms": statistics.median(times), "min_ms": min(times), "max_ms": max(times)}
    return results, str(vae.dtype).removeprefix("torch.")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, required=True, help="folder for bench_models.json")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--dtype", default="float16", choices=("float32", "float16", "bfloat16"))
    parser.add_argument("--size", type=int, default=512, help="pixels of a side")
    parser.add_argument("--rounds", type=int, default=10)
    args = parser.parse_args()
    device = torch.device(args.device)
    card = torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu"
    results, vae_dtype = measure(device, args.dtype, args.size, args.rounds)
    for name, result in results.items():
        print(f"{name:12} {result['median_ms']:9.1f} ms ({result['min_ms']:.1f} to {result['max_ms']:.1f})")
    report = {
        "device": card,
        "torch": torch.__version__,
        "frames": FRAMES,
        "prompts": PROMPTS,
        "size": args.size,
        "unet_dtype": args.dtype,
        "vae_dtype": vae_dtype,
        "rounds": args.rounds,
        "results": results,
    }
    args.output.mkdir(parents=True, exist_ok=True)
    (args.output / "bench_models.json").write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
