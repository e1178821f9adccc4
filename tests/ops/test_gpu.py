"""The ops on a CUDA device against the ops on the CPU: the same bits, whatever the sizes, strides and streams."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pixels import SEEDS, SIDES, noise, unit
from test_element_types import UNIT_TYPES, VAE_TYPES, layouts, picture
from torch import Tensor

from animdetail_trt import ops
from animdetail_trt.errors import InputError

pytestmark = pytest.mark.gpu

ORDERS = st.sampled_from(["pillow13", "horizontal_first"])
SLEEP_CYCLES = 200_000_000  # some 0.1 s of a GPU's time


def poisoned(*shape: int) -> Tensor:
    return torch.full(shape, torch.nan, device="cuda")


def equal(a: Tensor, b: Tensor) -> bool:
    """To the bit: NaN included, and 0 is not -0."""
    return torch.equal(a.cpu().contiguous().view(torch.int32), b.cpu().contiguous().view(torch.int32))


def rand(*shape: int, seed: int = 0) -> Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed))


# Layouts: what slices, permutations and crops make of a tensor.


def packed(tensor: Tensor) -> Tensor:
    return tensor


def transposed(tensor: Tensor) -> Tensor:
    axes = list(reversed(range(tensor.ndim)))
    return tensor.permute(axes).contiguous().permute(axes)


def sliced(tensor: Tensor) -> Tensor:
    holder = torch.full([3 * side + 5 for side in tensor.shape], torch.nan, device=tensor.device)
    view = holder[tuple(slice(2, 2 + 3 * side, 3) for side in tensor.shape)]
    view.copy_(tensor)
    return view


def cut_out(tensor: Tensor) -> Tensor:
    """Rows that begin anywhere, not at whole 16 bytes."""
    holder = torch.full([side + 3 for side in tensor.shape], torch.nan, device=tensor.device)
    view = holder[tuple(slice(1, 1 + side) for side in tensor.shape)]
    view.copy_(tensor)
    return view


def channels_swapped(tensor: Tensor) -> Tensor:
    """(f, h, w, c) with planes of channels, or (f, c, h, w) with channels interleaved."""
    if tensor.ndim != 4:
        return tensor
    if tensor.shape[1] == 3:
        return tensor.contiguous(memory_format=torch.channels_last)
    return tensor.permute(0, 3, 1, 2).contiguous().permute(0, 2, 3, 1)


LAYOUTS = [packed, transposed, sliced, cut_out, channels_swapped]

# name, inputs, shape of the output, call
OPS: list[tuple[str, list[Tensor], tuple[int, ...], Callable[..., Any]]] = [
    (
        "crop_resize",
        [rand(2, 40, 52, 3)],
        (2, 70, 21, 3),
        lambda out, frames: ops.crop_resize_into(out, frames, (3, 5, 47, 39)),
    ),
    (
        "crop_resize_gray",
        [rand(2, 40, 52, 1)],
        (2, 30, 80, 1),
        lambda out, frames: ops.crop_resize_into(out, frames, (0, 0, 52, 40)),
    ),
    (
        "crop_resize_tall",
        [rand(1, 150, 52, 3)],
        (1, 40, 60, 3),
        lambda out, frames: ops.crop_resize_into(out, frames, (0, 0, 52, 150)),
    ),
    (
        "crop_resize_direct",
        [rand(1, 1100, 900, 3)],
        (1, 2, 3, 3),
        lambda out, frames: ops.crop_resize_into(out, frames, (1, 2, 900, 1100)),
    ),
    (
        "crop_resize_to_vae",
        [rand(2, 40, 52, 3)],
        (2, 3, 72, 64),
        lambda out, frames: ops.crop_resize_to_vae_into(out, frames, (3, 5, 47, 39), (69, 77)),
    ),
    (
        "crop_resize_to_vae_unscaled",
        [rand(2, 40, 52, 3)],
        (2, 3, 32, 48),
        lambda out, frames: ops.crop_resize_to_vae_into(out, frames, (0, 0, 50, 39), (50, 39)),
    ),
    (
        "resize_from_vae",
        [rand(2, 3, 72, 64) * 3 - 1.5],
        (2, 34, 44, 3),
        lambda out, decoded: ops.resize_from_vae_into(out, decoded),
    ),
    (
        "feather_mask",
        [rand(3, 140, 133)],
        (3, 140, 133),
        lambda out, mask: ops.feather_mask_into(out, mask, 4, 200),
    ),
    ("feather_mask_wide", [rand(60, 70)], (60, 70), lambda out, mask: ops.feather_mask_into(out, mask, 25)),
    ("feather_mask_single", [rand(40, 33)], (40, 33), lambda out, mask: ops.feather_mask_into(out, mask, 1)),
    (
        "alpha_paste",
        [rand(2, 30, 30, 3), rand(2, 30, 30)],
        (2, 40, 52, 3),
        lambda out, patch, mask: ops.alpha_paste(fill(out), patch, mask, (-3, 20)),
    ),
    (
        "alpha_paste_one_mask",
        [rand(3, 30, 32, 3), rand(30, 32)],
        (3, 40, 52, 3),
        lambda out, patch, mask: ops.alpha_paste(fill(out), patch, mask, (4, 2)),
    ),
    (
        "paste_from_vae",
        [rand(2, 3, 72, 64) * 3 - 1.5, rand(31, 33)],
        (2, 40, 52, 3),
        lambda out, decoded, mask: ops.paste_from_vae(fill(out), decoded, mask, (27, -5), (33, 31)),
    ),
]


def fill(canvas: Tensor) -> Tensor:
    return canvas.copy_(rand(*canvas.shape, seed=7))


parametrize_ops = pytest.mark.parametrize(("name", "inputs", "shape", "call"), OPS, ids=[case[0] for case in OPS])


@parametrize_ops
@pytest.mark.parametrize("of_output", LAYOUTS, ids=lambda layout: layout.__name__)
@pytest.mark.parametrize("of_input", LAYOUTS, ids=lambda layout: layout.__name__)
def test_any_strides(
    name: str,
    inputs: list[Tensor],
    shape: tuple[int, ...],
    call: Callable[..., Any],
    of_input: Callable[[Tensor], Tensor],
    of_output: Callable[[Tensor], Tensor],
) -> None:
    """The output was full of NaN, so all of it is written."""
    expected = call(torch.full(shape, torch.nan), *inputs)
    assert not expected.isnan().any()
    out = of_output(poisoned(*shape))
    assert call(out, *(of_input(tensor.cuda()) for tensor in inputs)) is out
    assert equal(out, expected)


@parametrize_ops
def test_writes_nowhere_else(name: str, inputs: list[Tensor], shape: tuple[int, ...], call: Callable[..., Any]) -> None:
    holder = torch.full([side + 6 for side in shape], -7.0, device="cuda")
    inner = tuple(slice(3, 3 + side) for side in shape)
    call(holder[inner], *(tensor.cuda() for tensor in inputs))
    holder[inner] = -7
    assert (holder == -7).all()


@settings(max_examples=150)
@given(h=SIDES, w=SIDES, height=SIDES, width=SIDES, channels=st.integers(1, 4), seed=SEEDS, order=ORDERS)
def test_crop_resize(h: int, w: int, height: int, width: int, channels: int, seed: int, order: Any) -> None:
    frames = torch.from_numpy(unit(noise(seed, (2, h, w, channels), extremes=seed % 2 == 0)))
    region, size = (w // 4, h // 5, w, h), (width, height)
    expected = ops.crop_resize(frames, region, size, pass_order=order)
    out = poisoned(2, height, width, channels)
    assert equal(ops.crop_resize_into(out, frames.cuda(), region, pass_order=order), expected)


@settings(max_examples=150)
@given(h=SIDES, w=SIDES, height=st.integers(8, 300), width=st.integers(8, 300), seed=SEEDS, order=ORDERS)
def test_there_and_back(h: int, w: int, height: int, width: int, seed: int, order: Any) -> None:
    frames, region = rand(2, h, w, 3, seed=seed) * 1.4 - 0.2, (w // 4, h // 5, w, h)
    expected = ops.crop_resize_to_vae(frames, region, (width, height), pass_order=order)
    pixels = ops.crop_resize_to_vae(frames.cuda(), region, (width, height), pass_order=order)
    assert equal(pixels, expected)
    decoded, size = pixels * 1.3, (w - w // 4, h - h // 5)
    expected = ops.resize_from_vae(decoded.cpu(), size, pass_order=order)
    assert equal(ops.resize_from_vae(decoded, size, pass_order=order), expected)


@settings(max_examples=100)
@given(
    h=SIDES,
    w=SIDES,
    ph=SIDES,
    pw=SIDES,
    x=st.integers(-80, 200),
    y=st.integers(-80, 200),
    n=st.integers(0, 2),
    seed=SEEDS,
)
def test_paste_from_vae(h: int, w: int, ph: int, pw: int, x: int, y: int, n: int, seed: int) -> None:
    canvas, decoded = rand(2, h, w, 3, seed=seed), rand(2, 3, 72, 64, seed=seed + 1) * 3 - 1.5
    mask = rand(*([n] if n else []), ph, pw, seed=seed + 2)
    on_gpu = ops.paste_from_vae(canvas.cuda(), decoded.cuda(), mask.cuda(), (x, y), (pw, ph))
    in_two = ops.alpha_paste(canvas.cuda(), ops.resize_from_vae(decoded.cuda(), (pw, ph)), mask.cuda(), (x, y))
    expected = ops.paste_from_vae(canvas, decoded, mask, (x, y), (pw, ph))
    assert equal(on_gpu, expected)
    assert equal(in_two, expected)


@settings(max_examples=120)
@given(
    h=SIDES,
    w=SIDES,
    canvas_type=st.sampled_from(UNIT_TYPES),
    vae_type=st.sampled_from(VAE_TYPES),
    patch_type=st.sampled_from(UNIT_TYPES),
    layout=layouts,
    frames=st.integers(1, 2),
    order=ORDERS,
    seed=SEEDS,
)
def test_element_types(
    h: int,
    w: int,
    canvas_type: torch.dtype,
    vae_type: torch.dtype,
    patch_type: torch.dtype,
    layout: Callable[[Tensor], Tensor],
    frames: int,
    order: Any,
    seed: int,
) -> None:
    """A segment through pictures of every type and layout, in one pass and in two, from rows that begin anywhere."""

    def run(device: str) -> list[Tensor]:
        canvas = layout(picture(seed, frames, h, w, 3, dtype=canvas_type).to(device))
        mask, pixels = rand(h, w, seed=seed).to(device), torch.zeros(frames, 3, 64, 72, dtype=vae_type, device=device)
        patch = layout(torch.zeros(frames, h, w, 3, dtype=patch_type, device=device))
        ops.crop_resize_to_vae_into(pixels, canvas, (w // 4, h // 5, w, h), (72, 64), pass_order=order)
        ops.resize_from_vae_into(patch, pixels, pass_order=order)
        in_two = ops.alpha_paste(canvas.clone(), patch, mask, (1, -1))
        ops.paste_from_vae(canvas, pixels, mask, (1, -1), (w, h), pass_order=order)
        return [canvas, pixels, patch, in_two]

    for on_gpu, on_cpu in zip(run("cuda"), run("cpu"), strict=True):
        assert torch.equal(on_gpu.cpu(), on_cpu)


@settings(max_examples=60)
@given(n=st.integers(0, 3), h=SIDES, w=SIDES, feather=st.integers(0, 40), alpha=st.integers(0, 255), seed=SEEDS)
def test_feather_mask(n: int, h: int, w: int, feather: int, alpha: int, seed: int) -> None:
    mask = rand(*([n] if n else []), h, w, seed=seed)
    assert equal(ops.feather_mask(mask.cuda(), feather, alpha), ops.feather_mask(mask, feather, alpha))


@pytest.mark.parametrize(("size", "new"), [((2000, 3), (1, 5)), ((3, 2000), (5, 1)), ((1, 1), (700, 900))])
def test_huge_ratios(size: tuple[int, int], new: tuple[int, int]) -> None:
    frames = rand(1, size[1], size[0], 3)
    assert equal(ops.crop_resize(frames.cuda(), (0, 0, *size), new), ops.crop_resize(frames, (0, 0, *size), new))


def test_quantises_as_the_cpu_does() -> None:
    """Every rounding edge: k / 255 and its neighbours, both zeros, far values, NaN."""
    levels = torch.arange(256) / 255
    special = torch.tensor([-0.0, 1e-45, -1e-45, 1e30, -1e30, torch.inf, -torch.inf, torch.nan, 1e-3])
    values = torch.cat([levels, levels.nextafter(levels - 1), levels.nextafter(levels + 1), special])
    frames, region, size = values.reshape(1, 1, -1, 1), (0, 0, len(values), 1), (len(values), 1)
    assert equal(ops.crop_resize(frames.cuda(), region, size), ops.crop_resize(frames, region, size))
    decoded = (2 * values - 1).expand(1, 3, 1, -1)
    assert equal(ops.resize_from_vae(decoded.cuda(), size), ops.resize_from_vae(decoded, size))


def test_merge_masks() -> None:
    masks = rand(5, 40, 33)
    for factor in (1, 255):
        assert equal(ops.merge_masks(masks.cuda(), first_factor=factor), ops.merge_masks(masks, first_factor=factor))


def segment(canvas: Tensor, pixels: Tensor, mask: Tensor, feathered: Tensor, region: tuple[int, int, int, int]) -> None:
    """A segment's pixel work, into memory that is there, with the VAE's input for its output."""
    x1, y1, x2, y2 = region
    ops.crop_resize_to_vae_into(pixels, canvas, region, (pixels.shape[3], pixels.shape[2]))
    ops.feather_mask_into(feathered, mask, 5)
    ops.paste_from_vae(canvas, pixels, feathered, (x1, y1), (x2 - x1, y2 - y1))


def segment_tensors(side: int, device: str) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    canvas, mask = rand(3, 120, 160, 3), torch.zeros(side, side)
    mask[side // 6 : -side // 6, side // 6 : -side // 6] = 1
    pixels = torch.full((3, 3, 128, 128), torch.nan)
    return canvas.to(device), pixels.to(device), mask.to(device), torch.full_like(mask, torch.nan).to(device)


def test_works_in_torchs_current_stream_and_waits_for_nobody() -> None:
    """Sizes that were not seen before: their tables are made while the stream is busy."""
    segment(*segment_tensors(71, "cuda"), (13, 17, 84, 88))  # loads the kernels, which a busy device may hold up
    tensors, region = segment_tensors(83, "cuda"), (13, 17, 96, 100)
    expected = segment_tensors(83, "cpu")
    segment(*expected, region)
    canvas, fresh = tensors[0], tensors[0].clone()
    canvas.fill_(torch.nan)
    stream = torch.cuda.Stream()
    torch.cuda.synchronize()
    with torch.cuda.stream(stream):
        torch.cuda._sleep(SLEEP_CYCLES)
        canvas.copy_(fresh)
        segment(*tensors, region)
    assert not stream.query()
    assert torch.cuda.default_stream().query()
    stream.synchronize()
    for on_gpu, on_cpu in zip(tensors, expected, strict=True):
        assert equal(on_gpu, on_cpu)


@pytest.mark.parametrize("warm", [True, False], ids=["warm", "first use"])
def test_a_segment_in_a_cuda_graph(warm: bool) -> None:
    """A capture records all of it and runs none of it; a replay works on what lies in memory then."""
    side = 91 if warm else 87
    segment(*segment_tensors(71, "cuda"), (13, 17, 84, 88))  # loads the kernels
    tensors, region = segment_tensors(side, "cuda"), (13, 17, 13 + side, 17 + side)
    if warm:
        segment(*(tensor.clone() for tensor in tensors), region)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        segment(*tensors, region)
    assert tensors[1].isnan().all()
    for seed in (1, 2):
        expected = segment_tensors(side, "cpu")
        expected[0].copy_(rand(*expected[0].shape, seed=seed))
        tensors[0].copy_(expected[0])
        segment(*expected, region)
        graph.replay()
        for on_gpu, on_cpu in zip(tensors, expected, strict=True):
            assert equal(on_gpu, on_cpu)


def test_many_sizes_do_not_fill_the_memory() -> None:
    """Tables of taps are freed once they are many; those that a graph holds stay."""
    tensors, region = segment_tensors(79, "cuda"), (13, 17, 92, 96)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        segment(*tensors, region)
    frame, out = torch.zeros(1, 1, 8000, 1, device="cuda"), poisoned(1, 1, 9000, 1)
    torch.cuda.synchronize()
    before, _ = torch.cuda.mem_get_info()
    for width in range(7000, 7500):  # 500 tables of 9000 * 56 bytes and more
        ops.crop_resize_into(out, frame, (0, 0, width, 1))
    torch.cuda.synchronize()
    assert before - torch.cuda.mem_get_info()[0] < 160 << 20
    expected = segment_tensors(79, "cpu")
    segment(*expected, region)
    graph.replay()
    assert equal(tensors[0], expected[0])


def needs_bytes(count: int) -> None:
    if torch.cuda.mem_get_info()[0] < count:
        pytest.skip(f"needs {count / 2**30:.0f} GiB of free device memory")


def test_offsets_beyond_32_bits() -> None:
    """Two frames more than 2^31 elements apart, and an output of more elements than that."""
    apart = 2**31 + 11
    needs_bytes(4 * apart + (3 << 30))
    holder = torch.full((apart + 9 * 27,), torch.nan, device="cuda")
    frames, source = torch.as_strided(holder, (2, 9, 9, 3), (apart, 27, 3, 1)), rand(2, 9, 9, 3)
    frames.copy_(source)
    region, mask = (0, 0, 9, 9), rand(2, 4, 4)
    expected = ops.crop_resize(source, region, (5, 5))
    assert equal(ops.crop_resize(frames, region, (5, 5)), expected)
    pasted = ops.alpha_paste(source.clone(), torch.ones(2, 4, 4, 3), mask, (1, 1))
    ops.alpha_paste(frames, torch.ones(2, 4, 4, 3, device="cuda"), mask.cuda(), (1, 1))
    assert equal(frames, pasted)
    assert equal(ops.feather_mask(frames[..., 0], 1), ops.feather_mask(pasted[..., 0].contiguous(), 1))
    del holder, frames
    torch.cuda.empty_cache()

    count = math.ceil(2**31 / (1024 * 1024 * 3)) + 1
    frames = rand(count, 10, 12, 3)
    out = poisoned(count, 1024, 1024, 3)
    assert out.numel() > 2**31
    ops.crop_resize_into(out, frames.cuda(), (1, 0, 12, 10))
    for index in (0, count // 2, count - 1):
        assert equal(out[index : index + 1], ops.crop_resize(frames[index : index + 1], (1, 0, 12, 10), (1024, 1024)))
    assert not out.sum().isnan()
    half = torch.full((1024, 1024), 0.5, device="cuda")
    before = out[-1].cpu()
    ops.alpha_paste(out, torch.zeros(1, 1, 1, 1, device="cuda").expand_as(out), half, (0, 0))
    assert equal(out[-1], 0.5 * before)


def test_devices_do_not_mix() -> None:
    frames, mask, decoded = rand(1, 9, 9, 3), rand(9, 9), rand(1, 3, 8, 8)
    region = (0, 0, 9, 9)
    with pytest.raises(InputError, match="out is on cuda:0 and frames on cpu. Move them to one device"):
        ops.crop_resize_into(poisoned(1, 5, 5, 3), frames, region)
    with pytest.raises(InputError, match="out is on cpu and frames on cuda:0. Move them to one device"):
        ops.crop_resize_into(rand(1, 5, 5, 3), frames.cuda(), region)
    with pytest.raises(InputError, match="out is on cpu and frames on cuda:0"):
        ops.crop_resize_to_vae_into(decoded, frames.cuda(), region, (8, 8))
    with pytest.raises(InputError, match="out is on cpu and decoded on cuda:0"):
        ops.resize_from_vae_into(frames, decoded.cuda())
    with pytest.raises(InputError, match="out is on cpu and mask on cuda:0"):
        ops.feather_mask_into(mask.clone(), mask.cuda(), 2)
    with pytest.raises(InputError, match="canvas is on cuda:0 and mask on cpu"):
        ops.alpha_paste(frames.cuda(), frames.cuda(), mask, (0, 0))
    with pytest.raises(InputError, match="canvas is on cpu and patch on cuda:0"):
        ops.alpha_paste(frames, frames.cuda(), mask, (0, 0))
    with pytest.raises(InputError, match="canvas is on cuda:0 and decoded on cpu"):
        ops.paste_from_vae(frames.cuda(), decoded, mask, (0, 0), (9, 9))
    with pytest.raises(InputError, match="on cpu and .* on cuda:0"):
        ops.paste_from_vae(frames, decoded.cuda(), mask, (0, 0), (9, 9))


def test_shared_memory_is_refused() -> None:
    """In one pass here: on the CPU what was decoded is read before the canvas is written."""
    memory = rand(1024).cuda()
    canvas, mask = memory[:768].view(1, 16, 16, 3), torch.ones(16, 16, device="cuda")
    with pytest.raises(InputError, match="decoded shares memory with canvas"):
        ops.paste_from_vae(canvas, memory[700:892].view(1, 3, 8, 8), mask, (0, 0), (16, 16))
    with pytest.raises(InputError, match="patch shares memory with canvas"):
        ops.alpha_paste(canvas, memory[256:].view(1, 16, 16, 3), mask, (0, 0))


def test_numbers_in_messages() -> None:
    """Written without streams, which crash where two C++ libraries are in one process."""
    with pytest.raises(InputError, match=r"mask .* as high and wide as patch \(1, 9, 9, 3\), got shape \(4, 4\)"):
        ops.alpha_paste(poisoned(1, 9, 9, 3), poisoned(1, 9, 9, 3), rand(4, 4).cuda(), (0, 0))
    with pytest.raises(InputError, match="alpha is 255.5. It must be 0 to 255"):
        ops.feather_mask(rand(9, 9).cuda(), 2, 255.5)


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two CUDA devices")
def test_works_on_the_device_of_its_tensors() -> None:
    frames = rand(1, 40, 52, 3)
    expected = ops.crop_resize(frames, (0, 0, 52, 40), (70, 21))
    assert torch.cuda.current_device() == 0
    assert equal(ops.crop_resize(frames.to("cuda:1"), (0, 0, 52, 40), (70, 21)), expected)
    assert torch.cuda.current_device() == 0
    with pytest.raises(InputError, match="out is on cuda:0 and frames on cuda:1. Move them to one device"):
        ops.crop_resize_into(poisoned(1, 5, 5, 3), frames.to("cuda:1"), (0, 0, 9, 9))


def test_empty_tensors() -> None:
    assert ops.crop_resize(torch.empty(0, 9, 9, 3, device="cuda"), (0, 0, 9, 9), (5, 4)).shape == (0, 4, 5, 3)
    assert ops.feather_mask(torch.empty(0, 9, 9, device="cuda"), 3).shape == (0, 9, 9)
