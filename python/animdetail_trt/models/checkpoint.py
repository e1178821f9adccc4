"""Reading model files: safetensors only, and each file recognised before anything is built from it."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Collection, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import torch
from torch import Tensor

from animdetail_trt.errors import AnimDetailError, CheckpointError
from animdetail_trt.models.kinds import ARTICLE, Kind, Shapes, recognise, remedy

StateDict: TypeAlias = dict[str, Tensor]
_PICKLE_SUFFIXES = {".ckpt", ".pt", ".pth", ".bin", ".pkl"}
_CONVERT = (
    "weights = torch.load(path, weights_only=True); weights = weights.get('state_dict', weights); "
    "safetensors.torch.save_file({k: v.contiguous() for k, v in weights.items() if torch.is_tensor(v)}, "
    "'out.safetensors')"
)
# What a download leaves where a model should be, by the first bytes.
_NO_WEIGHTS = (
    (b"version https://git-lfs", "is a Git LFS pointer, which only names the file. Fetch it with `git lfs pull`"),
    (b"<", "is a web page, as a download leaves that needs a login or a licence accepted. Download the file itself"),
    (b"{", "is a text in JSON, as a failed download or an index leaves. Download the weights themselves"),
    (b"GGUF", "is a GGUF file. Give the model as .safetensors"),
)
FOLDER_STEM = "diffusion_pytorch_model"
_FOLDER_STEMS = (FOLDER_STEM, "pytorch_lora_weights")


def expanded(path: str | Path) -> str | Path:
    """``path`` with the home folder for a leading ~, as a shell would have it; as it is where there is none."""
    return type(path)(os.path.expanduser(path))  # pathlib's raises where there is no such user


def weights_in(path: str | Path) -> str | Path:
    """The file in ``path`` where that is a folder which diffusers wrote of one model; else ``path``."""
    folder = Path(path)
    if not folder.is_dir():
        return path
    return next((file for stem in _FOLDER_STEMS if (file := find_weights(folder, stem))), path)


def find_weights(folder: Path, stem: str) -> Path | None:
    """A model's file in the folder that diffusers wrote of it, in full precision where there are both."""
    paths = (folder / name for name in (f"{stem}.safetensors", f"{stem}.fp16.safetensors"))
    return next((path for path in paths if path.exists()), None)


def check_folder(folder: Path) -> None:
    """Raise CheckpointError for a model's folder that holds its weights in another form than one safetensors file."""
    for pickled in sorted(folder.glob("*.bin")):
        read_tensors(pickled)  # raises
    for index in sorted(folder.glob("*.safetensors.index*.json")):
        raise CheckpointError(
            f"{folder} holds its weights in several files ({index.name}), which are not joined here. Load it with "
            "diffusers and save it again: save_pretrained(folder, max_shard_size='100GB')"
        )


def read_config(path: Path) -> dict[str, Any]:
    """The config.json that diffusers writes beside weights; empty where there is none."""
    if not path.exists():
        return {}
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise CheckpointError(f"cannot read {path}: {error}. Copy it again") from error
    if not isinstance(config, dict):
        raise CheckpointError(f"cannot read {path}: it holds no settings. Copy it again")
    return config


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
        check_folder(path)
        raise CheckpointError(f"{path} is a folder; a .safetensors file is needed here")
    head = _first_bytes(path)
    if path.suffix.lower() in _PICKLE_SUFFIXES or _looks_pickled(head):
        raise CheckpointError(
            f"{path} is a pickle, which can run code when it is read, so it is refused. "
            f"Convert it once, in a place that you trust: {_CONVERT}, with "
            "'string_to_param' in place of 'state_dict' for a textual inversion"
        )
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="pt") as file:
            yield file
    except (SafetensorError, OSError, ValueError) as error:
        raise CheckpointError(f"{path} {_what_else(head, error)}") from error


def _first_bytes(path: Path) -> bytes:
    try:
        with path.open("rb") as file:
            return file.read(64)
    except OSError as error:
        raise CheckpointError(f"cannot read {path}: {error.strerror}. Check its permissions, and its drive") from error


def _looks_pickled(head: bytes) -> bool:
    return head.startswith(b"PK\x03\x04") or head[:2] in (b"\x80\x02", b"\x80\x03", b"\x80\x04", b"\x80\x05")


def _what_else(head: bytes, error: Exception) -> str:
    """What a file is that is no safetensors file, and the remedy."""
    if not head.strip(b"\0"):
        return "is empty: a download that was not finished. Download or copy it again"
    text = head.removeprefix(b"\xef\xbb\xbf").lstrip()
    known = (words for start, words in _NO_WEIGHTS if text.startswith(start))
    return next(known, f"is damaged or not a safetensors file ({error}). Download or copy it again")


def read_shapes(path: str | Path) -> Shapes:
    """The shapes of all tensors of one safetensors file, from its header alone. Raises as ``read_tensors``."""
    with _safetensors_file(Path(path)) as file:
        return {key: tuple(file.get_slice(key).get_shape()) for key in file.keys()}  # noqa: SIM118


def check_file(path: str | Path, wanted: Collection[Kind], purpose: str) -> None:
    """As ``require_kind``, from the file's header alone."""
    require_kind(path, read_shapes(path), wanted, purpose)


def shapes_of(tensors: StateDict) -> Shapes:
    return {key: tuple(tensor.shape) for key, tensor in tensors.items()}


def all_finite(tensor: Tensor) -> bool:
    """Whether there is no NaN and no infinity; the sum tells it, unless it overflows itself."""
    return bool(torch.isfinite(tensor.sum(dtype=torch.float32)) or torch.isfinite(tensor.float()).all())


def require_kind(path: str | Path, shapes: Shapes, wanted: Collection[Kind], purpose: str) -> None:
    """Raise a CheckpointError that says what the file is and where it belongs, unless it is what is wanted."""
    kind = recognise(shapes)
    if kind in wanted:
        return
    raise CheckpointError(f"{path} cannot be used as {purpose}: it is {ARTICLE[kind]}. {remedy(kind, wanted)}")


def count_numbered(keys: Iterable[str], pattern: str) -> int:
    """How many there are of what keys number from 0: the pattern's group is the number. Raises KeyError for none."""
    numbers = [int(match[1]) for match in map(re.compile(pattern).match, keys) if match]
    if not numbers:
        raise KeyError(pattern.replace("\\", "").replace("(d+)", "0"))
    return 1 + max(numbers)


@contextmanager
def reading(source: str, what: str = "Stable Diffusion 1.5 model") -> Iterator[None]:
    """Turn what goes wrong while a file's tensors are looked up and renamed into one message."""
    try:
        yield
    except AnimDetailError:
        raise
    except (AttributeError, ArithmeticError, LookupError, StopIteration, TypeError, ValueError) as error:
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
