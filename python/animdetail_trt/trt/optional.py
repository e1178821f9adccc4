"""Packages that are not needed until an engine is built or run."""

from __future__ import annotations

import importlib
from typing import Any

from animdetail_trt.errors import UnavailableError
from animdetail_trt.extras import install_command


def optional(module: str, purpose: str) -> Any:
    """Import a package; raises UnavailableError, which says how to install it, where that fails."""
    try:
        return importlib.import_module(module)
    except (ImportError, OSError) as error:  # OSError: a library of it that does not load
        extra = "tensorrt" if module == "tensorrt" else "rtx"  # each brings onnx and the rest as well
        raise UnavailableError(
            f"cannot {purpose}: {module} cannot be imported ({error}). Run: {install_command(extra)}"
        ) from error
