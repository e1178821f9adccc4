"""ControlNet (Zhang, Rao & Agrawala 2023, arXiv:2302.05543): pictures that steer the UNet.

What a ControlNet makes of the noised latents and a picture, its residuals, is added to the UNet's skips. What happens
to strength, percentages and chains is ComfyUI's and Advanced-ControlNet's, at its defaults.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor

from animdetail_trt.backends.interface import ControlRunner
from animdetail_trt.checks import is_finite, is_part
from animdetail_trt.errors import InputError
from animdetail_trt.geometry import PIXELS_PER_LATENT
from animdetail_trt.sampling.context import frames_of


@dataclass(frozen=True, eq=False)
class Control:
    """What one conditioning entry is steered by.

    hint: the pictures (n, h, w, 3) in 0..1, one for every frame of the clip; the last one holds for frames beyond
    strength: of the residuals; start_percent, end_percent: the part of the noise schedule that it acts in
    previous: another Control, whose residuals are added
    """

    control_net: ControlRunner
    hint: Tensor
    strength: float = 1.0
    start_percent: float = 0.0
    end_percent: float = 1.0
    previous: Control | None = None
    _hints: dict[tuple[int, int], Tensor] = field(default_factory=dict, init=False, repr=False)

    def hints(self, height: int, width: int) -> Tensor:
        """The pictures (n, 3, height, width) where the ControlNet runs, resized once for every size."""
        if (height, width) not in self._hints:
            self._hints[height, width] = resize_hint(self.hint.to(self.control_net.device), height, width)
        return self._hints[height, width]


def resize_hint(hint: Tensor, height: int, width: int) -> Tensor:
    """(n, h, w, 3) cropped around its middle to the new aspect, each pixel then the nearest: (n, 3, height, width).

    Of a strip, one pixel is left, where the reference's crop is empty.
    """
    old_height, old_width = hint.shape[1:3]
    old_aspect, aspect = old_width / old_height, width / height
    left = top = 0
    if old_aspect > aspect:
        left = min(round((old_width - old_width * (aspect / old_aspect)) / 2), (old_width - 1) // 2)
    elif old_aspect < aspect:
        top = min(round((old_height - old_height * (old_aspect / aspect)) / 2), (old_height - 1) // 2)
    cropped = hint[:, top : old_height - top, left : old_width - left].movedim(-1, 1)
    return F.interpolate(cropped.float(), size=(height, width), mode="nearest-exact")


def control_residuals(
    control: Control,
    latents: Tensor,
    timestep: float,
    sigma: float,
    percent_to_sigma: Callable[[float], float],
    tokens: Tensor,
    frames: Sequence[int] | None = None,
) -> list[Tensor] | None:
    """What is added to the UNet's skips and middle at this sigma; None where nothing is.

    latents: (b, f, 4, lh, lw) as the UNet is given them, divided by sqrt(sigma^2 + 1)
    tokens: prompts (b, 1 or f, n, d)
    frames: the numbers in the clip of the f frames; by default the first f

    Returns 13 tensors (b * f, c, h, w) for SD 1.5: those of the skips in the order of the down blocks, then the middle.
    """
    earlier = None
    if control.previous is not None:
        earlier = control_residuals(control.previous, latents, timestep, sigma, percent_to_sigma, tokens, frames)
    first, last = percent_to_sigma(control.start_percent), percent_to_sigma(control.end_percent)
    # Both sides as float32, in which the reference compares them: a start may be meant to fall on a step.
    if control.strength == 0 or not np.float32(last) <= np.float32(sigma) <= np.float32(first):
        return earlier
    hints = control.hints(PIXELS_PER_LATENT * latents.shape[3], PIXELS_PER_LATENT * latents.shape[4])
    if len(hints) > 1:
        numbers = range(latents.shape[1]) if frames is None else frames
        hints = frames_of(hints, [min(number, len(hints) - 1) for number in numbers])
    residuals = control.control_net(latents, timestep, tokens, hints)
    if control.control_net.global_average_pooling:
        residuals = [residual.mean(dim=(2, 3), keepdim=True).expand_as(residual) for residual in residuals]
    residuals = [residual * control.strength for residual in residuals]
    if earlier is None:
        return residuals
    return [before + own for before, own in zip(earlier, residuals, strict=True)]


class ControlNetWrapper:
    """A ControlNet for a segment, to be placed on a SEG as ``control_net_wrapper``, as the Impact Pack does.

    control_net: from ``load_controlnet``
    strength: of its residuals; start_percent, end_percent: the part of the noise schedule that it acts in,
        0 <= start_percent <= end_percent <= 1
    control_image: float32 (n, h, w, 3) in 0..1, one picture for all frames or one for each, that shows the segment's
        crop; by default the crops themselves
    previous: another wrapper, which acts as well
    preprocessor: its ``apply(image, mask)`` makes the pictures of the crops, where there is no control_image
    """

    def __init__(
        self,
        control_net: ControlRunner,
        strength: float,
        start_percent: float = 0.0,
        end_percent: float = 1.0,
        control_image: Any = None,
        previous: ControlNetWrapper | None = None,
        preprocessor: Any = None,
    ) -> None:
        if not hasattr(control_net, "global_average_pooling"):
            raise InputError(f"control_net must come from load_controlnet, not {control_net!r:.80}")
        if not is_finite(strength):
            raise InputError(f"strength must be a finite number, not {strength!r:.80}")
        if not is_part(start_percent, end_percent):
            raise InputError(
                f"start_percent {start_percent!r:.80} and end_percent {end_percent!r:.80} must be numbers from 0 to 1, "
                "the start first: the ControlNet acts between them"
            )
        if previous is not None and not hasattr(previous, "apply"):
            raise InputError(f"previous must be a ControlNetWrapper, not {previous!r:.80}")
        if preprocessor is not None and not hasattr(preprocessor, "apply"):
            raise InputError(f"preprocessor must have apply(image, mask): {preprocessor!r:.80}")
        self.control_net = control_net
        self.strength = float(strength)
        self.start_percent = float(start_percent)
        self.end_percent = float(end_percent)
        self.control_image = None if control_image is None else _pictures(control_image, "control_image")
        self.previous = previous
        self.preprocessor = preprocessor

    def apply(
        self, positive: Any, negative: Any, image: Any, noise_mask: Any = None, use_acn: bool = False
    ) -> tuple[Any, Any, list[Tensor]]:
        """Return (positive, negative, cnet_images): conditioning whose entries carry a Control besides, and the
        pictures used, those of ``previous`` first.

        image: the segment's crops, float32 (f, h, w, 3) in 0..1; noise_mask: its mask, for the preprocessor
        use_acn: as published; Advanced-ControlNet's way is taken in either case
        """
        images: list[Tensor] = []
        if self.previous is not None:
            positive, negative, images = self.previous.apply(positive, negative, image, noise_mask, use_acn=use_acn)
        picture = self._picture(image, noise_mask)
        images = [*images, picture]
        if self.strength == 0:
            return positive, negative, images
        made: dict[int, Control] = {}  # entries with the same Control before share the new one

        def controlled(conditioning: Any) -> Any:
            try:
                given = [(tokens, dict(extras)) for tokens, extras in conditioning]
            except (TypeError, ValueError):
                raise InputError(f"conditioning must be [[tensor, {{}}], ...], not {conditioning!r:.80}") from None
            entries = []
            for tokens, extras in given:
                before = extras.get("control")
                if id(before) not in made:
                    made[id(before)] = Control(
                        self.control_net, picture, self.strength, self.start_percent, self.end_percent, before
                    )
                entries.append([tokens, extras | {"control": made[id(before)]}])
            return entries

        return controlled(positive), controlled(negative), images

    def _picture(self, image: Any, noise_mask: Any) -> Tensor:
        if self.control_image is not None:
            return self.control_image
        if self.preprocessor is not None:
            return _pictures(self.preprocessor.apply(image, noise_mask), "the preprocessor's picture")
        return _pictures(image, "image")


def check_wrapper(wrapper: Any, token_dim: int, name: str) -> None:
    """Raise unless a SEG's control_net_wrapper is one, or None, and its ControlNets read tokens of ``token_dim``."""
    if wrapper is not None and not callable(getattr(wrapper, "apply", None)):
        raise InputError(f"{name}: control_net_wrapper must be a ControlNetWrapper, not {type(wrapper).__name__}")
    while isinstance(wrapper, ControlNetWrapper):
        if wrapper.control_net.token_dim != token_dim:
            raise InputError(
                f"{name}: its ControlNet reads tokens of {wrapper.control_net.token_dim} channels, and the UNet of "
                f"{token_dim}. Choose a ControlNet for Stable Diffusion 1.5"
            )
        wrapper = wrapper.previous


def shows_own_pictures(wrapper: Any) -> bool:
    """Whether any ControlNet of the chain, of this package or the Impact Pack's, is shown other pictures than the
    crops."""
    while wrapper is not None:
        if getattr(wrapper, "control_image", None) is not None:
            return True
        wrapper = getattr(wrapper, "previous", None) or getattr(wrapper, "prev_control_net", None)
    return False


def _pictures(value: Any, name: str) -> Tensor:
    if isinstance(value, np.ndarray):
        value = np.array(value)  # torch reads neither backwards nor what is read-only
    try:
        pictures = torch.as_tensor(value)
    except (TypeError, ValueError, RuntimeError):
        raise InputError(f"{name} must be an array (n, h, w, 3), not {type(value).__name__}") from None
    if pictures.ndim != 4 or pictures.shape[3] != 3 or 0 in pictures.shape or not pictures.is_floating_point():
        raise InputError(
            f"{name} must be floats (n, h, w, 3) in 0..1, not {pictures.dtype} {tuple(pictures.shape)}. "
            "Divide 8-bit values by 255"
        )
    if not torch.isfinite(pictures).all():
        raise InputError(f"{name} holds NaN or infinity")
    return pictures.float()
