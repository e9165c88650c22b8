"""The demo: a whole backup and restore of a running database, in a scratch lab, checked.

Everything is the real thing made small: the lab's disks and mirror, the database and its writers,
the configuration file, the backup, the restore, the start of the restored copy. What it proves is
held against a ledger of acknowledged transactions that lies off the lab's disks.
"""

from __future__ import annotations

import os
import shutil
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass, replace
from pathlib import Path

from splitmirror import config, journal, preflight
from splitmirror.backup import backup, filesystems_of
from splitmirror.catalog import Catalog
from splitmirror.config import Config
from splitmirror.demo import subjects
from splitmirror.demo.below import Below, check_fits, data_fstype, kind
from splitmirror.demo.lab import Lab, configuration, data_and_wal, lab_at, leftovers
from splitmirror.demo.ledger import Verdict, acknowledged, judge
from splitmirror.drill import drill
from splitmirror.errors import MirrorError
from splitmirror.extents.trees import plan_trees
from splitmirror.mirrors import Mirror
from splitmirror.model import BackupSet, Check, Mode
from splitmirror.preflight import require_root, stop_at_first
from splitmirror.progress import Watch, unwatched
from splitmirror.system import filesystems
from splitmirror.verify import verify

FLOORS = 5  # bare splits whose median is the floor: a single one is noise
LEG_DEADLINE_S = 60.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """What to show."""

    database: str = "postgresql"
    mode: Mode = Mode.HOT
    check: Check = Check.QUIESCED
    size: int = 256 << 20
    directory: Path = Path("/var/tmp")  # a scratch place that is not memory
    mirror: str = "auto"  # see below.kind
    keep: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Restored:
    """What came back from the medium."""

    files: int
    bytes: int
    mismatches: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Shown:
    """What the demo saw. `ok`: nothing lost, torn, different or left over, all checks passed."""

    backup_set: BackupSet
    config_text: str
    pause_floor_s: float
    restore: Restored
    ledger: Verdict
    checks: tuple[str, ...]
    problems: tuple[str, ...]
    leftovers: tuple[str, ...] = ()
    kept: Path | None = None

    @property
    def ok(self) -> bool:
        clean = not (self.problems or self.leftovers or self.restore.mismatches)
        return clean and not (self.ledger.lost or self.ledger.torn) and self.ledger.restored > 0


Narrator = Callable[[str], None]  # tells what happens, a line a step


def run_demo(options: Options, tell: Narrator, watch: Watch = unwatched) -> Shown:
    """Make the lab, back up, restore, check, take the lab away, also on Ctrl-C."""
    require_root()
    below = kind(options.mirror)
    check_fits(below, options.database, options.mode)
    if options.database == "postgresql":
        subjects.check_postgres_user()
    base = Path(tempfile.mkdtemp(prefix="splitmirror-demo-", dir=options.directory))
    try:
        shown = _in_lab(base, options, below, tell, watch)
    finally:
        in_use = [what for what in leftovers(base) if not what.startswith("directory")]
        if in_use:
            tell(f"{base} is still in use: {'; '.join(in_use)}")
        elif not options.keep:
            shutil.rmtree(base)
    left = [what for what in leftovers(base) if not (options.keep and what.startswith("directory"))]
    return replace(shown, leftovers=tuple(left), kept=base if options.keep else None)


def _in_lab(base: Path, options: Options, below: Below, tell: Narrator, watch: Watch) -> Shown:
    fstype = data_fstype(below)
    tell(f"making a lab below {base}: two disks, {fstype} for data, xfs for the log")
    with ExitStack() as lab_stack:
        lab = lab_stack.enter_context(lab_at(base, data_and_wal(options.size, fstype), below))
        subject = _subject(lab, options)
        config_text = configuration(lab, subject.table(), _backup_table(options))
        lab.config_path.write_text(config_text)
        loaded = config.load(lab.config_path)
        subject.create()
        with closing(loaded.open_mirror()) as mirror:
            mirror.synchronize(watch("establish"))
        tell(f"filling a {options.database} database")
        with subject.running(), ExitStack() as load:
            subject.fill(options.size)
            for told in subject.writers():
                load.enter_context(subjects.writing(*told, lab.ledger))
            tell(f"backing up with {lab.config_path} while {len(subject.writers())} writers commit")
            floor_s = _pause_floor(loaded, watch)
            backup_set = backup(loaded, watch)
            load.close()
            tell("restoring to another place and starting the restored copy there")
            return _look_back(lab, loaded, backup_set, config_text, floor_s, watch)


def _subject(lab: Lab, options: Options) -> subjects.PostgreSQL | subjects.SQLite:
    if options.database == "postgresql":
        return subjects.PostgreSQL(lab)
    return subjects.SQLite(lab, options.mode)


def _backup_table(options: Options) -> dict[str, object]:
    return {"mode": str(options.mode), "check": str(options.check)}


def _pause_floor(loaded: Config, watch: Watch) -> float:
    """Seconds of a bare freeze, split and thaw of what a backup freezes, under load; a median."""
    measured = []
    with closing(loaded.open_mirror()) as mirror:
        mountpoints = frozen(loaded, mirror)
        for number in range(FLOORS):
            mirror.synchronize(watch("level"))
            split_id = f"floor-{number}"
            measured.append(_bare_split(mountpoints, mirror, split_id))
            mirror.leg(split_id, LEG_DEADLINE_S)
            mirror.rejoin(split_id)
    return statistics.median(measured)


def frozen(loaded: Config, mirror: Mirror) -> list[str]:
    """The mountpoints that a backup freezes; in hot mode the WAL's is not among them, and where the
    split must write to them there are none."""
    database = loaded.open_database()
    stop_at_first(database.preflight(loaded.backup.mode))
    layout = database.layout()
    trees = plan_trees(layout.roots, mirror.volumes(), layout.keep)
    to_freeze = preflight.frozen(mirror, filesystems_of(trees))
    return [filesystem.mountpoint for filesystem in to_freeze]


def _bare_split(mountpoints: Sequence[str], mirror: Mirror, split_id: str) -> float:
    with ExitStack() as undo, ExitStack() as thaw:
        fds = [filesystems.open_mountpoint(path) for path in mountpoints]
        for fd in fds:
            undo.callback(os.close, fd)
            filesystems.syncfs(fd)
        began_s = time.monotonic()
        for fd in fds:
            thaw.callback(filesystems.thaw, fd)  # first: Ctrl-C may come right behind the freeze
            filesystems.freeze(fd)
        mirror.split(split_id)
        thaw.close()
        return time.monotonic() - began_s


def _look_back(
    lab: Lab, loaded: Config, backup_set: BackupSet, config_text: str, floor_s: float, watch: Watch
) -> Shown:
    """Restore, start and check what was written, and hold it against the ledger."""
    noted = acknowledged(lab.ledger, consistent_s(loaded, backup_set.set_id))
    with Catalog.open(loaded.catalog_path) as catalog:
        verified = verify(loaded.open_supply(), backup_set.set_id, progress=watch("verify"))
        verified.require_sound()
        report = drill(
            loaded.open_supply(),
            catalog,
            backup_set.set_id,
            loaded.open_database(),
            scratch=lab.base,
            progress=watch("restore"),
            probe=lambda copy: subjects.entries(backup_set.database, copy.dsn),
        )
    assert report.probed is not None
    first, second = report.probed
    return Shown(
        backup_set=backup_set,
        config_text=config_text,
        pause_floor_s=floor_s,
        restore=Restored(files=report.files, bytes=report.bytes, mismatches=report.mismatches),
        ledger=judge(noted, first, second),
        checks=report.checks,
        problems=report.problems,
    )


def consistent_s(loaded: Config, set_id: str) -> float:
    """The monotonic time before which every acknowledged transaction must be in the set."""
    for record in journal.read(loaded.state / "runs" / set_id):
        if record.kind == "released":
            return float(record.facts["consistent_s"])
    raise MirrorError(f"the journal of {set_id} does not tell when its database was released")
