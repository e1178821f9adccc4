"""Guidance: what is run together, what is left out, and that neither shows in the numbers."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import animdetail_trt as adt
from animdetail_trt.sampling.conditioning import Entry, resolve, with_counterparts
from animdetail_trt.sampling.guidance import Guided
from animdetail_trt.sampling.model_sampling import ModelSampling

SIGMA = 3.0


class Recorder:
    """A UNetRunner that counts: eps is the mean of the tokens of each row's frames, everywhere."""

    device = torch.device("cpu")
    positions: int | None = 8
    token_dim = 2

    def __init__(self, frames_at_once: int = 1000, fails_above: int = 1000, full: Exception | None = None) -> None:
        self.calls: list[tuple[int, ...]] = []
        self.full = full or torch.OutOfMemoryError()
        self.frames_at_once, self.fails_above = frames_at_once, fails_above

    def frames_per_call(self, width: int, height: int) -> int:
        return self.frames_at_once

    def __call__(
        self, latents: Tensor, timestep: float, tokens: Tensor, residuals: Sequence[Tensor] | None = None
    ) -> Tensor:
        self.calls.append(tuple(latents.shape))
        if len(latents) > self.fails_above:
            raise self.full
        return tokens.mean(dim=(2, 3))[:, :, None, None, None].expand(latents.shape)


def entry(value: float, **extras: Any) -> Entry:
    return Entry(torch.full((1, 3, 2), value), **extras)


def guided(
    unet: Recorder, positive: list[Entry], cfg: float = 4.0, context: adt.ContextOptions | None = None
) -> Guided:
    return Guided(unet, ModelSampling("linear"), positive, [entry(1.0)], cfg, context)


def test_both_prompts_in_one_call() -> None:
    unet = Recorder()
    x = torch.randn(5, 4, 6, 6)
    out = guided(unet, [entry(2.0)])(x, SIGMA)
    torch.testing.assert_close(out, x - SIGMA * (1 + 4 * (2 - 1)))
    assert unet.calls == [(2, 5, 4, 6, 6)]


def test_cfg_1_runs_the_positive_alone() -> None:
    unet = Recorder()
    denoise = guided(unet, [entry(2.0)], cfg=1.0)
    denoise(torch.randn(5, 4, 6, 6), SIGMA)
    assert unet.calls == [(1, 5, 4, 6, 6)]
    _, uncond = denoise.both(torch.zeros(5, 4, 6, 6), SIGMA)
    assert unet.calls[1:] == [(2, 5, 4, 6, 6)]
    torch.testing.assert_close(uncond, torch.full_like(uncond, -SIGMA))


def test_windows_and_prompts_share_calls_as_far_as_memory_goes() -> None:
    context = adt.ContextOptions(context_length=4, context_overlap=1)
    x = torch.randn(10, 4, 6, 6)
    outs = []
    for frames_at_once, sizes in ((1000, [6]), (16, [4, 2]), (11, [2, 2, 2]), (1, [1] * 6)):
        unet = Recorder(frames_at_once)
        outs.append(guided(unet, [entry(2.0)], context=context)(x, SIGMA))
        assert [call[0] for call in unet.calls] == sizes
    assert all(torch.equal(out, outs[0]) for out in outs)


@pytest.mark.parametrize("step", range(4))
def test_one_window_that_loops_keeps_the_frames_order(step: int) -> None:
    """A clip as long as the window: from step to step the one window begins at another frame."""
    context = adt.ContextOptions("looped_uniform", context_length=6, context_overlap=1, use_on_equal_length=True)
    x = torch.randn(6, 4, 6, 6)
    denoise = guided(Recorder(), [entry(2.0)], context=context)
    denoise.step = step
    torch.testing.assert_close(denoise(x, SIGMA), guided(Recorder(), [entry(2.0)])(x, SIGMA))


@pytest.mark.parametrize(
    "full", [torch.OutOfMemoryError(), MemoryError(), RuntimeError("DefaultCPUAllocator: can't allocate memory")]
)
def test_a_call_that_finds_no_memory_is_halved(full: Exception) -> None:
    context = adt.ContextOptions(context_length=4, context_overlap=1)
    x = torch.randn(10, 4, 6, 6)
    unet = Recorder(fails_above=1, full=full)
    out = guided(unet, [entry(2.0)], context=context)(x, SIGMA)
    assert torch.equal(out, guided(Recorder(), [entry(2.0)], context=context)(x, SIGMA))
    with pytest.raises(type(full)):
        guided(Recorder(fails_above=0, full=full), [entry(2.0)])(x, SIGMA)


def test_what_found_no_memory_is_not_tried_again_at_that_size() -> None:
    unet = Recorder(fails_above=1)
    large, small = torch.zeros(5, 4, 6, 6), torch.zeros(5, 4, 6, 4)
    denoise = guided(unet, [entry(2.0)])
    for x in (large, large):
        denoise(x, SIGMA)
    assert [call[0] for call in unet.calls] == [2, 1, 1, 1, 1]
    unet.fails_above = 2
    for x in (small, large, small):
        denoise(x, SIGMA)
    assert [call[0] for call in unet.calls[5:]] == [2, 1, 1, 2]


def test_entries_count_by_strength_and_only_while_they_hold() -> None:
    positive = [entry(2.0), entry(4.0, strength=3.0), entry(100.0, first_sigma=2.0), entry(100.0, last_sigma=4.0)]
    out = guided(Recorder(), positive, cfg=1.0)(torch.zeros(2, 4, 6, 6), SIGMA)
    torch.testing.assert_close(out, torch.full_like(out, -SIGMA * (2 + 3 * 4) / 4))


def test_where_no_entry_counts_the_estimate_is_nought() -> None:
    mask = torch.zeros(1, 6, 6)
    mask[:, :, 3:] = 0.25
    out = guided(Recorder(), [entry(2.0, mask=mask)], cfg=1.0)(torch.ones(2, 4, 6, 6), SIGMA)
    assert not out[..., :3].any()
    torch.testing.assert_close(out[..., 3:], torch.full((2, 4, 6, 3), 1 - 2 * SIGMA))


def test_prompts_of_other_lengths_are_run_apart() -> None:
    unet = Recorder()
    longer = Entry(torch.full((1, 6, 2), 2.0))
    guided(unet, [longer])(torch.zeros(2, 4, 6, 6), SIGMA)
    assert [call[0] for call in unet.calls] == [1, 1]


def test_an_area_gets_its_counterpart() -> None:
    """The unconditional side is asked for the area too, with its own prompt."""
    unet = Recorder()
    denoise = guided(unet, [entry(2.0), entry(4.0, area=(4, 4, 1, 2))])
    assert [(float(e.tokens.mean()), e.area) for e in denoise.sides[1]] == [(1.0, None), (1.0, (4, 4, 1, 2))]
    denoise(torch.zeros(2, 4, 6, 6), SIGMA)
    assert sorted(unet.calls) == [(2, 2, 4, 4, 4), (2, 2, 4, 6, 6)]


def test_an_area_over_the_edge_is_not_covered_by_the_whole_picture() -> None:
    """The reference compares areas before it cuts them: (3, 6, 3, 3) is not inside of (8, 8, 0, 0)."""
    latent, levels = torch.zeros(1, 4, 8, 8), ModelSampling("linear")
    positive = resolve([[torch.zeros(1, 3, 2), {"area": (3, 6, 3, 3)}]], "positive", latent, levels, 2)
    bounds = {"mask": torch.ones(1, 8, 8), "set_area_to_bounds": True}
    conditioning = [[torch.ones(1, 3, 2), {}], [torch.full((1, 3, 2), 2.0), bounds]]
    negative = with_counterparts(resolve(conditioning, "negative", latent, levels, 2), positive)
    assert [entry.area for entry in negative] == [None, (8, 8, 0, 0), (3, 5, 3, 3)]
    assert float(negative[2].tokens.mean()) == 1  # of the entry without an area


def test_resolve_places_masks_areas_and_ranges() -> None:
    latent = torch.zeros(3, 4, 8, 10)
    extras = {"mask": torch.ones(1, 64, 80), "mask_strength": 0.5, "start_percent": 0.0, "end_percent": 1.0}
    (found,) = resolve([[torch.zeros(1, 3, 2), extras]], "positive", latent, ModelSampling("linear"), 2)
    assert found.mask is not None
    assert torch.equal(found.mask, torch.full((1, 8, 10), 0.5))
    assert found.holds_at(1e9)
    assert found.holds_at(0.0)
    for area, expected in (((4, 20, 2, 1), (4, 9, 2, 1)), (("percentage", 0.5, 0.5, 0.25, 0.5), (4, 5, 2, 5))):
        (found,) = resolve([[torch.zeros(1, 3, 2), {"area": area}]], "positive", latent, ModelSampling("linear"), 2)
        assert found.area == expected


@pytest.mark.parametrize("mm", ["tiny_mm_v1", "tiny_mm_v2"])
def test_batching_changes_no_real_model_s_numbers(tiny: Path, mm: str) -> None:
    context = adt.ContextOptions("standard_uniform", context_length=4, context_overlap=2)
    pipe = adt.load_pipe(
        tiny / "tiny_sd15.safetensors", motion_module=tiny / f"{mm}.safetensors", context=context, device="cpu"
    )
    x = torch.randn(9, 4, 16, 16, generator=torch.Generator().manual_seed(1))
    prompts = [[Entry(torch.randn(1, 77, 64, generator=torch.Generator().manual_seed(seed)))] for seed in (2, 3)]
    outs = []
    for memory in (1 << 30, 1):
        pipe.model.unet.memory_bytes = memory  # type: ignore[attr-defined]
        outs.append(Guided(pipe.model.unet, pipe.model.model_sampling, *prompts, 5.0, context)(x, SIGMA))
    assert float((outs[0] - outs[1]).norm() / outs[0].norm()) <= 1e-5
