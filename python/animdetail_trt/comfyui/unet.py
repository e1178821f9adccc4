"""What runs a MODEL's UNet in ComfyUI's stead: an engine of its effective weights, or this package's own modules."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from animdetail_trt.backends.interface import UNetRunner
from animdetail_trt.backends.torch_backend import TorchUNet
from animdetail_trt.comfyui import host
from animdetail_trt.comfyui.facts import ModelFacts
from animdetail_trt.comfyui.settings import DetailerSettings
from animdetail_trt.errors import AnimDetailError
from animdetail_trt.extras import install_command
from animdetail_trt.media.staging import write_weights
from animdetail_trt.models.checkpoint import Placement, StateDict
from animdetail_trt.models.engines import DTYPES, PRECISIONS, VARIANTS, source_of
from animdetail_trt.models.files import ModelFiles
from animdetail_trt.models.motion import MotionModule, motion_of, with_strength
from animdetail_trt.models.runners import Runners, capability_of, card_name_of
from animdetail_trt.models.unet import build_unet, unet_config, unet_from_ldm
from animdetail_trt.trt.digests import Digests
from animdetail_trt.trt.flavour import installed_flavours
from animdetail_trt.trt.identity import Precision, Source
from animdetail_trt.trt.sidecar import Entry
from animdetail_trt.trt.store import Store
from animdetail_trt.trt.system import default_folder

_SOURCE = "the MODEL of ComfyUI"
_FOLDER = "comfyui"  # in the engines' folder, for the weights that they are built of
_UNKNOWN = "unknown"


class Unavailable(AnimDetailError):  # noqa: N818 - a reason, not a fault
    """There is nothing here that would run the UNet."""


@dataclass
class Runner:
    """name: for the user; positions: as UNetRunner's; open: gives it, loaded; patcher: for ComfyUI's management;
    free: gives back the memory that it has on the device; broken: why it is not tried again in this prompt"""

    name: str
    positions: int | None
    open: Callable[[], UNetRunner]
    patcher: Any
    free: Callable[[], None] = lambda: None
    broken: str | None = None


@dataclass(frozen=True)
class Weights:
    """The effective weights of a MODEL, in the files' layouts."""

    unet: StateDict
    motion: StateDict | None
    scale: float
    effect: float

    def module(self, version: str | None) -> MotionModule | None:
        """version: as AnimateDiff-Evolved read it. Raises Unavailable where this package reads another."""
        if self.motion is None:
            return None
        motion = motion_of(self.motion, _SOURCE)
        if motion.version != version:
            raise Unavailable(f"its motion model is {version} for AnimateDiff-Evolved, and {motion.version} here")
        return with_strength(motion, self.scale, self.effect)


def read_weights(model: Any, facts: ModelFacts) -> Weights:
    return Weights(host.unet_weights(model), host.motion_weights(model), *_strength(facts))


def _strength(facts: ModelFacts) -> tuple[float, float]:
    """Scale and effect of its motion model."""
    motion = facts.motion[0] if facts.motion else None
    return (1.0, 1.0) if motion is None else (motion.scale or 0.0, motion.effect or 0.0)


def dtype_of(model: Any, settings: DetailerSettings) -> torch.dtype:
    """What the UNet is to compute in; of a model kept in 8 bits, float16."""
    if settings.precision != "auto":
        return DTYPES[settings.precision]
    dtype = host.model_dtype(model)
    return dtype if dtype in PRECISIONS else torch.float16


def make_runner(model: Any, facts: ModelFacts, settings: DetailerSettings) -> Runner:
    """As the settings ask. Raises Unavailable with the reason where there is none."""
    weights = read_weights(model, facts)
    motion = weights.module(facts.motion[0].version if facts.motion else None)
    dtype = dtype_of(model, settings)
    if settings.run == "torch":
        return _torch_runner(weights, motion, dtype)
    return _graph_runner(weights, motion, dtype, settings.run)


def engines_for(model: Any, facts: ModelFacts, settings: DetailerSettings) -> list[Entry]:
    """The engines that may be of this MODEL's weights, as far as can be told before these are merged and read: for this
    GPU, in its precision, of a motion model at its strength. Raises Unavailable where there are none."""
    device = host.inference_device()
    if device.type != "cuda":
        raise Unavailable(f"ComfyUI computes on {device}, and engines run on a CUDA GPU")
    flavours = installed_flavours()
    if not flavours:
        raise Unavailable(f"TensorRT is not installed. Run: {install_command('rtx')}")
    built = engines_of_models()
    if not built:
        raise Unavailable("no engine of a MODEL is built on this machine (node TensorRT engines)")
    precision, capability = PRECISIONS[dtype_of(model, settings)], str(capability_of(device))
    targets = [flavour.target(capability, card_name_of(device)) for flavour in flavours]
    sources = _sources(facts, precision)
    fitting = [
        entry for entry in built if entry.identity.target in targets and _of_unknown(entry.identity.source) in sources
    ]
    if not fitting:
        motion = "a motion model at its strength" if facts.motion else "no motion model"
        raise Unavailable(f"no engine in {precision} with {motion} is built for this GPU (node TensorRT engines)")
    return fitting


def engines_of_models() -> list[Entry]:
    return [entry for entry in Store(default_folder()).entries() if _is_of_a_model(entry)]


def _sources(facts: ModelFacts, precision: Precision) -> list[Source]:
    """Of every variant, but of weights that are not known yet."""
    unknown, (scale, effect) = default_folder() / _UNKNOWN, _strength(facts)
    files = UNetFiles(unknown, unknown if facts.motion else None, motion_scale=scale, motion_effect=effect)
    digests = NamedDigests(default_folder())
    return [source_of(files, "unet", precision, digests, variant) for variant in VARIANTS]


def _of_unknown(source: Source) -> Source:
    return replace(source, weights=dict.fromkeys(source.weights, _UNKNOWN))


def _is_of_a_model(entry: Entry) -> bool:
    """Whether it was built of weights that ``UNetFiles`` wrote, not of a user's files."""
    return any(Path(path).parent.name == _FOLDER for path in entry.about["files"].values())


def _torch_runner(weights: Weights, motion: MotionModule | None, dtype: torch.dtype) -> Runner:
    tensors = unet_from_ldm(weights.unet)
    unet = build_unet(tensors, motion, _SOURCE, Placement(torch.device("cpu"), dtype))
    module = unet.module.eval()
    # Where ComfyUI has moved the module to is read at each call.
    return Runner(
        "torch (this package's own UNet)", unet.positions, lambda: TorchUNet(module, unet.positions),
        host.patcher_of_module(module),
    )  # fmt: skip


def _graph_runner(weights: Weights, motion: MotionModule | None, dtype: torch.dtype, run: str) -> Runner:
    """The engine that was built of just these weights; with onnxruntime, the graph, which is exported now."""
    onnxruntime = run == "onnxruntime"
    device = torch.device("cpu") if onnxruntime else host.inference_device()
    files = UNetFiles.of(weights, default_folder(), write=onnxruntime)
    runners = Runners(files, device, dtype, run, digests=NamedDigests(default_folder()))
    positions = None if motion is None else motion.positions
    runner = runners.engine_unet(unet_config(unet_from_ldm(weights.unet))["cross_attention_dim"], positions)
    if runner is None:
        raise Unavailable("no engine is built of these weights in this precision (node TensorRT engines)")
    size = sum(tensor.numel() for part in (weights.unet, weights.motion or {}) for tensor in part.values())
    name = "onnxruntime" if onnxruntime else "a TensorRT engine"
    patcher = host.patcher_of_engine(runner.unload, size * dtype.itemsize)
    return Runner(name, positions, lambda: runner, patcher, runner.unload)


class UNetFiles(ModelFiles):
    """Files that hold a MODEL's effective weights and no VAE, each named by its digest."""

    @classmethod
    def of(cls, weights: Weights, folder: Path, *, write: bool) -> UNetFiles:
        """write: the files too, where they are not there; otherwise they are only named."""
        place = folder / _FOLDER
        unet = _named(weights.unet, place, write)
        motion = None if weights.motion is None else _named(weights.motion, place, write)
        return cls(unet, motion, motion_scale=weights.scale, motion_effect=weights.effect)


class NamedDigests(Digests):
    """Digests of files that are named by them, and need not be there."""

    def of(self, path: Path, progress: Any = None) -> str:
        return path.stem


def _named(tensors: StateDict, folder: Path, write: bool) -> Path:
    """``folder/DIGEST.safetensors`` of these tensors."""
    path = folder / f"{_digest(tensors)}.safetensors"
    if write and not path.exists():
        folder.mkdir(parents=True, exist_ok=True)
        write_weights(path, tensors)
    return path


def _digest(tensors: StateDict) -> str:
    """SHA-256 of names, dtypes, shapes and bytes; of the file itself it would take a copy of them all."""
    digest = hashlib.sha256()
    for key in sorted(tensors):
        tensor = tensors[key].contiguous()
        digest.update(f"{key} {tensor.dtype} {list(tensor.shape)}\n".encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()
