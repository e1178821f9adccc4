"""animdetail_trt: the Impact Pack's AnimateDiff detailer, fast.

Names are loaded when they are first used: importing the package loads neither torch nor any model code.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from animdetail_trt import ops, sampling
    from animdetail_trt.detailer.detailer import (
        DetailerForEachPipeForAnimateDiff,
        SEGSDetailerForAnimateDiff,
        SEGSPaste,
    )
    from animdetail_trt.detailer.improvements import Improvements
    from animdetail_trt.detailer.mask_to_segs import MaskToSEGS_for_AnimateDiff
    from animdetail_trt.detailer.report import Observer, RunReport
    from animdetail_trt.errors import AnimDetailError
    from animdetail_trt.models.controlnet import load_controlnet
    from animdetail_trt.models.pipe import BasicPipe, load_pipe
    from animdetail_trt.sampling.context import ContextOptions
    from animdetail_trt.sampling.control import ControlNetWrapper
    from animdetail_trt.segs import SEG, SEGS

_HOMES = {
    "AnimDetailError": "animdetail_trt.errors",
    "BasicPipe": "animdetail_trt.models.pipe",
    "ContextOptions": "animdetail_trt.sampling.context",
    "ControlNetWrapper": "animdetail_trt.sampling.control",
    "DetailerForEachPipeForAnimateDiff": "animdetail_trt.detailer.detailer",
    "Improvements": "animdetail_trt.detailer.improvements",
    "MaskToSEGS_for_AnimateDiff": "animdetail_trt.detailer.mask_to_segs",
    "Observer": "animdetail_trt.detailer.report",
    "RunReport": "animdetail_trt.detailer.report",
    "SEG": "animdetail_trt.segs",
    "SEGS": "animdetail_trt.segs",
    "SEGSDetailerForAnimateDiff": "animdetail_trt.detailer.detailer",
    "SEGSPaste": "animdetail_trt.detailer.detailer",
    "load_controlnet": "animdetail_trt.models.controlnet",
    "load_pipe": "animdetail_trt.models.pipe",
}
_MODULES = ("ops", "sampling")

__all__ = [
    "SEG",
    "SEGS",
    "AnimDetailError",
    "BasicPipe",
    "ContextOptions",
    "ControlNetWrapper",
    "DetailerForEachPipeForAnimateDiff",
    "Improvements",
    "MaskToSEGS_for_AnimateDiff",
    "Observer",
    "RunReport",
    "SEGSDetailerForAnimateDiff",
    "SEGSPaste",
    "__version__",
    "load_controlnet",
    "load_pipe",
    "ops",
    "sampling",
]


def __getattr__(name: str) -> Any:
    from importlib import import_module

    if name in _MODULES:
        return import_module(f"{__name__}.{name}")
    if name in _HOMES:
        value = getattr(import_module(_HOMES[name]), name)
        globals()[name] = value
        return value
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted((set(__all__) | set(globals())) - {"Any", "TYPE_CHECKING", "annotations"})
