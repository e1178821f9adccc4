"""TensorRT in its two flavours, and the card that it would run on.

tensorrt: 10.x and 11.x, for every NVIDIA GPU; it builds on the card that it builds for.
tensorrt_rtx: TensorRT for RTX, for GeForce and RTX cards; it builds without any card.
"""

from __future__ import annotations

import importlib.util
from dataclasses import dataclass
from typing import Any

from animdetail_trt.errors import EngineError, InputError, UnavailableError
from animdetail_trt.extras import install_command
from animdetail_trt.trt.identity import Target
from animdetail_trt.trt.log import EngineLog, engine_log
from animdetail_trt.trt.optional import optional

FLAVOUR_NAMES = ("tensorrt", "tensorrt_rtx")


@dataclass(frozen=True)
class Flavour:
    """A TensorRT library that can be imported."""

    name: str
    trt: Any

    @property
    def version(self) -> str:
        return str(self.trt.__version__)

    @property
    def builds_ahead(self) -> bool:
        """Whether it builds for a card that is not there."""
        return hasattr(self.trt, "ComputeCapability")

    @property
    def log(self) -> EngineLog:
        return engine_log(self.trt)

    def target(self, capability: str, card: str) -> Target:
        """What an engine for a card of this name is built for. TensorRT warns of errors on any other model of the same
        compute capability; TensorRT for RTX builds for all of them."""
        return Target(self.name, self.version, capability, "" if self.builds_ahead else card)

    def targets(self) -> list[str]:
        """The compute capabilities that it can be asked to build for, "8.9"."""
        if not self.builds_ahead:
            return []
        names = (name for name in dir(self.trt.ComputeCapability) if name.startswith("SM"))
        return sorted((f"{name[2:-1]}.{name[-1]}" for name in names), key=float)


_found: dict[str, Flavour] = {}


def load_flavour(name: str) -> Flavour:
    """Import one. Raises UnavailableError, which says how to install it."""
    if name not in FLAVOUR_NAMES:
        raise InputError(f"unknown flavour {name!r}. Choose auto, {' or '.join(FLAVOUR_NAMES)}")
    if name not in _found:
        _found[name] = Flavour(name, optional(name, "use TensorRT engines"))
    return _found[name]


def installed_flavours() -> list[Flavour]:
    """Those that can be imported, the one for every card first."""
    flavours = []
    for name in FLAVOUR_NAMES:
        if importlib.util.find_spec(name) is None:
            continue
        try:
            flavours.append(load_flavour(name))
        except UnavailableError:  # installed, and broken: the command line's doctor tells
            continue
    return flavours


def choose_flavour(name: str, capability: str | None) -> Flavour:
    """The flavour to build with. auto: TensorRT where it and a card are there, else TensorRT for RTX."""
    if name != "auto":
        flavour = load_flavour(name)
        if capability is None and not flavour.builds_ahead:
            raise UnavailableError(
                "tensorrt builds on the GPU that it builds for, and there is none. "
                "Use --flavour tensorrt_rtx --target-sm 89"
            )
        return flavour
    for flavour in installed_flavours():
        if flavour.builds_ahead or capability is not None:
            return flavour
    raise UnavailableError(
        f"no TensorRT is installed. Run: {install_command('rtx')} (GeForce and RTX cards, and building without a GPU) "
        f"or {install_command('tensorrt')} (every NVIDIA GPU)"
    )


@dataclass(frozen=True)
class Card:
    """A GPU. capability: "8.9"; memory_bytes: all of it; driver: the CUDA version that it knows, "13.0"."""

    index: int
    name: str
    capability: str
    memory_bytes: int
    driver: str


def find_cards() -> tuple[list[Card], str]:
    """The CUDA devices, and if there is none, why. Asks cuda-python, so that a torch for the CPU hides nothing."""
    try:
        from cuda.bindings import runtime  # type: ignore[import-untyped, unused-ignore]
    except ImportError as error:
        return _cards_of_torch(f"cuda-python is not installed ({error})")
    try:
        status, count = runtime.cudaGetDeviceCount()
        if status != runtime.cudaError_t.cudaSuccess:
            return [], runtime.cudaGetErrorString(status)[1].decode()
        driver = int(runtime.cudaDriverGetVersion()[1])
        cards = []
        for index in range(count):
            found = runtime.cudaGetDeviceProperties(index)[1]
            name = found.name.decode() if isinstance(found.name, bytes) else str(found.name)
            told = f"{driver // 1000}.{driver % 1000 // 10}"
            cards.append(Card(index, name.rstrip("\0"), f"{found.major}.{found.minor}", found.totalGlobalMem, told))
    except Exception as error:  # of cuda-python's own loader, which has many kinds
        return [], str(error)
    return cards, "" if cards else "no CUDA device"


def use_card(target: Target) -> None:
    """Make the target's card this thread's: a new thread's is the first. Without cuda-python, which finds the cards, it
    stays. Raises EngineError where the driver refuses."""
    try:
        from cuda.bindings import runtime
    except ImportError:
        return
    wanted = target.card, target.compute_capability
    indices = [card.index for card in find_cards()[0] if (card.name, card.capability) == wanted]
    if indices:
        (status,) = runtime.cudaSetDevice(indices[0])
        if status != runtime.cudaError_t.cudaSuccess:
            raise EngineError(f"cannot build on {target.card}: {runtime.cudaGetErrorString(status)[1].decode()}")


def _cards_of_torch(reason: str) -> tuple[list[Card], str]:
    import torch

    if not torch.cuda.is_available():
        return [], f"{reason}, and torch sees no CUDA device"
    cards = []
    for index in range(torch.cuda.device_count()):
        found = torch.cuda.get_device_properties(index)
        version = torch.version.cuda or ""
        cards.append(Card(index, found.name, f"{found.major}.{found.minor}", found.total_memory, version))
    return cards, ""
