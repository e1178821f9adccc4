"""Models that another program samples: the detailer hands them a latent instead of asking for noise estimates."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol, TypeAlias, runtime_checkable

from torch import Tensor

from animdetail_trt.sampling.conditioning import Conditioning
from animdetail_trt.sampling.refiner import Refiner
from animdetail_trt.sampling.run import NoiseMask, SampleSettings

OnStep: TypeAlias = Callable[[int, int], None]
"""Called with (step, steps), step from 1."""


@runtime_checkable
class ForeignModel(Protocol):
    """The model of a pipe whose program has samplers, conditioning and checks of its own (ComfyUI)."""

    original: Any
    """That program's own object, as a detailer_hook knows it."""

    def with_original(self, original: Any) -> ForeignModel:
        """This model around the object that a hook gave back for it."""

    def sample(
        self,
        settings: SampleSettings,
        positive: Conditioning,
        negative: Conditioning,
        latent: Tensor,
        noise_mask: NoiseMask,
        refiner: Refiner | None,
        noise: Tensor | None,
        on_step: OnStep,
    ) -> Tensor:
        """Latents of the shape of ``latent`` (f, 4, lh, lw), float32, both before the factor 0.18215.

        refiner: its model is foreign too; noise: takes the place of the seed's
        """
        ...


class ForeignSettings(SampleSettings):
    """Settings that the model's own program checks: it may have samplers and schedulers that this package has not."""

    def __post_init__(self) -> None: ...


def settings_for(pipe: Any, *values: Any) -> SampleSettings:
    """SampleSettings of these values, in its order, checked by whoever samples the pipe's model."""
    return (ForeignSettings if is_foreign(pipe) else SampleSettings)(*values)


def is_foreign(pipe: Any) -> bool:
    return isinstance(pipe, tuple | list) and len(pipe) > 0 and isinstance(pipe[0], ForeignModel)
