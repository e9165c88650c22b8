"""Findings, sets, members and reports in words for a terminal."""

from __future__ import annotations

import os
import shlex
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from splitmirror.cli.output import printable
from splitmirror.mirrors import MirrorState
from splitmirror.model import WARNING, BackupSet, Finding, Speed, VolumeUse
from splitmirror.units import show_seconds, show_size

if TYPE_CHECKING:  # the commands that have one have imported it
    from splitmirror.catalog import Located
    from splitmirror.drill import DrillReport
    from splitmirror.recover import Recovered
    from splitmirror.restore import RestoreReport
    from splitmirror.verify import VerifyReport

# Settings of PostgreSQL that name a file which may lie outside its data directory.
_OWN_FILES = (
    *("config_file", "hba_file", "ident_file", "ssl_cert_file", "ssl_key_file", "ssl_ca_file"),
    *("ssl_crl_file", "ssl_dh_params_file"),
)


def finding(found: Finding) -> dict[str, Any]:
    """A finding as a JSON document."""
    level = "ok" if found.problem is None else "warning" if found.warning else "error"
    document: dict[str, Any] = {"what": found.what, "level": level}
    if found.problem is not None:
        document |= {"problem": str(found.problem), "hint": found.problem.hint}
    return document


def print_findings(findings: Sequence[Finding]) -> None:
    for found in findings:
        document = finding(found)
        print(f"{document['level']:>7}  {found.what}")
        if found.problem is not None:
            print(f"         {found.problem}")
            print(f"         what to do: {found.problem.hint}")
    stopping = sum(f.problem is not None and not f.warning for f in findings)
    warnings = sum(f.problem is not None and f.warning for f in findings)
    also = f" ({warnings} warning{'s'[: warnings > 1]})" if warnings else ""
    told = f"{stopping} of these would stop a backup" if stopping else "ready for a backup"
    print(f"\n{told}{also}")


def print_set(shown: BackupSet) -> None:
    """A set with its phases, the write pause and what became of the maps."""
    state = "complete" if shown.complete else "INCOMPLETE"
    print(f"set {shown.set_id}: {state}, source {shown.source} on {shown.host}")
    if not shown.complete and (why := shown.facts.get(WARNING)):
        print(f"  {printable(why.encode())}")
    print(f"  began {shown.started:%Y-%m-%d %H:%M:%S %Z}{_took(shown)}")
    print(f"  {shown.database}, {shown.mode} mode, check {shown.check}, mirror {shown.mirror}")
    stored = show_size(shown.stored_bytes)
    print(f"  {shown.files} files and directories, {stored} stored on {shown.medium}")
    for use in shown.volumes:
        print(f"  volume {use.volume}: {volume_use(use)}")
        for note in use.notes:
            print(f"    {note}")
    for name, path in shown.trees:
        print(f"  {printable(name)}: was {printable(path)}")
    for phase in shown.phases:
        print(f"  {phase.name:<12} {show_seconds(phase.seconds):>10}")
    maps = shown.maps
    print(f"  maps: {maps.early} early, {maps.renewed} renewed, {maps.new} new, {maps.gone} gone")
    print(f"  watch for changes: {printable(os.fsencode(shown.watch)) or 'none'}")
    print(f"  write pause {write_pause(shown)}")
    print(f"  quiesce window {show_seconds(shown.quiesce_window_s)}")
    if shown.speed is not None:
        print(f"  rate {rate(shown.speed)}")


def volume_use(use: VolumeUse) -> str:
    """What of a set lies on a volume, and whether its drive had to wait."""
    text = f"{use.parts} part{'s' * (use.parts != 1)}, {show_size(use.bytes)}"
    if use.full:
        text += ", full"
    if use.stalls:
        times = "once" if use.stalls == 1 else f"{use.stalls} times"
        text += f"; its drive stood still {times}, {show_seconds(use.stalled_s)} in all"
    return text


def rate(speed: Speed) -> str:
    """How fast it went, and what it waited for."""
    text = f"{show_size(speed.rate)}/s"
    if speed.leg_rate:
        text += (
            f" ({speed.rate / speed.leg_rate:.0%} of the leg's own {show_size(speed.leg_rate)}/s)"
        )
    stages = ", ".join(f"{name} {show_seconds(s)}" for name, s in speed.stages.items())
    return f"{text}; bottleneck: {speed.bottleneck} ({stages})"


def _took(shown: BackupSet) -> str:
    if shown.ended is None:
        return ", has no end"
    return f", took {show_seconds((shown.ended - shown.started).total_seconds())}"


def write_pause(shown: BackupSet) -> str:
    """How long writers stood still, and in brackets what that consists of."""
    if not shown.write_pause_s and not shown.pause_parts:
        return "none: nothing was frozen"
    parts = ", ".join(f"{name} {show_seconds(s)}" for name, s in shown.pause_parts.items())
    return f"{show_seconds(shown.write_pause_s)}{f' ({parts})' * bool(parts)}"


def print_sets(sets: Sequence[BackupSet]) -> None:
    if not sets:
        print("no sets")
        return
    heads = ("set", "began", "source", "database", "mode", "entries", "stored", "write pause")
    print_table([heads, *(_row(shown) for shown in sets)], right=frozenset({5, 6, 7}))


def _row(shown: BackupSet) -> tuple[str, ...]:
    row = (
        shown.set_id,
        f"{shown.started:%Y-%m-%d %H:%M %Z}",
        shown.source,
        str(shown.database),
        str(shown.mode),
        str(shown.files),
        show_size(shown.stored_bytes),
        show_seconds(shown.write_pause_s),
    )
    return row if shown.complete else (*row, "INCOMPLETE")


def print_table(rows: Sequence[Sequence[str]], right: frozenset[int]) -> None:
    """Columns as wide as their widest cell; those in `right` stand at their right edge."""
    widths = [
        max(len(row[column]) for row in rows if column < len(row))
        for column in range(max(map(len, rows)))
    ]
    for row in rows:
        cells = (
            cell.rjust(width) if column in right else cell.ljust(width)
            for column, (cell, width) in enumerate(zip(row, widths, strict=False))
        )
        print("  ".join(cells).rstrip())


def print_members(members: Iterable[Located]) -> None:
    for each in members:
        title = f"  ({each.title})" if each.title else ""
        print(f"{each.kind.name.lower():<9} {each.size:>14} {printable(each.name)}{title}")


def member(located: Located) -> dict[str, Any]:
    """A member as a JSON document: hashes in hexadecimal, the file's kind by its name."""
    record = located.record
    attributes = record.attributes
    return {
        "name": record.name,
        "kind": attributes.kind.name.lower(),
        "size": record.size,
        "stored": record.stored,
        "part": located.part,
        "piece": record.piece,
        "mode": attributes.mode,
        "uid": attributes.uid,
        "gid": attributes.gid,
        "mtime_ns": attributes.mtime_ns,
        "link": attributes.link,
        "blake3": record.blake3.hex(),
        "origin": record.origin,
        "title": record.title,
    }


def print_mirror(state: MirrorState) -> None:
    if not state.attached:
        print(f"not attached: {state.why}")
        return
    print(f"attached, {'level' if state.level else 'not level: ' + state.why}")
    if state.level or state.dirty_bytes:
        print(f"{show_size(state.dirty_bytes)} written since, for the next synchronization")
    if state.split_id is not None:
        print(f"its leg is split for {state.split_id}")


def print_restored(report: RestoreReport) -> None:
    print(f"restored {report.files} files, {show_size(report.bytes)} from {report.set_id}")
    if report.removed:
        print(f"removed {report.removed} that the set does not hold")
    for skipped in report.skipped:
        name = printable(skipped.first)
        print(f"not given back: {skipped.what} of {skipped.count} ({skipped.why}), as of {name}")


def print_next(restored: BackupSet, target: Path | None) -> None:
    """What a person does with a whole set that came back, so that it runs beside nothing of the
    original's by mistake."""
    if restored.database == "postgresql":
        print("\n".join(_start_postgresql(restored, target)))
    elif restored.database == "sqlite":
        print("ready to be opened; what was not checkpointed is in the -wal files beside it")


def _start_postgresql(restored: BackupSet, target: Path | None) -> list[str]:
    if target is None:
        data = Path(os.fsdecode(dict(restored.trees)[b"data"]))
        return [f"ready to start by its own service, or as its owner: {_pg_ctl(restored, data)}"]
    target = Path(os.path.abspath(target))
    data = target / "data"
    options = ["-p 5499", "-c listen_addresses=", "-c archive_mode=off"]
    options += _own_settings(restored, data, target / "outside")
    return [
        f"ready to start, as the owner of {data}. Its settings are the original's: beside a",
        "running original it needs another port, and must not archive into the original's archive:",
        f"  {_pg_ctl(restored, data)} -l {shlex.quote(str(data / 'start.log'))} -w "
        f"-o {shlex.quote(' '.join(options))}",
    ]


def _pg_ctl(restored: BackupSet, data: Path) -> str:
    program = Path(restored.facts.get("bin_dir", "")) / "pg_ctl"
    return f"{program} start -D {shlex.quote(str(data))}"


def _own_settings(restored: BackupSet, data: Path, outside: Path) -> list[str]:
    """The options that keep a cluster away from the original's files: its configuration, where that
    lay outside its data directory, as Debian's does, and its certificates."""
    own = {
        name: path
        for name in _OWN_FILES
        if (path := outside / restored.facts.get(name, "").lstrip("/")).is_file()
    }
    if "config_file" in own:
        own["data_directory"] = data
    return [f"-c {name}={shlex.quote(str(path))}" for name, path in own.items()]


def print_verified(report: VerifyReport) -> None:
    print(
        f"read back {report.files} members in {report.parts} parts of {report.set_id}, "
        f"{show_size(report.bytes)}: {'all whole' if report.sound else 'DAMAGED'}"
    )


def print_drilled(report: DrillReport[None]) -> None:
    print(
        f"restored {report.files} files of {report.set_id} in {show_seconds(report.restore_s)}, "
        f"checked in {show_seconds(report.check_s)}"
    )
    for line in report.checks:
        print(f"  checked: {line}")


def print_recovered(runs: Sequence[Recovered], swept: Sequence[Path]) -> None:
    if not runs and not swept:
        print("nothing to recover")
    for directory in swept:
        print(f"took away {directory}, left by a drill that was cut off")
    for run in runs:
        print(f"run {run.set_id}:")
        for line in run.done:
            print(f"  {line}")
        if run.finished is not None:
            print_set(run.finished)
