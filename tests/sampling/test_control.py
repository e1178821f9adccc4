"""ControlNet while sampling: when it acts, on which pictures, how strongly, in chains; and the wrapper on a SEG."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

import animdetail_trt as adt
from animdetail_trt.detailer.improvements import Improvements
from animdetail_trt.detailer.plan import SizeSettings, plan_segments
from animdetail_trt.errors import InputError
from animdetail_trt.sampling import control as control_module
from animdetail_trt.sampling.control import Control, control_residuals, resize_hint
from animdetail_trt.sampling.model_sampling import ModelSampling

LEVELS = ModelSampling("linear")
LATENTS = torch.zeros(2, 3, 4, 8, 8)
TOKENS = torch.zeros(2, 1, 77, 64)


class Network:
    """Its one residual is the mean of each frame's hint, left and right half apart."""

    device = torch.device("cpu")
    token_dim = 64

    def __init__(self, *, global_average_pooling: bool = False) -> None:
        self.global_average_pooling = global_average_pooling
        self.calls: list[tuple[Tensor, float, Tensor, Tensor]] = []

    def __call__(self, latents: Tensor, timestep: float, tokens: Tensor, hints: Tensor) -> list[Tensor]:
        self.calls.append((latents, timestep, tokens, hints))
        batch, frames = latents.shape[:2]
        means = torch.stack([half.mean(dim=(1, 2, 3)) for half in hints.chunk(2, dim=3)], dim=1)  # (1 or f, 2)
        return [means.expand(frames, 2).repeat(batch, 1).view(-1, 1, 1, 2)]


def hint(*values: float, size: int = 64) -> Tensor:
    return torch.tensor(values).view(-1, 1, 1, 1).expand(-1, size, size, 3)


def run(control: Control, sigma: float = 3.0, frames: Sequence[int] | None = None) -> list[float] | None:
    """The one residual of each frame of the first prompt."""
    found = control_residuals(control, LATENTS, 500.0, sigma, LEVELS.percent_to_sigma, TOKENS, frames)
    if found is None:
        return None
    (residual,) = found
    assert residual.shape == (6, 1, 1, 2)
    assert torch.equal(residual[:3], residual[3:])
    return residual[:3, 0, 0, 0].tolist()


def test_the_network_is_given_what_the_unet_is() -> None:
    network = Network()
    assert run(Control(network, hint(0.25, 0.5, 0.75))) == [0.25, 0.5, 0.75]
    ((latents, timestep, tokens, hints),) = network.calls
    assert latents is LATENTS
    assert tokens is TOKENS
    assert timestep == 500.0
    assert hints.shape == (3, 3, 64, 64)


def test_it_acts_between_its_percentages_and_on_them() -> None:
    control = Control(Network(), hint(1.0), start_percent=0.4, end_percent=0.7)
    start, end = LEVELS.percent_to_sigma(0.4), LEVELS.percent_to_sigma(0.7)
    assert run(control, start * 1.0001) is None
    assert run(control, end * 0.9999) is None
    for sigma in (start, (start + end) / 2, end):
        assert run(control, sigma) == [1.0, 1.0, 1.0]
    # A sigma that came through float32 is still the same point of the schedule.
    for sigma in (float(np.float32(start)), float(np.float32(end))):
        assert run(control, sigma) is not None


def test_by_default_it_always_acts() -> None:
    for sigma in (1e4, LEVELS.sigma_max, LEVELS.sigma_min, 0.0):
        assert run(Control(Network(), hint(1.0)), sigma) is not None


def test_strength_multiplies() -> None:
    assert run(Control(Network(), hint(0.5, 0.25, 1.0), strength=2.0)) == [1.0, 0.5, 2.0]
    assert run(Control(Network(), hint(0.5), strength=0.0)) is None


def test_a_chain_adds_up() -> None:
    first = Control(Network(), hint(0.5), strength=0.5)
    second = Control(Network(), hint(1.0), start_percent=0.5, previous=first)
    assert run(second, LEVELS.percent_to_sigma(0.8)) == [1.25, 1.25, 1.25]
    assert run(second, LEVELS.percent_to_sigma(0.2)) == [0.25, 0.25, 0.25]  # the second has not begun


def test_a_window_sees_its_own_frames() -> None:
    control = Control(Network(), hint(0.0, 0.125, 0.25, 0.5, 1.0))
    assert run(control, frames=[3, 4, 0]) == [0.5, 1.0, 0.0]
    assert run(control, frames=range(1, 4)) == [0.125, 0.25, 0.5]
    assert run(control) == [0.0, 0.125, 0.25]


def test_pictures_that_are_too_few_hold() -> None:
    assert run(Control(Network(), hint(0.25))) == [0.25, 0.25, 0.25]
    assert run(Control(Network(), hint(0.25, 0.5))) == [0.25, 0.5, 0.5]
    assert run(Control(Network(), hint(0.25, 0.5)), frames=[4, 1, 0]) == [0.5, 0.5, 0.25]


def test_pooling_takes_the_mean_over_the_picture() -> None:
    picture = torch.zeros(1, 64, 64, 3)
    picture[:, :, 32:] = 1
    for pooled, expected in ((False, [0.0, 1.0]), (True, [0.5, 0.5])):
        control = Control(Network(global_average_pooling=pooled), picture)
        (residual,) = control_residuals(control, LATENTS, 500.0, 3.0, LEVELS.percent_to_sigma, TOKENS) or []
        assert residual[0, 0, 0].tolist() == expected


def test_pictures_are_resized_once(monkeypatch: pytest.MonkeyPatch) -> None:
    sizes = []
    monkeypatch.setattr(control_module, "resize_hint", lambda h, *size: sizes.append(size) or resize_hint(h, *size))
    control = Control(Network(), hint(0.25, 0.5, 0.75, size=50))
    for frames in ([0, 1, 2], [2, 1, 0]):
        run(control, frames=frames)
    assert sizes == [(64, 64)]


def test_a_picture_is_cut_to_the_aspect_around_its_middle() -> None:
    columns = torch.arange(16.0).view(1, 1, 16, 1).expand(1, 8, 16, 3)
    assert resize_hint(columns, 8, 8)[0, 0, 0].tolist() == list(range(4, 12))
    assert resize_hint(columns.transpose(1, 2), 8, 8)[0, 0, :, 0].tolist() == list(range(4, 12))
    assert resize_hint(columns, 8, 16)[0, 0, 0].tolist() == list(range(16))
    # Odd leftovers: (52, 48) to 8 x (13, 11), so 41 of 48 columns, of which round(3.69) go on either side.
    wide = torch.arange(48.0).view(1, 1, 48, 1).expand(1, 52, 48, 3)
    assert resize_hint(wide, 104, 88)[0, 0, 0, [0, -1]].tolist() == [2.0, 45.0]


def test_a_pixel_is_the_nearest() -> None:
    pixels = torch.rand(2, 5, 5, 3, generator=torch.Generator().manual_seed(0))
    doubled = pixels.repeat_interleave(2, dim=1).repeat_interleave(2, dim=2)
    assert torch.equal(resize_hint(pixels, 10, 10), doubled.movedim(-1, 1))


# The wrapper.


def entries(*extras: dict[str, Any]) -> list[list[Any]]:
    return [[torch.zeros(1, 77, 64), dict(extra)] for extra in extras]


def test_the_wrapper_gives_both_sides_the_same_control() -> None:
    crops = torch.rand(3, 10, 12, 3)
    positive, negative = entries({}, {"mask": 1}), entries({})
    network = Network()
    new_positive, new_negative, images = adt.ControlNetWrapper(network, 0.7, 0.1, 0.6).apply(positive, negative, crops)
    made = {id(extras["control"]) for _, extras in new_positive + new_negative}
    assert len(made) == 1
    control = new_positive[0][1]["control"]
    assert (control.strength, control.start_percent, control.end_percent) == (0.7, 0.1, 0.6)
    assert control.control_net is network
    assert control.previous is None
    assert torch.equal(control.hint, crops)
    assert new_positive[1][1]["mask"] == 1
    assert len(images) == 1
    assert torch.equal(images[0], crops)
    assert positive[0][1] == {}, "the pipe's conditioning was changed"


def test_wrappers_chain() -> None:
    """The pictures of the first come first; every entry carries the whole chain."""
    picture = torch.rand(1, 20, 20, 3)
    first = adt.ControlNetWrapper(Network(), 0.5, control_image=picture.numpy())
    second = adt.ControlNetWrapper(Network(), 0.25, previous=first)
    crops = torch.rand(3, 10, 12, 3)
    positive, _, images = second.apply(entries({}), entries({}), crops, use_acn=True)
    control = positive[0][1]["control"]
    assert (control.strength, control.previous.strength) == (0.25, 0.5)
    assert [tuple(image.shape) for image in images] == [(1, 20, 20, 3), (3, 10, 12, 3)]
    assert torch.equal(control.previous.hint, picture)


def test_an_entry_that_is_steered_already_stays_so() -> None:
    own = Control(Network(), hint(1.0))
    positive, *_ = adt.ControlNetWrapper(Network(), 0.5).apply(entries({"control": own}, {}), [], hint(1.0))
    assert positive[0][1]["control"].previous is own
    assert positive[1][1]["control"].previous is None


def test_without_strength_only_the_pictures_come() -> None:
    positive, negative, images = adt.ControlNetWrapper(Network(), 0.0).apply(entries({}), entries({}), hint(1.0))
    assert positive[0][1] == {}
    assert negative[0][1] == {}
    assert len(images) == 1


def test_a_preprocessor_makes_the_pictures() -> None:
    class Invert:
        def apply(self, image: Tensor, mask: Any) -> Tensor:
            return 1 - image * mask

    wrapper = adt.ControlNetWrapper(Network(), 1.0, preprocessor=Invert())
    positive, _, images = wrapper.apply(entries({}), [], hint(0.25, 0.5), 0.5)
    assert images[0][:, 0, 0, 0].tolist() == [0.875, 0.75]
    assert positive[0][1]["control"].hint is images[0]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"control_net": "canny.safetensors"}, "control_net must come from load_controlnet"),
        ({"strength": "1"}, "strength must be a finite number"),
        ({"end_percent": math.nan}, "start_percent 0.0 and end_percent nan must be numbers from 0 to 1"),
        ({"start_percent": "0"}, "start_percent '0' and end_percent 1.0"),
        ({"start_percent": 2}, "start_percent 2 and end_percent 1.0"),
        ({"end_percent": -1}, "start_percent 0.0 and end_percent -1"),
        ({"end_percent": 1.5}, "end_percent 1.5"),
        (
            {"start_percent": 0.8, "end_percent": 0.2},
            "start_percent 0.8 and end_percent 0.2 must be .* the start first",
        ),
        ({"control_image": torch.zeros(3, 8, 8)}, r"control_image must be floats \(n, h, w, 3\)"),
        ({"control_image": np.zeros((1, 8, 8, 3), np.uint8)}, r"control_image must be floats \(n, h, w, 3\)"),
        ({"control_image": torch.full((1, 8, 8, 3), math.nan)}, "control_image holds NaN"),
        ({"previous": 3}, "previous must be a ControlNetWrapper"),
        ({"strength": 10**400}, "strength must be a finite number"),
        ({"preprocessor": "canny"}, r"preprocessor must have apply\(image, mask\)"),
    ],
)
def test_bad_wrappers_are_named(arguments: dict[str, Any], words: str) -> None:
    with pytest.raises(InputError, match=words):
        adt.ControlNetWrapper(**({"control_net": Network(), "strength": 1.0} | arguments))


@pytest.mark.parametrize("conditioning", [None, 5, "x", [["tokens"]], [["tokens", None]]])
def test_a_bad_conditioning_is_named(conditioning: Any) -> None:
    with pytest.raises(InputError, match=r"conditioning must be \[\[tensor, \{\}\], ...\]"):
        adt.ControlNetWrapper(Network(), 1.0).apply(conditioning, [], hint(0.25))


def test_backward_and_read_only_pictures_are_read() -> None:
    picture = np.linspace(0, 1, 48, dtype=np.float32).reshape(1, 4, 4, 3)
    picture.flags.writeable = False
    wrapper = adt.ControlNetWrapper(Network(), 1.0, control_image=picture[:, ::-1])
    assert torch.equal(wrapper.control_image, torch.from_numpy(picture.copy()).flip(1))


@pytest.mark.parametrize("shape", [(1, 1, 300, 3), (1, 300, 1, 3)])
def test_of_a_strip_one_pixel_is_left(shape: tuple[int, ...]) -> None:
    assert resize_hint(torch.rand(shape), 64, 64).shape == (1, 3, 64, 64)


# In the detailer.


def detail(pipe: adt.BasicPipe, wrapper: Any, **options: Any) -> tuple[Tensor, list[Tensor]]:
    frames = torch.rand(2, 64, 64, 3, generator=torch.Generator().manual_seed(0))
    seg = adt.SEG(None, np.ones((32, 32), np.float32), 1.0, (8, 8, 40, 40), (8, 8, 40, 40), "face", wrapper)
    (_, (seg,)), images = adt.SEGSDetailerForAnimateDiff.doit(
        frames, ((64, 64), [seg]), guide_size=64, steps=2, basic_pipe=pipe, noise_mask_feather=0, **options
    )
    return torch.from_numpy(seg.cropped_image), images


@pytest.fixture(scope="module")
def network(tiny: Path) -> Any:
    return adt.load_controlnet(tiny / "tiny_controlnet.safetensors", device="cpu", dtype="float32")


def test_segs_detailer_is_steered_too(pipe: adt.BasicPipe, network: Any) -> None:
    plain, none = detail(pipe, None)
    steered, images = detail(pipe, adt.ControlNetWrapper(network, 1.0))
    still, _ = detail(pipe, adt.ControlNetWrapper(network, 0.0))
    assert [tuple(image.shape) for image in images] == [(2, 32, 32, 3)]
    assert [tuple(image.shape) for image in none] == [(1, 64, 64, 3)]
    assert not torch.allclose(plain, steered, atol=1e-2)
    assert torch.equal(plain, still)


def test_the_refiner_is_not_steered(pipe: adt.BasicPipe, network: Any) -> None:
    """As in the reference: with a refiner for all steps nothing is left of the ControlNet."""
    refined = {"refiner_basic_pipe_opt": pipe, "refiner_ratio": 1.0}
    plain, _ = detail(pipe, None, **refined)
    steered, _ = detail(pipe, adt.ControlNetWrapper(network, 1.0), **refined)
    assert torch.equal(plain, steered)


def test_what_does_not_fit_is_named_before_any_work(pipe: adt.BasicPipe) -> None:
    with pytest.raises(InputError, match="segment 0: control_net_wrapper must be a ControlNetWrapper, not str"):
        detail(pipe, "canny")
    wide = Network()
    wide.token_dim = 1024
    wrapper = adt.ControlNetWrapper(Network(), 1.0, previous=adt.ControlNetWrapper(wide, 1.0))
    with pytest.raises(InputError, match="reads tokens of 1024 channels, and the UNet of 64"):
        detail(pipe, wrapper)


def test_a_crop_with_a_picture_of_its_own_does_not_follow(network: Any) -> None:
    """The picture shows the whole crop_region, not the window that would move in it."""
    masks = np.zeros((4, 64, 96), np.float32)
    for frame in range(4):
        masks[frame, 20:44, 8 + 16 * frame : 32 + 16 * frame] = 1
    region = (0, 0, 96, 64)
    tracks = []
    for picture in (None, torch.rand(1, 64, 96, 3)):
        wrapper = adt.ControlNetWrapper(network, 1.0, control_image=picture)
        seg = adt.SEG(None, masks, 1.0, region, (8, 20, 80, 44), "face", wrapper)
        (plan,) = plan_segments(((64, 96), [seg]), (64, 96), 4, SizeSettings(64, True, 256), Improvements())
        tracks.append(plan.track)
    assert tracks[0] is not None
    assert tracks[1] is None
