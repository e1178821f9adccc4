"""Textual inversions (Gal et al. 2022, arXiv:2208.01618): learned words, each some rows more of the token table."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from torch import Tensor

from animdetail_trt.errors import CheckpointError, InputError
from animdetail_trt.models.checkpoint import all_finite, expanded, read_tensors, require_kind, shapes_of
from animdetail_trt.models.prompt import file_stem

_KEYS = ("emb_params", "clip_l")


def read_embeddings(paths: Sequence[str | Path]) -> dict[str, Tensor]:
    """The vectors, float32 (n, d), of each file, by the name that prompts call it by.

    Raises CheckpointError for a file that holds none, InputError as ``names_of``.
    """
    return {name: _read(path) for name, path in names_of(paths).items()}


def names_of(paths: Sequence[str | Path]) -> dict[str, str | Path]:
    """Each file by its name without suffix. Raises InputError for two of one name, or one that no prompt can hold."""
    found: dict[str, str | Path] = {}
    for path in _checked(paths):
        name = file_stem(Path(path).name)
        if name in found:
            raise InputError(f"two textual inversions are called {name!r}. Rename the file {path}")
        if not name or any(character.isspace() or character == "," for character in name):
            raise InputError(f"a prompt cannot name {path}: a space or a comma ends a name. Rename the file")
        found[name] = path
    return found


def _checked(paths: Any) -> list[str | Path]:
    """``paths`` as a list; raises InputError where it is none of paths."""
    if isinstance(paths, str | Path) or not all(isinstance(path, str | Path) for path in paths):
        raise InputError(f"embeddings must be a list of paths, not {paths!r:.80}")
    return [expanded(path) for path in paths]


def _read(path: str | Path) -> Tensor:
    tensors = read_tensors(path)
    require_kind(path, shapes_of(tensors), ("embedding", "unknown"), "a textual inversion")
    # Some programs write one tensor under the word's own name.
    rows: Tensor | None = next((tensors[key] for key in _KEYS if key in tensors), None)
    if rows is None and len(tensors) == 1:
        (rows,) = tensors.values()
    if rows is None or rows.ndim not in (1, 2) or not rows.is_floating_point() or not rows.numel():
        shapes = ", ".join(f"{key} {shape}" for key, shape in shapes_of(tensors).items()) or "nothing"
        raise CheckpointError(f"{path} holds no textual inversion, which is vectors (n, d), but {shapes:.200}")
    if not all_finite(rows.float()):
        raise CheckpointError(f"{path} holds NaN or infinity. Download or copy it again")
    return rows.float().reshape(-1, rows.shape[-1])
