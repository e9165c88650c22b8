"""`init` proposes what it can see, as a configuration that loads, and changes nothing."""

from __future__ import annotations

import os
import pwd
import sqlite3
from contextlib import closing
from pathlib import Path

import pytest

from splitmirror import config
from splitmirror.config import Config
from splitmirror.errors import ConfigError
from splitmirror.init import propose, write_new
from splitmirror.units import parse_size


def cluster(directory: Path) -> Path:
    """What `init` looks at of a PostgreSQL data directory."""
    (directory / "pg_wal").mkdir(parents=True)
    (directory / "pg_tblspc").mkdir()
    (directory / "PG_VERSION").write_text("15\n")
    return directory


def loaded(tmp_path: Path, directory: Path) -> Config:
    path = tmp_path / "proposed.toml"
    write_new(path, propose(directory))
    return config.load(path)


def test_a_cluster_that_runs_is_asked_for_its_socket_and_port(tmp_path: Path) -> None:
    data = cluster(tmp_path / "15" / "main")
    (data / "postmaster.pid").write_text(f"1\n{data}\n1700000000\n5433\n/run/my socket\n\n0 0\n")
    proposed = loaded(tmp_path, data)
    owner = pwd.getpwuid(os.getuid()).pw_name
    assert proposed.database == {
        "driver": "postgresql",
        "dsn": f"host='/run/my socket' port=5433 user={owner} dbname=postgres",
        "os_user": owner,
    }
    assert proposed.source == "15-main"


def test_a_cluster_that_is_down_gets_a_guess_that_says_so(tmp_path: Path) -> None:
    text = propose(cluster(tmp_path / "main"))
    assert "host=/run/postgresql" in text
    assert "no server runs there" in text


def test_a_disk_is_proposed_by_what_lies_there_not_by_the_filesystem(tmp_path: Path) -> None:
    data = cluster(tmp_path / "main")
    (data / "big").write_bytes(bytes(1 << 20))
    (disk,) = loaded(tmp_path, data).mirror["disks"]
    assert parse_size(disk["size"]) == 1 << 30
    assert disk["name"] == "data"


def test_what_lies_on_one_filesystem_gets_one_disk(tmp_path: Path) -> None:
    data = cluster(tmp_path / "main")
    (tmp_path / "space").mkdir()
    (data / "pg_tblspc" / "16385").symlink_to(tmp_path / "space")
    assert len(loaded(tmp_path, data).mirror["disks"]) == 1


def test_what_lies_on_another_filesystem_gets_a_disk_of_its_own(tmp_path: Path) -> None:
    data = cluster(tmp_path / "main")
    (data / "pg_wal").rmdir()
    (data / "pg_wal").symlink_to("/dev/shm")
    assert [disk["name"] for disk in loaded(tmp_path, data).mirror["disks"]] == ["data", "wal"]
    comment, disk = propose(data).rsplit('name = "', 1)
    assert disk.startswith("wal") and "hot mode does without this disk" in comment
    assert comment.count("hot mode") == 1


def test_a_sqlite_file_is_known_by_its_first_bytes(tmp_path: Path) -> None:
    path = tmp_path / 'a "quoted" name.sqlite'
    with closing(sqlite3.connect(path)) as connection:
        connection.execute("CREATE TABLE t (n)")
    assert loaded(tmp_path, path).database == {"driver": "sqlite", "paths": [str(path)]}


def test_anything_else_is_a_directory_under_a_freeze(tmp_path: Path) -> None:
    (tmp_path / "files").mkdir()
    proposed = loaded(tmp_path, tmp_path / "files")
    assert proposed.database["driver"] == "none"
    assert proposed.backup.mode == "freeze"


def test_what_is_not_there_is_said(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="cannot be looked at") as caught:
        propose(tmp_path / "nowhere")
    assert "data directory" in caught.value.hint


def test_a_link_of_the_cluster_that_leads_nowhere_is_said(tmp_path: Path) -> None:
    data = cluster(tmp_path / "main")
    (data / "pg_tblspc" / "16385").symlink_to(tmp_path / "gone")
    with pytest.raises(ConfigError, match="gone"):
        propose(data)


def test_a_configuration_is_never_overwritten(tmp_path: Path) -> None:
    path = tmp_path / "there.toml"
    path.write_text("mine")
    with pytest.raises(ConfigError, match="exists already"):
        write_new(path, "other")
    assert path.read_text() == "mine"
