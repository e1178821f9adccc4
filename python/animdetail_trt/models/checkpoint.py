"""Reading model files: safetensors only, and each file recognised by its keys before anything is built from it."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import torch
from torch import Tensor

from animdetail_trt.errors import AnimDetailError, CheckpointError

StateDict: TypeAlias = dict[str, Tensor]
Shapes: TypeAlias = Mapping[str, tuple[int, ...]]
Kind: TypeAlias = str
"""A key of the table below."""

_ARTICLE: dict[Kind, str] = {
    "sd15": "a Stable Diffusion 1.5 checkpoint",
    "sd15-inpainting": "an inpainting (or edit) checkpoint, whose UNet takes more than 4 input channels",
    "sd2": "a Stable Diffusion 2.x checkpoint",
    "sdxl": "an SDXL checkpoint",
    "other-diffusion": "a diffusion transformer checkpoint (SD 3, Flux or another family)",
    "motion-module": "an AnimateDiff motion module",
    "sdxl-motion-module": "a motion module for SDXL (it has three levels of blocks, SD 1.5 has four)",
    "motion-module-diffusers": "a motion module in the diffusers layout",
    "motion-lora": "a motion LoRA",
    "lora": "a LoRA",
    "controlnet": "a ControlNet for Stable Diffusion 1.5",
    "sdxl-controlnet": "a ControlNet for SDXL",
    "control-lora": "a Control-LoRA, which needs the weights of the UNet beside it",
    "controlnet-difference": "the difference of a ControlNet to a checkpoint, which must be added to that first",
    "unet": "a UNet alone",
    "vae": "a VAE alone",
    "text-encoder": "a text encoder alone",
    "embedding": "a textual inversion embedding",
    "unknown": "no model of a kind that is known here",
}
_PICKLE_SUFFIXES = {".ckpt", ".pt", ".pth", ".bin", ".pkl"}


def expanded(path: str | Path) -> str | Path:
    """``path`` with the home folder for a leading ~, as a shell would have it; as it is where there is none."""
    return type(path)(os.path.expanduser(path))  # pathlib's raises where there is no such user


def read_tensors(path: str | Path) -> StateDict:
    """All tensors of one safetensors file, on the CPU, as stored.

    Raises CheckpointError for a missing, damaged or pickled file; a pickle can run code when it is read, so none is.
    """
    with _safetensors_file(Path(path)) as file:
        return {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118


@contextmanager
def _safetensors_file(path: Path) -> Iterator[Any]:
    if not path.exists():
        raise CheckpointError(f"no such file: {path}")
    if path.is_dir():
        raise CheckpointError(f"{path} is a folder; a .safetensors file is needed here")
    if path.suffix.lower() in _PICKLE_SUFFIXES or _looks_pickled(path):
        raise CheckpointError(
            f"{path} is a pickle, which can run code when it is read, so it is refused. "
            "Convert it once, in a place that you trust: "
            "safetensors.torch.save_file(torch.load(path, weights_only=True)['state_dict'], 'out.safetensors'), with "
            "'string_to_param' in place of 'state_dict' for a textual inversion"
        )
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="pt") as file:
            yield file
    except (SafetensorError, OSError, ValueError) as error:
        raise CheckpointError(
            f"{path} is damaged or not a safetensors file ({error}). Download or copy it again"
        ) from error


def _looks_pickled(path: Path) -> bool:
    with path.open("rb") as file:
        head = file.read(4)
    return head.startswith(b"PK\x03\x04") or head[:2] in (b"\x80\x02", b"\x80\x03", b"\x80\x04", b"\x80\x05")


def read_shapes(path: str | Path) -> Shapes:
    """The shapes of all tensors of one safetensors file, from its header alone. Raises as ``read_tensors``."""
    with _safetensors_file(Path(path)) as file:
        return {key: tuple(file.get_slice(key).get_shape()) for key in file.keys()}  # noqa: SIM118


def check_file(path: str | Path, wanted: Collection[Kind], purpose: str) -> None:
    """As ``require_kind``, from the file's header alone."""
    require_kind(path, read_shapes(path), wanted, purpose)


def shapes_of(tensors: StateDict) -> Shapes:
    return {key: tuple(tensor.shape) for key, tensor in tensors.items()}


def recognise(shapes: Shapes) -> Kind:
    """What kind of model file these are the tensors of, by the names of its keys and a few shapes."""
    for kind, matches in _RULES:
        if matches(shapes):
            return kind
    first = shapes.get("model.diffusion_model.input_blocks.0.0.weight")
    if first is None:
        return "unknown"
    if first[1] != 4:
        return "sd15-inpainting"
    cross = next((shape for key, shape in shapes.items() if key.endswith("attn2.to_k.weight")), None)
    return "sd2" if cross is not None and cross[1] == 1024 else "sd15"


def _any(*parts: str) -> Callable[[Collection[str]], bool]:
    return lambda keys: any(part in key for key in keys for part in parts)


def _start(*prefixes: str) -> Callable[[Collection[str]], bool]:
    return lambda keys: any(key.startswith(prefixes) for key in keys)


def _motion(*, four_levels: bool) -> Callable[[Collection[str]], bool]:
    return lambda keys: _any("temporal_transformer.")(keys) and _any("down_blocks.3.")(keys) is four_levels


_controlnet = _any("control_model.", "input_hint_block.", "controlnet_cond_embedding.", "zero_convs.")

# First match wins: the special before the general.
_RULES: tuple[tuple[Kind, Callable[[Collection[str]], bool]], ...] = (
    ("motion-lora", lambda keys: _any("temporal_transformer.", "motion_modules.")(keys) and _any("lora")(keys)),
    ("motion-module", _motion(four_levels=True)),
    ("sdxl-motion-module", _motion(four_levels=False)),
    ("motion-module-diffusers", lambda keys: _any("motion_modules.")(keys) and not _start("conv_in.")(keys)),
    ("lora", _any("lora_up.", "lora_down.", "lora_A.", "lora_B.", ".lora.", "_lora.", ".lora_linear_layer.")),
    ("lora", _any("hada_w1", "lokr_w", ".dora_scale")),
    ("lora", _start("lora_unet_", "lora_te", "lycoris_")),
    ("control-lora", lambda keys: "lora_controlnet" in keys),
    ("controlnet-difference", lambda keys: "difference" in keys),
    ("sdxl-controlnet", lambda keys: _controlnet(keys) and _any("label_emb.", "add_embedding.")(keys)),
    ("controlnet", _controlnet),
    ("sdxl", _any("model.diffusion_model.label_emb.", "conditioner.embedders.", "add_embedding.")),
    ("other-diffusion", _any("double_blocks.", "joint_blocks.", "transformer_blocks.0.attn.to_q.", "cap_embedder.")),
    ("embedding", _any("emb_params", "string_to_param")),
    ("unet", _start("down_blocks.0.resnets.", "input_blocks.0.")),
    ("vae", lambda keys: _start("encoder.", "first_stage_model.")(keys) and not _start("model.diffusion_model.")(keys)),
    ("text-encoder", lambda keys: _start("text_model.", "cond_stage_model.")(keys) and not _start("model.")(keys)),
)


def all_finite(tensor: Tensor) -> bool:
    """Whether there is no NaN and no infinity; the sum tells it, unless it overflows itself."""
    return bool(torch.isfinite(tensor.sum(dtype=torch.float32)) or torch.isfinite(tensor).all())


def require_kind(path: str | Path, shapes: Shapes, wanted: Collection[Kind], purpose: str) -> None:
    """Raise a CheckpointError that says what the file is and where it belongs, unless it is what is wanted."""
    kind = recognise(shapes)
    if kind in wanted:
        return
    remedy = {
        "lora": "Give it as a LoRA: --lora FILE, or loras=[(path, strength)]",
        "motion-lora": "Give it as a motion LoRA: --motion-lora FILE, or motion_loras=[(path, strength)]",
        "controlnet": "Give it as a ControlNet: detail --controlnet FILE, or ControlNetWrapper(load_controlnet(path))",
        "motion-module": "Give it as the motion module: --motion-module FILE, or motion_module=path",
        "embedding": "Give it as a textual inversion: --embedding FILE, or embeddings=[path]",
        "vae": "Give it as the VAE: --vae FILE, or vae=path",
        "motion-module-diffusers": "Give the file in its original layout (keys with 'temporal_transformer')",
        "sd15": "Give it as the checkpoint: --checkpoint FILE, or load_pipe(path)",
    }.get(kind, f"Choose {' or '.join(_ARTICLE[k] for k in wanted)}")
    raise CheckpointError(f"{path} cannot be used as {purpose}: it is {_ARTICLE[kind]}. {remedy}")


def count_numbered(keys: Iterable[str], pattern: str) -> int:
    """How many there are of what keys number from 0: the pattern's group is the number."""
    return 1 + max(int(match[1]) for match in map(re.compile(pattern).match, keys) if match)


@contextmanager
def reading(source: str, what: str = "Stable Diffusion 1.5 model") -> Iterator[None]:
    """Turn what goes wrong while a file's tensors are looked up and renamed into one message."""
    try:
        yield
    except AnimDetailError:
        raise
    except (AttributeError, IndexError, KeyError, StopIteration, TypeError, ValueError) as error:
        raise CheckpointError(
            f"{source} lacks a part that every {what} has ({error!r}). "
            "It is damaged, or a variant that this version does not read"
        ) from error


@dataclass(frozen=True)
class Placement:
    """Where a module's weights live, and as what."""

    device: torch.device
    dtype: torch.dtype


def load_exactly(module: torch.nn.Module, tensors: StateDict, source: str, place: Placement) -> None:
    """Give a module on the meta device its weights; a tensor missing, left over or misshapen is named."""
    shapes = {key: value.shape for key, value in module.state_dict().items()}
    missing = sorted(shapes.keys() - tensors.keys())
    unexpected = sorted(tensors.keys() - shapes.keys())
    misshapen = [key for key in shapes.keys() & tensors.keys() if shapes[key] != tensors[key].shape]
    whole_numbers = sorted(key for key, value in tensors.items() if not value.is_floating_point())
    for what, names in (
        ("has quantised", whole_numbers),
        ("lacks", missing),
        ("has unknown", unexpected),
        ("has misshapen", sorted(misshapen)),
    ):
        if names:
            raise CheckpointError(
                f"{source} {what} {len(names)} tensors, the first of them {names[0]!r}. "
                "It is damaged, or a variant that this version does not read"
            )
    module.load_state_dict(
        {key: value.to(place.device, place.dtype) for key, value in tensors.items()}, strict=True, assign=True
    )
    module.eval().requires_grad_(False)
