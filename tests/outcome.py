"""What a command line came to."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from animdetail_trt.trt.sidecar import Entry
from animdetail_trt.trt.store import Store


@dataclass(frozen=True)
class Outcome:
    code: int
    out: str
    err: str

    @property
    def told(self) -> str:
        """stderr without its line breaks."""
        return " ".join(self.err.split())

    @property
    def entries(self) -> list[Entry]:
        """The engines that it says it built or found, in its order."""
        assert self.code == 0, self.err
        plans = [Path(line.partition(": ")[0]) for line in self.out.splitlines()]
        found = {entry.plan: entry for entry in Store(plans[0].parent).entries()}
        return [found[plan] for plan in plans]
