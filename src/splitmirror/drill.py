"""The recipe: show that a set can be restored and its database started, and take it all away.

The whole set is restored to a scratch place, the database makes it ready and starts it walled off
from the original (databases.Database.start_copy), its own checks are run, it is stopped, and the
scratch place is removed: whatever happens, also on Ctrl-C. After kill -9 the next drill, or
`recover`, takes it away (`sweep`).
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from time import monotonic
from typing import Generic, TypeVar

from splitmirror.archive.clearing import needed, room
from splitmirror.catalog import Lookup
from splitmirror.databases import Database, RunningCopy
from splitmirror.errors import CopyFailed, NoRoom
from splitmirror.media.supply import ReadSupply
from splitmirror.model import BackupSet
from splitmirror.progress import Progress, silent
from splitmirror.restore import OUTSIDE, restore, roots_of
from splitmirror.system import scratch as scratch_directories
from splitmirror.units import show_size

T = TypeVar("T")

_PLACES = (Path("/var/tmp"), Path("/tmp"))  # hier(7); after TMPDIR
_PRIVATE_LEVELS = 3  # /etc/postgresql/15 is a server's own; /etc is everybody's


@dataclass(frozen=True, slots=True, kw_only=True)
class DrillReport(Generic[T]):
    """What came back, and what the running copy was found to be. `probed`: what the caller's probe
    made of it."""

    set_id: str
    files: int
    bytes: int
    mismatches: int
    restore_s: float
    check_s: float
    checks: tuple[str, ...]
    problems: tuple[str, ...]
    probed: T | None = None

    @property
    def passed(self) -> bool:
        return not self.problems and not self.mismatches

    def require_passed(self) -> None:
        """Raises CopyFailed, with this report as a fact, when the copy is not sound."""
        if not self.passed:
            raise CopyFailed(
                f"the restored copy of {self.set_id} is not sound:\n  "
                + "\n  ".join(self.problems),
                hint="Run 'splitmirror verify' on the set, and the same checks on the original: "
                "the damage may be there already.",
                report=self,
            )


def drill(
    supply: ReadSupply,
    catalog: Lookup,
    set_id: str,
    database: Database,
    *,
    scratch: Path | None = None,
    probe: Callable[[RunningCopy], T] | None = None,
    progress: Progress = silent,
) -> DrillReport[T]:
    """Restore a whole set below `scratch` (by default where there is room for it), start it, check
    it, let `probe` look at it, and remove it. The original and its files are not touched.

    Raises what `restore` raises (VerifyFailed: damage on the medium), NoRoom, CopyFailed when the
    copy does not start. What the checks find is in the report.
    """
    backup_set = catalog.get(set_id)
    began_s = monotonic()
    with _scratch(backup_set, scratch) as place:
        target = place / "set"
        restored = restore(
            supply, catalog, backup_set.set_id, (), target, database=database, progress=progress
        )
        restored_s = monotonic()
        roots = roots_of(catalog, backup_set, target)
        hidden = originals(catalog, backup_set)
        (place / "run").mkdir(mode=0o700)
        with database.start_copy(roots, backup_set.facts, hidden, place / "run") as copy:
            checked = copy.check()
            probed = None if probe is None else probe(copy)
    return DrillReport(
        set_id=backup_set.set_id,
        files=restored.files,
        bytes=restored.bytes,
        mismatches=len(restored.mismatches),
        restore_s=restored_s - began_s,
        check_s=monotonic() - restored_s,
        checks=checked.checks,
        problems=checked.problems,
        probed=probed,
    )


def originals(catalog: Lookup, backup_set: BackupSet) -> tuple[Path, ...]:
    """Every place that the copy must not see: the trees' original paths, configuration files off
    them, and the directories of these unless they are everybody's."""
    roots = roots_of(catalog, backup_set, None)
    outside = [path for name, path in roots.items() if name.startswith(OUTSIDE + b"/")]
    own = [path.parent for path in outside if len(path.parent.parts) > _PRIVATE_LEVELS]
    trees = [Path(os.fsdecode(path)) for _, path in backup_set.trees]
    return tuple(dict.fromkeys((*trees, *roots.values(), *own)))


def sweep(scratch: Path | None = None) -> list[Path]:
    """Take away what drills have left that were killed, in `scratch` or wherever a drill would go;
    a copy that still runs there is ended. Gives the directories. A drill that goes on is let be."""
    return scratch_directories.sweep(_places(scratch))


def _places(wanted: Path | None) -> tuple[Path, ...]:
    return (wanted,) if wanted is not None else (Path(tempfile.gettempdir()), *_PLACES)


def _scratch(backup_set: BackupSet, wanted: Path | None) -> AbstractContextManager[Path]:
    """A private directory with room for the set, gone in the end with all that is in it."""
    sweep(wanted)  # what a dead one left may be the room that is missing
    places = _places(wanted)
    place = next((place for place in places if _fits(place, backup_set)), None)
    if place is None:
        raise NoRoom(
            f"no room for a drill of {backup_set.set_id} "
            f"({show_size(backup_set.stored_bytes)}) in {', '.join(map(str, places))}",
            hint="Make room there, or set TMPDIR to a directory on a larger filesystem.",
        )
    return scratch_directories.scratch(place)


def _fits(place: Path, backup_set: BackupSet) -> bool:
    return place.is_dir() and room(place) >= needed(backup_set.stored_bytes, backup_set.files)
