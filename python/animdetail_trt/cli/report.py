"""The run report that ``--report`` writes."""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import platform
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from animdetail_trt import __version__
from animdetail_trt.media.staging import staged_file

if TYPE_CHECKING:
    from animdetail_trt.detailer.report import RunReport
    from animdetail_trt.media.clip import Clip
    from animdetail_trt.models.pipe import BasicPipe
    from animdetail_trt.segs import SEGS

_PACKAGES = (
    "torch", "diffusers", "transformers", "numpy", "pillow", "av", "safetensors", "opencv-python-headless",
    "onnxruntime",
)  # fmt: skip
_NOT_PARAMETERS = {"run", "default_of", "quiet", "command_line"}


def write_report(
    args: argparse.Namespace, clip: Clip, segs: SEGS, pipe: BasicPipe, run: RunReport, elapsed_ms: Mapping[str, float]
) -> None:
    """Write ``args.report``: all that is needed to run this again, and what it took."""
    with staged_file(args.report) as partial:
        partial.write_text(
            json.dumps(build_report(args, clip, segs, pipe, run, elapsed_ms), indent=2) + "\n", encoding="utf-8"
        )


def build_report(
    args: argparse.Namespace, clip: Clip, segs: SEGS, pipe: BasicPipe, run: RunReport, elapsed_ms: Mapping[str, float]
) -> dict[str, Any]:
    from animdetail_trt.backends.select import choose_device, choose_dtype

    frames, height, width, _ = clip.frames.shape
    device = choose_device(args.device)
    detailed = run.as_dict()
    for entry, seg in zip(detailed["segments"], segs[1], strict=False):
        entry |= {"bbox": list(map(int, seg.bbox)), "crop_region": list(map(int, seg.crop_region)),
                  "confidence": float(seg.confidence)}  # fmt: skip
    return {
        "finished": datetime.now(UTC).isoformat(timespec="seconds"),
        "input": {"path": str(args.input), "frames": frames, "width": width, "height": height, "rate": _rate(clip)},
        "output": str(args.output),
        "parameters": {name: _plain(value) for name, value in vars(args).items() if name not in _NOT_PARAMETERS},
        "runs_on": {
            "device": str(device),
            "dtype": str(choose_dtype(args.dtype, device)).removeprefix("torch."),
            "unet": getattr(pipe.model.unet, "name", "unknown"),
            "vae": getattr(pipe.vae, "name", "unknown"),
            "machine": platform.platform(),
        },
        "phases_ms": {name: round(value, 3) for name, value in elapsed_ms.items()},
        "detail": detailed,
        "versions": _versions(),
    }


def _rate(clip: Clip) -> float | None:
    video = clip.source.video
    return None if video is None else float(video.style.rate)


def _versions() -> dict[str, str | None]:
    own = {"animdetail-trt": __version__, "python": platform.python_version()}
    return own | {package: _version(package) for package in _PACKAGES}


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _plain(value: Any) -> Any:
    """What JSON can hold."""
    if isinstance(value, (list, tuple)):
        return [_plain(v) for v in value]
    return value if isinstance(value, (int, float, str, type(None))) else str(value)
