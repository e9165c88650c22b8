"""Whatever is wrong is told by the command line: what, what to do, an exit code of its own, and
nothing is left behind."""

from __future__ import annotations

import json
import os
import shutil
import sqlite3
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from splitmirror import errors
from splitmirror.demo.lab import Disk, Lab, configuration, lab_at

pytestmark = [pytest.mark.real, pytest.mark.timeout(300)]

DISKS = (Disk(name="data", fstype="ext4", size=96 << 20),)
NOBODY = 65534


@pytest.fixture(scope="module")
def lab() -> Iterator[Lab]:
    with tempfile.TemporaryDirectory(dir="/var/tmp", prefix="sm-bad-") as directory:
        Path(directory).chmod(0o711)
        with lab_at(Path(directory) / "lab", DISKS) as made:
            with closing(sqlite3.connect(database(made), isolation_level=None)) as connection:
                connection.execute("PRAGMA journal_mode = WAL")
                connection.execute("CREATE TABLE t AS SELECT zeroblob(20000000)")
            (made.mountpoint("data") / "files").mkdir()
            yield made


def database(lab: Lab) -> Path:
    return lab.mountpoint("data") / "db.sqlite"


def good(lab: Lab) -> str:
    return configuration(lab, {"driver": "sqlite", "paths": [str(database(lab))]})


def command(lab: Lab, text: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    lab.config_path.write_text(text)
    lab.config_path.chmod(0o644)
    argv = [sys.executable, "-m", "splitmirror", *arguments, "-c", str(lab.config_path)]
    return subprocess.run(
        argv,
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )


def refused(
    lab: Lab,
    kind: type[errors.SplitmirrorError],
    says: str,
    text: str,
    *arguments: str,
) -> None:
    """The command fails with that error's exit code, in words with a hint, and leaves nothing."""
    before = loops(lab)
    done = command(lab, text, *arguments)
    assert done.returncode == kind.exit_code, done.stdout + done.stderr
    assert says in done.stderr
    assert "what to do: " in done.stderr
    assert "Traceback" not in done.stderr
    assert loops(lab) == before
    probe = lab.mountpoint("data") / "files" / "probe"
    probe.write_bytes(b"not frozen")
    with closing(sqlite3.connect(database(lab), timeout=0)) as connection, connection:
        connection.execute("UPDATE t SET rowid = rowid")


def loops(lab: Lab) -> list[str]:
    """The loop devices on files of the lab."""
    argv = ["losetup", "--list", "--noheadings", "--output", "NAME,BACK-FILE"]
    done = subprocess.run(argv, capture_output=True, text=True, check=True)
    return [line for line in done.stdout.splitlines() if str(lab.base) in line]


def test_an_unknown_key(lab: Lab) -> None:
    text = good(lab).replace("[backup]", '[backup]\nchek = "quiesced"')
    refused(lab, errors.ConfigError, "chek", text, "backup")


def test_no_configuration(lab: Lab) -> None:
    argv = [sys.executable, "-m", "splitmirror", "backup", "-c", "/nowhere.toml"]
    done = subprocess.run(argv, capture_output=True, text=True, check=False)
    assert done.returncode == errors.ConfigError.exit_code
    assert "splitmirror init" in done.stderr


def test_not_root(lab: Lab) -> None:
    lab.config_path.write_text(good(lab))
    code = (
        "import os, sys; from splitmirror.cli import main\n"
        f"os.geteuid = lambda: {NOBODY}\n"
        f"sys.argv[1:] = ['backup', '-c', '{lab.config_path}']; main()"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == errors.PrivilegeError.exit_code
    assert "needs root: freezing filesystems" in done.stderr
    assert "sudo" in done.stderr


def test_a_server_that_is_down(lab: Lab) -> None:
    text = configuration(lab, {"driver": "postgresql", "dsn": f"host={lab.base} user=postgres"})
    refused(lab, errors.DatabaseUnreachable, "cannot be reached", text, "backup")


def test_a_dsn_that_is_none(lab: Lab) -> None:
    text = configuration(lab, {"driver": "postgresql", "dsn": "hots=/run"})
    refused(lab, errors.DatabaseUnreachable, "hots", text, "backup")


def test_a_database_file_that_is_not_there(lab: Lab) -> None:
    text = configuration(lab, {"driver": "sqlite", "paths": ["/nowhere.sqlite"]})
    refused(lab, errors.DatabaseUnreachable, "/nowhere.sqlite", text, "backup")


def test_a_database_file_off_the_mirror(lab: Lab) -> None:
    off = lab.base / "off.sqlite"
    with closing(sqlite3.connect(off, isolation_level=None)) as connection:
        connection.execute("PRAGMA journal_mode = WAL")
        connection.execute("CREATE TABLE IF NOT EXISTS t (n)")
    text = configuration(lab, {"driver": "sqlite", "paths": [str(database(lab)), str(off)]})
    refused(lab, errors.NotOnMirror, str(off), text, "backup")


@pytest.mark.parametrize("what", ["state_dir", "catalog", "medium"])
def test_something_of_ours_on_a_filesystem_to_be_frozen(lab: Lab, what: str) -> None:
    inside = lab.mountpoint("data") / "files" / what
    text = {
        "state_dir": good(lab).replace(f"{lab.base}/state", str(inside)),
        "catalog": good(lab).replace("[database]", f'catalog = "{inside}"\n[database]'),
        "medium": good(lab).replace(str(lab.tape), f"{inside}.tap"),
    }[what]
    refused(lab, errors.WouldFreeze, str(inside), text, "backup")


def test_no_room_for_the_set_on_the_medium(lab: Lab) -> None:
    text = good(lab).replace("[medium]", '[medium]\ncapacity = "20MiB"')
    text = text.replace(str(lab.tape), str(lab.base / "media" / "small.tap"))
    refused(lab, errors.NoRoom, "left", text, "backup")


def test_a_tape_file_that_is_none(lab: Lab) -> None:
    other = lab.base / "media" / "other.tap"
    other.write_bytes(os.urandom(100_000))
    text = good(lab).replace(str(lab.tape), str(other))
    refused(lab, errors.WrongMedium, "other.tap", text, "backup")


def test_a_volume_of_another_name(lab: Lab) -> None:
    assert command(lab, good(lab), "backup").returncode == 0
    text = good(lab).replace("[database]", 'volume = "SM0002"\n[database]')
    refused(lab, errors.WrongMedium, "SM0001", text, "backup")


def test_a_damaged_volume(lab: Lab) -> None:
    assert command(lab, good(lab), "backup").returncode == 0
    damaged = lab.base / "media" / "damaged.tap"
    content = bytearray(lab.tape.read_bytes())
    content[4 + 80 + 4] ^= 0xFF  # the length word of the second record
    damaged.write_bytes(content)
    text = good(lab).replace(str(lab.tape), str(damaged))
    refused(lab, errors.MediumDamaged, "damaged", text, "backup")
    refused(lab, errors.MediumDamaged, "damaged", text, "verify")


def test_a_missing_catalogue(lab: Lab) -> None:
    text = good(lab).replace("[database]", f'catalog = "{lab.base}/state/none.sqlite"\n[database]')
    refused(lab, errors.CatalogError, "catalog rebuild", text, "list")


def test_a_set_and_a_file_that_do_not_exist(lab: Lab, tmp_path: Path) -> None:
    assert command(lab, good(lab), "backup").returncode == 0
    refused(lab, errors.NoSuchSet, "19700101", good(lab), "show", "19700101")
    argv = ("restore", "latest", "db/other.sqlite", "--to", str(tmp_path / "new"))
    refused(lab, errors.NoSuchFile, "db/other.sqlite", good(lab), *argv)


def test_a_restore_target_that_is_not_empty(lab: Lab, tmp_path: Path) -> None:
    assert command(lab, good(lab), "backup").returncode == 0
    (tmp_path / "here").write_text("mine")
    argv = ("restore", "latest", "--to", str(tmp_path))
    refused(lab, errors.TargetNotEmpty, str(tmp_path), good(lab), *argv)
    assert (tmp_path / "here").read_text() == "mine"


def test_restore_without_a_target_is_wrong_usage(lab: Lab) -> None:
    done = command(lab, good(lab), "restore", "latest")
    assert done.returncode == 2
    assert "--to" in done.stderr


def test_an_error_is_also_a_document_with_json(lab: Lab) -> None:
    done = command(lab, good(lab), "show", "19700101", "--json")
    document = json.loads(done.stdout.splitlines()[-1])["error"]
    assert document["exit_code"] == done.returncode == errors.NoSuchSet.exit_code
    assert document["hint"]


def test_doctor_finds_all_of_it_before_a_backup_does(lab: Lab) -> None:
    assert command(lab, good(lab), "doctor").returncode == 0
    off = good(lab).replace(str(database(lab)), str(lab.base / "off.sqlite"))
    done = command(lab, off, "doctor", "--json")
    document = json.loads(done.stdout)
    assert done.returncode != 0
    assert not document["ok"]
    levels = {finding["what"]: finding["level"] for finding in document["findings"]}
    assert "error" in levels.values()


def test_a_damaged_byte_is_found_by_verify_and_by_restore(lab: Lab, tmp_path: Path) -> None:
    flipped = lab.base / "media" / "flipped.tap"
    text = good(lab).replace(str(lab.tape), str(flipped))
    text = text.replace("[database]", f'catalog = "{lab.base}/state/flipped.sqlite"\n[database]')
    assert command(lab, text, "backup").returncode == 0
    with flipped.open("r+b") as file:
        file.seek(10_000_000)
        byte = file.read(1)
        file.seek(10_000_000)
        file.write(bytes([byte[0] ^ 1]))
    refused(lab, errors.VerifyFailed, "db.sqlite", text, "verify")
    argv = ("restore", "latest", "--to", str(tmp_path / "back"))
    refused(lab, errors.VerifyFailed, "db.sqlite", text, *argv)


def test_the_catalogue_is_rebuilt_from_the_tape_alone(lab: Lab) -> None:
    text = good(lab).replace(str(lab.tape), str(lab.base / "media" / "rebuilt.tap"))
    text = text.replace("[database]", f'catalog = "{lab.base}/state/rebuilt.sqlite"\n[database]')
    assert command(lab, text, "backup").returncode == 0
    before = json.loads(command(lab, text, "show", "latest", "--files", "--json").stdout)
    for path in (lab.base / "state").glob("rebuilt.sqlite*"):
        path.unlink()
    (lab.base / "media" / "rebuilt.tap.idx").unlink()
    assert command(lab, text, "catalog", "rebuild").returncode == 0
    after = json.loads(command(lab, text, "show", "latest", "--files", "--json").stdout)
    assert after["members"] == before["members"]
    assert len(after["members"]) >= 1
    assert shutil.which("tar")
