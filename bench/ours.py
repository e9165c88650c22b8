"""Backups by splitmirror itself, each in a child process (`bench.child`), measured."""

from __future__ import annotations

import shutil
import sys
import tempfile
from collections.abc import Callable, Mapping
from contextlib import closing
from pathlib import Path
from typing import Any

import msgspec

from bench import cost
from bench.cost import Cost
from bench.order import Order, Report
from splitmirror import config
from splitmirror.demo.lab import Lab, configuration
from splitmirror.progress import silent

LOGICAL_BLOCK = 4096


def command(*words: str) -> list[str]:
    """The command line of a splitmirror command."""
    return [sys.executable, "-m", "splitmirror", *words]


def ordered(order: Order, started: Callable[[int], None] | None = None) -> Report:
    """What a child reports; `started` is told its pid. Raises ProgramFailed."""
    text = msgspec.json.encode(order).decode()
    with tempfile.TemporaryFile("w+") as words:
        cost.run([sys.executable, "-m", "bench.child", text], output=words, started=started)
        words.seek(0)
        return msgspec.json.decode(words.read().splitlines()[-1], type=Report)


class Backups:
    """Backups of one lab, one at a time. Each begins without a catalogue, without earlier runs and
    with a blank tape, and leaves its leg split, for the other side reads it too; the next one
    rejoins it first."""

    def __init__(
        self,
        lab: Lab,
        database: Mapping[str, object],
        options: Mapping[str, object],
        tape: Path,
        peaks: list[int],
    ) -> None:
        self.lab = lab
        self.tape = tape
        self._peaks = peaks
        text = configuration(lab, database, {"cleanup": "leave-split", **options}, tape)
        lab.config_path.write_text(text)
        self._loaded = config.load(lab.config_path)

    def make(self, *, started: Callable[[int], None] | None = None, **order: Any) -> Report:
        """One backup, as ordered."""
        self.rejoin()
        self.forget()
        report = ordered(Order(config=str(self.lab.config_path), **order), started)
        self._peaks.append(report.peak_rss)
        return report

    def phase(self, **order: Any) -> Cost:
        """The backup phase of a whole backup, from cold caches on, until the set is whole on the
        medium. Among the facts are the seconds of the check before it, and of all phases."""
        report = self.make(cold="backup", **order)
        return Cost(
            seconds=report.seconds["backup"],
            cpu_s=report.cpu_s["backup"],
            bytes=report.stored_bytes,
            facts={
                "files": report.files,
                "check_s": report.seconds["check"],
                "all_phases_s": sum(report.seconds.values()),
                "cpu_us_a_file": report.cpu_s["backup"] / report.files * 1e6,
                "calls_a_file": report.calls["backup"] / report.files,
                "peak_rss_mib": report.peak_rss / (1 << 20),
            },
        )

    def profile(self, **order: Any) -> list[str]:
        """Where the time of the backup phase goes, in a run that is not measured."""
        return self.make(cold="backup", profile="backup", **order).profile

    def level(self) -> None:
        """Bring the mirror level."""
        with closing(self._loaded.open_mirror()) as mirror:
            mirror.synchronize(silent)

    def rejoin(self) -> None:
        """Give the leg back, if one is parted."""
        with closing(self._loaded.open_mirror()) as mirror:
            parted = mirror.state().split_id
            if parted is not None:
                mirror.rejoin(parted)

    def forget(self) -> None:
        """Take away the tape, the catalogue and the runs of earlier backups."""
        for path in self.tape.parent.glob(f"{self.tape.stem}.*"):
            path.unlink()
        shutil.rmtree(self._loaded.state)
        self._loaded.state.mkdir()
