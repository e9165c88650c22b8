"""The process is killed before and after every journal record; `recover` puts everything right.

Each time: nothing stays frozen or locked, nothing is left over, a trusted split is carried to its
end and an untrusted one thrown away, and the next backup is good.
"""

from __future__ import annotations

import signal
import sqlite3
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from splitmirror import config, journal
from splitmirror.backup import backup
from splitmirror.config import Config
from splitmirror.demo.lab import Disk, Lab, configuration, lab_at
from splitmirror.demo.subjects import SQLite
from splitmirror.model import Mode
from splitmirror.recover import recover
from splitmirror.run import ended, unfinished
from splitmirror.verify import verify

pytestmark = [pytest.mark.crash, pytest.mark.timeout(900)]

DISKS = (
    Disk(name="data", fstype="ext4", size=64 << 20),
    Disk(name="wal", fstype="xfs", size=320 << 20),
)
MOST_RECORDS = 80


@pytest.fixture(scope="module")
def lab() -> Iterator[Lab]:
    with (
        tempfile.TemporaryDirectory(dir="/var/tmp", prefix="sm-crash-") as directory,
        lab_at(Path(directory) / "lab", DISKS) as made,
    ):
        yield made


def source(lab: Lab, mode: Mode, check: str) -> tuple[Config, SQLite]:
    subject = SQLite(lab, mode)
    if not subject.paths[0].exists():
        subject.create()
        subject.fill(4 << 20)
    table = {"mode": str(mode), "check": check, "part_size": "1536KiB", "block_size": "64KiB"}
    lab.config_path.write_text(configuration(lab, subject.table(), table))
    return config.load(lab.config_path), subject


def writes(subject: SQLite) -> None:
    """A writer commits to every database: none is locked, no filesystem frozen."""
    for path in subject.paths:
        with closing(sqlite3.connect(path, timeout=0)) as connection, connection:
            connection.execute("INSERT INTO first VALUES ('probe', 1, '')")


def killed_at(number: int, when: str, path: Path) -> bool:
    """Run a backup that kills itself there; False when it ended before it came so far."""
    program = Path(__file__).with_name("killed_backup.py")
    argv = [sys.executable, str(program), str(path), str(number), when]
    done = subprocess.run(argv, capture_output=True, text=True, check=False, timeout=120)
    if done.returncode == 0:
        return False
    assert done.returncode == -signal.SIGKILL, done.stderr
    return True


def nothing_of_the_run_is_left(lab: Lab, loaded: Config) -> None:
    assert unfinished(loaded.state, loaded.source) == []
    with closing(loaded.open_mirror()) as mirror:
        assert mirror.state().split_id is None
    held = subprocess.run(
        ["losetup", "--list", "--noheadings", "--output", "BACK-FILE"],
        capture_output=True, text=True, check=True,
    ).stdout  # fmt: skip
    assert ".mirror" not in held, "a loop device on the leg is left"


@pytest.mark.parametrize(("mode", "check"), [(Mode.HOT, "quiesced"), (Mode.FREEZE, "released")])
def test_a_backup_killed_at_any_record_is_put_right(lab: Lab, mode: Mode, check: str) -> None:
    loaded, subject = source(lab, mode, check)
    finished, thrown_away = sweep(lab, loaded, subject)
    assert thrown_away > 10
    assert finished > 6


def sweep(lab: Lab, loaded: Config, subject: SQLite) -> tuple[int, int]:
    """Kill at every record, both ways; how many runs were carried on, how many thrown away."""
    finished = thrown_away = 0
    for number in range(1, MOST_RECORDS):
        for when in ("before", "after"):
            if not killed_at(number, when, lab.config_path):
                assert number > 20, "the sweep ended before it reached the backup phase"
                return finished, thrown_away
            writes(subject)
            for run in recover(loaded):
                finished += run.finished is not None
                thrown_away += run.finished is None
                if run.finished is not None:
                    verify(loaded.open_medium(), run.set_id)
            nothing_of_the_run_is_left(lab, loaded)
        lab.tape.unlink(missing_ok=True)
        lab.tape.with_name(lab.tape.name + ".idx").unlink(missing_ok=True)
        good = backup(loaded)
        assert good.complete
        assert ended(journal.read(loaded.state / "runs" / good.set_id))
    raise AssertionError(f"a backup of more than {MOST_RECORDS} records")
