"""What a run shows while it goes: bars with the time left on a terminal, plain lines elsewhere. Always on stderr."""

from __future__ import annotations

import logging
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager

from rich import progress as rich
from rich.console import Console
from rich.markup import escape
from rich.progress import Progress, TaskID
from rich.text import Text

from animdetail_trt.detailer.report import Observer

Tick = Callable[[int], None]
"""Called with how much is done so far."""

Steps = Callable[[str, int, int], None]
"""Called with a phase, the steps of it that are done, and how many there are."""


class Observers(Observer):
    """Passes every call on to several observers, in order."""

    def __init__(self, observers: Sequence[Observer]) -> None:
        self._observers = observers

    def begin_run(self, segment_count: int, steps_per_segment: int) -> None:
        for observer in self._observers:
            observer.begin_run(segment_count, steps_per_segment)

    def begin_segment(self, index: int, label: str, crop_size: tuple[int, int], work_size: tuple[int, int]) -> None:
        for observer in self._observers:
            observer.begin_segment(index, label, crop_size, work_size)

    def step(self, index: int, step: int, steps: int) -> None:
        for observer in self._observers:
            observer.step(index, step, steps)

    def stage(self, index: int, name: str, elapsed_ms: float) -> None:
        for observer in self._observers:
            observer.stage(index, name, elapsed_ms)

    def end_segment(self, index: int) -> None:
        for observer in self._observers:
            observer.end_segment(index)


class Display:
    """Shows nothing but warnings; the two below show more."""

    note_level = logging.WARNING
    """From which level on what the package logs is shown."""

    @contextmanager
    def phase(self, description: str, total: int | None = None) -> Iterator[Tick]:
        """A part of the run with ``total`` things to do, if that is known; call the Tick as they are done."""
        yield lambda done: None

    @contextmanager
    def steps(self, description: str) -> Iterator[Steps]:
        """A part of the run that goes through phases of its own, told of as they go."""
        yield lambda phase, done, steps: None

    def note(self, text: str) -> None:
        """Something to be read beside the progress."""
        print(text, file=sys.stderr)

    def observer(self) -> Observer:
        return Observer()


class Lines(Display):
    """One line per phase, segment and tenth step, for logs and pipes."""

    note_level = logging.INFO

    def __init__(self, console: Console) -> None:
        self._console = console

    @contextmanager
    def phase(self, description: str, total: int | None = None) -> Iterator[Tick]:
        start = time.perf_counter()
        yield lambda done: None
        self._console.print(f"{description}: {time.perf_counter() - start:.1f} s", highlight=False, markup=False)

    @contextmanager
    def steps(self, description: str) -> Iterator[Steps]:
        with self.phase(description):
            yield lambda phase, done, steps: None

    def note(self, text: str) -> None:
        self._console.print(text, highlight=False, markup=False, soft_wrap=True)

    def observer(self) -> Observer:
        return _LineObserver(self._console)


class Bars(Display):
    """A row with a bar for each phase, for the whole run of the segments, and for the one being worked on."""

    note_level = logging.INFO

    def __init__(self, progress: Progress) -> None:
        self._progress = progress

    @contextmanager
    def phase(self, description: str, total: int | None = None) -> Iterator[Tick]:
        task = self._progress.add_task(escape(description), total=total, unit="frames" if total else "")
        # The total is a file header's word; what was really done is the truth at the end.
        done_so_far = [0]

        def tick(done: int) -> None:
            done_so_far[0] = done
            self._progress.update(task, completed=done)

        yield tick
        done = done_so_far[0] or 1
        self._progress.update(task, total=done, completed=done)

    @contextmanager
    def steps(self, description: str) -> Iterator[Steps]:
        task = self._progress.add_task(escape(description), total=None, unit="")

        def step(phase: str, done: int, steps: int) -> None:
            told = escape(f"{description}: {phase.lower()}")
            self._progress.update(task, description=told, completed=done, total=steps, unit="steps")

        yield step
        self._progress.update(task, description=escape(description), total=1, completed=1, unit="")

    def note(self, text: str) -> None:
        self._progress.console.print(text, highlight=False, markup=False)

    def observer(self) -> Observer:
        return _BarObserver(self._progress)


class _Notes(logging.Handler):
    def __init__(self, display: Display) -> None:
        super().__init__(display.note_level)
        self._display = display

    def emit(self, record: logging.LogRecord) -> None:
        self._display.note(f"warning: {record.getMessage()}" if record.levelno > logging.INFO else record.getMessage())


@contextmanager
def log_shown(display: Display) -> Iterator[None]:
    """Show what the package logs beside the progress."""
    logger = logging.getLogger("animdetail_trt")
    handler, level = _Notes(display), logger.level
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    try:
        yield
    finally:
        logger.removeHandler(handler)
        logger.setLevel(level)


@contextmanager
def open_display(quiet: bool = False) -> Iterator[Display]:
    """Choose the display that fits stderr."""
    console = Console(stderr=True)
    if quiet:
        yield Display()
    elif console.is_terminal:
        with _progress(console) as progress:
            yield Bars(progress)
    else:
        yield Lines(console)


class _Count(rich.ProgressColumn):
    """``7/20 steps``; nothing for a phase that cannot be counted."""

    def render(self, task: rich.Task) -> Text:
        if not task.fields["unit"]:
            return Text("")
        total = "?" if task.total is None else f"{task.total:.0f}"
        return Text(f"{task.completed:.0f}/{total} {task.fields['unit']}", style="dim")


class _Left(rich.TimeRemainingColumn):
    """The time left, in words; nothing once all is done, or where nobody knows how much there is to do."""

    def render(self, task: rich.Task) -> Text:
        return Text("") if task.finished or task.total is None else super().render(task).append(" left", style="dim")


def _progress(console: Console) -> AbstractContextManager[Progress]:
    return rich.Progress(
        rich.SpinnerColumn(finished_text="[green]✓"),
        rich.TextColumn("{task.description}"),
        rich.BarColumn(bar_width=28),
        _Count(),
        rich.TimeElapsedColumn(),
        _Left(compact=True),
        console=console,
    )


def describe_segment(index: int, count: int, label: str, crop_size: tuple[int, int], work_size: tuple[int, int]) -> str:
    (crop_w, crop_h), (work_w, work_h) = crop_size, work_size
    return f"segment {index + 1}/{count} {label or 'unnamed'}  {crop_w}x{crop_h} -> {work_w}x{work_h}"


_STEPS_PER_LINE = 10


class _LineObserver(Observer):
    def __init__(self, console: Console) -> None:
        self._console = console
        self._count = 0
        self._start = 0.0

    def begin_run(self, segment_count: int, steps_per_segment: int) -> None:
        self._count = segment_count

    def begin_segment(self, index: int, label: str, crop_size: tuple[int, int], work_size: tuple[int, int]) -> None:
        self._start = time.perf_counter()
        line = describe_segment(index, self._count, label, crop_size, work_size)
        self._console.print(line, highlight=False, markup=False)

    def step(self, index: int, step: int, steps: int) -> None:
        if step % _STEPS_PER_LINE == 0 and step < steps:
            elapsed = time.perf_counter() - self._start
            self._console.print(
                f"segment {index + 1}/{self._count}: step {step}/{steps}, {elapsed:.1f} s", highlight=False
            )

    def end_segment(self, index: int) -> None:
        elapsed = time.perf_counter() - self._start
        self._console.print(f"segment {index + 1}/{self._count}: {elapsed:.1f} s", highlight=False)


class _BarObserver(Observer):
    """One bar over all steps of all segments, whose time left is the run's, and one for the segment at hand."""

    def __init__(self, progress: Progress) -> None:
        self._progress = progress
        self._whole: TaskID | None = None
        self._segment: TaskID | None = None
        self._count = self._steps = 0

    def begin_run(self, segment_count: int, steps_per_segment: int) -> None:
        self._count, self._steps = segment_count, steps_per_segment
        if segment_count > 1:
            self._whole = self._progress.add_task("all segments", total=segment_count * steps_per_segment, unit="steps")

    def begin_segment(self, index: int, label: str, crop_size: tuple[int, int], work_size: tuple[int, int]) -> None:
        line = escape(describe_segment(index, self._count, label, crop_size, work_size))
        self._segment = self._progress.add_task(line, total=self._steps, unit="steps")

    def step(self, index: int, step: int, steps: int) -> None:
        if self._segment is not None:
            self._progress.update(self._segment, completed=step, total=steps)
        if self._whole is not None:
            self._progress.update(self._whole, completed=index * self._steps + step)

    def end_segment(self, index: int) -> None:
        if self._segment is not None:
            self._progress.update(self._segment, completed=self._steps, total=self._steps)
        if self._whole is not None:
            self._progress.update(self._whole, completed=(index + 1) * self._steps)
