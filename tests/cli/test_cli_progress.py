"""Progress: bars on a terminal, lines in a log, and the same calls to every observer."""

from __future__ import annotations

import io
from typing import Any

import pytest
from rich.console import Console
from rich.progress import Progress

from animdetail_trt.cli.progress import Bars, Lines, Observers, _progress
from animdetail_trt.detailer.report import Observer


def play(observer: Observer, segments: int = 2, steps: int = 3) -> None:
    observer.begin_run(segments, steps)
    for index in range(segments):
        observer.begin_segment(index, "face", (150, 144), (512, 488))
        for step in range(1, steps + 1):
            observer.step(index, step, steps)
        observer.stage(index, "sample", 1.0)
        observer.end_segment(index)


class Tape(Observer):
    def __init__(self) -> None:
        self.calls: list[tuple[Any, ...]] = []

    def __getattribute__(self, name: str) -> Any:
        if name == "calls" or name.startswith("_"):
            return object.__getattribute__(self, name)
        return lambda *args: self.calls.append((name, *args))


def test_observers_pass_every_call_on() -> None:
    alone, one, two = Tape(), Tape(), Tape()
    play(alone)
    play(Observers([one, two]))
    assert one.calls == two.calls == alone.calls
    assert {call[0] for call in alone.calls} == {n for n in vars(Observer) if not n.startswith("_")}


def test_bars_count_steps_over_all_segments() -> None:
    progress = Progress(console=Console(file=io.StringIO()))
    display = Bars(progress)
    observer = display.observer()
    observer.begin_run(2, 3)
    observer.begin_segment(0, "[face]", (150, 144), (512, 488))
    observer.step(0, 2, 3)
    whole, segment = progress.tasks
    assert (whole.completed, whole.total) == (2, 6)
    assert (segment.completed, segment.total) == (2, 3)
    observer.end_segment(0)
    observer.begin_segment(1, "face", (150, 144), (512, 488))
    observer.step(1, 1, 3)
    assert whole.completed == 4
    assert len(progress.tasks) == 3


def test_a_phase_ends_on_what_was_done_not_on_what_was_promised() -> None:
    progress = Progress(console=Console(file=io.StringIO()))
    with Bars(progress).phase("reading", 100) as tick:
        for done in range(1, 38):
            tick(done)
        assert (progress.tasks[0].completed, progress.tasks[0].total) == (37, 100)
    assert progress.tasks[0].finished
    assert progress.tasks[0].total == 37


def test_a_terminal_shows_steps_and_sizes() -> None:
    file = io.StringIO()
    with _progress(Console(file=file, force_terminal=True, width=120)) as progress:
        play(Bars(progress).observer())
    shown = file.getvalue()
    assert "all segments" in shown
    assert "segment 2/2 face  150x144 -> 512x488" in shown
    assert "3/3 steps" in shown


@pytest.mark.parametrize(("total", "told"), [(None, False), (5, True)])
def test_the_time_left_is_told_only_where_there_is_a_count(total: int | None, told: bool) -> None:
    file = io.StringIO()
    with _progress(Console(file=file, force_terminal=True, width=120)) as progress:
        progress.add_task("loading", total=total, unit="")
    assert (" left" in file.getvalue()) is told


def test_a_log_gets_lines() -> None:
    file = io.StringIO()
    display = Lines(Console(file=file, width=120))
    with display.phase("reading [a].mp4", 5):
        pass
    play(display.observer(), steps=20)
    lines = file.getvalue().splitlines()
    assert lines[0].startswith("reading [a].mp4: 0.0 s")
    assert lines[1] == "segment 1/2 face  150x144 -> 512x488"
    assert lines[2] == "segment 1/2: step 10/20, 0.0 s"
    assert len(lines) == 7
    assert "\x1b" not in file.getvalue()
