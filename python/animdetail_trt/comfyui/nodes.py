"""The nodes. ComfyUI finds them through NODE_CLASS_MAPPINGS; their keys are this pack's own, so that the Impact Pack's
stay beside them."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from animdetail_trt.comfyui import host
from animdetail_trt.comfyui.accelerate import Accelerated, accelerate
from animdetail_trt.comfyui.model import EXTRA_SCHEDULERS, HostModel
from animdetail_trt.comfyui.progress import Progress
from animdetail_trt.comfyui.settings import PRECISION, RUN, DetailerSettings, PrecisionName, settings_of, with_settings
from animdetail_trt.comfyui.swap import PREFIX
from animdetail_trt.comfyui.unet import engines_of_models
from animdetail_trt.comfyui.vae import HostVae
from animdetail_trt.detailer import detailer
from animdetail_trt.detailer.mask_to_segs import MaskToSEGS_for_AnimateDiff as MaskToSegs
from animdetail_trt.ops import PassOrder

Inputs = dict[str, Any]


class _Node:
    """What ComfyUI asks of all of them alike."""

    FUNCTION = "doit"
    CATEGORY = "animdetail"


def _detailer_inputs(max_size: int) -> dict[str, Inputs]:
    """Of both detailers, in the reference's order."""
    most_px = host.longest_side_px()
    required: Inputs = {
        "image_frames": ("IMAGE",),
        "segs": ("SEGS",),
        "guide_size": ("FLOAT", {"default": 512, "min": 64, "max": most_px, "step": 8}),
        "guide_size_for": ("BOOLEAN", {"default": True, "label_on": "bbox", "label_off": "crop_region"}),
        "max_size": ("FLOAT", {"default": max_size, "min": 64, "max": most_px, "step": 8}),
        "seed": ("INT", {"default": 0, "min": 0, "max": 2**64 - 1}),
        "steps": ("INT", {"default": 20, "min": 1, "max": 10000}),
        "cfg": ("FLOAT", {"default": 8.0, "min": 0.0, "max": 100.0}),
        "sampler_name": (host.sampler_names(),),
        "scheduler": ([*host.scheduler_names(), *EXTRA_SCHEDULERS],),
        "denoise": ("FLOAT", {"default": 0.5, "min": 0.0001, "max": 1.0, "step": 0.01}),
        "basic_pipe": ("BASIC_PIPE",),
        "refiner_ratio": ("FLOAT", {"default": 0.2, "min": 0.0, "max": 1.0}),
    }
    optional: Inputs = {
        "refiner_basic_pipe_opt": ("BASIC_PIPE",),
        "noise_mask_feather": ("INT", {"default": 20, "min": 0, "max": 100, "step": 1}),
        "scheduler_func_opt": ("SCHEDULER_FUNC",),
    }
    return {"required": required, "optional": optional}


_FEATHER = ("INT", {"default": 5, "min": 0, "max": 100, "step": 1})


class DetailerForEachPipeForAnimateDiff(_Node):
    DESCRIPTION = (
        "Details every segment of a clip and pastes it back. The same inputs and pictures as the Impact Pack's."
    )
    RETURN_TYPES = ("IMAGE", "SEGS", "BASIC_PIPE", "IMAGE")
    RETURN_NAMES = ("image", "segs", "basic_pipe", "cnet_images")
    OUTPUT_IS_LIST = (False, False, False, True)

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Inputs]:  # noqa: N802 - ComfyUI's name
        inputs = _detailer_inputs(max_size=1024)
        after_denoise = list(inputs["required"].items())
        after_denoise.insert(list(inputs["required"]).index("basic_pipe"), ("feather", _FEATHER))
        return {
            "required": dict(after_denoise),
            "optional": {"detailer_hook": ("DETAILER_HOOK",), **inputs["optional"]},
        }

    # Defaults are those of the reference's method: of an optional input that a workflow leaves out.
    def doit(
        self,
        *,
        basic_pipe: Any,
        refiner_basic_pipe_opt: Any = None,
        refiner_ratio: float | None = None,
        detailer_hook: Any = None,
        noise_mask_feather: int = 0,
        scheduler_func_opt: Any = None,
        **inputs: Any,
    ) -> tuple[Any, Any, Any, Any]:
        run = _Run(basic_pipe, refiner_basic_pipe_opt)
        image, segs, _, cnet_images = detailer.DetailerForEachPipeForAnimateDiff.doit(
            **inputs,
            **run.options,
            refiner_ratio=refiner_ratio,
            detailer_hook=detailer_hook,
            noise_mask_feather=noise_mask_feather,
            scheduler_func_opt=scheduler_func_opt,
        )
        return image, segs, basic_pipe, cnet_images


class SEGSDetailerForAnimateDiff(_Node):
    DESCRIPTION = "Details every segment of a clip without pasting. The same inputs and pictures as the Impact Pack's."
    RETURN_TYPES = ("SEGS", "IMAGE")
    RETURN_NAMES = ("segs", "cnet_images")
    OUTPUT_IS_LIST = (False, True)

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Inputs]:  # noqa: N802
        return _detailer_inputs(max_size=768)

    def doit(
        self,
        *,
        basic_pipe: Any,
        refiner_basic_pipe_opt: Any = None,
        refiner_ratio: float | None = None,
        noise_mask_feather: int = 0,
        scheduler_func_opt: Any = None,
        **inputs: Any,
    ) -> tuple[Any, Any]:
        run = _Run(basic_pipe, refiner_basic_pipe_opt)
        return detailer.SEGSDetailerForAnimateDiff.doit(
            **inputs,
            **run.options,
            refiner_ratio=refiner_ratio,
            noise_mask_feather=noise_mask_feather,
            scheduler_func_opt=scheduler_func_opt,
        )


class SEGSPaste(_Node):
    DESCRIPTION = "Pastes the crops that SEGS carry into frames. The same inputs and pictures as the Impact Pack's."
    RETURN_TYPES = ("IMAGE",)

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Inputs]:  # noqa: N802
        return {
            "required": {
                "image": ("IMAGE",),
                "segs": ("SEGS",),
                "feather": _FEATHER,
                "alpha": ("INT", {"default": 255, "min": 0, "max": 255, "step": 1}),
            },
            "optional": {"ref_image_opt": ("IMAGE",)},
        }

    def doit(self, **inputs: Any) -> tuple[Any]:
        return detailer.SEGSPaste.doit(**inputs, pass_order=pass_order_here())


class MaskToSEGS_for_AnimateDiff(_Node):  # noqa: N801 - the reference's name
    DESCRIPTION = "Makes a segment of each connected region of a mask. The same as the Impact Pack's."
    RETURN_TYPES = ("SEGS",)

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Inputs]:  # noqa: N802
        switch = {"default": False, "label_on": "enabled", "label_off": "disabled"}
        return {
            "required": {
                "mask": ("MASK",),
                "combined": ("BOOLEAN", {"default": False, "label_on": "True", "label_off": "False"}),
                "crop_factor": ("FLOAT", {"default": 3.0, "min": 1.0, "max": 100, "step": 0.1}),
                "bbox_fill": ("BOOLEAN", switch),
                "drop_size": ("INT", {"min": 1, "max": host.longest_side_px(), "step": 1, "default": 10}),
                "contour_fill": ("BOOLEAN", switch),
            }
        }

    def doit(self, **inputs: Any) -> tuple[Any]:
        return MaskToSegs.doit(**inputs)


class DetailerSettingsNode(_Node):
    DESCRIPTION = "How the detailer nodes run this model. Put it on the model's wire, before the BASIC_PIPE."
    RETURN_TYPES = ("MODEL",)

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Inputs]:  # noqa: N802
        return {
            "required": {
                "model": ("MODEL",),
                "reference_mode": (
                    "BOOLEAN",
                    {
                        "default": True,
                        "label_on": "the Impact Pack's pictures",
                        "label_off": "improved",
                        "tooltip": "Off: sides rounded to 8, crops that follow the motion, all of a hook's methods.",
                    },
                ),
                "run": (
                    list(RUN),
                    {"tooltip": "auto: a TensorRT engine where one fits, ComfyUI's own model where not."},
                ),
                "precision": (list(PRECISION), {"tooltip": "Of the engine; auto: as ComfyUI loaded the model."}),
                "vae_frames": (
                    "INT",
                    {"default": 0, "min": 0, "max": 4096, "tooltip": "In one call of the VAE; 0: as memory allows."},
                ),
            }
        }

    def doit(self, model: Any, **values: Any) -> tuple[Any]:
        return (with_settings(model, DetailerSettings(**values)),)


class AccelerateModel(_Node):
    DESCRIPTION = (
        "The MODEL with its UNet in a TensorRT engine, for any sampler node. Where none fits, the MODEL as it is."
    )
    RETURN_TYPES = ("MODEL",)

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Inputs]:  # noqa: N802
        run = [name for name in RUN if name != "comfyui"]
        return {"required": {"model": ("MODEL",), "run": (run,), "precision": (list(PRECISION),)}}

    @classmethod
    def IS_CHANGED(cls, **_: Any) -> str:  # noqa: N802
        return _engines_there()

    def doit(self, model: Any, run: str, precision: PrecisionName) -> tuple[Any]:
        settings = replace(settings_of(model), run=run, precision=precision)
        accelerated, reason = accelerate(model, settings)
        # The last word on the wire: of a detailer behind it too, which decides anew where patches come between.
        return (accelerated if reason else with_settings(accelerated, settings),)


class Engines(_Node):
    DESCRIPTION = (
        "Builds the TensorRT engine of this MODEL (its LoRAs merged, its motion model inside) once, and loads it from "
        "then on. Building takes minutes, and the GPU."
    )
    RETURN_TYPES = ("MODEL", "STRING")
    RETURN_NAMES = ("model", "report")

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Inputs]:  # noqa: N802
        def side(default: int) -> Any:
            return ("INT", {"default": default, "min": 64, "max": 4096, "step": 8})

        def frames(default: int) -> Any:
            return ("INT", {"default": default, "min": 1, "max": 256})

        return {
            "required": {
                "model": ("MODEL",),
                "action": (["load", "build where there is none"],),
                "precision": (list(PRECISION),),
                "least_side": side(256),
                "best_side": side(512),
                "most_side": side(1024),
                "least_frames": frames(1),
                "best_frames": frames(16),
                "most_frames": frames(32),
                "controlnet": ("BOOLEAN", {"default": False, "tooltip": "It takes a ControlNet too."}),
                "frame_prompts": ("BOOLEAN", {"default": False, "tooltip": "It takes a prompt for each frame too."}),
            }
        }

    @classmethod
    def IS_CHANGED(cls, action: str, **_: Any) -> str:  # noqa: N802
        # What it builds itself is no reason to sample again.
        return _engines_there() if action == "load" else _failures()

    def doit(
        self, model: Any, action: str, precision: PrecisionName, controlnet: bool, frame_prompts: bool, **ends: int
    ) -> tuple[Any, str]:
        settings = replace(settings_of(model), run="auto", precision=precision)
        report = ""
        if action != "load":
            from animdetail_trt.comfyui.build import Sizes, build_engine
            from animdetail_trt.models.engines import UNetVariant
            from animdetail_trt.trt.profile import Range

            side, frames = (
                Range(ends[f"least_{name}"], ends[f"best_{name}"], ends[f"most_{name}"]) for name in ("side", "frames")
            )
            variant = UNetVariant(controlnet=controlnet, frame_prompts=frame_prompts)
            report = build_engine(model, settings, Sizes(side, frames), variant) + "; "
        loaded, reason = accelerate(model, settings)
        if reason is None:
            loaded = with_settings(loaded, settings)
        return loaded, report + ("the UNet runs in the engine" if reason is None else f"ComfyUI runs it: {reason}")


def pass_order_here() -> PassOrder:
    """Of the resizes of the Pillow that is installed, which the Impact Pack's nodes use."""
    try:
        import PIL
    except ImportError:
        return "pillow13"
    return "pillow13" if int(PIL.__version__.partition(".")[0]) >= 13 else "horizontal_first"


def _engines_there() -> str:
    """Another where ComfyUI must ask anew, and not take a node's output of the last prompt."""
    return " ".join([_failures(), *(f"{entry.name}:{entry.sha256}" for entry in engines_of_models())])


def _failures() -> str:
    """Another where a UNet's runner failed in the last prompt: the next tries it again."""
    return str(Accelerated.failures)


class _Run:
    """One run of a detailer node: its pipes as the detailer takes them. Without refiner text encoder or conditioning
    the reference has no refiner, so neither has this."""

    def __init__(self, pipe: Any, refiner_pipe: Any) -> None:
        self.progress = Progress()
        self.settings = settings_of(pipe[0])
        if refiner_pipe is not None:
            refiner_model, clip, _, *conditioning = refiner_pipe
            if any(part is None for part in (refiner_model, clip, *conditioning)):
                refiner_pipe = None
        self.options: Inputs = {
            "basic_pipe": self._opened(pipe),
            "refiner_basic_pipe_opt": None if refiner_pipe is None else self._opened(refiner_pipe),
            "reference_mode": self.settings.reference_mode,
            "pass_order": pass_order_here(),
            "observer": self.progress,
        }

    def _opened(self, pipe: Any) -> tuple[Any, ...]:
        model, clip, vae, positive, negative = pipe
        model, _ = accelerate(model, settings_of(model))
        return HostModel(model, self.progress), clip, HostVae(vae, self.settings.vae_frames), positive, negative


_NODES: dict[str, tuple[type, str]] = {
    f"{PREFIX}DetailerForEachPipeForAnimateDiff": (
        DetailerForEachPipeForAnimateDiff,
        "Detailer For AnimateDiff (SEGS/pipe)",
    ),
    f"{PREFIX}SEGSDetailerForAnimateDiff": (SEGSDetailerForAnimateDiff, "SEGSDetailer For AnimateDiff (SEGS/pipe)"),
    f"{PREFIX}SEGSPaste": (SEGSPaste, "SEGSPaste"),
    f"{PREFIX}MaskToSEGS_for_AnimateDiff": (MaskToSEGS_for_AnimateDiff, "MASK to SEGS for AnimateDiff"),
    f"{PREFIX}Engines": (Engines, "TensorRT engines (build / load)"),
    f"{PREFIX}AccelerateModel": (AccelerateModel, "Accelerate model (TensorRT)"),
    f"{PREFIX}Settings": (DetailerSettingsNode, "Detailer settings"),
}
NODE_CLASS_MAPPINGS: dict[str, type] = {key: node for key, (node, _) in _NODES.items()}
NODE_DISPLAY_NAME_MAPPINGS: dict[str, str] = {key: f"{name} · animdetail" for key, (_, name) in _NODES.items()}
__all__ = ["NODE_CLASS_MAPPINGS", "NODE_DISPLAY_NAME_MAPPINGS"]
