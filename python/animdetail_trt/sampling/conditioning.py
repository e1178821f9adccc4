"""What a conditioning asks for: entries, each with the frames, pixels and noise levels that it holds for."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any, TypeAlias

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor

from animdetail_trt.checks import is_finite
from animdetail_trt.errors import InputError
from animdetail_trt.sampling.context import Window, frames_of, repeated
from animdetail_trt.sampling.control import Control
from animdetail_trt.sampling.model_sampling import ModelSampling

Conditioning: TypeAlias = list[list[Any]]
"""``[[tensor (1, tokens, dim), {extras}], ...]``, as ComfyUI has it; a first axis of f is one prompt per frame."""

Area: TypeAlias = tuple[int, int, int, int]
"""(height, width, top, left) in latent pixels."""

_APPLIED = {
    "strength",
    "mask",
    "mask_strength",
    "set_area_to_bounds",
    "area",
    "start_percent",
    "end_percent",
    "control",
}
# Of other models than SD 1.5, which reads nothing but the tokens; and what only says how control was made.
_WITHOUT_EFFECT = {"pooled_output", "width", "height", "crop_w", "crop_h", "target_width", "target_height"}
_WITHOUT_EFFECT |= {"aesthetic_score", "guidance", "control_apply_to_uncond"}


@dataclass(frozen=True)
class Entry:
    """One entry of a conditioning, ready for latents of one size.

    tokens: (1 or n, tokens, dim); strength: its share against other entries; area: None is the whole picture
    asked_area: the area before it was cut to the picture, where the two differ
    mask: (n, lh, lw) or None, its share pixel by pixel; first_sigma >= sigma >= last_sigma: when it holds
    """

    tokens: Tensor
    strength: float = 1.0
    mask: Tensor | None = None
    area: Area | None = None
    asked_area: Area | None = None
    first_sigma: float = math.inf
    last_sigma: float = 0.0
    control: Control | None = None

    @property
    def whole_area(self) -> Area | None:
        """The area as it was asked for, over the picture's edges too."""
        return self.area if self.asked_area is None else self.asked_area

    def holds_at(self, sigma: float) -> bool:
        return self.last_sigma <= sigma <= self.first_sigma

    def for_window(self, window: Window, frames: int) -> Entry:
        """This entry for some of a clip's ``frames`` frames: per-frame prompts and masks are cut to them, others repeat
        or are cut to their number."""
        tokens, mask = self.tokens, self.mask
        if len(tokens) > 1:
            tokens = frames_of(tokens, window) if len(tokens) == frames else repeated(tokens, len(window))
        if mask is not None:
            mask = frames_of(mask, window) if len(mask) == frames else repeated(mask, len(window))
        return replace(self, tokens=tokens, mask=mask)

    def share(self, height: int, width: int) -> Tensor:
        """Float32, broadcastable to (frames, 1, h, w) of the area: what its estimate counts there."""
        if self.mask is not None:
            return within(self.mask, self.area)[:, None] * self.strength
        if self.area is None:
            return torch.full((1, 1, 1, 1), self.strength, device=self.tokens.device)
        return _feathered(self.area, height, width, self.tokens.device)[None, None] * self.strength


def within(latents: Tensor, area: Area | None) -> Tensor:
    """The part (..., h, w) of ``latents`` (..., lh, lw) that an area covers."""
    if area is None:
        return latents
    height, width, top, left = area
    return latents[..., top : top + height, left : left + width]


def check_conditioning(
    conditioning: Conditioning | None, name: str, token_dim: int
) -> list[tuple[Tensor, dict[str, Any]]]:
    """The entries of a conditioning, each with its extras; InputError names what is wrong with one."""
    try:
        given = [] if conditioning is None else conditioning
        entries = [(torch.as_tensor(tokens), dict(extras)) for tokens, extras in given]
    except (TypeError, ValueError, RuntimeError):
        raise InputError(f"{name} conditioning must be [[tensor, {{}}]], not {conditioning!r:.80}") from None
    if not entries:
        raise InputError(f"{name} conditioning is empty. Give one with pipe.with_prompt or pipe.with_conditioning")
    for tokens, extras in entries:
        if tokens.ndim != 3 or not tokens.shape[0]:
            raise InputError(f"{name} conditioning must be (1, tokens, dim), not {tuple(tokens.shape)}")
        if not torch.isfinite(tokens).all():
            raise InputError(f"{name} conditioning holds NaN or infinity")
        if tokens.shape[2] != token_dim:
            raise InputError(
                f"{name} conditioning has {tokens.shape[2]} channels, its UNet reads {token_dim}. "
                "Encode the prompt with the pipe's own text encoder: pipe.with_prompt"
            )
        _check_extras(extras, name)
    return entries


def _check_extras(extras: dict[str, Any], name: str) -> None:
    unknown = sorted(map(str, set(extras) - _APPLIED - _WITHOUT_EFFECT))
    if unknown:
        raise InputError(f"{name} conditioning carries {', '.join(unknown)}, which this version does not apply")
    for key in ("strength", "mask_strength", "start_percent", "end_percent"):
        if key in extras and not is_finite(extras[key]):
            raise InputError(f"{name} conditioning: {key} {extras[key]!r:.80} must be a finite number")
    mask = extras.get("mask")
    if mask is not None:
        if not isinstance(mask, Tensor) or mask.ndim not in (2, 3) or not mask.numel():
            raise InputError(f"{name} conditioning: mask must be a tensor (n, h, w), not {_described(mask)}")
        if not torch.isfinite(mask).all():
            raise InputError(f"{name} conditioning: mask holds NaN or infinity")
    area = extras.get("area")
    if area is not None:
        numbers = list(area) if isinstance(area, Sequence) else []
        in_parts = bool(numbers) and numbers[0] == "percentage"
        numbers = numbers[in_parts:]
        if len(numbers) != 4 or not all(map(is_finite, numbers)) or min(numbers) < 0:
            raise InputError(f"{name} conditioning: area {area!r:.80} must be (height, width, top, left), 0 or more")
        if not in_parts and min(numbers[:2]) < 1:
            raise InputError(f"{name} conditioning: area {area!r:.80} must be at least 1 pixel of the latent")
    if not isinstance(extras.get("control"), Control | None):
        raise InputError(f"{name} conditioning: control {extras['control']!r:.80} is not this package's ControlNet")


def _described(value: Any) -> str:
    return str(tuple(value.shape)) if isinstance(value, Tensor) else f"{value!r:.80}"


def resolve(
    conditioning: Conditioning | None,
    name: str,
    latent: Tensor,
    model_sampling: ModelSampling,
    token_dim: int,
    sigmas: Sequence[float] = (math.inf, 0.0),
) -> list[Entry]:
    """The entries of ``conditioning`` for latents like ``latent`` (f, 4, lh, lw), on its device.

    sigmas: of the run. An entry that holds at none of them may have any area: regional prompts for the first steps of
    a whole picture are harmless where a part of it is sampled from the middle of the schedule on.
    """
    height, width = latent.shape[-2:]
    resolved = []
    for tokens, extras in check_conditioning(conditioning, name, token_dim):
        mask = _latent_mask(extras, latent)
        area = _latent_area(extras.get("area"), height, width)
        if mask is not None and extras.get("set_area_to_bounds"):
            area = _bounds(mask)
        start, end = extras.get("start_percent"), extras.get("end_percent")
        entry = Entry(
            tokens=tokens.to(latent.device, torch.float32),
            strength=float(extras.get("strength", 1.0)),
            mask=mask if mask is None else mask * float(extras.get("mask_strength", 1.0)),
            area=None if area is None else _clipped(area, height, width),
            asked_area=area,
            first_sigma=math.inf if start is None else model_sampling.percent_to_sigma(start),
            last_sigma=0.0 if end is None else model_sampling.percent_to_sigma(end),
            control=extras.get("control"),
        )
        if entry.last_sigma <= max(sigmas) and min(sigmas) <= entry.first_sigma:
            _check_inside(area, height, width)
        resolved.append(entry)
    return resolved


def with_counterparts(entries: Sequence[Entry], others: Sequence[Entry]) -> list[Entry]:
    """``entries`` and, for every area of ``others`` that none of them has, the entry that covers it most closely.

    Areas are compared as they were asked for: one that leaves the picture is covered by none that ends with it.
    """
    found = list(entries)
    for other in others:
        area = other.whole_area
        if area is None:
            continue
        covering = [entry for entry in found if entry.whole_area is None or _inside(area, entry.whole_area)]
        if not covering:
            continue
        closest = min(covering, key=_pixels)
        if closest.whole_area != area:
            found.append(replace(other, tokens=closest.tokens))
    return found


def _pixels(entry: Entry) -> float:
    area = entry.whole_area
    return math.inf if area is None else area[0] * area[1]


def _inside(inner: Area, outer: Area) -> bool:
    return all(inner[i + 2] >= outer[i + 2] and inner[i] + inner[i + 2] <= outer[i] + outer[i + 2] for i in range(2))


def _latent_mask(extras: dict[str, Any], latent: Tensor) -> Tensor | None:
    mask = extras.get("mask")
    if mask is None:
        return None
    mask = mask.to(latent.device, torch.float32)
    mask = mask[None] if mask.ndim == 2 else mask
    if mask.shape[1:] != latent.shape[-2:]:
        mask = F.interpolate(mask[:, None], size=latent.shape[-2:], mode="bilinear", align_corners=False)[:, 0]
    return mask


def _latent_area(area: Sequence[Any] | None, height: int, width: int) -> Area | None:
    if area is None:
        return None
    if area[0] != "percentage":
        return int(area[0]), int(area[1]), int(area[2]), int(area[3])
    h, w, top, left = area[1:]
    return max(1, round(h * height)), max(1, round(w * width)), round(top * height), round(left * width)


def _bounds(mask: Tensor) -> Area:
    """The box of what is not 0 in a mask (n, lh, lw), at least 8 x 8."""
    rows, columns = torch.nonzero(mask.abs().amax(dim=0), as_tuple=True)
    if not len(rows):
        return 8, 8, 0, 0
    top, left = int(rows.min()), int(columns.min())
    return max(8, int(rows.max()) - top + 1), max(8, int(columns.max()) - left + 1), top, left


def _clipped(area: Area, height: int, width: int) -> Area:
    h, w, top, left = area
    return min(h, height - top), min(w, width - left), top, left


def _check_inside(area: Area | None, height: int, width: int) -> None:
    if area is not None and (area[2] >= height or area[3] >= width):
        raise InputError(f"conditioning area {area} lies outside the latent of {height} x {width}")


@lru_cache(maxsize=64)
def _feathered(area: Area, height: int, width: int, device: torch.device, fuzz: int = 8) -> Tensor:
    """(h, w): 1, falling to the area's edges that are not the picture's, over a quarter of it and 8 pixels at most.

    Uploaded once: what comes of the host is waited for.
    """
    h, w, top, left = area
    share = torch.ones(h, w)
    for axis, (size, start, full) in enumerate(((h, top, height), (w, left, width))):
        length = min(fuzz, size // 4)
        ramp = torch.ones(size)
        if length and start > 0:
            ramp[:length] *= torch.arange(1, length + 1) / length
        if length and start + size < full:
            ramp[-length:] *= torch.arange(length, 0, -1) / length
        share *= ramp[:, None] if axis == 0 else ramp
    return share.to(device)
