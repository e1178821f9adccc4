"""Whether our UNet can take the place of a MODEL's: facts about it, and the decision, which is a pure function."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class MotionFacts:
    """A motion model of AnimateDiff-Evolved. special: what is in effect besides scale and effect, in words
    scale, effect: 1 where not set, None where they are no numbers (masks, lists over time)"""

    format: str
    version: str
    scale: float | None = 1.0
    effect: float | None = 1.0
    special: tuple[str, ...] = ()


@dataclass(frozen=True)
class ModelFacts:
    """A MODEL, as far as its UNet's arithmetic goes; what acts around the UNet's call (guidance, masks, windows,
    schedules) stays ComfyUI's and is not asked for.

    family: of the architecture, in ComfyUI's words; in_channels: of its first convolution
    patches: into the UNet's forward pass (attention, skips), by name; wrappers: around it
    objects: parts of the model that were put in another's place; injections: modules put into it
    hooked: weights that change with the conditioning or over time
    """

    family: str
    in_channels: int
    patches: tuple[str, ...] = ()
    wrappers: tuple[str, ...] = ()
    objects: tuple[str, ...] = ()
    injections: tuple[str, ...] = ()
    hooked: bool = False
    motion: tuple[MotionFacts, ...] = ()
    special: tuple[str, ...] = ()


_OBJECTS = {"model_sampling", "latent_format"}  # used by what stays ComfyUI's
_FORMATS = ("AnimateDiff", "AnimateLCM")


def why_not(facts: ModelFacts) -> str | None:
    """The first reason for which ComfyUI must run this MODEL itself; None: our UNet computes the same."""
    if facts.family != "SD15" or facts.in_channels != 4:
        return f"its UNet is {facts.family} with {facts.in_channels} input channels, not Stable Diffusion 1.5 with 4"
    for kind, names in (
        ("patches in its attention or blocks", facts.patches),
        ("wrappers around its UNet", facts.wrappers),
        ("other objects in its parts' place", tuple(name for name in facts.objects if name not in _OBJECTS)),
        ("modules put into it", facts.injections),
    ):
        if names:
            return f"it has {kind}: {', '.join(names)}"
    if facts.hooked:
        return "its weights change with the conditioning (hooks)"
    if len(facts.motion) > 1:
        return f"it has {len(facts.motion)} motion models at once"
    for motion in facts.motion:
        if motion.format not in _FORMATS:
            return f"its motion model is {motion.format}, not {' or '.join(_FORMATS)}"
        if motion.special:
            return f"its motion model has {', '.join(motion.special)}"
        if motion.scale is None or motion.effect is None:
            return "its motion model's scale or effect is a mask or changes over time"
    if facts.special:
        return f"AnimateDiff-Evolved is set to {', '.join(facts.special)}"
    return None
