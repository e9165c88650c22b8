"""Every command as a person types it, on a small lab with a running PostgreSQL."""

from __future__ import annotations

import json
import shlex
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import psycopg
import pytest

from splitmirror import errors
from splitmirror.demo.lab import Disk, Lab, configuration, lab_at
from splitmirror.demo.subjects import PostgreSQL
from splitmirror.system import process, programs

pytestmark = [pytest.mark.real, pytest.mark.timeout(300)]

DISKS = (
    Disk(name="data", fstype="ext4", size=256 << 20),
    Disk(name="wal", fstype="xfs", size=512 << 20),
)
ROWS = 1000
KILLED_IN_ITS_BACKUP = """
import os, sys
from splitmirror.journal import Journal
real = Journal.record
def record(self, kind, **facts):
    real(self, kind, **facts)
    if kind == "phase begins" and facts["name"] == "backup":
        os.kill(os.getpid(), 9)
Journal.record = record
sys.argv[1:] = ["backup", "-c", sys.argv[1]]
from splitmirror.cli import main
main()
"""
KILLED_IN_ITS_DRILL = """
import os, sys
from pathlib import Path
from splitmirror.databases import _pg_copy
def check(self):
    pid = Path(self._copy.roots[b"data"], "postmaster.pid").read_text().split()[0]
    os.kill(int(pid), 19)  # a server that is stopped outlives us
    print(pid, flush=True)
    os.kill(os.getpid(), 9)
_pg_copy._Running.check = check
sys.argv[1:] = ["drill", "-c", sys.argv[1]]
from splitmirror.cli import main
main()
"""


@pytest.fixture(scope="module")
def subject() -> Iterator[PostgreSQL]:
    with tempfile.TemporaryDirectory(dir="/var/tmp", prefix="sm-commands-") as directory:
        Path(directory).chmod(0o711)
        with lab_at(Path(directory) / "lab", DISKS) as lab:
            made = PostgreSQL(lab)
            made.create()
            lab.config_path.write_text(configuration(lab, made.table()))
            with made.running():
                with psycopg.connect(made.dsn, autocommit=True) as connection:
                    connection.execute(
                        f"CREATE TABLE orders AS SELECT * FROM generate_series(1, {ROWS})"
                    )
                run(lab, "backup")
                yield made


@pytest.fixture
def lab(subject: PostgreSQL) -> Lab:
    return lab_of(subject)


def lab_of(subject: PostgreSQL) -> Lab:
    """The lab around the cluster's socket directory."""
    return Lab(base=subject.socket_dir.parent, disks=DISKS)


def command(lab: Lab, *arguments: str) -> subprocess.CompletedProcess[str]:
    argv = [sys.executable, "-m", "splitmirror", *arguments, "-c", str(lab.config_path)]
    return subprocess.run(argv, capture_output=True, text=True, check=False, timeout=120)


def run(lab: Lab, *arguments: str) -> str:
    """What a command that succeeds prints."""
    done = command(lab, *arguments)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def run_json(lab: Lab, *arguments: str) -> dict[str, Any]:
    """The one document that a command gives with --json."""
    (line,) = run(lab, *arguments, "--json").splitlines()
    document: dict[str, Any] = json.loads(line)
    return document


def refused(lab: Lab, kind: type[errors.SplitmirrorError], *arguments: str) -> str:
    """What a command says that ends with that error."""
    done = command(lab, *arguments)
    assert done.returncode == kind.exit_code, done.stdout + done.stderr
    assert "what to do: " in done.stdout + done.stderr
    return done.stdout + done.stderr


def rows(dsn: str) -> int:
    with closing(psycopg.connect(dsn)) as connection:
        row = connection.execute("SELECT count(*) FROM orders").fetchone()
        assert row is not None
        return int(row[0])


def as_postgres(line: str) -> None:
    """A command line of a shell, as the server's user."""
    programs.run(["sh", "-c", line], timeout_s=60, user="postgres")


def table_file(subject: PostgreSQL) -> str:
    """The name in the set of the table's first segment."""
    with closing(psycopg.connect(subject.dsn)) as connection:
        row = connection.execute("SELECT pg_relation_filepath('orders')").fetchone()
    assert row is not None
    return f"data/{row[0]}"


def test_init_proposes_the_server_that_runs(subject: PostgreSQL, lab: Lab) -> None:
    argv = [sys.executable, "-m", "splitmirror", "init", str(subject.data)]
    said = subprocess.run(argv, capture_output=True, text=True, check=True).stdout
    assert f"host={subject.socket_dir} port=5432 user=postgres" in said
    assert said.count("[[mirror.disks]]") == 2


def test_doctor_finds_nothing_and_then_what_is_wrong(subject: PostgreSQL, lab: Lab) -> None:
    assert "ready for a backup" in run(lab, "doctor")
    assert run_json(lab, "doctor")["ok"] is True
    good = lab.config_path.read_text()
    try:
        lab.config_path.write_text(good.replace(str(lab.tape), f"{lab.base}/nowhere/x.tap"))
        assert "nowhere" in refused(lab, errors.NoSuchVolume, "doctor")
    finally:
        lab.config_path.write_text(good)


def test_a_set_is_listed_and_shown_with_its_files_and_tables(subject: PostgreSQL, lab: Lab) -> None:
    (made, *_) = run_json(lab, "list")["sets"]
    assert made["set_id"] in run(lab, "list")
    shown = run(lab, "show", made["set_id"])
    assert "write pause" in shown
    assert str(subject.data) in shown
    files = run(lab, "show", "latest", "--files")
    assert table_file(subject) in files
    assert "public.orders" in files
    members = run_json(lab, "show", "latest", table_file(subject))["members"]
    (member,) = members
    assert (member["name"], member["kind"]) == (table_file(subject), "file")
    assert len(member["blake3"]) == 64


def test_one_file_and_a_glob_come_back_elsewhere(
    subject: PostgreSQL, lab: Lab, tmp_path: Path
) -> None:
    name = table_file(subject)
    assert run_json(lab, "restore", "latest", name, "--to", str(tmp_path / "one"))["files"] == 1
    assert (tmp_path / "one" / name).stat().st_size > 0
    run(lab, "restore", "latest", "data/*.conf", "--to", str(tmp_path / "conf"))
    assert (tmp_path / "conf" / "data" / "postgresql.conf").exists()
    assert "is not empty" in refused(
        lab, errors.TargetNotEmpty, "restore", "latest", name, "--to", str(tmp_path / "one")
    )


def test_a_whole_restore_starts_by_the_line_that_is_printed(subject: PostgreSQL, lab: Lab) -> None:
    target = lab.base / "whole"
    start = run(lab, "restore", "latest", "--to", str(target)).splitlines()[-1]
    as_postgres(start)
    try:
        assert rows(f"{subject.dsn} port=5499") == ROWS
        assert rows(subject.dsn) == ROWS
    finally:
        stop = [shlex.split(start)[0], "stop", "-D", str(target / "data"), "-m", "immediate"]
        as_postgres(shlex.join(stop))


def test_in_place_only_with_the_server_stopped_and_then_it_starts(
    subject: PostgreSQL, lab: Lab
) -> None:
    assert "in use" in refused(lab, errors.Busy, "restore", "latest", "--in-place")
    with psycopg.connect(subject.dsn, autocommit=True) as connection:
        connection.execute("DELETE FROM orders")
    subject._ctl("stop", "-m", "fast")
    try:
        assert "ready to start" in run(lab, "restore", "latest", "--in-place")
    finally:
        subject._ctl("start", "-l", str(lab.base / "postgresql.log"))
    assert rows(subject.dsn) == ROWS


def test_verify_and_drill_tell_what_they_saw(lab: Lab) -> None:
    assert "all whole" in run(lab, "verify")
    assert run_json(lab, "verify")["damage"] == []
    assert "pg_amcheck" in run(lab, "drill")
    assert run_json(lab, "drill")["problems"] == []


def killed_in_its_drill(lab: Lab, place: Path) -> tuple[Path, int, int]:
    """What a killed drill leaves in `place`: its directory, and its server's pid and start."""
    argv = [sys.executable, "-c", KILLED_IN_ITS_DRILL, str(lab.config_path)]
    done = subprocess.run(argv, capture_output=True, text=True, check=False)
    assert done.returncode == -9, done.stderr
    pid = int(done.stdout)
    ticks = process.start_ticks(pid)
    assert ticks is not None
    (left,) = place.iterdir()
    return left, pid, ticks


def test_what_a_killed_drill_left_is_taken_away_by_recover_and_by_the_next_drill(
    lab: Lab, monkeypatch: pytest.MonkeyPatch
) -> None:
    place = lab.base / "drills"  # where the server's own user may go
    place.mkdir()
    monkeypatch.setenv("TMPDIR", str(place))
    left, pid, ticks = killed_in_its_drill(lab, place)
    assert f"took away {left}," in run(lab, "recover")
    assert not process.alive(pid, ticks)
    assert list(place.iterdir()) == []
    left, pid, ticks = killed_in_its_drill(lab, place)
    run(lab, "drill")
    assert not process.alive(pid, ticks)
    assert list(place.iterdir()) == []
    left, pid, ticks = killed_in_its_drill(lab, place)
    assert run_json(lab, "recover") == {"runs": [], "scratch": [str(left)]}


def test_a_rebuild_without_its_volume_leaves_no_catalogue(lab: Lab) -> None:
    catalog, kept = lab.base / "state" / "catalog.sqlite", lab.base / "kept.sqlite"
    before = run_json(lab, "list")["sets"]
    catalog.rename(kept)
    tape = lab.tape.rename(lab.base / "away.tap")
    try:
        refused(lab, errors.NoSuchVolume, "catalog", "rebuild")
        assert not catalog.exists()
    finally:
        tape.rename(lab.tape)
    refused(lab, errors.CatalogError, "list")
    rebuilt = run_json(lab, "catalog", "rebuild")["sets"]
    assert [found["set_id"] for found in rebuilt] == [found["set_id"] for found in before]


def test_the_volume_is_listed_verified_told_and_retired(lab: Lab) -> None:
    (volume,) = run_json(lab, "media", "list")["volumes"]
    (made, *_) = run_json(lab, "list")["sets"]
    assert (volume["serial"], volume["sets"][0]) == ("SM0001", made["set_id"])
    assert "all that is on it is whole" in run(lab, "media", "verify", "SM0001")
    assert f"the catalogue of the set {made['set_id']}: complete" in run(lab, "media", "dump")
    assert run_json(lab, "media", "scan")["missing"] == []
    run(lab, "media", "retire", "SM0001")
    assert "retired" in refused(lab, errors.VolumeKept, "backup")
    run(lab, "media", "retire", "SM0001", "--undo")


def test_a_volume_whose_sets_have_expired_is_written_anew(
    subject: PostgreSQL, lab: Lab, tmp_path: Path
) -> None:
    good = lab.config_path.read_text()
    pools = "\n[pools.nightly]\nkeep_sets = 1\n"
    other = good.replace(str(lab.tape), str(lab.base / "media" / "other.tap"))
    try:
        lab.config_path.write_text(good + pools)
        first = run_json(lab, "media", "scan", "--pool", "nightly")["volumes"][0]
        run(lab, "media", "release", "--all")  # what was rebuilt before is held
        assert first["pool"] == "nightly"
        assert "has not expired" in refused(lab, errors.VolumeKept, "media", "label", "SM0001")
        lab.config_path.write_text('volume = "SM0002"\n' + other + pools)
        run(lab, "media", "label", "SM0002", "--pool", "nightly")
        newest = run_json(lab, "backup")["set_id"]
        lab.config_path.write_text(good + pools)
        assert "may be written anew" in run(lab, "media", "list")
        run(lab, "media", "label", "SM0001", "--pool", "nightly")
        assert [found["set_id"] for found in run_json(lab, "list")["sets"]] == [newest]
        again = run_json(lab, "backup")["set_id"]
        run(lab, "restore", again, table_file(subject), "--to", str(tmp_path / "again"))
        lab.config_path.write_text('volume = "SM0002"\n' + other + pools)
        run(lab, "restore", newest, table_file(subject), "--to", str(tmp_path / "newest"))
    finally:
        lab.config_path.write_text(good)


def test_a_backup_that_was_cut_off_is_recovered_and_never_resynced_away(lab: Lab) -> None:
    argv = [sys.executable, "-c", KILLED_IN_ITS_BACKUP, str(lab.config_path)]
    assert subprocess.run(argv, check=False, capture_output=True).returncode == -9
    told = refused(lab, errors.NeedsRecovery, "doctor")
    assert "splitmirror recover" in told
    assert "resync" not in told
    refused(lab, errors.NeedsRecovery, "backup")
    refused(lab, errors.NeedsRecovery, "resync")
    run(lab, "release")
    (recovered,) = run_json(lab, "recover")["runs"]
    assert recovered["finished"]["complete"] is True
    assert recovered["set_id"] in run(lab, "list")
    assert run(lab, "recover") == "nothing to recover\n"
    assert run(lab, "release") == "nothing was held\n"
    run(lab, "backup")


def test_the_mirror_is_told_of_and_not_stopped_below_a_database(lab: Lab) -> None:
    assert run_json(lab, "resync")["level"] is True
    assert run(lab, "mirror", "status").startswith("attached, level")
    assert len(run_json(lab, "mirror", "start")["volumes"]) == len(DISKS)
    assert "umount" in refused(lab, errors.Busy, "mirror", "stop")
