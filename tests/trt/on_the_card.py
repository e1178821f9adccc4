"""The TensorRT libraries that run on this card, and a small network to find that out with."""

from __future__ import annotations

import importlib
import os
from collections.abc import Mapping
from typing import Any

import pytest
import torch
from torch import Tensor

from animdetail_trt.errors import EngineError
from animdetail_trt.trt.log import engine_log
from animdetail_trt.trt.profile import Inputs, Profile, Range

CHANNELS = 8
INPUTS: Inputs = {"x": ("b", CHANNELS, "h", "w")}
PROFILES = [
    Profile({"b": Range(1, 1, 2), "h": Range(8, 16, 32), "w": Range(8, 16, 32)}),
    Profile({"b": Range(1, 2, 4), "h": Range(8, 32, 128), "w": Range(8, 32, 128)}),
]

Weights = Mapping[str, Tensor]


def random_weights(seed: int = 0, hidden: int = 32) -> Weights:
    generator = torch.Generator().manual_seed(seed)
    shapes = {
        "first.weight": (hidden, CHANNELS, 3, 3),
        "first.bias": (hidden,),
        "last.weight": (CHANNELS, hidden, 3, 3),
        "last.bias": (CHANNELS,),
    }
    return {name: (0.1 * torch.randn(shape, generator=generator)).half() for name, shape in shapes.items()}


def by_torch(weights: Weights, x: Tensor) -> Tensor:
    conv = torch.nn.functional.conv2d
    first, first_bias, last, last_bias = (weight.to(x.device) for weight in weights.values())
    return conv(conv(x.half(), first, first_bias, padding=1).relu(), last, last_bias, padding=1).float()


def onnx_model(weights: Weights) -> bytes:
    """Two convolutions in float16, input and output float32, as all of the package's graphs are."""
    onnx = pytest.importorskip("onnx")
    node, value = onnx.helper.make_node, onnx.helper.make_tensor_value_info
    float32, float16 = onnx.TensorProto.FLOAT, onnx.TensorProto.FLOAT16
    graph = onnx.helper.make_graph(
        [
            node("Cast", ["x"], ["half"], to=float16),
            node("Conv", ["half", "first.weight", "first.bias"], ["hidden"], pads=[1, 1, 1, 1]),
            node("Relu", ["hidden"], ["active"]),
            node("Conv", ["active", "last.weight", "last.bias"], ["out"], pads=[1, 1, 1, 1]),
            node("Cast", ["out"], ["y"], to=float32),
        ],
        "convolutions",
        [value("x", float32, INPUTS["x"])],
        [value("y", float32, INPUTS["x"])],
        [onnx.numpy_helper.from_array(weight.numpy(), name) for name, weight in weights.items()],
    )
    model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 17)])
    model.ir_version = 8
    data: bytes = model.SerializeToString()
    return data


def build(trt: Any, weights: Weights, *, refit: bool = False) -> bytes:
    """A plan. Raises EngineError with the library's words where it builds none."""
    log = engine_log(trt)
    builder = trt.Builder(log.handle)
    flags = trt.NetworkDefinitionCreationFlag
    network = builder.create_network(1 << int(flags.STRONGLY_TYPED) if hasattr(flags, "STRONGLY_TYPED") else 0)
    parser = trt.OnnxParser(network, log.handle)
    assert parser.parse(onnx_model(weights)), [parser.get_error(i).desc() for i in range(parser.num_errors)]
    config = builder.create_builder_config()
    for profile in PROFILES:
        made = builder.create_optimization_profile()
        for name, dims in INPUTS.items():
            made.set_shape(name, *profile.shapes(dims))
        assert config.add_optimization_profile(made) >= 0
    if hasattr(trt.PreviewFeature, "RUNTIME_ACTIVATION_RESIZE_10_10"):
        config.set_preview_feature(trt.PreviewFeature.RUNTIME_ACTIVATION_RESIZE_10_10, True)
    if refit:
        config.set_flag(trt.BuilderFlag.REFIT_INDIVIDUAL)
        assert all(network.mark_weights_refittable(name) for name in weights)
    plan = builder.build_serialized_network(network, config)
    if plan is None:
        raise log.failure("no engine was built", "")
    return bytes(plan)


def library_on_card(name: str) -> tuple[Any, bytes]:
    """A library that runs on this card, and a plan of ``random_weights()``.

    Where it is not installed, or not made for the card, the test skips; with ANIMDETAIL_REQUIRE_ENGINES=name it fails.
    """
    found = _open(name)
    if isinstance(found, tuple):
        return found
    if name in os.environ.get("ANIMDETAIL_REQUIRE_ENGINES", "").split(","):
        pytest.fail(found, pytrace=False)
    pytest.skip(found)


def _open(name: str) -> tuple[Any, bytes] | str:
    try:
        trt = importlib.import_module(name)
    except (ImportError, OSError) as error:
        return f"{name} cannot be imported: {error}"
    try:
        plan = build(trt, random_weights())
    except EngineError as error:
        return f"{name} {trt.__version__} does not build for this card: {error}"
    log = engine_log(trt)
    if trt.Runtime(log.handle).deserialize_cuda_engine(plan) is None:
        return str(log.failure(f"{name} {trt.__version__} does not run on this card", ""))
    return trt, plan
