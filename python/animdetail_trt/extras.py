"""How to install what an extra of this package brings, and the native extension."""

from __future__ import annotations

import re
from importlib.metadata import PackageNotFoundError, requires

BUILD_COMMAND = "pip install . (in the source folder)"
"""What makes the native extension. A wheel always has it: without it this is a source tree that was never built."""


def install_command(extra: str, options: str = "") -> str:
    """The command, by the names of the packages: this one may have come from a folder that pip does not know."""
    try:
        listed = requires("animdetail-trt") or []
    except PackageNotFoundError:  # a source tree on sys.path
        return f"pip install {options}'.[{extra}]' (in the source folder)"
    wanted = [line.partition(";")[0].strip() for line in listed if re.search(rf"extra == ['\"]{extra}['\"]", line)]
    return f"pip install {options}" + " ".join(f"'{package}'" for package in wanted)
