"""Several ways to run one model, tried from the fastest down; one line says why one was passed over."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext, suppress
from dataclasses import dataclass, field
from typing import Generic, TypeVar

import torch
from torch import Tensor

from animdetail_trt.backends.batches import Batches
from animdetail_trt.backends.interface import UNetRunner, VaeRunner
from animdetail_trt.errors import EngineError, UncoveredError, is_out_of_memory

logger = logging.getLogger(__name__)

Runner = TypeVar("Runner")
Result = TypeVar("Result")


@dataclass
class Rung(Generic[Runner]):
    """One way. open: makes the runner when it is first needed; guard: put around opening it and every call of it."""

    name: str
    open: Callable[[], Runner]
    guard: Callable[[], AbstractContextManager[None]] = nullcontext
    runner: Runner | None = None
    broken: bool = False
    told: set[str] = field(default_factory=set)

    def get(self) -> Runner:
        if self.runner is None:
            self.runner = self.open()
        return self.runner

    def give_up(self) -> None:
        """Not to be tried again: what an engine has loaded makes room for the one below."""
        self.broken = True
        unload = getattr(self.runner, "unload", lambda: None)  # torch's own runners have nothing to unload
        self.runner = None
        with suppress(Exception):  # that it failed is said; what it fails at now is no other news
            unload()


class Ladder(Generic[Runner]):
    """what: "UNet" or "VAE", for the lines; rungs: fastest first, the last of them able to run anything."""

    def __init__(self, what: str, rungs: Sequence[Rung[Runner]]) -> None:
        self.what = what
        self.rungs = rungs
        self.used = rungs[0].name
        """The rung of the last call."""
        self.ran: set[str] = set()
        """The rungs of all calls since somebody cleared it."""

    def climb(self, call: Callable[[Runner], Result], *, divisible: bool = False, asks: bool = False) -> Result:
        """What ``call`` makes of the first runner that can do it. asks: it runs no model and counts as no call.

        A runner that does not cover the call is passed over for it alone, one that fails for good: one that finds the
        GPU full (FullDeviceError) too, since a GPU that stays full would fail it at each call, and the weights of the
        runner below make it fuller still. Out of memory in a call goes on to the next for it alone, unless the caller
        can divide the call.
        """
        for rung, below in zip(self.rungs, [*self.rungs[1:], None], strict=True):
            if rung.broken:
                continue
            try:
                with rung.guard():
                    result = call(rung.get())
                if not asks:
                    self.used = rung.name
                    self.ran.add(rung.name)
                return result
            except UncoveredError as error:
                if below is None:
                    raise
                self._tell(rung, below, str(error))
            except EngineError as error:
                if below is None:
                    raise
                rung.give_up()
                self._tell(rung, below, str(error))
            except Exception as error:
                if below is None or divisible or not is_out_of_memory(error):
                    raise
                torch.cuda.empty_cache()
                self._tell(rung, below, f"out of memory ({error})")
        raise EngineError(f"nothing is left that could run the {self.what}")

    def _tell(self, rung: Rung[Runner], below: Rung[Runner], reason: str) -> None:
        if reason not in rung.told:
            rung.told.add(reason)
            logger.warning("%s: %s instead of %s: %s", self.what, below.name, rung.name, reason)


class LadderUNet:
    """A UNetRunner over several."""

    def __init__(
        self, rungs: Sequence[Rung[UNetRunner]], *, positions: int | None, token_dim: int, device: torch.device
    ) -> None:
        self.ladder = Ladder("UNet", rungs)
        self.positions, self.token_dim, self.device = positions, token_dim, device

    @property
    def name(self) -> str:
        return self.ladder.used

    def frames_per_call(self, width: int, height: int) -> int:
        return self.ladder.climb(lambda runner: runner.frames_per_call(width, height), asks=True)

    def __call__(
        self, latents: Tensor, timestep: float, tokens: Tensor, residuals: Sequence[Tensor] | None = None
    ) -> Tensor:
        eps = self.ladder.climb(
            lambda runner: runner(latents, timestep, tokens, residuals), divisible=latents.shape[0] > 1
        )
        return eps.to(self.device)


class LadderVae:
    """A VaeRunner over several; out of memory, it halves the frames first, once for all calls of a size."""

    def __init__(self, rungs: Sequence[Rung[VaeRunner]], *, device: torch.device) -> None:
        self.ladder = Ladder("VAE", rungs)
        self.device = device
        self.batches = Batches()

    @property
    def name(self) -> str:
        return self.ladder.used

    @property
    def dtype(self) -> torch.dtype:
        return self.ladder.climb(lambda runner: runner.dtype, asks=True)

    def frames_per_call(self, width: int, height: int) -> int:
        return self.ladder.climb(lambda runner: runner.frames_per_call(width, height), asks=True)

    def encode(self, pixels: Tensor) -> Tensor:
        return self._divided(lambda runner, part: runner.encode(part), pixels)

    def decode(self, latents: Tensor) -> Tensor:
        return self._divided(lambda runner, part: runner.decode(part), latents)

    def _divided(self, call: Callable[[VaeRunner, Tensor], Tensor], frames: Tensor) -> Tensor:
        def run(rows: slice) -> Tensor:
            part = frames[rows]
            return self.ladder.climb(lambda runner: call(runner, part), divisible=len(part) > 1).to(self.device)

        # Pixels and latents are told apart by their channels.
        outs = self.batches.run(frames.shape[1:], len(frames), len(frames), run)
        return outs[0] if len(outs) == 1 else torch.cat(outs)
