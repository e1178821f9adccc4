"""Image files and folders of them as frames, and back. Pillow is imported inside functions."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from torch import Tensor

from animdetail_trt.errors import MediaError
from animdetail_trt.media.pixels import to_float, to_uint8
from animdetail_trt.media.staging import staged_file, staged_folder

if TYPE_CHECKING:
    from PIL import Image

IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".webp")

_SAVE_OPTIONS: dict[str, dict[str, Any]] = {
    ".png": {"compress_level": 1},  # a quarter of the usual 6's time or less, for a file a quarter larger
    ".jpg": {"quality": 95, "subsampling": 0},
    ".jpeg": {"quality": 95, "subsampling": 0},
    ".webp": {"quality": 95},
}


def list_images(folder: Path) -> list[Path]:
    """The images of a folder in natural order (frame2 before frame10). Raises MediaError where there are none."""
    shown = (path for path in folder.iterdir() if not path.name.startswith(".") and not path.is_dir())
    paths = [path for path in shown if path.suffix.lower() in IMAGE_SUFFIXES]
    if not paths:
        raise MediaError(f"the folder {folder} holds no images ({', '.join(IMAGE_SUFFIXES)}). Check the path.")
    return sorted(paths, key=_natural_key)


def stems_of(paths: Sequence[Path]) -> list[str]:
    """The names without suffix, which the written frames take over. Raises MediaError where two are the same."""
    stems = [path.stem for path in paths]
    stem, count = Counter(stems).most_common(1)[0]
    if count > 1:
        twins = ", ".join(path.name for path in paths if path.stem == stem)
        raise MediaError(f"{twins} would both be written as {stem}.png. Rename one.")
    return stems


def image_size(path: Path) -> tuple[int, int]:
    """(width, height), read from the header and turned upright by EXIF. Raises MediaError for a damaged file."""
    with _opened(path) as image:
        # A PNG's EXIF may lie behind its pixels, which are then decoded here.
        sideways = image.getexif().get(0x0112, 1) >= 5  # EXIF orientations 5 to 8 swap the sides
        return (image.height, image.width) if sideways else (image.width, image.height)


def image_bits(path: Path) -> int:
    """8, or 16 where a channel of the file holds that many; read from the header."""
    with _opened(path) as image:
        # Pillow's modes tell it of grey images only, its decoder's arguments (RGB;16B) of all.
        return 16 if image.mode.startswith("I") or ";16" in str(getattr(image, "tile", "")) else 8


def read_images(paths: Sequence[Path], on_frame: Callable[[int], None] | None = None) -> Tensor:
    """float32 (f, h, w, 3) in 0..1, turned upright by EXIF; an alpha channel is dropped.

    Raises MediaError for a damaged file or one of another size than the first.
    """
    return _read(paths, _rgb, on_frame)


def read_masks(paths: Sequence[Path]) -> Tensor:
    """MASK: float32 (n, h, w) in 0..1, the luminance of each image. Raises MediaError as ``read_images``."""
    return _read(paths, _luminance)[..., 0]


def drawn_in_alpha(paths: Sequence[Path]) -> bool:
    """Whether any of the images is not equally opaque everywhere. Raises MediaError for a damaged file."""
    for path in paths:
        with _opened(path) as image:
            if image.has_transparency_data:
                faintest, densest = _eight_bit(image).convert("RGBA").getchannel("A").getextrema()
                if faintest != densest:
                    return True
    return False


def write_image(path: Path, picture: Tensor) -> None:
    """Write one float (h, w, 3) picture; the format follows the suffix (JPEG and WebP at quality 95, PNG fast)."""
    suffix = path.suffix.lower()
    if suffix not in IMAGE_SUFFIXES:
        raise MediaError(f"cannot write a {suffix or 'nameless'} image. Use one of {', '.join(IMAGE_SUFFIXES)}.")
    with staged_file(path) as partial:
        _save(partial, to_uint8(picture))


def write_images(
    folder: Path, frames: Tensor, stems: Sequence[str], on_frame: Callable[[int], None] | None = None
) -> None:
    """Write float (f, h, w, 3) frames as ``folder/STEM.png``, 8 bits rounded half up.

    They are moved to their place when all are written: into a new ``folder`` all or none, into one that is there
    already one by one.
    """
    with staged_folder(folder) as partial:
        for index, (picture, stem) in enumerate(zip(frames, stems, strict=True)):
            _save(partial / f"{stem}.png", to_uint8(picture))
            if on_frame:
                on_frame(index + 1)


def _read(
    paths: Sequence[Path], convert: Callable[[Image.Image], np.ndarray], on_frame: Callable[[int], None] | None = None
) -> Tensor:
    pictures: list[np.ndarray] = []
    for path in paths:
        with _opened(path) as image:
            pictures.append(convert(image))
        if pictures[-1].shape != pictures[0].shape:
            (h, w), (first_h, first_w) = pictures[-1].shape[:2], pictures[0].shape[:2]
            raise MediaError(f"{path} is {w}x{h}, {paths[0].name} is {first_w}x{first_h}. All need one size.")
        if on_frame:
            on_frame(len(pictures))
    return to_float(pictures)


@contextmanager
def _opened(path: Path) -> Iterator[Image.Image]:
    """An image whose pixels may still be on the disk: what is wrong with them shows only while it is used."""
    from PIL import Image, UnidentifiedImageError

    if not path.is_file():
        raise MediaError(f"{path} does not exist or is not a file. Check the path.")
    try:
        with Image.open(path) as image:
            _check_still(image, path)
            yield image
    except UnidentifiedImageError as error:
        raise MediaError(f"cannot read {path} as an image. It may be damaged or not an image.") from error
    except Image.DecompressionBombError as error:
        raise MediaError(f"{path} is too large: {error}. Scale it down.") from error
    except (OSError, SyntaxError, ValueError) as error:  # Pillow's decoders raise all three
        raise MediaError(f"{path} is damaged: {error}. Export it again.") from error


def _check_still(image: Image.Image, path: Path) -> None:
    # A camera's MPO is a still JPEG with a second view behind it.
    if getattr(image, "is_animated", False) and image.format != "MPO":
        raise MediaError(f"{path} is animated; its frames would be lost. Convert it to a video or a folder of images.")


def _rgb(image: Image.Image) -> np.ndarray:
    from PIL import ImageOps

    return np.asarray(_eight_bit(ImageOps.exif_transpose(image)).convert("RGB"))


def _luminance(image: Image.Image) -> np.ndarray:
    from PIL import ImageOps

    return np.asarray(_eight_bit(ImageOps.exif_transpose(image)).convert("L"))[..., None]


def _eight_bit(image: Image.Image) -> Image.Image:
    """Pillow clips a 16-bit grey image to 255 where it converts one; scale it instead."""
    from PIL import Image

    if not image.mode.startswith("I"):
        return image
    return Image.fromarray((np.asarray(image, dtype=np.float64) / 257 + 0.5).clip(0, 255).astype(np.uint8))


def _save(path: Path, pixels: np.ndarray) -> None:
    from PIL import Image

    Image.fromarray(pixels).save(path, **_SAVE_OPTIONS.get(path.suffix.lower(), {}))


def _natural_key(path: Path) -> list[tuple[int, int, str]]:
    parts = re.split(r"(\d+)", path.name.lower())
    return [(1, int(part), "") if part.isdecimal() else (0, 0, part) for part in parts]
