"""What is measured: scenarios, frozen and named, and the suites that choose among them.

A scenario's sizes never change under its name, so that results of different days and machines can be compared.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal

from animdetail_trt.bench.timing import Effort
from animdetail_trt.bench.weights import SD15, TINY, ModelSize
from animdetail_trt.errors import InputError

Kind = Literal["pixels", "vae_encode", "vae_decode", "unet", "windows", "segment", "clip"]

KINDS: dict[Kind, str] = {
    "pixels": "pixel path: crop, enlarge, shrink, feather and paste, around a VAE that costs nothing",
    "vae_encode": "VAE encoder over all frames",
    "vae_decode": "VAE decoder over all frames",
    "unet": "one call of the UNet with its motion module: one window, one step",
    "windows": "one step over a clip of several context windows, both prompts",
    "segment": "one segment through the node: crop, encode, sample, decode, paste",
    "clip": "a whole clip through the node, segment after segment",
}
PICTURE_KINDS: Collection[Kind] = ("pixels", "vae_decode", "segment", "clip")
NODE_KINDS: Collection[Kind] = ("segment", "clip")
ALIKE: Sequence[tuple[Kind, ...]] = (
    ("pixels",), ("vae_encode",), ("vae_decode",), ("unet", "windows"), ("segment", "clip")
)  # fmt: skip
"""Kinds that do the same work, so that what one takes says what the other will."""


@dataclass(frozen=True)
class Scenario:
    """frames: of the clip; side: pixels of a side that the models see; prompts: 1 (cfg 1) or 2
    segments, crop, width, height: of the clip that the crops are cut from; steps: of the sampler
    window: context_length, where the clip is longer; feather: pixels of the paste
    """

    name: str
    kind: Kind
    frames: int
    side: int
    prompts: int = 2
    segments: int = 1
    crop: int = 0
    width: int = 0
    height: int = 0
    steps: int = 0
    window: int = 16
    feather: int = 5

    @property
    def sizes(self) -> dict[str, Any]:
        """All that decides what is computed."""
        return {key: value for key, value in asdict(self).items() if key not in ("name", "kind")}

    @property
    def volume(self) -> int:
        """Pixels that go through the models: a scenario takes as much longer than another of its kind, or more."""
        return self.frames * self.side**2 * self.segments * max(1, self.prompts) * max(1, self.steps)

    @property
    def what(self) -> str:
        return KINDS[self.kind]


@dataclass(frozen=True)
class Suite:
    """minutes: that it may take, model files included: no scenario is begun that would go on after them
    threads: of the CPU, None for torch's own number"""

    name: str
    what: str
    model: ModelSize
    scenarios: Sequence[Scenario]
    effort: Effort
    minutes: float
    threads: int | None = None


def pixels(frames: int, width: int, height: int, segments: int, crop: int, side: int) -> Scenario:
    name = f"pixels-{frames}f-{width}x{height}-{segments}s"
    return Scenario(name, "pixels", frames, side, 0, segments, crop, width, height)


def vae(frames: int, side: int) -> list[Scenario]:
    kinds: tuple[Kind, Kind] = ("vae_encode", "vae_decode")
    return [Scenario(f"{kind.replace('_', '-')}-{frames}f-{side}px", kind, frames, side, 0) for kind in kinds]


def unet(frames: int, side: int, prompts: int) -> Scenario:
    return Scenario(f"unet-{frames}f-{side}px-b{prompts}", "unet", frames, side, prompts, window=32)


def windows(frames: int, side: int) -> Scenario:
    return Scenario(f"windows-{frames}f-{side}px", "windows", frames, side)


def segment(frames: int, side: int, steps: int) -> Scenario:
    crop = side * 7 // 16
    sizes = {"crop": crop, "width": 2 * crop, "height": crop + crop // 2, "steps": steps}
    return Scenario(f"segment-{frames}f-{side}px-{steps}it", "segment", frames, side, **sizes)


def clip(segments: int, frames: int, side: int, steps: int) -> Scenario:
    """All clips of a side are of one size, wide enough for eight crops beside one another."""
    crop = side * 7 // 16 // 4 * 2
    sizes = {"crop": crop, "width": 8 * crop, "height": 4 * crop, "steps": steps}
    return Scenario(f"clip-{segments}s-{frames}f-{side}px-{steps}it", "clip", frames, side, segments=segments, **sizes)


# What tells most comes first: where time runs out, the rest is left out.
_QUICK = (
    pixels(8, 512, 288, 2, 112, 256),
    *vae(8, 128),
    unet(16, 64, 2),
    windows(40, 64),
    segment(8, 64, 2),
    clip(1, 8, 64, 1), clip(1, 16, 64, 1), clip(1, 32, 64, 1), clip(2, 8, 64, 1), clip(4, 8, 64, 1),
    unet(8, 64, 2), unet(32, 64, 2), unet(16, 64, 1), unet(16, 48, 2), unet(16, 96, 2),
)  # fmt: skip
_CPU_FULL = (
    *vae(4, 64),
    unet(4, 64, 1),
    segment(4, 64, 1),
    unet(8, 64, 1), unet(16, 64, 1), unet(8, 64, 2),
    clip(1, 8, 64, 1),
    windows(28, 64),
)  # fmt: skip
_UNET_AXES = ((8, 512, 2), (32, 512, 2), (16, 512, 1), (16, 768, 2), (16, 1024, 2))
_HEADLINE = pixels(32, 1024, 576, 3, 224, 512)
_FULL = (
    _HEADLINE,
    *vae(16, 512),
    unet(16, 512, 2),
    windows(64, 512),
    segment(16, 512, 4),
    clip(1, 16, 512, 2), clip(1, 64, 512, 2), clip(3, 16, 512, 2), clip(1, 128, 512, 2), clip(8, 16, 512, 2),
    *(unet(*sizes) for sizes in _UNET_AXES),
    *(unet(frames, side, prompts) for side in (512, 768, 1024) for frames in (8, 16, 32) for prompts in (1, 2)
      if (frames, side, prompts) not in ((16, 512, 2), *_UNET_AXES)),
)  # fmt: skip
_REST = tuple(clip(segments, frames, 512, 2) for frames in (64, 128) for segments in (3, 8))

SUITES = {
    suite.name: suite
    for suite in (
        Suite("quick", "tiny models of the real layout, small pictures: the machinery, and the ratios that hold on a "
              "CPU", TINY, _QUICK, Effort(3, 5, 0.3), 1.7, threads=1),
        Suite("full", "Stable Diffusion 1.5 at full size, for a GPU", SD15, _FULL, Effort(3, 15, 3.0), 9),
        Suite("all", "full, and every clip of 3 and 8 segments too; hours on a slow card", SD15, (*_FULL, *_REST),
              Effort(3, 15, 3.0), 24 * 60),
        Suite("cpu-full", "Stable Diffusion 1.5 at full size on 64x64 pixels: the machinery, on a CPU", SD15, _CPU_FULL,
              Effort(2, 5, 3.0), 40),
        Suite("pixels", "the pixel path alone, at the size that README quotes", TINY, (_HEADLINE,),
              Effort(7, 7, 0.0), 10),
    )
}  # fmt: skip


def choose(suite: Suite, patterns: Sequence[str]) -> Suite:
    """The suite with those of its scenarios whose name one of ``patterns`` matches (``unet-*``); all where none is
    given. Raises InputError for a pattern that matches none."""
    from fnmatch import fnmatchcase

    for pattern in patterns:
        if not any(fnmatchcase(scenario.name, pattern) for scenario in suite.scenarios):
            names = ", ".join(scenario.name for scenario in suite.scenarios)
            raise InputError(f"no scenario of suite {suite.name!r} is called {pattern!r}. Choose of: {names}")
    if not patterns:
        return suite
    chosen = [one for one in suite.scenarios if any(fnmatchcase(one.name, pattern) for pattern in patterns)]
    return replace(suite, scenarios=chosen)
