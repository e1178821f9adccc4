"""Imports go down the list in CONTRIBUTING.md, never up."""

from __future__ import annotations

import ast
from pathlib import Path

import animdetail_trt

PACKAGE = Path(animdetail_trt.__file__).parent
# What each part may import of the others; a part may always import itself.
MAY_IMPORT = {
    "errors": set(),
    "checks": set(),
    "extras": set(),
    "segs": set(),
    "smoothing": set(),
    "arrays": {"errors"},
    "geometry": {"errors", "segs"},
    "ops": {"errors", "checks", "extras", "segs", "_C"},
    "trt": {"errors", "checks", "extras", "geometry", "__version__"},
    "backends": {"errors", "geometry", "trt"},
    "sampling": {"errors", "checks", "geometry", "backends"},
    "models": {"errors", "checks", "backends", "sampling", "trt", "__version__"},
    "detailer": {"errors", "arrays", "checks", "segs", "geometry", "smoothing", "ops", "backends", "sampling"},
    "media": {"errors", "arrays", "segs", "geometry"},
    "detect": {"errors", "extras", "segs", "geometry", "smoothing", "media"},
    "bench": {
        "errors",
        "extras",
        "segs",
        "ops",
        "backends",
        "trt",
        "sampling",
        "models",
        "detailer",
        "media",
    },
    "comfyui": {
        "errors",
        "extras",
        "segs",
        "ops",
        "models",
        "backends",
        "trt",
        "sampling",
        "detailer",
        "media",
        "__version__",
    },
    "__main__": {"cli"},
    "cli": {
        "errors",
        "extras",
        "checks",
        "segs",
        "geometry",
        "models",
        "backends",
        "trt",
        "sampling",
        "detailer",
        "media",
        "detect",
        "bench",
        "ops",
        "comfyui",
        "__version__",
        "_C",
    },
}


def imports_of(path: Path) -> set[str]:
    """The parts of the package that a module imports, at its top or inside its functions."""
    parts = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module == "animdetail_trt":
            parts |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and (node.module or "").startswith("animdetail_trt."):
            parts.add(node.module.split(".")[1])
        elif isinstance(node, ast.Import):
            names = [alias.name for alias in node.names if alias.name.startswith("animdetail_trt")]
            assert not names, f"{path}: write `from animdetail_trt...` instead of import {names}"
    return parts


def test_imports_go_down() -> None:
    wrong = {}
    for path in PACKAGE.rglob("*.py"):
        part = path.relative_to(PACKAGE).parts[0].removesuffix(".py")
        if part == "__init__":
            continue
        upward = imports_of(path) - MAY_IMPORT[part] - {part}
        if upward:
            wrong[str(path.relative_to(PACKAGE))] = upward
    assert wrong == {}


def test_only_native_imports_the_extension() -> None:
    importers = {p.relative_to(PACKAGE).as_posix() for p in PACKAGE.rglob("*.py") if "_C" in imports_of(p)}
    assert importers <= {"ops/native.py", "cli/doctor.py"}


def test_only_the_host_names_comfyui() -> None:
    """All of ComfyUI that is called stands in one file, which a test can replace whole."""
    theirs = {"comfy", "comfy_extras", "nodes", "latent_preview", "folder_paths", "execution", "server"}
    importers = set()
    for path in PACKAGE.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            if isinstance(node, ast.ImportFrom):
                names = [node.module or ""]
            if any(name.partition(".")[0] in theirs for name in names):
                importers.add(path.relative_to(PACKAGE).as_posix())
    assert importers == {"comfyui/host.py"}
