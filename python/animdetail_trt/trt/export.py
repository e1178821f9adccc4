"""A module as an ONNX file: a small graph, and its weights beside it under the names that they have in the module."""

from __future__ import annotations

import hashlib
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from animdetail_trt.errors import USE_TORCH, EngineError
from animdetail_trt.trt.graphs import example_inputs
from animdetail_trt.trt.optional import optional
from animdetail_trt.trt.profile import Inputs

OPSET = 17
# Neither side a multiple of 8: a traced UNet then takes latents of any size. Small: tracing computes it all once.
TRACED_SIZES = {"b": 2, "f": 3, "h": 5, "w": 7, "t": 1, "n": 77}
_ALIGNMENT = 64


@dataclass(frozen=True)
class Graph:
    """An exported module.

    path: the .onnx; weights: the file beside it, which the .onnx names; output: the name of its one output
    sha256: of the graph without its weights; weight_names: those of the module's that it holds
    """

    path: Path
    weights: Path
    inputs: Inputs
    output: str
    sha256: str
    weight_names: tuple[str, ...]

    @property
    def weight_bytes(self) -> int:
        return self.weights.stat().st_size


def export_graph(module: Any, folder: Path, name: str, output: str) -> Graph:
    """Trace a module of ``graphs.py`` and write ``name.onnx`` and ``name.weights`` to ``folder``.

    The weights are written one after the other from where they lie: none is held twice.
    """
    onnx = optional("onnx", "export a model")
    inputs: Inputs = module.inputs
    path, weights = folder / f"{name}.onnx", folder / f"{name}.weights"
    axes = {key: {i: dim for i, dim in enumerate(dims) if isinstance(dim, str)} for key, dims in inputs.items()}
    with torch.inference_mode(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of the tracer, about sizes that were meant to be constants
        torch.onnx.export(
            module.eval(),
            tuple(example_inputs(inputs, TRACED_SIZES).values()),
            path,
            dynamo=False,  # the other exporter takes twenty times as long, and does not trace these sizes as axes
            opset_version=OPSET,
            export_params=False,  # so that weights keep their names, and go to one file instead of 800
            do_constant_folding=False,
            input_names=list(inputs),
            output_names=[output],
            dynamic_axes={key: dims for key, dims in axes.items() if dims},
        )
    model = onnx.load(path)
    sha256 = hashlib.sha256(path.read_bytes()).hexdigest()
    names = _add_weights(onnx, model, module.state_dict(), inputs, weights)
    onnx.save(model, path)
    return Graph(path, weights, inputs, output, sha256, names)


def _add_weights(onnx: Any, model: Any, tensors: Mapping[str, Tensor], inputs: Inputs, path: Path) -> tuple[str, ...]:
    """Make initialisers of the graph's inputs that are weights, kept in the file ``path``."""
    given = {value.name: value for value in model.graph.input}
    del model.graph.input[:]
    model.graph.input.extend(given[name] for name in inputs if name in given)
    names = [name for name in given if name not in inputs]
    with path.open("wb") as file:
        for name in names:
            tensor = tensors[name].contiguous()
            file.write(b"\0" * (-file.tell() % _ALIGNMENT))
            offset = file.tell()
            file.write(tensor.reshape(-1).view(torch.uint8).numpy().data)
            initialiser = onnx.TensorProto(
                name=name,
                data_type=given[name].type.tensor_type.elem_type,
                dims=tensor.shape,
                data_location=onnx.TensorProto.EXTERNAL,
            )
            place = {"location": path.name, "offset": offset, "length": file.tell() - offset}
            for key, value in place.items():
                initialiser.external_data.add(key=key, value=str(value))
            model.graph.initializer.append(initialiser)
    return tuple(names)


def relative_norm(out: Any, expected: Any) -> float:
    """|out - expected| / |expected|, both numpy arrays."""
    import numpy as np

    out, expected = np.asarray(out, np.float64), np.asarray(expected, np.float64)
    return float(np.linalg.norm(out - expected) / np.linalg.norm(expected))


def compare_with_torch(graph: Graph, reference: Callable[..., Tensor], sizes: Sequence[dict[str, int]]) -> list[float]:
    """Run the graph in onnxruntime and ``reference`` in torch on random inputs of each size.

    reference: is given the graph's inputs by name
    Returns the relative norm of the difference for each of the sizes; NaN counts as infinite.
    """
    polygraphy = optional("polygraphy", "check a graph")
    optional("onnxruntime", "check a graph")
    from polygraphy.backend.onnxrt import OnnxrtRunner, SessionFromOnnx  # type: ignore[import-untyped]
    from polygraphy.comparator import Comparator, IterationResult  # type: ignore[import-untyped]

    examples = [example_inputs(graph.inputs, size, seed) for seed, size in enumerate(sizes)]
    feeds = [{name: tensor.numpy() for name, tensor in example.items()} for example in examples]
    with polygraphy.logger.G_LOGGER.verbosity(polygraphy.logger.G_LOGGER.CRITICAL), torch.inference_mode():
        results = Comparator.run([OnnxrtRunner(SessionFromOnnx(str(graph.path)), name="graph")], data_loader=feeds)
        expected = [IterationResult({graph.output: reference(**example).numpy()}) for example in examples]
        results.append(("torch", expected))
        distances: list[float] = []

        def compare(ours: Any, theirs: Any) -> dict[str, bool]:
            distance = relative_norm(ours[graph.output], theirs[graph.output])
            distances.append(distance if distance == distance else float("inf"))
            return {graph.output: True}

        Comparator.compare_accuracy(results, compare_func=compare)
    return distances


TOLERANCES = {"fp32": 1e-5, "fp16": 1e-2, "bf16": 8e-2}
"""Relative norms that a graph may be away from torch in its own precision (bfloat16 has 8 bits to float16's 11)."""


def check_graph(
    graph: Graph, reference: Callable[..., Tensor], sizes: Sequence[dict[str, int]], precision: str
) -> None:
    """Raise EngineError where the graph computes something else than torch."""
    for size, distance in zip(sizes, compare_with_torch(graph, reference, sizes), strict=True):
        if distance > TOLERANCES[precision]:
            raise EngineError(
                f"the exported graph {graph.path.name} is {distance:.1e} away from torch at {size}; "
                f"{TOLERANCES[precision]:.0e} is allowed. {USE_TORCH}, and report this with your versions of "
                "torch and diffusers (animdetail-trt doctor)"
            )
