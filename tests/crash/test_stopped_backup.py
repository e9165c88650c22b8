"""A backup that stands still (SIGSTOP, a dead disk) or is released by hand holds nothing up.

A real backup of a running cluster is stopped at a known point: right before it would record a step.
The guard's deadlines are short here.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path

import psycopg
import pytest

from splitmirror import config
from splitmirror.backup import backup
from splitmirror.config import Config
from splitmirror.demo.lab import Disk, Lab, configuration, lab_at
from splitmirror.demo.subjects import PostgreSQL
from splitmirror.model import Mode
from splitmirror.recover import recover, release

pytestmark = [pytest.mark.crash, pytest.mark.timeout(120)]

DISKS = (
    Disk(name="data", fstype="ext4", size=160 << 20),
    Disk(name="wal", fstype="xfs", size=320 << 20),
)
DEADLINE_S = 3.0


@pytest.fixture(scope="module")
def cluster() -> Iterator[tuple[Lab, PostgreSQL]]:
    with tempfile.TemporaryDirectory(dir="/var/tmp", prefix="sm-stop-") as directory:
        Path(directory).chmod(0o711)
        with lab_at(Path(directory) / "lab", DISKS) as lab:
            subject = PostgreSQL(lab)
            subject.create()
            with subject.running():
                subject.fill(4 << 20)
                yield lab, subject


def configured(lab: Lab, subject: PostgreSQL, mode: Mode) -> Config:
    table = {"mode": str(mode), "freeze_deadline_s": DEADLINE_S, "quiesce_deadline_s": DEADLINE_S}
    lab.config_path.write_text(configuration(lab, subject.table(), table))
    return config.load(lab.config_path)


def stopped_in(phase: str, loaded: Path) -> subprocess.Popen[str]:
    """A backup that has stopped itself when that phase begins."""
    code = (
        "import os, signal, sys; from pathlib import Path; from splitmirror import config\n"
        "from splitmirror.backup import backup; from splitmirror.journal import Journal\n"
        "record = Journal.record\n"
        "def stopping(journal, kind, **facts):\n"
        "    if (kind, facts.get('name')) == ('phase begins', sys.argv[2]):\n"
        "        print('stopping', flush=True); os.kill(os.getpid(), signal.SIGSTOP)\n"
        "    record(journal, kind, **facts)\n"
        "Journal.record = stopping\n"
        "backup(config.load(Path(sys.argv[1])))\n"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", code, str(loaded), phase],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "stopping\n", process.communicate()[1]
    return process


def seconds_until_writers_go_on(lab: Lab, subject: PostgreSQL) -> float:
    """Write to both filesystems and commit to the database; how long that was held up."""
    began_s = time.monotonic()
    for disk in lab.disks:
        probe = lab.mountpoint(disk.name) / "probe"
        probe.write_bytes(b"written")
        with probe.open("rb") as file:
            os.fsync(file.fileno())
    with psycopg.connect(subject.dsn) as connection:
        connection.execute("INSERT INTO first VALUES ('probe', 1, '')")
    return time.monotonic() - began_s


def no_backup_session(subject: PostgreSQL) -> bool:
    query = "SELECT count(*) FROM pg_stat_activity WHERE application_name = 'splitmirror'"
    with psycopg.connect(subject.dsn) as connection:
        sessions = connection.execute(query).fetchone()
        slots = connection.execute("SELECT count(*) FROM pg_replication_slots").fetchone()
    return sessions == (0,) and slots == (0,)


def within(limit_s: float, holds: Callable[[], bool]) -> bool:
    until_s = time.monotonic() + limit_s
    while time.monotonic() < until_s:
        if holds():
            return True
        time.sleep(0.05)
    return False


@pytest.mark.parametrize(
    ("mode", "phase"),
    [(Mode.FREEZE, "prepare"), (Mode.FREEZE, "check"), (Mode.HOT, "prepare"), (Mode.HOT, "check")],
)
def test_a_stopped_backup_holds_nothing_beyond_the_deadline_and_is_recovered(
    cluster: tuple[Lab, PostgreSQL], mode: Mode, phase: str
) -> None:
    lab, subject = cluster
    loaded = configured(lab, subject, mode)
    process = stopped_in(phase, lab.config_path)
    held_s = seconds_until_writers_go_on(lab, subject)
    assert held_s < DEADLINE_S + 2
    if mode is Mode.FREEZE:
        assert held_s > 0.2, "nothing was frozen: the test stopped it at the wrong place"
    assert process.wait(DEADLINE_S + 5) == -signal.SIGKILL
    assert within(5, lambda: no_backup_session(subject))
    (recovered,) = recover(loaded)
    assert recovered.finished is None
    with closing(loaded.open_mirror()) as mirror:
        assert mirror.state().split_id is None
    assert backup(loaded).complete


def test_release_by_hand_thaws_at_once_and_ends_the_backup(
    cluster: tuple[Lab, PostgreSQL],
) -> None:
    lab, subject = cluster
    loaded = configured(lab, subject, Mode.FREEZE)
    process = stopped_in("check", lab.config_path)
    began_s = time.monotonic()
    done = release(loaded.state, loaded.source)
    assert time.monotonic() - began_s < DEADLINE_S / 2, "the guard's deadline did it"
    assert any("thaw" in line for line in done)
    assert process.wait(5) == -signal.SIGKILL
    assert seconds_until_writers_go_on(lab, subject) < 1
    assert within(5, lambda: no_backup_session(subject))
    assert not any("thawed" in line for line in release(loaded.state, loaded.source))
    (recovered,) = recover(loaded)
    assert recovered.finished is None
