"""Borrowed views in, the caller's memory out: strides, kinds of tensor, threads, the GIL."""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from animdetail_trt import ops
from animdetail_trt.errors import InputError

Floats = NDArray[np.float32]


def rand(*shape: int) -> Floats:
    return np.random.default_rng(sum(shape)).random(shape, np.float32)


def transposed(array: Floats) -> Floats:
    return np.asfortranarray(array)


def sliced(array: Floats) -> Floats:
    """Every third element of something larger, off its start, along each axis."""
    holder = np.full([3 * side + 5 for side in array.shape], np.nan, np.float32)
    view = holder[tuple(slice(2, 2 + 3 * side, 3) for side in array.shape)]
    view[...] = array
    return view


def reversed_(array: Floats) -> Floats:
    """Negative strides."""
    every = tuple(slice(None, None, -1) for _ in array.shape)
    return np.ascontiguousarray(array[every])[every]


def channels_first(array: Floats) -> Floats:
    """The last axis planar, as the (f, h, w, c) view of an (f, c, h, w) tensor."""
    return np.moveaxis(np.ascontiguousarray(np.moveaxis(array, -1, 1)), 1, -1)


def read_only(array: Floats) -> Floats:
    array = array.copy()
    array.flags.writeable = False
    return array


LAYOUTS = [transposed, sliced, reversed_, channels_first]
Layout = Callable[[Floats], Floats]

# name, inputs, shape of the output, call
OPS: list[tuple[str, list[Floats], tuple[int, ...], Callable[..., Any]]] = [
    (
        "crop_resize",
        [rand(2, 40, 50, 3)],
        (2, 70, 21, 3),
        lambda out, frames: ops.crop_resize_into(out, frames, (3, 5, 47, 39)),
    ),
    (
        "crop_resize_gray",
        [rand(2, 40, 50, 1)],
        (2, 30, 80, 1),
        lambda out, frames: ops.crop_resize_into(out, frames, (0, 0, 50, 40)),
    ),
    (
        "crop_resize_to_vae",
        [rand(2, 40, 50, 3)],
        (2, 3, 72, 64),
        lambda out, frames: ops.crop_resize_to_vae_into(out, frames, (3, 5, 47, 39), (69, 77)),
    ),
    (
        "crop_resize_to_vae_unscaled",
        [rand(2, 40, 50, 3)],
        (2, 3, 32, 48),
        lambda out, frames: ops.crop_resize_to_vae_into(out, frames, (0, 0, 50, 39), (50, 39)),
    ),
    (
        "resize_from_vae",
        [rand(2, 3, 72, 64) * 3 - 1.5],
        (2, 34, 44, 3),
        lambda out, decoded: ops.resize_from_vae_into(out, decoded),
    ),
    ("feather_mask", [rand(3, 40, 33)], (3, 40, 33), lambda out, mask: ops.feather_mask_into(out, mask, 4, 200)),
    (
        "alpha_paste",
        [rand(2, 30, 30, 3), rand(2, 30, 30)],
        (2, 40, 50, 3),
        lambda out, patch, mask: ops.alpha_paste(fill(out), patch, mask, (-3, 20)),
    ),
]


def fill(canvas: Any) -> Any:
    canvas[...] = torch.from_numpy(rand(2, 40, 50, 3)) if isinstance(canvas, torch.Tensor) else rand(2, 40, 50, 3)
    return canvas


def poisoned(shape: tuple[int, ...]) -> Floats:
    return np.full(shape, np.nan, np.float32)


parametrize_ops = pytest.mark.parametrize(("name", "inputs", "shape", "call"), OPS, ids=[case[0] for case in OPS])


@parametrize_ops
@pytest.mark.parametrize("layout", LAYOUTS, ids=lambda layout: layout.__name__)
def test_any_strides(
    name: str, inputs: list[Floats], shape: tuple[int, ...], call: Callable[..., Any], layout: Layout
) -> None:
    """Strides never change a bit, of inputs, output or both; the output was full of NaN, so all of it is written."""
    expected = call(poisoned(shape), *inputs)
    assert not np.isnan(expected).any()
    assert np.array_equal(call(poisoned(shape), *map(layout, inputs)), expected)
    assert np.array_equal(call(layout(poisoned(shape)), *inputs), expected)
    assert np.array_equal(call(layout(poisoned(shape)), *map(layout, inputs)), expected)


@parametrize_ops
def test_writes_nowhere_else(name: str, inputs: list[Floats], shape: tuple[int, ...], call: Callable[..., Any]) -> None:
    holder = np.full([side + 6 for side in shape], -7, np.float32)
    inner = tuple(slice(3, 3 + side) for side in shape)
    call(holder[inner], *inputs)
    holder[inner] = -7
    assert (holder == -7).all()


@parametrize_ops
def test_torch_and_numpy_agree(
    name: str, inputs: list[Floats], shape: tuple[int, ...], call: Callable[..., Any]
) -> None:
    from_torch = call(torch.full(shape, torch.nan), *map(torch.from_numpy, inputs))
    assert isinstance(from_torch, torch.Tensor)
    assert np.array_equal(from_torch.numpy(), call(poisoned(shape), *inputs))


@parametrize_ops
def test_read_only_inputs_are_read(
    name: str, inputs: list[Floats], shape: tuple[int, ...], call: Callable[..., Any]
) -> None:
    assert np.array_equal(call(poisoned(shape), *map(read_only, inputs)), call(poisoned(shape), *inputs))


@parametrize_ops
def test_threads_do_not_change_a_bit(
    name: str, inputs: list[Floats], shape: tuple[int, ...], call: Callable[..., Any], restore_threads: None
) -> None:
    results = []
    for count in (1, 2, 5):
        ops.set_num_threads(count)
        results.append(call(poisoned(shape), *inputs))
    assert all(np.array_equal(result, results[0]) for result in results)


def test_one_large_frame_is_shared_among_threads(restore_threads: None) -> None:
    """A single frame is cut into bands, whose first rows reach back into the band before."""
    frames = rand(1, 700, 90, 3)
    results = []
    for count in (1, 3):
        ops.set_num_threads(count)
        results.append([ops.crop_resize(frames, (0, 0, 90, 700), (70, height)) for height in (1300, 650, 200)])
    assert all(np.array_equal(one, other) for one, other in zip(*results, strict=True))


def test_the_thread_count_can_be_set(restore_threads: None) -> None:
    ops.set_num_threads(3)
    assert ops.num_threads() == 3
    ops.set_num_threads(0)
    assert ops.num_threads() >= 1


def test_results_are_of_the_kind_of_the_input() -> None:
    frames, decoded, mask = rand(1, 9, 9, 3), rand(1, 3, 8, 8), rand(9, 9)
    for wrap, kind in ((np.asarray, np.ndarray), (torch.from_numpy, torch.Tensor)):
        assert type(ops.crop_resize(wrap(frames), (0, 0, 9, 9), (4, 4))) is kind
        assert type(ops.crop_resize_to_vae(wrap(frames), (0, 0, 9, 9), (9, 9))) is kind
        assert type(ops.resize_from_vae(wrap(decoded), (4, 4))) is kind
        assert type(ops.feather_mask(wrap(mask), 2)) is kind
        assert type(ops.merge_masks(wrap(mask[None]))) is kind


@pytest.mark.parametrize("wrap", [np.asarray, torch.from_numpy])
def test_working_copy_shares_nothing(wrap: Callable[[Floats], Any]) -> None:
    frames = wrap(read_only(transposed(rand(2, 9, 8, 3))) if wrap is np.asarray else transposed(rand(2, 9, 8, 3)))
    copy = ops.working_copy(frames)
    assert type(copy) is type(frames)
    assert (copy == frames).all()
    assert (copy.flags.c_contiguous and copy.flags.writeable) if wrap is np.asarray else copy.is_contiguous()
    copy[...] = -1
    assert (frames >= 0).all()


def test_inputs_may_be_expanded_views() -> None:
    mask = torch.full((1, 1), 0.5).expand(6, 5)
    canvas = ops.alpha_paste(torch.zeros(2, 6, 5, 3), torch.ones(1, 1, 1, 1).expand(2, 6, 5, 3), mask, (0, 0))
    assert (canvas == 0.5).all()


def test_tensors_that_record_gradients_are_read() -> None:
    mask = torch.rand(9, 9, requires_grad=True)
    assert torch.equal(ops.feather_mask(mask, 0), mask.detach())


class Exporter:
    """Speaks only the DLPack of before 1.0, as older libraries do."""

    def __init__(self, tensor: torch.Tensor) -> None:
        self.tensor, self.shape = tensor, tensor.shape

    def __dlpack__(self) -> Any:
        return self.tensor.__dlpack__()


def test_unversioned_dlpack() -> None:
    frames = torch.rand(1, 9, 9, 3)
    out = torch.empty(1, 5, 5, 3)
    ops.crop_resize_into(out, Exporter(frames), (0, 0, 9, 9))
    assert torch.equal(out, ops.crop_resize(frames, (0, 0, 9, 9), (5, 5)))


class NoReadOnlyExport(np.ndarray[Any, Any]):
    """A read-only array as NumPy before 2.1 exports it: not at all."""

    def __dlpack__(self, **_: Any) -> Any:
        raise BufferError("Cannot export readonly array since signalling readonly is unsupported by DLPack")


def test_arrays_that_dlpack_cannot_export_are_read_as_buffers() -> None:
    mask = sliced(rand(1, 20, 30))[0]
    old = mask.view(NoReadOnlyExport)
    out = poisoned((20, 30))
    assert np.array_equal(ops.feather_mask_into(out, old, 3), ops.feather_mask(mask, 3))
    with pytest.raises(InputError, match="mask must be float32, got float64"):
        ops.feather_mask_into(out, mask.astype(np.float64).view(NoReadOnlyExport), 3)
    old.flags.writeable = False
    with pytest.raises(InputError, match="out is read-only"):
        ops.feather_mask_into(old, mask, 3)


def test_memory_is_given_back() -> None:
    """Neither the call nor a refused one keeps a reference to what it borrowed."""
    mask, out = rand(9, 9), rand(9, 9)
    before = sys.getrefcount(mask), sys.getrefcount(out)
    for _ in range(3):
        ops.feather_mask_into(out, mask, 2)
        with pytest.raises(InputError):
            ops.feather_mask_into(out, mask, 2, alpha=300)
    assert (sys.getrefcount(mask), sys.getrefcount(out)) == before


class OnAnotherCard(torch.Tensor):
    """A tensor that says it is on cuda:1, and is lent as torch 2.13 lends one: while that device is current."""

    on_host: torch.Tensor
    __torch_function__ = torch._C._disabled_torch_function_impl

    @staticmethod
    def __new__(cls, on_host: torch.Tensor) -> OnAnotherCard:
        made = torch.Tensor._make_wrapper_subclass(cls, on_host.shape, device=torch.device("cuda", 1))
        made.on_host = on_host
        return made

    @classmethod
    def __torch_dispatch__(cls, op: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        assert op is torch.ops.aten.detach.default
        return args[0]

    def __dlpack_device__(self) -> tuple[int, int]:
        return 2, 1

    def __dlpack__(self, *, stream: int, max_version: tuple[int, int]) -> Any:
        if torch.cuda.current_device() != 1:
            raise BufferError("Can't export tensors on a different CUDA device index")
        assert stream == -1, "nothing shall wait"
        return self.on_host.__dlpack__(max_version=max_version)


def test_tensors_of_another_card_than_the_current_one(monkeypatch: pytest.MonkeyPatch) -> None:
    current = [0]

    @contextmanager
    def device(chosen: torch.device) -> Iterator[None]:
        assert chosen.index is not None
        current.append(chosen.index)
        yield
        current.pop()

    monkeypatch.setattr(torch.cuda, "device", device)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: current[-1])
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: SimpleNamespace(cuda_stream=0))
    frames = torch.from_numpy(rand(1, 40, 50, 3))
    out = OnAnotherCard(torch.zeros(1, 7, 9, 3))
    assert ops.crop_resize_into(out, OnAnotherCard(frames), (0, 0, 50, 40)) is out
    assert torch.equal(out.on_host, ops.crop_resize(frames, (0, 0, 50, 40), (9, 7)))
    assert current == [0]


def test_offsets_beyond_32_bits(tmp_path: Path) -> None:
    """Two frames more than 2^31 elements apart, in a file whose pages nearly all stay holes."""
    apart = 2**31 + 11
    holder = np.memmap(tmp_path / "sparse", np.float32, "w+", shape=(2 * apart,))
    frames = np.lib.stride_tricks.as_strided(holder, (2, 9, 9, 3), (4 * apart, 4 * 27, 12, 4))
    frames[...] = rand(2, 9, 9, 3)
    expected = ops.crop_resize(frames.copy(), (0, 0, 9, 9), (5, 5))
    assert np.array_equal(ops.crop_resize(frames, (0, 0, 9, 9), (5, 5)), expected)
    assert np.array_equal(ops.crop_resize_into(frames[:, :5, :5], frames.copy(), (0, 0, 9, 9)), expected)
    pasted = ops.alpha_paste(frames.copy(), np.ones((2, 4, 4, 3), np.float32), rand(2, 4, 4), (1, 1))
    assert np.array_equal(ops.alpha_paste(frames, np.ones((2, 4, 4, 3), np.float32), rand(2, 4, 4), (1, 1)), pasted)
    masks = frames[..., 0]
    assert np.array_equal(ops.feather_mask_into(masks, masks.copy(), 1), ops.feather_mask(pasted[..., 0].copy(), 1))


def test_the_gil_is_released(restore_threads: None) -> None:
    """With a switch interval that never ends, another thread can only run where C++ lets go of the interpreter.

    It may be woken too late on a busy machine, so several calls are tried; without a release none would do.
    """
    ops.set_num_threads(1)
    frames, out = rand(1, 800, 800, 3), poisoned((1, 1600, 1600, 3))
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1000)
    try:
        assert any(
            another_thread_runs_during(lambda: ops.crop_resize_into(out, frames, (0, 0, 800, 800))) for _ in range(50)
        )
        assert not any(another_thread_runs_during(lambda: sum(range(100_000))) for _ in range(3))
    finally:
        sys.setswitchinterval(interval)


def another_thread_runs_during(call: Callable[[], Any]) -> bool:
    calling, finished, seen = threading.Event(), threading.Event(), []

    def watch() -> None:
        calling.wait()
        seen.append(not finished.is_set())

    watcher = threading.Thread(target=watch)
    watcher.start()
    calling.set()
    call()
    finished.set()
    watcher.join()
    return seen[0]


@pytest.fixture
def restore_threads() -> Iterator[None]:
    yield
    ops.set_num_threads(0)
