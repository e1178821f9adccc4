"""SEGS in a JSON file, written by hand or by ``write_segs``.

::

    {
      "size": [144, 176],                      frame height, width that the regions refer to
      "segs": [
        {
          "bbox": [60, 30, 110, 95],           x1, y1, x2, y2 in pixels, half open
          "crop_region": [10, 0, 160, 144],    default: bbox enlarged by crop_factor, moved into the frame
          "crop_factor": 3.0,                  default 3; only without a crop_region
          "label": "face",                     default ""
          "confidence": 0.98,                  default 1
          "mask": "face.png"                   default: 1 inside bbox, 0 around it
        }
      ]
    }

A mask covers the crop_region and its path is relative to the JSON file: an image (its luminance), a folder of
images (one mask per frame, natural order), or ``masks.safetensors#KEY``, (h, w) or (n, h, w) of floats in 0..1 or
integers in 0..255.
``cropped_image`` and ``control_net_wrapper`` are not kept.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from animdetail_trt.arrays import mask_tensor
from animdetail_trt.errors import InputError, MediaError
from animdetail_trt.geometry import make_crop_region, same_aspect
from animdetail_trt.media.images import list_images, read_masks
from animdetail_trt.media.staging import staged_file
from animdetail_trt.segs import SEG, SEGS, CropRegion

logger = logging.getLogger(__name__)

_FIELDS = {"bbox", "crop_region", "crop_factor", "label", "confidence", "mask"}


def read_segs(path: Path) -> SEGS:
    """SEGS from a file in the layout above, masks float32. Raises MediaError that names the entry and the field."""
    document = _read_document(path)
    height, width = _whole_numbers(document, "size", 2, str(path))
    if height <= 0 or width <= 0:
        raise MediaError(f'{path}: "size" is [{height}, {width}]; both must be above 0.')
    segs = [_read_seg(entry, (height, width), path, index) for index, entry in enumerate(document["segs"])]
    return (height, width), segs


def named_masks(path: Path) -> list[Path]:
    """The files that the SEGS file names as masks, whether they are there or not."""
    named = [entry["mask"] for entry in _read_document(path)["segs"] if isinstance(entry, dict) and "mask" in entry]
    paths = [path.parent / name.partition("#")[0] for name in named if isinstance(name, str)]
    return [file for path in paths for file in (list_images(path) if path.is_dir() else [path])]


def write_segs(path: Path, segs: SEGS) -> None:
    """Write ``segs`` to ``path``, their masks, as float32 in 0..1, to STEM.masks.safetensors beside it.

    Raises InputError for a mask that the node would refuse.
    """
    from safetensors.torch import save

    (height, width), entries = segs
    masks_path = masks_path_of(path)
    # Copies: safetensors refuses tensors that share memory, as full-frame masks of several segments may.
    masks = {
        str(i): mask_tensor(seg.cropped_mask, f"segs[{i}].cropped_mask").clone(memory_format=torch.contiguous_format)
        for i, seg in enumerate(entries)
    }
    document = {
        "size": [int(height), int(width)],
        "segs": [
            {
                "bbox": [int(v) for v in seg.bbox],
                "crop_region": [int(v) for v in seg.crop_region],
                "label": seg.label,
                "confidence": float(seg.confidence),
                "mask": f"{masks_path.name}#{index}",
            }
            for index, seg in enumerate(entries)
        ],
    }
    with staged_file(path) as partial:  # both are whole before either is renamed
        partial.write_text(json.dumps(document, indent=2) + "\n", encoding="utf-8")
        with staged_file(masks_path) as masks_partial:
            masks_partial.write_bytes(save(masks))


def masks_path_of(path: Path) -> Path:
    """Where ``write_segs(path)`` puts the masks."""
    return path.with_name(f"{path.stem}.masks.safetensors")


def _read_seg(entry: Any, size: tuple[int, int], path: Path, index: int) -> SEG:
    where = f"{path}, segs[{index}]"
    if not isinstance(entry, dict):
        raise MediaError(f"{where} is {entry!r}; it must be an object with a bbox or a crop_region.")
    if unknown := sorted(entry.keys() - _FIELDS):
        raise MediaError(f"{where} has the unknown field {unknown[0]!r}. Known are {', '.join(sorted(_FIELDS))}.")
    if "bbox" not in entry and "crop_region" not in entry:
        raise MediaError(f"{where} has neither bbox nor crop_region. Give one of them: [x1, y1, x2, y2].")
    bbox = _region(entry, "bbox" if "bbox" in entry else "crop_region", where)
    if bbox[0] >= size[1] or bbox[1] >= size[0] or bbox[2] <= 0 or bbox[3] <= 0:
        raise MediaError(f"{where}: {list(bbox)} lies outside the frame of {size[1]}x{size[0]}. Check bbox and size.")
    if "crop_region" in entry:
        crop_region = _region(entry, "crop_region", where)
    else:
        crop_factor = _number(entry, "crop_factor", 3.0, where)
        if crop_factor <= 0:
            raise MediaError(f"{where}: crop_factor is {crop_factor}; it must be above 0, 3 is usual.")
        crop_region = make_crop_region(size[1], size[0], bbox, crop_factor)
    if "mask" in entry:
        mask = _read_mask(entry["mask"], path.parent, where)
        _note_stretch(mask, crop_region, size, f"{where}: mask {entry['mask']}")
    else:
        mask = _bbox_mask(bbox, crop_region, size, where)
    confidence = _number(entry, "confidence", 1.0, where)
    if not 0 <= confidence <= 100:
        raise MediaError(f"{where}: confidence is {confidence:g}; it must be 0 to 1 (or to 100, in per cent).")
    return SEG(None, mask, confidence, crop_region, bbox, str(entry.get("label", "")))


def _read_document(path: Path) -> dict[str, Any]:
    try:
        document = json.loads(path.read_text(encoding="utf-8-sig"))
    except FileNotFoundError:
        raise MediaError(f"{path} does not exist. Check the path.") from None
    except (OSError, ValueError, RecursionError) as error:  # not text, not JSON, a number or a nesting without end
        raise MediaError(f"cannot read {path} as a SEGS file: {error}.") from error
    if not isinstance(document, dict) or not isinstance(document.get("segs"), list):
        raise MediaError(f'{path} is no SEGS file: it needs an object with "size": [height, width] and "segs": [...].')
    return document


def _region(entry: Mapping[str, Any], field: str, where: str) -> CropRegion:
    x1, y1, x2, y2 = _whole_numbers(entry, field, 4, where)
    if x2 <= x1 or y2 <= y1:
        raise MediaError(
            f"{where}: {field} {[x1, y1, x2, y2]} has no area. It is [x1, y1, x2, y2] with x2 > x1, y2 > y1."
        )
    return x1, y1, x2, y2


def _whole_numbers(entry: Mapping[str, Any], field: str, count: int, where: str) -> list[int]:
    value = entry.get(field)
    if not isinstance(value, list) or len(value) != count or not all(type(v) is int for v in value):
        raise MediaError(f"{where}: {field} is {value!r}; it must be a list of {count} whole numbers.")
    return value


def _number(entry: Mapping[str, Any], field: str, default: float, where: str) -> float:
    value = entry.get(field, default)
    if type(value) not in (int, float) or not abs(value) < 1e9:
        raise MediaError(f"{where}: {field} is {str(value)!r:.40}; it must be a number.")
    return float(value)


def _read_mask(reference: Any, folder: Path, where: str) -> Tensor:
    if not isinstance(reference, str):
        raise MediaError(
            f"{where}: mask is {reference!r}; it must be the path of an image, a folder or FILE.safetensors#KEY."
        )
    name, _, key = reference.partition("#")
    path = folder / name
    if path == folder:
        raise MediaError(f"{where}: mask {reference!r} names no file. Give a path, or leave mask out for the bbox.")
    if path.suffix == ".safetensors":
        return _read_tensor(path, key, where)
    try:
        return read_masks(list_images(path)) if path.is_dir() else read_masks([path])[0]
    except MediaError as error:
        raise MediaError(f"{where}: mask {reference!r}: {error}") from None


def _read_tensor(path: Path, key: str, where: str) -> Tensor:
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="pt") as file:
            mask: Tensor = file.get_tensor(key)
    except (OSError, SafetensorError) as error:
        raise MediaError(f"{where}: cannot read mask {path.name}#{key}: {error}.") from error
    if mask.ndim not in (2, 3):
        raise MediaError(
            f"{where}: mask {path.name}#{key} has shape {tuple(mask.shape)}; it must be (h, w) or (n, h, w)."
        )
    try:
        return mask_tensor(mask, f"mask {path.name}#{key}")
    except InputError as error:
        raise MediaError(f"{where}: {error}") from None


def _note_stretch(mask: Tensor, crop_region: CropRegion, size: tuple[int, int], what: str) -> None:
    """No error: masks are resized to the crop, and the reference takes any."""
    x1, y1, x2, y2 = crop_region
    height, width = mask.shape[-2:]
    # Of a region that reaches out of the frame, the part inside is what is cropped.
    crops = ((x2 - x1, y2 - y1), (min(x2, size[1]) - max(x1, 0), min(y2, size[0]) - max(y1, 0)))
    if not any(same_aspect((width, height), crop) for crop in crops):
        logger.warning(
            "%s is %dx%d pixels, its crop_region %dx%d: it is stretched. A mask covers the crop_region, not the frame",
            what, width, height, *crops[0],
        )  # fmt: skip


def _bbox_mask(bbox: CropRegion, crop_region: CropRegion, size: tuple[int, int], where: str) -> Tensor:
    """float32 (h, w) over ``crop_region``: 1 inside ``bbox``, 0 around it."""
    left, top, right, bottom = crop_region
    if right - left > 3 * size[1] or bottom - top > 3 * size[0]:
        raise MediaError(
            f"{where}: crop_region {list(crop_region)} is no part of frames of {size[1]}x{size[0]} pixels."
        )
    mask = torch.zeros(bottom - top, right - left)
    x1, y1, x2, y2 = bbox
    if min(right, x2) <= max(left, x1) or min(bottom, y2) <= max(top, y1):
        raise MediaError(
            f"{where}: bbox {list(bbox)} lies outside crop_region {list(crop_region)}, so its mask would be black. "
            "Mend one of them: both are [x1, y1, x2, y2] in frame pixels."
        )
    mask[max(y1 - top, 0) : max(y2 - top, 0), max(x1 - left, 0) : max(x2 - left, 0)] = 1
    return mask
