"""Workflows between the Impact Pack's nodes and ours: with the same inputs in the same order, only names change."""

from __future__ import annotations

from typing import Any

PREFIX = "AnimDetail_"
SWAPPED = ("DetailerForEachPipeForAnimateDiff", "SEGSDetailerForAnimateDiff", "SEGSPaste", "MaskToSEGS_for_AnimateDiff")
_NAMES = ("class_type", "type", "Node name for S&R")


def swap(workflow: Any, *, back: bool = False) -> tuple[Any, int]:
    """A workflow, API or UI form, with these nodes renamed -> it, and how many nodes there were.

    back: from ours to the Impact Pack's
    """
    names = {old: PREFIX + old for old in SWAPPED}
    return _swapped(workflow, {new: old for old, new in names.items()} if back else names)


def _swapped(part: Any, names: dict[str, str]) -> tuple[Any, int]:
    if isinstance(part, list):
        pairs = [_swapped(item, names) for item in part]
        return [item for item, _ in pairs], sum(count for _, count in pairs)
    if not isinstance(part, dict):
        return part, 0
    out, found = {}, 0
    for key, value in part.items():
        if key in _NAMES and isinstance(value, str) and value in names:
            out[key] = names[value]
            found += key != "Node name for S&R"
        else:
            out[key], inner = _swapped(value, names)
            found += inner
    return out, found
