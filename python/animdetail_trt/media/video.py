"""Videos through PyAV: frames out, frames in, with rate, time stamps, colour tags and sound kept.

PyAV is imported inside functions: importing this module costs nothing.
"""

from __future__ import annotations

import errno
import logging
import re
import struct
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from fractions import Fraction
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from torch import Tensor

from animdetail_trt.errors import MediaError
from animdetail_trt.media.colour import BT709, Colour, from_rgb, to_rgb
from animdetail_trt.media.pixels import to_float, to_uint8
from animdetail_trt.media.staging import staged_file, staged_probe

if TYPE_CHECKING:
    import av
    from av.container import InputContainer, OutputContainer

logger = logging.getLogger(__name__)

VIDEO_SUFFIXES = (".mp4", ".mov", ".m4v", ".mkv", ".webm")
"""What can be written; anything that FFmpeg knows can be read."""

_ENCODING_NOISE = 16
"""Of 255: what a lossy encoder leaves of black around an edge is darker."""

OnFrame = Callable[[int], None]
"""Called with the number of frames done so far."""


@dataclass(frozen=True)
class VideoStyle:
    """What a written video takes over from the one that was read."""

    rate: Fraction
    time_base: Fraction
    """Seconds per tick of the time stamps."""
    sample_aspect_ratio: Fraction = Fraction(1)
    colour: Colour = BT709
    sound_from: Path | None = None
    """The file whose audio streams are copied, packet by packet."""
    start: Fraction = Fraction(0)
    """Seconds at which that file begins; written files begin at 0."""
    title: str | None = None

    @classmethod
    def at_rate(cls, rate: Fraction) -> VideoStyle:
        """For frames that never were a video: constant rate, bt709, square pixels, no sound."""
        return cls(rate=rate, time_base=1 / rate)


@dataclass(frozen=True)
class VideoInfo:
    """What a look at the header and the first frame tells."""

    path: Path
    width: int
    height: int
    """Upright, after ``mirrored`` and ``quarter_turns``."""
    frame_count: int
    """0 where the header does not say; a hint, not a promise."""
    mirrored: bool
    """Whether left and right of decoded frames are swapped, as selfie cameras may have them; before they are turned."""
    quarter_turns: int
    """Anticlockwise turns that bring decoded frames upright."""
    style: VideoStyle
    bits: int
    """Of a channel, as it is stored; frames are read as 8."""
    has_alpha: bool
    """Whether the first frame is transparent anywhere; none of it is read."""


def probe_video(path: Path) -> VideoInfo:
    """Open ``path`` and decode its first frame. Raises MediaError if it is missing, damaged or holds no picture."""
    with _open_video(path) as (container, stream):
        frame = next(_decode(container, stream, path), None)
        if frame is None:
            raise MediaError(f"{path} holds no frames: it is empty or cut off. Export it again.")
        mirrored, turns = _orientation(frame)
        aspect = stream.sample_aspect_ratio or Fraction(1)
        width, height = frame.width, frame.height
        if turns % 2:
            width, height, aspect = height, width, 1 / aspect
        rate = stream.average_rate or stream.guessed_rate or Fraction(25)
        style = VideoStyle(
            rate=rate,
            time_base=stream.time_base or 1 / rate,
            sample_aspect_ratio=aspect,
            colour=Colour.of_frame(frame, stream.codec_context),
            sound_from=path if container.streams.audio else None,
            start=Fraction(max(container.start_time or 0, 0), 1_000_000),
            title=container.metadata.get("title"),
        )
        bits = max(channel.bits for channel in frame.format.components)
        return VideoInfo(path, width, height, stream.frames, mirrored, turns, style, bits, _is_transparent(frame))


def _orientation(frame: av.VideoFrame) -> tuple[bool, int]:
    """Whether to mirror a decoded frame, and how many quarters to turn it anticlockwise then."""
    matrix: Any = frame.side_data.get("DISPLAYMATRIX")
    if matrix is not None:
        a, b, _, c, d, *_ = struct.unpack("=9i", matrix)  # (x, y), y down, is shown at (a x + c y, b x + d y)
        if (a and d and not (b or c)) or (b and c and not (a or d)):
            mirrored = a * d < b * c
            if mirrored:
                a, b = -a, -b
            return mirrored, 0 if a > 0 else 2 if a < 0 else 1 if b < 0 else 3
    return False, getattr(frame, "rotation", 0) // 90 % 4


def _is_transparent(frame: av.VideoFrame) -> bool:
    with_alpha = any(channel.is_alpha for channel in frame.format.components)
    return with_alpha and int(frame.to_ndarray(format="rgba")[..., 3].min()) < 255


def read_video(info: VideoInfo, on_frame: OnFrame | None = None) -> tuple[Tensor, list[int], int | None]:
    """All frames, float32 (f, h, w, 3) in 0..1; their time stamps, and how long the last of them is shown, in ticks of
    ``info.style.time_base``.

    Time stamps count from ``info.style.start`` and rise strictly; where the file's do not, constant-rate ones are made.
    How long the last is shown is None where the file does not say.
    """
    pictures, stamps, last = _read(info, lambda rgb: rgb, on_frame)
    return pictures, _rising(stamps, info.style), last


def read_mask_video(info: VideoInfo) -> Tensor:
    """MASK: float32 (f, h, w) in 0..1, the luminance of each frame; what is nearly black is taken for black."""
    masks, *_ = _read(info, _drawn)
    return masks[..., 0]


def _drawn(rgb: np.ndarray) -> np.ndarray:
    from PIL import Image

    luminance = np.asarray(Image.fromarray(rgb).convert("L"))[..., None]
    return np.where(luminance < _ENCODING_NOISE, np.uint8(0), luminance)


def _read(
    info: VideoInfo, convert: Callable[[np.ndarray], np.ndarray], on_frame: OnFrame | None = None
) -> tuple[Tensor, list[int | None], int | None]:
    """Every frame's uint8 (h, w, 3) converted, stacked as floats; their time stamps, and how long the last is shown, as
    they are in the file."""
    pictures: list[np.ndarray] = []
    stamps: list[int | None] = []
    last: int | None = None
    with _open_video(info.path) as (container, stream):
        for frame in _decode(container, stream, info.path):
            picture = convert(to_rgb(frame, info.style.colour))
            pictures.append(np.rot90(np.fliplr(picture) if info.mirrored else picture, info.quarter_turns))
            stamps.append(frame.pts)
            last = frame.duration or None
            if pictures[-1].shape != pictures[0].shape:
                raise MediaError(
                    f"frame {len(pictures) - 1} of {info.path} is {_size_of(pictures[-1])}, the first is "
                    f"{_size_of(pictures[0])}. Convert the video to one size first."
                )
            if on_frame:
                on_frame(len(pictures))
        if stream.codec_context.has_b_frames and "mp4" in container.format.name:
            last = None  # it holds the time to the frame that is decoded next, which is another
        _check_whole(stream, stamps, last, info)
    return to_float(pictures), stamps, last


def write_video(
    path: Path,
    frames: Tensor,
    style: VideoStyle,
    stamps: Sequence[int] | None = None,
    last: int | None = None,
    *,
    lossless: bool = False,
    on_frame: OnFrame | None = None,
) -> None:
    """Write ``frames``, float32 (f, h, w, 3) in 0..1, to ``path``; the container is chosen by its suffix.

    H.264 at crf 16 (VP9 at crf 24 in .webm), yuv420p; an odd width or height becomes yuv444p, so that the size is
    kept. ``lossless`` is FFV1 in RGB and needs .mkv. ``stamps``, and the ticks for which the ``last`` frame is shown,
    default to the constant rate. Sound is copied from ``style.sound_from`` with languages and titles; subtitles and
    chapters are not. ``path`` is replaced only when all is written.
    Raises MediaError for a suffix that is not in VIDEO_SUFFIXES, sound that the container cannot hold, a full disk.
    """
    stamps = stamps if stamps is not None else _constant_stamps(len(frames), style)
    shown = _shown(stamps, last, style)
    with (
        staged_file(path) as partial,
        _ffmpeg_errors(),
        _open_output(partial, path, frames.shape[2], frames.shape[1], style, lossless, even=not shown) as (
            container,
            stream,
            sound,
        ),
    ):

        def mux(packets: list[av.Packet[av.VideoStream]]) -> None:
            for packet in packets:
                if packet.pts in shown:
                    packet.duration = shown[packet.pts]
                container.mux(packet)

        for index, (picture, stamp) in enumerate(zip(frames, stamps, strict=True)):
            frame = from_rgb(to_uint8(picture), stream.pix_fmt or "", style.colour)
            frame.pts, frame.time_base = stamp, style.time_base
            sound.mux_until(stamp * style.time_base)
            mux(stream.encode(frame))
            if on_frame:
                on_frame(index + 1)
        mux(stream.encode(None))
        sound.mux_until(None)


def check_video_output(path: Path, width: int, height: int, style: VideoStyle, lossless: bool = False) -> None:
    """Write the header, a second of sound and the trailer beside ``path`` and remove it.

    Raises what ``write_video`` would, before work, and warns of what many players would not show.
    """
    import av

    with staged_probe(path) as probe, _ffmpeg_errors():
        codecs: list[str] = []
        try:
            with _open_output(probe, path, width, height, style, lossless) as (_, _, sound):
                codecs = sound.codecs
                sound.mux_until(Fraction(1))
        except av.error.FFmpegError as error:
            if error.errno != errno.EINVAL:
                raise
            # MP4 takes some sound and then finds no place for it in its index.
            raise _cannot_hold(path, f"{width}x{height} video", codecs, error) from error
    codec, pix_fmt, _ = _codec(path.suffix.lower(), width, height, lossless)
    if pix_fmt == "yuv444p":
        logger.warning(
            "%s is %s in yuv444p, which holds the odd size %dx%d but which QuickTime, Safari and many hardware "
            "decoders do not play. For those pad or crop the input to even sides, such as %dx%d",
            path.name, "VP9" if "vp9" in codec else "H.264", width, height, width + width % 2, height + height % 2,
        )  # fmt: skip


@contextmanager
def _open_video(path: Path) -> Iterator[tuple[InputContainer, av.VideoStream]]:
    import av

    if not path.is_file():
        raise MediaError(f"{path} does not exist or is not a file. Check the path.")
    try:
        container = av.open(str(path), metadata_errors="replace")
    except (av.error.FFmpegError, OSError) as error:
        reason = "the file is empty" if path.stat().st_size == 0 else error.strerror
        raise MediaError(f"cannot read {path} as a video: {reason}. It may be damaged or not a video.") from error
    with container:
        if not container.streams.video:
            raise MediaError(f"{path} has no video stream, only {[s.type for s in container.streams]}.")
        if container.format.name == "image2" or container.format.name.endswith("_pipe"):
            raise MediaError(
                f"{path} is an image of a kind or a name that is not read. Convert it to PNG, and name it so: "
                f"{path.stem}.png."
            )
        stream = container.streams.video[0]
        stream.thread_type = "AUTO"
        yield container, stream


def _decode(container: InputContainer, stream: av.VideoStream, path: Path) -> Iterator[av.VideoFrame]:
    import av

    count = 0
    try:
        for frame in container.decode(stream):
            yield frame
            count += 1
    except MemoryError:  # one of PyAV's too
        raise
    except av.error.FFmpegError as error:
        raise MediaError(f"{path} is damaged after frame {count}: {error.strerror}. Export it again.") from error


@contextmanager
def _open_output(
    partial: Path, path: Path, width: int, height: int, style: VideoStyle, lossless: bool, *, even: bool = True
) -> Iterator[tuple[OutputContainer, av.VideoStream, _Sound]]:
    import av

    suffix = path.suffix.lower()
    codec, pix_fmt, options = _codec(suffix, width, height, lossless)
    muxing = {}
    if suffix in (".mp4", ".mov", ".m4v"):
        # Moves the index to the front, so that a browser can begin to play while it loads.
        muxing = {"movflags": "+faststart"}
        if not even:  # it holds no durations but the distances in the order of decoding: let that be the order shown
            options["bf"] = "0"
    with ExitStack() as stack:
        container = stack.enter_context(av.open(str(partial), "w", container_options=muxing))
        if style.title:
            container.metadata["title"] = style.title
        stream: Any = container.add_stream(codec, rate=style.rate, options=options)
        stream.width, stream.height, stream.pix_fmt = width, height, pix_fmt
        stream.time_base = stream.codec_context.time_base = style.time_base
        stream.codec_context.sample_aspect_ratio = style.sample_aspect_ratio
        style.colour.tag(stream.codec_context)
        sound = _Sound(container, style, path, stack)
        try:
            container.start_encoding()
        except OSError:  # the disk's fault
            raise
        except (av.error.FFmpegError, ValueError) as error:
            raise _cannot_hold(path, f"{width}x{height} {codec}", sound.codecs, error) from error
        yield container, stream, sound


@contextmanager
def _ffmpeg_errors() -> Iterator[None]:
    """Make FFmpeg's errors OSErrors, most of which they are anyway, for staging to tell."""
    import av

    try:
        yield
    except av.error.FFmpegError as error:
        raise OSError(error.errno, error.strerror) from error


def _cannot_hold(path: Path, video: str, sound: Sequence[str], error: Exception) -> MediaError:
    held = f" with sound in {', '.join(sound)}" if sound else ""
    return MediaError(
        f"a {path.suffix.lower()} file cannot hold {video}{held}: {getattr(error, 'strerror', error)}. "
        "Write to .mkv, which holds everything" + (", or drop the sound with --no-sound." if held else ".")
    )


def _codec(suffix: str, width: int, height: int, lossless: bool) -> tuple[str, str, dict[str, str]]:
    """(codec, pixel format, options) for a container."""
    if suffix not in VIDEO_SUFFIXES:
        raise MediaError(
            f"cannot write a {suffix or 'nameless'} video. Use one of {', '.join(VIDEO_SUFFIXES)}; "
            "for a folder of that name, make it first."
        )
    if lossless:
        if suffix != ".mkv":
            raise MediaError(f"lossless video is FFV1, which {suffix} does not hold. Write to .mkv.")
        return "ffv1", "bgr0", {}
    pix_fmt = "yuv444p" if width % 2 or height % 2 else "yuv420p"
    if suffix == ".webm":
        return "libvpx-vp9", pix_fmt, {"crf": "24", "b": "0", "row-mt": "1", "cpu-used": "4"}
    # x264's macroblock tree reads memory that it never wrote where a side is no multiple of 16, so that each run
    # would give other bits. Without it the same frames are the same file, about an eighth larger.
    return "libx264", pix_fmt, {"crf": "16", "preset": "medium", "x264-params": "mbtree=0"}


class _Sound:
    """The audio packets of one file on their way into another, in step with the pictures."""

    def __init__(self, container: OutputContainer, style: VideoStyle, path: Path, stack: ExitStack) -> None:
        import av

        self.codecs: list[str] = []
        self._container = container
        self._start = style.start
        self._packets: Iterator[Any] = iter(())
        self._next: Any = None
        if style.sound_from is None:
            return
        source = stack.enter_context(av.open(str(style.sound_from), metadata_errors="replace"))
        streams = source.streams.audio
        self.codecs = [stream.codec_context.name for stream in streams]
        try:
            self._targets = {stream.index: container.add_stream_from_template(stream) for stream in streams}
        except (av.error.FFmpegError, ValueError) as error:
            raise MediaError(
                f"a {path.suffix} file cannot hold the sound of {style.sound_from} ({', '.join(self.codecs)}). "
                "Write to .mkv, which holds everything, or drop the sound with --no-sound."
            ) from error
        for stream in streams:
            self._targets[stream.index].metadata.update(_told_of(stream))
        # The last packet of a stream is an empty one that tells a decoder to flush: it has no dts.
        self._packets = (packet for packet in source.demux(streams) if packet.dts is not None)
        self._next = next(self._packets, None)

    def mux_until(self, seconds: Fraction | None) -> None:
        """Write every packet that begins up to ``seconds``; all that are left where it is None."""
        while self._next is not None:
            packet = self._next
            time_base = packet.time_base
            if seconds is not None and packet.dts * time_base - self._start > seconds:
                return
            shift = round(self._start / time_base)
            packet.dts -= shift
            packet.pts = packet.pts - shift if packet.pts is not None else packet.dts
            packet.stream = self._targets[packet.stream.index]
            self._container.mux(packet)
            self._next = next(self._packets, None)


def _told_of(stream: av.AudioStream) -> dict[str, str]:
    """Its language and title; MP4 calls the title a name."""
    tags = stream.metadata
    told = {"language": tags.get("language"), "title": tags.get("title") or tags.get("name")}
    return {key: value for key, value in told.items() if value}


def _check_whole(stream: av.VideoStream, stamps: Sequence[int | None], last: int | None, info: VideoInfo) -> None:
    """Raise if the pictures end well before the stream says: FFmpeg reads a file that was cut off without a word."""
    promised = _promised_end(stream)
    known = [stamp for stamp in stamps if stamp is not None]
    if promised is None or not known:
        return
    reached = max(known) * info.style.time_base + (last * info.style.time_base if last else 1 / info.style.rate)
    if promised - reached > max(promised / 10, 5 / info.style.rate):
        raise MediaError(
            f"{info.path} is cut off or damaged: its pictures end at {float(reached):.2f} s and its header promises "
            f"{float(promised):.2f} s. Copy or export it again, or cut it to the part that is whole."
        )


def _promised_end(stream: av.VideoStream) -> Fraction | None:
    """Seconds at which the header says this stream ends: MP4's own fields, Matroska's tag, or None."""
    if stream.duration is not None and stream.time_base is not None:
        return ((stream.start_time or 0) + stream.duration) * stream.time_base
    match = re.fullmatch(r"(\d+):(\d+):(\d+(?:\.\d+)?)", stream.metadata.get("DURATION", ""))
    if match is None:
        return None
    hours, minutes, seconds = match.groups()
    return 3600 * int(hours) + 60 * int(minutes) + Fraction(seconds)


def _rising(stamps: Sequence[int | None], style: VideoStyle) -> list[int]:
    shift = round(style.start / style.time_base)
    kept = [stamp - shift for stamp in stamps if stamp is not None]
    rises = len(kept) == len(stamps) and all(a < b for a, b in pairwise(kept))
    return kept if rises else _constant_stamps(len(stamps), style)


def _constant_stamps(count: int, style: VideoStyle) -> list[int]:
    return [round(index / style.rate / style.time_base) for index in range(count)]


def _shown(stamps: Sequence[int], last: int | None, style: VideoStyle) -> dict[int, int]:
    """How many ticks each frame is shown, by its time stamp; nothing where it is one time for all, nearly."""
    last = last or round(1 / style.rate / style.time_base)
    shown = {stamp: end - stamp for stamp, end in pairwise((*stamps, stamps[-1] + last))}
    apart = max(shown.values()) - min(shown.values())
    # Stamps may have been rounded on the way: to a tick here, to a millisecond in .mkv.
    return shown if apart > 1 and apart * style.time_base > 1 / (10 * style.rate) else {}


def _size_of(picture: np.ndarray) -> str:
    return f"{picture.shape[1]}x{picture.shape[0]}"
