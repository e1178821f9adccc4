"""A DETAILER_HOOK with reference_mode=False: what is called, when, with what, to what effect; and wrong answers."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

import animdetail_trt as adt
from animdetail_trt.detailer.hooks import METHODS
from animdetail_trt.detailer.report import Observer
from animdetail_trt.errors import InputError
from animdetail_trt.sampling.noise import initial_noise

FRAMES = torch.rand(2, 32, 48, 3, generator=torch.Generator().manual_seed(5))
SEED = 2**63 + 5


class Identity:
    """All methods, each giving back what it got: the Impact Pack's DetailerHook, as far as it is called."""

    def touch_scaled_size(self, w: int, h: int) -> Any:
        return w, h

    def post_upscale(self, pixels: Any) -> Any:
        return pixels

    def post_encode(self, samples: Any) -> Any:
        return samples

    def set_steps(self, info: Any) -> None:
        self.info = info

    def cycle_latent(self, latent: Any) -> Any:
        return latent

    def pre_ksample(self, *values: Any) -> Any:
        return values

    def get_custom_noise(self, seed: int, noise: Any, is_touched: bool) -> Any:
        return noise, is_touched

    def pre_decode(self, samples: Any) -> Any:
        return samples

    def post_decode(self, pixels: Any) -> Any:
        return pixels

    def post_paste(self, image: Any) -> Any:
        return image


class Recorder:
    """Notes every call; answers as ``answers`` (method -> function) or Identity does."""

    def __init__(self, **answers: Callable[..., Any]) -> None:
        self.calls: list[tuple[str, tuple[Any, ...], dict[str, Any]]] = []
        self._answers = answers

    def __getattr__(self, name: str) -> Callable[..., Any]:
        if name not in METHODS:
            raise AttributeError(name)

        def call(*args: Any, **options: Any) -> Any:
            self.calls.append((name, args, options))
            return self._answers.get(name, getattr(Identity(), name))(*args, **options)

        return call

    def argument(self, method: str) -> Any:
        """The first argument of the method's first call."""
        return next(args[0] for name, args, _ in self.calls if name == method)


def one(method: str, answer: Callable[..., Any]) -> Any:
    """A hook with a single method."""
    return type("Single", (), {method: staticmethod(answer)})()


def seg(region: tuple[int, int, int, int]) -> adt.SEG:
    x1, y1, x2, y2 = region
    mask = np.zeros((y2 - y1, x2 - x1), np.float32)
    mask[4:-4, 4:-4] = 1
    return adt.SEG(None, mask, 1.0, region, region, "face")


def detail(pipe: adt.BasicPipe, hook: Any = None, *, segments: int = 1, **changes: Any) -> Tensor:
    segs = (32, 48), [seg((0, 0, 24, 20)), seg((20, 8, 48, 32))][:segments]
    arguments = {"guide_size": 30, "max_size": 64, "seed": SEED, "steps": 2, "cfg": 3.0, "denoise": 0.6, "feather": 2}
    arguments |= {"noise_mask_feather": 3, "reference_mode": False, "basic_pipe": pipe}
    image, *_ = adt.DetailerForEachPipeForAnimateDiff.doit(FRAMES, segs, **arguments | changes, detailer_hook=hook)
    return image


@pytest.fixture(scope="module")
def plain(pipe: adt.BasicPipe) -> Tensor:
    """One segment detailed without a hook."""
    return detail(pipe)


def test_the_order_of_calls_for_each_segment(pipe: adt.BasicPipe) -> None:
    hook = Recorder()
    detail(pipe, hook, segments=2)
    assert [name for name, _, _ in hook.calls] == [*METHODS, *METHODS]


def test_what_each_method_is_given(pipe: adt.BasicPipe) -> None:
    """A crop of 24x20 whose short side is enlarged to 30: 36x30, rounded to 40x32, latents of 5x4."""
    hook = Recorder()
    detail(pipe, hook)
    calls = {name: (args, options) for name, args, options in hook.calls}
    assert calls["touch_scaled_size"][0] == (40, 32)
    for method, shape in (
        ("post_upscale", (2, 32, 40, 3)),
        ("post_decode", (2, 32, 40, 3)),
        ("post_paste", FRAMES.shape),
    ):
        [pixels], _ = calls[method]
        assert pixels.shape == shape
        assert pixels.dtype == torch.float32
        assert pixels.min() >= -1e-6  # a blurred mask may exceed 1 by a rounding, and pixels then leave 0..1
        assert 0.5 < pixels.max() <= 1 + 1e-6
    for method in ("post_encode", "cycle_latent", "pre_decode"):
        [latent], _ = calls[method]
        assert latent["samples"].shape == (2, 4, 4, 5)
        assert latent["noise_mask"].shape == (1, 32, 40)
        assert latent["samples"].dtype == latent["noise_mask"].dtype == torch.float32
    assert calls["set_steps"] == (((0, 1),), {})
    (model, *settings, positive, negative, latent, denoise), _ = calls["pre_ksample"]
    assert model is pipe.model
    assert (*settings, denoise) == (SEED, 2, 3.0, "euler", "simple", 0.6)
    assert positive[0][0] is pipe.positive[0][0]  # type: ignore[index]
    assert negative[0][0] is pipe.negative[0][0]  # type: ignore[index]
    assert set(latent) == {"samples", "noise_mask"}
    (seed, noise), options = calls["get_custom_noise"]
    assert (seed, options) == (SEED, {"is_touched": False})
    assert noise.shape == (2, 4, 4, 5)
    assert not noise.any()


def test_a_hook_that_changes_nothing_changes_no_bit(pipe: adt.BasicPipe, plain: Tensor) -> None:
    assert torch.equal(detail(pipe, Identity()), plain)


def test_reference_mode_asks_for_post_paste_alone(pipe: adt.BasicPipe) -> None:
    hook = Recorder(post_paste=lambda frames: 1 - frames)
    image = detail(pipe, hook, segments=2, reference_mode=True)
    assert [name for name, _, _ in hook.calls] == ["post_paste", "post_paste"]
    corner = slice(None), slice(28, 32), slice(0, 8)  # of no segment, and inverted twice
    torch.testing.assert_close(image[corner], FRAMES[corner])


def test_a_larger_size_is_sampled_at(pipe: adt.BasicPipe) -> None:
    sizes = []

    class Sizes(Observer):
        def begin_segment(self, index: int, label: str, crop_size: Any, work_size: Any) -> None:
            sizes.append(work_size)

    hook = Recorder(touch_scaled_size=lambda w, h: (w + 16, h))
    detail(pipe, hook, observer=Sizes())
    assert sizes == [(56, 32)]
    assert hook.argument("post_encode")["samples"].shape == (2, 4, 4, 7)


def test_post_upscale_is_what_the_vae_sees(pipe: adt.BasicPipe, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []
    encode = type(pipe.vae).encode

    def spy(self: Any, pixels: Tensor) -> Tensor:
        seen.append(pixels.clone())
        return encode(self, pixels)

    monkeypatch.setattr(type(pipe.vae), "encode", spy)
    detail(pipe, one("post_upscale", lambda pixels: torch.full_like(pixels, 0.25)))
    assert [tuple(pixels.unique().tolist()) for pixels in seen] == [(pytest.approx(2 * 63 / 255 - 1),)]


@pytest.mark.parametrize("method", ["post_encode", "cycle_latent"])
def test_a_latent_is_what_sampling_starts_from(pipe: adt.BasicPipe, plain: Tensor, method: str) -> None:
    """Black latents under an empty mask: nothing is painted, so they are what is decoded. Changed in place, too."""

    def blacken(latent: dict[str, Tensor]) -> dict[str, Tensor]:
        latent["samples"].zero_()
        return {"samples": latent["samples"], "noise_mask": torch.zeros(2, 32, 40)}

    hook = Recorder(**{method: blacken})
    assert not torch.equal(detail(pipe, hook), plain)
    assert not hook.argument("pre_decode")["samples"].any()


def test_a_noise_mask_that_does_not_come_back_stays(pipe: adt.BasicPipe, plain: Tensor) -> None:
    image = detail(pipe, one("post_encode", lambda latent: {"samples": latent["samples"]}))
    assert torch.equal(image, plain)


def test_pre_ksample_changes_the_run(pipe: adt.BasicPipe) -> None:
    other = [[torch.randn(1, 77, 64, generator=torch.Generator().manual_seed(9)), {}]]

    def change(model: Any, seed: int, steps: int, cfg: float, *rest: Any) -> Any:
        assert rest[:2] == ("euler", "simple")
        return model, 7, 3, 2.0, "heun", "karras", other, rest[3], None, 0.5

    expected = detail(
        pipe.with_conditioning(positive=other), seed=7, steps=3, cfg=2.0, sampler_name="heun", scheduler="karras",
        denoise=0.5,
    )  # fmt: skip
    assert torch.equal(detail(pipe, one("pre_ksample", change)), expected)


def test_pre_ksample_changes_the_model(pipe: adt.BasicPipe, plain: Tensor) -> None:
    """A model of other noise levels, as ComfyUI's model patches make them."""
    from animdetail_trt.sampling.model_sampling import ModelSampling

    other = replace(pipe.model, model_sampling=ModelSampling("sqrt_linear"))
    image = detail(pipe, one("pre_ksample", lambda model, *rest: (other, *rest)))
    assert torch.equal(image, detail(pipe._replace(model=other)))
    assert not torch.equal(image, plain)


def test_custom_noise_takes_the_place_of_the_seeds(pipe: adt.BasicPipe, plain: Tensor) -> None:
    def of_seed(seed: int, touched: bool) -> Any:
        return one("get_custom_noise", lambda _, noise, is_touched: (initial_noise(noise.shape, seed), touched))

    assert torch.equal(detail(pipe, of_seed(SEED, True)), plain)
    other = detail(pipe, seed=11)
    assert not torch.equal(other, plain)
    assert torch.equal(detail(pipe, of_seed(11, True)), other)
    assert torch.equal(detail(pipe, of_seed(11, False)), plain)
    refined = {"refiner_basic_pipe_opt": pipe, "refiner_ratio": 0.5}
    assert torch.equal(detail(pipe, of_seed(11, True), **refined), detail(pipe, seed=11, **refined))


def test_pre_decode_is_what_is_decoded(pipe: adt.BasicPipe) -> None:
    hook = Recorder(pre_decode=lambda latent: {"samples": torch.zeros_like(latent["samples"])})
    detail(pipe, hook)
    decoded = ((pipe.vae.decode(torch.zeros(2, 4, 4, 5)) + 1) / 2).clamp(0, 1).permute(0, 2, 3, 1)
    torch.testing.assert_close(hook.argument("post_decode"), decoded)


@pytest.mark.parametrize("size", [(32, 40), (9, 7)])
def test_post_decode_is_what_is_pasted(pipe: adt.BasicPipe, size: tuple[int, int]) -> None:
    """Of any height and width; NumPy will do."""
    image = detail(pipe, one("post_decode", lambda _: np.full((2, *size, 3), 0.2, np.float64)), feather=0)
    assert torch.equal(image[:, 4:16, 4:20], torch.full((2, 12, 16, 3), 51 / 255))


def test_post_paste_replaces_the_frames(pipe: adt.BasicPipe, plain: Tensor) -> None:
    image = detail(pipe, one("post_paste", lambda frames: frames * 0.5))
    assert torch.equal(image, plain * 0.5)


NAN = float("nan")
LATENT = torch.zeros(2, 4, 4, 5)
BAD: list[tuple[str, Callable[..., Any], str]] = [
    ("touch_scaled_size", lambda w, h: None, r"returned NoneType; it must return \(w, h\)"),
    ("touch_scaled_size", lambda w, h: (w, 4), r"returned \(40, 4\)"),
    ("touch_scaled_size", lambda w, h: (w, 40.5), "whole numbers from 8 to 16384"),
    ("touch_scaled_size", lambda w, h: (10**6, h), "whole numbers from 8 to 16384"),
    ("touch_scaled_size", lambda w, h: w, "returned 40;"),
    ("post_upscale", lambda x: None, r"returned NoneType; it must return \(2, 32, 40, 3\) of floats"),
    ("post_upscale", lambda x: x[:1], r"returned Tensor \(1, 32, 40, 3\) of torch.float32"),
    ("post_upscale", lambda x: (x * 255).to(torch.uint8), "of torch.uint8; it must return .* of floats"),
    ("post_upscale", lambda x: x * NAN, "returned NaN or infinity"),
    ("post_encode", lambda x: x["samples"], "it must return a latent"),
    ("post_encode", lambda x: {"noise_mask": x["noise_mask"]}, "returned dict; it must return a latent"),
    ("post_encode", lambda x: {"samples": x["samples"].repeat(2, 1, 1, 1)}, r"\(4, 4, 4, 5\).*samples \(2, 4, 4, 5\)"),
    ("post_encode", lambda x: {"samples": LATENT / 0}, "returned NaN or infinity"),
    ("post_encode", lambda x: x | {"noise_mask": torch.ones(3, 8, 8)}, r"noise_mask \(1 or 2, h, w\)"),
    ("post_encode", lambda x: x | {"noise_mask": None}, "returned NoneType; it must return noise_mask"),
    ("cycle_latent", lambda x: None, "returned NoneType; it must return a latent"),
    ("pre_ksample", lambda *x: None, "returned NoneType; it must return the ten values"),
    ("pre_ksample", lambda *x: x[:9], "must return the ten values"),
    ("pre_ksample", lambda *x: ("model", *x[1:]), "returned 'model'; it must return as its model one from load_pipe"),
    ("pre_ksample", lambda *x: (*x[:2], 0, *x[3:]), "cannot be sampled: steps 0 must be at least 1"),
    ("pre_ksample", lambda *x: (*x[:4], "eular", *x[5:]), "cannot be sampled: unknown sampler 'eular'"),
    ("pre_ksample", lambda *x: (*x[:6], None, *x[7:]), "cannot be sampled: positive conditioning is empty"),
    ("pre_ksample", lambda *x: (*x[:7], [[torch.ones(1, 77, 8), {}]], *x[8:]), "negative conditioning has 8 channels"),
    ("get_custom_noise", lambda seed, noise, is_touched: noise, r"it must return \(noise, is_touched\)"),
    ("get_custom_noise", lambda seed, noise, is_touched: (None, True), r"must return \(2, 4, 4, 5\) of floats"),
    ("get_custom_noise", lambda seed, noise, is_touched: (noise[:1], True), r"returned Tensor \(1, 4, 4, 5\)"),
    ("pre_decode", lambda x: {"samples": x["samples"] * NAN}, "returned NaN or infinity"),
    ("pre_decode", lambda x: {"samples": x["samples"][:1]}, r"returned Tensor \(1, 4, 4, 5\)"),
    ("post_decode", lambda x: x[..., :2], r"must return \(2, h, w, 3\) of floats"),
    ("post_decode", lambda x: x[:, :0], r"must return \(2, h, w, 3\) of floats"),
    ("post_decode", lambda x: "pixels", "returned 'pixels'"),
    ("post_paste", lambda x: None, r"returned NoneType; it must return \(2, 32, 48, 3\) of floats"),
    ("post_paste", lambda x: x * NAN, "returned NaN or infinity"),
    ("post_paste", lambda x: x[:, :8], r"returned Tensor \(2, 8, 48, 3\)"),
]  # fmt: skip


@pytest.mark.parametrize(("method", "answer", "words"), BAD)
def test_a_wrong_answer_names_the_hook_and_the_method(
    pipe: adt.BasicPipe, method: str, answer: Callable[..., Any], words: str
) -> None:
    with pytest.raises(InputError, match=rf"detailer_hook Single: {method} returned .*") as caught:
        detail(pipe, one(method, answer))
    caught.match(words)


def test_a_hook_with_no_method_of_a_hooks(pipe: adt.BasicPipe) -> None:
    with pytest.raises(InputError, match="must have one of touch_scaled_size, .*, and object has not"):
        detail(pipe, object())
    with pytest.raises(InputError, match=r"must have post_paste\(frames\), and Single has not"):
        detail(pipe, one("post_encode", lambda latent: latent), reference_mode=True)
