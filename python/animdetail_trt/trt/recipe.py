"""Which sizes engines are built for: recipes in TOML, and what flags change of them."""

from __future__ import annotations

import tomllib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, cast, get_args

from animdetail_trt.errors import InputError
from animdetail_trt.geometry import PIXELS_PER_LATENT
from animdetail_trt.trt.identity import Component, Precision
from animdetail_trt.trt.profile import Profile, Range

DEFAULT_RECIPE = "sd15"


def parse_range(text: str) -> Range:
    """``MIN:OPT:MAX``, or one number for all three."""
    numbers = text.split(":")
    try:
        ends = [int(number) for number in numbers]
    except ValueError:
        ends = []
    if len(ends) not in (1, 3):
        raise InputError(f"{text!r} is no range. Write MIN:OPT:MAX, such as 8:16:32, or one number")
    return Range(*ends) if len(ends) == 3 else Range(ends[0], ends[0], ends[0])


def parse_sides(text: str) -> Range:
    """A range of pixels in steps of 8."""
    sides = parse_range(text)
    for pixels in (sides.min, sides.opt, sides.max):
        if pixels % PIXELS_PER_LATENT or not 64 <= pixels <= 4096:
            raise InputError(
                f"{text!r}: sides are multiples of {PIXELS_PER_LATENT} pixels from 64 to 4096, not {pixels}"
            )
    return sides


@dataclass(frozen=True)
class Recipe:
    """sizes: pixels of a side, a profile for each; vae_pixels: how many pixels a VAE call may hold."""

    precision: Precision
    sizes: Sequence[Range]
    frames: Range
    prompts: Range
    tokens: Range
    vae_pixels: int

    def changed(self, precision: str | None = None, sizes: Sequence[Range] = (), frames: Range | None = None) -> Recipe:
        """With what is given in place of its own."""
        return replace(
            self,
            precision=self.precision if precision is None else check_precision(precision),
            sizes=tuple(sizes) or self.sizes,
            frames=self.frames if frames is None else frames,
        )

    def profiles(
        self, component: Component, positions: int | None = None, *, frame_prompts: bool = False
    ) -> list[Profile]:
        """One for each of the sizes, the smallest first.

        positions: the frames that the motion module has room for, which bound those of a window
        """
        sides = sorted(self.sizes, key=lambda side: (side.max, side.opt, side.min))
        if component == "unet":
            return [self._unet_profile(side, positions, frame_prompts) for side in sides]
        return [self._vae_profile(side) for side in sides]

    def _unet_profile(self, side: Range, positions: int | None, frame_prompts: bool) -> Profile:
        most = self.frames.max if positions is None else min(self.frames.max, positions)
        frames = Range(min(self.frames.min, most), min(self.frames.opt, most), most)
        axes = {"b": self.prompts, "f": frames, "n": self.tokens} | _latents(side)
        return Profile(axes | ({"t": Range(1, 1, most)} if frame_prompts else {}))

    def _vae_profile(self, side: Range) -> Profile:
        most, best = (max(1, self.vae_pixels // pixels**2) for pixels in (side.max, side.opt))
        return Profile({"f": Range(1, min(best, most), most)} | _latents(side))


def _latents(side: Range) -> dict[str, Range]:
    latents = Range(*(pixels // PIXELS_PER_LATENT for pixels in (side.min, side.opt, side.max)))
    return {"h": latents, "w": latents}


def check_precision(name: str) -> Precision:
    if name not in get_args(Precision):
        raise InputError(f"unknown precision {name!r}. Choose {', '.join(get_args(Precision))}")
    return cast(Precision, name)


def read_recipe(recipe: str | Path = DEFAULT_RECIPE) -> Recipe:
    """A recipe of this package by its name, or a TOML file. Raises InputError for one that lacks something."""
    path = Path(recipe)
    if path.suffix != ".toml":
        path = recipes_folder() / f"{recipe}.toml"
    try:
        table = tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise InputError(f"there is no recipe {recipe}. Give a .toml file, or {', '.join(recipe_names())}") from None
    except (OSError, ValueError) as error:
        raise InputError(f"cannot read the recipe {path}: {error}") from error
    try:
        return _recipe_of(table)
    except InputError as error:
        raise InputError(f"the recipe {path}: {error}") from error
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        raise InputError(f"the recipe {path} lacks or misspells {error}. Compare it with sd15.toml") from error


def _recipe_of(table: dict[str, Any]) -> Recipe:
    unet, vae = table["unet"], table["vae"]
    return Recipe(
        check_precision(table["precision"]),
        tuple(parse_sides(side) for side in table["sizes"]),
        parse_range(unet["frames"]),
        parse_range(unet["prompts"]),
        parse_range(unet["tokens"]),
        int(vae["pixels_per_call"]),
    )


def recipes_folder() -> Path:
    """Beside the package where it is installed; in a source tree, engines/recipes."""
    package = Path(__file__).parents[1]
    installed = package / "recipes"
    return installed if installed.is_dir() else package.parents[1] / "engines" / "recipes"


def recipe_names() -> list[str]:
    return sorted(path.stem for path in recipes_folder().glob("*.toml"))
