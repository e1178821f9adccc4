"""One door for the three kinds of input and output: a video, a folder of images, a single image."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from pathlib import Path

from torch import Tensor

from animdetail_trt.errors import InputError, MediaError
from animdetail_trt.media import images, video
from animdetail_trt.media.staging import check_folder_free, check_writable

logger = logging.getLogger(__name__)

OnFrame = Callable[[int], None]


_SHOWN = (
    ".avif", ".bmp", ".dib", ".dpx", ".exr", ".gif", ".heic", ".heif", ".jfif", ".jp2", ".jxl", ".pbm", ".pgm", ".pnm",
    ".ppm", ".tga", ".tif", ".tiff", ".avi", ".m2ts", ".mpeg", ".mpg", ".mts", ".ts", ".wmv", *video.VIDEO_SUFFIXES,
)  # fmt: skip
"""Images and videos that are not read out of a folder, though they may have been meant."""


@dataclass(frozen=True)
class Source:
    """A clip that is known to be readable, not read yet."""

    path: Path
    width: int
    height: int
    frame_count: int
    """0 where it is not known before reading."""
    video: video.VideoInfo | None = None
    images: tuple[Path, ...] = ()

    def read(self, on_frame: OnFrame | None = None) -> Clip:
        """Decode all frames. Raises MediaError for damage found on the way."""
        if self.video is None:
            return Clip(images.read_images(self.images, on_frame), self)
        frames, stamps, last = video.read_video(self.video, on_frame)
        return Clip(frames, self, tuple(stamps), last)

    def read_masks(self) -> Tensor:
        """MASK: float32 (f, h, w) in 0..1, the luminance of all frames. Raises MediaError as ``read``."""
        return images.read_masks(self.images) if self.video is None else video.read_mask_video(self.video)

    def is_transparent(self) -> bool:
        """Whether an image is not equally opaque everywhere, or a video's first frame not opaque."""
        return images.drawn_in_alpha(self.images) if self.video is None else self.video.has_alpha


@dataclass(frozen=True)
class Clip:
    frames: Tensor
    """float32 (f, h, w, 3) in 0..1."""
    source: Source
    stamps: tuple[int, ...] | None = None
    """Ticks of the video's time base; None for images."""
    last: int | None = None
    """How many of them the last frame is shown; None for images, and where the video does not say."""

    def seconds(self, index: int) -> float | None:
        """When frame ``index`` is shown; None for images."""
        if self.stamps is None or self.source.video is None:
            return None
        return float(self.stamps[index] * self.source.video.style.time_base)


@dataclass(frozen=True)
class Sink:
    """Where the result goes, checked: it can be written, holds the sound, and replaces nothing but itself."""

    path: Path
    kind: str
    """"video", "folder" or "image"."""
    style: video.VideoStyle | None = None
    lossless: bool = False

    def write(self, frames: Tensor, clip: Clip, on_frame: OnFrame | None = None) -> None:
        """Write float (f, h, w, 3) ``frames``, one for each of ``clip``'s. What was there stays until all are written;
        then it is replaced at once, of a folder that is there already file by file."""
        if self.kind == "folder":
            images.write_images(self.path, frames, frame_stems(clip.source, len(frames)), on_frame)
        elif self.kind == "image":
            images.write_image(self.path, frames[0])
        else:
            assert self.style is not None
            video.write_video(
                self.path, frames, self.style, clip.stamps, clip.last, lossless=self.lossless, on_frame=on_frame
            )


def open_source(path: Path) -> Source:
    """Look at a video, an image or a folder of images. Raises MediaError if it is missing, damaged or empty."""
    if path.is_dir():
        paths = tuple(images.list_images(path))
        _tell_of_passed_over(path)
    elif path.suffix.lower() in images.IMAGE_SUFFIXES:
        paths = (path,)
    else:
        info = video.probe_video(path)
        return Source(path, info.width, info.height, info.frame_count, video=info)
    width, height = images.image_size(paths[0])
    return Source(path, width, height, len(paths), images=paths)


def open_sink(
    path: Path, source: Source, *, fps: Fraction | None = None, sound: bool = True, lossless: bool = False
) -> Sink:
    """Decide what ``path`` will be and check that it can be written, before any work is done.

    A known video or image suffix says the kind; no suffix, or a folder that exists, means a folder of PNG files.
    ``fps`` gives images a frame rate; a video keeps its own. Raises MediaError or InputError; warns of what no output
    keeps.
    """
    sink = _sink(path, source, fps, sound, lossless)
    _tell_of_loss(source)
    return sink


def _sink(path: Path, source: Source, fps: Fraction | None, sound: bool, lossless: bool) -> Sink:
    suffix = path.suffix.lower()
    if path.exists() and path.samefile(source.path):
        raise MediaError(f"the output {path} is the input itself. Choose another output.")
    is_image = suffix in images.IMAGE_SUFFIXES
    if _is_folder(path) or is_image:
        for flag in ["--lossless"] * lossless + [f"--fps {fps}"] * (fps is not None):
            raise InputError(f"{flag} is for a video; {path} will hold images. Leave it out, or name a video.")
    if _is_folder(path):
        check_folder_free(path, [file.name for file in written_files(path, source)])
        return Sink(path, "folder")
    check_writable(path)
    if is_image:
        if source.video or len(source.images) != 1:
            raise MediaError(f"{path} is one image, {source.path} holds many frames. Name a folder or a video.")
        return Sink(path, "image")
    if suffix not in video.VIDEO_SUFFIXES:
        raise MediaError(
            f"cannot write a {suffix} file, {path}. Use one of {', '.join(video.VIDEO_SUFFIXES)} for a video, "
            f"{', '.join(images.IMAGE_SUFFIXES)} for an image; for a folder of that name, make it first."
        )
    style = _style(source, fps, sound)
    video.check_video_output(path, source.width, source.height, style, lossless)
    return Sink(path, "video", style, lossless)


def _tell_of_passed_over(folder: Path) -> None:
    """Warn of the images and videos in ``folder`` that are not read."""
    shown = (path for path in folder.iterdir() if path.suffix.lower() in _SHOWN and path.is_file())
    names = sorted(path.name for path in shown if not path.name.startswith("."))
    if names:
        told = ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
        logger.warning(
            "%s in %s %s passed over: of a folder only %s are read. Convert what is missing to PNG",
            told, folder, "is" if len(names) == 1 else "are", ", ".join(images.IMAGE_SUFFIXES),
        )  # fmt: skip


def _tell_of_loss(source: Source) -> None:
    """Warn where ``source`` (of images, the first) holds more than 8 bits a channel, or what is transparent."""
    if source.video is not None:
        bits, has_alpha = source.video.bits, source.video.has_alpha
    else:
        bits, has_alpha = images.image_bits(source.images[0]), images.drawn_in_alpha(source.images[:1])
    lost = [f"{bits} bits a channel"] * (bits > 8) + ["an alpha channel"] * has_alpha
    if lost:
        logger.warning("%s holds %s; it is written with 8 bits, without alpha", source.path.name, " and ".join(lost))


def written_files(path: Path, source: Source) -> list[Path]:
    """The files that the sink at ``path`` will write; of a video whose length is not known, none in a folder."""
    if not _is_folder(path):
        return [path]
    return [path / f"{stem}.png" for stem in frame_stems(source, source.frame_count)]


def frame_stems(source: Source, count: int) -> Sequence[str]:
    """File names without suffix: the images' own, or frame_000001 and so on."""
    if source.images:
        return images.stems_of(source.images)
    return [f"frame_{index:06d}" for index in range(1, count + 1)]


def _is_folder(path: Path) -> bool:
    return path.is_dir() or not path.suffix


def _style(source: Source, fps: Fraction | None, sound: bool) -> video.VideoStyle:
    if source.video is None:
        if fps is None:
            raise InputError("images have no frame rate, and a video needs one. Give it: --fps 8 (AnimateDiff's own).")
        return video.VideoStyle.at_rate(fps)
    if fps is not None:
        raise InputError(f"--fps {fps} is for images; {source.path} keeps its own time stamps. Leave it out.")
    return source.video.style if sound else replace(source.video.style, sound_from=None)
