"""PostgreSQL's files by their names alone: what is kept, in which order, whose they are."""

from __future__ import annotations

import os
import random
from pathlib import Path

import pytest

from splitmirror.databases import Keep, Root, _pg_hold, _pg_preflight
from splitmirror.databases._pg_layout import (
    Places,
    RelationFile,
    certificates,
    layout,
    order,
    outside_files,
    relation_of,
)
from splitmirror.errors import DatabaseTooOld, HoldBroken
from splitmirror.model import Mode

VERSION = b"PG_15_202209061"


@pytest.fixture
def places(tmp_path: Path) -> Places:
    """A cluster's bare directories: a tablespace beside it, one inside it, pg_wal as a link."""
    data, space, wal = tmp_path / "data", tmp_path / "space", tmp_path / "wal"
    for path in (data / "pg_tblspc", data / "inner", space, wal):
        path.mkdir(parents=True)
    (data / "pg_wal").symlink_to(wal)
    (data / "pg_tblspc" / "16385").symlink_to(space)
    (data / "pg_tblspc" / "16400").symlink_to(data / "inner")
    return Places(data=data, version_directory=VERSION)


def plain(places: Places) -> Places:
    (places.data / "pg_wal").unlink()
    (places.data / "pg_wal").mkdir()
    return places


def test_tablespaces_and_a_linked_pg_wal_are_roots_of_their_own(places: Places) -> None:
    names = [root.name for root in layout(places, Mode.FREEZE).roots]
    assert names == [b"data", b"tblspc/16385", b"wal"]


def test_in_hot_mode_a_linked_pg_wal_is_a_bare_directory_that_may_be_off_the_mirror(
    places: Places,
) -> None:
    hot = layout(places, Mode.HOT)
    assert [root.name for root in hot.roots] == [b"data", b"tblspc/16385"]
    wal = (places.data / "pg_wal").readlink()
    assert hot.apart == hot.bare == (Root(name=b"wal", path=os.fsencode(wal)),)
    (wal / "archive_status").mkdir()
    assert [root.name for root in layout(places, Mode.HOT).bare] == [b"wal", b"wal/archive_status"]
    assert layout(places, Mode.HOT).apart == hot.apart
    assert hot.keep(b"data/pg_wal") is Keep.KEEP  # the link itself


def test_in_hot_mode_a_mounted_pg_wal_is_a_bare_directory_too(
    places: Places, monkeypatch: pytest.MonkeyPatch
) -> None:
    wal = plain(places).data / "pg_wal"
    monkeypatch.setattr(Path, "is_mount", lambda path: path == wal)
    hot, freeze = layout(places, Mode.HOT), layout(places, Mode.FREEZE)
    assert hot.bare == (Root(name=b"data/pg_wal", path=os.fsencode(wal)),)
    assert hot.keep(b"data/pg_wal") is Keep.LEAVE
    assert freeze.keep(b"data/pg_wal") is Keep.KEEP
    assert freeze.bare == ()


def test_a_tablespace_inside_the_data_directory_is_not_stored_twice(places: Places) -> None:
    assert b"tblspc/16400" not in [root.name for root in layout(places, Mode.HOT).roots]
    assert places.tablespaces_inside() == {16400: places.data / "inner"}


@pytest.mark.parametrize(
    "name",
    [
        b"data/postmaster.pid",
        b"data/postmaster.opts",
        b"data/backup_label",
        b"data/tablespace_map",
        b"data/backup_label.old",
        b"data/global/pg_internal.init",
        b"data/base/5/pg_internal.init.4711",
        b"data/base/pgsql_tmp",
        b"data/base/pgsql_tmp/pgsql_tmp4711.0",
        b"data/base/5/t3_16400",
        b"data/base/5/t3_16400_fsm.1",
        b"tblspc/16385/PG_14_202107181",
        b"tblspc/16385/lost+found",
        b"data/lost+found",
    ],
)
def test_left_out(places: Places, name: bytes) -> None:
    for mode in Mode:
        assert layout(places, mode).keep(name) is Keep.LEAVE


@pytest.mark.parametrize(
    "name",
    [
        b"data",
        b"data/PG_VERSION",
        b"data/base/5/1259",
        b"data/base/5/16400_init",
        b"data/global/pg_control",
        b"data/pg_xact/0000",
        b"data/base/t3_16400",  # not in a database's directory: no temporary relation
        b"data/base/5/backup_label",
        b"data/pg_tblspc/16385",
        b"tblspc/16385",
        b"tblspc/16385/PG_15_202209061",
        b"tblspc/16385/PG_15_202209061/5/16401.2",
        b"data/postgresql.auto.conf",
    ],
)
def test_kept(places: Places, name: bytes) -> None:
    for mode in Mode:
        assert layout(places, mode).keep(name) is Keep.KEEP


@pytest.mark.parametrize(
    "name",
    ["pg_dynshmem", "pg_notify", "pg_replslot", "pg_serial", "pg_snapshots", "pg_stat_tmp"],
)
def test_emptied_directories_are_kept_without_contents(places: Places, name: str) -> None:
    assert layout(places, Mode.FREEZE).keep(b"data/" + name.encode()) is Keep.EMPTY


@pytest.mark.parametrize("linked", [True, False])
def test_the_wal_on_the_leg_belongs_to_the_set_in_freeze_mode_only(
    places: Places, linked: bool
) -> None:
    wal = b"wal" if linked else b"data/pg_wal"
    places = places if linked else plain(places)
    segment = wal + b"/000000010000000000000001"
    hot, freeze = layout(places, Mode.HOT), layout(places, Mode.FREEZE)
    assert freeze.keep(wal) is Keep.KEEP
    assert hot.keep(wal) is (Keep.LEAVE if linked else Keep.KEEP)
    assert (hot.keep(segment), freeze.keep(segment)) == (Keep.LEAVE, Keep.KEEP)
    assert hot.keep(wal + b"/archive_status") is Keep.EMPTY
    assert freeze.keep(wal + b"/archive_status/x.ready") is Keep.KEEP
    assert freeze.keep(wal + b"/xlogtemp.4711") is Keep.LEAVE


def test_the_order_is_by_tablespace_database_relation_fork_and_segment_as_numbers() -> None:
    wanted = [
        b"data",
        b"data/PG_VERSION",
        b"data/base",
        b"data/base/5",
        b"data/base/5/999",
        b"data/base/5/1259",
        b"data/base/5/1259.2",
        b"data/base/5/1259.10",
        b"data/base/5/1259_fsm",
        b"data/base/5/1259_fsm.1",
        b"data/base/5/1259_vm",
        b"data/base/5/PG_VERSION",
        b"data/base/16384",
        b"data/base/16384/112",
        b"data/global",
        b"data/pg_xact",
        b"data/pg_xact/0009",
        b"data/pg_xact/000A",
        b"data/pg_xact/0010",
        b"tblspc/999",
        b"tblspc/16385",
        b"tblspc/16385/PG_15_202209061",
        b"wal",
        b"wal/000000010000000000000009",
        b"wal/00000001000000000000000A",
        b"wal/000000010000000000000010",
        b"outside/etc/postgresql.conf",
        b"data/global/pg_control",
    ]
    mixed = random.Random(7).sample(wanted, len(wanted))
    assert sorted(mixed, key=order) == wanted


def test_a_file_tells_whose_it_is() -> None:
    assert relation_of(b"data/base/5/1259_fsm.1") == RelationFile(1663, 5, 1259)
    assert relation_of(b"data/global/1262") == RelationFile(1664, 0, 1262)
    assert relation_of(b"tblspc/16385/PG_15_202209061/5/16401") == RelationFile(16385, 5, 16401)
    assert relation_of(b"data/pg_xact/0000") is None
    assert relation_of(b"data/base/5/PG_VERSION") is None


def test_configuration_off_the_data_directory_is_found_through_includes(tmp_path: Path) -> None:
    data, etc = tmp_path / "data", tmp_path / "etc"
    (etc / "conf.d").mkdir(parents=True)
    data.mkdir()
    main, more, hba = etc / "postgresql.conf", etc / "more.conf", data / "pg_hba.conf"
    main.write_text(
        "include_dir 'conf.d'\n#include = 'not.conf'\ninclude_if_exists='gone.conf'\n"
        "  include = more.conf # and itself\n"
    )
    more.write_text("include 'more.conf'\n")
    for path in (hba, etc / "not.conf", etc / "conf.d/a.conf", etc / "conf.d/b.txt"):
        path.write_text("")
    found = outside_files({"config_file": str(main), "hba_file": str(hba)}, data)
    assert set(found) == {main, more, etc / "conf.d/a.conf"}


def test_certificates_and_keys_off_the_data_directory_belong_to_it_by_their_real_places(
    tmp_path: Path,
) -> None:
    """A link, as certbot makes them, is not replaced by a restore: what it leads to is stored."""
    data, ssl = tmp_path / "data", tmp_path / "ssl"
    for path in (data, ssl):
        path.mkdir()
    for path in (data / "server.crt", ssl / "key3", ssl / "root.crt"):
        path.touch()
    (ssl / "key").symlink_to("key3")
    settings = {
        "ssl_cert_file": "server.crt",  # of the data directory
        "ssl_key_file": str(ssl / "key"),
        "ssl_ca_file": "../ssl/root.crt",
        "ssl_crl_file": str(ssl / "gone"),
        "ssl_dh_params_file": "",
    }
    assert outside_files(settings, data) == (ssl / "key3", ssl / "root.crt")
    assert certificates(settings, data) == {
        "ssl_cert_file": data / "server.crt",
        "ssl_key_file": ssl / "key3",
        "ssl_ca_file": ssl / "root.crt",
    }


def test_debians_files_beside_its_configuration_belong_to_it(tmp_path: Path) -> None:
    data, etc = tmp_path / "data", tmp_path / "etc/postgresql/15/main"
    etc.mkdir(parents=True)
    main = etc / "postgresql.conf"
    for name in ("postgresql.conf", "environment", "pg_ctl.conf", "other"):
        (etc / name).touch()
    settings = {"config_file": str(main)}
    assert outside_files(settings, data) == (main,)  # else /etc/environment might be meant
    (etc / "start.conf").touch()
    debian = {etc / name for name in ("start.conf", "environment", "pg_ctl.conf")}
    assert set(outside_files(settings, data)) == {main} | debian


LABEL = "START WAL LOCATION: 1/FE000028 (file 0000000300000001000000FE)\nCHECKPOINT LOCATION: x\n"


def test_the_segments_of_the_window_go_over_the_end_of_a_log_file() -> None:
    assert _pg_hold.segments_of(LABEL, "2/100", 16 << 20) == [
        "0000000300000001000000FE",
        "0000000300000001000000FF",
        "000000030000000200000000",
    ]


def test_a_stop_on_a_segment_boundary_needs_no_further_segment() -> None:
    assert _pg_hold.segments_of(LABEL, "1/FF000000", 16 << 20) == ["0000000300000001000000FE"]


def test_a_label_without_a_start_is_refused() -> None:
    with pytest.raises(HoldBroken):
        _pg_hold.segments_of("", "1/FF000000", 16 << 20)


@pytest.mark.parametrize(("number", "too_old"), [(120022, True), (90624, True), (130000, False)])
def test_servers_before_13_are_too_old(number: int, too_old: bool) -> None:
    problem = _pg_preflight.version(number).problem
    assert isinstance(problem, DatabaseTooOld) if too_old else problem is None
