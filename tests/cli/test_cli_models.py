"""--refiner and --controlnet: the pixels are those of the API, and the report names the files."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.torch import load_file, save_file

import animdetail_trt as adt
from animdetail_trt.cli.models import parse_controlnet
from animdetail_trt.media.clip import open_source
from animdetail_trt.media.pixels import to_uint8
from animdetail_trt.media.segs_file import read_segs

CPU = {"device": "cpu", "dtype": "float32"}


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("a.safetensors", ("a.safetensors", 1.0, 0.0, 1.0)),
        ("a.safetensors:0.7", ("a.safetensors", 0.7, 0.0, 1.0)),
        ("a.safetensors:0.7:0.2", ("a.safetensors", 0.7, 0.2, 1.0)),
        ("a.safetensors:0.7:0.2:.8", ("a.safetensors", 0.7, 0.2, 0.8)),
        ("9:1:0:1", ("9", 1.0, 0.0, 1.0)),
        (r"C:\a:b.safetensors:2", (r"C:\a:b.safetensors", 2.0, 0.0, 1.0)),
        ("a.safetensors:inf:0.2", ("a.safetensors:inf", 0.2, 0.0, 1.0)),
    ],
)
def test_numbers_after_colons_are_strength_start_and_end(text: str, expected: tuple[str, float, float, float]) -> None:
    path, *numbers = parse_controlnet(text)
    assert (str(path), *numbers) == expected


@pytest.fixture(scope="module")
def refiner_checkpoint(tiny: Path) -> Path:
    path = tiny / "tiny_whole_refiner.safetensors"
    save_file(load_file(tiny / "tiny_refiner.safetensors") | load_file(tiny / "tiny_clip.safetensors"), path)
    return path


@pytest.fixture
def command(
    run: Callable[..., Any], tiny_checkpoint: Path, folder: Path, segs: Path, tmp_path: Path
) -> Callable[..., tuple[np.ndarray, dict[str, Any]]]:
    """The frames that ``detail`` makes, uint8, and what the report says of its parameters."""

    def call(*flags: Any) -> tuple[np.ndarray, dict[str, Any]]:
        outcome = run(
            "detail", folder, "-o", tmp_path / "out", "--checkpoint", tiny_checkpoint, "--segs", segs, "--steps", 4,
            "--guide-size", 64, "--prompt", "a face", "--negative", "blur", "--device", "cpu", "--dtype", "float32",
            "--report", tmp_path / "run.json", *flags,
        )  # fmt: skip
        assert outcome.code == 0, outcome.err
        parameters = json.loads((tmp_path / "run.json").read_text())["parameters"]
        return to_uint8(open_source(tmp_path / "out").read().frames), parameters

    return call


@pytest.fixture
def api(tiny_checkpoint: Path, folder: Path, segs: Path) -> Callable[..., np.ndarray]:
    """The same from Python."""
    frames = open_source(folder).read().frames
    header, found = read_segs(segs)
    pipe = adt.load_pipe(tiny_checkpoint, **CPU).with_prompt("a face", "blur")

    def call(control: Any = None, **options: Any) -> np.ndarray:
        steered = header, [seg._replace(control_net_wrapper=control) for seg in found]
        made, *_ = adt.DetailerForEachPipeForAnimateDiff.doit(
            frames, steered, guide_size=64, steps=4, basic_pipe=pipe, **options
        )
        return to_uint8(made)

    return call


def test_the_refiner_is_the_nodes(
    command: Callable[..., Any], api: Callable[..., np.ndarray], refiner_checkpoint: Path, tiny: Path
) -> None:
    lora = tiny / "tiny_lora.safetensors"
    made, parameters = command(
        "--refiner", refiner_checkpoint, "--refiner-ratio", 0.5, "--refiner-prompt", "eyes",
        "--refiner-lora", f"{lora}:0.5",
    )  # fmt: skip
    refiner = adt.load_pipe(refiner_checkpoint, loras=[(lora, 0.5)], **CPU).with_prompt("eyes", "blur")
    assert np.array_equal(made, api(refiner_ratio=0.5, refiner_basic_pipe_opt=refiner))
    assert not np.array_equal(made, api())
    assert parameters["refiner"] == str(refiner_checkpoint)
    assert (parameters["refiner_ratio"], parameters["refiner_lora"]) == (0.5, [[str(lora), 0.5]])


def test_a_refiner_without_text_encoder_reads_with_the_checkpoints(
    command: Callable[..., Any], refiner_checkpoint: Path, tiny: Path
) -> None:
    """Both are tiny_clip."""
    made, _ = command("--refiner", tiny / "tiny_refiner.safetensors", "--refiner-ratio", 0.5)
    assert np.array_equal(made, command("--refiner", refiner_checkpoint, "--refiner-ratio", 0.5)[0])


def test_controlnets_are_a_chain_on_every_segment(
    command: Callable[..., Any], api: Callable[..., np.ndarray], tiny: Path
) -> None:
    path = tiny / "tiny_controlnet.safetensors"
    made, parameters = command("--controlnet", f"{path}:0.7:0:0.8", "--controlnet", path)
    network = adt.load_controlnet(path, **CPU)
    first = adt.ControlNetWrapper(network, 0.7, 0.0, 0.8)
    assert np.array_equal(made, api(adt.ControlNetWrapper(network, 1.0, previous=first)))
    assert not np.array_equal(made, api(first))
    assert parameters["controlnet"] == [[str(path), 0.7, 0, 0.8], [str(path), 1, 0, 1]]
