"""What the *Detailer settings* node sets: it rides on the MODEL, so the detailer nodes keep the reference's inputs."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal, TypeAlias, get_args

from animdetail_trt.comfyui import host
from animdetail_trt.trt.identity import Precision

_KEY = "animdetail_trt.settings"
RUN = ("auto", "comfyui", "torch", "onnxruntime")
PrecisionName: TypeAlias = Literal["auto"] | Precision
PRECISION: tuple[PrecisionName, ...] = ("auto", *get_args(Precision))


@dataclass(frozen=True)
class DetailerSettings:
    """reference_mode: see ``DetailerForEachPipeForAnimateDiff``
    run: what the UNet runs in. auto: a TensorRT engine where one fits, else ComfyUI; comfyui: ComfyUI always; torch,
        onnxruntime: this package's own, to compare with
    precision: of the engine that is looked for; auto: as ComfyUI loaded the model
    vae_frames: that the VAE is given at once; 0: as many as there is memory for
    """

    reference_mode: bool = True
    run: str = "auto"
    precision: PrecisionName = "auto"
    vae_frames: int = 0


def with_settings(model: Any, settings: DetailerSettings) -> Any:
    return host.attach(model, _KEY, settings)


def settings_of(model: Any) -> DetailerSettings:
    found = host.attachment(model, _KEY)
    return found if isinstance(found, DetailerSettings) else DetailerSettings()
