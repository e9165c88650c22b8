"""Rows of the write pause and of memory: a PostgreSQL cluster in hot mode with more and more files.

The files lie beside the cluster, on the same filesystem, and are renamed into its data directory in
turn, so that every number of files meets the same disk and the same server. Caches are dropped
before each run, or files that are not even in the set would lie in the kernel's memory. Some change
while the server is being quiesced, after the map. What follows the release is not waited for: the
run is ended there and its split thrown away.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

from bench import sets
from bench.cost import drop_caches
from bench.memory import PeakMemory
from bench.order import Report
from bench.ours import Backups
from bench.pairs import ratios, take_turns
from bench.rows import Row, rounded
from bench.stage import MIB, Needs, Sizes, Stage
from splitmirror.demo.lab import Disk, lab_at
from splitmirror.testing.clusters import Cluster, cluster

_SLACK = 512 * MIB  # the cluster itself, its log, the journal
_TAKES = 4096 + 256  # bytes of the filesystem that a tiny file takes: a block and an inode
_FIXED = 256 * MIB  # what a backup may take whatever it backs up,
_A_FILE = 300  # and for each file, beside its path
_SETTINGS = {"shared_buffers": "64MB", "max_wal_size": "256MB", "checkpoint_timeout": "1h"}
_MOST_GROWTH = 1.5
_MOST_MAP_US = 10.0
_PROBE_S = 0.0005
_BETWEEN = 3  # runs with the numbers of files that are not in the ratio


class Pause:
    """A Scene."""

    GROWTH, MAP, PEAK = "pause-growth", "early-map-per-file", "peak-memory"
    rows = (GROWTH, MAP, PEAK)

    def needs(self, sizes: Sizes) -> Needs:
        return Needs(scratch=3 * _disk(sizes).size, seconds=_seconds(sizes))

    def run(self, stage: Stage, wanted: frozenset[str]) -> Iterator[Row]:
        with ExitStack() as undo:
            made = _Made(stage, undo)
            if self.GROWTH in wanted:
                yield self._growth(made)
            if self.MAP in wanted:
                yield self._map(made)
            if self.PEAK in wanted:
                yield self._peak(made)

    def _growth(self, made: _Made) -> Row:
        counts, pairs = made.stage.sizes.counts, made.stage.sizes.pairs
        sides = {str(count): partial(made.paused, count) for count in counts}
        between = dict.fromkeys(sides, min(pairs, _BETWEEN))
        found = take_turns(sides, {**between, str(counts[0]): pairs, str(counts[-1]): pairs})
        few, many = found[str(counts[0])], found[str(counts[-1])]
        paired = ratios((report.pause_s for report, _ in many), (r.pause_s for r, _ in few))
        return Row(
            name=self.GROWTH,
            what=f"write pause in hot mode at {counts[-1]:,} files of which "
            f"{made.stage.sizes.changed} change, against the same at {counts[0]:,}",
            value=paired.median,
            goal=_MOST_GROWTH,
            unit="× the shorter pause",
            at_most=True,
            more={
                "pairs": pairs,
                "spread": [rounded(value) for value in paired.spread],
                "by_files": {count: _pauses(reports) for count, reports in found.items()},
            },
        )

    def _map(self, made: _Made) -> Row:
        """The first run, from cold caches, is not counted."""
        count = made.stage.sizes.counts[-2]
        drop_caches()
        reports = [made.mapped(count) for _ in range(made.stage.sizes.pairs + 1)][1:]
        return Row(
            name=self.MAP,
            what=f"the early map of {count:,} files, warm",
            value=median(report.seconds["map"] for report in reports) / count * 1e6,
            goal=_MOST_MAP_US,
            unit="µs a file",
            at_most=True,
            more={
                "pairs": len(reports),
                "cpu_us": rounded(median(r.cpu_s["map"] for r in reports) / count * 1e6),
                **made.profile(count),
            },
        )

    def _peak(self, made: _Made) -> Row:
        """One whole backup of the most files, its catalogue included, to a null medium."""
        count = made.stage.sizes.counts[-1]
        report, peak = made.whole(count)
        paths = sum(len(f"data/bench/{name}") for name in sets.tiny_names(count))
        allowed = _FIXED + _A_FILE * report.files + paths
        phases = {name: rounded(seconds) for name, seconds in report.seconds.items()}
        return Row(
            name=self.PEAK,
            what=f"peak resident memory of a backup of {report.files:,} files, all its processes "
            f"together, against 256 MiB + {_A_FILE} bytes a file + its path",
            value=max(peak, report.peak_rss) / MIB,
            goal=allowed / MIB,
            unit="MiB",
            at_most=True,
            more={
                "files": report.files,
                "main_process_mib": rounded(report.peak_rss / MIB),
                "phases_s": phases,
                "cpu_s_per_phase": {name: rounded(used) for name, used in report.cpu_s.items()},
            },
        )


def _pauses(reports: list[tuple[Report, float]]) -> dict[str, Any]:
    """Medians in ms: the pause as it is recorded, its parts, and the longest stall of a writer."""
    parts = reports[0][0].pause_parts
    return {
        "pause_ms": rounded(median(report.pause_s for report, _ in reports) * 1000),
        "parts_ms": {
            name: rounded(median(report.pause_parts[name] for report, _ in reports) * 1000)
            for name in parts
        },
        "longest_stall_ms": rounded(median(stall_s for _, stall_s in reports) * 1000),
        "map_s": rounded(median(report.seconds["map"] for report, _ in reports)),
        "discover_s": rounded(median(report.seconds["discover"] for report, _ in reports)),
        "check_s": rounded(median(report.seconds["check"] for report, _ in reports)),
    }


def _seconds(sizes: Sizes) -> float:
    """About how long all of it takes: as it was measured once."""
    made = 8 + 100 * sizes.scale
    paused = sizes.pairs * (8 + 75 * sizes.scale)
    return made + paused + 130 * sizes.scale


def _disk(sizes: Sizes) -> Disk:
    total = sum(sizes.counts)
    size = int(total * _TAKES * 1.1) // MIB * MIB + _SLACK
    return Disk(name="data", fstype="ext4", size=size, inodes=int(total * 1.01) + 20_000)


class _Made:
    """The cluster and the files beside it."""

    def __init__(self, stage: Stage, undo: ExitStack) -> None:
        self.stage = stage
        sizes = stage.sizes
        stage.tell(f"making a cluster and {sum(sizes.counts):,} files")
        lab = undo.enter_context(lab_at(stage.scratch / "pause", (_disk(sizes),)))
        self._beside = lab.mountpoint("data") / "files"
        for count in sizes.counts:
            sets.make_tiny(self._beside / str(count), count)
        self._server: Cluster = undo.enter_context(
            cluster(_SETTINGS, home=_directory(lab.mountpoint("data") / "pg"))
        )
        self._probed = lab.mountpoint("data") / "probed"
        database = {"driver": "postgresql", "dsn": self._server.dsn()}
        tape = stage.media / "SM0001.tap"
        self._backups = Backups(lab, database, {"mode": "hot"}, tape, stage.peaks)
        undo.callback(self._backups.rejoin)
        self._backups.level()

    def paused(self, count: int) -> tuple[Report, float]:
        """A backup as far as its release, and the longest stall of a writer meanwhile, in s."""
        drop_caches()
        with _Probe(self._probed) as probe:
            report = self._with_files(count, stop="backup")
        self.stage.tell(
            f"  {count:,} files: pause {report.pause_s * 1000:.1f} ms, a writer's longest stall "
            f"{probe.longest_s * 1000:.1f} ms, map {report.seconds['map']:.2f} s"
        )
        return report, probe.longest_s

    def mapped(self, count: int) -> Report:
        """A backup as far as its early map."""
        report = self._with_files(count, stop="quiesce")
        self.stage.tell(f"  {count:,} files: map {report.seconds['map']:.2f} s")
        return report

    def whole(self, count: int) -> tuple[Report, int]:
        """A whole backup, and the most bytes that it had at a time."""
        with PeakMemory() as memory:
            report = self._with_files(count, null=True, started=memory.started)
        self.stage.tell(
            f"  {count:,} files: peak {memory.peak / MIB:.0f} MiB, of the main process alone "
            f"{report.peak_rss / MIB:.0f} MiB"
        )
        return report, memory.peak

    def profile(self, count: int) -> dict[str, list[str]]:
        """Of the early map, in a run that is not measured."""
        if not self.stage.profile:
            return {}
        return {"profile": self._with_files(count, stop="quiesce", profile="map").profile}

    def _with_files(self, count: int, **order: Any) -> Report:
        files, place = self._beside / str(count), self._server.data / "bench"
        files.rename(place)
        try:
            change = (str(place), count, min(count, self.stage.sizes.changed))
            return self._backups.make(change=change, **order)
        finally:
            place.rename(files)


def _directory(path: Path) -> Path:
    path.mkdir()
    return path


class _Probe:
    """A writer that puts a byte into a file again and again, and notes the longest time between
    two. It sees the pause from outside, whatever the backup records; and the flush before it."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._write)
        self.longest_s = 0.0

    def __enter__(self) -> _Probe:
        self._thread.start()
        return self

    def __exit__(self, *exc: object) -> None:
        self._ended.set()
        self._thread.join()

    def _write(self) -> None:
        fd = os.open(self._path, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC)
        try:
            while not self._ended.wait(_PROBE_S):
                began_s = time.monotonic()
                os.pwrite(fd, b"x", 0)
                self.longest_s = max(self.longest_s, time.monotonic() - began_s)
        finally:
            os.close(fd)
