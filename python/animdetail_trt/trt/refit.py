"""New weights in a built engine, without building it again: for LoRA."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from animdetail_trt.errors import EngineError
from animdetail_trt.trt.execution import torch_dtype
from animdetail_trt.trt.log import EngineLog
from animdetail_trt.trt.memory import Workspace

_REMEDY = (
    "Merge the LoRA into the weights and build an engine of them: animdetail-trt build-engines --lora FILE:STRENGTH"
)


@dataclass(frozen=True)
class Coverage:
    """How many of the weights that were asked for the engine can take."""

    covered: int
    asked: int

    def __str__(self) -> str:
        return f"{self.covered} of {self.asked} weights"


class Refit:
    """Sets an engine's weights, each time from the pristine base: what one set leaves behind the next takes back.

    base: the weights that the engine was built with, on the CPU, by name; read one by one and never changed
    names: the engine's name of a weight where that is another than the base's
    workspace: whose stream the engine runs on
    intact: False where a set failed half-way and left weights of both kinds; the engine must be unloaded then
    """

    def __init__(
        self,
        trt: Any,
        engine: Any,
        log: EngineLog,
        base: Mapping[str, Tensor],
        names: Mapping[str, str],
        workspace: Workspace,
    ) -> None:
        if not engine.refittable:
            raise EngineError(f"this engine was not built to take other weights. {_REMEDY}")
        self._trt, self._engine, self._log, self._workspace = trt, engine, log, workspace
        self._base = base
        self.intact = True
        self._engine_name = dict(names)
        self._base_name = {there: here for here, there in names.items()}
        self._changed: frozenset[str] = frozenset()  # the base's names

    def set_weights(self, changed: Mapping[str, Tensor]) -> Coverage:
        """Give the engine these weights, and the base's for every other.

        changed: by the base's names, in the base's shapes, on any device

        Raises EngineError where the engine does not take them all: before anything is changed, or ``intact`` is False.
        """
        refitter = self._trt.Refitter(self._engine, self._log.handle)
        self._check(refitter, changed)
        weights = {name: self._base[name] for name in self._changed - changed.keys()} | dict(changed)
        # The library reads them where they lie, until it has refitted.
        alive = [self._set(refitter, name, tensor) for name, tensor in weights.items()]
        alive += self._set_companions(refitter, weights.keys())
        self.intact = False
        with self._workspace.turn() as stream:
            if not refitter.refit_cuda_engine_async(stream):
                raise self._log.failure("the engine took only some of its new weights", _REMEDY)
        self._workspace.synchronize()
        if hasattr(refitter, "release_refit_resources"):
            refitter.release_refit_resources()
        del alive
        self.intact = True
        self._changed = frozenset(changed)
        return Coverage(len(changed), len(changed))

    def _check(self, refitter: Any, changed: Mapping[str, Tensor]) -> None:
        known = set(refitter.get_all_weights())
        lacking = [name for name in changed if name not in self._base or self._name(name) not in known]
        if lacking:
            covered = Coverage(len(changed) - len(lacking), len(changed))
            raise EngineError(f"the engine covers {covered}; it has no {_first(lacking)}. {_REMEDY}")
        for name, tensor in changed.items():
            if tensor.shape != self._base[name].shape:
                shapes = f"{tuple(tensor.shape)}, in the engine {tuple(self._base[name].shape)}"
                raise EngineError(f"the new weight {name} is {shapes}. {_REMEDY}")

    def _set_companions(self, refitter: Any, given: Any) -> list[Tensor]:
        """Weights that the engine keeps in one piece with new ones must be given with them."""
        alive: list[Tensor] = []
        given = set(given)
        while missing := [self._base_name.get(name, name) for name in refitter.get_missing_weights()]:
            lacking = [name for name in missing if name in given or name not in self._base]
            if lacking:
                raise EngineError(f"the engine cannot be given new weights without {_first(lacking)}. {_REMEDY}")
            alive += [self._set(refitter, name, self._base[name]) for name in missing]
            given.update(missing)
        return alive

    def _set(self, refitter: Any, name: str, tensor: Tensor) -> Tensor:
        """Returns the memory that must outlive the refit."""
        there = self._name(name)
        prototype = refitter.get_weights_prototype(there)
        tensor = tensor.detach().to("cpu", torch_dtype(self._trt, prototype.dtype)).contiguous()
        weights = self._trt.Weights(prototype.dtype, tensor.data_ptr(), tensor.numel())
        if not refitter.set_named_weights(there, weights):
            raise self._log.failure(f"the engine does not take {name} {tuple(tensor.shape)}", _REMEDY)
        return tensor

    def _name(self, name: str) -> str:
        return self._engine_name.get(name, name)


def _first(names: list[str]) -> str:
    return names[0] if len(names) == 1 else f"{names[0]} (and {len(names) - 1} more)"
