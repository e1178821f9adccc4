"""SEGS files: what is written is read back, what is wrong is named."""

from __future__ import annotations

import errno
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image
from safetensors.torch import save_file

from animdetail_trt.errors import MediaError
from animdetail_trt.media.segs_file import named_masks, read_segs, write_segs
from animdetail_trt.segs import SEG


def put(folder: Path, *segs: Any, size: Any = (48, 64)) -> Path:
    path = folder / "segs.json"
    path.write_text(json.dumps({"size": size, "segs": list(segs)}))
    return path


@st.composite
def seg(draw: st.DrawFn) -> SEG:
    w, h = draw(st.integers(1, 12)), draw(st.integers(1, 12))
    x1, y1 = draw(st.integers(1 - w, 63)), draw(st.integers(1 - h, 47))
    count = draw(st.sampled_from([None, 1, 3]))
    shape = (h, w) if count is None else (count, h, w)
    mask: Any = np.random.default_rng(draw(st.integers(0, 99))).random(shape, dtype=np.float32)
    if draw(st.booleans()):
        mask = torch.from_numpy(mask)
    return SEG(None, mask, draw(st.floats(0, 1)), (x1, y1, x1 + w, y1 + h), (x1, y1, x1 + w, y1 + h), draw(st.text()))


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(segs=st.lists(seg(), max_size=3))
def test_round_trip_is_exact(tmp_path: Path, segs: list[SEG]) -> None:
    write_segs(tmp_path / "out.json", ((48, 64), segs))
    size, back = read_segs(tmp_path / "out.json")
    assert size == (48, 64)
    assert len(back) == len(segs)
    for was, now in zip(segs, back, strict=True):
        assert torch.equal(now.cropped_mask, torch.as_tensor(was.cropped_mask))
        assert now[2:6] == was[2:6]


@pytest.mark.parametrize("shape", [(48, 64), (3, 48, 64)])
def test_masks_that_share_memory(tmp_path: Path, shape: tuple[int, ...]) -> None:
    """Segments that cover the frame may hold one mask, or views of one tensor."""
    stack = torch.rand(2, *shape)
    masks = [stack[0], stack[0], stack[1], stack[1].numpy()]
    segs = [SEG(None, mask, 1.0, (0, 0, 64, 48), (0, 0, 64, 48), "") for mask in masks]
    write_segs(tmp_path / "out.json", ((48, 64), segs))
    for mask, now in zip(masks, read_segs(tmp_path / "out.json")[1], strict=True):
        assert torch.equal(now.cropped_mask, torch.as_tensor(mask))


@pytest.mark.parametrize("method", ["write_text", "write_bytes"])
def test_both_files_are_replaced_or_neither(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, method: str) -> None:
    def full(*_: Any, **__: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    was = SEG(None, torch.zeros(2, 2), 1.0, (0, 0, 2, 2), (0, 0, 2, 2), "old")
    write_segs(tmp_path / "a.json", ((8, 8), [was]))
    before = {path: path.read_bytes() for path in tmp_path.iterdir()}
    monkeypatch.setattr(Path, method, full)
    with pytest.raises(MediaError, match="the disk is full"):
        write_segs(tmp_path / "a.json", ((8, 8), [was._replace(cropped_mask=torch.ones(2, 2), label="new")]))
    assert {path: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_a_bbox_is_enough(tmp_path: Path) -> None:
    _, [entry] = read_segs(put(tmp_path, {"bbox": [20, 16, 30, 24]}))
    assert entry.crop_region == (10, 8, 40, 32)  # three times 10x8, about the same centre
    mask = torch.zeros(24, 30)
    mask[8:16, 10:20] = 1
    assert torch.equal(entry.cropped_mask, mask)
    assert (entry.confidence, entry.label) == (1.0, "")


def test_a_crop_region_is_enough(tmp_path: Path) -> None:
    _, [entry] = read_segs(put(tmp_path, {"crop_region": [20, 16, 30, 24], "label": "face"}))
    assert entry.bbox == entry.crop_region == (20, 16, 30, 24)
    assert torch.equal(entry.cropped_mask, torch.ones(8, 10))


def test_a_bbox_that_reaches_over_the_crop(tmp_path: Path) -> None:
    _, [entry] = read_segs(put(tmp_path, {"crop_region": [20, 16, 30, 24], "bbox": [10, 10, 24, 60]}))
    mask = torch.zeros(8, 10)
    mask[:, :4] = 1
    assert torch.equal(entry.cropped_mask, mask)


def test_masks_from_an_image_and_from_a_folder(tmp_path: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (2, 8, 10), dtype=np.uint8)
    (tmp_path / "masks").mkdir()
    for index, picture in enumerate(pixels):
        Image.fromarray(picture).save(tmp_path / "masks" / f"{index}.png")
    region = {"crop_region": [0, 0, 10, 8]}
    _, [one, many] = read_segs(put(tmp_path, region | {"mask": "masks/1.png"}, region | {"mask": "masks"}))
    assert torch.equal(one.cropped_mask, torch.from_numpy(pixels[1]).float() / 255)
    assert torch.equal(many.cropped_mask, torch.from_numpy(pixels).float() / 255)


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        ({}, r"segs\[0\] has neither bbox nor crop_region"),
        ([], r"segs\[0\] is \[\]"),
        ({"bbox": [0, 0, 5]}, "bbox is .* list of 4 whole numbers"),
        ({"bbox": [0, 0, 5, 4.5]}, "list of 4 whole numbers"),
        ({"bbox": [0, 0, True, 5]}, "list of 4 whole numbers"),
        ({"bbox": [5, 0, 5, 5]}, "no area"),
        ({"bbox": [0, 0, 5, 5], "confidence": "high"}, "confidence is 'high'"),
        ({"bbox": [0, 0, 5, 5], "confidence": float("nan")}, "confidence is 'nan'"),
        ({"bbox": [0, 0, 5, 5], "confidence": float("inf")}, "confidence is 'inf'"),
        ({"bbox": [0, 0, 5, 5], "confidence": 10**400}, "confidence is '1000"),
        ({"bbox": [0, 0, 5, 5], "confidence": 101}, "confidence is 101"),
        ({"bbox": [64, 0, 70, 5]}, r"\[64, 0, 70, 5\] lies outside the frame of 64x48"),
        ({"bbox": [0, -9, 5, 0]}, "lies outside the frame"),
        ({"bbox": [0, 0, 5, 5], "mask": ""}, "mask '' names no file"),
        ({"bbox": [0, 0, 5, 5], "mask": "."}, r"mask '\.' names no file"),
        ({"bbox": [0, 0, 5, 5], "mask": "#"}, "mask '#' names no file"),
        ({"bbox": [0, 0, 5, 5], "maks": "a.png"}, "unknown field 'maks'"),
        ({"bbox": [0, 0, 5, 5], "mask": 3}, "mask is 3"),
        ({"bbox": [0, 0, 5, 5], "mask": "none.png"}, r"segs\[0\]: mask 'none\.png': .*none\.png does not exist"),
        ({"bbox": [0, 0, 5, 5], "mask": "empty"}, r"segs\[0\]: mask 'empty': the folder .* holds no images"),
        (
            {"bbox": [0, 0, 5, 5], "crop_region": [5, 0, 9, 9]},
            r"bbox \[0, 0, 5, 5\] lies outside crop_region \[5, 0, 9, 9\]",
        ),
        ({"bbox": [0, 0, 5, 5], "mask": "none.safetensors#0"}, "cannot read mask none.safetensors#0"),
    ],
)
def test_wrong_entries_are_named(tmp_path: Path, entry: Any, message: str) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(MediaError, match=message):
        read_segs(put(tmp_path, entry))


@pytest.mark.parametrize(
    ("size", "region", "told"),
    [
        ((10, 8), [0, 0, 20, 16], False),
        ((13, 11), [0, 0, 20, 16], False),  # as near as whole pixels come
        ((10, 16), [54, 0, 74, 16], False),  # of the part inside the frame
        ((64, 48), [0, 0, 20, 20], True),  # of the frame
    ],
)
def test_a_mask_that_is_stretched_is_told(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, size: tuple[int, int], region: list[int], told: bool
) -> None:
    Image.new("L", size, 255).save(tmp_path / "a.png")
    assert len(read_segs(put(tmp_path, {"crop_region": region, "mask": "a.png"}))[1]) == 1
    assert ("segs[0]: mask a.png is 64x48 pixels, its crop_region 20x20: it is stretched" in caplog.text) is told
    assert bool(caplog.records) is told


def test_a_missing_mask_key_is_named(tmp_path: Path) -> None:
    write_segs(tmp_path / "a.json", ((8, 8), [SEG(None, torch.ones(2, 2), 1.0, (0, 0, 2, 2), (0, 0, 2, 2), "")]))
    path = put(tmp_path, {"bbox": [0, 0, 2, 2], "mask": "a.masks.safetensors#7"})
    with pytest.raises(MediaError, match="a.masks.safetensors#7"):
        read_segs(path)


@pytest.mark.parametrize(
    ("value", "told"), [(255.0, r"spans 255\.\.255\. Divide"), (-1.0, r"spans -1\.\.-1"), (float("nan"), "NaN")]
)
def test_a_mask_of_no_0_to_1_is_refused(tmp_path: Path, value: float, told: str) -> None:
    save_file({"m": torch.full((2, 2), value)}, tmp_path / "a.safetensors")
    with pytest.raises(MediaError, match=rf"segs\[0\]: mask a\.safetensors#m .*{told}"):
        read_segs(put(tmp_path, {"bbox": [0, 0, 2, 2], "mask": "a.safetensors#m"}))


def test_masks_of_integers(tmp_path: Path) -> None:
    """As the node takes them: 0..255, and 0 and 1."""
    bytes_, ones = torch.tensor([[0, 255], [51, 255]], dtype=torch.uint8), torch.tensor([[0, 1]])
    save_file({"m": bytes_}, tmp_path / "a.safetensors")
    (read,) = read_segs(put(tmp_path, {"bbox": [0, 0, 2, 2], "mask": "a.safetensors#m"}))[1]
    assert torch.equal(read.cropped_mask, bytes_ / 255)
    write_segs(tmp_path / "segs.json", ((4, 4), [read._replace(cropped_mask=mask) for mask in (bytes_, ones)]))
    first, second = read_segs(tmp_path / "segs.json")[1]
    assert torch.equal(first.cropped_mask, bytes_ / 255)
    assert torch.equal(second.cropped_mask, ones.float())


def test_masks_that_are_named(tmp_path: Path) -> None:
    (tmp_path / "masks").mkdir()
    Image.new("L", (2, 2)).save(tmp_path / "masks" / "1.png")
    path = put(tmp_path, *({"mask": name} for name in ("face.png", "a.safetensors#1", "masks")), {"bbox": [0, 0, 1, 1]})
    assert named_masks(path) == [tmp_path / "face.png", tmp_path / "a.safetensors", tmp_path / "masks" / "1.png"]


def test_a_byte_order_mark_is_skipped(tmp_path: Path) -> None:
    path = put(tmp_path, {"bbox": [20, 16, 30, 24]})
    path.write_text(path.read_text(), encoding="utf-8-sig")
    assert len(read_segs(path)[1]) == 1


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"size": [1, 2]}', "\x00", "[" * 100_000, "1" * 5000])
def test_foreign_files_are_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / "segs.json").write_text(text)
    with pytest.raises(MediaError, match=r"segs\.json"):
        read_segs(tmp_path / "segs.json")


def test_missing_file_and_impossible_size(tmp_path: Path) -> None:
    with pytest.raises(MediaError, match="does not exist"):
        read_segs(tmp_path / "none.json")
    with pytest.raises(MediaError, match="above 0"):
        read_segs(put(tmp_path, size=[0, 5]))
