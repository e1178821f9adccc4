#!/usr/bin/env python3
"""Train the tiny models of demo.py on the part of its clip that the demo does not show: two hours on two processors.

    python examples/train_demo_models.py

They have the layout of Stable Diffusion 1.5 and of a v3 motion module in a 200th of the size, and learn one man's face:
first the VAE (Rombach et al. 2022, without its adversary), then the UNet with its motion module, on 16 frames at a
time: to denoise (Ho et al. 2020), and at last to undo the demo's blur.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Callable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from rich.progress import track
from safetensors.numpy import save_file
from torch import Tensor, nn
from torch.nn import functional

from animdetail_trt import load_pipe
from animdetail_trt.media.video import probe_video, read_video
from animdetail_trt.sampling import SampleSettings
from animdetail_trt.sampling.model import LATENT_SCALE
from demo import (
    CLIP_FRAMES,
    DENOISE,
    MODELS,
    NEGATIVE,
    PROMPT,
    SAMPLER,
    SCHEDULER,
    STEPS,
    carphone,
    tiny_model,
    with_blurred_face,
)

FRAMES, CROP = 16, (144, 128)
"""Frames of a clip that the UNet sees at once; height and width of what both see."""
SCALES = 1.3, 1.7
"""How much the demo enlarges its crops, about."""
FIRST_TRAINED = CLIP_FRAMES + 4
"""The frames before it are the demo's."""
LATENT_STD = 1 / LATENT_SCALE
Files: TypeAlias = dict[str, dict[str, NDArray[Any]]]
"""File name, then key."""
Example: TypeAlias = tuple[Tensor, float, Tensor]
"""A noisy latent (f, 4, h, w), its sigma, and what the UNet should say of it."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=MODELS, help="folder for both files")
    parser.add_argument("--vae-steps", type=int, default=3000)
    parser.add_argument("--unet-steps", type=int, default=2500)
    parser.add_argument("--restoration-steps", type=int, default=2600)
    args = parser.parse_args()
    torch.manual_seed(0)
    args.output.mkdir(parents=True, exist_ok=True)
    files = {"unet_and_vae": tiny_model("tiny_sd15"), "motion_module": tiny_model("tiny_mm_v3")}
    pipe = load(files)
    frames = read_video(probe_video(carphone()))[0][FIRST_TRAINED:].permute(0, 3, 1, 2)
    train_vae(pipe.vae.module, frames, args.vae_steps)
    scale_latents(pipe.vae.module, frames)
    train_unet(pipe, frames, args.unet_steps)
    train_restoration(pipe, frames, args.restoration_steps)
    for name, tensors in trained(pipe, files).items():
        save_file(tensors, args.output / f"{name}.safetensors")


def load(files: Files) -> Any:
    """The pipe of these files, in torch on the CPU, with the demo's prompts."""
    with tempfile.TemporaryDirectory() as folder:
        checkpoint, motion_module = Path(folder) / "checkpoint.safetensors", Path(folder) / "motion_module.safetensors"
        save_file(files["unet_and_vae"] | tiny_model("tiny_clip"), checkpoint)
        save_file(files["motion_module"], motion_module)
        pipe = load_pipe(checkpoint, motion_module=motion_module, device="cpu", dtype="float32", backend="torch")
    return pipe.with_prompt(PROMPT, NEGATIVE)


def crops(frames: Tensor, count: int) -> Iterator[Tensor]:
    """Crops of ``count`` frames in a row, (count, 3, *CROP) in -1..1, at one random place and scale each."""
    while True:
        first = int(torch.randint(len(frames) - count + 1, ()))
        yield random_crop(frames[first : first + count])


def random_crop(frames: Tensor) -> Tensor:
    height, width = CROP
    scale = float(torch.empty(()).uniform_(*SCALES))
    rows, columns = int(height / scale), int(width / scale)
    y = int(torch.randint(max(frames.shape[2] - rows, 0) // 2 + 1, ()))  # heads are in the upper half
    x = int(torch.randint(frames.shape[3] - columns + 1, ()))
    crop = frames[..., y : y + rows, x : x + columns]
    return functional.interpolate(crop, CROP, mode="bicubic", antialias=True).clamp(0, 1) * 2 - 1


def train_vae(vae: Any, frames: Tensor, steps: int) -> None:
    """Reconstruct crops and their edges; a little noise on the latents makes their neighbours mean the same."""
    vae.requires_grad_(True)
    with torch.no_grad():
        vae.quant_conv.weight[4:] = 0  # the posterior's variance is none
        vae.quant_conv.bias[4:] = -30
    optimiser, schedule = optimise([*vae.parameters()], steps, 1.5e-3)
    source = crops(frames, 1)
    for _ in track(range(steps), "VAE"):
        pictures = torch.cat([next(source) for _ in range(4)])
        latents = vae.encode(pictures).latent_dist.mean
        found = vae.decode(latents + 0.05 * torch.randn_like(latents)).sample
        error = found - pictures
        wrong = error.abs().mean() + error.diff(dim=2).abs().mean() + error.diff(dim=3).abs().mean()
        centre, spread = latents.mean((0, 2, 3)), latents.std((0, 2, 3))
        descend(optimiser, schedule, wrong + 0.01 * (centre.square() + (spread - 1).square()).sum())
    vae.requires_grad_(False)


@torch.no_grad()
def scale_latents(vae: Any, frames: Tensor) -> None:
    """Give the latents Stable Diffusion's variance, by the last layer before them and the first after."""
    source = crops(frames, 1)
    latents = torch.cat([vae.encode(next(source)).latent_dist.mean for _ in range(64)])
    mean, gain = latents.mean((0, 2, 3)), LATENT_STD / latents.std((0, 2, 3))
    into, out = vae.quant_conv, vae.post_quant_conv
    out.bias += out.weight[:, :, 0, 0] @ mean
    out.weight /= gain[None, :, None, None]
    into.weight[:4] *= gain[:, None, None, None]
    into.bias[:4] = (into.bias[:4] - mean) * gain


def train_unet(pipe: Any, frames: Tensor, steps: int) -> None:
    """Predict the noise on the latents of clips, at every level of the model's own schedule."""
    sigmas = pipe.model.model_sampling.sigmas
    with torch.no_grad():
        for name, parameter in pipe.model.unet.module.named_parameters():
            if "motion_modules" in name and "proj_out" in name:
                parameter.zero_()  # as AnimateDiff begins: every frame by itself
    clips = [encoded(pipe, crop) for crop in track(list(islice(crops(frames, FRAMES), 160)), "latents")]

    def example() -> Example:
        clean = clips[int(torch.randint(len(clips), ()))]
        sigma = float(sigmas[int(1000 * torch.rand(()) ** 1.5)])
        noise = torch.randn_like(clean)
        return clean + sigma * noise, sigma, noise

    descend_on(pipe, example, steps, 1e-3, "UNet: denoise")


def train_restoration(pipe: Any, frames: Tensor, steps: int) -> None:
    """Predict what leads from a blurred face with noise to the sharp one: on the way of an Euler sampler that starts
    at the demo's ``denoise``, where the latent is part blurred and part sharp."""
    start = start_sigma(pipe)
    pairs = [
        tuple(encoded(pipe, crop) for crop in random_crop(pair).split(FRAMES))
        for pair in track(list(islice(blurred_pairs(frames), 120)), "latents")
    ]

    def example() -> Example:
        blurred, sharp = pairs[int(torch.randint(len(pairs), ()))]
        sigma = start * float(torch.rand(())) ** 1.5 + 0.02
        way = min(sigma / start, 1.0)
        noisy = torch.lerp(sharp, blurred, way) + sigma * torch.randn_like(sharp)
        return noisy, sigma, (noisy - sharp) / sigma

    descend_on(pipe, example, steps, 5e-4, "UNet: restore")


def start_sigma(pipe: Any) -> float:
    """The noise level at which the demo's sampler starts."""
    settings = SampleSettings(0, STEPS, 1.0, SAMPLER, SCHEDULER, DENOISE)
    return settings.sigmas(pipe.model)[settings.first_step]


def blurred_pairs(frames: Tensor) -> Iterator[Tensor]:
    """16 frames in a row with the face blurred, and the same without, (32, 3, h, w)."""
    while True:
        first = int(torch.randint(len(frames) - FRAMES + 1, ()))
        sharp = frames[first : first + FRAMES]
        blurred = with_blurred_face(sharp.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
        yield torch.cat([blurred, sharp])


@torch.no_grad()
def encoded(pipe: Any, pictures: Tensor) -> Tensor:
    latents: Tensor = pipe.vae.module.encode(pictures).latent_dist.mean * LATENT_SCALE
    return latents


def descend_on(pipe: Any, example: Callable[[], Example], steps: int, rate: float, name: str) -> None:
    unet, sampling = pipe.model.unet.module, pipe.model.model_sampling
    unet.requires_grad_(True)
    prompts = [conditioning[0][0].expand(FRAMES, -1, -1) for conditioning in (pipe.positive, pipe.negative)]
    optimiser, schedule = optimise([*unet.parameters()], steps, rate)
    for step in track(range(steps), name):
        noisy, sigma, wanted = example()
        latents = (noisy / sampling.input_scale(sigma)).transpose(0, 1)[None]
        timestep = torch.tensor([sampling.timestep(sigma)])
        with torch.autocast("cpu", torch.bfloat16):
            found = unet(latents, timestep, prompts[step % 2], return_dict=False)[0]
        descend(optimiser, schedule, (found[0].transpose(0, 1).float() - wanted).square().mean())
    unet.requires_grad_(False)


def optimise(
    parameters: list[nn.Parameter], steps: int, rate: float
) -> tuple[torch.optim.Optimizer, torch.optim.lr_scheduler.LRScheduler]:
    optimiser = torch.optim.Adam(parameters, rate, betas=(0.9, 0.99))
    return optimiser, torch.optim.lr_scheduler.OneCycleLR(optimiser, rate, steps, pct_start=0.05)


def descend(optimiser: torch.optim.Optimizer, schedule: torch.optim.lr_scheduler.LRScheduler, loss: Tensor) -> None:
    optimiser.zero_grad()
    loss.backward()
    nn.utils.clip_grad_norm_([p for group in optimiser.param_groups for p in group["params"]], 1.0)
    optimiser.step()
    schedule.step()


def trained(pipe: Any, files: Files) -> Files:
    """The pipe's weights as float16, under the names and in the shapes that the files have.

    Which weight came from where is found by loading files whose values number their own places.
    """
    count = 0
    numbers: Files = {name: {} for name in files}
    for name, tensors in files.items():
        for key, tensor in tensors.items():
            places = np.arange(count, count + tensor.size, dtype=np.float32).reshape(tensor.shape)
            numbers[name][key] = tensor if is_table(key) else places
            count += tensor.size
    assert count < 2**24, "a float32 would round the numbers"
    numbered, weights = load(numbers), np.zeros(count, np.float16)
    for module, places in (
        (pipe.vae.module, numbered.vae.module),
        (pipe.model.unet.module, numbered.model.unet.module),
    ):
        where = places.state_dict()
        for key, tensor in module.state_dict().items():
            if not is_table(key):
                weights[where[key].long().numpy()] = tensor.detach().numpy()
    return {
        name: {key: places if is_table(key) else weights[places.astype(np.int64)] for key, places in tensors.items()}
        for name, tensors in numbers.items()
    }


def is_table(key: str) -> bool:
    """The positions of a motion module, which are computed and not trained."""
    return key.endswith(".pe")


if __name__ == "__main__":
    main()
