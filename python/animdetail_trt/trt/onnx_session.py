"""A graph run by onnxruntime on the CPU: slow, and the proof that what engines are built from is right."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from animdetail_trt.errors import USE_TORCH, EngineError
from animdetail_trt.trt.optional import optional
from animdetail_trt.trt.profile import Inputs, Profile
from animdetail_trt.trt.session import Session, choose_profile, read_sizes


class OnnxSession(Session):
    """An .onnx file with its weights beside it, of one output; loaded when it is first run."""

    def __init__(self, path: Path, inputs: Inputs, profiles: Sequence[Profile]) -> None:
        self.inputs, self.profiles = inputs, profiles
        self.path = path
        self._session: Any = None

    def run(self, inputs: Mapping[str, Tensor]) -> Tensor:
        """As every Session; computed with as many threads as torch has."""
        choose_profile(self.profiles, read_sizes(self.inputs, inputs))
        session = self._loaded()
        feeds = {name: tensor.float().numpy() for name, tensor in inputs.items()}
        (out,) = session.run(None, feeds)
        return torch.from_numpy(out)

    def unload(self) -> None:
        self._session = None

    def _loaded(self) -> Any:
        if self._session is None:
            onnxruntime = optional("onnxruntime", "run a graph")
            options = onnxruntime.SessionOptions()
            options.intra_op_num_threads = torch.get_num_threads()
            options.log_severity_level = 3
            try:
                self._session = onnxruntime.InferenceSession(
                    str(self.path), options, providers=["CPUExecutionProvider"]
                )
            except Exception as error:  # onnxruntime has its own kinds
                raise EngineError(f"onnxruntime cannot load {self.path}: {error}. {USE_TORCH}") from error
        return self._session
