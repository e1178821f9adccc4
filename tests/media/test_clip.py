"""What kind of input and output a path is, and what is refused before any work."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
import torch
from PIL import Image

from animdetail_trt.errors import InputError, MediaError
from animdetail_trt.media.clip import open_sink, open_source
from animdetail_trt.media.images import write_image, write_images
from animdetail_trt.media.video import probe_video, read_video
from clips import patches


@pytest.fixture
def frames() -> torch.Tensor:
    return torch.from_numpy(patches(32, 32, 3)).float() / 255


@pytest.fixture
def folder(tmp_path: Path, frames: torch.Tensor) -> Path:
    write_images(tmp_path / "in", frames, ["shot_a", "shot_b", "shot_c"])
    return tmp_path / "in"


def test_folder_to_folder_keeps_the_names(folder: Path, tmp_path: Path, frames: torch.Tensor) -> None:
    source = open_source(folder)
    assert (source.width, source.height, source.frame_count) == (32, 32, 3)
    clip = source.read()
    assert torch.equal(clip.frames, frames)
    assert clip.seconds(1) is None
    open_sink(tmp_path / "out", source).write(1 - clip.frames, clip)
    again = open_source(tmp_path / "out")
    assert [path.stem for path in again.images] == ["shot_a", "shot_b", "shot_c"]
    assert torch.equal((again.read().frames * 255).round(), 255 - (frames * 255).round())


def test_image_to_image(tmp_path: Path, frames: torch.Tensor) -> None:
    write_image(tmp_path / "in.png", frames[0])
    source = open_source(tmp_path / "in.png")
    clip = source.read()
    open_sink(tmp_path / "out.png", source).write(clip.frames, clip)
    assert torch.equal(open_source(tmp_path / "out.png").read().frames, frames[:1])


def test_video_to_folder(small_video: Path, tmp_path: Path) -> None:
    source = open_source(small_video)
    clip = source.read()
    assert clip.seconds(5) == pytest.approx(0.2)
    open_sink(tmp_path / "out", source).write(clip.frames, clip)
    assert [path.name for path in sorted((tmp_path / "out").iterdir())] == [f"frame_{i:06d}.png" for i in range(1, 7)]


def test_images_to_video_need_a_rate(folder: Path, tmp_path: Path, frames: torch.Tensor) -> None:
    source = open_source(folder)
    with pytest.raises(InputError, match="--fps 8"):
        open_sink(tmp_path / "out.mkv", source)
    open_sink(tmp_path / "out.mkv", source, fps=Fraction(8), lossless=True).write(frames, source.read())
    info = probe_video(tmp_path / "out.mkv")
    assert float(info.style.rate) == pytest.approx(8)
    assert torch.equal(read_video(info)[0], frames)


def test_a_video_keeps_its_own_rate(small_video: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="--fps 12"):
        open_sink(tmp_path / "out.mp4", open_source(small_video), fps=Fraction(12))


@pytest.mark.parametrize("name", ["out", "out.png"])
def test_what_only_a_video_has_is_refused_for_images(folder: Path, tmp_path: Path, name: str) -> None:
    source = open_source(folder / "shot_a.png")
    with pytest.raises(InputError, match="--lossless is for a video"):
        open_sink(tmp_path / name, source, lossless=True)
    with pytest.raises(InputError, match="--fps 8 is for a video"):
        open_sink(tmp_path / name, source, fps=Fraction(8))


def test_sound_can_be_left_out(small_video: Path, tmp_path: Path) -> None:
    source = open_source(small_video)
    sink = open_sink(tmp_path / "out.mp4", source, sound=False)
    clip = source.read()
    sink.write(clip.frames, clip)
    assert probe_video(tmp_path / "out.mp4").style.sound_from is None


def test_the_input_is_never_the_output(small_video: Path, folder: Path, tmp_path: Path) -> None:
    link = tmp_path / "link.mp4"
    link.symlink_to(small_video)
    for path in (small_video, link):
        with pytest.raises(MediaError, match="is the input itself"):
            open_sink(path, open_source(small_video))
    with pytest.raises(MediaError, match="is the input itself"):
        open_sink(folder, open_source(folder))


def test_refusals(small_video: Path, folder: Path, tmp_path: Path) -> None:
    source = open_source(small_video)
    with pytest.raises(MediaError, match="is one image"):
        open_sink(tmp_path / "out.png", source)
    with pytest.raises(MediaError, match=r"\.xyz"):
        open_sink(tmp_path / "out.xyz", source)
    with pytest.raises(MediaError, match="does not exist"):
        open_sink(tmp_path / "no_such" / "out.mp4", source)
    with pytest.raises(MediaError, match="already holds"):
        open_sink(folder, source)
    with pytest.raises(MediaError, match="does not exist"):
        open_source(tmp_path / "none.mp4")


@pytest.mark.parametrize(("name", "kind"), [("in.bmp", "BMP"), ("in.tif", "TIFF"), ("in", "PNG"), ("in.mp4", "PNG")])
def test_an_image_of_another_kind_is_not_taken_for_a_video(tmp_path: Path, name: str, kind: str) -> None:
    Image.fromarray(patches(32, 32)[0]).save(tmp_path / name, format=kind)
    with pytest.raises(MediaError, match=rf"{name} is an image .*not read\. Convert it to PNG"):
        open_source(tmp_path / name)


def test_suffixes_that_can_be_written_are_told_of_an_image(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(MediaError, match=r"cannot write a \.bmp file.*\.mp4.* for a video.*\.png.* for an image"):
        open_sink(tmp_path / "out.bmp", open_source(folder / "shot_a.png"))


def test_pictures_that_are_passed_over_are_told_once(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    for name in ("notes.txt", "segs.json", "Thumbs.db", ".hidden.bmp", "segs.masks.safetensors"):
        (folder / name).touch()
    open_source(folder)
    assert not caplog.messages
    for name in ("4.TIF", "1.bmp", "3.mp4", "2.gif"):
        (folder / name).touch()
    assert len(open_source(folder).images) == 3
    (told,) = caplog.messages
    assert told.startswith(f"1.bmp, 2.gif, 3.mp4 and 1 more in {folder} are passed over")


@pytest.mark.parametrize(
    ("pix_fmt", "opacity", "lost"),
    [
        ("rgb24", 255, ""),
        ("rgba", 255, ""),
        ("rgba", 90, "an alpha channel"),
        ("gray16be", 255, "16 bits a channel"),
        ("rgb48be", 255, "16 bits a channel"),
        ("rgba64be", 90, "16 bits a channel and an alpha channel"),
    ],
)
@pytest.mark.parametrize("name", ["in.png", "in.mov"])
def test_depth_and_alpha_that_are_lost_are_told(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, name: str, pix_fmt: str, opacity: int, lost: str
) -> None:
    picture = np.full((32, 32, 4), 200, np.uint8)
    picture[..., 3] = 255
    picture[8:24, :, 3] = opacity
    with av.open(str(tmp_path / name), "w", format="image2" if name == "in.png" else None) as container:
        stream: Any = container.add_stream("png", rate=25)
        stream.width, stream.height, stream.pix_fmt = 32, 32, pix_fmt
        frame = av.VideoFrame.from_ndarray(picture, format="rgba").reformat(format=pix_fmt)
        container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    source = open_source(tmp_path / name)
    open_sink(tmp_path / "out", source)
    assert caplog.messages == ([f"{name} holds {lost}; it is written with 8 bits, without alpha"] if lost else [])


def test_checks_leave_nothing(small_video: Path, tmp_path: Path) -> None:
    source = open_source(small_video)
    for name in ("out.mp4", "out", "out.mkv"):
        open_sink(tmp_path / name, source)
    assert [path.name for path in tmp_path.iterdir()] == ["small.mp4"]
