"""Image files and folders as frames."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from animdetail_trt.errors import MediaError
from animdetail_trt.media.images import (
    image_size,
    list_images,
    read_images,
    read_masks,
    stems_of,
    write_image,
    write_images,
)
from clips import patches


def save(path: Path, pixels: np.ndarray, **options: object) -> Path:
    Image.fromarray(pixels).save(path, **options)
    return path


def test_natural_order_without_hidden_and_other_files(tmp_path: Path) -> None:
    picture = patches(16, 16)[0]
    for name in ("f10.png", "f2.PNG", "f1.jpg", ".f0.png", "g.webp"):
        save(tmp_path / name, picture)
    (tmp_path / "notes.txt").touch()
    assert [path.name for path in list_images(tmp_path)] == ["f1.jpg", "f2.PNG", "f10.png", "g.webp"]


def test_empty_folder_is_told(tmp_path: Path) -> None:
    with pytest.raises(MediaError, match="holds no images"):
        list_images(tmp_path)


def test_round_trip_is_exact(tmp_path: Path) -> None:
    frames = torch.from_numpy(patches(33, 17, 3)).float() / 255
    write_images(tmp_path / "out", frames, ["a", "b", "c"])
    paths = list_images(tmp_path / "out")
    assert [path.name for path in paths] == ["a.png", "b.png", "c.png"]
    assert torch.equal(read_images(paths), frames)


def test_png_is_written_fast_and_loses_nothing(tmp_path: Path) -> None:
    picture = torch.from_numpy(patches(160, 90)[0])
    write_image(tmp_path / "out.png", picture.float() / 255)
    assert np.array_equal(np.asarray(Image.open(tmp_path / "out.png")), picture)
    data = (tmp_path / "out.png").read_bytes()
    zlib_flags = data[data.index(b"IDAT") + 5]
    assert zlib_flags >> 6 == 0, "the fastest level (RFC 1950, FLEVEL)"


def test_rounds_half_up(tmp_path: Path) -> None:
    levels = torch.tensor([0.49, 0.5, 1.5, 254.5, 300, -3]) / 255
    write_image(tmp_path / "out.png", levels.view(1, -1, 1).expand(2, -1, 3))
    assert np.asarray(Image.open(tmp_path / "out.png"))[0, :, 0].tolist() == [0, 1, 2, 255, 255, 0]


def test_alpha_is_dropped_and_grey_is_spread(tmp_path: Path) -> None:
    rgba = np.concatenate([patches(16, 16)[0], np.full((16, 16, 1), 7, np.uint8)], axis=2)
    save(tmp_path / "a.png", rgba)
    save(tmp_path / "b.png", rgba[..., 0])
    frames = read_images([tmp_path / "a.png", tmp_path / "b.png"])
    assert torch.equal(frames[0], torch.from_numpy(rgba[..., :3]).float() / 255)
    assert torch.equal(frames[1], torch.from_numpy(rgba[..., :1]).float().expand(-1, -1, 3) / 255)


def test_sixteen_bits_are_scaled_not_clipped(tmp_path: Path) -> None:
    save(tmp_path / "deep.png", np.array([[0, 257 * 100, 65535]], np.uint16))
    assert (read_masks([tmp_path / "deep.png"]) * 255).round().int().tolist() == [[[0, 100, 255]]]


def test_exif_orientation_turns_the_picture(tmp_path: Path) -> None:
    picture = patches(32, 16)[0]
    exif = Image.Exif()
    exif[0x0112] = 6  # turn clockwise to view
    path = save(tmp_path / "phone.png", picture, exif=exif)
    assert image_size(path) == (16, 32)
    assert torch.equal(read_images([path])[0], torch.from_numpy(np.rot90(picture, -1).copy()).float() / 255)


def test_sizes_that_differ_are_named(tmp_path: Path) -> None:
    save(tmp_path / "a.png", patches(16, 16)[0])
    save(tmp_path / "b.png", patches(32, 16)[0])
    with pytest.raises(MediaError, match=r"b\.png is 32x16, a\.png is 16x16"):
        read_images(list_images(tmp_path))


def test_damaged_files_are_named(tmp_path: Path) -> None:
    (tmp_path / "text.png").write_text("no image")
    with pytest.raises(MediaError, match=r"cannot read .*text\.png as an image"):
        image_size(tmp_path / "text.png")
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    cut = save(tmp_path / "cut.png", noise)
    cut.write_bytes(cut.read_bytes()[:5000])
    with pytest.raises(MediaError, match=r"cut\.png is damaged"):
        read_images([cut])


def test_names_that_would_clash_are_told(tmp_path: Path) -> None:
    with pytest.raises(MediaError, match=r"a\.jpg, a\.png would both be written as a\.png"):
        stems_of([tmp_path / "a.jpg", tmp_path / "a.png", tmp_path / "b.png"])


def test_unknown_image_suffix(tmp_path: Path) -> None:
    with pytest.raises(MediaError, match=r"\.tga"):
        write_image(tmp_path / "out.tga", torch.zeros(2, 2, 3))


def test_animated_images_are_refused(tmp_path: Path) -> None:
    pictures = [Image.new("RGB", (8, 8), colour) for colour in ("red", "lime")]
    for suffix in (".png", ".webp"):
        path = tmp_path / f"moving{suffix}"
        pictures[0].save(path, save_all=True, append_images=pictures[1:])
        with pytest.raises(MediaError, match="is animated"):
            image_size(path)
    pictures[0].save(tmp_path / "camera.jpg", "MPO", save_all=True, append_images=pictures[1:])
    assert image_size(tmp_path / "camera.jpg") == (8, 8)


def test_a_folder_with_the_name_of_an_image_is_no_image(tmp_path: Path) -> None:
    Image.new("RGB", (8, 8)).save(tmp_path / "1.png")
    (tmp_path / "2.png").mkdir()
    assert list_images(tmp_path) == [tmp_path / "1.png"]
