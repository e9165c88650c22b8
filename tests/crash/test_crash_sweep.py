"""The process is killed before and after every journal record; `recover` puts everything right.

Each time: nothing stays frozen or locked, nothing is left over, a trusted split is carried to its
end and an untrusted one thrown away, and the next backup is good.
"""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import pytest
from tests.crash.killed_backup import was_killed

from splitmirror import config, journal
from splitmirror.backup import backup
from splitmirror.config import Config
from splitmirror.demo.lab import Disk, Lab, configuration, lab_at
from splitmirror.demo.subjects import CONNECT, PostgreSQL, SQLite
from splitmirror.model import Mode
from splitmirror.recover import recover
from splitmirror.run import ended, unfinished
from splitmirror.system import loop
from splitmirror.verify import verify

pytestmark = [pytest.mark.crash, pytest.mark.timeout(900)]

DISKS = (
    Disk(name="data", fstype="ext4", size=160 << 20),
    Disk(name="wal", fstype="xfs", size=320 << 20),
)
MOST_RECORDS = 80
PHASES = ("synchronize", "map", "quiesce", "discover", "prepare", "split", "check", "release",
          "backup", "cleanup")  # fmt: skip


@pytest.fixture(scope="module")
def lab() -> Iterator[Lab]:
    with tempfile.TemporaryDirectory(dir="/var/tmp", prefix="sm-crash-") as directory:
        Path(directory).chmod(0o711)  # the server's user goes through it
        with lab_at(Path(directory) / "lab", DISKS) as made:
            yield made


@contextmanager
def running(lab: Lab, kind: str, mode: Mode) -> Iterator[PostgreSQL | SQLite]:
    """A small database in the lab, running; gone when the block is left."""
    subject = PostgreSQL(lab) if kind == "postgresql" else SQLite(lab, mode)
    try:
        subject.create()
        with subject.running():
            subject.fill(4 << 20)
            yield subject
    finally:  # one that failed must not spoil the next
        for disk in lab.disks:
            for path in lab.mountpoint(disk.name).iterdir():
                if path.name in ("pg", "pg_wal", "db"):
                    shutil.rmtree(path)


def configured(lab: Lab, subject: PostgreSQL | SQLite, mode: Mode, check: str) -> Config:
    part_size = "16MiB" if isinstance(subject, PostgreSQL) else "1536KiB"
    table = {"mode": str(mode), "check": check, "part_size": part_size, "block_size": "64KiB"}
    lab.config_path.write_text(configuration(lab, subject.table(), table))
    return config.load(lab.config_path)


def writes(subject: PostgreSQL | SQLite) -> None:
    """A writer commits to every database: none is locked or in backup mode, nothing is frozen."""
    for kind, dsn, _ in subject.writers():
        with closing(CONNECT[kind](dsn)) as connection:
            connection.execute("INSERT INTO first VALUES ('probe', 1, '')")
            connection.commit()
            if kind == "postgresql":
                slots = connection.execute("SELECT count(*) FROM pg_replication_slots")
                assert slots.fetchone() == (0,), "the backup's slot is left"


def nothing_of_the_run_is_left(lab: Lab, loaded: Config) -> None:
    assert unfinished(loaded.state, loaded.source) == []
    with closing(loaded.open_mirror()) as mirror:
        assert mirror.state().split_id is None
    for disk in lab.disks:
        assert loop.find(lab.image(disk.name, "mirror")) == [], "a loop device on the leg is left"


@pytest.mark.parametrize(
    ("kind", "mode", "check"),
    [
        ("sqlite", Mode.HOT, "quiesced"),
        ("sqlite", Mode.FREEZE, "released"),
        ("postgresql", Mode.HOT, "released"),
        ("postgresql", Mode.FREEZE, "quiesced"),
    ],
)
def test_a_backup_killed_at_any_record_is_put_right(
    lab: Lab, kind: str, mode: Mode, check: str
) -> None:
    with running(lab, kind, mode) as subject:
        finished, thrown_away = sweep(lab, configured(lab, subject, mode, check), subject)
    assert thrown_away > 10
    assert finished > 6


def sweep(lab: Lab, loaded: Config, subject: PostgreSQL | SQLite) -> tuple[int, int]:
    """Kill at every record, both ways; how many runs were carried on, how many thrown away."""
    finished = thrown_away = 0
    for number in range(1, MOST_RECORDS):
        for when in ("before", "after"):
            if not was_killed(lab.config_path, number, when):
                assert number > 20, "the sweep ended before it reached the backup phase"
                return finished, thrown_away
            for run in recover(loaded):
                finished += run.finished is not None
                thrown_away += run.finished is None
                if run.finished is not None:
                    verify(loaded.open_supply(), run.set_id).require_sound()
                    assert run.finished.write_pause_s > 0
                    names = [phase.name for phase in run.finished.phases]
                    assert len(names) == len(set(names))
                    # the writing itself has no end on record when it was cut off right behind it
                    assert set(PHASES) - set(names) <= {"backup"}
            writes(subject)
            nothing_of_the_run_is_left(lab, loaded)
        lab.tape.unlink(missing_ok=True)
        lab.tape.with_name(lab.tape.name + ".idx").unlink(missing_ok=True)
        good = backup(loaded)
        assert good.complete
        assert ended(journal.read(loaded.state / "runs" / good.set_id))
    raise AssertionError(f"a backup of more than {MOST_RECORDS} records")
