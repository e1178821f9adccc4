"""What must hold of any run of the node, with real (tiny) models."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

import animdetail_trt as adt
from animdetail_trt.detailer import segment
from golden_cases import relative_norm
from tolerances import assert_crops_match

COUNT, HEIGHT, WIDTH = 3, 40, 64
FRAMES = torch.rand(COUNT, HEIGHT, WIDTH, 3, generator=torch.Generator().manual_seed(12))


@pytest.fixture(scope="module")
def motion_pipe(tiny: Path, pipe: adt.BasicPipe) -> adt.BasicPipe:
    loaded = adt.load_pipe(
        tiny / "tiny_sd15.safetensors",
        motion_module=tiny / "tiny_mm_v3.safetensors",
        device="cpu",
        dtype="float32",
    )
    return loaded.with_conditioning(pipe.positive, pipe.negative)


def seg(region: tuple[int, int, int, int], mask: np.ndarray | None = None) -> adt.SEG:
    """A mask of 1 but for 3 pixels around it, unless another is given."""
    x1, y1, x2, y2 = region
    if mask is None:
        mask = np.zeros((y2 - y1, x2 - x1), np.float32)
        mask[3:-3, 3:-3] = 1
    return adt.SEG(None, mask, 1.0, region, region, "face")


def detail(pipe: adt.BasicPipe, segs: list[adt.SEG], **changes: Any) -> tuple[Tensor, list[adt.SEG]]:
    arguments: dict[str, Any] = {"guide_size": 24, "max_size": 48, "seed": 5, "steps": 2, "cfg": 3.0, "feather": 2}
    arguments |= {"noise_mask_feather": 3, "basic_pipe": pipe}
    image, (_, detailed), *_ = adt.DetailerForEachPipeForAnimateDiff.doit(
        FRAMES, ((HEIGHT, WIDTH), segs), **arguments | changes
    )
    return image, detailed


@pytest.mark.parametrize("reference_mode", [True, False])
@pytest.mark.parametrize("sampler_name", ["euler", "euler_ancestral", "dpmpp_2m_sde"])
def test_a_run_repeats_to_the_bit(motion_pipe: adt.BasicPipe, sampler_name: str, reference_mode: bool) -> None:
    """Whatever was drawn from torch's and NumPy's global generators between."""
    segs = [seg((4, 6, 30, 36)), seg((20, 2, 60, 30))]
    changes = {"sampler_name": sampler_name, "scheduler": "karras", "reference_mode": reference_mode}
    torch.manual_seed(1)
    first, _ = detail(motion_pipe, segs, **changes)
    torch.manual_seed(2)
    np.random.seed(2)
    assert torch.equal(detail(motion_pipe, segs, **changes)[0], first)
    assert not torch.equal(detail(motion_pipe, segs, **changes, seed=6)[0], first)


def test_frames_per_vae_call_change_nothing(motion_pipe: adt.BasicPipe, monkeypatch: pytest.MonkeyPatch) -> None:
    """Latents, before and after sampling, within 1e-5 (relative norm); of pixels, cut to 8 bits, a truncation may flip.

    Latents of 8x9: in much smaller ones a GroupNorm of the tiny UNet sees single values, and makes much of their noise.
    """
    taps: list[Tensor] = []
    sample = segment._sample

    def tapped(latent: Tensor, *rest: Any) -> Tensor:
        taps.append(latent)
        taps.append(sample(latent, *rest))
        return taps[-1]

    monkeypatch.setattr(segment, "_sample", tapped)
    results = []
    for per_call in (COUNT, 2, 1):
        monkeypatch.setattr(motion_pipe.vae, "frames_per_call", lambda *_, n=per_call: n)
        results.append((detail(motion_pipe, [seg((4, 6, 30, 36))], guide_size=64, max_size=96)[0], *taps))
        taps.clear()
    for image, *latents in results[1:]:
        for latent, whole in zip(latents, results[0][1:], strict=True):
            assert relative_norm(latent, whole) < 1e-5
        assert_crops_match(image, results[0][0])


def test_segments_apart_may_come_in_any_order(pipe: adt.BasicPipe) -> None:
    """They are sampled from the same seed, each of them, as in the reference: no place in the order shows."""
    segs = [seg((0, 0, 24, 20)), seg((26, 4, 50, 34)), seg((50, 10, 64, 40)), seg((2, 21, 26, 40))]
    image, detailed = detail(pipe, segs)
    for order in ([3, 2, 1, 0], [1, 3, 0, 2]):
        reordered, others = detail(pipe, [segs[i] for i in order])
        assert torch.equal(reordered, image)
        for i, other in zip(order, others, strict=True):
            assert np.array_equal(other.cropped_image, detailed[i].cropped_image)


@st.composite
def segments(draw: st.DrawFn) -> adt.SEG:
    """A region, off an edge of the frame or not, and one mask or one per frame with a soft disc anywhere in it."""
    x1, y1 = draw(st.integers(-8, WIDTH - 16)), draw(st.integers(-8, HEIGHT - 16))
    width, height = draw(st.integers(16, 40)), draw(st.integers(16, 32))
    count = draw(st.sampled_from([1, 2, COUNT]))
    y, x = np.mgrid[:height, :width]
    at = draw(st.lists(st.tuples(st.integers(0, width), st.integers(0, height)), min_size=count, max_size=count))
    radius = draw(st.integers(2, 12))
    masks = [np.clip((radius - np.hypot(x - cx, y - cy)) / 3, 0, 1) for cx, cy in at]
    return seg((x1, y1, x1 + width, y1 + height), np.stack(masks).astype(np.float32))


@settings(max_examples=15)
@given(found=st.lists(segments(), min_size=1, max_size=2), feather=st.integers(0, 4), reference_mode=st.booleans())
def test_pixels_outside_every_mask_are_the_inputs(
    pipe: adt.BasicPipe, found: list[adt.SEG], feather: int, reference_mode: bool
) -> None:
    """To the bit; outside is farther than the feather from all that any frame's mask holds."""
    image, _ = detail(pipe, found, feather=feather, steps=1, reference_mode=reference_mode)
    touched = torch.zeros(HEIGHT, WIDTH, dtype=torch.bool)
    for item in found:
        x1, y1, x2, y2 = item.crop_region
        left, top, right, bottom = max(x1, 0), max(y1, 0), min(x2, WIDTH), min(y2, HEIGHT)
        mask = torch.from_numpy((item.cropped_mask > 0).any(0))[None, None].float()
        reach = torch.nn.functional.max_pool2d(mask, 2 * feather + 1, 1, feather)
        # Where the region leaves the frame, its mask is stretched over what is left of it, as in the reference.
        if (right - left, bottom - top) != (x2 - x1, y2 - y1):
            reach = torch.nn.functional.interpolate(reach, (bottom - top, right - left), mode="bilinear")
        touched[top:bottom, left:right] |= reach[0, 0] > 0
    assert torch.equal(image[:, ~touched], FRAMES[:, ~touched])
