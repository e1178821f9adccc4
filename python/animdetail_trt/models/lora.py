"""LoRA and its kin, merged into the weights beside which they were trained.

Every kind is a difference dW that is added, times its strength, to a weight W (scaled by alpha / rank):
LoRA and LoCon (Hu et al. 2021, arXiv:2106.09685; LyCORIS, Yeh et al. 2023, arXiv:2309.14859), LoHa (FedPara, Hyeon-Woo
et al. 2021, arXiv:2108.06098), LoKr (Edalati et al. 2022, arXiv:2212.10650), whole differences, and DoRA (Liu et al.
2024, arXiv:2402.09353), which gives the rows or columns of W + dW a length of their own.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeAlias

import torch
from torch import Tensor

from animdetail_trt.checks import is_finite
from animdetail_trt.errors import CheckpointError, InputError
from animdetail_trt.models.checkpoint import (
    StateDict,
    all_finite,
    expanded,
    read_tensors,
    require_kind,
    shapes_of,
    weights_in,
)
from animdetail_trt.models.kinds import Kind
from animdetail_trt.models.lora_names import Names, motion_names, plain_name, text_names, unet_names

LoraFiles: TypeAlias = Sequence[tuple[str | Path, float]]
"""Paths and strengths; strength 1 is as trained."""

logger = logging.getLogger(__name__)

_UP_DOWN = (
    (".lora_up.weight", ".lora_down.weight"),  # kohya, LyCORIS
    (".lora_B.weight", ".lora_A.weight"),  # peft
    (".lora_B.default.weight", ".lora_A.default.weight"),
    (".lora.up.weight", ".lora.down.weight"),  # diffusers, oldest last
    ("_lora.up.weight", "_lora.down.weight"),
    (".lora_linear_layer.up.weight", ".lora_linear_layer.down.weight"),
)
_LYCORIS_PARTS = (
    *("alpha", "dora_scale", "diff", "diff_b"),
    *("hada_w1_a", "hada_w1_b", "hada_w2_a", "hada_w2_b", "hada_t1", "hada_t2"),
    *("lokr_w1", "lokr_w1_a", "lokr_w1_b", "lokr_w2", "lokr_w2_a", "lokr_w2_b", "lokr_t2"),
)
_PART_OF_SUFFIX = (
    {suffix: part for pair in _UP_DOWN for suffix, part in zip(pair, ("up", "down"), strict=True)}
    | {f".{part}": part for part in _LYCORIS_PARTS}
    | {".lora_mid.weight": "mid", ".w_norm": "diff", ".b_norm": "diff_b"}
)


_SCALES = {"alpha", "dora_scale"}
"""Parts that change nothing by themselves."""


@dataclass
class Module:
    """What a file holds for one module. parts: ``up``, ``down``, ``alpha``, ``hada_w1_a``, ...; keys: the file's."""

    parts: dict[str, Tensor] = field(default_factory=dict)
    keys: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Lora:
    """modules: by name; strays: keys that end in no known part; source: the file."""

    modules: Mapping[str, Module]
    strays: tuple[str, ...]
    source: str


@dataclass(frozen=True)
class Coverage:
    """How many of a file's tensors found their place, single numbers (alpha) aside; and the keys of the others."""

    source: str
    matched: int
    total: int
    unmatched: tuple[str, ...]

    def __str__(self) -> str:
        return f"{Path(self.source).name}: {self.matched} of {self.total} tensors"


def check_lora_files(name: str, files: Any) -> LoraFiles:
    """``files`` as pairs of a path and a finite strength; raises InputError where it is not that."""
    try:
        pairs = [(path, strength) for path, strength in files]
    except (TypeError, ValueError):
        raise InputError(f"{name} must be [(path, strength), ...], not {files!r:.80}") from None
    for path, strength in pairs:
        if not isinstance(path, str | Path):
            raise InputError(f"{name} must be [(path, strength), ...]; a path is {path!r:.80}")
        if not is_finite(strength):
            raise InputError(f"{name}: the strength of {path} must be a finite number, not {strength!r:.80}")
    return [(weights_in(expanded(path)), float(strength)) for path, strength in pairs]


def merge_loras(files: LoraFiles, unet: StateDict, text: StateDict | None) -> tuple[StateDict, StateDict | None]:
    """A UNet's tensors (diffusers layout) and a text encoder's with every LoRA merged in order, in float32.

    What each file covered is logged. Raises CheckpointError for a file that does not fit, or has no place at all.
    """
    for path, strength in files:
        lora = read_lora(path)
        unet, used = merge(lora, strength, unet, unet_names(unet))
        if text is not None:
            text, used_by_text = merge(lora, strength, text, text_names(text))
            used |= used_by_text
        report(lora, used)
    return unet, text


def merge_motion_loras(files: LoraFiles, motion: StateDict, rename: Callable[[str], str]) -> StateDict:
    """As ``merge_loras``, for a motion module (diffusers layout); ``rename`` brings the files' names to that layout."""
    for path, strength in files:
        lora = read_lora(path, ("motion-lora",), "a motion LoRA", rename)
        motion, used = merge(lora, strength, motion, motion_names(motion))
        report(lora, used)
    return motion


def read_lora(
    path: str | Path,
    wanted: Collection[Kind] = ("lora",),
    purpose: str = "a LoRA",
    rename: Callable[[str], str] = plain_name,
) -> Lora:
    """Read a file and sort its tensors by module; ``rename`` is applied to the modules' names."""
    tensors = read_tensors(path)
    require_kind(path, shapes_of(tensors), wanted, purpose)
    modules: dict[str, Module] = {}
    strays = []
    for key, tensor in tensors.items():
        suffix = next((suffix for suffix in _PART_OF_SUFFIX if key.endswith(suffix)), None)
        if suffix is None:
            strays.append(key)
            continue
        # diffusers writes alpha, a rank, as a whole number.
        if not (tensor.is_floating_point() or suffix == ".alpha") or not all_finite(tensor):
            raise CheckpointError(f"{path}: {key!r} holds whole numbers, NaN or infinity: it is damaged, or quantised")
        module = modules.setdefault(rename(key.removesuffix(suffix)), Module())
        module.parts[_PART_OF_SUFFIX[suffix]] = tensor
        module.keys.append(key)
    return Lora(modules, tuple(strays), str(path))


def merge(lora: Lora, strength: float, tensors: StateDict, names: Names) -> tuple[StateDict, set[str]]:
    """``tensors`` with the modules that ``names`` knows merged; and which modules those were."""
    used = {name for name, module in lora.modules.items() if name in names and module.parts.keys() - _SCALES}
    merged = dict(tensors)
    for name, module in lora.modules.items():
        if name in used:
            try:
                _merge_module(merged, names[name], module.parts, strength)
            except KeyError as error:
                raise CheckpointError(f"{lora.source}: {name} lacks its part {error}. The file is damaged") from error
            except (IndexError, RuntimeError, ValueError) as error:
                shapes = ", ".join(f"{part} {tuple(tensor.shape)}" for part, tensor in module.parts.items())
                raise CheckpointError(
                    f"{lora.source}: {name} ({shapes}) does not fit {names[name]!r} "
                    f"{tuple(tensors[names[name]].shape)}. It is damaged, or made for a model other than SD 1.5"
                ) from error
    return merged, used


def report(lora: Lora, used: Collection[str]) -> Coverage:
    """Log how much of the file was used, and name what was not. Raises CheckpointError where nothing was."""
    tensors = {name: [k for k in module.keys if not k.endswith(".alpha")] for name, module in lora.modules.items()}
    unmatched = (*(key for name, keys in tensors.items() if name not in used for key in keys), *lora.strays)
    total = sum(map(len, tensors.values())) + len(lora.strays)
    if not used:
        raise CheckpointError(
            f"{lora.source}: none of its {total} tensors belongs to this model, as {unmatched[0]!r}. "
            "Choose a LoRA for SD 1.5, and a checkpoint that holds what it was trained on"
        )
    coverage = Coverage(lora.source, total - len(unmatched), total, unmatched)
    logger.info("%s", coverage)
    if unmatched:
        more = f" and {len(unmatched) - 10} more" if len(unmatched) > 10 else ""
        logger.warning("%s; this model has no place for %s%s", coverage, ", ".join(unmatched[:10]), more)
    return coverage


def _merge_module(tensors: StateDict, key: str, parts: Mapping[str, Tensor], strength: float) -> None:
    """Replace a module's weight, and its bias where the file changes it."""
    parts = {part: tensor.float() for part, tensor in parts.items()}
    if parts.keys() - _SCALES - {"diff_b"}:
        weight = tensors[key].float() if tensors[key].itemsize == 1 else tensors[key]  # float8 knows no sums
        delta, scale = _delta(parts)
        delta = delta.reshape(weight.shape).mul_(scale)
        if "dora_scale" in parts:
            delta = _decomposed(weight.float(), delta, parts["dora_scale"]) - weight
        tensors[key] = delta.mul_(strength).add_(weight)  # in place: fresh memory costs more than the sums
    if "diff_b" in parts:
        key = f"{key.removesuffix('weight')}bias"
        if key not in tensors:
            raise ValueError(f"{key} does not exist")
        bias = tensors[key].float()
        tensors[key] = bias + strength * parts["diff_b"].reshape(bias.shape)


def _delta(parts: Mapping[str, Tensor]) -> tuple[Tensor, float]:
    """dW, a new tensor with as many elements as W, and its scale."""
    if "diff" in parts:
        return parts["diff"].clone(), 1.0
    if any(part.startswith("lokr_") for part in parts):
        delta, rank = _kronecker(parts)
    elif any(part.startswith("hada_") for part in parts):
        delta = _product(parts, "hada_w1", "hada_t1") * _product(parts, "hada_w2", "hada_t2")
        rank = len(parts["hada_w1_b"])
    else:
        delta, rank = _low_rank(parts["up"], parts["down"], parts.get("mid")), len(parts["down"])
    return delta, parts["alpha"].item() / rank if "alpha" in parts and rank else 1.0


def _low_rank(up: Tensor, down: Tensor, mid: Tensor | None) -> Tensor:
    """up (o, r, ...) times down (r, i, ...); LoCon may have mid (r, r, kh, kw) in between."""
    if mid is None:
        return up.flatten(1) @ down.flatten(1)
    return torch.einsum("oa,abxy,bi->oixy", up.flatten(1), mid, down.flatten(1))


def _product(parts: Mapping[str, Tensor], name: str, core: str) -> Tensor:
    """a (o, r) times b (r, i); around a core (r, r, kh, kw), Tucker's form of a convolution, a is (r, o)."""
    a, b = parts[f"{name}_a"], parts[f"{name}_b"]
    return torch.einsum("abxy,bi,ao->oixy", parts[core], b, a) if core in parts else a @ b


def _kronecker(parts: Mapping[str, Tensor]) -> tuple[Tensor, int]:
    """w1 (x) w2, each of them whole or a product; and the rank, 0 where both are whole: alpha has no say there."""
    rank = 0
    factors = []
    for name, core in (("lokr_w1", "lokr_t1"), ("lokr_w2", "lokr_t2")):
        if name in parts:
            factors.append(parts[name])
        else:
            factors.append(_product(parts, name, core))
            rank = len(parts[f"{name}_b"])
    first, second = factors
    first = first[..., None, None] if second.ndim == 4 else first
    return torch.kron(first, second.contiguous()), rank


def _decomposed(weight: Tensor, delta: Tensor, dora_scale: Tensor) -> Tensor:
    """W + dW with its rows (dora_scale (o, 1, ...)) or columns ((1, i, ...)) brought to the length dora_scale.

    As the reference has it, what rows are divided by is the length that they had before dW was added.
    """
    moved = weight + delta
    by_row = dora_scale.shape[0] == weight.shape[0]
    along = [axis for axis in range(weight.ndim) if axis != (0 if by_row else 1)]
    length: Tensor = torch.linalg.vector_norm(weight if by_row else moved, dim=along, keepdim=True)
    return moved * (dora_scale.reshape(length.shape) / (length + torch.finfo(torch.float32).eps))
