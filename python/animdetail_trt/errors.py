"""The exception tree. Every message names the value that is wrong and what mends it."""

from __future__ import annotations

USE_TORCH = "Use backend='torch' (--backend torch)"
"""The remedy for what goes wrong in an engine or a graph."""


class AnimDetailError(Exception):
    """Base of everything this package raises on purpose."""


class InputError(AnimDetailError, ValueError):
    """An argument has a wrong shape, type or value."""


class DeviceError(AnimDetailError, RuntimeError):
    """No memory for a result; or CUDA refused a call: no memory, no kernels for the card, or an earlier failure."""


class LostDeviceError(DeviceError):
    """The GPU answers nothing any more in this process."""


class CheckpointError(AnimDetailError):
    """A model file is missing, damaged, or not what it was given as."""


class SamplingError(AnimDetailError):
    """Sampling went wrong: what came out is no picture."""


class MediaError(AnimDetailError):
    """A video, an image folder or a SEGS file cannot be read or written."""


class UnavailableError(AnimDetailError):
    """Something optional is needed here and not installed; the message holds the command that installs it."""


class EngineError(AnimDetailError):
    """A graph or an engine cannot be made, read or run."""


class FullDeviceError(EngineError):
    """An engine found too little of the GPU's memory free; a later call may find more.

    A ladder (``backends.ladder``) gives the engine up for it as for every EngineError, on purpose.
    """


class UncoveredError(EngineError):
    """An engine was not built for what it is asked; another way of running the model can take over."""


def is_out_of_memory(error: BaseException) -> bool:
    """Of Python, of torch on a GPU, or of torch on a CPU, where it raises a bare RuntimeError."""
    if isinstance(error, LostDeviceError):  # whatever words it has of what came before
        return False
    known = isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError"
    return known or any(words in str(error) for words in ("can't allocate memory", "CUDA error: out of memory"))
