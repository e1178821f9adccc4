"""The ops in C++, for torch tensors and NumPy arrays of any strides; each is defined by its namesake in `reference`.

Masks are float32. Pictures are float32, or of three channels and float16, bfloat16 or, where they are in 0..1, uint8,
whose 255 stands for 1: an op gives what it would give for their values in float32, rounded to the nearest. Inputs may
be read-only. A result is float32, of the kind of the first input, torch or NumPy. The ``_into`` forms write to memory
of the caller's, of any of these types, and return it. What is written must have no memory in common with what is read.
Work is shared among :func:`num_threads` threads, without the GIL. Tensors on a CUDA device are worked on there, in
torch's current stream of that device, and nothing waits for it; the bits are the same. Under a CUDA graph's capture the
work is recorded.

Raises :class:`~animdetail_trt.errors.InputError` for an argument of a wrong type, shape, dtype, device or value, and
:class:`~animdetail_trt.errors.DeviceError` for what CUDA refuses, and where there is no memory for a result. Values are
not looked at: that would take another pass.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Literal, TypeAlias, TypeVar, get_args

import numpy as np
import torch
from torch.utils.dlpack import from_dlpack

from animdetail_trt.checks import is_whole
from animdetail_trt.errors import DeviceError, InputError, UnavailableError, is_out_of_memory
from animdetail_trt.extras import BUILD_COMMAND
from animdetail_trt.ops import reference
from animdetail_trt.segs import CropRegion

try:
    from animdetail_trt import _C
except ImportError as error:
    raise UnavailableError(f"the native extension cannot be imported: {error}. Run: {BUILD_COMMAND}") from error

Array: TypeAlias = "torch.Tensor | np.ndarray[Any, np.dtype[Any]]"
ArrayT = TypeVar("ArrayT", torch.Tensor, "np.ndarray[Any, np.dtype[Any]]")
PassOrder: TypeAlias = Literal["pillow13", "horizontal_first"]

_INT64_LIMIT = 2**63


def crop_resize(
    frames: ArrayT, crop_region: CropRegion, size: tuple[int, int], *, pass_order: PassOrder = "pillow13"
) -> ArrayT:
    """Resample ``frames[:, y1:y2, x1:x2]`` to ``size`` with Pillow's 8-bit LANCZOS, to the bit.

    Args:
        frames: (f, h, w, c) in 0..1, c from 1 to 4.
        crop_region: half open; x2 and y2 are clipped to the frame, x1 and y1 must not be negative.
        size: (width, height) of the result.
        pass_order: which axis first: as Pillow 13.0 decides it, or always horizontal, as Pillow up to 12 did.

    Returns:
        (f, height, width, c), multiples of 1/255.
    """
    f, _, _, c = _shape("crop_resize", "frames", frames, "(f, h, w, c)")
    width, height = _size("crop_resize", size)
    return crop_resize_into(
        _empty("crop_resize", frames, (f, height, width, c)), frames, crop_region, pass_order=pass_order
    )


def crop_resize_into(
    out: ArrayT, frames: Array, crop_region: CropRegion, *, pass_order: PassOrder = "pillow13"
) -> ArrayT:
    """:func:`crop_resize` to the size of ``out`` (f, height, width, c)."""
    op = "crop_resize"
    region, order = _region(op, crop_region), _pass_order(op, pass_order)
    with _input_errors():
        _C.crop_resize(_lend(op, "out", out), _lend(op, "frames", frames), region, order, _stream(out))
    return out


def crop_resize_to_vae(
    frames: ArrayT, crop_region: CropRegion, size: tuple[int, int], *, pass_order: PassOrder = "pillow13"
) -> ArrayT:
    """Resample a crop straight to a VAE's input: ``2 x - 1`` of :func:`crop_resize`, its centre cut to multiples of 8.

    Args:
        frames: (f, h, w, 3) in 0..1.
        crop_region, pass_order: as in :func:`crop_resize`.
        size: (width, height) before the cut, each at least 8.

    Returns:
        (f, 3, height // 8 * 8, width // 8 * 8) in -1..1; the cut starts at (side % 8) // 2.
    """
    f, _, _, _ = _shape("crop_resize_to_vae", "frames", frames, "(f, h, w, 3)")
    width, height = _size("crop_resize_to_vae", size)
    out = _empty("crop_resize_to_vae", frames, (f, 3, height // 8 * 8, width // 8 * 8))
    return crop_resize_to_vae_into(out, frames, crop_region, size, pass_order=pass_order)


def crop_resize_to_vae_into(
    out: ArrayT, frames: Array, crop_region: CropRegion, size: tuple[int, int], *, pass_order: PassOrder = "pillow13"
) -> ArrayT:
    """:func:`crop_resize_to_vae` into ``out``."""
    op = "crop_resize_to_vae"
    width, height = _size(op, size)
    region, order = _region(op, crop_region), _pass_order(op, pass_order)
    with _input_errors():
        _C.crop_resize_to_vae(
            _lend(op, "out", out), _lend(op, "frames", frames), region, width, height, order, _stream(out)
        )
    return out


def resize_from_vae(decoded: ArrayT, size: tuple[int, int], *, pass_order: PassOrder = "pillow13") -> ArrayT:
    """Resample what a VAE decoded: ``clip((x + 1) / 2, 0, 1)``, then Pillow's 8-bit LANCZOS to ``size``.

    Args:
        decoded: (f, 3, h, w), about -1..1.
        size: (width, height) of the result.
        pass_order: as in :func:`crop_resize`.

    Returns:
        (f, height, width, 3), multiples of 1/255.
    """
    f, _, _, _ = _shape("resize_from_vae", "decoded", decoded, "(f, 3, h, w)")
    width, height = _size("resize_from_vae", size)
    return resize_from_vae_into(
        _empty("resize_from_vae", decoded, (f, height, width, 3)), decoded, pass_order=pass_order
    )


def resize_from_vae_into(out: ArrayT, decoded: Array, *, pass_order: PassOrder = "pillow13") -> ArrayT:
    """:func:`resize_from_vae` to the size of ``out`` (f, height, width, 3)."""
    op = "resize_from_vae"
    order = _pass_order(op, pass_order)
    with _input_errors():
        _C.resize_from_vae(_lend(op, "out", out), _lend(op, "decoded", decoded), order, _stream(out))
    return out


def feather_mask(mask: ArrayT, feather_px: int, alpha: float = 255, *, one_by_one: bool = False) -> ArrayT:
    """Blur ``mask`` (Gaussian, sigma 10, size ``2 feather_px + 1``) and multiply it by ``alpha / 255``.

    Args:
        mask: (h, w) or (n, h, w) in 0..1.
        feather_px: radius; 0 or less blurs nothing. A kernel that does not fit the mask becomes half its shorter side.
        alpha: 0 to 255.
        one_by_one: give the bits that each of the masks would get alone; a 3x3 kernel rounds them otherwise.

    Returns:
        The shape of ``mask``; the bits of torch's ``conv2d`` on this machine's CPU, which the reference uses. For a
        single small mask under a 3x3 kernel those depend on the processor, so there torch itself computes it, on the
        host.
    """
    shape = tuple(_known("feather_mask", "mask", mask).shape)
    return feather_mask_into(_empty("feather_mask", mask, shape), mask, feather_px, alpha, one_by_one=one_by_one)


def feather_mask_into(
    out: ArrayT, mask: Array, feather_px: int, alpha: float = 255, *, one_by_one: bool = False
) -> ArrayT:
    """:func:`feather_mask` into ``out``, of the shape of ``mask``."""
    op = "feather_mask"
    (feather_px,) = _integers(op, "feather_px", (feather_px,), 1)
    shape = tuple(_known(op, "mask", mask).shape)
    radius = reference.feather_radius(min(shape[-2:], default=0), feather_px)
    weights = reference.feather_weights(radius)
    with _input_errors():
        _C.feather_mask(_lend(op, "out", out), _lend(op, "mask", mask), weights, float(alpha), _stream(out))
    if reference.blas_blurs(shape[-2:] if one_by_one else shape, radius):
        _feather_in_torch(out, mask, feather_px, alpha)
    return out


@torch.inference_mode()
def _feather_in_torch(out: Any, mask: Any, feather_px: int, alpha: float) -> None:
    """The definition, each mask by itself, in place of what is in ``out``."""
    masks = torch.from_numpy(np.array(mask)) if isinstance(mask, np.ndarray) else _tensor(mask).cpu()
    alone = [reference.feather_mask(one, feather_px, alpha) for one in masks.reshape(-1, *masks.shape[-2:])]
    blurred = torch.stack(alone).view(masks.shape) if alone else masks
    if isinstance(out, np.ndarray):
        out[...] = blurred.numpy()
    else:
        _tensor(out).copy_(blurred)


def _tensor(array: Any) -> torch.Tensor:
    """A tensor over the memory of anything but a NumPy array, whose strides can be negative."""
    return array.detach() if isinstance(array, torch.Tensor) else from_dlpack(array)


def alpha_paste(canvas: ArrayT, patch: Array, mask: Array, left_top: tuple[int, int]) -> ArrayT:
    """Paste ``patch`` at ``left_top``, in place: ``(1 - mask) canvas + mask patch`` in float32, not rounded.

    Args:
        canvas: (f, h, w, c), changed where the patch lies on it and nowhere else.
        patch: (f, h', w', c); what lies outside the canvas, at any side, is left out.
        mask: (h', w'), (1, h', w') or (f, h', w').
        left_top: (x, y) of the patch's corner, may be negative.

    Returns:
        ``canvas``.
    """
    op = "alpha_paste"
    x, y = _integers(op, "left_top", left_top, 2)
    with _input_errors():
        _C.alpha_paste(
            _lend(op, "canvas", canvas), _lend(op, "patch", patch), _lend(op, "mask", mask), x, y, _stream(canvas)
        )
    return canvas


def paste_from_vae(
    canvas: ArrayT,
    decoded: Array,
    mask: Array,
    left_top: tuple[int, int],
    size: tuple[int, int],
    *,
    pass_order: PassOrder = "pillow13",
) -> ArrayT:
    """:func:`alpha_paste` of :func:`resize_from_vae`, in place; on a CUDA device in one pass that stores no patch.

    Args:
        canvas: (f, h, w, 3), changed where the patch lies on it and nowhere else.
        decoded: (f, 3, h'', w''), about -1..1.
        mask: (h', w'), (1, h', w') or (f, h', w'), where (w', h') is ``size``.
        left_top: (x, y) of the patch's corner, may be negative.
        size: (width, height) of the patch.
        pass_order: as in :func:`crop_resize`.

    Returns:
        ``canvas``.
    """
    op = "paste_from_vae"
    x, y = _integers(op, "left_top", left_top, 2)
    width, height = _size(op, size)
    order = _pass_order(op, pass_order)
    if not (isinstance(canvas, torch.Tensor) and canvas.is_cuda):
        f = len(_known(op, "decoded", decoded))
        patch = resize_from_vae_into(_empty(op, canvas, (f, height, width, 3)), decoded, pass_order=pass_order)
        return alpha_paste(canvas, patch, mask, left_top)
    lent = _lend(op, "canvas", canvas), _lend(op, "decoded", decoded), _lend(op, "mask", mask)
    with _input_errors():
        _C.paste_from_vae(*lent, x, y, width, height, order, _stream(canvas))
    return canvas


def working_copy(frames: ArrayT) -> ArrayT:
    """``frames``, any shape, copied into memory of their own, contiguous: what a loop over segments pastes into."""
    copy = _empty("working_copy", frames, tuple(_known("working_copy", "frames", frames).shape))
    copy[...] = frames
    return copy


def merge_masks(masks: ArrayT, *, first_factor: int = 255) -> ArrayT:
    """Merge masks (n, h, w) to one (h, w) of 0 and 1, as the reference does where their count is not the frames'.

    Args:
        masks: 0..1, n at least 1.
        first_factor: what the first mask is multiplied by on its way to 8 bits. 255 is the rule of SEGSPaste; the
            detailer's loses the factor, so 1 there.
    """
    _shape("merge_masks", "masks", masks, "(n, h, w)")
    if len(masks) == 0:
        raise InputError("merge_masks: masks is empty. Give at least one mask")
    if isinstance(masks, np.ndarray):
        return reference.merge_masks(torch.from_numpy(np.array(masks)), first_factor).numpy()
    return reference.merge_masks(masks, first_factor)


def has_cuda() -> bool:
    """Whether the ops were built to work on CUDA devices."""
    return _C.has_cuda


def set_num_threads(count: int) -> None:
    """Let the ops use ``count`` threads; 0 means one for each processor that this process may run on (the default)."""
    if not is_whole(count) or not 0 <= count <= 1024:
        raise InputError(f"set_num_threads: count is {count!r}. It must be 0 to 1024, a whole number")
    _C.set_num_threads(int(count))


def num_threads() -> int:
    """Threads that the ops use."""
    return _C.num_threads()


@contextmanager
def _input_errors() -> Iterator[None]:
    """What C++ refuses is an InputError here, and what CUDA refuses a DeviceError."""
    try:
        yield
    except (ValueError, BufferError) as error:
        raise InputError(str(error)) from None
    except RuntimeError as error:
        raise DeviceError(str(error)) from None


def _stream(array: Array) -> int:
    """torch's current stream of the device that ``array`` is on, by handle."""
    if isinstance(array, torch.Tensor) and array.is_cuda:
        return int(torch.cuda.current_stream(array.device).cuda_stream)
    return 0


class _Elsewhere:
    """A tensor of another CUDA device than the current one, which torch exports only while its device is current."""

    def __init__(self, tensor: torch.Tensor) -> None:
        self._tensor = tensor

    def __dlpack_device__(self) -> tuple[int, int]:
        return self._tensor.__dlpack_device__()

    def __dlpack__(self, **asked: Any) -> Any:
        with torch.cuda.device(self._tensor.device):
            return self._tensor.__dlpack__(**asked)


def _lend(op: str, name: str, array: Any) -> Any:
    """What C++ can borrow from ``array``; gradients are not recorded through these ops."""
    array = _known(op, name, array)
    if not isinstance(array, torch.Tensor):
        return array
    array = array.detach()
    if array.is_cuda and array.device.index != torch.cuda.current_device():
        return _Elsewhere(array)
    return array


def _known(op: str, name: str, array: Any) -> Any:
    """``array`` itself, of a kind that can be borrowed."""
    if not isinstance(array, torch.Tensor) and not hasattr(array, "__dlpack__"):
        raise InputError(f"{op}: {name} must be a torch tensor or a NumPy array, got {type(array).__name__}")
    return array


def _empty(op: str, like: ArrayT, shape: tuple[int, ...]) -> ArrayT:
    size = 4 * math.prod(shape)
    try:
        if size >= _INT64_LIMIT:  # of which NumPy and torch say other things
            raise MemoryError
        if isinstance(like, np.ndarray):
            return np.empty(shape, np.float32)
        return torch.empty(shape, dtype=torch.float32, device=like.device)
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        raise DeviceError(
            f"{op}: can't allocate memory for a result of {shape}, {size / 2**30:.3g} GiB. "
            "Ask for a smaller size, or for fewer frames at a time"
        ) from None


def _shape(op: str, name: str, array: Any, axes: str) -> tuple[int, ...]:
    shape = tuple(_known(op, name, array).shape)
    if len(shape) != axes.count(",") + 1:
        raise InputError(f"{op}: {name} must be {axes}, got shape {shape}")
    return shape


def _size(op: str, size: Sequence[int]) -> tuple[int, int]:
    width, height = _integers(op, "size", size, 2)
    if width < 1 or height < 1:
        raise InputError(f"{op}: size is ({width}, {height}). It is (width, height), each at least 1")
    return width, height


def _region(op: str, crop_region: Sequence[int]) -> tuple[int, int, int, int]:
    x1, y1, x2, y2 = _integers(op, "crop_region", crop_region, 4)
    return x1, y1, x2, y2


def _integers(op: str, name: str, values: Sequence[int], count: int) -> tuple[int, ...]:
    try:
        integers = tuple(operator.index(value) for value in values)
    except TypeError:
        integers = ()
    if len(integers) != count or not all(-_INT64_LIMIT <= integer < _INT64_LIMIT for integer in integers):
        raise InputError(f"{op}: {name} must be {count} integers, got {values!r}")
    return integers


def _pass_order(op: str, pass_order: str) -> str:
    if pass_order not in get_args(PassOrder):
        raise InputError(f"{op}: pass_order is {pass_order!r}. It must be one of {', '.join(get_args(PassOrder))}")
    return pass_order
