"""Putting the nodes into a ComfyUI, and taking them out: one small file in its custom_nodes."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from animdetail_trt.errors import InputError
from animdetail_trt.media.staging import staged_file

FILE_NAME = "animdetail_trt_nodes.py"
_HEADER = "# Written by `animdetail-trt comfyui install`; `animdetail-trt comfyui uninstall` removes it."
_TEXT = f'''{_HEADER}
"""The nodes of animdetail-trt."""

try:
    from animdetail_trt.comfyui.nodes import NODE_CLASS_MAPPINGS, NODE_DISPLAY_NAME_MAPPINGS
except ModuleNotFoundError as error:
    if (error.name or "").partition(".")[0] != "animdetail_trt":
        raise
    import sys

    raise ModuleNotFoundError(
        f"animdetail-trt is not installed in ComfyUI's Python. Run: {{sys.executable}} -m pip install FOLDER, with the "
        "folder of its sources, or remove this file with: animdetail-trt comfyui uninstall"
    ) from None

__all__ = ["NODE_CLASS_MAPPINGS", "NODE_DISPLAY_NAME_MAPPINGS"]
'''
# Where ComfyUI's own installers put its Python, from its folder.
_PYTHONS = (
    "venv/bin/python", ".venv/bin/python", "venv/Scripts/python.exe", ".venv/Scripts/python.exe",
    "../python_embeded/python.exe", "../venv/bin/python", "../.venv/bin/python",
)  # fmt: skip


def install(comfyui: Path) -> tuple[Path, bool]:
    """Write the file -> where it lies, and whether it is new or has changed.

    Raises InputError where the folder is no ComfyUI, or holds a file of that name that this program did not write;
    MediaError where it cannot be written.
    """
    path, text = _place(comfyui), _TEXT.encode()
    if os.path.lexists(path):
        _check_ours(path)
        with _refusing("read", path):
            if path.read_bytes() == text:
                return path, False
    with staged_file(path) as scratch:
        scratch.write_bytes(text)
    return path, True


def uninstall(comfyui: Path) -> list[Path]:
    """Remove the file and what Python compiled of it -> what was removed; nothing where nothing was installed.

    Where the file lies, it does not matter what is left of ComfyUI.
    """
    path = comfyui / "custom_nodes" / FILE_NAME
    if os.path.lexists(path):
        _check_ours(path)
    else:
        _place(comfyui)
    cache = path.parent / "__pycache__"
    with _refusing("read", cache):
        compiled = sorted(cache.glob(f"{path.stem}.*.pyc"))
    removed = [file for file in (path, *compiled) if os.path.lexists(file)]
    for file in removed:
        with _refusing("remove", file):
            file.unlink()
    with _refusing("remove", cache):
        if compiled and not any(cache.iterdir()):
            cache.rmdir()
    return removed


def python_of(comfyui: Path) -> Path | None:
    """The Python that this ComfyUI runs with, where its installer left it in a usual place."""
    places = (comfyui / name for name in _PYTHONS)
    return next((place for place in places if os.path.exists(place)), None)  # no OSError, as Path's has


def why_not_importable(python: Path) -> str | None:
    """What keeps ``python`` from importing the nodes' package; None where nothing does."""
    try:
        done = subprocess.run(
            [python, "-c", "import animdetail_trt.ops, animdetail_trt.comfyui"],
            capture_output=True, text=True, timeout=120, cwd=Path(sys.executable).parent, check=False,
        )  # fmt: skip
    except (OSError, subprocess.SubprocessError) as error:
        return f"it does not run: {error}"
    lines = done.stderr.strip().splitlines()
    return None if done.returncode == 0 else (lines[-1] if lines else f"it ended with {done.returncode}")


def _place(comfyui: Path) -> Path:
    for name in ("main.py", "comfy/samplers.py", "custom_nodes"):
        with _refusing("read", comfyui):
            there = (comfyui / name).exists()
        if not there:
            hint = ". Give the folder that holds custom_nodes" if comfyui.name == "custom_nodes" else ""
            raise InputError(f"{comfyui} is not a ComfyUI: {name} is not in it{hint}")
    return comfyui / "custom_nodes" / FILE_NAME


def _check_ours(path: Path) -> None:
    with _refusing("read", path):
        if path.is_symlink() and not path.exists():
            raise InputError(f"{path} is a link to {path.readlink()}, which is not there. Remove the link first")
        first = path.read_text(encoding="utf-8", errors="replace").partition("\n")[0].rstrip("\r")
    if first != _HEADER:
        raise InputError(f"{path} was not written by this program; it is left as it is. Move it out of the way")


@contextmanager
def _refusing(do: str, path: Path) -> Iterator[None]:
    """Turn the system's refusal into an InputError."""
    try:
        yield
    except OSError as error:
        raise InputError(f"cannot {do} {path}: {error.strerror}. Run as the user that owns ComfyUI") from None
