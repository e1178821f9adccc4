"""Memory that was freed is used again, without the kernel's help."""

from __future__ import annotations

import platform
import subprocess
import sys

import pytest

ROUNDS = 6
LAYERS = f"""
import resource, sys
import torch
from animdetail_trt import cli
torch.set_num_threads(1)
if "command" in sys.argv:
    cli.main(["bench", "list"])
faults = []
for _ in range({ROUNDS}):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    layers = [torch.ones(4 << 20) for _ in range(6)]  # 16 MiB each, 4096 pages
    del layers
    faults.append(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
print(sum(faults[1:]), file=sys.stderr)
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="other C libraries stay as they are")
def test_a_command_keeps_what_its_tensors_leave() -> None:
    def faults(*command: str) -> int:
        done = subprocess.run([sys.executable, "-c", LAYERS, *command], capture_output=True, text=True, check=True)
        return int(done.stderr.split()[-1])

    fresh_pages = (ROUNDS - 1) * 6 * 4096
    assert faults("command") < 0.1 * fresh_pages < faults()
