"""The demo runs from its clip to its contact sheet."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from needs import needs_clip, needs_detector

DEMO = Path(__file__).parents[2] / "examples" / "demo.py"


@needs_clip
@needs_detector
def test_demo(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, DEMO, "--output", tmp_path, "--frames", "3"], capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr
    assert "random" in done.stdout.splitlines()[0]
    assert "3 frames of 176x144, 1 segment detailed" in done.stdout
    written = {path.name for path in tmp_path.iterdir()}
    assert written == {"carphone.mp4", "models", "out.mp4", "contact_sheet.png", "run.json"}
