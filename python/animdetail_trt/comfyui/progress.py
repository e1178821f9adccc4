"""The detailer's progress on ComfyUI's bar: one bar for all segments, with previews, and interrupted between steps."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor

from animdetail_trt.comfyui import host
from animdetail_trt.detailer.report import Observer


class Progress(Observer):
    """An Observer. Where the user has interrupted the run, its methods raise ComfyUI's own exception."""

    def __init__(self) -> None:
        self._bar: host.ProgressBar | None = None
        self._total = self._steps = 0
        self._preview: Any = None

    def previews_of(self, model: Any) -> Callable[[Tensor], None]:
        """Takes a latent of MODEL, to be shown with the next step."""
        preview = host.previewer(model)

        def show(latent: Tensor) -> None:
            self._preview = preview(latent)

        return show

    def begin_run(self, segment_count: int, steps_per_segment: int) -> None:
        self._steps = steps_per_segment
        self._total = max(1, segment_count * steps_per_segment)
        self._bar = host.ProgressBar(self._total)

    def begin_segment(self, index: int, label: str, crop_size: tuple[int, int], work_size: tuple[int, int]) -> None:
        host.throw_if_interrupted()

    def step(self, index: int, step: int, steps: int) -> None:
        if self._bar is not None:
            self._bar.update(index * self._steps + min(step, self._steps), self._total, self._preview)
        self._preview = None

    def stage(self, index: int, name: str, elapsed_ms: float) -> None:
        host.throw_if_interrupted()
