"""``detail`` from file to file: with a stand-in for the models, and once with real (tiny, random) ones."""

from __future__ import annotations

import errno
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
import torch
from PIL import Image

from animdetail_trt.cli.detail import _out_of_memory_hint
from animdetail_trt.errors import DeviceError
from animdetail_trt.media.clip import open_source
from animdetail_trt.media.segs_file import read_segs
from animdetail_trt.media.video import probe_video, read_video
from animdetail_trt.sampling import ContextOptions
from clips import CROP, make_video, patches, sound_packets, write_mask
from detectors import write_detector
from needs import needs_onnx


def inverted(frames: torch.Tensor, region: tuple[int, int, int, int] = CROP) -> torch.Tensor:
    x1, y1, x2, y2 = region
    result = frames.clone()
    result[:, y1:y2, x1:x2] = 1 - result[:, y1:y2, x1:x2]
    return (result * 255).round()


def test_video_with_everything(
    run: Callable[..., Any], fake_models: Any, video: Path, segs: Path, checkpoint: Path, tmp_path: Path
) -> None:
    outcome = run(
        "detail", video, "-o", tmp_path / "out.mkv", "--lossless", "--checkpoint", checkpoint, "--segs", segs,
        "--prompt", "a face", "--negative", "blur", "--steps", 3, "--seed", 2**64 - 1, "--denoise", 0.4,
        "--guide-size-for", "crop_region", "--context-length", 4, "--context-overlap", 1,
        "--context-schedule", "looped_uniform", "--context-stride", 2, "--closed-loop", "--fuse-method", "pyramid",
        "--motion-scale", 1.2, "--motion-effect", 0.9, "--beta-schedule", "lcm",
        "--preview", tmp_path / "sheet.png", "--report", tmp_path / "run.json", "--save-segs", tmp_path / "kept.json",
    )  # fmt: skip
    assert outcome.code == 0, outcome.err
    assert outcome.out == f"{tmp_path / 'out.mkv'}: 5 frames of 64x48, 1 segment detailed\n"
    before, *_ = read_video(probe_video(video))
    after, *_ = read_video(probe_video(tmp_path / "out.mkv"))
    assert torch.equal((after * 255).round(), inverted(before))
    assert [data for _, data in sound_packets(tmp_path / "out.mkv")] == [data for _, data in sound_packets(video)]

    (args, options) = fake_models.loaded[0]
    assert args == (checkpoint,)
    assert options["context"] == ContextOptions("looped_uniform", 4, 1, 2, True, "pyramid")
    assert (options["motion_scale"], options["motion_effect"], options["beta_schedule"]) == (1.2, 0.9, "lcm")
    assert fake_models.pipe.prompts == ("a face", "blur")
    called = fake_models.detailed[0]
    assert (called["steps"], called["seed"], called["denoise"]) == (3, 2**64 - 1, 0.4)
    assert called["guide_size_for"] is False

    report = json.loads((tmp_path / "run.json").read_text())
    assert report["input"] == {"path": str(video), "frames": 5, "width": 64, "height": 48, "rate": 25.0}
    assert report["parameters"]["seed"] == 2**64 - 1
    assert report["detail"]["segments"][0]["stages_ms"] == {"sample": 12.5}
    assert report["detail"]["segments"][0]["crop_region"] == list(CROP)
    assert set(report["phases_ms"]) == {"check", "read", "find", "load", "detail", "write", "preview"}
    assert report["versions"]["torch"] == torch.__version__
    assert report["runs_on"]["unet"] == report["runs_on"]["vae"] == "torch"
    assert Image.open(tmp_path / "sheet.png").width > 500
    assert read_segs(tmp_path / "kept.json")[1][0].crop_region == CROP


def test_defaults_are_the_nodes(
    run: Callable[..., Any], fake_models: Any, video: Path, segs: Path, checkpoint: Path, tmp_path: Path
) -> None:
    interfaces = json.loads((Path(__file__).parents[1] / "golden" / "node_interfaces.json").read_text())
    inputs = interfaces["DetailerForEachPipeForAnimateDiff"]["input"]
    assert run("detail", video, "-o", tmp_path / "out.mp4", "--checkpoint", checkpoint, "--segs", segs, "-q").code == 0
    called = fake_models.detailed[0]
    defaults = {k: v[1]["default"] for k, v in (inputs["required"] | inputs["optional"]).items() if "default" in str(v)}
    shared = defaults.keys() & called.keys()
    assert len(shared) >= 9
    assert {name: called[name] for name in shared} == {name: defaults[name] for name in shared}
    assert called["sampler_name"] == inputs["required"]["sampler_name"][0][0]
    assert called["scheduler"] == inputs["required"]["scheduler"][0][0]
    assert fake_models.loaded[0][1]["context"] is None


def test_folder_to_folder_with_one_mask_for_all(
    run: Callable[..., Any], fake_models: Any, folder: Path, checkpoint: Path, tmp_path: Path
) -> None:
    mask = write_mask(tmp_path / "mask.png", (64, 48), (20, 10, 40, 30))
    outcome = run(
        "detail", folder, "-o", tmp_path / "out", "--checkpoint", checkpoint, "--masks", mask, "--crop-factor", 1.5
    )
    assert outcome.code == 0, outcome.err
    [seg] = fake_models.detailed[0]["segs"][1]
    assert seg.bbox == (20, 10, 40, 30)
    assert seg.crop_region == (15, 5, 45, 35)
    source = open_source(tmp_path / "out")
    assert [path.name for path in source.images] == [f"shot{i}.png" for i in range(8, 13)]
    before = torch.from_numpy(patches(64, 48, 5)).float() / 255
    assert torch.equal((source.read().frames * 255).round(), inverted(before, seg.crop_region))


@needs_onnx
def test_a_detectors_file(
    run: Callable[..., Any], fake_models: Any, checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Grey frames with a red and a green square; the file is in the user's home, the label is asked for."""
    monkeypatch.setenv("HOME", str(tmp_path))
    write_detector(tmp_path / "shapes.onnx")
    picture = np.full((48, 64, 3), 90, np.uint8)
    picture[8:16, 16:24], picture[24:32, 40:48] = (255, 0, 0), (40, 200, 40)
    (tmp_path / "frames").mkdir()
    for index in range(3):
        Image.fromarray(picture).save(tmp_path / "frames" / f"{index}.png")

    def detail(*options: Any) -> tuple[str, Any]:
        outcome = run(
            "detail", tmp_path / "frames", "-o", tmp_path / "out", "--checkpoint", checkpoint, "--report",
            tmp_path / "run.json", "--detect=~/shapes.onnx", "--mask-shape", "box", "--crop-factor", 2, *options,
        )  # fmt: skip
        assert outcome.code == 0, outcome.err
        shutil.rmtree(tmp_path / "out")
        return outcome.err, json.loads((tmp_path / "run.json").read_text())

    told, report = detail("--label", "green, blue", "--min-confidence", 0.4)
    assert "segment 1/1 green" in told
    assert report["parameters"]["detect"] == str(tmp_path / "shapes.onnx")
    assert report["parameters"]["label"] == ["green", "blue"]
    [segment] = report["detail"]["segments"]
    assert segment["label"] == "green"
    assert segment["bbox"] == [38, 22, 50, 34]  # 8 pixels, and 15 % of them on every side
    assert segment["crop_region"] == [32, 16, 56, 40]
    assert segment["confidence"] == pytest.approx(120 / 255, abs=0.001)
    assert fake_models.detailed[0]["segs"][1][0].cropped_mask.sum() == 12 * 12

    _, report = detail()  # 0.5 of 1: the green square is too faint
    assert [segment["label"] for segment in report["detail"]["segments"]] == ["red"]


@needs_onnx
def test_a_mask_for_each_frame(run: Callable[..., Any], fake_models: Any, checkpoint: Path, tmp_path: Path) -> None:
    """A red square goes right by eight pixels a frame; the model draws silhouettes."""
    write_detector(tmp_path / "shapes.onnx", size=(128, 64), boxes=[(3, 1)], masks=4)
    (tmp_path / "frames").mkdir()
    for index in range(6):
        picture = np.full((64, 128, 3), 90, np.uint8)
        picture[24:32, 16 + 8 * index : 24 + 8 * index] = 255, 0, 0
        Image.fromarray(picture).save(tmp_path / "frames" / f"{index}.png")

    def detail(*options: Any) -> dict[str, Any]:
        outcome = run(
            "detail", tmp_path / "frames", "-o", tmp_path / "out", "--checkpoint", checkpoint,
            "--detect", tmp_path / "shapes.onnx", "--each-frame", "--improve", "follow-motion",
            "--save-segs", tmp_path / "segs.json", *options,
        )  # fmt: skip
        assert outcome.code == 0, outcome.err
        shutil.rmtree(tmp_path / "out")
        return fake_models.detailed[-1]

    for shape, square in ((["--mask-shape", "box"], 24), ([], 8)):
        detailed = detail(*shape)
        [seg] = detailed["segs"][1]
        assert seg.bbox[0] < 8
        assert seg.bbox[2] > 72
        left = seg.crop_region[0]
        for index, mask in enumerate(seg.cropped_mask):
            rows, columns = (np.flatnonzero((mask == 1).any(axis)) for axis in (1, 0))
            assert len(columns) == pytest.approx(square * (1 if square == 8 else 1.3), abs=1)
            assert len(rows) == len(columns)
            assert columns.mean() + 0.5 + left == pytest.approx(20 + 8 * index, abs=0.5)
        _, [kept] = read_segs(tmp_path / "segs.json")
        assert torch.equal(kept.cropped_mask, seg.cropped_mask)


def test_one_mask_per_frame_and_a_video_out_of_images(
    run: Callable[..., Any], fake_models: Any, folder: Path, checkpoint: Path, tmp_path: Path
) -> None:
    for index in range(5):
        write_mask(tmp_path / "masks" / f"m{index}.png", (64, 48), (20 + index, 10, 40 + index, 30))
    outcome = run(
        "detail", folder, "-o", tmp_path / "out.mp4", "--fps", 12, "--checkpoint", checkpoint,
        "--masks", tmp_path / "masks", "--preview", tmp_path / "sheet.jpg", "--preview-rows", 2,
    )  # fmt: skip
    assert outcome.code == 0, outcome.err
    [seg] = fake_models.detailed[0]["segs"][1]
    assert len(seg.cropped_mask) == 5
    assert probe_video(tmp_path / "out.mp4").style.rate == 12


def test_masks_out_of_a_video(
    run: Callable[..., Any], fake_models: Any, folder: Path, checkpoint: Path, tmp_path: Path
) -> None:
    pictures = np.zeros((5, 48, 64, 3), np.uint8)
    for index in range(5):
        pictures[index, 10:30, 20 + index : 40 + index] = 255
        write_mask(tmp_path / "images" / f"m{index}.png", (64, 48), (20 + index, 10, 40 + index, 30))
    masks = make_video(tmp_path / "masks.mkv", pictures, codec="ffv1", pix_fmt="bgr0")
    for given in (masks, tmp_path / "images"):
        outcome = run("detail", folder, "-o", tmp_path / "out", "--checkpoint", checkpoint, "--masks", given)
        assert outcome.code == 0, outcome.err
    (of_video,), (of_images,) = (call["segs"][1] for call in fake_models.detailed)
    assert of_video.crop_region == of_images.crop_region
    assert torch.equal(of_video.cropped_mask, of_images.cropped_mask)


def test_quiet_says_only_the_result(
    run: Callable[..., Any], fake_models: Any, video: Path, segs: Path, checkpoint: Path, tmp_path: Path
) -> None:
    outcome = run("detail", video, "-o", tmp_path / "out.mp4", "--checkpoint", checkpoint, "--segs", segs, "-q")
    assert (outcome.code, outcome.err) == (0, "")


@pytest.mark.parametrize(
    ("size", "output", "flags", "words"),
    [
        ((65, 48), "out.mp4", [], "out.mp4 is H.264 in yuv444p"),
        ((64, 47), "out.webm", [], "out.webm is VP9 in yuv444p"),
        ((65, 47), "out.mkv", ["--lossless"], None),
        ((64, 48), "out.mp4", [], None),
        ((65, 47), "out", [], None),
    ],
)
def test_a_size_that_many_players_do_not_show_is_told_of_once(
    run: Callable[..., Any], fake_models: Any, segs: Path, checkpoint: Path, tmp_path: Path,
    size: tuple[int, int], output: str, flags: list[str], words: str | None,
) -> None:  # fmt: skip
    (tmp_path / "frames").mkdir()
    Image.fromarray(patches(*size)[0]).save(tmp_path / "frames" / "0.png")
    outcome = run(
        "detail", tmp_path / "frames", "-o", tmp_path / output, "--checkpoint", checkpoint, "--segs", segs, "-q",
        *flags, *([] if output == "out" else ["--fps", 8]),
    )  # fmt: skip
    assert outcome.code == 0, outcome.err
    if words is None:
        assert outcome.err == ""
    else:
        assert outcome.err.startswith(f"warning: {words}, which holds the odd size {size[0]}x{size[1]} but")
        assert outcome.err.endswith("to even sides, such as {}x{}\n".format(*(side + side % 2 for side in size)))
        with av.open(str(tmp_path / output)) as written:
            assert written.streams.video[0].codec_context.pix_fmt == "yuv444p"


@pytest.mark.parametrize("name", ["out.mp4", "out"])
def test_disk_full_while_writing_keeps_what_was_there(
    run: Callable[..., Any], fake_models: Any, video: Path, segs: Path, checkpoint: Path, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch, name: str,
) -> None:  # fmt: skip
    output = tmp_path / name
    if output.suffix:
        output.write_text("old")
    before = sorted(tmp_path.iterdir())

    def full(*args: Any) -> Any:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("animdetail_trt.media.video.from_rgb", full)
    monkeypatch.setattr("animdetail_trt.media.images._save", full)
    outcome = run("detail", video, "-o", output, "--checkpoint", checkpoint, "--segs", segs, "-q")
    assert outcome.code == 2
    assert "the disk is full" in outcome.err
    assert len(outcome.err.strip().splitlines()) == 1
    assert sorted(tmp_path.iterdir()) == before
    if output.suffix:
        assert output.read_text() == "old"


@pytest.mark.parametrize(
    ("where", "error"),
    [
        ("detailer.detailer.DetailerForEachPipeForAnimateDiff.doit", torch.OutOfMemoryError("CUDA out of memory")),
        ("media.video.to_float", RuntimeError("DefaultCPUAllocator: can't allocate memory: 9 bytes")),
        ("models.pipe.load_pipe", MemoryError()),
        ("media.video.from_rgb", MemoryError()),
        ("media.preview.contact_sheet", MemoryError()),
    ],
)
def test_out_of_memory_names_the_remedy(
    run: Callable[..., Any], fake_models: Any, video: Path, segs: Path, checkpoint: Path, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch, where: str, error: Exception,
) -> None:  # fmt: skip
    def exhausted(*args: Any, **options: Any) -> Any:
        raise error

    monkeypatch.setattr(f"animdetail_trt.{where}", exhausted)
    argv = ["-o", tmp_path / "out.mp4", "--checkpoint", checkpoint, "--preview", tmp_path / "sheet.png", "-q"]
    outcome = run("detail", video, *argv, "--segs", segs)
    assert outcome.code == 2
    for told in ("out of memory", f"{error}. Use a smaller --max-size", "--crop-factor", "fewer frames"):
        assert told in outcome.err


def test_out_of_memory_is_the_devices_error() -> None:
    for full in (torch.OutOfMemoryError("CUDA out of memory"), MemoryError(), DeviceError("can't allocate memory")):
        with pytest.raises(DeviceError, match="out of memory.* Use a smaller --max-size"), _out_of_memory_hint():
            raise full
    with pytest.raises(RuntimeError, match="^another$"), _out_of_memory_hint():
        raise RuntimeError("another")


def test_end_to_end_with_tiny_models(
    run: Callable[..., Any], tiny: Path, tiny_checkpoint: Path, video: Path, segs: Path, tmp_path: Path
) -> None:
    """Real loading, text encoding, VAE, motion module and sampling: the mask's inside changes, the rest does not."""
    argv = [
        "--checkpoint", tiny_checkpoint, "--motion-module", tiny / "tiny_mm_v3.safetensors", "--segs", segs,
        "--prompt", "a (face:1.2)", "--steps", 2, "--guide-size", 64, "--max-size", 64, "--feather", 2,
        "--lossless", "--report", tmp_path / "run.json", "--preview", tmp_path / "sheet.png",
    ]  # fmt: skip
    outcome = run("detail", video, "-o", tmp_path / "out.mkv", *argv)
    assert outcome.code == 0, outcome.err
    before, *_ = read_video(probe_video(video))
    info = probe_video(tmp_path / "out.mkv")
    after, *_ = read_video(info)
    changed = (after != before).any(dim=3).numpy()
    x1, y1, x2, y2 = CROP
    assert changed[:, y1 + 12 : y1 + 20, x1 + 12 : x1 + 20].mean() > 0.9
    outside = np.ones(changed.shape[1:], bool)
    outside[y1:y2, x1:x2] = False
    assert not changed[:, outside].any()
    assert not np.array_equal(after[0].numpy(), after[1].numpy())
    report = json.loads((tmp_path / "run.json").read_text())
    assert report["detail"]["segments"][0]["work_size"] == [64, 64]
    assert set(report["detail"]["segments"][0]["stages_ms"]) >= {"encode", "sample", "decode", "paste"}
    assert "segment 1/1 face  32x32 -> 64x64" in outcome.err

    (again := tmp_path / "again").mkdir()
    assert run("detail", video, "-o", again / "out.mkv", *argv, "--seed", 1, "-q").code == 0
    assert not torch.equal(read_video(probe_video(again / "out.mkv"))[0], after)


@pytest.mark.parametrize(("length", "overlap"), [(1, 0), (4, 1), (8, 2), (16, 4), (32, 4)])
def test_the_overlap_follows_the_context_length(
    run: Callable[..., Any], fake_models: Any, video: Path, segs: Path, checkpoint: Path, tmp_path: Path,
    length: int, overlap: int,
) -> None:  # fmt: skip
    argv = ["-o", tmp_path / "out.mp4", "--checkpoint", checkpoint, "--segs", segs, "--context-length", length, "-q"]
    assert run("detail", video, *argv).code == 0
    context = fake_models.loaded[0][1]["context"]
    assert (context.context_length, context.context_overlap) == (length, overlap)
