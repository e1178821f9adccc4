"""From a graph to a plan: TensorRT's builder, with progress, a way to stop, and what it says of the result."""

from __future__ import annotations

import atexit
import logging
import os
import re
import sys
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from animdetail_trt.errors import EngineError, InputError
from animdetail_trt.trt.export import Graph
from animdetail_trt.trt.flavour import Flavour, use_card
from animdetail_trt.trt.identity import Target
from animdetail_trt.trt.layers import parse_layers, summary_of
from animdetail_trt.trt.profile import Profile

logger = logging.getLogger(__name__)

Progress = Callable[[str, int, int], None]
"""Called with a phase's name, the steps done of it, and all its steps."""

_ACTIVATION = re.compile(r"Total Activation Memory: (\d+) bytes")
_WEIGHTS = re.compile(r"Total Weights Memory: (\d+) bytes")
_GRACE_S = 1.0
_WITHOUT_REFIT = "Build without --refittable, and report this"
_INTERRUPTED = 130  # 128 + SIGINT, as shells have it


@dataclass(frozen=True)
class Built:
    """What the builder said of a plan. activation_bytes: of each profile, at its largest sizes."""

    layers: dict[str, Any]
    activation_bytes: list[int]
    weights_bytes: int
    elapsed_s: float


def check_target(flavour: Flavour, capability: str | None) -> str:
    """The compute capability as the flavour has it. Raises InputError where it cannot build for it."""
    if capability is None:
        raise InputError("there is no GPU to build for. Name the one that the engines will run on: --target-sm 89")
    if flavour.builds_ahead and capability not in flavour.targets():
        raise InputError(
            f"{flavour.name} {flavour.version} builds for compute capability {', '.join(flavour.targets())}, "
            f"not {capability}. Use --flavour tensorrt on such a card"
        )
    return capability


def build_plan(
    flavour: Flavour,
    graph: Graph,
    profiles: Sequence[Profile],
    target: Target,
    path: Path,
    *,
    tf32: bool = False,
    timing_cache: Path | None = None,
    refittable: bool = False,
    progress: Progress = lambda phase, done, steps: None,
    poll: Callable[[], None] = lambda: None,
) -> Built:
    """Build a plan for the target's card, on it where the flavour builds nowhere else, and write it to ``path``.

    tf32: multiply float32 in TensorFloat-32
    The build runs in a thread of its own, so that Ctrl-C is heard at once; the builder stops at its next step.
    Raises EngineError with what TensorRT said where it fails.
    """
    said = _Said()
    options = _Options(tf32, refittable, timing_cache)
    start = time.perf_counter()
    with flavour.log.heard_by(said.hear):
        _in_thread(lambda stop: _build(flavour, graph, profiles, target, path, options, progress, stop), poll)
    return Built(
        summary_of(parse_layers("\n".join(said.layers))), said.activation_bytes, said.weights_bytes,
        time.perf_counter() - start,
    )  # fmt: skip


class _Options(NamedTuple):
    tf32: bool
    refittable: bool
    timing_cache: Path | None


class _Said:
    """Picks the list of layers and the sizes out of a verbose log."""

    def __init__(self) -> None:
        self.layers: list[str] = []
        self.activation_bytes: list[int] = []
        self.weights_bytes = 0

    def hear(self, _: Any, message: str) -> None:
        if "LayerType: " in message:
            self.layers.append(message)
        elif match := _ACTIVATION.search(message):
            self.activation_bytes.append(int(match[1]))
        elif match := _WEIGHTS.search(message):
            self.weights_bytes = max(self.weights_bytes, int(match[1]))


def _in_thread(work: Callable[[threading.Event], None], poll: Callable[[], None]) -> None:
    """Run ``work`` in a thread and wait, calling ``poll`` meanwhile. An interrupt, or what ``poll`` raises, sets its
    event and goes on, whether it has ended by then or not.

    TensorRT looks at the event between steps, of which one may take a minute.
    """
    stop, ended = threading.Event(), threading.Event()
    failed: list[BaseException] = []

    def run() -> None:
        try:
            work(stop)
        except BaseException as error:  # raised again below, in the thread that asked
            failed.append(error)
        finally:
            ended.set()

    threading.Thread(target=run, name="tensorrt-build", daemon=True).start()
    try:
        # Not join: up to Python 3.12 it takes a thread for ended when it is interrupted.
        while not ended.wait(0.1):
            poll()
    except BaseException as leaving:
        stop.set()
        atexit.register(_leave_it, ended, leaving.code if isinstance(leaving, SystemExit) else _INTERRUPTED)
        ended.wait(_GRACE_S)
        raise
    if failed:
        raise failed[0]


def _leave_it(ended: threading.Event, code: Any) -> None:
    """End the process where a build is still at work: an ordinary exit would take the library from under it."""
    if not ended.is_set():
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code if isinstance(code, int) else 1)


def _build(
    flavour: Flavour,
    graph: Graph,
    profiles: Sequence[Profile],
    target: Target,
    path: Path,
    options: _Options,
    progress: Progress,
    stop: threading.Event,
) -> None:
    trt = flavour.trt
    if not flavour.builds_ahead:
        use_card(target)
    builder = trt.Builder(flavour.log.handle)
    builder.max_threads = max(1, os.cpu_count() or 1)
    flags = trt.NetworkDefinitionCreationFlag
    # Types are the graph's own in every version; 10.x has to be told so.
    network = builder.create_network(1 << int(flags.STRONGLY_TYPED) if hasattr(flags, "STRONGLY_TYPED") else 0)
    parser = trt.OnnxParser(network, flavour.log.handle)
    if not parser.parse_from_file(str(graph.path)):  # a path, so that it finds the weights beside
        told = "; ".join(parser.get_error(i).desc() for i in range(parser.num_errors))
        raise EngineError(
            f"{flavour.name} {flavour.version} cannot read the graph {graph.path.name}: {told}. "
            "Use another version of it, and report this"
        )
    config = builder.create_builder_config()
    _configure(flavour, config, network, graph, target, options)
    for profile in profiles:
        made = builder.create_optimization_profile()
        for name, dims in graph.inputs.items():
            made.set_shape(name, *profile.shapes(dims))
        config.add_optimization_profile(made)
    config.progress_monitor = _monitor(trt, progress, stop)
    # TensorRT for RTX needs none, and warns of it.
    timing_cache = None if flavour.builds_ahead else options.timing_cache
    timings = None if timing_cache is None else _read_timings(config, timing_cache)
    if not _serialise(trt, builder, network, config, path):
        if stop.is_set():
            return
        raise flavour.log.failure(
            f"{flavour.name} {flavour.version} could not build {graph.path.name}",
            "Where memory is short, build for smaller sizes (--size, --frames) or stop what else uses the GPU",
        )
    flavour.log.forget()  # of kernels that it passed over
    if timings is not None and timing_cache is not None:
        _write_timings(timings, timing_cache)


def _configure(flavour: Flavour, config: Any, network: Any, graph: Graph, target: Target, options: _Options) -> None:
    trt = flavour.trt
    config.profiling_verbosity = trt.ProfilingVerbosity.DETAILED
    if options.refittable:
        _allow_refit(trt, config, network, graph)
    if not options.tf32:  # which is on unless it is cleared
        config.clear_flag(trt.BuilderFlag.TF32)
    if flavour.builds_ahead:
        config.num_compute_capabilities = 1
        name = f"SM{target.compute_capability.replace('.', '')}"
        config.set_compute_capability(getattr(trt.ComputeCapability, name), 0)
    elif hasattr(trt.PreviewFeature, "RUNTIME_ACTIVATION_RESIZE_10_10"):
        # Without it a run asks for the memory of its profile's largest sizes. TensorRT for RTX needs no word.
        config.set_preview_feature(trt.PreviewFeature.RUNTIME_ACTIVATION_RESIZE_10_10, True)


def _allow_refit(trt: Any, config: Any, network: Any, graph: Graph) -> None:
    """The module's weights may be set anew, and not the graph's own constants: of those that are fused with weights,
    an engine would ask for all."""
    config.set_flag(trt.BuilderFlag.REFIT_INDIVIDUAL)
    for name in graph.weight_names:
        if not network.mark_weights_refittable(name):
            raise EngineError(f"the graph {graph.path.name} has no weights {name} to be set anew. {_WITHOUT_REFIT}")


def _serialise(trt: Any, builder: Any, network: Any, config: Any, path: Path) -> bool:
    """Build, and write the plan as it comes where the version can: that saves holding it once more."""
    if not hasattr(builder, "build_serialized_network_to_stream"):
        plan = builder.build_serialized_network(network, config)
        if plan is not None:
            path.write_bytes(plan)
        return plan is not None
    failed: list[OSError] = []
    with path.open("wb") as file:

        class Writer(trt.IStreamWriter):  # type: ignore[misc]
            def __init__(self) -> None:
                trt.IStreamWriter.__init__(self)

            def write(self, data: Any) -> int:
                try:
                    return file.write(data)
                except OSError as error:  # raised below: it cannot pass through the library
                    failed.append(error)
                    return 0

        built = bool(builder.build_serialized_network_to_stream(network, config, Writer()))
    if failed:
        raise failed[0]
    return built


def _monitor(trt: Any, progress: Progress, stop: threading.Event) -> Any:
    """Tells of the outermost phases; stops the builder once ``stop`` is set."""

    class Monitor(trt.IProgressMonitor):  # type: ignore[misc]
        def __init__(self) -> None:
            trt.IProgressMonitor.__init__(self)
            self.steps: dict[str, int] = {}

        def phase_start(self, phase_name: str, parent_phase: str | None, num_steps: int) -> None:
            self.steps[phase_name] = num_steps
            progress(phase_name, 0, num_steps)

        def step_complete(self, phase_name: str, step: int) -> bool:
            progress(phase_name, step + 1, self.steps[phase_name])
            return not stop.is_set()

        def phase_finish(self, phase_name: str) -> None:
            progress(phase_name, self.steps[phase_name], self.steps[phase_name])

    return Monitor()


def _read_timings(config: Any, path: Path) -> Any:
    """How fast each kernel was in earlier builds on this card; another card's or version's is refused, and replaced."""
    blob = path.read_bytes() if path.exists() else b""
    timings = config.create_timing_cache(blob)
    if not config.set_timing_cache(timings, False):
        timings = config.create_timing_cache(b"")
        config.set_timing_cache(timings, False)
    return timings


def _write_timings(timings: Any, path: Path) -> None:
    """Whole or not at all; where there is no place for it, the next build takes longer, and this one is done."""
    partial = path.with_name(f".{path.name}.{threading.get_native_id()}")
    try:
        partial.write_bytes(timings.serialize())
        partial.replace(path)
    except OSError as error:
        with suppress(OSError):
            partial.unlink()
        logger.warning("the timings of kernels are not kept for the next build: %s", error)
