"""`splitmirror demo`: the face of the demo, in words or as one document."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from splitmirror.cli.output import print_json, terminal_watch
from splitmirror.cli.show import rate, write_pause
from splitmirror.errors import ConfigError
from splitmirror.model import Check, Mode
from splitmirror.progress import unwatched
from splitmirror.units import parse_size, show_seconds, show_size

if TYPE_CHECKING:
    from splitmirror.demo import Shown

DIRECTORY = Path("/var/tmp")  # a scratch place that is not memory
SMALLEST = 16 << 20  # below it the databases' own files are most of the lab
LAB_UNIT = 1 << 20  # images are whole MiB
FAILED = 1  # the demo ran to its end, but what it saw is not well


def demo(
    database: Annotated[str, typer.Option(help="postgresql or sqlite.")] = "postgresql",
    mode: Annotated[Mode, typer.Option(help="How the database is quiesced.")] = Mode.HOT,
    check: Annotated[
        Check, typer.Option(help="Look for stale maps while quiesced, or once released.")
    ] = Check.QUIESCED,
    size: Annotated[str, typer.Option(help="How much data the database gets.")] = "256M",
    directory: Annotated[
        Path, typer.Option(help="Where the scratch lab is made; not in memory.")
    ] = DIRECTORY,
    mirror: Annotated[
        str,
        typer.Option(
            help="qsd, lvm, md, reflink, directories; auto: lvm if there is device-mapper."
        ),
    ] = "auto",
    keep: Annotated[bool, typer.Option("--keep", help="Keep the lab's files.")] = False,
    json: Annotated[bool, typer.Option("--json", help="The last line is one document.")] = False,
) -> None:
    """Back up and restore a running database in a scratch lab, and show what happened."""
    _require_sensible(database, parse_size(size), directory)
    from splitmirror.demo import Options, run_demo

    options = Options(
        database=database,
        mode=mode,
        check=check,
        size=parse_size(size) // LAB_UNIT * LAB_UNIT,
        directory=directory.absolute(),
        mirror=mirror,
        keep=keep,
    )
    shown = run_demo(options, _quiet if json else _tell, unwatched if json else terminal_watch)
    if json:
        print_json(document(shown))
    else:
        _print_shown(shown)
    if not shown.ok:
        raise typer.Exit(FAILED)


def _require_sensible(database: str, size: int, directory: Path) -> None:
    """Raises ConfigError for what the demo cannot do, before it makes anything."""
    if database not in ("postgresql", "sqlite"):
        raise ConfigError(
            f"the demo has no database {database!r}", hint="Take postgresql or sqlite."
        )
    if size < SMALLEST:
        raise ConfigError(
            f"--size {show_size(size)} is too little for a database",
            hint=f"Take {show_size(SMALLEST)} or more.",
        )
    if not directory.is_dir():
        raise ConfigError(
            f"--directory {directory} is no directory", hint="Make it, or name another one."
        )


def document(shown: Shown) -> dict[str, Any]:
    """What the demo saw, as its JSON document."""
    made = shown.backup_set
    return {
        "database": made.database,
        "mode": made.mode,
        "check": made.check,
        "mirror": made.mirror,
        "medium": made.medium,
        "files": made.files,
        "bytes": made.stored_bytes,
        "phases": [{"name": p.name, "seconds": round(p.seconds, 6)} for p in made.phases],
        "pause_parts_ms": {k: round(v * 1000, 3) for k, v in made.pause_parts.items()},
        "write_pause_ms": round(made.write_pause_s * 1000, 3),
        "pause_floor_ms": round(shown.pause_floor_s * 1000, 3),
        "quiesce_window_ms": round(made.quiesce_window_s * 1000, 3),
        "maps": made.maps,
        "restore": shown.restore,
        "ledger": shown.ledger,
        "checks": shown.checks,
        "problems": shown.problems,
        "leftovers": shown.leftovers,
        "ok": shown.ok,
    }


def _tell(line: str) -> None:
    print(f"• {line}", flush=True)


def _quiet(line: str) -> None:
    """With --json only the document goes to standard output; the steps go beside it."""
    print(line, file=sys.stderr, flush=True)


def _print_shown(shown: Shown) -> None:
    from splitmirror.demo.timeline import timeline

    made, ledger = shown.backup_set, shown.ledger
    print("\nthe configuration of this backup:\n")
    print("".join(f"    {line}\n" for line in shown.config_text.splitlines()))
    print(f"what happened ({made.database}, {made.mode} mode, check {made.check}):\n")
    print("\n".join(timeline(made.phases)))
    print(
        f"\n  ▶ write pause {write_pause(made)}\n"
        f"    a bare freeze, split and thaw here: {show_seconds(shown.pause_floor_s)}"
    )
    print(f"    quiesce window {show_seconds(made.quiesce_window_s)}")
    maps = made.maps
    print(
        f"\n  {made.files} files and directories, {show_size(made.stored_bytes)} on {made.medium}; "
        f"maps: {maps.early} early, {maps.renewed} renewed, {maps.new} new, {maps.gone} gone"
    )
    if made.speed is not None:
        print(f"  rate {rate(made.speed)}")
    print(f"  restored {shown.restore.files} files, {shown.restore.mismatches} mismatches")
    print(
        f"  ledger: {ledger.acknowledged_before_split} acknowledged before the split, "
        f"{ledger.restored} restored, {ledger.lost} lost, {ledger.torn} torn"
    )
    for line in shown.checks:
        print(f"  checked: {line}")
    for line in shown.problems:
        print(f"  PROBLEM: {line}")
    for line in shown.leftovers:
        print(f"  LEFT BEHIND: {line}")
    if shown.kept:
        print(f"  kept: {shown.kept}")
    print("\nall well" if shown.ok else "\nNOT WELL: see above")
