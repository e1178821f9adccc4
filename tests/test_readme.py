"""Every command of the README is run, as it stands there, in the order in which it stands there."""

from __future__ import annotations

import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from clips import make_video, write_mask
from detectors import write_detector
from needs import carphone, needs_clip, needs_detector, needs_onnx

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()
BLOCKS = re.findall(r"^```(\w+)\n(.*?)^```", README, re.MULTILINE | re.DOTALL)
COMMANDS = [
    shlex.split(line, comments=True)
    for language, text in BLOCKS
    if language == "bash"
    for line in text.replace("\\\n", "").splitlines()
    if line.strip()
]
PYTHON = [text for language, text in BLOCKS if language == "python"]


@pytest.fixture
def user_files(tiny: Path, tiny_checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with the files that the README names."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("ANIMDETAIL_ENGINE_DIR", str(tmp_path / "engines"))
    shutil.copy(tiny_checkpoint, "sd15.safetensors")
    shutil.copy(tiny_checkpoint, "refiner.safetensors")
    shutil.copy(tiny / "tiny_mm_v3.safetensors", "mm_sd15_v3.safetensors")
    shutil.copy(tiny / "tiny_lora.safetensors", "style.safetensors")
    shutil.copy(tiny / "tiny_controlnet.safetensors", "control_tile.safetensors")
    write_mask(Path("masks/all.png"), (176, 144), (60, 40, 100, 90))
    [example] = [text for language, text in BLOCKS if language == "json"]
    Path("segs.json").write_text(example)
    for name in ("main.py", "comfy/samplers.py", "custom_nodes/theirs.py"):
        (tmp_path / "ComfyUI" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "ComfyUI" / name).touch()
    return tmp_path


def first_frames(path: Path, count: int) -> np.ndarray:
    import av

    with av.open(str(path)) as container:
        frames = [frame.to_ndarray(format="rgb24") for frame, _ in zip(container.decode(video=0), range(count))]  # noqa: B905
    return np.stack(frames)


@needs_clip
@needs_detector
@needs_onnx
def test_every_shell_command(user_files: Path) -> None:
    make_video(Path("clip.mp4"), first_frames(carphone(), 1))  # one: 512 px take ten seconds a frame
    bright = {"cell": 64, "weights": [[0.6] * 3], "facts": {"names": "{0: 'hand'}"}}  # a hand as large as its input
    write_detector(Path("hand_yolov8n.onnx"), **bright)
    # tests/bench/test_quick.py runs the benchmark's.
    ours = [command for command in COMMANDS if command[0] == "animdetail-trt" and command[1] != "bench"]
    assert len(ours) >= 6
    for command in ours:
        if command[1] == "detail" and "--motion-module" in command:
            assert "--context-length" in command  # a clip of the reader's has more frames than the module sees
        run = [sys.executable, "-m", "animdetail_trt.cli", *command[1:]]
        done = subprocess.run(run, capture_output=True, text=True, check=False)
        assert done.returncode == 0, f"{shlex.join(command)}\n{done.stderr}"
    pictures = ["frames/frame_000001.png", "steered/frame_000001.png"]
    for name in ("detailed.mp4", "hands.mp4", "sheet.png", "run.json", *pictures, "detailed.mkv"):
        assert Path(name).stat().st_size > 0
    assert Image.open("frames/frame_000001.png").size == (176, 144)


def test_the_other_shell_commands_are_what_ci_runs() -> None:
    """``make demo`` runs the script of test_demo.py; ``make test`` is what runs this; pip's line is in the Makefile."""
    others = [command for command in COMMANDS if command[0] != "animdetail-trt"]
    assert others == [["make", "demo"], ["make", "test"], ["pip", "install", ".[detect]"], ["pip", "install", ".[rtx]"]]
    assert "--editable '.[detect,rtx,bench,dev]'" in (ROOT / "Makefile").read_text()
    assert "make test" in (ROOT / ".ci" / "run").read_text()
    plan = subprocess.run(["make", "-n", "demo"], cwd=ROOT, capture_output=True, text=True, check=True)
    assert "examples/demo.py --output demo" in plan.stdout


@pytest.mark.usefixtures("user_files")
def test_every_python_block() -> None:
    assert len(PYTHON) == 3
    names: dict[str, object] = {}
    for block in PYTHON:
        exec(block, names)
    assert tuple(names["crops"].shape) == (2, 96, 96, 3)  # type: ignore[attr-defined]


def test_the_figures_are_those_of_the_runs_that_are_linked() -> None:
    command = [sys.executable, ROOT / "benchmarks" / "figures.py", "--check"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert README.count("<!-- figures: ") == README.count("<!-- end -->") == 3
    assert " times as fast (" in README  # a block that is empty would agree with itself


@pytest.mark.parametrize("folder", [".", "docs"])
def test_pictures_and_links_exist(folder: str) -> None:
    text = (ROOT / folder / "README.md").read_text()
    targets = [target for target in re.findall(r"\]\(([^)#]+)\)", text) if "://" not in target]
    assert targets
    assert [target for target in targets if not (ROOT / folder / target).exists()] == []


def test_the_docs_are_listed() -> None:
    listed = (ROOT / "docs" / "README.md").read_text()
    assert [path.name for path in (ROOT / "docs").glob("*.md") if f"({path.name})" not in listed] == ["README.md"]
