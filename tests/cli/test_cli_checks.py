"""Bad input: one line that names it and the remedy, exit code 2, before any model is loaded; nothing is left."""

from __future__ import annotations

import sys
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from safetensors.numpy import save_file

from animdetail_trt.cli.build_engines import parse_sm
from animdetail_trt.cli.detail import parse_rate
from animdetail_trt.extras import install_command
from clips import write_mask
from detectors import write_detector
from needs import needs_detector, needs_onnx


@pytest.fixture
def refused(
    run: Callable[..., Any], fake_models: Any, video: Path, segs: Path, checkpoint: Path, tmp_path: Path
) -> Callable[..., str]:
    """Run ``detail`` with some arguments replaced; it must fail early and cleanly. Returns the message."""

    def call(**changes: Any) -> str:
        given: dict[str, Any] = {"input": video, "output": tmp_path / "out.mp4", "checkpoint": checkpoint, "segs": segs}
        given |= changes
        argv = [given.pop("input")]
        for name, value in given.items():
            argv += [] if value is None else [f"--{name.replace('_', '-')}", *([] if value is True else [value])]
        before = sorted(tmp_path.rglob("*"))
        outcome = run("detail", *argv)
        assert outcome.code == 2
        assert outcome.out == ""
        assert "Traceback" not in outcome.err
        assert fake_models.loaded == []
        assert sorted(tmp_path.rglob("*")) == before
        message: str = outcome.err.strip().splitlines()[-1]
        assert "error: " in message
        return message

    return call


def test_files_that_are_not_there(refused: Callable[..., str], tmp_path: Path) -> None:
    none = tmp_path / "none"
    assert "none does not exist" in refused(input=none)
    assert "--checkpoint" in refused(checkpoint=none)
    assert "--motion-module" in refused(motion_module=none)
    assert "--vae" in refused(vae=none)
    assert "none does not exist" in refused(segs=none)
    assert "--masks" in refused(segs=None, masks=none)


def test_checkpoints_without_a_text_encoder(refused: Callable[..., str], tmp_path: Path) -> None:
    unet = {"model.diffusion_model.input_blocks.0.0.weight": np.zeros((1, 4, 1, 1), np.float32)}
    save_file(unet, tmp_path / "bare.safetensors")
    told = "holds no text encoder, which reads the prompts. Give a full checkpoint"
    assert f"--checkpoint {tmp_path / 'bare.safetensors'} {told}" in refused(checkpoint=tmp_path / "bare.safetensors")
    (tmp_path / "diffusers" / "unet").mkdir(parents=True)
    assert told in refused(checkpoint=tmp_path / "diffusers")
    (tmp_path / "diffusers" / "text_encoder").mkdir()
    (tmp_path / "diffusers" / "text_encoder" / "pytorch_model.bin").touch()
    assert told not in refused(checkpoint=tmp_path / "diffusers", fps="8")  # refused when it is read


@pytest.mark.parametrize("name", ["model.safetensors", "model.fp16.safetensors"])
def test_a_text_encoder_of_a_diffusers_folder_is_found(refused: Callable[..., str], tmp_path: Path, name: str) -> None:
    (tmp_path / "diffusers" / "text_encoder").mkdir(parents=True)
    (tmp_path / "diffusers" / "text_encoder" / name).touch()
    assert "text encoder" not in refused(checkpoint=tmp_path / "diffusers", fps="8")


def test_a_refiner_needs_none(refused: Callable[..., str], tmp_path: Path) -> None:
    unet = {"model.diffusion_model.input_blocks.0.0.weight": np.zeros((1, 4, 1, 1), np.float32)}
    save_file(unet, tmp_path / "bare.safetensors")
    assert "text encoder" not in refused(refiner=tmp_path / "bare.safetensors", fps="8")


def test_inputs_that_are_damaged(refused: Callable[..., str], video: Path, segs: Path, tmp_path: Path) -> None:
    (tmp_path / "text.mp4").write_text("no video")
    assert "text.mp4 as a video" in refused(input=tmp_path / "text.mp4")
    (tmp_path / "empty").mkdir()
    assert "holds no images" in refused(input=tmp_path / "empty")
    segs.write_text("{")
    assert "segs.json as a SEGS file" in refused()
    segs.write_text('{"size": [48, 64], "segs": []}')
    assert "segs.json holds nothing to detail" in refused()
    video.write_bytes(video.read_bytes()[:600])
    assert "in.mp4" in refused()


def test_outputs_that_cannot_be(refused: Callable[..., str], video: Path, segs: Path, tmp_path: Path) -> None:
    assert "--output" in refused(output=video)
    assert "does not exist. Make it" in refused(output=tmp_path / "no" / "out.mp4")
    assert "does not exist. Make it" in refused(preview=tmp_path / "no" / "sheet.png")
    assert "does not exist. Make it" in refused(report=tmp_path / "no" / "run.json")
    assert ".avi" in refused(output=tmp_path / "out.avi")
    assert "is one image" in refused(output=tmp_path / "out.png")
    assert "--no-sound" in refused(output=tmp_path / "out.webm")
    assert ".mkv" in refused(lossless=True)
    assert "--fps" in refused(fps="8")
    assert "no image name" in refused(preview=tmp_path / "sheet.txt")
    assert "same file as --segs" in refused(report=segs)
    assert "same file as --output" in refused(preview=tmp_path / "o.png", output=tmp_path / "o.png")
    assert "'-' is no name for an output" in refused(output="-")
    assert "'-' is no name for an output" in refused(report="-")
    assert "cannot write a .2 file" in refused(output=tmp_path / "v1.2")
    assert "for a folder of that name, make it first" in refused(output=tmp_path / "v1.2")


def test_names_that_are_unknown(refused: Callable[..., str]) -> None:
    assert "Choose one of: euler" in refused(sampler="eular")
    assert "karras" in refused(scheduler="karas")
    assert "'tpu'" in refused(device="tpu")
    assert "'float8'" in refused(dtype="float8")
    assert "the VAE cannot run in 'float16'" in refused(vae_dtype="float16")
    assert "'jax'" in refused(backend="jax")


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("steps", 0, "0 is out of range. Use 1 to 10000"),
        ("steps", 2.5, "'2.5' is not a whole number"),
        ("denoise", 0, "0 is out of range. Use 0.0001 to 1"),
        ("denoise", "nan", "out of range"),
        ("cfg", "inf", "out of range"),
        ("seed", -1, "out of range"),
        ("feather", 101, "Use 0 to 100"),
        ("guide_size", 8, "Use 64 to 16384"),
        ("crop_factor", 0.5, "Use 1 to 100"),
        ("context_length", 0, "Use 1 or more"),
        ("fps", "fast", "no frame rate"),
        ("fps", "1/0", "no frame rate"),
        ("fps", "1e-9", "out of range"),
        ("fps", "1000.01", "out of range"),
        ("guide_size_for", "face", "choose from"),
        ("refiner_ratio", 1.5, "1.5 is out of range. Use 0 to 1"),
        ("controlnet", "net.safetensors:1:0.8:0.2", "acts from 0.8 to 0.2. Use a start and an end from 0 to 1"),
        ("controlnet", "net.safetensors:1:-0.1", "acts from -0.1 to 1."),
    ],
)
def test_numbers_out_of_range(refused: Callable[..., str], name: str, value: Any, message: str) -> None:
    assert message in refused(**{name: value})


def test_context_windows_that_cannot_overlap(refused: Callable[..., str]) -> None:
    assert "context_overlap 8" in refused(context_length=8, context_overlap=8)
    assert "Choose one of: standard_static, standard_uniform" in refused(context_schedule="loop")
    assert "Choose one of: pyramid" in refused(context_length=8, fuse_method="blend")


def test_more_frames_than_the_motion_module_sees(
    refused: Callable[..., str], run: Callable[..., Any], folder: Path, video: Path, segs: Path, checkpoint: Path,
    tmp_path: Path,
) -> None:  # fmt: skip
    motion, table = tmp_path / "motion.safetensors", "temporal_transformer.0.attention_blocks.0.pos_encoder.pe"
    save_file({f"down_blocks.3.motion_modules.0.{table}": np.zeros((1, 4, 8), np.float32)}, motion)
    for clip in (video, folder):
        several = {"input": clip, "motion_module": motion, "output": tmp_path / "out"}
        assert "the clip has 5 frames, and the motion module sees 4 at most. Give --context-l" in refused(**several)
        assert "a window has 5 frames" in refused(context_length=8, **several)
    assert "--context-length 4: longer clips" in refused(motion_module=motion)
    argv = ["--checkpoint", checkpoint, "--segs", segs, "--motion-module", motion, "--context-length", 4]
    assert run("detail", video, "-o", tmp_path / "out.mp4", *argv).code == 0


def test_an_unknown_beta_schedule(refused: Callable[..., str]) -> None:
    assert "Choose one of: autoselect, linear, sqrt_linear" in refused(beta_schedule="linar")


def test_masks_that_do_not_fit(refused: Callable[..., str], tmp_path: Path) -> None:
    write_mask(tmp_path / "wide" / "a.png", (80, 48), (10, 10, 40, 40))
    assert "80x48, the frames of" in refused(segs=None, masks=tmp_path / "wide")
    for name in "abc":
        write_mask(tmp_path / "three" / f"{name}.png", (64, 48), (10, 10, 40, 40))
    assert "3 masks for 5 frames" in refused(segs=None, masks=tmp_path / "three")
    write_mask(tmp_path / "tiny" / "a.png", (64, 48), (10, 10, 14, 14))
    assert "no region larger than 10 pixels" in refused(segs=None, masks=tmp_path / "tiny")


@pytest.mark.parametrize("count", [1, 5])
def test_masks_that_hold_nothing(refused: Callable[..., str], tmp_path: Path, count: int) -> None:
    """Black, drawn in the alpha channel (of RGBA, or of a palette's), or of 0 and 1 as a detector writes them."""
    drawn = np.zeros((48, 64), np.uint8)
    drawn[10:40, 10:40] = 255
    transparent = np.dstack([np.zeros((48, 64, 3), np.uint8), drawn])
    black = Image.new("RGBA", (64, 48), (0, 0, 0, 255))
    palette = Image.fromarray(drawn // 255, "P")
    palette.putpalette([0] * 6)
    for name, image, words, options in (
        ("alpha", Image.fromarray(transparent), "drawn in their alpha channel, which is not read. Save them as wh", {}),
        ("palette", palette, "drawn in their alpha channel", {"transparency": 0}),
        ("black", black, "are all black. Draw what is to be detailed in white", {}),
        ("grey", black.convert("L"), "are all black.", {}),
        ("faint", Image.fromarray(drawn // 10), "too dark: their brightest pixel is 25 of 255. Draw what", {}),
    ):
        (tmp_path / name).mkdir()
        for index in range(count):
            image.save(tmp_path / name / f"{index}.png", **options)
        if (name, count) != ("faint", 5):  # several masks are taken as faint as they are
            assert words in refused(segs=None, masks=tmp_path / name)


def test_the_ways_to_name_segments_exclude_each_other(refused: Callable[..., str]) -> None:
    assert "not allowed with" in refused(detect="face")
    assert "one of the arguments --segs --masks --detect is required" in refused(segs=None)


def test_options_without_effect(refused: Callable[..., str], tmp_path: Path) -> None:
    for name, value, needed in (
        ("mask_shape", "box", "--detect"),
        ("each_frame", True, "--detect"),
        ("min_confidence", 0.5, "--detect"),
        ("combined", True, "--masks"),
        ("drop_size", 1, "--masks"),
        ("crop_factor", 2, "--masks or --detect"),
        ("preview_rows", 2, "--preview"),
        ("label", "hand", "--detect FILE.onnx"),
    ):
        message = refused(**{name: value})
        assert f"--{name.replace('_', '-')} has no effect without {needed}. Leave it out." in message
    masks = {"segs": None, "masks": write_mask(tmp_path / "m.png", (64, 48), (9, 9, 40, 40)), "mask_shape": "box"}
    assert "--mask-shape has no effect without --detect" in refused(**masks)
    assert "--label has no effect without --detect FILE.onnx" in refused(segs=None, detect="face", label="face")


def test_a_missing_detector_is_told_before_frames_are_read(
    refused: Callable[..., str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "cv2", None)
    assert install_command("detect") in refused(segs=None, detect="face")
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    (tmp_path / "hand.onnx").touch()
    assert install_command("detect") in refused(segs=None, detect=tmp_path / "hand.onnx")


def test_detectors_that_are_none(refused: Callable[..., str], tmp_path: Path) -> None:
    (tmp_path / "hand.pt").write_bytes(b"PK\x03\x04")
    assert "yolo export model=hand.pt format=onnx" in refused(segs=None, detect=tmp_path / "hand.pt")
    assert "fase is no file. Write face, or the path of" in refused(segs=None, detect="fase")
    assert "has an empty name" in refused(segs=None, detect=tmp_path / "hand.pt", label="hand,")


@needs_onnx
def test_detectors_that_are_of_no_use(refused: Callable[..., str], tmp_path: Path, folder: Path) -> None:
    detect = {"segs": None, "detect": write_detector(tmp_path / "shapes.onnx", facts={"names": "['a', 'b', 'c']"})}
    assert "'hand' is no class of" in refused(label="a,hand", **detect)
    assert "Choose of: a, b, c." in refused(label="hand", **detect)
    assert "no a or b of confidence 0.99 or more was found in" in refused(
        label="a, b", min_confidence=0.99, input=folder, output=tmp_path / "out", **detect
    )
    assert "no a or b or c of confidence 1 or more was found in" in refused(
        min_confidence=1, input=folder, output=tmp_path / "out", **detect
    )
    assert "--report" in refused(report=tmp_path / "shapes.onnx", **detect)
    told = "--mask-shape silhouette needs a segmentation model, and --detect "
    assert f"{told}{tmp_path / 'shapes.onnx'} finds boxes. Use oval" in refused(mask_shape="silhouette", **detect)
    write_detector(tmp_path / "pose.onnx", facts={"task": "pose"})
    assert "for the task 'pose'" in refused(segs=None, detect=tmp_path / "pose.onnx")


@needs_detector
def test_a_clip_without_a_face(refused: Callable[..., str]) -> None:
    assert "no face of confidence 0.9" in refused(segs=None, detect="face")
    assert "--detect face finds boxes" in refused(segs=None, detect="face", mask_shape="silhouette")


def test_a_folder_that_is_not_empty_is_not_filled(refused: Callable[..., str], tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "holiday.jpg").touch()
    assert "already holds 'holiday.jpg'" in refused(output=tmp_path / "out")


@pytest.mark.parametrize(("text", "rate"), [("8", "8"), ("30000/1001", "30000/1001"), ("23.976", "23976/1000")])
def test_rates(text: str, rate: str) -> None:
    assert float(parse_rate(text)) == pytest.approx(float(Fraction(rate)), rel=1e-5)


def test_a_wrong_model_file_is_told_before_frames_are_read(refused: Callable[..., str], tmp_path: Path) -> None:
    save_file({"lora_unet_mid.lora_up.weight": np.zeros(1)}, tmp_path / "lora.safetensors")
    lora = tmp_path / "lora.safetensors"
    assert "it is a LoRA" in refused(checkpoint=lora)
    assert "cannot be used as a motion module" in refused(motion_module=lora)
    assert "cannot be used as a VAE" in refused(vae=lora)
    (tmp_path / "empty.safetensors").touch()
    assert "empty.safetensors is empty" in refused(checkpoint=tmp_path / "empty.safetensors")


def test_wrong_refiners_and_controlnets(refused: Callable[..., str], tmp_path: Path) -> None:
    lora, sdxl, pickle = (tmp_path / name for name in ("lora.safetensors", "sdxl.safetensors", "net.pth"))
    save_file({"lora_unet_mid.lora_up.weight": np.zeros(1)}, lora)
    save_file({"control_model.label_emb.0.0.weight": np.zeros(1)}, sdxl)
    pickle.write_bytes(b"\x80\x02}.")
    for flag, purpose in (("refiner", "a refiner's checkpoint"), ("controlnet", "a ControlNet")):
        assert f"--{flag} {tmp_path / 'none'} does not exist" in refused(**{flag: tmp_path / "none"})
        assert f"cannot be used as {purpose}: it is a LoRA" in refused(**{flag: lora})
        assert f"cannot be used as {purpose}: it is a ControlNet for SDXL" in refused(**{flag: sdxl})
        assert "net.pth is a pickle" in refused(**{flag: pickle})
    assert "is a folder; a ControlNet is a .safetensors file" in refused(controlnet=f"{tmp_path}:0.5")


def test_wrong_textual_inversions(refused: Callable[..., str], tmp_path: Path) -> None:
    hands, lora = tmp_path / "bad-hands.safetensors", tmp_path / "lora.safetensors"
    save_file({"emb_params": np.zeros((2, 64), np.float32)}, hands)
    save_file({"lora_unet_mid.lora_up.weight": np.zeros(1)}, lora)
    assert "cannot be used as a textual inversion: it is a LoRA" in refused(embedding=lora, prompt="embedding:lora")
    assert "does not exist" in refused(embedding=tmp_path / "none.safetensors")
    for negative in ("", "bad-hands", "embedding:bad-feet", "blurry,embedding:bad-hands", "embedding:bad-hands2"):
        message = "bad-hands.safetensors is in no prompt. Write embedding:bad-hands there, at its start or behind"
        assert message in refused(embedding=hands, negative=negative)
    brackets = tmp_path / "bad(1).safetensors"
    save_file({"emb_params": np.zeros((2, 64), np.float32)}, brackets)
    assert r"Write embedding:bad\(1\) there" in refused(embedding=brackets)
    unreadable = {"segs": None, "masks": tmp_path / "none.png"}  # which is looked at later
    for embedding, negative in (
        (hands, "(embedding:bad-hands:1.2)"),
        (hands, "blurry, embedding:SD15/bad-hands.safetensors, dark"),
        (brackets, r"embedding:bad\(1\)"),
    ):
        assert "none.png does not exist" in refused(embedding=embedding, negative=negative, **unreadable)
    save_file({"emb_params": np.zeros((2, 64), np.float32)}, tmp_path / "my hands.safetensors")
    told = refused(embedding=tmp_path / "my hands.safetensors", negative="embedding:my hands")
    assert "my hands.safetensors: a space or a comma ends a name. Rename the file" in told
    assert "it is a textual inversion embedding. Give it as a textual inversion: --embedding" in refused(vae=hands)


def test_options_of_a_refiner_that_is_not_there(refused: Callable[..., str], tmp_path: Path) -> None:
    for name, value in (("ratio", 0), ("prompt", ""), ("negative", "blur"), ("lora", tmp_path / "none")):
        message = f"--refiner-{name} needs a refiner. Give one with --refiner CHECKPOINT."
        assert message in refused(**{f"refiner_{name}": value})


def test_damaged_pictures(refused: Callable[..., str], tmp_path: Path) -> None:
    """Cut off in the signature, in the header and in the pixels."""
    whole = write_mask(tmp_path / "whole.png", (80, 48), (10, 10, 60, 40)).read_bytes()
    for length in (0, 5, 30, 60, len(whole) // 2):
        (tmp_path / "cut.png").write_bytes(whole[:length])
        assert "cut.png" in refused(masks=tmp_path / "cut.png", segs=None)
        assert "cut.png" in refused(input=tmp_path / "cut.png", output=tmp_path / "out.png")


def test_saved_segs_replace_no_file_that_was_not_named(refused: Callable[..., str], tmp_path: Path) -> None:
    save_file({"face": np.ones((4, 4), np.float32)}, tmp_path / "own.masks.safetensors")
    assert "own.masks.safetensors" in refused(save_segs=tmp_path / "own.json")


def test_an_output_replaces_no_input(refused: Callable[..., str], folder: Path, segs: Path, tmp_path: Path) -> None:
    image = folder / "shot8.png"
    assert "--output" in refused(input=image, output=folder)
    assert "same file as IN" in refused(input=folder, output=folder)
    assert "same file as IN" in refused(input=folder, output=tmp_path / "out", preview=image)
    link = tmp_path / "link.png"
    link.symlink_to(image)
    assert "same file as IN" in refused(input=folder, output=tmp_path / "out", preview=link)

    mask = write_mask(tmp_path / "masks" / "m1.png", (64, 48), (10, 10, 40, 40))
    assert "same file as --masks" in refused(segs=None, masks=mask.parent, preview=mask)
    segs.write_text('{"size": [48, 64], "segs": [{"bbox": [10, 10, 40, 40], "mask": "masks/m1.png"}]}')
    assert "same file as a mask of --segs" in refused(preview=mask)
    mask.rename(mask.with_name("shot8.png"))
    one_mask = {"segs": None, "masks": mask.parent}
    assert "same file as --masks" in refused(input=image, output=mask.parent, **one_mask)


def test_no_image_is_written_among_those_that_are_read(
    refused: Callable[..., str], folder: Path, segs: Path, tmp_path: Path
) -> None:
    out = {"input": folder, "output": tmp_path / "out"}
    assert "lies among the frames of IN" in refused(preview=folder / "sheet.jpg", **out)
    masks = write_mask(tmp_path / "masks" / "m1.png", (64, 48), (10, 10, 40, 40)).parent
    assert "lies among --masks, where the next run" in refused(segs=None, masks=masks, preview=masks / "sheet.png")
    one = {"input": folder / "shot8.png", "output": masks / "out.png", "segs": None, "masks": masks}
    assert "lies among --masks" in refused(**one)
    segs.write_text('{"size": [48, 64], "segs": [{"bbox": [10, 10, 40, 40], "mask": "masks"}]}')
    assert "lies among the masks of --segs" in refused(preview=masks / "sheet.png")


def test_an_image_beside_the_one_that_is_read_is_written(
    run: Callable[..., Any], fake_models: Any, folder: Path, segs: Path, checkpoint: Path
) -> None:
    argv = ["--checkpoint", checkpoint, "--segs", segs, "--preview", folder / "sheet.png"]
    assert run("detail", folder / "shot8.png", "-o", folder / "shot8_detailed.png", *argv).code == 0


def test_an_output_replaces_no_model(refused: Callable[..., str], checkpoint: Path) -> None:
    assert "same file as --checkpoint" in refused(report=checkpoint)
    part = checkpoint.parent / "diffusers" / "text_encoder" / "model.safetensors"
    part.parent.mkdir(parents=True)
    part.touch()
    assert "same file as --checkpoint" in refused(checkpoint=part.parents[1], report=part)
    assert "same file as --refiner" in refused(refiner=part.parent, report=part)
    network = checkpoint.with_name("net.safetensors")
    save_file({"zero_convs.0.0.weight": np.zeros(1)}, network)
    assert "same file as --controlnet" in refused(controlnet=network, report=network)


def test_an_output_replaces_no_output(refused: Callable[..., str], tmp_path: Path) -> None:
    assert "same file as --report" in refused(save_segs=tmp_path / "v.json", report=tmp_path / "v.masks.safetensors")
    (tmp_path / "out").mkdir()
    first = tmp_path / "out" / "frame_000001.png"
    assert "same file as --output" in refused(output=tmp_path / "out", preview=first)
    assert "among the frames" in refused(output=tmp_path / "out", preview=first.with_name("frame_999999.png"))


def test_outputs_that_are_folders(refused: Callable[..., str], tmp_path: Path) -> None:
    for name in (tmp_path, ".", ""):
        assert "it is a folder. Name a file" in refused(report=name)
        assert "it is a folder. Name a file" in refused(save_segs=name)


def test_paths_that_the_file_system_refuses(refused: Callable[..., str], tmp_path: Path) -> None:
    assert "File name too long" in refused(input=tmp_path / ("x" * 300))
    assert "File name too long" in refused(output=tmp_path / ("x" * 300 + ".mp4"))
    (tmp_path / "loop.png").symlink_to(tmp_path / "loop.png")
    for name in ("input", "output", "preview", "checkpoint"):
        assert "loop.png" in refused(**{name: tmp_path / "loop.png"})


def test_a_sheet_too_tall_for_its_format(refused: Callable[..., str], segs: Path, tmp_path: Path) -> None:
    entries = ", ".join(['{"bbox": [10, 10, 40, 40]}'] * 20)
    segs.write_text(f'{{"size": [48, 64], "segs": [{entries}]}}')
    assert "Use fewer --preview-rows" in refused(preview=tmp_path / "sheet.webp", preview_rows=64)


@pytest.mark.parametrize(("text", "capability"), [("89", "8.9"), ("8.9", "8.9"), ("120", "12.0"), ("12.0", "12.0")])
def test_target_sm(text: str, capability: str) -> None:
    assert parse_sm(text) == capability
