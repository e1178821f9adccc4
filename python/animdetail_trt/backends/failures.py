"""What to make of an exception that nobody foresaw, where another way of running the model is left."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch

from animdetail_trt.errors import (
    USE_TORCH,
    AnimDetailError,
    EngineError,
    LostDeviceError,
    UncoveredError,
    is_out_of_memory,
)

logger = logging.getLogger(__name__)

_LINE_CHARACTERS = 300


@contextmanager
def engine_failures(
    device: torch.device,
    what: str = "the engine",
    passes: Callable[[Exception], bool] = lambda error: False,
    remedy: str = USE_TORCH,
) -> Iterator[None]:
    """Opening and running ``what``: an unexpected exception becomes an EngineError with its type and first line.

    remedy: what a user can do until it is mended

    This package's own errors, running out of memory, what ``passes`` says, and what is no Exception (Ctrl-C) pass.

    Raises LostDeviceError where CUDA answers nothing any more after a failure: no way of running could then.
    """
    try:
        yield
    except UncoveredError:
        raise
    except EngineError as error:
        _require_life(device, what, error, remedy)
        raise
    except Exception as error:
        if isinstance(error, AnimDetailError) or is_out_of_memory(error) or passes(error):
            raise
        logger.debug("%s failed", what, exc_info=True)
        _require_life(device, what, error, remedy)
        raise EngineError(
            f"{what} failed unexpectedly, {_told(error)}. "
            f"{remedy}, and report this with the output of animdetail-trt doctor"
        ) from error


def _require_life(device: torch.device, what: str, failure: Exception, remedy: str) -> None:
    """An error that stays with a CUDA context, as that of a wrong address does, is the answer to every later call."""
    if not answers(device):
        raise LostDeviceError(
            f"{what} failed, and {device} answers nothing any more in this process: {_told(failure)}. "
            f"Start it again. {remedy}, and report this with the output of animdetail-trt doctor"
        ) from failure


def answers(device: torch.device) -> bool:
    """Whether CUDA, where it was used, still does what it is asked. Waits for the device."""
    if device.type != "cuda" or not torch.cuda.is_initialized():
        return True
    try:
        torch.cuda.synchronize(device)
    except Exception:
        return False
    return True


def _told(error: Exception) -> str:
    """Type and first line; an error of this package says enough by its words."""
    line = next(iter(str(error).splitlines()), "")[:_LINE_CHARACTERS].rstrip(". ")
    return line if isinstance(error, AnimDetailError) else f"{type(error).__name__}: {line}"
