"""``animdetail-trt comfyui``: one file goes in, just that comes out; workflows keep all but the names."""

from __future__ import annotations

import errno
import json
import py_compile
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from PIL import Image, PngImagePlugin

from animdetail_trt.comfyui.install import FILE_NAME
from outcome import Outcome

Run = Callable[..., Outcome]


@pytest.fixture
def comfyui(tmp_path: Path) -> Path:
    root = tmp_path / "ComfyUI"
    for name in ("main.py", "comfy/samplers.py", "custom_nodes/other.py"):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text("# theirs\n")
    return root


@pytest.fixture
def python(tmp_path: Path) -> Path:
    """A Python that imports all it is told to."""
    path = tmp_path / "python"
    path.write_text("#!/bin/sh\nexit 0\n")
    path.chmod(0o755)
    return path


def _contents(root: Path) -> dict[str, bytes | None]:
    return {str(path): path.read_bytes() if path.is_file() else None for path in sorted(root.rglob("*"))}


def test_install_is_one_file_and_uninstall_leaves_nothing(run: Run, comfyui: Path, python: Path) -> None:
    before = _contents(comfyui)
    assert run("comfyui", "install", comfyui, "--python", sys.executable).code == 0
    installed = _contents(comfyui)
    assert set(installed) - set(before) == {str(comfyui / "custom_nodes" / FILE_NAME)}
    again = run("comfyui", "install", comfyui, "--python", python)
    assert again.code == 0
    assert "already there" in again.out
    assert _contents(comfyui) == installed
    py_compile.compile(str(comfyui / "custom_nodes" / FILE_NAME), doraise=True)  # as ComfyUI's import leaves it
    assert run("comfyui", "uninstall", comfyui).code == 0
    assert _contents(comfyui) == before
    assert "nothing" in run("comfyui", "uninstall", comfyui).out


def test_another_packs_compiled_files_stay(run: Run, comfyui: Path, python: Path) -> None:
    py_compile.compile(str(comfyui / "custom_nodes" / "other.py"), doraise=True)
    before = _contents(comfyui)
    run("comfyui", "install", comfyui, "--python", python)
    py_compile.compile(str(comfyui / "custom_nodes" / FILE_NAME), doraise=True)
    run("comfyui", "uninstall", comfyui)
    assert _contents(comfyui) == before


@pytest.mark.parametrize("missing", ["main.py", "comfy/samplers.py"])
def test_what_is_no_comfyui_is_refused(run: Run, comfyui: Path, missing: str) -> None:
    (comfyui / missing).unlink()
    before = _contents(comfyui)
    for action in ("install", "uninstall"):
        outcome = run("comfyui", action, comfyui)
        assert outcome.code == 2
        assert f"is not a ComfyUI: {missing} is not in it" in outcome.err
    assert "Give the folder that holds custom_nodes" in run("comfyui", "install", comfyui / "custom_nodes").err
    assert _contents(comfyui) == before


def test_our_file_goes_from_what_is_left_of_a_comfyui(run: Run, comfyui: Path, python: Path) -> None:
    run("comfyui", "install", comfyui, "--python", python)
    (comfyui / "main.py").unlink()
    assert run("comfyui", "uninstall", comfyui).code == 0
    assert not (comfyui / "custom_nodes" / FILE_NAME).exists()


def test_a_python_that_is_not_there_is_told_before_anything_is_written(run: Run, comfyui: Path) -> None:
    before = _contents(comfyui)
    outcome = run("comfyui", "install", comfyui, "--python", comfyui / "nope")
    assert (outcome.code, f"--python {comfyui / 'nope'} is no program" in outcome.err) == (2, True)
    assert _contents(comfyui) == before


def test_a_file_of_the_users_is_left(run: Run, comfyui: Path) -> None:
    mine = comfyui / "custom_nodes" / FILE_NAME
    mine.write_text("# mine\n")
    for action in ("install", "uninstall"):
        outcome = run("comfyui", action, comfyui)
        assert outcome.code == 2
        assert "was not written by this program" in outcome.err
    assert mine.read_text() == "# mine\n"


@pytest.mark.parametrize("linked", ["nowhere", FILE_NAME])
def test_a_link_that_leads_nowhere_is_refused(run: Run, comfyui: Path, python: Path, linked: str) -> None:
    link = comfyui / "custom_nodes" / FILE_NAME
    link.symlink_to(linked)
    for action in (("install", comfyui, "--python", python), ("uninstall", comfyui)):
        outcome = run("comfyui", *action)
        assert outcome.code == 2
        assert f"is a link to {linked}, which is not there" in outcome.err
    assert link.is_symlink()
    assert not (comfyui / "custom_nodes" / "nowhere").exists()


def test_a_path_that_the_system_refuses_is_told(run: Run, tmp_path: Path) -> None:
    for action in ("install", "uninstall"):
        outcome = run("comfyui", action, tmp_path / ("x" * 300))
        assert outcome.code == 2
        assert "File name too long" in outcome.err
        assert "Traceback" not in outcome.err


def test_a_write_that_fails_leaves_no_half_file(
    run: Run, comfyui: Path, python: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def half(path: Path, data: bytes) -> int:
        with path.open("wb") as file:
            file.write(data[:10])
        raise OSError(errno.ENOSPC, "No space left on device")

    before = _contents(comfyui)
    monkeypatch.setattr(Path, "write_bytes", half)
    outcome = run("comfyui", "install", comfyui, "--python", python)
    assert outcome.code == 2
    assert "the disk is full" in outcome.err
    assert _contents(comfyui) == before


def test_python_that_lacks_the_package_is_named(run: Run, comfyui: Path) -> None:
    python = comfyui / "venv" / "bin" / "python"
    python.parent.mkdir(parents=True)
    python.write_text('#!/bin/sh\necho "ModuleNotFoundError: No module named animdetail_trt" >&2\nexit 1\n')
    python.chmod(0o755)
    outcome = run("comfyui", "install", comfyui)
    assert outcome.code == 1
    assert f"{python} -m pip install FOLDER" in outcome.err
    assert (comfyui / "custom_nodes" / FILE_NAME).exists()


def test_installed_file_names_the_remedy(
    comfyui: Path, run: Run, python: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run("comfyui", "install", comfyui, "--python", python)
    source = (comfyui / "custom_nodes" / FILE_NAME).read_text()
    monkeypatch.setitem(sys.modules, "animdetail_trt.comfyui.nodes", None)
    with pytest.raises(ModuleNotFoundError, match="pip install FOLDER"):
        exec(compile(source, FILE_NAME, "exec"), {})


_API = {"1": {"class_type": "DetailerForEachPipeForAnimateDiff", "inputs": {"steps": 20, "segs": ["2", 0]}}}
_UI = {
    "nodes": [
        {"id": 3, "type": "SEGSPaste", "widgets_values": [5, 255], "properties": {"Node name for S&R": "SEGSPaste"}},
        {"id": 4, "type": "KSampler", "widgets_values": ["SEGSPaste"]},
    ],
    "definitions": {"subgraphs": [{"nodes": [{"type": "MaskToSEGS_for_AnimateDiff"}]}]},
}


@pytest.mark.parametrize(("workflow", "count"), [(_API, 1), (_UI, 2)])
def test_swap_changes_the_names_and_back(run: Run, tmp_path: Path, workflow: Any, count: int) -> None:
    given, swapped, back = (tmp_path / f"{name}.json" for name in ("given", "swapped", "back"))
    given.write_text(json.dumps(workflow))
    assert f"swapped {count} node" in run("comfyui", "swap", given, "-o", swapped).out
    text = swapped.read_text()
    assert text.count("AnimDetail_") == {1: 1, 2: 3}[count]
    assert json.loads(text.replace("AnimDetail_", "")) == workflow
    assert run("comfyui", "swap", swapped, "--back", "-o", back).code == 0
    assert json.loads(back.read_text()) == workflow
    assert "none of the nodes" in run("comfyui", "swap", given, "--back").err


def test_swap_reads_what_an_editor_put_a_byte_order_mark_before(run: Run, tmp_path: Path) -> None:
    (tmp_path / "bom.json").write_text(json.dumps(_API), encoding="utf-8-sig")
    outcome = run("comfyui", "swap", tmp_path / "bom.json")
    assert (outcome.code, "AnimDetail_" in outcome.out) == (0, True)


@pytest.mark.parametrize("name", ["out.png", "out"])
def test_swap_writes_no_json_under_another_name(run: Run, tmp_path: Path, name: str) -> None:
    (tmp_path / "given.json").write_text(json.dumps(_API))
    outcome = run("comfyui", "swap", tmp_path / "given.json", "-o", tmp_path / name)
    assert (outcome.code, "Let the name end in .json" in outcome.err) == (2, True)
    assert not (tmp_path / name).exists()


def test_swap_keeps_what_no_encoding_holds_and_the_workflow_itself(run: Run, tmp_path: Path) -> None:
    path, swapped = tmp_path / "workflow.json", tmp_path / "swapped.json"
    path.write_text('{"1": {"class_type": "SEGSPaste", "_meta": {"title": "\\ud83d \\u00e9"}}}')
    text = path.read_text()
    refused = run("comfyui", "swap", path, "-o", path)
    assert (refused.code, "is the workflow itself. Choose another name" in refused.err) == (2, True)
    assert path.read_text() == text
    assert run("comfyui", "swap", path, "-o", swapped).code == 0
    assert json.loads(swapped.read_text().replace("AnimDetail_", "")) == json.loads(text)
    assert json.loads(run("comfyui", "swap", swapped, "--back").out) == json.loads(text)
    assert sorted(tmp_path.iterdir()) == [swapped, path]


def test_a_workflow_is_read_from_a_picture_of_comfyuis(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    about = PngImagePlugin.PngInfo()
    about.add_text("workflow", json.dumps(_UI))
    for name, words in (("with.png", about), ("without.png", None)):
        Image.new("RGB", (8, 8)).save(tmp_path / name, pnginfo=words)
    swapped = run("comfyui", "swap", tmp_path / "with.png").out
    assert json.loads(swapped.replace("AnimDetail_", "")) == _UI
    outcome = run("comfyui", "swap", tmp_path / "without.png")
    assert (outcome.code, "holds none. Save it as JSON" in outcome.err) == (2, True)
    (tmp_path / "text.png").write_text("{}")
    assert "cannot read the workflow" in run("comfyui", "swap", tmp_path / "text.png").err
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 10)
    assert "exceeds limit of" in run("comfyui", "swap", tmp_path / "with.png").err


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"[" * 100_000 + b"]" * 100_000, "nested too deeply"),
        (b"[" * 990 + b"]" * 990, "nested too deeply"),
        (b"{", "cannot read the workflow"),
        (b"\xff\xfe", "cannot read the workflow"),
        (b"1" * 10_000, "cannot read the workflow"),
    ],
)
def test_a_workflow_that_cannot_be_read_is_left(run: Run, tmp_path: Path, data: bytes, reason: str) -> None:
    path = tmp_path / "workflow.json"
    path.write_bytes(data)
    outcome = run("comfyui", "swap", path, "-o", path)
    assert outcome.code == 2
    assert reason in outcome.err
    assert "Traceback" not in outcome.err
    assert path.read_bytes() == data
