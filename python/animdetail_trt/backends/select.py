"""Which device, precision and backend a run uses."""

from __future__ import annotations

import torch

from animdetail_trt.errors import InputError, UnavailableError

BACKEND_NAMES = ("auto", "torch", "compile", "tensorrt", "tensorrt_rtx", "onnxruntime")
DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}


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
    if name not in DTYPES:
        raise InputError(f"unknown dtype {name!r}. Choose auto, {', '.join(DTYPES)}")
    return DTYPES[name]


def choose_vae_dtype(name: str | torch.dtype, dtype: torch.dtype) -> torch.dtype:
    """``auto`` is the UNet's, and float32 where that is float16, whose range a VAE's activations leave."""
    name = str(name).removeprefix("torch.")
    if name == "auto":
        return torch.float32 if dtype == torch.float16 else dtype
    if name not in ("float32", "bfloat16"):
        raise InputError(f"the VAE cannot run in {name!r}. Choose auto, float32, or bfloat16, which is faster on a GPU")
    return DTYPES[name]


def choose_backend(name: str, device: torch.device) -> str:
    """A name of BACKEND_NAMES that this device can run."""
    if name not in BACKEND_NAMES:
        raise InputError(f"unknown backend {name!r}. Choose one of {', '.join(BACKEND_NAMES)}")
    if name in ("tensorrt", "tensorrt_rtx") and device.type != "cuda":
        raise UnavailableError(
            f"backend {name!r} runs engines on a CUDA GPU, and the device is {device}. Use backend='auto', which takes "
            "torch where there is no GPU"
        )
    if name == "onnxruntime" and device.type != "cpu":
        raise InputError(f"backend 'onnxruntime' checks graphs on the CPU; the device is {device}. Use device='cpu'")
    return name
