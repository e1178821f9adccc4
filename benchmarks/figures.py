"""The figures in README.md, written from the results that they come from.

    python benchmarks/figures.py --write    # after a new run; --check fails where README says something else

A block of README between ``<!-- figures: NAME -->`` and ``<!-- end -->`` is one function's text below.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from animdetail_trt.bench.tables import IS_TRUTH, is_truth

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "benchmarks" / "results"
PAGES = (ROOT / "README.md", ROOT / "benchmarks" / "README.md")
MIB = 2**20
ENOUGH_ROUNDS, LARGEST_SPREAD = 5, 0.5
"""A median of fewer rounds whose slowest and fastest are further apart, in parts of it, is not published."""
_BLOCK = re.compile(r"(<!-- figures: (\w+) -->\n).*?(<!-- end -->)", re.DOTALL)
_PIXELS, _QUICK, _CPU_FULL = "pixels-epyc-2cpu.json", "quick-epyc-2cpu.json", "cpu-full-epyc-2cpu.json"


def load(name: str) -> dict[str, Any]:
    document: dict[str, Any] = json.loads((RESULTS / name).read_text(encoding="utf-8"))
    return document


def link_to(name: str, page: Path) -> str:
    return f"{'benchmarks/' if page.parent == ROOT else ''}results/{name}"


def pixels(page: Path) -> str:
    document = load(_PIXELS)
    (scenario,) = document["scenarios"]
    sizes, results = scenario["sizes"], {one["backend"]: one for one in scenario["results"]}
    ours, floor = results["native"], scenario["floor"]
    rounds, count = ours["ratios_to_base"], len(ours["runs_ms"])
    machine = f"{document['machine']['cpu']}, {document['machine']['usable_processors']} processors"
    job = (
        f"{sizes['frames']} frames of {sizes['width']}x{sizes['height']}, {sizes['segments']} segments of "
        f"{sizes['crop']}x{sizes['crop']} enlarged to {sizes['side']}x{sizes['side']} and back, "
        f"feather {sizes['feather']}"
    )
    rows = [
        f"| {name} | {one['median_ms']:.0f} ms | {one['peak_host_bytes'] / MIB:.0f} MiB |"
        for name, one in (("the reference's way", results["reference"]), ("animdetail-trt", ours))
    ]
    return "\n".join([
        f"The pixel path, {job} ({machine}; [the run]({link_to(_PIXELS, page)})):", "",
        f"| | median of {count} | memory beyond input and output |", "| --- | --- | --- |", *rows, "",
        f"That is {ours['speedup']:.0f} times as fast ({min(rounds):.0f} to {max(rounds):.0f} in single rounds), and "
        f"{floor['floor_ms'] / ours['median_ms']:.0%} of the speed at which this machine copies memory."
        .replace("%", " %"), "", what_is_not_here(document), "",
    ])  # fmt: skip


def headline(page: Path) -> str:
    document = load(_PIXELS)
    (scenario,) = document["scenarios"]
    sizes, results = scenario["sizes"], {one["backend"]: one for one in scenario["results"]}
    before, after = results["reference"], results["native"]
    return (
        f"On {document['machine']['usable_processors']} processors, all the work around the models for "
        f"{sizes['frames']} frames and {sizes['segments']} segments takes\n**{after['median_ms']:.0f} ms instead of "
        f"{before['median_ms']:.0f} ms**, and {after['peak_host_bytes'] / MIB:.0f} MiB of memory instead of "
        f"{before['peak_host_bytes'] / MIB:.0f} MiB: see [Speed](#speed).\n"
    )


def what_is_not_here(document: dict[str, Any]) -> str:
    """How often each was timed, and which scenarios of the suite the run left out, and why."""
    counts = {len(one["runs_ms"]) for scenario in document["scenarios"] for one in scenario["results"]}
    told = f"Medians of {min(counts)} to {max(counts)} runs." if len(counts) > 1 else f"Medians of {min(counts)} runs."
    left, ran = document["left_out"], len(document["scenarios"])
    if not left:
        return f"{told} No scenario of the suite was left out."
    names: dict[str, list[str]] = {}
    for one in left:
        names.setdefault(one["reason"], []).append(one["scenario"])
    reasons = "; ".join(f"{', '.join(those)}: {reason}" for reason, those in names.items())
    return f"{told} {len(left)} of {len(left) + ran} scenarios of the suite were left out ({reasons})."


def stages(page: Path) -> str:
    """Ours against the reference's way, of the small models, on a CPU."""
    document = load(_QUICK)
    lines = [
        f"Tiny models of the real layout, one thread of the same machine ([the run]({link_to(_QUICK, page)})):", "",
        "| | the reference's way | torch eager | onnxruntime |", "| --- | --- | --- | --- |",
    ]  # fmt: skip
    for scenario in document["scenarios"]:
        results = {one["backend"]: one for one in scenario["results"]}
        if "reference" in results and "torch" in results:
            cells = [f"{results['reference']['median_ms']:.0f} ms"]
            cells += [_told(results.get(name)) for name in ("torch", "onnxruntime")]
            lines.append(f"| {scenario['name']} | {' | '.join(cells)} |")
    return "\n".join([*lines, "", what_is_not_here(document), ""])


def _told(result: dict[str, Any] | None) -> str:
    return "-" if result is None else f"{result['median_ms']:.0f} ms ({result['speedup']:.2f}x)"


def full_size(page: Path) -> str:
    document = load(_CPU_FULL)
    lines = [
        f"Stable Diffusion 1.5 at full size on 64x64 pixels, {document['threads']} threads "
        f"([the run]({link_to(_CPU_FULL, page)})):", "",
        "| | backend | median | of the floor | PSNR against float32 torch |", "| --- | --- | --- | --- | --- |",
    ]  # fmt: skip
    for scenario in document["scenarios"]:
        for one in scenario["results"]:
            known = one["quality"]
            quality = "NaN" if known is None else "equal" if known["psnr_db"] is None else f"{known['psnr_db']:.0f} dB"
            quality = IS_TRUTH if is_truth(document, scenario, one) else quality
            cells = [scenario["name"], one["backend"], f"{one['median_ms']:.0f} ms", f"{one['fraction_of_floor']:.0%}"]
            lines.append(f"| {' | '.join(cells)} | {quality} |")
    return "\n".join([*lines, "", what_is_not_here(document), ""])


BLOCKS: dict[str, Callable[[Path], str]] = {
    "headline": headline, "pixels": pixels, "stages": stages, "full_size": full_size
}  # fmt: skip


def unsure(document: dict[str, Any]) -> list[str]:
    """Scenario and way of each median that says little: of few rounds that lie far apart."""
    return [
        f"{scenario['name']} {one['backend']} ({len(one['runs_ms'])} rounds, {one['spread']:.0%} apart)"
        for scenario in document["scenarios"]
        for one in scenario["results"]
        if len(one["runs_ms"]) < ENOUGH_ROUNDS and one["spread"] > LARGEST_SPREAD
    ]


def rewritten(page: Path) -> str:
    """The page's text with every block made anew."""
    return _BLOCK.sub(lambda found: found[1] + BLOCKS[found[2]](page) + found[3], page.read_text(encoding="utf-8"))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    action = parser.add_mutually_exclusive_group(required=True)
    action.add_argument("--check", action="store_true", help="exit 1 where a page says something else")
    action.add_argument("--write", action="store_true", help="refuses results of a dirty commit, or too few rounds")
    parser.add_argument("--allow-dirty", action="store_true", help="write them all the same")
    parser.add_argument(
        "--allow-unsure", action="store_true", help="write medians of few rounds that lie far apart too"
    )
    args = parser.parse_args()
    for name in (_PIXELS, _QUICK, _CPU_FULL):
        if args.write and not args.allow_unsure and (those := unsure(load(name))):
            sys.exit(f"figures.py: {name}: {', '.join(those)}: measure that with more rounds, or on a quieter machine")
    dirty = [name for name in (_PIXELS, _QUICK, _CPU_FULL) if str(load(name)["commit"]).endswith("-dirty")]
    if args.write and dirty and not args.allow_dirty:
        sys.exit(f"figures.py: {', '.join(dirty)}: measured with files that no commit holds. Measure them again")
    stale = [page for page in PAGES if page.read_text(encoding="utf-8") != rewritten(page)]
    if args.write:
        for page in stale:
            page.write_text(rewritten(page), encoding="utf-8")
    for page in stale:
        print(f"{'written' if args.write else 'stale'}: {page.relative_to(ROOT)}")
    if stale and args.check:
        sys.exit("figures.py: run `python benchmarks/figures.py --write`")


if __name__ == "__main__":
    main()
