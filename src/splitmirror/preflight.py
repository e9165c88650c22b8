"""What is looked at before anything is touched; `doctor` shows it, `backup` stops at it."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from splitmirror.config import Config
from splitmirror.databases import Database
from splitmirror.errors import (
    MirrorNotReady,
    PrivilegeError,
    SplitmirrorError,
    UnsafeMirror,
    WouldFreeze,
)
from splitmirror.mirrors import Feature, Mirror
from splitmirror.model import Filesystem, Finding, Mode
from splitmirror.system.filesystems import superblocks_below

NEEDS_ROOT = (
    "freezing filesystems, mapping files to extents and reading the mirror's device need root"
)


def require_root() -> None:
    """Raises PrivilegeError unless this process is root."""
    if os.geteuid() != 0:
        raise PrivilegeError(
            f"this needs root: {NEEDS_ROOT}", hint="Run it again with sudo, or as root."
        )


def privileges() -> Finding:
    try:
        require_root()
    except PrivilegeError as problem:
        return Finding(what="privileges", problem=problem)
    return Finding(what="running as root")


def attached(mirror: Mirror) -> Finding:
    """Whether the mirror runs and no leg is parted."""
    state = mirror.state()
    if not state.attached:
        ours = Feature.ATTACHES in mirror.features
        return Finding(
            what="mirror",
            problem=MirrorNotReady(
                state.why or "the mirror was never started",
                hint="Start it with `splitmirror mirror start`, then mount its devices."
                if ours
                else "Look at its volumes, disks, mounts (`lvs -a`, /proc/mdstat, findmnt, dmesg).",
            ),
        )
    if state.split_id is not None:
        return Finding(
            what="mirror",
            problem=MirrorNotReady(
                f"the leg of backup {state.split_id} is still split",
                hint="If that backup was cut off, run `splitmirror recover`. If its leg was left "
                "split on purpose and is not needed any more, run `splitmirror resync`.",
                split_id=state.split_id,
            ),
        )
    return Finding(what=f"mirror attached, {'level' if state.level else state.why or 'not level'}")


def fits(mirror: Mirror, database: Database, mode: Mode) -> Finding:
    """Whether this mirror's split can be of use to this database in this mode."""
    problem: SplitmirrorError | None = None
    if Feature.UNFROZEN in mirror.features:
        if mode is Mode.FREEZE:
            problem = UnsafeMirror(
                "this mirror is split by writing to the database's own filesystem, which therefore "
                "cannot be frozen",
                hint=("Take" if Mode.HOT not in database.modes else 'Set mode = "hot", or take')
                + " an engine that splits under a freeze; docs/mirrors.md.",
            )
        elif Feature.GROUP_SPLIT not in mirror.features and not database.mends_instants:
            problem = UnsafeMirror(
                "the files of this leg are copied one after another, and this database needs all "
                "of them as they were at one instant",
                hint="Keep it in one btrfs subvolume, or in an image file (the reflink engine); "
                "docs/mirrors.md.",
            )
    return Finding(what=f"mirror and {mode} mode", problem=problem)


def frozen(mirror: Mirror, filesystems: Sequence[Filesystem]) -> list[Filesystem]:
    """Those of the filesystems of the set that are frozen around the split."""
    return [] if Feature.UNFROZEN in mirror.features else list(filesystems)


def own_paths(config: Config) -> Iterator[tuple[str, Path]]:
    """What the run itself writes or loads while filesystems are frozen, in words and as paths."""
    yield "the state directory (journal)", config.state
    yield "the catalogue", config.catalog_path
    yield "Python", Path(sys.prefix)
    yield "Python's library", Path(os.__file__)
    yield "splitmirror itself", Path(__file__)
    yield "/run", Path("/run")
    if isinstance(path := config.medium.get("path"), str):
        yield "the medium", Path(path)
    for number, name in ((1, "standard output"), (2, "standard error")):
        if os.path.isfile(f"/proc/self/fd/{number}"):
            yield name, Path(os.path.realpath(f"/proc/self/fd/{number}"))
    for line in Path("/proc/swaps").read_text().splitlines()[1:]:
        if line.split()[1] == "file":
            yield "a swap file", Path(line.split()[0])


def would_freeze(config: Config, filesystems: Sequence[Filesystem]) -> list[Finding]:
    """One finding for each thing of ours that lies on a filesystem that will be frozen."""
    by_devno = {filesystem.devno: filesystem for filesystem in filesystems}
    findings = []
    for what, path in own_paths(config):
        for devno in by_devno.keys() & filesystems_below(path):
            filesystem = by_devno[devno]
            problem = WouldFreeze(
                f"{what} lies on {filesystem.mountpoint}, which will be frozen: {path}",
                hint="Move it to a filesystem that is not part of the backup, or change its path "
                "in the configuration; the run would hang on its own freeze.",
                path=str(path),
            )
            findings.append(Finding(what=what, problem=problem))
    return findings or [Finding(what="nothing that the run writes will be frozen")]


def filesystems_below(path: Path) -> set[int]:
    """The superblocks that a write to the path goes through, or to its nearest directory that
    exists."""
    while not path.exists():
        path = path.parent
    return superblocks_below(path)


def stop_at_first(findings: Iterable[Finding]) -> None:
    """Raise the first problem that is more than a warning."""
    for finding in findings:
        if finding.problem is not None and not finding.warning:
            raise finding.problem


def as_finding(what: str, error: SplitmirrorError) -> Finding:
    """An error met while looking, as a finding."""
    return Finding(what=what, problem=error)
