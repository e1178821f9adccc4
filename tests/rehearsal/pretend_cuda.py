"""A CUDA device made of the host's memory: a pytest plugin under which GPU tests run where there is no GPU.

Tensors say that they are on ``cuda:0``, torch refuses to mix them with the host's, and the host's waiting for the
device is told as ``torch.cuda.set_sync_debug_mode("warn")`` tells it. What is computed is computed on the CPU, at once,
and the kernels' work is done by their CPU twins. So it rehearses the Python of a GPU run: devices, streams, events,
copies, arguments. It says nothing of kernels, of the order of what runs beside each other, or of speed.

REHEARSAL_GUARD: guard.cpp, compiled.
"""

from __future__ import annotations

import os
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from types import SimpleNamespace
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode

CUDA, CPU = torch.device("cuda", 0), torch.device("cpu")

# Ops that take tensors of both.
MIXING = {"copy_", "_to_copy", "to", "index", "index_put_", "index_put", "_index_put_impl_"}
# Ops whose result the host needs before it can go on.
WAITING = {"_local_scalar_dense", "item", "equal", "is_nonzero", "nonzero", "masked_select", "_unique2"}
KERNELS = {"crop_resize": 2, "crop_resize_to_vae": 2, "resize_from_vae": 2, "feather_mask": 2, "alpha_paste": 3}

sync_debug_mode = "default"


def waits() -> None:
    """The host waits for the device here."""
    if sync_debug_mode != "default":
        warnings.warn("called a synchronizing CUDA operation", UserWarning, stacklevel=3)


class CudaTensor(torch.Tensor):
    """on_host: where its values really are."""

    on_host: torch.Tensor
    __torch_function__ = torch._C._disabled_torch_function_impl

    @staticmethod
    def __new__(cls, on_host: torch.Tensor) -> CudaTensor:
        strides, offset = on_host.stride(), on_host.storage_offset()
        made = torch.Tensor._make_wrapper_subclass(
            cls, on_host.shape, strides=strides, storage_offset=offset, dtype=on_host.dtype, device=CUDA
        )
        made.on_host = on_host
        return made

    @classmethod
    def __torch_dispatch__(cls, op: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return run(op, args, kwargs or {})

    def __repr__(self, **_: Any) -> str:
        return f"CudaTensor({tuple(self.shape)}, {self.dtype})"

    def record_stream(self, stream: Any) -> None:
        assert isinstance(stream, Stream)


class AnyTensor(TorchDispatchMode):
    """Sees the ops that no CudaTensor goes into: some make one."""

    def __torch_dispatch__(self, op: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return run(op, args, kwargs or {})


def run(op: Any, args: Any, kwargs: dict[str, Any]) -> Any:
    name = op._schema.name.split("::")[1]
    tensors: list[torch.Tensor] = []

    def host(value: Any) -> Any:
        if isinstance(value, torch.Tensor):
            tensors.append(value)
        return value.on_host if isinstance(value, CudaTensor) else CPU if isinstance(value, torch.device) else value

    on_host, options = each(args, host), {key: each(value, host) for key, value in kwargs.items()}
    on_cuda = {id(tensor.on_host): tensor for tensor in tensors if isinstance(tensor, CudaTensor)}
    strangers = [tensor for tensor in tensors if not isinstance(tensor, CudaTensor) and tensor.ndim > 0]
    if on_cuda and strangers and name not in MIXING:
        raise RuntimeError(f"Expected all tensors to be on the same device: {op} of {tensors}")
    asked = [value for value in (*args, kwargs.get("device")) if isinstance(value, torch.device)]
    makes_cuda = asked[0].type == "cuda" if asked else bool(on_cuda)
    if name == "copy_":
        makes_cuda = isinstance(args[0], CudaTensor)
    if (name in WAITING and on_cuda) or _waits_for_copy(name, args, kwargs, makes_cuda) or _uploads_index(name, args):
        waits()
    options |= {name: False for name in ("pin_memory", "non_blocking") if options.get(name)}
    result = op(*on_host, **options)

    def device(value: Any) -> Any:
        if not isinstance(value, torch.Tensor):
            return value
        return on_cuda[id(value)] if id(value) in on_cuda else CudaTensor(value)  # changed in place, or new

    return each(result, device) if makes_cuda else result


def each(values: Any, call: Callable[[Any], Any]) -> Any:
    """``call`` of everything in tuples and lists, of any depth."""
    if type(values) in (tuple, list):
        return type(values)([each(value, call) for value in values])
    return call(values)


def _waits_for_copy(name: str, args: Any, kwargs: dict[str, Any], to_cuda: bool) -> bool:
    if name not in ("copy_", "_to_copy", "to"):
        return False
    source = args[1] if name == "copy_" else args[0]
    non_blocking = kwargs.get("non_blocking") or (name == "copy_" and len(args) > 2 and args[2])
    return to_cuda != isinstance(source, CudaTensor) and not non_blocking


def _uploads_index(name: str, args: Any) -> bool:
    """A mask as an index is counted first, one of the host is uploaded."""
    if "index" not in name or not isinstance(args[0], CudaTensor) or not isinstance(args[1], (list, tuple)):
        return False
    indices = [index for index in args[1] if isinstance(index, torch.Tensor)]
    return any(not isinstance(index, CudaTensor) or index.dtype == torch.bool for index in indices)


def indexing(method: Callable[..., Any]) -> Callable[..., Any]:
    """torch makes tensors of lists in an index behind the dispatcher's back."""

    def call(self: torch.Tensor, index: Any, *value: Any) -> Any:
        items = index if isinstance(index, tuple) else (index,)
        items = tuple(torch.tensor(list(item)) if isinstance(item, (list, range)) else item for item in items)
        return method(self, items if isinstance(index, tuple) else items[0], *value)

    return call


class Event:
    def __init__(self, enable_timing: bool = False) -> None:
        self.enable_timing, self.recorded = enable_timing, 0.0

    def record(self, stream: Any = None) -> None:
        self.recorded = time.perf_counter()

    def synchronize(self) -> None:
        assert self.recorded

    def elapsed_time(self, end: Event) -> float:
        for event in (self, end):
            assert event.enable_timing
            assert event.recorded
        return 1e3 * (end.recorded - self.recorded)


class Generator(torch.Generator):
    """Of any device."""

    def __new__(cls, device: Any = None) -> Generator:
        return super().__new__(cls, CPU)


class Stream:
    cuda_stream = 0

    def __init__(self, device: Any = None) -> None:
        self.device = CUDA

    def wait_stream(self, other: Any) -> None:
        assert isinstance(other, Stream)

    def synchronize(self) -> None:
        """All is done."""


_streams = [Stream()]


@contextmanager
def stream(chosen: Stream) -> Iterator[None]:
    _streams.append(chosen)
    try:
        yield
    finally:
        _streams.pop()


def _set_sync_debug_mode(mode: str) -> None:
    global sync_debug_mode
    sync_debug_mode = mode


CARD = SimpleNamespace(
    name="pretended", major=9, minor=0, multi_processor_count=132, total_memory=8 << 30, L2_cache_size=1 << 20
)
PRETENDED: dict[str, Any] = {
    "_lazy_init": lambda: None,
    "is_available": lambda: True,
    "is_initialized": lambda: True,
    "device_count": lambda: 1,
    "current_device": lambda: 0,
    "device": nullcontext,
    "get_device_properties": lambda device=None: CARD,
    "get_device_capability": lambda device=None: (CARD.major, CARD.minor),
    "Event": Event,
    "Stream": Stream,
    "stream": stream,
    "current_stream": lambda device=None: _streams[-1],
    "synchronize": lambda device=None: None,
    "empty_cache": lambda: None,
    "mem_get_info": lambda device=None: (6 << 30, 8 << 30),
    "memory_allocated": lambda device=None: 1 << 20,
    "memory_reserved": lambda device=None: 1 << 20,
    "max_memory_allocated": lambda device=None: 2 << 20,
    "reset_peak_memory_stats": lambda device=None: None,
    "manual_seed": lambda seed: None,
    "manual_seed_all": lambda seed: None,
    "set_sync_debug_mode": _set_sync_debug_mode,
}


def twin(kernel: Callable[..., None], tensors: int) -> Callable[..., None]:
    """The CPU's kernel, for arguments of which the first so many are tensors that must be on one device."""

    def call(*args: Any) -> None:
        if len({arg.device for arg in args[:tensors]}) > 1:
            raise ValueError(f"move them to one device: {args[:tensors]}")
        kernel(*(arg.on_host if isinstance(arg, CudaTensor) else arg for arg in args))

    return call


def pretend_kernels() -> None:
    from animdetail_trt import _C

    def paste_from_vae(
        canvas: Any, decoded: Any, mask: Any, x: int, y: int, width: int, height: int, order: str, stream: int
    ) -> None:
        patch = torch.empty(len(decoded), height, width, 3, device=CUDA)
        _C.resize_from_vae(patch, decoded, order, stream)
        _C.alpha_paste(canvas, patch, mask, x, y, stream)

    for name, tensors in KERNELS.items():
        setattr(_C, name, twin(getattr(_C, name), tensors))
    _C.paste_from_vae = paste_from_vae
    _C.has_cuda = True


def install() -> None:
    torch.ops.load_library(os.environ["REHEARSAL_GUARD"])
    for name, replacement in PRETENDED.items():
        setattr(torch.cuda, name, replacement)
    torch.Generator = Generator
    # Tensors of inference mode are of no use to a subclass; modules get new parameters, as those cannot change device.
    torch.inference_mode = lambda mode=True: torch.no_grad()
    torch.__future__.set_overwrite_module_params_on_conversion(True)
    torch.Tensor.__getitem__ = indexing(torch.Tensor.__getitem__)
    torch.Tensor.__setitem__ = indexing(torch.Tensor.__setitem__)
    AnyTensor().__enter__()
    pretend_kernels()


install()
