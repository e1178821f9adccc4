"""Which device, precision and backend a run uses, and why not another."""

from __future__ import annotations

import torch

from animdetail_trt.errors import InputError, UnavailableError

BACKEND_NAMES = ("auto", "torch")
_DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}


def choose_device(name: str | torch.device) -> torch.device:
    """``auto`` is the first CUDA device if there is one, else the CPU."""
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except (RuntimeError, TypeError):
        raise InputError(f"unknown device {name!r}. Choose auto, cpu, cuda or cuda:N") from None
    if device.type not in ("cpu", "cuda"):
        raise InputError(f"device {name!r} is not supported. Choose auto, cpu, cuda or cuda:N")
    if device.type == "cuda" and not torch.cuda.is_available():
        raise UnavailableError(f"device {name!r} was asked for, and torch sees no CUDA device. Use 'cpu' or 'auto'")
    return device


def choose_dtype(name: str | torch.dtype, device: torch.device) -> torch.dtype:
    """``auto`` is float16 on a GPU and float32 on a CPU."""
    name = str(name).removeprefix("torch.")
    if name == "auto":
        return torch.float16 if device.type == "cuda" else torch.float32
    if name not in _DTYPES:
        raise InputError(f"unknown dtype {name!r}. Choose auto, {', '.join(_DTYPES)}")
    return _DTYPES[name]


def choose_backend(name: str) -> str:
    """The one backend of this version is torch."""
    if name not in BACKEND_NAMES:
        raise InputError(f"unknown backend {name!r}. Choose {' or '.join(BACKEND_NAMES)}")
    return "torch"
