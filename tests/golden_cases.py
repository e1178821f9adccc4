"""Reading the whole-node golden cases (golden/README.md)."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor

import animdetail_trt as adt

NODE = Path(__file__).parent / "golden" / "node"


@dataclass(frozen=True)
class Case:
    name: str
    settings: dict[str, Any]
    tensors: dict[str, Tensor]

    @property
    def frames(self) -> Tensor:
        return self.tensors["image_frames"].float() / 255

    @property
    def segs(self) -> adt.SEGS:
        items = [
            adt.SEG(
                None,
                self.tensors[f"segs.{i}.cropped_mask"].numpy(),
                1.0,
                tuple(seg["crop_region"]),
                tuple(seg["bbox"]),
                seg["label"],
            )
            for i, seg in enumerate(self.settings["segs"])
        ]
        return tuple(self.settings["header"]), items

    def controlled_segs(self, tiny: Path, device: str = "cpu") -> adt.SEGS:
        """The segments, each with the case's ControlNet if it has one."""
        header, items = self.segs
        control = self.settings.get("controlnet")
        if control is None:
            return header, items
        network = adt.load_controlnet(tiny / "tiny_controlnet.safetensors", device=device, dtype="float32")
        wrapper = adt.ControlNetWrapper(
            network, control["strength"], control.get("start", 0.0), control.get("end", 1.0)
        )
        return header, [seg._replace(control_net_wrapper=wrapper) for seg in items]

    def loras(self, tiny: Path) -> list[tuple[Path, float]]:
        lora = self.settings.get("lora")
        return [] if lora is None else [(tiny / f"{lora[0]}.safetensors", lora[1])]

    def conditioning(self, prefix: str = "") -> dict[str, Any]:
        return {sign: [[self.tensors[prefix + sign], self._extras(prefix + sign)]] for sign in ("positive", "negative")}

    def _extras(self, name: str) -> dict[str, Any]:
        mask = self.tensors.get(f"{name}.mask")
        return {} if mask is None else {"mask": mask}

    def pipe(
        self,
        tiny: Path,
        checkpoint: str = "tiny_sd15",
        prefix: str = "",
        device: str = "cpu",
        dtype: str = "float32",
        **options: Any,
    ) -> adt.BasicPipe:
        motion = self.settings["motion_module"]
        context = self.settings["context"]
        windows = None
        if context is not None:
            assert context["kind"] == "ADE_StandardStaticContextOptions"
            windows = adt.ContextOptions(
                context_length=context["context_length"],
                context_overlap=context["context_overlap"],
                fuse_method=context.get("fuse_method"),
            )
        if prefix:
            motion = self.settings["refiner"].get("mm")
        pipe = adt.load_pipe(
            tiny / f"{checkpoint}.safetensors",
            motion_module=motion and tiny / f"{motion}.safetensors",
            loras=[] if prefix else self.loras(tiny),
            context=windows,
            device=device,
            dtype=dtype,
            **{"backend": "torch"} | options,
        )
        return pipe.with_conditioning(**self.conditioning(prefix))


def load_case(name: str) -> Case:
    with safe_open(NODE / f"{name}.safetensors", "pt") as file:
        settings = json.loads(file.metadata()["case"])
        return Case(name, settings, {key: file.get_tensor(key) for key in file.keys()})  # noqa: SIM118


def relative_norm(actual: Tensor, expected: Tensor) -> float:
    return float(torch.linalg.vector_norm(actual - expected) / torch.linalg.vector_norm(expected))
