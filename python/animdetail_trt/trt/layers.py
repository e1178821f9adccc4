"""What a plan is made of, read from TensorRT's list of layers: kinds, and whether attention was fused."""

from __future__ import annotations

import collections
import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

_LINE = re.compile(r"^Name: (?P<name>.*?), LayerType: (?P<kind>\w+)", re.MULTILINE)
_TACTIC = re.compile(r"TacticName: ([^,\s]*)")
_ONNX = re.compile(r"\[ONNX Layer: ([^\]]*)\]")
_GRAPH = re.compile(r"_myl(\d+)_\d+$")
_FUSED_ATTENTION = "mha"  # as in _gemm_mha_v2, TensorRT's kernels for attention


@dataclass(frozen=True)
class Layer:
    """One kernel, or a copy between kernels. sources: the names of the ONNX nodes that it computes."""

    name: str
    kind: str
    tactic: str
    sources: tuple[str, ...]

    @property
    def softmaxes(self) -> list[str]:
        return [source for source in self.sources if source.rsplit("/", 1)[-1].startswith("Softmax")]

    @property
    def graph(self) -> str:
        """Which of a plan's compiled graphs it is in; each profile has its own."""
        match = _GRAPH.search(self.name)
        return match[1] if match else ""

    @property
    def is_fused_attention(self) -> bool:
        return _FUSED_ATTENTION in self.name or _FUSED_ATTENTION in self.tactic


def parse_layers(text: str) -> list[Layer]:
    """The layers of a verbose build log's message "Layers:"."""
    layers = []
    for line in text.splitlines():
        if match := _LINE.match(line):
            tactic = _TACTIC.search(line)
            layers.append(Layer(match["name"], match["kind"], tactic[1] if tactic else "", tuple(_ONNX.findall(line))))
    return layers


def summary_of(layers: Iterable[Layer]) -> dict[str, Any]:
    """For the sidecar: layers by kind, attention fused and not, and the softmaxes that stand alone by name."""
    layers = list(layers)
    fused = [layer for layer in layers if layer.is_fused_attention]
    # A kernel for attention may come with copies before and after it, such as heads of 12 padded to 16: they bear its
    # nodes' names too, and compute no softmax.
    inside = {(layer.graph, softmax) for layer in fused for softmax in layer.softmaxes}
    alone = {softmax for layer in layers for softmax in layer.softmaxes if (layer.graph, softmax) not in inside}
    return {
        "kinds": dict(collections.Counter(layer.kind for layer in layers).most_common()),
        "fused_attention": len(fused),
        "unfused_softmax": sorted(alone),
    }
