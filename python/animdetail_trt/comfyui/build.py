"""Building the engine of a MODEL's effective weights, for the GPU that ComfyUI runs on."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from animdetail_trt.comfyui import host
from animdetail_trt.comfyui.facts import why_not
from animdetail_trt.comfyui.settings import DetailerSettings
from animdetail_trt.comfyui.unet import NamedDigests, UNetFiles, dtype_of, read_weights
from animdetail_trt.errors import InputError
from animdetail_trt.models.engines import PRECISIONS, UNetVariant, build, jobs_for
from animdetail_trt.trt.builder import check_target
from animdetail_trt.trt.flavour import choose_flavour, find_cards
from animdetail_trt.trt.profile import Range
from animdetail_trt.trt.recipe import read_recipe
from animdetail_trt.trt.store import Store
from animdetail_trt.trt.system import default_folder

MOST_STEPS = 1000  # of the bar: TensorRT tells of phases of which it does not know the number


@dataclass(frozen=True)
class Sizes:
    """What the engine takes: pixels of a side, frames of a window, least, best and most."""

    side: Range
    frames: Range


def build_engine(model: Any, settings: DetailerSettings, sizes: Sizes, variant: UNetVariant) -> str:
    """Build it where it is not there -> a line that tells of it. Raises InputError where this MODEL can have none."""
    facts = host.facts_of(model)
    reason = why_not(facts)
    if reason is not None:
        raise InputError(f"no engine can take this MODEL's place: {reason}. The detailer runs it in ComfyUI")
    cards, missing = find_cards()
    if not cards:
        raise InputError(f"there is no GPU here to build an engine for ({missing}). The detailer runs in ComfyUI")
    index = host.inference_device().index or 0
    card = next((card for card in cards if card.index == index), None)
    if card is None:
        raise InputError(f"ComfyUI computes on GPU {index}, and only {len(cards)} can be seen here. Start ComfyUI anew")
    flavour = choose_flavour("auto", card.capability)
    target = flavour.target(check_target(flavour, card.capability), card.name)
    recipe = read_recipe().changed(PRECISIONS[dtype_of(model, settings)], [sizes.side], sizes.frames)
    store = Store(default_folder())
    files = UNetFiles.of(read_weights(model, facts), store.folder, write=True)
    jobs = jobs_for(files, target, recipe, NamedDigests(store.folder), variant=variant)
    job = next(job for job in jobs if job.component == "unet")
    bar = _Bar()
    entry, built = build(job, store, flavour, progress=bar.note, poll=bar.show)
    return f"{entry.name}: {'built' if built else 'was there'} for {flavour.name} {flavour.version}, {card.capability}"


class _Bar:
    """The builder tells of its phases in a thread of its own; the node's thread shows them and may be interrupted."""

    def __init__(self) -> None:
        self._bar = host.ProgressBar(MOST_STEPS)
        self._told = (0, 1)

    def note(self, phase: str, done: int, steps: int) -> None:
        self._told = (done, max(1, steps))

    def show(self) -> None:
        done, steps = self._told
        self._bar.update(MOST_STEPS * done // steps, MOST_STEPS)
