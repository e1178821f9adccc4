"""An engine in the user's words, and as JSON: what the ``engines`` commands say of it."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from animdetail_trt.geometry import PIXELS_PER_LATENT

if TYPE_CHECKING:
    from animdetail_trt.trt.profile import Profile, Range
    from animdetail_trt.trt.sidecar import Entry

ONNXRUNTIME = "onnxruntime"
"""The target of graphs that were kept as they are, and run at any size."""

AXES = {
    "b": "prompts in a call",
    "f": "frames",
    "h": "height in latents",
    "w": "width in latents",
    "n": "tokens of a prompt",
    "t": "prompts of a window",
}


def told_bytes(count: float) -> str:
    """``2.66 GB``, ``58.2 MB``, ``180 kB``."""
    if count >= 1e9:
        return f"{count / 1e9:.2f} GB"
    return f"{count / 1e6:.1f} MB" if count >= 1e6 else f"{count / 1e3:.0f} kB"


def told_title(entry: Entry) -> str:
    return str(entry.about.get("title") or entry.name)


def told_target(entry: Entry) -> str:
    target = entry.identity.target
    place = "on the CPU" if target.flavour == ONNXRUNTIME else f"for {target.where}"
    return f"{target.flavour} {target.version} {place}"


def told_sizes(entry: Entry) -> list[str]:
    """What each profile covers: ``256-512 px, 1-32 frames``."""
    if entry.identity.target.flavour == ONNXRUNTIME:
        return ["any size"]
    return [_told_profile(profile) for profile in entry.profiles]


def _in_pixels(span: Range) -> Range:
    """A range of latents as one of pixels."""
    return type(span)(*(size * PIXELS_PER_LATENT for size in (span.min, span.opt, span.max)))


def loras_of(entry: Entry) -> list[tuple[Path, str, float]]:
    """The file, SHA-256 and strength of each LoRA that is merged into this engine, in their order."""
    merged = entry.identity.source.loras  # the VAE's has none, whatever was given for the UNet
    paths = [Path(path) for path, _ in entry.about.get("loras", [])]
    if len(paths) != len(merged):
        paths = [Path(digest[:12]) for _, digest, _ in merged]
    return [(path, digest, strength) for path, (_, digest, strength) in zip(paths, merged, strict=True)]


def told_loras(entry: Entry) -> list[str]:
    return [f"{path.name} {strength:g}" for path, _, strength in loras_of(entry)]


def models_of(entry: Entry) -> list[tuple[str, Path, str]]:
    """Role, file and SHA-256 of everything that this engine was made of."""
    weights, paths = entry.identity.source.weights, entry.about.get("files", {})
    files = [(role, Path(path), weights[role]) for role, path in paths.items() if role in weights]
    roles = [role for role, _, _ in entry.identity.source.loras]
    return files + [(role, path, digest) for role, (path, digest, _) in zip(roles, loras_of(entry), strict=True)]


def built_at(entry: Entry) -> datetime:
    """When it was built, in local time; as old as its sidecar where that does not say."""
    try:
        return datetime.fromisoformat(entry.about["built"]).astimezone()
    except (KeyError, TypeError, ValueError):
        return datetime.fromtimestamp(entry.sidecar.stat().st_mtime, UTC).astimezone()


def as_record(entry: Entry, reasons: Sequence[str]) -> dict[str, Any]:
    """All that ``list`` knows, for JSON. reasons: why it cannot be used here."""
    identity, source = entry.identity.as_json(), entry.identity.source
    return {
        "name": entry.name,
        "title": told_title(entry),
        "component": source.component,
        "precision": source.precision,
        "target": identity["target"],
        "profiles": [_profile_record(profile) for profile in entry.profiles],
        "models": [{"role": role, "file": str(path), "sha256": digest} for role, path, digest in models_of(entry)],
        "loras": [{"file": str(path), "strength": strength} for path, _, strength in loras_of(entry)],
        "settings": identity["source"]["settings"],
        "bytes": entry.size,
        "weights_bytes": entry.about.get("weights_bytes"),
        "activation_bytes": entry.about.get("activation_bytes"),
        "built": built_at(entry).isoformat(),
        "build_s": entry.about.get("build_s"),
        "usable_here": not reasons,
        "reasons": list(reasons),
        "files": [str(part.path) for part in entry.parts],
    }


def _profile_record(profile: Profile) -> dict[str, list[int]]:
    """Ranges as [min, opt, max]: of the axes, and the sides in pixels."""
    pixels = {name: _in_pixels(profile.axes[axis]) for name, axis in (("width_px", "w"), ("height_px", "h"))}
    return profile.as_json() | {name: [span.min, span.opt, span.max] for name, span in pixels.items()}


def _told_profile(profile: Profile) -> str:
    width, height, frames = (_told_span(span) for span in (
        _in_pixels(profile.axes["w"]), _in_pixels(profile.axes["h"]), profile.axes["f"],
    ))  # fmt: skip
    sides = width if width == height else f"{width} x {height}"
    return f"{sides} px, {frames} frame{'' if frames == '1' else 's'}"


def told_ranges(profile: Profile) -> str:
    """All that a profile covers: ``frames: 1 to 32, best 16; sides in pixels: 256 to 512, best 512``."""
    told = {name: profile.axes[axis] for axis, name in AXES.items() if axis in profile.axes and axis not in "hw"}
    height, width = (_in_pixels(profile.axes[axis]) for axis in "hw")
    told |= {"sides in pixels": height} if height == width else {"height in pixels": height, "width in pixels": width}
    return "; ".join(f"{name}: {told_range(span)}" for name, span in told.items())


def told_range(span: Range) -> str:
    return str(span.min) if span.min == span.max else f"{span.min} to {span.max}, best {span.opt}"


def _told_span(span: Range) -> str:
    return str(span.min) if span.min == span.max else f"{span.min}-{span.max}"
