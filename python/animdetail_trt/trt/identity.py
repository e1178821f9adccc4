"""What makes two engines the same engine."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal

from animdetail_trt.trt.profile import Profile

Component = Literal["unet", "vae_encoder", "vae_decoder"]
Precision = Literal["fp16", "bf16", "fp32"]

GRAPH_VERSION = 1
"""Of the graphs in ``graphs.py``: raised when the same weights come to give another graph, or other inputs."""


@dataclass(frozen=True)
class Source:
    """All that decides a graph and its weights.

    weights: role ("checkpoint", "motion_module", "vae") -> SHA-256 of the file
    loras: (role, SHA-256, strength) in the order in which they are merged; role is "lora" or "motion_lora"
    settings: what else changes weights or inputs ("motion_scale", "controlnet", ...)
    """

    component: Component
    weights: Mapping[str, str]
    precision: Precision
    loras: Sequence[tuple[str, str, float]] = ()
    settings: Mapping[str, Any] | None = None
    graph_version: int = GRAPH_VERSION


@dataclass(frozen=True)
class Target:
    """What it is built for.

    flavour: "tensorrt", "tensorrt_rtx" or "onnxruntime"; version: the library's
    compute_capability: "8.9"; "any" for one plan for several, "cpu" for onnxruntime
    card: the GPU's name where a plan is for that model alone, as TensorRT's is; "" for all of the compute capability
    """

    flavour: str
    version: str
    compute_capability: str
    card: str = ""

    @property
    def where(self) -> str:
        """In words: the card, or all that it may be."""
        return self.card or f"compute capability {self.compute_capability}"


@dataclass(frozen=True)
class Identity:
    """Source, target, and the sizes. Its digest names the plan."""

    source: Source
    target: Target
    profiles: Sequence[Profile]

    def as_json(self) -> dict[str, Any]:
        source = asdict(replace(self.source, settings=dict(self.source.settings or {})))
        source["loras"] = [list(lora) for lora in self.source.loras]
        return {
            "source": source,
            "target": {name: value for name, value in asdict(self.target).items() if value},
            "profiles": [profile.as_json() for profile in self.profiles],
        }

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Identity:
        source = dict(data["source"])
        source["loras"] = tuple((role, digest, strength) for role, digest, strength in source["loras"])
        profiles = [Profile.from_json(axes) for axes in data["profiles"]]
        return cls(Source(**source), Target(**data["target"]), profiles)

    @property
    def digest(self) -> str:
        """The first 16 hexadecimal digits of the SHA-256 of all of it."""
        text = json.dumps(self.as_json(), sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(text.encode()).hexdigest()[:16]

    @property
    def name(self) -> str:
        """``unet-fp16-1f0c...``: the plan's file name without its suffix."""
        return f"{self.source.component}-{self.source.precision}-{self.digest}"
