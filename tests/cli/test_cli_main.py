"""What every command has in common: help, version, exit codes, one line for an error."""

from __future__ import annotations

import os
import subprocess
import sys
import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import animdetail_trt
from animdetail_trt import __main__
from animdetail_trt.cli import build_parser, doctor, main
from animdetail_trt.errors import MediaError


def test_version(run: Callable[..., Any]) -> None:
    outcome = run("--version")
    assert outcome.code == 0
    assert outcome.out == f"animdetail-trt {animdetail_trt.__version__}\n"


@pytest.mark.parametrize("argv", [["--help"], ["detail", "--help"], ["doctor", "--help"]])
def test_help(run: Callable[..., Any], argv: list[str]) -> None:
    outcome = run(*argv)
    assert outcome.code == 0
    assert "usage: animdetail-trt" in outcome.out


@pytest.mark.parametrize(
    ("argv", "code", "told"),
    [
        (["doctor", "--json"], 0, ""),
        (["bench", "--scenario", "pixels-8f-512x288-2s", "-q"], 2, "error: the native extension cannot be imported"),
    ],
)
def test_a_source_tree_that_was_never_built(argv: list[str], code: int, told: str) -> None:
    lacking = "import sys; sys.modules['animdetail_trt._C'] = None; from animdetail_trt.cli import main"
    done = subprocess.run([sys.executable, "-c", f"{lacking}; sys.exit(main({argv}))"], capture_output=True, text=True)
    assert (done.returncode, told in done.stderr, "Traceback" in done.stderr) == (code, True, False)
    assert "pip install . (in the source folder)" in done.stderr + done.stdout


def test_help_says_that_max_size_makes_nothing_smaller(run: Callable[..., Any]) -> None:
    assert "enlarge no side beyond this; larger crops stay as they are" in " ".join(run("detail", "--help").out.split())


def test_help_loads_nothing_heavy() -> None:
    heavy = "{'torch', 'av', 'PIL', 'rich', 'diffusers', 'transformers', 'cv2', 'numpy'}"
    code = f"import sys; from animdetail_trt.cli import build_parser; build_parser(); print({heavy} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "set()\n"


@pytest.mark.parametrize("module", ["animdetail_trt", "animdetail_trt.cli"])
def test_module_runs(module: str) -> None:
    done = subprocess.run([sys.executable, "-m", module, "--version"], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")


def test_no_command_and_unknown_command(run: Callable[..., Any]) -> None:
    assert run().code == 2
    assert run("detial").code == 2


def test_paths_may_begin_with_the_users_home(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/me")
    args = build_parser().parse_args(
        ["detail", "~/in", "--output=~/out", "--checkpoint=~/a", "--lora=~/b:0.5", "--controlnet=~/c", "--segs=~/d"]
    )
    paths = [args.input, args.output, args.checkpoint, args.lora[0][0], args.controlnet[0][0], args.segs]
    assert [str(path) for path in paths] == [f"/home/me/{name}" for name in ("in", "out", "a", "b", "c", "d")]
    args = build_parser().parse_args(["build-engines", "--checkpoint=~no-one/a", "--recipe=~/b", "--engine-dir=~/c"])
    assert [str(path) for path in (args.checkpoint, args.recipe)] == ["~no-one/a", "/home/me/b"]
    assert str(args.engine_dir) == "/home/me/c"


@pytest.mark.parametrize("command", ["detail", "build-engines"])
def test_a_wrong_option_is_told_without_a_wall_of_others(run: Callable[..., Any], command: str) -> None:
    lines = run(command).err.splitlines()
    assert len(lines) <= 3
    assert lines[0].startswith(f"usage: animdetail-trt {command} ")
    assert "required" in lines[-1]


def test_an_error_is_one_line_and_exit_code_2(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(args: Any) -> int:
        raise MediaError("the first line\n  and the second")

    monkeypatch.setattr(doctor, "run", fail)
    assert main(["doctor"]) == 2
    assert capsys.readouterr().err == "error: the first line and the second\n"


def test_ctrl_c_is_exit_code_130(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    def interrupt(args: Any) -> int:
        raise KeyboardInterrupt

    monkeypatch.setattr(doctor, "run", interrupt)
    assert main(["doctor"]) == 130
    assert "Traceback" not in capsys.readouterr().err


_INTERRUPTED_EARLY = """
import runpy, sys
class Interrupt:
    def find_spec(self, name, *_):
        if name == "animdetail_trt.cli.doctor":
            raise KeyboardInterrupt
sys.meta_path.insert(0, Interrupt())
runpy.run_module("animdetail_trt", run_name=sys.argv[1])
"""


@pytest.mark.parametrize("name", ["__main__", "animdetail_trt.__main__"])  # python -m; the script that pip makes
def test_ctrl_c_before_all_is_imported(name: str) -> None:
    done = subprocess.run([sys.executable, "-c", _INTERRUPTED_EARLY, name], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (130, "")


def test_the_script_that_pip_makes_is_guarded_too() -> None:
    project = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text())["project"]
    assert project["scripts"] == {"animdetail-trt": f"{__main__.__name__}:{__main__.main.__name__}"}


_PRINTS = """
import sys
from animdetail_trt.cli import build_parser, doctor, main
doctor.run = lambda args: print(sys.argv[1] * 100) or 0
sys.exit(main(["doctor"]))
"""


def test_a_reader_that_leaves_ends_it_quietly() -> None:
    reading, writing = os.pipe()
    os.close(reading)
    done = subprocess.run([sys.executable, "-c", _PRINTS, "x"], stdout=writing, stderr=subprocess.PIPE, text=True)
    os.close(writing)
    assert (done.returncode, done.stderr) == (141, "")


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs /dev/full")
def test_a_full_disk_ends_it_with_one_line() -> None:
    with open("/dev/full", "w") as full:
        done = subprocess.run([sys.executable, "-c", _PRINTS, "x"], stdout=full, stderr=subprocess.PIPE, text=True)
    assert done.returncode == 2
    assert done.stderr == "error: No space left on device. Free some space, or write elsewhere\n"


def test_a_terminal_that_lacks_a_letter() -> None:
    ascii_only = os.environ | {"PYTHONIOENCODING": "ascii", "PYTHONUTF8": "0"}
    done = subprocess.run([sys.executable, "-c", _PRINTS, "\u2713"], capture_output=True, env=ascii_only)
    assert (done.returncode, done.stdout.strip()) == (0, b"?" * 100)
