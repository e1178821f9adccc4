"""The contact sheet shows the pictures that it was given, at the places that its headings name."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from animdetail_trt.errors import MediaError
from animdetail_trt.media.preview import SheetFrame, check_sheet, contact_sheet, pick_rows, save_sheet
from animdetail_trt.segs import SEG

RED, GREEN = torch.tensor([1.0, 0, 0]), torch.tensor([0, 1.0, 0])


def sheet_of(rows: int = 2, segs: int = 1) -> Image.Image:
    before, after = torch.zeros(48, 64, 3) + RED, torch.zeros(48, 64, 3) + GREEN
    frames = [SheetFrame(f"frame {i}", "", before, after, i) for i in range(rows)]
    mask = torch.zeros(20, 30)
    mask[5:15, 5:25] = 1
    entries = [SEG(None, mask, 0.5, (10, 10, 40, 30), (15, 15, 35, 25), "face")] * segs
    return contact_sheet(frames, ((48, 64), entries), "title")


def share(sheet: Image.Image, colour: tuple[int, int, int]) -> float:
    return float((np.asarray(sheet) == colour).all(axis=2).mean())


def test_pictures_before_and_after_are_on_it() -> None:
    sheet = sheet_of()
    assert share(sheet, (255, 0, 0)) > 0.1
    assert share(sheet, (0, 255, 0)) > 0.1
    middle = sheet.width // 2
    columns = np.asarray(sheet)
    assert not (columns[:, middle:] == (255, 0, 0)).all(axis=2).any()  # what came before stands on the left


def test_a_block_for_each_segment_and_a_row_for_each_frame() -> None:
    one, taller, two = sheet_of(rows=1), sheet_of(rows=2), sheet_of(rows=1, segs=2)
    assert one.width == taller.width == two.width
    assert one.height < taller.height
    assert one.height < two.height


@pytest.mark.parametrize("width", [20, 64, 200])
def test_title_and_subtitle_stand_apart(width: int) -> None:
    """Drawn together they take as many pixels as the two drawn alone, and both end before the edge."""
    picture = torch.zeros(100, width, 3)

    def ink(title: str, subtitle: str) -> np.ndarray:
        sheet = contact_sheet([SheetFrame("", "", picture, picture, 0)], ((100, width), []), title, subtitle)
        drawn: np.ndarray = (np.asarray(sheet)[:80] != (18, 20, 24)).any(axis=2)  # above the headings
        return drawn

    title, subtitle = (
        "the title of a clip.mp4   120 frames of 100x100",
        "euler / simple   20 steps   cfg 8   seed 12345",
    )
    both = ink(title, subtitle)
    assert not both[:, -20:].any()
    assert both.sum() == pytest.approx(ink(title, "").sum() + ink("", subtitle).sum(), rel=0.02)


def test_no_segments_and_odd_shapes() -> None:
    assert sheet_of(segs=0).height < sheet_of(segs=1).height
    tall = [SheetFrame("", "", torch.zeros(200, 3, 3), torch.zeros(200, 3, 3), 0)]
    outside = SEG(None, np.ones((4, 5, 5), np.float32), 1.0, (-3, 190, 9, 230), (500, 500, 510, 510), "")
    contact_sheet(tall, ((400, 6), [outside]), "scaled, tall, outside")


@pytest.mark.parametrize(("count", "rows", "picked"), [(10, 2, [2, 7]), (3, 5, [0, 1, 2]), (1, 4, [0])])
def test_rows_are_spread(count: int, rows: int, picked: list[int]) -> None:
    assert pick_rows(count, rows) == picked


@pytest.mark.parametrize("suffix", [".png", ".jpg", ".webp"])
def test_saved_whole(tmp_path: Path, suffix: str) -> None:
    sheet = sheet_of()
    save_sheet(tmp_path / f"sheet{suffix}", sheet)
    assert [path.name for path in tmp_path.iterdir()] == [f"sheet{suffix}"]
    assert Image.open(tmp_path / f"sheet{suffix}").size == sheet.size


def test_a_sheet_that_the_format_cannot_hold(tmp_path: Path) -> None:
    for name in ("sheet.webp", "sheet.jpg"):
        check_sheet(tmp_path / name, 4, 8)
        with pytest.raises(MediaError, match=r"64 rows for each of 8 segments is 91\d+ pixels tall"):
            check_sheet(tmp_path / name, 64, 8)
    check_sheet(tmp_path / "sheet.png", 64, 8)


def test_the_tallest_webp_is_written(tmp_path: Path) -> None:
    """One row more is refused before the work, and this one is not in vain."""
    check_sheet(tmp_path / "sheet.webp", 90, 1)
    with pytest.raises(MediaError, match="pixels tall"):
        check_sheet(tmp_path / "sheet.webp", 92, 1)
    save_sheet(tmp_path / "sheet.webp", sheet_of(rows=90))
