"""What runs a pipe's UNet and VAE: engines where they were built, torch where not, and why."""

from __future__ import annotations

import logging
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import asdict, replace
from functools import cache, partial
from pathlib import Path
from typing import Any

import torch

from animdetail_trt.backends.failures import engine_failures
from animdetail_trt.backends.graph_backend import GraphUNet, GraphVae
from animdetail_trt.backends.interface import UNetRunner, VaeRunner
from animdetail_trt.backends.ladder import LadderUNet, LadderVae, Rung
from animdetail_trt.backends.select import choose_vae_dtype
from animdetail_trt.backends.torch_backend import CompiledUNet, TorchUNet, TorchVae
from animdetail_trt.models.checkpoint import Placement, reading
from animdetail_trt.models.engines import (
    ONNXRUNTIME,
    PRECISIONS,
    VARIANTS,
    Job,
    UNetVariant,
    build,
    inputs_of,
    lora_weights,
    no_engine,
    source_of,
)
from animdetail_trt.models.files import ModelFiles, Parts
from animdetail_trt.models.motion import MotionModule
from animdetail_trt.models.unet import UNet, unet_config
from animdetail_trt.trt.digests import Digests
from animdetail_trt.trt.flavour import FLAVOUR_NAMES, Flavour, installed_flavours, load_flavour
from animdetail_trt.trt.identity import Component, Identity, Target
from animdetail_trt.trt.memory import workspace_of
from animdetail_trt.trt.onnx_session import OnnxSession
from animdetail_trt.trt.optional import optional
from animdetail_trt.trt.profile import Profile, Range
from animdetail_trt.trt.session import EngineSession, Session
from animdetail_trt.trt.sidecar import Entry
from animdetail_trt.trt.store import Store
from animdetail_trt.trt.system import default_folder

logger = logging.getLogger(__name__)

# onnxruntime takes any size; these only have to name the axes.
_ANY = Range(1, 16, 1 << 16)
_CPU = Placement(torch.device("cpu"), torch.float32)
_ALL_INPUTS = UNetVariant(controlnet=True, frame_prompts=True)


class Runners:
    """Makes the runners of a pipe's models.

    device, dtype: where and as what the UNet runs; vae_dtype: as what torch runs the VAE; backend: one of BACKEND_NAMES
    engine_dir: of the engines; vram_budget: bytes that those on this card may take from now on, see ``workspace_of``
    digests: of the files, where they are known
    """

    def __init__(
        self,
        files: ModelFiles,
        device: torch.device,
        dtype: torch.dtype,
        backend: str,
        engine_dir: str | Path | None = None,
        vram_budget: int | None = None,
        digests: Digests | None = None,
        vae_dtype: torch.dtype | None = None,
    ) -> None:
        self.files = files
        self.place = Placement(device, dtype)
        self.vae_place = Placement(device, vae_dtype or choose_vae_dtype("auto", dtype))
        self.backend = backend
        self.workspace = workspace_of(device, vram_budget)
        self.store = Store(default_folder() if engine_dir is None else Path(engine_dir))
        self.digests = Digests(self.store.folder) if digests is None else digests

    def unet(self, parts: Parts, motion: MotionModule | None) -> UNetRunner:
        positions = None if motion is None else motion.positions
        with reading(str(self.files.checkpoint)):
            token_dim: int = unet_config(parts.unet)["cross_attention_dim"]
        about: dict[str, Any] = {"positions": positions, "token_dim": token_dim, "device": self.place.device}
        if self.backend == ONNXRUNTIME:
            graphs: list[Rung[UNetRunner]] = [
                Rung("the graph", lambda: GraphUNet([self._exported("unet")], **about)),
                Rung("the graph with all inputs", lambda: GraphUNet([self._exported("unet", _ALL_INPUTS)], **about)),
            ]
            return LadderUNet(graphs, **about)
        rungs: list[Rung[UNetRunner]] = []
        load: Callable[[], UNet]
        if sessions := self._engines("unet"):
            rungs = [Rung("the engine", lambda: GraphUNet(sessions(), **about), self._guard)]
            # Read again where it is needed: kept, the tensors would fill memory for nothing.
            load = cache(partial(_load_unet, self.files, self.place))
        else:
            unet = self.files.unet(parts, motion, self.place)
            load = lambda: unet  # noqa: E731
        if self.backend == "compile":
            rungs.append(Rung("torch.compile", lambda: CompiledUNet(load().module, positions)))
        rungs.append(Rung(f"torch on {self.place.device}", lambda: TorchUNet(load().module, positions)))
        if self._may_leave_gpu:
            rungs.append(Rung("torch on the CPU", lambda: TorchUNet(_load_unet(self.files, _CPU).module, positions)))
        return LadderUNet(rungs, **about) if len(rungs) > 1 else rungs[0].get()

    def engine_unet(self, token_dim: int, positions: int | None) -> GraphUNet | None:
        """The UNet's engines alone, without another way behind them; None where none was built. With onnxruntime: the
        exported graph with every input."""
        about: dict[str, Any] = {"positions": positions, "token_dim": token_dim, "device": self.place.device}
        if self.backend == ONNXRUNTIME:
            return GraphUNet([self._exported("unet", _ALL_INPUTS)], **about)
        sessions = self._engines("unet")
        if sessions is None:
            return None
        with self._guard():
            return GraphUNet(sessions(), **about)

    def vae(self, parts: Parts) -> VaeRunner:
        device = self.vae_place.device
        if self.backend == ONNXRUNTIME:
            return GraphVae([self._exported("vae_encoder")], [self._exported("vae_decoder")], device=device)
        rungs: list[Rung[VaeRunner]] = []
        load: Callable[[], torch.nn.Module]
        encoders, decoders = self._engines("vae_encoder"), self._engines("vae_decoder")
        if encoders and decoders:
            rungs = [Rung("the engine", lambda: GraphVae(encoders(), decoders(), device=device), self._guard)]
            load = cache(partial(_load_vae, self.files, self.vae_place))
        else:
            vae = self.files.vae_module(parts, self.vae_place)
            load = lambda: vae  # noqa: E731
        rungs.append(Rung(f"torch on {device}", lambda: TorchVae(load())))
        if self._may_leave_gpu:
            rungs.append(Rung("torch on the CPU", lambda: TorchVae(_load_vae(self.files, _CPU))))
        return LadderVae(rungs, device=device) if len(rungs) > 1 else rungs[0].get()

    def _guard(self) -> AbstractContextManager[None]:
        """Around engines: none of them has run on every card, nor with every version of their libraries."""
        return engine_failures(self.place.device)

    @property
    def _may_leave_gpu(self) -> bool:
        """Whether a model that a GPU has no memory for runs on the CPU in the end."""
        return self.backend != "torch" and self.place.device.type == "cuda"

    def _capability(self) -> str | None:
        return capability_of(self.place.device)

    def _engines(self, component: Component) -> Callable[[], list[Session]] | None:
        """Opens those that were built for these files, this precision and this GPU. None where there are none, and a
        line that says why."""
        if self.backend == "torch" or self._capability() is None:
            return None
        flavours = [load_flavour(self.backend)] if self.backend in FLAVOUR_NAMES else installed_flavours()
        for flavour in flavours:
            if entries := self._entries(self.files, component, flavour):
                logger.info("%s: %s %s", component, flavour.name, entries[0].identity.source.precision)
                return lambda: [self._session(flavour, entry) for entry in entries]
            if bases := self._refittable(component, flavour):
                logger.info("%s: %s, the LoRAs are put into the engine of the checkpoint", component, flavour.name)
                # Read when the first of them is loaded, and the same for all: they hold the whole UNet.
                weights = cache(partial(lora_weights, self.files, PRECISIONS[self.place.dtype]))
                return lambda: [self._session(flavour, entry, weights_at_load=weights) for entry in bases]
        if self.backend in FLAVOUR_NAMES:
            raise no_engine(component, self.backend, self.files)
        why = (
            "none is built for these files (animdetail-trt build-engines)" if flavours else "TensorRT is not installed"
        )
        logger.info("%s: torch instead of an engine: %s", component, why)
        return None

    def _entries(self, files: ModelFiles, component: Component, flavour: Flavour) -> list[Entry]:
        """Of every variant, the plain one first; of each, those for the smallest sizes first."""
        target = flavour.target(str(self._capability()), card_name_of(self.place.device))
        precision = PRECISIONS[self.place.dtype]
        sources = [source_of(files, component, precision, self.digests)]
        if component == "unet":  # the files' digests are the same for all
            settings = sources[0].settings or {}
            sources = [replace(sources[0], settings={**settings, **asdict(variant)}) for variant in VARIANTS]
        return [entry for source in sources for entry in sorted(self.store.find(source, target), key=_volume)]

    def _refittable(self, component: Component, flavour: Flavour) -> list[Entry]:
        """Engines of the checkpoint without LoRAs that can be given other weights, where there are LoRAs."""
        if component != "unet" or not (self.files.loras or self.files.motion_loras):
            return []
        base = replace(self.files, loras=(), motion_loras=())
        entries = self._entries(base, component, flavour)
        return [entry for entry in entries if (entry.identity.source.settings or {})["refittable"]]

    def _session(self, flavour: Flavour, entry: Entry, **options: Any) -> EngineSession:
        return EngineSession(
            flavour.trt, partial(self.store.read, entry), inputs_of(entry), entry.identity.profiles,
            self.place.device, self.workspace, runtime_cache=self.store.folder / f"{entry.name}.cache", **options,
        )  # fmt: skip

    def _exported(self, component: Component, variant: UNetVariant = VARIANTS[0]) -> Session:
        """The graph as onnxruntime runs it; it is exported where the store has none."""
        target = Target(ONNXRUNTIME, str(optional("onnxruntime", "run a graph").__version__), "cpu")
        axes = ("b", "f", "h", "w", "t", "n") if component == "unet" else ("f", "h", "w")
        profile = Profile(dict.fromkeys(axes, _ANY))
        source = source_of(self.files, component, PRECISIONS[self.place.dtype], self.digests, variant)
        job = Job(component, self.files, Identity(source, target, [profile]), variant)
        entry, _ = build(job, self.store, None, check=False)
        return OnnxSession(entry.parts[0].path, inputs_of(entry), [profile])


def capability_of(device: torch.device) -> str | None:
    """A GPU's compute capability, "8.9"; None of what is no GPU."""
    return "{}.{}".format(*torch.cuda.get_device_capability(device)) if device.type == "cuda" else None


def card_name_of(device: torch.device) -> str:
    """A GPU's name; "" of what is no GPU."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else ""


def _volume(entry: Entry) -> int:
    return max(profile.volume for profile in entry.identity.profiles)


def _load_unet(files: ModelFiles, place: Placement) -> UNet:
    return files.unet(files.read_parts(needs_vae=False), files.read_motion(), place)


def _load_vae(files: ModelFiles, place: Placement) -> torch.nn.Module:
    return files.vae_module(files.read_parts(), place)
