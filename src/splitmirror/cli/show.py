"""Findings, sets, members and reports in words for a terminal."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from splitmirror.cli.output import printable
from splitmirror.drill import DrillReport
from splitmirror.mirrors import MirrorState
from splitmirror.model import BackupSet, Finding
from splitmirror.recover import Recovered
from splitmirror.restore import RestoreReport
from splitmirror.units import show_seconds, show_size
from splitmirror.verify import VerifyReport


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
    print(f"\n{stopping} of these would stop a backup" if stopping else "\nready for a backup")


def print_set(shown: BackupSet) -> None:
    """A set with its phases, the write pause and what became of the maps."""
    state = "complete" if shown.complete else "INCOMPLETE"
    print(f"set {shown.set_id}: {state}, source {shown.source} on {shown.host}")
    print(f"  {shown.database}, {shown.mode}, check {shown.check}, mirror {shown.mirror}")
    print(f"  {shown.files} files, {show_size(shown.stored_bytes)} stored on {shown.medium}")
    for phase in shown.phases:
        print(f"  {phase.name:<12} {show_seconds(phase.seconds):>10}")
    maps = shown.maps
    print(f"  maps: {maps.early} early, {maps.renewed} renewed, {maps.new} new, {maps.gone} gone")
    print(f"  write pause {show_seconds(shown.write_pause_s)}{pause_parts(shown)}")
    print(f"  quiesce window {show_seconds(shown.quiesce_window_s)}")


def pause_parts(shown: BackupSet) -> str:
    """What the write pause consists of, in brackets."""
    parts = (f"{name} {show_seconds(s)}" for name, s in shown.pause_parts.items())
    return f" ({', '.join(parts)})" if shown.pause_parts else ""


def print_sets(sets: Sequence[BackupSet]) -> None:
    if not sets:
        print("no sets")
        return
    print(
        f"{'set':<26} {'source':<12} {'database':<11} {'mode':<7} {'files':>8} {'stored':>10} pause"
    )
    for shown in sets:
        mark = "" if shown.complete else "  INCOMPLETE"
        print(
            f"{shown.set_id:<26} {shown.source:<12} {shown.database:<11} {shown.mode:<7} "
            f"{shown.files:>8} {show_size(shown.stored_bytes):>10} "
            f"{show_seconds(shown.write_pause_s)}{mark}"
        )


def print_members(members: Iterable[Any]) -> None:
    for member in members:
        title = f"  ({member.title})" if member.title else ""
        print(f"{member.kind.name.lower():<9} {member.size:>14} {printable(member.name)}{title}")


def print_mirror(state: MirrorState) -> None:
    if not state.attached:
        print(f"not attached: {state.why}")
        return
    print(f"attached, {'level' if state.level else 'not level: ' + state.why}")
    print(f"{show_size(state.dirty_bytes)} to copy")
    if state.split_id is not None:
        print(f"its leg is split for {state.split_id}")


def print_restored(report: RestoreReport) -> None:
    print(f"restored {report.files} files, {show_size(report.bytes)} from {report.set_id}")
    if report.removed:
        print(f"removed {report.removed} that the set does not hold")
    for skipped in report.skipped:
        name = printable(skipped.first)
        print(f"not given back: {skipped.what} of {skipped.count} ({skipped.why}), as of {name}")


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


def print_recovered(runs: Sequence[Recovered]) -> None:
    if not runs:
        print("nothing to recover")
    for run in runs:
        print(f"run {run.set_id}:")
        for line in run.done:
            print(f"  {line}")
        if run.finished is not None:
            print_set(run.finished)
