#!/usr/bin/env python3
"""The Impact Pack's node and ours, in one real ComfyUI, fed the same objects; prints how far apart they are.

    PYTHON_OF_COMFYUI compare_in_comfyui.py PATH_TO_COMFYUI [--run torch] [--case "motion v2"]

The checkout needs ComfyUI-Impact-Pack, ComfyUI-AnimateDiff-Evolved and ComfyUI-Advanced-ControlNet in custom_nodes.
Exits 1 where a case is past the tolerance of golden/README.md.
"""

from __future__ import annotations

import argparse
import logging
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

sys.path[:0] = [str(Path(__file__).resolve().parent), str(Path(__file__).resolve().parents[2] / "python")]
import real_comfyui as real  # noqa: E402

FRAMES, HEIGHT, WIDTH = 6, 80, 112


@dataclass
class Case:
    """What differs from a plain run. pipes: makes MODEL and refiner MODEL of a ``Tiny``"""

    model: Callable[[Tiny], Any] = lambda tiny: tiny.unet("tiny_sd15")
    refiner: Callable[[Tiny], Any] | None = None
    inputs: dict[str, Any] = field(default_factory=dict)
    controlled: bool = False
    hooked: bool = False
    scheduled: bool = False
    pasted: bool = True  # else SEGSDetailer
    tall: bool = False  # a segment where the order of Pillow's passes shows
    comfyui_only: bool = False  # a patch that our UNet does not have


class Tiny:
    """The tiny checkpoints in this ComfyUI, and the packs' nodes over them."""

    tokens = 64

    def __init__(self, root: Path, folder: Path) -> None:
        self._open(root, folder, real.TINY_CHANNELS)
        real.use_tiny_sizes()
        self.vae = real.load_tiny_vae(folder / "tiny_sd15.safetensors")

    def _open(self, root: Path, folder: Path, channels: tuple[int, ...]) -> None:
        real.prepare(root, channels=channels)
        import torch

        torch.set_num_threads(1)
        import comfy.utils
        import folder_paths

        comfy.utils.set_progress_bar_enabled(False)
        for kind in ("checkpoints", "loras", "controlnet", "animatediff_models", "animatediff_motion_lora"):
            folder_paths.add_model_folder_path(kind, str(folder))
        self.ade = real.load_pack(root, real.ADE).NODE_CLASS_MAPPINGS
        real.load_pack(root, real.ACN)
        real.load_impact(root)
        self.folder = folder

    def unet(self, name: str) -> Any:
        return real.load_unet(self.folder / f"{name}.safetensors")

    def with_motion(self, model: Any, name: str, context_length: int = 0, **strengths: Any) -> Any:
        motion = self.ade["ADE_LoadAnimateDiffModel"]().load_motion_model(f"{name}.safetensors")[0]
        applied = self.ade["ADE_ApplyAnimateDiffModelSimple"]().apply_motion_model(motion, **strengths)[0]
        context = None
        if context_length:
            options = self.ade["ADE_StandardStaticContextOptions"]()
            context = options.create_options(context_length=context_length, context_overlap=2)[0]
        evolved = self.ade["ADE_UseEvolvedSampling"]()
        return evolved.use_evolved_sampling(model, "autoselect", m_models=applied, context_options=context)[0]

    def with_lora(self, model: Any, strength: float) -> Any:
        import comfy.sd
        import comfy.utils

        lora = comfy.utils.load_torch_file(str(self.folder / "tiny_lora.safetensors"))
        return comfy.sd.load_lora_for_models(model, None, lora, strength, 0)[0]

    def control(self, image: Any = None) -> Any:
        import comfy.controlnet
        from impact import core

        network = comfy.controlnet.load_controlnet(str(self.folder / "tiny_controlnet.safetensors"))
        return core.ControlNetAdvancedWrapper(network, 0.8, 0.0, 0.7, None)


class Full(Tiny):
    """A checkpoint and a motion module of full size, in one folder, in the tiny ones' place."""

    tokens = 768

    def __init__(self, root: Path, checkpoint: Path, motion: Path) -> None:
        self._open(root, checkpoint.parent, real.FULL_CHANNELS)
        self.checkpoint, self.motion = checkpoint, motion
        self.vae = real.load_vae(checkpoint)

    def unet(self, name: str) -> Any:
        return real.load_unet(self.checkpoint)

    def with_motion(self, model: Any, name: str, context_length: int = 0, **strengths: Any) -> Any:
        return super().with_motion(model, self.motion.stem, context_length, **strengths)


class _Redder:
    """A DETAILER_HOOK; of the Impact Pack's kind, so that its own nodes could hold it."""

    def __new__(cls) -> Any:
        from impact import hooks

        class Redder(hooks.DetailerHook):
            def post_paste(self, image: Any) -> Any:
                image = image.clone()
                image[..., 0] = 0.9 * image[..., 0] + 0.1
                return image

        return Redder()


def linear_schedule(model: Any, sampler_name: str, steps: int) -> Any:
    """A SCHEDULER_FUNC."""
    import torch

    return torch.cat([torch.linspace(9.0, 0.2, steps), torch.zeros(1)])


def patched(model: Any) -> Any:
    """As IP-Adapter and its kin are: the attention's keys are changed on the way."""
    model = model.clone()
    model.set_model_attn2_patch(lambda q, k, v, options: (q, k * 1.1, v))
    return model


def wrapped(model: Any) -> Any:
    """Another pack's wrapper around the UNet's call."""
    model = model.clone()
    model.set_model_unet_function_wrapper(
        lambda apply_model, args: apply_model(args["input"], args["timestep"], **args["c"]) * 0.98
    )
    return model


def cases() -> dict[str, Case]:
    v2 = lambda tiny: tiny.with_motion(tiny.unet("tiny_sd15"), "tiny_mm_v2")  # noqa: E731
    v3 = lambda tiny: tiny.with_motion(tiny.unet("tiny_sd15"), "tiny_mm_v3")  # noqa: E731
    windows = lambda tiny: tiny.with_motion(tiny.unet("tiny_sd15"), "tiny_mm_v3", 4)  # noqa: E731
    lora = lambda tiny: tiny.with_lora(tiny.unet("tiny_sd15"), 0.8)  # noqa: E731
    refiner = lambda tiny: tiny.unet("tiny_refiner")  # noqa: E731
    return {
        "no motion": Case(),
        "motion v1": Case(lambda tiny: tiny.with_motion(tiny.unet("tiny_sd15"), "tiny_mm_v1")),
        "motion v2": Case(v2),
        "motion v3": Case(v3),
        "context windows": Case(windows),
        "LoRA on the MODEL": Case(lora),
        "LoRA and motion": Case(lambda tiny: tiny.with_lora(v3(tiny), 0.8)),
        "refiner": Case(refiner=refiner, inputs={"refiner_ratio": 0.5}),
        "refiner and motion": Case(
            v2, lambda tiny: tiny.with_motion(tiny.unet("tiny_refiner"), "tiny_mm_v2"), {"refiner_ratio": 0.4}
        ),
        "ControlNet SEG": Case(controlled=True),
        "ControlNet SEG and windows": Case(windows, controlled=True),
        "noise mask 0": Case(inputs={"noise_mask_feather": 0}),
        "noise mask 30": Case(inputs={"noise_mask_feather": 30}),
        "tall segment": Case(inputs={"max_size": 256}, tall=True),
        "AnimateLCM": Case(lambda tiny: tiny.with_motion(tiny.unet("tiny_sd15"), "tiny_mm_lcm")),
        "motion scale and effect": Case(
            lambda tiny: tiny.with_motion(tiny.unet("tiny_sd15"), "tiny_mm_v3", scale_multival=1.3, effect_multival=0.6)
        ),
        "attention patch": Case(lambda tiny: patched(v3(tiny)), comfyui_only=True),
        "another UNet wrapper": Case(lambda tiny: wrapped(v2(tiny))),
        "SEGSDetailer": Case(v3, controlled=True, pasted=False),
        "hook": Case(hooked=True),
        "scheduler func": Case(scheduled=True),
        "dpmpp_2m_sde karras": Case(inputs={"sampler_name": "dpmpp_2m_sde", "scheduler": "karras"}),
        "uni_pc AYS SD1": Case(inputs={"sampler_name": "uni_pc", "scheduler": "AYS SD1"}),
        "euler_ancestral GITS": Case(inputs={"sampler_name": "euler_ancestral", "scheduler": "GITS[coeff=1.2]"}),
    }


def inputs_of(case: Case, tiny: Tiny, run: str) -> dict[str, Any]:
    """The node's inputs; what a run could change (the frames) is made anew for each."""
    import numpy as np
    import torch
    from impact.core import SEG

    from animdetail_trt.comfyui.nodes import DetailerSettingsNode

    random = torch.Generator().manual_seed(3)
    frames = (torch.rand(FRAMES, HEIGHT, WIDTH, 3, generator=random) * 255).round() / 255
    segs = []
    places = ((8, 4, 64, 60), (18, 14, 54, 50)), ((40, 20, 104, 76), (56, 32, 92, 64))
    for region, bbox in (((40, 0, 64, 80), (42, 6, 62, 74)),) if case.tall else places:
        x1, y1, x2, y2 = region
        mask = np.zeros((y2 - y1, x2 - x1), np.float32)
        mask[bbox[1] - y1 : bbox[3] - y1, bbox[0] - x1 : bbox[2] - x1] = 1
        segs.append(SEG(None, mask, 0.9, region, bbox, "face", tiny.control() if case.controlled else None))

    def conditioning(seed: int) -> Any:
        return [[torch.randn(1, 77, tiny.tokens, generator=torch.Generator().manual_seed(seed)), {}]]

    def pipe(model: Any, seed: int) -> Any:
        (model,) = DetailerSettingsNode().doit(model, reference_mode=True, run=run, precision="auto", vae_frames=0)
        return model, "clip", tiny.vae, conditioning(seed), conditioning(seed + 1)

    return {
        "image_frames": frames,
        "segs": ((HEIGHT, WIDTH), segs),
        "guide_size": 64, "guide_size_for": True, "max_size": 96,
        "seed": 1234, "steps": 4, "cfg": 6.0, "sampler_name": "euler", "scheduler": "normal", "denoise": 0.6,
        "feather": 5,
        "basic_pipe": pipe(case.model(tiny), 1),
        "refiner_ratio": 0.2,
        "detailer_hook": _Redder() if case.hooked else None,
        "refiner_basic_pipe_opt": None if case.refiner is None else pipe(case.refiner(tiny), 5),
        "noise_mask_feather": 20,
        "scheduler_func_opt": linear_schedule if case.scheduled else None,
    } | case.inputs  # fmt: skip


class Calls:
    """Counts the UNet calls that went to our runner, and those that ComfyUI's own model took over."""

    def __init__(self) -> None:
        from animdetail_trt.comfyui.accelerate import Accelerated

        self.made: list[Any] = []
        original = Accelerated.__init__

        def noted(accelerated: Any, *args: Any) -> None:
            original(accelerated, *args)
            self.made.append(accelerated)

        Accelerated.__init__ = noted

    def taken(self) -> tuple[int, int]:
        made, self.made = self.made, []
        return sum(one.calls for one in made), sum(one.fallbacks for one in made)


def compare(case: Case, tiny: Tiny, run: str) -> tuple[float, float, float, bool, tuple[float, float]]:
    """max, share within 1e-3, mean difference, whether they agree, seconds of both."""
    import torch
    from impact import animatediff_nodes as theirs

    from animdetail_trt.comfyui import nodes as ours

    name = "DetailerForEachPipeForAnimateDiff" if case.pasted else "SEGSDetailerForAnimateDiff"
    outputs, seconds = [], []
    for node in (getattr(theirs, name), getattr(ours, name)):
        given = inputs_of(case, tiny, run)
        if not case.pasted:
            given = {key: value for key, value in given.items() if key not in ("feather", "detailer_hook")}
        torch.manual_seed(55)
        start = time.perf_counter()
        with torch.inference_mode():
            output = node().doit(**given)
        if not case.pasted:  # the crops in the picture's place
            crops = [torch.as_tensor(seg.cropped_image) for seg in output[0][1]]
            output = (torch.cat([crop.flatten() for crop in crops]), output[0], None, output[1])
        outputs.append(output)
        seconds.append(time.perf_counter() - start)
    (image, segs, _, shown), (our_image, our_segs, _, our_shown) = outputs
    difference = (image - our_image).abs()
    most, share, mean = float(difference.max()), float((difference <= 1e-3).float().mean()), float(difference.mean())
    same = most <= 2 / 255 and share >= 0.97 and mean <= 1.5e-4
    same &= segs[0] == our_segs[0] and len(segs[1]) == len(our_segs[1]) and len(shown) == len(our_shown)
    for seg, our_seg in zip(segs[1], our_segs[1], strict=True):
        crops = torch.as_tensor(seg.cropped_image) - torch.as_tensor(our_seg.cropped_image)
        same &= float(crops.abs().max()) <= 2 / 255 and float(crops.abs().mean()) <= 1.5e-4
    for pictures, our_pictures in zip(shown, our_shown, strict=True):
        same &= float((torch.as_tensor(pictures) - our_pictures).abs().max()) <= 2 / 255  # crops of pasted frames
    if case.pasted:
        same &= float((image - inputs_of(case, tiny, run)["image_frames"]).abs().max()) > 0.05  # something was done
    return most, share, mean, same, (seconds[0], seconds[1])


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("comfyui", type=Path)
    parser.add_argument("--case", action="append", help="name of a case; several; default: all")
    parser.add_argument("--checkpoints", type=Path, help="where the tiny checkpoints lie or are written")
    parser.add_argument("--run", default="comfyui", choices=("comfyui", "torch", "onnxruntime"), help="of the UNet")
    parser.add_argument("--full", type=Path, nargs=2, metavar=("CHECKPOINT", "MOTION_MODULE"), help="full-size files")
    args = parser.parse_args()
    folder = args.checkpoints or Path(tempfile.gettempdir()) / "animdetail-tiny"
    if args.full:
        tiny: Tiny = Full(args.comfyui.resolve(), *(path.resolve() for path in args.full))
    else:
        real.write_tiny_checkpoints(folder)
        tiny = Tiny(args.comfyui.resolve(), folder.resolve())
    logging.getLogger().setLevel(logging.ERROR)
    logging.getLogger("animdetail_trt").setLevel(logging.INFO)
    for name in ("AnimateDiffEvo", "AnimateDiff", "Advanced-ControlNet"):
        logging.getLogger(name).setLevel(logging.ERROR)
    wrong, counted = 0, Calls()
    print(
        f"{'case':28} {'max':>9} {'<= 1e-3':>8} {'mean':>9} {'theirs s':>9} {'ours s':>7}  agree  calls back",
        file=sys.stderr,
    )
    for name, case in cases().items():
        if args.case and name not in args.case:
            continue
        most, share, mean, same, (theirs_s, ours_s) = compare(case, tiny, args.run)
        calls, fallbacks = counted.taken()
        taken = args.run != "comfyui" and not case.comfyui_only
        same &= (calls > 0) == taken and fallbacks == 0
        wrong += not same
        line = f"{name:28} {most:9.2e} {share:8.2%} {mean:9.2e} {theirs_s:9.2f} {ours_s:7.2f}"
        line += f"  {'yes' if same else 'NO':>5} {calls:>6} {fallbacks:>4}"
        print(line, file=sys.stderr, flush=True)
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
