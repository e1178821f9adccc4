"""A user's model files as engines: what is built of them, and what was built before."""

from __future__ import annotations

import gc
import itertools
import shlex
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch

from animdetail_trt.errors import UnavailableError
from animdetail_trt.models.checkpoint import Placement, StateDict, read_shapes, reading
from animdetail_trt.models.files import ModelFiles, with_loras
from animdetail_trt.models.motion import MotionModule, positions_of
from animdetail_trt.models.unet import assemble_unet
from animdetail_trt.trt.builder import Built, Progress, build_plan
from animdetail_trt.trt.digests import Digests
from animdetail_trt.trt.export import Graph, check_graph, export_graph
from animdetail_trt.trt.flavour import Flavour
from animdetail_trt.trt.graphs import UNetGraph, VaeDecoderGraph, VaeEncoderGraph
from animdetail_trt.trt.identity import Component, Identity, Precision, Source, Target
from animdetail_trt.trt.profile import Inputs
from animdetail_trt.trt.recipe import Recipe
from animdetail_trt.trt.sidecar import Entry
from animdetail_trt.trt.store import Store

ONNXRUNTIME = "onnxruntime"
"""The target of graphs that are kept as they are."""

_OUTPUTS: dict[Component, str] = {"unet": "eps", "vae_encoder": "latents", "vae_decoder": "pixels"}
DTYPES: dict[Precision, torch.dtype] = {"fp16": torch.float16, "bf16": torch.bfloat16, "fp32": torch.float32}
PRECISIONS = {dtype: precision for precision, dtype in DTYPES.items()}
# A graph of fewer bytes is checked against torch every time that it is exported.
_CHECKED_BYTES = 256 << 20
# 8 latents a side and less, where a small UNet's middle is one pixel, tell rounding from mistakes no more.
_CHECKED_SIZES = ({"b": 2, "f": 3, "h": 9, "w": 11, "n": 77}, {"b": 1, "f": 1, "h": 16, "w": 12, "n": 77})


def vae_precision(precision: Precision) -> Precision:
    """float16 may not hold the VAE's range: ComfyUI never runs it so, and users of those who do see black pictures."""
    return "fp32" if precision == "fp16" else precision


@dataclass(frozen=True)
class UNetVariant:
    """What a UNet's engine takes besides latents and one prompt: residuals, a prompt for each frame, new weights."""

    controlnet: bool = False
    frame_prompts: bool = False
    refittable: bool = False


VARIANTS = [UNetVariant(*flags) for flags in itertools.product((False, True), repeat=3)]
"""Plain first: each input more takes more memory."""


def source_of(
    files: ModelFiles,
    component: Component,
    precision: Precision,
    digests: Digests,
    variant: UNetVariant = UNetVariant(),
) -> Source:
    """What decides a component's graph and weights. precision: the UNet's; the VAE's follows from it."""
    weights = {role: digests.of(path) for role, path in files.weight_files(component).items()}
    if component != "unet":
        # float32 in TensorFloat-32, which has float16's digits and float32's range, where the UNet is float16.
        return Source(component, weights, vae_precision(precision), settings={"tf32": precision == "fp16"})
    loras = [("lora", digests.of(Path(path)), strength) for path, strength in files.loras]
    loras += [("motion_lora", digests.of(Path(path)), strength) for path, strength in files.motion_loras]
    settings = asdict(variant) | {
        "motion_scale": float(files.motion_scale),
        "motion_effect": float(files.motion_effect),
        "tf32": False,
    }
    return Source(component, weights, precision, tuple(loras), settings)


@dataclass(frozen=True)
class Job:
    """One engine to be built. title: for the user, "UNet of sd15.safetensors"."""

    title: str
    files: ModelFiles
    identity: Identity
    variant: UNetVariant

    @property
    def component(self) -> Component:
        return self.identity.source.component

    def weight_bytes(self) -> int:
        """About how large the plan will be, from the files' headers."""
        return sum(_elements(path, self.component) for path in self.files.weight_files(self.component).values()) * (
            DTYPES[self.identity.source.precision].itemsize
        )


def jobs_for(
    files: ModelFiles,
    target: Target,
    recipe: Recipe,
    digests: Digests,
    *,
    refiner: str | Path | None = None,
    variant: UNetVariant = UNetVariant(),
) -> Iterator[Job]:
    """The UNet, the VAE's two halves, and the refiner's UNet."""

    def job(component: Component, of: ModelFiles, title: str, variant: UNetVariant) -> Job:
        source = source_of(of, component, recipe.precision, digests, variant)
        positions = None if of.motion_module is None else positions_of(of.motion_module)
        profiles = recipe.profiles(component, positions, frame_prompts=variant.frame_prompts)
        return Job(title, of, Identity(source, target, profiles), variant)

    name = Path(files.checkpoint).name
    motion = "" if files.motion_module is None else f" with {Path(files.motion_module).name}"
    vae = Path(files.checkpoint if files.vae is None else files.vae).name
    yield job("unet", files, f"UNet of {name}{motion}", variant)
    yield job("vae_encoder", files, f"VAE encoder of {vae}", UNetVariant())
    yield job("vae_decoder", files, f"VAE decoder of {vae}", UNetVariant())
    if refiner is not None:
        yield job("unet", ModelFiles(refiner), f"refiner UNet of {Path(refiner).name}", UNetVariant())


def _elements(path: Path, component: Component) -> int:
    """How many numbers of a file belong to a component: all of a motion module, a part of a checkpoint."""
    shapes = read_shapes(path)
    parts = {
        "unet": ("model.diffusion_model.",),
        "vae_encoder": ("first_stage_model.encoder.", "first_stage_model.quant_conv.", "encoder.", "quant_conv."),
        "vae_decoder": ("first_stage_model.decoder.", "first_stage_model.post_quant", "decoder.", "post_quant"),
    }[component]
    own = [shape for key, shape in shapes.items() if key.startswith(parts)] or list(shapes.values())
    return sum(torch.Size(shape).numel() for shape in own)


def build(
    job: Job,
    store: Store,
    flavour: Flavour | None,
    *,
    progress: Progress = lambda phase, done, steps: None,
    poll: Callable[[], None] = lambda: None,
    waiting: Callable[[], None] | None = None,
    check: bool | None = None,
    command: Sequence[str] = (),
) -> tuple[Entry, bool]:
    """The job's engine, and whether it was built now: one that is there and whole is taken.

    flavour: None keeps the graph for onnxruntime
    progress: called by the builder's thread; poll: by this one while it waits; what it raises stops the build
    check: compare the graph with torch; by default where it is small
    command: what was called, to be told where the engine must be built again
    Raises EngineError where the graph computes something else than torch, or TensorRT cannot build it.
    """
    with store.building(job.identity, waiting) as place:
        if isinstance(place, Entry):
            return place, False
        start = time.perf_counter()
        progress("exporting", 0, 1)
        graph = _export(job, place.scratch, check)
        progress("exporting", 1, 1)
        gc.collect()  # the weights are in the file now; the builder needs the room
        if flavour is None:
            about = _about(job, graph, None, time.perf_counter() - start)
            return place.commit(graph.path, about, [graph.weights]), True
        target = job.identity.target
        plan = place.path(".plan")
        built = build_plan(
            flavour, graph, job.identity.profiles, target, plan,
            tf32=bool((job.identity.source.settings or {}).get("tf32")),
            refittable=job.variant.refittable,
            timing_cache=store.folder / f"timings-{flavour.name}-{flavour.version}-{_in_a_name(target)}.cache",
            progress=progress, poll=poll,
        )  # fmt: skip
        about = _about(job, graph, built, time.perf_counter() - start)
        return place.commit(plan, about | ({"command": shlex.join(command)} if command else {})), True


def _in_a_name(target: Target) -> str:
    return "-".join([target.compute_capability, *target.card.split()]).replace("/", "-")


def _export(job: Job, folder: Path, check: bool | None) -> Graph:
    module = graph_module(job)
    graph = export_graph(module, folder, job.identity.name, _OUTPUTS[job.component])
    precision = job.identity.source.precision
    check = graph.weight_bytes < _CHECKED_BYTES if check is None else check
    if check and precision != "bf16":  # onnxruntime computes none on a CPU
        sizes = [size | {"t": size["f"] if job.variant.frame_prompts else 1} for size in _CHECKED_SIZES]
        check_graph(graph, lambda **inputs: module(*inputs.values()), sizes, precision)
    return graph


def graph_module(job: Job) -> Any:
    """The component's module, with its weights, LoRAs merged, in its precision, as it is exported."""
    place = Placement(torch.device("cpu"), DTYPES[job.identity.source.precision])
    files = job.files
    if job.component == "unet":
        motion = files.read_motion()
        with reading(str(files.checkpoint)):
            unet = assemble_unet(files.read_parts(needs_vae=False).unet, motion, str(files.checkpoint), place)
        return UNetGraph(
            unet.module,
            motion=motion is not None,
            over_window=motion is not None and motion.version == "v1",
            control=job.variant.controlnet,
            frame_prompts=job.variant.frame_prompts,
        )
    vae = files.vae_module(replace(files, loras=()).read_parts(), place)
    return VaeEncoderGraph(vae) if job.component == "vae_encoder" else VaeDecoderGraph(vae)


def lora_weights(files: ModelFiles, precision: Precision) -> tuple[StateDict, StateDict]:
    """The UNet's weights without LoRAs, and those that the LoRAs change, both by their names in the graph."""
    plain = replace(files, loras=(), motion_loras=())
    parts, motion = plain.read_parts(needs_vae=False), plain.read_motion()
    with reading(str(files.checkpoint)):
        unet = with_loras(parts, files.loras).unet
    before = _with_motion(parts.unet, motion)
    after = _with_motion(unet, files.read_motion() if files.motion_loras else motion)

    def named(tensors: StateDict) -> StateDict:
        return {f"unet.{key}": tensor.to(DTYPES[precision]) for key, tensor in tensors.items()}

    base = named(before)
    merged = named({key: tensor for key, tensor in after.items() if tensor is not before[key]})
    return base, {key: tensor for key, tensor in merged.items() if not torch.equal(tensor, base[key])}


def _with_motion(unet: StateDict, motion: MotionModule | None) -> StateDict:
    return unet if motion is None else unet | motion.tensors


def inputs_of(entry: Entry) -> Inputs:
    """The inputs that an engine takes."""
    return {name: tuple(dims) for name, dims in entry.about["inputs"].items()}


def _about(job: Job, graph: Graph, built: Built | None, elapsed_s: float) -> dict[str, Any]:
    """What the sidecar says besides the identity."""
    files: Mapping[str, Path] = job.files.weight_files(job.component)
    about: dict[str, Any] = {
        "title": job.title,
        "files": {role: str(path.absolute()) for role, path in files.items()},
        "loras": [[str(path), strength] for path, strength in [*job.files.loras, *job.files.motion_loras]],
        "inputs": {name: list(dims) for name, dims in graph.inputs.items()},
        "output": graph.output,
        "graph_sha256": graph.sha256,
        "weights_bytes": graph.weight_bytes,
        "built": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
        "build_s": round(elapsed_s, 1),
        "versions": _versions(),
    }
    if built is not None:
        about |= {"layers": built.layers, "activation_bytes": built.activation_bytes}
    return about


def _versions() -> dict[str, str]:
    import diffusers  # type: ignore[import-untyped, unused-ignore]

    from animdetail_trt import __version__

    return {"animdetail_trt": __version__, "torch": str(torch.__version__), "diffusers": str(diffusers.__version__)}


def unfused_attention(entry: Entry) -> list[str]:
    """The softmaxes of a UNet's engine that stand alone: each writes all its scores to memory. The VAE's is known."""
    if entry.identity.source.component != "unet" or entry.identity.source.precision == "fp32":
        return []  # TensorRT fuses no attention in float32
    return list(entry.about.get("layers", {}).get("unfused_softmax", []))


def no_engine(component: str, flavour: str, files: ModelFiles) -> UnavailableError:
    return UnavailableError(
        f"no {flavour} engine of the {component} of {files.checkpoint} is built for this GPU and these LoRAs. "
        "Run: animdetail-trt build-engines with the same files, or use backend='auto'"
    )
