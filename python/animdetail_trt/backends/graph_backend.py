"""Models run as graphs: TensorRT engines, or onnxruntime on the CPU. The sampler cannot tell them from torch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from animdetail_trt.errors import UncoveredError
from animdetail_trt.geometry import PIXELS_PER_LATENT
from animdetail_trt.trt.profile import FLAG_OF_AXIS, shape_of
from animdetail_trt.trt.session import Session


class GraphUNet:
    """Sessions of one UNet as a UNetRunner.

    sessions: plain ones first, then those that take residuals, or a prompt for each frame, as well
    """

    def __init__(
        self, sessions: Sequence[Session], *, positions: int | None, token_dim: int, device: torch.device
    ) -> None:
        self.sessions = sessions
        self.positions, self.token_dim, self.device = positions, token_dim, device

    def frames_per_call(self, width: int, height: int) -> int:
        sizes = {"h": height // PIXELS_PER_LATENT, "w": width // PIXELS_PER_LATENT}
        covering = [session for session in self.sessions if session.covers(sizes)]
        return max(_most(session, ("b", "f"), sizes) for session in covering or self.sessions[-1:])

    def __call__(
        self, latents: Tensor, timestep: float, tokens: Tensor, residuals: Sequence[Tensor] | None = None
    ) -> Tensor:
        b, f, _, h, w = latents.shape
        sizes = {"f": f, "h": h, "w": w, "n": tokens.shape[2]}
        session = self._session_for(sizes, controlled=residuals is not None, frame_prompts=tokens.shape[1] > 1)
        inputs = {"tokens": tokens, "latents": latents}
        for name in (name for name in session.inputs if name.startswith("residual_")):
            inputs[name] = _residual(session, name, residuals, latents)
        most = _most(session, ("b",), sizes)
        time = torch.full((1,), timestep, dtype=torch.float32, device=self.device)
        parts = [
            session.run({name: value[start : start + most] for name, value in inputs.items()} | {"timestep": time})
            for start in range(0, b, most)
        ]
        return parts[0] if len(parts) == 1 else torch.cat(parts)

    def unload(self) -> None:
        """Free all memory of its sessions; the next call loads again what it needs."""
        _unload(self.sessions)

    def _session_for(self, sizes: Mapping[str, int], *, controlled: bool, frame_prompts: bool) -> Session:
        reasons = []
        for session in self.sessions:
            if controlled and "residual_00" not in session.inputs:
                reasons.append("it takes no ControlNet (build-engines --controlnet)")
            elif frame_prompts and "t" not in session.inputs["tokens"]:
                reasons.append("it takes one prompt for all frames (build-engines --frame-prompts)")
            elif not session.covers(sizes):
                reasons.append(misfit_of(session, sizes))
            else:
                return session
        raise UncoveredError("; ".join(dict.fromkeys(reasons)))


def _residual(session: Session, name: str, residuals: Sequence[Tensor] | None, latents: Tensor) -> Tensor:
    b, f, _, h, w = latents.shape
    if residuals is not None:
        given = residuals[int(name.removeprefix("residual_"))]
        return given.reshape(b, f, *given.shape[1:])
    # An engine built for ControlNet, used without: what is added is nothing.
    return torch.zeros(shape_of(session.inputs[name], {"b": b, "f": f, "h": h, "w": w}), device=latents.device)


class GraphVae:
    """Sessions of one VAE's encoder and decoder as a VaeRunner; of each, the first that covers a call runs it."""

    dtype = torch.float32

    def __init__(self, encoders: Sequence[Session], decoders: Sequence[Session], *, device: torch.device) -> None:
        self.encoders, self.decoders = encoders, decoders
        self.device = device

    def frames_per_call(self, width: int, height: int) -> int:
        sizes = {"h": height // PIXELS_PER_LATENT, "w": width // PIXELS_PER_LATENT}
        return min(_most(_first(sessions, sizes), ("f",), sizes) for sessions in (self.encoders, self.decoders))

    def encode(self, pixels: Tensor) -> Tensor:
        return self._run(self.encoders, "pixels", pixels, pixels.shape[2] // PIXELS_PER_LATENT)

    def decode(self, latents: Tensor) -> Tensor:
        return self._run(self.decoders, "latents", latents, latents.shape[2])

    def unload(self) -> None:
        """Free all memory of its sessions; the next call loads again what it needs."""
        _unload([*self.encoders, *self.decoders])

    def _run(self, sessions: Sequence[Session], name: str, frames: Tensor, h: int) -> Tensor:
        sizes = {"h": h, "w": frames.shape[3] * h // frames.shape[2]}
        session = _first(sessions, sizes)
        most = _most(session, ("f",), sizes)
        parts = [session.run({name: part}) for part in frames.split(most)]
        return parts[0] if len(parts) == 1 else torch.cat(parts)


def _unload(sessions: Sequence[Session]) -> None:
    for session in sessions:
        session.unload()


def _first(sessions: Sequence[Session], sizes: Mapping[str, int]) -> Session:
    """The first that covers these sizes, else the last, which has the largest."""
    return next((session for session in sessions if session.covers(sizes)), sessions[-1])


def _most(session: Session, axes: Sequence[str], sizes: Mapping[str, int]) -> int:
    """The product of the largest sizes of ``axes`` in the profiles that hold ``sizes``. Raises UncoveredError."""
    fitting = [profile for profile in session.profiles if profile.misfit(sizes) is None]
    if not fitting:
        raise UncoveredError(misfit_of(session, sizes))
    most = 1
    for axis in axes:
        most *= max(profile.axes[axis].max for profile in fitting)
    return most


_UNIT_OF_AXIS = {
    "f": "frames",
    "h": "pixels high",
    "w": "pixels wide",
    "n": "tokens of prompt",
    "b": "prompts",
    "t": "prompts",
}


def misfit_of(session: Session, sizes: Mapping[str, int]) -> str:
    """Why no profile of it holds these sizes, and the flag of build-engines that widens it."""
    misfits = [axis for profile in session.profiles if (axis := profile.misfit(sizes)) is not None]
    # Of the profile that comes closest, which is the last: recipes list them by size.
    axis = misfits[-1] if misfits else next(iter(sizes))
    pixels = PIXELS_PER_LATENT if axis in "hw" else 1
    least = min(profile.axes[axis].min for profile in session.profiles) * pixels
    most = max(profile.axes[axis].max for profile in session.profiles) * pixels
    wanted = sizes[axis] * pixels
    remedy = ""
    if axis in FLAG_OF_AXIS:
        low, high = min(least, wanted), max(most, wanted)
        remedy = f" (build-engines {FLAG_OF_AXIS[axis]} {low}:{max(low, min(high, most))}:{high} widens it)"
    return f"the engine was built for {least} to {most} {_UNIT_OF_AXIS[axis]}, and this is {wanted}{remedy}"
