"""docs/performance.md, made from the JSON of a run: `python -m bench.page FROM TO`.

No number on it is written by hand. What keeps a row from its goal is in `limits`.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from bench.limits import LIMITS

Document = Mapping[str, Any]
NOISE = "dd-against-dd"

# Facts that a row may hold beside its comparison, and what they are.
_FACTS = {
    "files": "files, directories and links",
    "gib": "GiB of files",
    "check_s": "seconds of the check of the maps, which comes before the phase",
    "with_check": "the figure if that were counted too",
    "all_phases_s": "seconds of all phases of the backup",
    "cpu_us_a_file": "CPU microseconds a file",
    "calls_a_file": "system calls that read or write, a file",
    "dd_written_share": "share of what dd read that was ever written",
    "peak_rss_mib": "MiB of peak resident memory of the main process",
    "main_process_mib": "MiB of it, of the main process alone",
    "read_by_calls_mib": "MiB read by system calls",
    "read_from_disk_mib": "MiB that the disk gave, read ahead included",
    "with_mirror": "the figure if the mirror's own were counted on both sides",
    "median": "median of the paired ratios",
    "cpu_us": "CPU microseconds a file",
    "calls": "system calls that read or write",
    "media": "copies lay",
}
_SIDES = {
    "seconds": "seconds",
    "mib_s": "MiB a second",
    "cpu_s_per_gib": "CPU seconds a GiB",
    "command_cpu_s": "CPU seconds of the command",
    "server_cpu_s": "CPU seconds of the server for it",
    "mirror_cpu_s": "CPU seconds of the mirror for it",
}


def render(run: Document) -> str:
    """The whole page."""
    return "\n".join([*_head(run), *_table(run), *_details(run), *_foot()])


def _head(run: Document) -> Iterator[str]:
    machine = run["machine"]
    yield "# Performance"
    yield ""
    yield "This page is made by `make bench-page` from the figures of `make bench`; do not edit it."
    yield "How it is measured, and why so, is in [ADR 13](adr/0013-how-speed-is-measured.md)."
    yield ""
    yield (
        f"Measured on {machine['when']} with splitmirror {machine['splitmirror']} and Python "
        f"{machine['python']} on {machine['processors']} processors ({machine['processor']}), "
        f"{machine['memory_gib']} GiB of memory, Linux {machine['kernel']}. Copies lay "
        f"{run['media']}. {_took(run)}"
    )
    if any(_scale(run, row) != 1 for row in run["rows"]):
        yield ""
        yield (
            "**Rows with a scale were measured at that share of the goals' sizes**, counts and "
            "pairs: their figures are orientation only, and were not always made by today's code."
        )
    yield ""


def _scale(run: Document, row: Document) -> float:
    """At which a row was measured."""
    scale: float = row.get("scale", run["scale"])
    return scale


def _took(run: Document) -> str:
    minutes, runs = round(run["seconds"] / 60), run.get("runs", 1)
    if runs == 1:
        return f"The run took {minutes} minutes."
    return f"{runs} runs of some rows each took {minutes} minutes together."


def _table(run: Document) -> Iterator[str]:
    yield "| what | figure | goal | reached |"
    yield "|---|---|---|---|"
    for row in run["rows"]:
        sign = "≤" if row["at_most"] else "≥"
        met = "yes" if row["met"] else "**no**"
        what = f"[{row['name']}](#{row['name'].lower()})"
        scale = "" if _scale(run, row) == 1 else f" (scale {_scale(run, row):g})"
        figure = f"{row['value']:g} {row['unit']}{scale}"
        yield f"| {what} | {figure} | {sign} {row['goal']:g} | {met} |"
    yield ""
    if run["peak_rss_mib"] is not None:
        yield f"Peak resident memory: {run['peak_rss_mib']:g} MiB."
        yield ""


def _details(run: Document) -> Iterator[str]:
    for row in run["rows"]:
        yield f"## {row['name']}"
        yield ""
        yield f"{row['what'][0].upper()}{row['what'][1:]}."
        yield ""
        yield from _comparison(row)
        yield from _by_files(row)
        yield from _facts(row)
        if not row["met"]:
            yield f"Not reached. What limits it:{LIMITS[row['name']]}"
            yield ""
            yield from _profile(row)


def _comparison(row: Document) -> Iterator[str]:
    sides = [(words, row[key]) for key, words in _SIDES.items() if key in row]
    if "spread" in row:
        first, third = row["spread"]
        yield f"Median of {row['pairs']} pairs; half of them lie from {first:g} to {third:g}."
        yield ""
    if row["noise"]:
        yield f"For noise, {row['noise']:.1%} of the goal is allowed for."
        yield ""
    if sides:
        yield "| | once | again |" if row["name"] == NOISE else "| | ours | the other |"
        yield "|---|---|---|"
        yield from (f"| {words} | {of['ours']:g} | {of['theirs']:g} |" for words, of in sides)
        yield ""


def _by_files(row: Document) -> Iterator[str]:
    """The pause at each number of files."""
    found = row.get("by_files")
    if not found:
        return
    parts = list(next(iter(found.values()))["parts_ms"])
    yield f"| files | pause, ms | {', '.join(parts)}, ms | longest stall of a writer, ms | map, s |"
    yield "|---|---|---|---|---|"
    for count, of in found.items():
        shares = ", ".join(f"{of['parts_ms'][part]:g}" for part in parts)
        stall, map_s = of["longest_stall_ms"], of["map_s"]
        yield f"| {int(count):,} | {of['pause_ms']:g} | {shares} | {stall:g} | {map_s:g} |"
    yield ""


def _facts(row: Document) -> Iterator[str]:
    lines = [f"- {words}: {_shown(row[key])}" for key, words in _FACTS.items() if key in row]
    if "kept" in row:
        kept = ", ".join(f"{side} {share:g}" for side, share in row["kept"].items())
        lost = ", ".join(f"{side} {number}" for side, number in row["lost_transactions"].items())
        lines += [f"- throughput that is left: {kept}", f"- transactions lost in all: {lost}"]
    if "phases_s" in row:
        spent = ", ".join(f"{name} {seconds:g}" for name, seconds in row["phases_s"].items())
        lines.append(f"- seconds of the phases: {spent}")
    if row.get("one_disk"):
        lines.append("- primary and mirror are images on one disk here, which all sides share")
    yield from [*lines, ""] if lines else []


def _shown(value: object) -> str:
    return f"{value:g}" if isinstance(value, (int, float)) else str(value)


def _profile(row: Document) -> Iterator[str]:
    if lines := row.get("profile"):
        yield "Where the main thread's time goes, by the profiler (which itself costs time):"
        yield ""
        yield from (f"    {line}" for line in lines)
        yield ""


def _foot() -> Iterator[str]:
    yield "## To measure it yourself"
    yield ""
    yield "    make bench                          # as root; says first how long and how much room"
    yield '    make bench ARGS="--scale 0.1"       # a tenth of everything'
    yield '    make bench ARGS="--profile --save docs/performance.json" && make bench-page'
    yield ""


def main() -> None:
    source, target = map(Path, sys.argv[1:])
    target.write_text(render(json.loads(source.read_text())))


if __name__ == "__main__":
    main()
