"""Ctrl-C, SIGTERM and SIGHUP in the middle of a run: no output, no partial file, what was there is kept."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

# Background jobs of a shell inherit an ignored SIGINT, and those of nohup an ignored SIGHUP; a terminal's do not.
_PROGRAM = """
import signal, sys
signal.signal(signal.SIGINT, signal.default_int_handler)
signal.signal(signal.SIGHUP, signal.SIG_DFL)
from animdetail_trt.cli import main
sys.exit(main(sys.argv[1:]))
"""


@pytest.mark.skipif(sys.platform == "win32", reason="POSIX signals")
@pytest.mark.parametrize(("sent", "code"), [("SIGINT", 130), ("SIGTERM", 143), ("SIGHUP", 129)])
def test_stopped_while_sampling(
    tiny_checkpoint: Path, video: Path, segs: Path, tmp_path: Path, sent: str, code: int
) -> None:
    output = tmp_path / "out.mp4"
    output.write_text("old")
    before = sorted(path.name for path in tmp_path.iterdir())
    argv = ["detail", video, "-o", output, "--checkpoint", tiny_checkpoint, "--segs", segs, "--steps", 10000]
    process = subprocess.Popen(
        [sys.executable, "-c", _PROGRAM, *map(str, argv)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    try:
        assert process.stderr is not None
        seen = ""
        deadline = time.monotonic() + 60
        while "segment 1/1" not in seen and time.monotonic() < deadline:
            line = process.stderr.readline()
            assert line, f"ended early: {seen}"
            seen += line
        time.sleep(0.3)
        process.send_signal(getattr(signal, sent))
        _, rest = process.communicate(timeout=30)
    finally:
        process.kill()
    assert process.returncode == code
    assert "Traceback" not in rest
    assert output.read_text() == "old"
    assert sorted(path.name for path in tmp_path.iterdir()) == before
