"""One backup or restore in a process of its own, so that CPU time and memory are its own.

`python -m bench.child ORDER`, an `Order` as JSON; its report is the last line of its standard
output. It runs the product's own recipe and listens where that says which phase it is in
(`Run.phase`): there caches are dropped, clocks read, files changed, or the run ended early.
"""

from __future__ import annotations

import cProfile
import os
import resource
import sys
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgspec

from bench import profiles, sets
from bench.cost import drop_caches
from bench.null_medium import NullMedium
from bench.order import Order, Report
from splitmirror import config
from splitmirror.backup import backup
from splitmirror.catalog import Catalog
from splitmirror.config import Config
from splitmirror.errors import SplitmirrorError
from splitmirror.media import Medium
from splitmirror.restore import restore
from splitmirror.run import Run


class NullConfig(Config, frozen=True, kw_only=True):
    """A configuration whose medium keeps nothing."""

    def open_medium(self) -> Medium:
        return NullMedium()


class EndedEarly(SplitmirrorError):
    """What was to be seen has been seen."""


@dataclass(slots=True)
class Meter:
    """Notes what each phase took."""

    seconds: dict[str, float] = field(default_factory=dict)
    cpu_s: dict[str, float] = field(default_factory=dict)
    calls: dict[str, int] = field(default_factory=dict)
    read: dict[str, int] = field(default_factory=dict)
    fetched: dict[str, int] = field(default_factory=dict)

    @contextmanager
    def over(self, name: str) -> Iterator[None]:
        began_s, began = _cpu_s(), _io()
        try:
            yield
        finally:
            self.cpu_s[name] = _cpu_s() - began_s
            counts = (now - before for now, before in zip(_io(), began, strict=True))
            self.calls[name], self.read[name], self.fetched[name] = counts


def _cpu_s() -> float:
    """Of this process, its threads and the children that it waited for."""
    whose = (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)
    return sum(used.ru_utime + used.ru_stime for used in map(resource.getrusage, whose))


def _io() -> tuple[int, int, int]:
    """System calls that read or wrote, the bytes that they read, and the bytes that a disk was read
    for (proc(5), /proc/PID/io); of children too, once they have been waited for."""
    lines = Path("/proc/self/io").read_text().split()
    counts = dict(zip(lines[::2], map(int, lines[1::2]), strict=True))
    return counts["syscr:"] + counts["syscw:"], counts["rchar:"], counts["read_bytes:"]


def peak_rss() -> int:
    """Bytes. VmHWM counts this program only; ru_maxrss begins with what its parent had."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM")) * 1024


# --- a backup


def back_up(order: Order) -> Report:
    """A whole backup, or one as far as `order.stop`."""
    loaded = config.load(Path(order.config))
    if order.null:
        loaded = NullConfig(**msgspec.structs.asdict(loaded))
    meter = Meter()
    seen: dict[str, Any] = {}
    profiler = cProfile.Profile()
    _listen(order, meter, profiler, seen)
    try:
        made = backup(loaded)
    except EndedEarly:
        return _report(meter, profiler if order.profile else None, **seen["pause"])
    meter.seconds = {phase.name: phase.seconds for phase in made.phases}
    return _report(
        meter,
        profiler if order.profile else None,
        files=made.files,
        stored_bytes=made.stored_bytes,
        pause_s=made.write_pause_s,
        pause_parts=dict(made.pause_parts),
    )


def _report(meter: Meter, profiler: cProfile.Profile | None, **more: Any) -> Report:
    return Report(
        seconds=meter.seconds,
        cpu_s=meter.cpu_s,
        calls=meter.calls,
        read=meter.read,
        fetched=meter.fetched,
        peak_rss=peak_rss(),
        profile=profiles.top(profiler) if profiler else [],
        **more,
    )


def _listen(order: Order, meter: Meter, profiler: cProfile.Profile, seen: dict[str, Any]) -> None:
    """From now on each phase of a run does what the order says, and is metered."""
    phase = Run.phase

    @contextmanager
    def listening(run: Run, name: str, limit_s: float | None = None) -> Iterator[None]:
        if name == order.stop:
            seen["pause"] = _trusted_pause(run)
            meter.seconds.update((done.name, done.seconds) for done in run.phases)
            raise EndedEarly("ended early, as ordered")
        if name == "quiesce" and order.change is not None:
            directory, number, changed = order.change
            sets.change_some(Path(directory), number, changed)
        if name == order.cold:
            drop_caches()
        profiled = profiler if name == order.profile else nullcontext()
        with profiled, meter.over(name), phase(run, name, limit_s):
            yield

    Run.phase = listening  # type: ignore[method-assign, assignment]


def _trusted_pause(run: Run) -> dict[str, Any]:
    """The pause as it stands in what the run trusts; nothing, if it did not come so far."""
    path = run.directory / "trusted"
    if not path.exists():
        return {}
    trusted = msgspec.json.decode(path.read_bytes())["backup_set"]
    return {"pause_s": trusted["write_pause_s"], "pause_parts": trusted["pause_parts"]}


# --- a restore


def bring_back(order: Order) -> Report:
    """Restore `names` twice, from cold caches: the first time so that every module is loaded, which
    reads files too. What is reported is the second."""
    meter = Meter()
    loaded = config.load(Path(order.config))
    names = [os.fsencode(name) for name in order.names]
    for target in ("warm", "metered"):
        drop_caches()
        with meter.over("restore"), Catalog.open(loaded.catalog_path) as catalog:
            set_id = catalog.get("latest").set_id
            to = Path(order.target, target)
            report = restore(loaded.open_supply(), catalog, set_id, names, to)
    return _report(meter, None, files=report.files, stored_bytes=report.bytes)


def main() -> None:
    order = msgspec.json.decode(sys.argv[1], type=Order)
    report = bring_back(order) if order.names else back_up(order)
    print(msgspec.json.encode(report).decode())


if __name__ == "__main__":
    main()
