"""Videos: pixels, colours, time stamps and sound survive; damage is told."""

from __future__ import annotations

import errno
from dataclasses import replace
from fractions import Fraction
from itertools import product
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import av
import numpy as np
import pytest
import torch

from animdetail_trt.errors import MediaError
from animdetail_trt.media.video import (
    VideoStyle,
    _decode,
    _shown,
    check_video_output,
    probe_video,
    read_mask_video,
    read_video,
    write_video,
)
from clips import make_video, patches, sound_packets


def rewrite(source: Path, target: Path, **options: Any) -> tuple[torch.Tensor, torch.Tensor]:
    """Read, write, read again: (first frames, second frames)."""
    info = probe_video(source)
    frames, stamps, last = read_video(info)
    write_video(target, frames, info.style, stamps, last, **options)
    return frames, read_video(probe_video(target))[0]


def middles(frames: torch.Tensor) -> torch.Tensor:
    """The inner pixels of each 16-pixel patch."""
    rows = [y for y in range(frames.shape[1]) if 4 <= y % 16 < 12]
    columns = [x for x in range(frames.shape[2]) if 4 <= x % 16 < 12]
    return frames[:, rows][:, :, columns]


def test_reads_what_was_encoded(tmp_path: Path) -> None:
    pictures = patches(64, 48, 3)
    path = make_video(tmp_path / "in.mkv", pictures, codec="ffv1", pix_fmt="bgr0")
    frames, stamps, _ = read_video(probe_video(path))
    assert frames.dtype == torch.float32
    assert torch.equal(frames, torch.from_numpy(pictures).float() / 255)
    assert stamps == [0, 40, 80]  # Matroska counts milliseconds


def test_masks_of_a_lossless_video_are_its_luminance(tmp_path: Path) -> None:
    pictures = patches(64, 48, 3)
    pictures[1] //= 20  # nearly black
    path = make_video(tmp_path / "masks.mkv", pictures, codec="ffv1", pix_fmt="bgr0")
    masks = read_mask_video(probe_video(path))
    red, green, blue = torch.from_numpy(pictures).float().unbind(-1)
    luminance = (0.299 * red + 0.587 * green + 0.114 * blue) / 255  # ITU-R BT.601, as Pillow's "L"
    shown = luminance >= 1 / 16
    assert shown.any()
    assert not shown.all()
    assert torch.equal(masks > 0, shown)
    torch.testing.assert_close(masks[shown], luminance[shown], atol=1 / 255, rtol=0)


def test_what_an_encoder_leaves_around_a_mask_is_no_mask(tmp_path: Path) -> None:
    rows, columns = np.mgrid[:96, :128]
    discs = [(rows - 48) ** 2 + (columns - 40 - 3 * i) ** 2 < 20**2 for i in range(8)]
    pictures = np.stack([disc[..., None].repeat(3, 2) * np.uint8(255) for disc in discs])
    info = probe_video(make_video(tmp_path / "masks.mp4", pictures, qp=30))
    drawn = torch.from_numpy(pictures[..., 0]) > 0
    noisy, masks = read_video(info)[0].amax(-1), read_mask_video(info)
    assert masks[drawn].mean() > 0.99
    assert (masks[~drawn] > 0).sum() < (noisy[~drawn] > 0).sum() / 20


@pytest.mark.parametrize("size", [(64, 48), (63, 48), (64, 47), (17, 33)])
def test_lossless_round_trip_is_exact(tmp_path: Path, size: tuple[int, int]) -> None:
    frames = torch.from_numpy(patches(*size, 4)).float() / 255
    write_video(tmp_path / "out.mkv", frames, VideoStyle.at_rate(Fraction(8)), lossless=True)
    back, *_ = read_video(probe_video(tmp_path / "out.mkv"))
    assert torch.equal(back, frames)


@pytest.mark.parametrize("suffix", [".mp4", ".mov", ".m4v", ".mkv", ".webm"])
@pytest.mark.parametrize("size", [(64, 48), (63, 47)])
def test_every_container_keeps_size_rate_and_picture(tmp_path: Path, suffix: str, size: tuple[int, int]) -> None:
    frames = torch.from_numpy(patches(*size, 4)).float() / 255
    write_video(tmp_path / f"out{suffix}", frames, VideoStyle.at_rate(Fraction(30000, 1001)))
    info = probe_video(tmp_path / f"out{suffix}")
    back, *_ = read_video(info)
    assert back.shape == frames.shape
    assert float(info.style.rate) == pytest.approx(30000 / 1001, rel=1e-2)  # Matroska guesses it from milliseconds
    # Lossy and subsampled: within a few levels in the middle of flat patches.
    assert (middles(back) - middles(frames)).abs().mean() < 4 / 255


@pytest.mark.parametrize(("matrix", "value_range"), list(product([1, 6, 9], [1, 2])))
def test_colours_do_not_shift(tmp_path: Path, matrix: int, value_range: int) -> None:
    """A wrong matrix moves flat colours by 10 levels and more, a wrong range by up to 16; a rounding bias by 1."""
    tags = (matrix, value_range, 1, 1)
    source = make_video(tmp_path / "in.mp4", patches(128, 128, 2), tags=tags)
    first, second = rewrite(source, tmp_path / "out.mp4")
    drift = 255 * (middles(second) - middles(first))
    assert drift.mean(dim=(0, 1, 2)).abs().max() < 0.5
    assert drift.abs().mean() < 2.5  # two lossy generations of saturated patches
    truth = torch.from_numpy(patches(128, 128, 2)).float() / 255
    assert (255 * (middles(first) - middles(truth))).mean(dim=(0, 1, 2)).abs().max() < 0.5
    assert probe_video(tmp_path / "out.mp4").style.colour.tags == tags


@pytest.mark.parametrize("primaries", [9, 2])
def test_lossless_keeps_the_tags_of_its_red_green_and_blue(tmp_path: Path, primaries: int) -> None:
    source = make_video(tmp_path / "in.mp4", patches(64, 48, 2), tags=(9, 1, primaries, primaries))
    rewrite(source, tmp_path / "out.mkv", lossless=True)
    with av.open(str(tmp_path / "out.mkv")) as container:
        codec = container.streams.video[0].codec_context
        assert codec.pix_fmt == "bgr0"
        assert (codec.color_primaries, codec.color_trc) == (primaries, primaries)
    rewrite(tmp_path / "out.mkv", tmp_path / "back.mp4")
    known = primaries if primaries != 2 else 1
    assert probe_video(tmp_path / "back.mp4").style.colour.tags == (1, 1, known, known)


def test_untagged_stays_untagged_and_keeps_its_colours(tmp_path: Path) -> None:
    source = make_video(tmp_path / "in.mp4", patches(64, 64, 2))
    first, second = rewrite(source, tmp_path / "out.mp4")
    assert probe_video(tmp_path / "out.mp4").style.colour.tags == probe_video(source).style.colour.tags
    assert (255 * (middles(second) - middles(first))).mean(dim=(0, 1, 2)).abs().max() < 0.5


@pytest.mark.parametrize("suffix", [".mp4", ".mkv"])
def test_uneven_time_stamps_are_kept(tmp_path: Path, suffix: str) -> None:
    stamps = [0, 33, 90, 100, 250, 1000]
    source = make_video(tmp_path / f"in{suffix}", patches(64, 48, 6), time_base=Fraction(1, 1000), stamps=stamps)
    info = probe_video(source)
    assert [stamp * info.style.time_base for stamp in read_video(info)[1]] == [Fraction(s, 1000) for s in stamps]
    rewrite(source, tmp_path / f"out{suffix}")
    again = probe_video(tmp_path / f"out{suffix}")
    assert [stamp * again.style.time_base for stamp in read_video(again)[1]] == [Fraction(s, 1000) for s in stamps]


@pytest.mark.parametrize("stamps", [[0, 100, 200, 300], [*range(0, 2500, 100)], [0, 33, 90, 100, 250, 1000, 1100]])
@pytest.mark.parametrize("suffix", [".mp4", ".mkv", ".webm"])
def test_a_last_frame_that_is_held_stays_as_long(tmp_path: Path, suffix: str, stamps: list[int]) -> None:
    """As in a GIF that shows its end before it begins anew; also where that is written once more."""
    frames = torch.from_numpy(patches(64, 48, len(stamps))).float() / 255
    style = VideoStyle(Fraction(len(stamps) * 1000, stamps[-1] + 3000), Fraction(1, 1000))
    write_video(tmp_path / f"first{suffix}", frames, style, stamps, 3000)
    rewrite(tmp_path / f"first{suffix}", tmp_path / f"second{suffix}")
    for name in ("first", "second"):
        with av.open(str(tmp_path / f"{name}{suffix}")) as container:
            assert container.duration == (stamps[-1] + 3000) * 1000  # microseconds
            *_, last = container.decode(video=0)
            assert last.duration * last.time_base == 3


@pytest.mark.parametrize("paused", range(1, 10))
def test_a_pause_in_the_middle_is_no_long_end(tmp_path: Path, paused: int) -> None:
    """With B-frames an MP4's last frame tells of a gap elsewhere."""
    stamps = [33 * index + 1000 * (index >= paused) for index in range(10)]
    path = make_video(tmp_path / "in.mp4", patches(64, 48, 10), time_base=Fraction(1, 1000), stamps=stamps)
    info = probe_video(path)
    with av.open(str(path)) as container:
        assert container.streams.video[0].codec_context.has_b_frames
    rewrite(path, tmp_path / "out.mp4")
    with av.open(str(tmp_path / "out.mp4")) as container:
        assert container.duration <= 1e6 * (stamps[-1] / 1000 + 1 / info.style.rate) + 1000


def test_stamps_that_were_rounded_are_one_time_for_all() -> None:
    """Of 30 frames a second, to milliseconds, as MKV holds them: B-frames are worth a fifth of the file."""
    style = VideoStyle(Fraction(30), Fraction(1, 16000))
    rounded = [16 * round(1000 * index / 30) for index in range(90)]
    assert _shown(rounded, None, style) == {}
    assert _shown([*rounded[:40], *(stamp + 160 for stamp in rounded[40:])], None, style) != {}


def test_constant_rate_is_kept_exactly(tmp_path: Path) -> None:
    rate = Fraction(30000, 1001)
    source = make_video(tmp_path / "in.mp4", patches(64, 48, 6), rate=rate)
    rewrite(source, tmp_path / "out.mp4")
    info = probe_video(tmp_path / "out.mp4")
    assert info.style.rate == rate
    assert info.frame_count == 6


@pytest.mark.parametrize("suffix", [".mp4", ".mkv", ".mov"])
def test_sound_is_copied_packet_by_packet(small_video: Path, tmp_path: Path, suffix: str) -> None:
    rewrite(small_video, tmp_path / f"out{suffix}")
    before, after = sound_packets(small_video), sound_packets(tmp_path / f"out{suffix}")
    assert [data for _, data in after] == [data for _, data in before]
    # AAC begins before the first picture; Matroska has no time below 0, so there all moves together, in milliseconds.
    assert after_picture(tmp_path / f"out{suffix}") == pytest.approx(after_picture(small_video), abs=1.1e-3)


def told_of_sound(path: Path, *names: str) -> list[str | None]:
    """The first of the tags of these names, of each audio stream."""
    with av.open(str(path)) as container:
        tags = [stream.metadata for stream in container.streams.audio]
    return [next((one[name] for name in names if name in one), None) for one in tags]


@pytest.mark.parametrize("suffixes", [(".mkv", ".mkv"), (".mp4", ".mp4"), (".mp4", ".mkv"), (".mov", ".mov")])
def test_titles_and_languages_are_kept(small_video: Path, tmp_path: Path, suffixes: tuple[str, str]) -> None:
    titled, out = (tmp_path / f"{name}{suffix}" for name, suffix in zip(("titled", "out"), suffixes, strict=True))
    with av.open(str(small_video)) as source, av.open(str(titled), "w") as target:
        target.metadata.update(title="Two women", encoder="another")
        sound = source.streams.audio[0]
        streams = [target.add_stream_from_template(stream) for stream in (source.streams.video[0], sound, sound)]
        for stream, language in zip(streams[1:], ("jpn", "eng"), strict=True):
            stream.metadata.update(language=language, title=f"in {language}")
        for copy in range(2):
            source.seek(0)
            for packet in source.demux(audio=0) if copy else source.demux():
                if packet.dts is not None:
                    packet.stream = streams[packet.stream.index + copy]
                    target.mux(packet)
    rewrite(titled, out)
    with av.open(str(out)) as container:
        assert container.metadata["title"] == "Two women"
        assert "another" not in container.metadata.values()
    assert told_of_sound(out, "language") == ["jpn", "eng"]
    titles = told_of_sound(titled, "title", "name")  # FFmpeg up to 7 writes none into MP4
    assert told_of_sound(out, "title", "name") == titles
    if ".mp4" not in suffixes and ".mov" not in suffixes:
        assert titles == ["in jpn", "in eng"]


def after_picture(path: Path) -> list[float]:
    """Seconds of each audio packet after the first picture."""
    with av.open(str(path)) as container:
        first = next(container.decode(video=0)).time
    return [float(seconds) - first for seconds, _ in sound_packets(path)]


def test_sound_that_the_container_cannot_hold(small_video: Path, tmp_path: Path) -> None:
    info = probe_video(small_video)
    with pytest.raises(MediaError, match=r"a \.webm file cannot hold .*aac.*--no-sound"):
        check_video_output(tmp_path / "out.webm", info.width, info.height, info.style)
    assert not list(tmp_path.glob("*webm"))
    check_video_output(tmp_path / "out.webm", info.width, info.height, replace(info.style, sound_from=None))


def test_clip_that_starts_late_is_moved_to_zero_with_its_sound(small_video: Path, tmp_path: Path) -> None:
    """As recordings do that were cut out of a stream."""
    late = tmp_path / "late.mkv"
    with av.open(str(small_video)) as source, av.open(str(late), "w") as target:
        streams = {stream.index: target.add_stream_from_template(stream) for stream in source.streams}
        for packet in source.demux():
            if packet.dts is not None:
                shift = round(2 / packet.time_base)
                packet.pts, packet.dts = packet.pts + shift, packet.dts + shift
                packet.stream = streams[packet.stream.index]
                target.mux(packet)
    assert probe_video(late).style.start > 1
    rewrite(late, tmp_path / "out.mkv")
    assert probe_video(tmp_path / "out.mkv").style.start == 0
    assert after_picture(tmp_path / "out.mkv") == pytest.approx(after_picture(late), abs=1.1e-3)


@pytest.mark.parametrize("matrix", [*product([1, -1], [0], [0], [1, -1]), *product([0], [1, -1], [1, -1], [0])])
def test_phone_videos_are_turned_and_mirrored_upright(tmp_path: Path, matrix: tuple[int, ...]) -> None:
    path = make_video(tmp_path / "in.mp4", patches(64, 48, 2))
    plain, *_ = read_video(probe_video(path))
    set_display_matrix(path, matrix)
    info = probe_video(path)
    turned, *_ = read_video(info)
    a, b, c, d = matrix  # a pixel at (x, y), y down, is shown at (a x + c y, b x + d y)
    upright = plain if a else plain.transpose(1, 2)
    flipped = [axis for axis, sign in ((1, b + d), (2, a + c)) if sign < 0]
    assert torch.equal(turned, upright.flip(flipped))
    assert (info.height, info.width) == turned.shape[1:3]
    assert rewrite(path, tmp_path / "out.mp4")[1].shape == turned.shape


def set_display_matrix(path: Path, matrix: tuple[int, ...]) -> None:
    """Write a, b, c, d of the track header's matrix (ISO/IEC 14496-12, 8.3.2), 16.16 fixed point."""
    data = bytearray(path.read_bytes())
    at = data.index(b"tkhd") + 4 + 4 + 20 + 16
    a, b, c, d = (value * 65536 for value in matrix)
    entries = (a, b, 0, c, d, 0, 0, 0, 1 << 30)
    data[at : at + 36] = b"".join(entry.to_bytes(4, "big", signed=True) for entry in entries)
    path.write_bytes(data)


def test_pixel_shape_is_kept(tmp_path: Path) -> None:
    frames = torch.from_numpy(patches(64, 48, 2)).float() / 255
    style = replace(VideoStyle.at_rate(Fraction(25)), sample_aspect_ratio=Fraction(128, 117))
    write_video(tmp_path / "out.mp4", frames, style)
    assert probe_video(tmp_path / "out.mp4").style.sample_aspect_ratio == Fraction(128, 117)


@pytest.mark.parametrize("suffix", [".mp4", ".mkv", ".webm"])
def test_the_same_frames_are_the_same_file(tmp_path: Path, suffix: str) -> None:
    """x264's defaults fail this where the height is no multiple of 16."""
    frames = torch.from_numpy(np.stack([np.roll(patches(144, 88)[0], shift, 1) for shift in range(12)])).float() / 255
    written = set()
    for attempt in range(4):
        path = tmp_path / f"{attempt}{suffix}"
        write_video(path, frames, VideoStyle.at_rate(Fraction(12)))
        with av.open(str(path)) as container:  # packets, for Matroska writes a random id into the header
            written.add(b"".join(bytes(packet) for packet in container.demux(video=0)))
    assert len(written) == 1


def test_rounds_half_up(tmp_path: Path) -> None:
    levels = torch.tensor([0.49, 0.5, 1.5, 254.49, 254.5, 300, -3]) / 255
    frames = levels.view(1, 1, -1, 1).expand(1, 16, -1, 3).contiguous()
    write_video(tmp_path / "out.mkv", frames, VideoStyle.at_rate(Fraction(1)), lossless=True)
    back, *_ = read_video(probe_video(tmp_path / "out.mkv"))
    assert (back[0, 0, :, 0] * 255).round().int().tolist() == [0, 1, 2, 254, 255, 255, 0]


def test_missing_empty_and_foreign_files(tmp_path: Path) -> None:
    with pytest.raises(MediaError, match="does not exist"):
        probe_video(tmp_path / "none.mp4")
    (tmp_path / "empty.mp4").touch()
    with pytest.raises(MediaError, match="the file is empty"):
        probe_video(tmp_path / "empty.mp4")
    (tmp_path / "text.mp4").write_text("not a video" * 100)
    with pytest.raises(MediaError, match="cannot read .*text.mp4 as a video"):
        probe_video(tmp_path / "text.mp4")


def test_cut_off_file(small_video: Path) -> None:
    small_video.write_bytes(small_video.read_bytes()[:400])
    with pytest.raises(MediaError, match="small.mp4"):
        probe_video(small_video)


@pytest.mark.parametrize("suffix", [".mkv", ".mp4"])
def test_pictures_that_stop_early_are_told(tmp_path: Path, suffix: str) -> None:
    """FFmpeg itself says nothing: a copy that broke off would become a short output."""
    noise = torch.rand(24, 64, 64, 3, generator=torch.Generator().manual_seed(0))
    path = tmp_path / f"in{suffix}"
    write_video(path, noise, VideoStyle.at_rate(Fraction(8)))
    read_video(probe_video(path))
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    # Some versions of FFmpeg do tell, in one of the containers.
    with pytest.raises(MediaError, match=r"pictures end at 1\.\d+ s and its header promises 3|damaged after frame \d"):
        read_video(probe_video(path))


def test_a_lack_of_memory_is_not_taken_for_damage() -> None:
    def exhausted(*_: Any) -> Any:
        raise av.error.MemoryError(errno.ENOMEM, "Cannot allocate memory")

    container = SimpleNamespace(decode=exhausted)
    with pytest.raises(MemoryError):
        list(_decode(container, None, Path("clip.mp4")))  # type: ignore[arg-type]


def test_sound_alone_is_no_video(tmp_path: Path) -> None:
    path = tmp_path / "sound.mp4"
    with av.open(str(path), "w") as container:
        stream: Any = container.add_stream("aac", rate=48000)
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), format="fltp", layout="mono")
        frame.sample_rate = 48000
        container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    with pytest.raises(MediaError, match="no video stream"):
        probe_video(path)


def test_unknown_suffix_and_lossless_elsewhere(tmp_path: Path) -> None:
    style = VideoStyle.at_rate(Fraction(8))
    with pytest.raises(MediaError, match=r"\.avi.*\.mp4"):
        check_video_output(tmp_path / "out.avi", 64, 48, style)
    with pytest.raises(MediaError, match="Write to .mkv"):
        check_video_output(tmp_path / "out.mp4", 64, 48, style, lossless=True)


def test_check_leaves_nothing(small_video: Path, tmp_path: Path) -> None:
    info = probe_video(small_video)
    check_video_output(tmp_path / "out.mp4", info.width, info.height, info.style)
    assert [path.name for path in tmp_path.iterdir()] == ["small.mp4"]


@pytest.mark.parametrize("raised", [KeyboardInterrupt(), OSError(errno.ENOSPC, "No space left on device")])
def test_a_write_that_stops_half_way_keeps_the_old_video(
    small_video: Path, tmp_path: Path, raised: BaseException
) -> None:
    info = probe_video(small_video)
    frames, stamps, last = read_video(info)
    target = tmp_path / "out.mp4"
    target.write_text("old")

    def stop(done: int) -> None:
        if done == 3:
            raise raised

    with pytest.raises(MediaError if isinstance(raised, OSError) else KeyboardInterrupt):
        write_video(target, frames, info.style, stamps, last, on_frame=stop)
    assert target.read_text() == "old"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out.mp4", "small.mp4"]


@pytest.mark.parametrize("suffix", [".mkv", ".avi"])
def test_sound_that_is_refused_only_at_the_end_is_found_before(tmp_path: Path, suffix: str) -> None:
    """FFmpeg's MP4 muxer takes PCM packets and fails at the trailer."""
    path = make_video(tmp_path / f"in{suffix}", patches(64, 48, 6), sound="pcm_s16le")
    info = probe_video(path)
    with pytest.raises(MediaError, match=r"a \.mp4 file cannot hold .*pcm_s16le.*--no-sound"):
        check_video_output(tmp_path / "out.mp4", info.width, info.height, info.style)
    frames, stamps, _ = read_video(info)
    with pytest.raises(MediaError, match=r"cannot write .*out\.mp4"):
        write_video(tmp_path / "out.mp4", frames, info.style, stamps)
    assert [p.name for p in tmp_path.iterdir()] == [path.name]


def test_a_full_disk_is_not_the_containers_fault(
    small_video: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*args: Any) -> None:
        raise av.error.OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("animdetail_trt.media.video._Sound.mux_until", full)
    info = probe_video(small_video)
    with pytest.raises(MediaError, match="the disk is full"):
        check_video_output(tmp_path / "out.mp4", info.width, info.height, info.style)


def test_tags_that_are_no_text(small_video: Path, tmp_path: Path) -> None:
    """As old cameras and rippers write them."""
    path = tmp_path / "tagged.mkv"
    with av.open(str(small_video)) as source, av.open(str(path), "w") as target:
        target.metadata["title"] = "PLACEHOLDER"
        stream = target.add_stream_from_template(source.streams.video[0])
        for packet in source.demux(video=0):
            if packet.dts is not None:
                packet.stream = stream
                target.mux(packet)
    path.write_bytes(path.read_bytes().replace(b"PLACEHOLDER", b"\xff\xfe" + b"x" * 9))
    assert len(read_video(probe_video(path))[0]) == 6
