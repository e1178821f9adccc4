"""New weights in a built engine, without building it again: for LoRA."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from animdetail_trt.errors import EngineError
from animdetail_trt.trt.execution import torch_dtype
from animdetail_trt.trt.log import EngineLog
from animdetail_trt.trt.memory import Workspace

_REMEDY = (
    "Merge the LoRA into the weights and build an engine of them: animdetail-trt build-engines --lora FILE:STRENGTH"
)


def refit(
    trt: Any,
    engine: Any,
    log: EngineLog,
    base: Mapping[str, Tensor],
    changed: Mapping[str, Tensor],
    workspace: Workspace,
) -> None:
    """Give an engine as it was built these weights in place of its own.

    base: the weights that it was built with, on the CPU, by name; read one by one and never changed
    changed: by the base's names, in the base's shapes, on any device
    workspace: whose stream the engine runs on

    Raises EngineError where the engine does not take them all. It may hold weights of both kinds then, as where this is
    interrupted, and must be unloaded.
    """
    if not engine.refittable:
        raise EngineError(f"this engine was not built to take other weights. {_REMEDY}")
    refitter = trt.Refitter(engine, log.handle)
    _check(refitter, base, changed)
    # The library reads them where they lie, until it has refitted.
    alive = [_set(trt, log, refitter, name, tensor) for name, tensor in changed.items()]
    given = set(changed)
    while missing := refitter.get_missing_weights():  # weights that the engine keeps in one piece with new ones
        lacking = [name for name in missing if name in given or name not in base]
        if lacking:
            raise EngineError(f"the engine cannot be given new weights without {_first(lacking)}. {_REMEDY}")
        alive += [_set(trt, log, refitter, name, base[name]) for name in missing]
        given.update(missing)
    with workspace.turn() as stream:
        if not refitter.refit_cuda_engine_async(stream):
            raise log.failure("the engine took only some of its new weights", _REMEDY)
    workspace.synchronize()
    if hasattr(refitter, "release_refit_resources"):
        refitter.release_refit_resources()
    del alive


def _check(refitter: Any, base: Mapping[str, Tensor], changed: Mapping[str, Tensor]) -> None:
    known = set(refitter.get_all_weights())
    lacking = [name for name in changed if name not in base or name not in known]
    if lacking:
        covered = f"{len(changed) - len(lacking)} of {len(changed)} weights"
        raise EngineError(f"the engine covers {covered}; it has no {_first(lacking)}. {_REMEDY}")
    for name, tensor in changed.items():
        if tensor.shape != base[name].shape:
            shapes = f"{tuple(tensor.shape)}, in the engine {tuple(base[name].shape)}"
            raise EngineError(f"the new weight {name} is {shapes}. {_REMEDY}")


def _set(trt: Any, log: EngineLog, refitter: Any, name: str, tensor: Tensor) -> Tensor:
    """Returns the memory that must outlive the refit."""
    prototype = refitter.get_weights_prototype(name)
    tensor = tensor.detach().to("cpu", torch_dtype(trt, prototype.dtype)).contiguous()
    weights = trt.Weights(prototype.dtype, tensor.data_ptr(), tensor.numel())
    if not refitter.set_named_weights(name, weights):
        raise log.failure(f"the engine does not take {name} {tuple(tensor.shape)}", _REMEDY)
    return tensor


def _first(names: list[str]) -> str:
    return names[0] if len(names) == 1 else f"{names[0]} (and {len(names) - 1} more)"
