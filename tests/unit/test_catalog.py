"""The catalogue: what was recorded comes back, whole or not at all, and is found."""

from __future__ import annotations

import dataclasses
import sqlite3
import tracemalloc
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime, timedelta, timezone
from pathlib import Path
from types import MappingProxyType

import pytest
from hypothesis import given
from hypothesis import strategies as st
from sqlalchemy import Connection, create_engine, text
from tests.unit import made_sets

from splitmirror.archive.manifest import MemberRecord, PartRecord
from splitmirror.catalog import Catalog, Located, looking
from splitmirror.catalog.patterns import Pattern, after
from splitmirror.catalog.schema import STEPS, migrate, version_of
from splitmirror.errors import CatalogError, NoSuchSet
from splitmirror.model import (
    Attributes,
    BackupSet,
    Kind,
    MapCounts,
    MediaPosition,
    Mode,
    Origin,
    Phase,
)
from splitmirror.stream.member import Piece

STARTED = datetime(2024, 5, 17, 3, 0, tzinfo=timezone(timedelta(hours=2)))


def a_set(set_id: str = "orders-20240517T010000Z-a1b2", **changed: object) -> BackupSet:
    """One with something in every field."""
    full = made_sets.a_set(
        set_id,
        database="postgresql",
        mode=Mode.HOT,
        mirror="lvm",
        medium="virtualtape",
        started=STARTED,
        ended=STARTED + timedelta(minutes=3),
        files=3,
        stored_bytes=12288,
        write_pause_s=0.031,
        quiesce_window_s=1.25,
        phases=(
            Phase(name="map", began_s=0.5, seconds=2.0),
            Phase(name="split", began_s=3.0, seconds=0.01),
        ),
        maps=MapCounts(early=3, renewed=1, new=1, gone=0),
        watch="armed",
        trees=((b"data", b"/srv/p\xffg/data"), (b"wal", b"/srv/wal")),
        facts={"version": "15.6", "where": "dé"},
    )
    return dataclasses.replace(full, **changed)  # type: ignore[arg-type]


PARTS = [
    PartRecord(
        set_id=a_set().set_id,
        number=number,
        members=7,
        stored=1 << 29,
        length=1 << 30,
        block_size=256 << 10,
        manifest=(1 << 30) - 4096,
        digest=bytes([number]) * 32,
        position=MediaPosition(volume="SM0001", tape_file=3 * number, object=7000 * number),
    )
    for number in (1, 2)
]


def member(
    name: bytes,
    offset: int,
    part: int = 1,
    *,
    kind: Kind = Kind.FILE,
    size: int = 8192,
    of_file: Mapping[str, object] = MappingProxyType({}),
    **changed: object,
) -> Located:
    values = {"mode": 0o600, "uid": 1, "gid": 2, "mtime_ns": 17, "size": size, **of_file}
    record = MemberRecord(
        name=name,
        offset=offset,
        size=size,
        stored=size // 2,
        blake3=b"h" * 32 if size else b"",
        attributes=Attributes(kind=kind, **values),  # type: ignore[arg-type]
    )
    return Located(part, dataclasses.replace(record, **changed))  # type: ignore[arg-type]


XATTRS = ((b"user.a", b""), (b"user.b", b"\0\xff" * 40))
MEMBERS = [
    member(b"data", 0, kind=Kind.DIRECTORY, size=0, of_file={"xattrs": XATTRS}),
    member(b"data/base/5/1259", 512, title="pg_class", of_file={"mtime_ns": -1}, map=b"m" * 32),
    member(b"data/base/5/1259_fsm", 5120),
    member(b"data/base/50", 9216),
    member(b"data/link", 13312, kind=Kind.SYMLINK, size=0, of_file={"link": b"/\xfe"}),
    member(b"data/null", 14336, kind=Kind.CHARDEV, size=0, of_file={"rdev": 259}),
    member(b"data/big", 20480, piece=Piece(number=1, count=2, offset=0), of_file={"size": 9000}),
    member(b"data/big", 0, 2, piece=Piece(number=2, count=2, offset=8192), size=808),
    member(b"data/\xff[1]*", 512, 2),
    member(b"outside/etc/hba", 1024, 2, origin=Origin.PRIMARY),
]
BIG = [row for row in MEMBERS if row.record.piece]


@pytest.fixture
def catalog(tmp_path: Path) -> Iterator[Catalog]:
    with Catalog.open(tmp_path / "state/catalog.db") as catalog:
        yield catalog


def test_a_set_comes_back_as_it_was_recorded_also_after_reopening(
    catalog: Catalog, tmp_path: Path
) -> None:
    catalog.record(a_set(), PARTS, MEMBERS)
    catalog.close()
    with Catalog.open(tmp_path / "state/catalog.db") as again:
        assert again.sets() == [a_set()]
        assert again.parts(a_set().set_id) == PARTS
        assert list(again.members(a_set().set_id)) == MEMBERS
        assert [volume.serial for volume in again.volumes()] == ["SM0001"]


def test_recording_a_set_twice_keeps_one(catalog: Catalog) -> None:
    catalog.record(a_set(complete=False, ended=None), PARTS[:1], MEMBERS[:2])
    assert catalog.get(a_set().set_id).complete is False
    catalog.record(a_set(), PARTS, MEMBERS)
    assert catalog.sets() == [a_set()]
    assert list(catalog.members(a_set().set_id)) == MEMBERS


def test_a_set_is_amended_without_its_members(catalog: Catalog) -> None:
    catalog.record(a_set(ended=None), PARTS, MEMBERS)
    phases = (*a_set().phases, Phase(name="cleanup", began_s=9.0, seconds=1.0))
    catalog.amend(a_set(phases=phases))
    assert catalog.sets() == [a_set(phases=phases)]
    assert list(catalog.members(a_set().set_id)) == MEMBERS
    with pytest.raises(NoSuchSet):
        catalog.amend(a_set("never recorded"))


def test_a_recording_that_breaks_off_leaves_what_was_there(catalog: Catalog) -> None:
    catalog.record(a_set(), PARTS, MEMBERS)

    def breaking() -> Iterator[Located]:
        yield MEMBERS[0]
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        catalog.record(a_set(files=99), [], breaking())
    assert catalog.sets() == [a_set()]
    assert list(catalog.members(a_set().set_id)) == MEMBERS


def test_a_second_writer_waits_and_a_reader_does_not(catalog: Catalog, tmp_path: Path) -> None:
    catalog.record(a_set(), PARTS, MEMBERS)

    def meanwhile() -> Iterator[Located]:
        with sqlite3.connect(tmp_path / "state/catalog.db", timeout=0) as other:
            assert other.execute("select count(*) from members").fetchone() == (len(MEMBERS),)
            with pytest.raises(sqlite3.OperationalError, match="locked"):
                other.execute("begin immediate")
        yield MEMBERS[0]

    catalog.record(a_set("other-1"), [], meanwhile())
    assert len(catalog.sets()) == 2


def test_sets_are_listed_by_time_and_by_source(catalog: Catalog) -> None:
    later = a_set("b", source="users", started=STARTED + timedelta(days=1))
    utc = a_set("c", started=(STARTED + timedelta(hours=1)).astimezone(UTC))
    for record in (later, a_set("a"), utc):
        catalog.record(record, [], [])
    assert [known.set_id for known in catalog.sets()] == ["a", "c", "b"]
    assert [known.set_id for known in catalog.sets("users")] == ["b"]


def test_a_set_is_found_by_id_by_unique_prefix_and_as_the_latest_complete(
    catalog: Catalog,
) -> None:
    catalog.record(a_set("orders-1"), [], [])
    catalog.record(a_set("orders-12", started=STARTED + timedelta(days=1)), [], [])
    newest = a_set("users-1", complete=False, started=STARTED + timedelta(days=2))
    catalog.record(newest, [], [])
    assert catalog.get("orders-1").set_id == "orders-1"
    assert catalog.get("us").set_id == "users-1"
    assert catalog.get("latest").set_id == "orders-12"


def test_a_set_that_is_not_there_is_told_with_the_nearest(catalog: Catalog) -> None:
    catalog.record(a_set("orders-1"), [], [])
    catalog.record(a_set("orders-2"), [], [])
    with pytest.raises(NoSuchSet, match="2 sets begin with 'orders'") as caught:
        catalog.get("orders")
    assert caught.value.facts["candidates"] == ("orders-1", "orders-2")
    with pytest.raises(NoSuchSet) as caught:
        catalog.get("order-1")
    assert "orders-1" in caught.value.hint
    with pytest.raises(NoSuchSet, match="no complete set"):
        catalog.forget("orders-1")
        catalog.forget("orders-2")
        catalog.get("latest")


@pytest.mark.parametrize(
    ("patterns", "found"),
    [
        ([b"data/base/5"], [b"data/base/5/1259", b"data/base/5/1259_fsm"]),
        ([b"data/base/5/"], [b"data/base/5/1259", b"data/base/5/1259_fsm"]),
        ([b"data/base/5/1259"], [b"data/base/5/1259"]),
        ([b"data/base/5/1259*"], [b"data/base/5/1259", b"data/base/5/1259_fsm"]),
        ([b"data/*/5?"], [b"data/base/50"]),
        ([b"*/big"], [b"data/big", b"data/big"]),
        ([b"**/1259"], [b"data/base/5/1259"]),
        ([b"**/hba", b"data/link"], [b"data/link", b"outside/etc/hba"]),
        ([b"data/\xff[1]*"], [b"data/\xff[1]*"]),
        ([b"outside/[!a-d]??/*"], [b"outside/etc/hba"]),
        ([b"dat"], []),
        ([b"*"], [row.record.name for row in MEMBERS]),
    ],
)
def test_patterns_find_names_subtrees_and_globs(
    catalog: Catalog, patterns: list[bytes], found: list[bytes]
) -> None:
    catalog.record(a_set(), PARTS, MEMBERS)
    assert [row.record.name for row in catalog.members(a_set().set_id, patterns)] == found


def test_members_come_in_the_order_of_the_medium_or_by_name(catalog: Catalog) -> None:
    catalog.record(a_set(), PARTS, reversed(MEMBERS))
    assert list(catalog.members(a_set().set_id)) == MEMBERS
    names = [row.record.name for row in catalog.members(a_set().set_id, by_name=True)]
    assert names == sorted(names)
    assert catalog.find(a_set().set_id, b"data/big") == BIG
    assert catalog.find(a_set().set_id, b"data/bi") == []
    assert catalog.kinds(a_set().set_id)[b"data/link"] is Kind.SYMLINK


def test_a_large_set_streams(catalog: Catalog) -> None:
    count = 30_000
    catalog.record(a_set(), PARTS, (member(b"data/%d" % i, i * 512) for i in range(count)))
    tracemalloc.start()
    assert sum(1 for _ in catalog.members(a_set().set_id)) == count
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 8 << 20, f"{peak} bytes for {count} members"


def test_a_missing_catalogue_says_how_to_get_it_back(tmp_path: Path) -> None:
    with pytest.raises(CatalogError) as caught:
        Catalog.open(tmp_path / "none.db", must_exist=True)
    assert "catalog rebuild" in caught.value.hint
    assert not (tmp_path / "none.db").exists()


def test_a_damaged_catalogue_says_how_to_get_it_back(tmp_path: Path) -> None:
    (tmp_path / "catalog.db").write_bytes(b"this is no database" * 100)
    with pytest.raises(CatalogError, match="not a database") as caught:
        Catalog.open(tmp_path / "catalog.db")
    assert "catalog rebuild" in caught.value.hint


def test_a_newer_catalogue_is_refused_and_left_alone(catalog: Catalog, tmp_path: Path) -> None:
    catalog.close()
    path = tmp_path / "state/catalog.db"
    with sqlite3.connect(path) as connection:
        connection.execute("update schema_version set version = 99")
    with pytest.raises(CatalogError, match="version 99"):
        Catalog.open(path)
    with sqlite3.connect(path) as connection:
        assert connection.execute("select version from schema_version").fetchall() == [(99,)]


def test_an_older_catalogue_is_brought_up_step_by_step() -> None:
    ran = []

    def step(number: int, connection: Connection) -> None:
        ran.append(number)
        connection.execute(text(f"create table made_by_{number} (x integer)"))

    newest = 1 + len(STEPS)
    steps = (*STEPS, *(lambda c, n=n: step(n, c) for n in (newest + 1, newest + 2)))
    with create_engine("sqlite://").begin() as connection:
        migrate(connection)
        assert version_of(connection) == newest == looking.VERSION
        migrate(connection, steps)
        migrate(connection, steps)
        assert version_of(connection) == newest + 2
    assert ran == [newest + 1, newest + 2]


def test_the_catalogue_survives_a_power_cut_by_its_settings(catalog: Catalog) -> None:
    with catalog._writing() as connection:
        settings = {
            name: connection.exec_driver_sql(f"pragma {name}").scalar_one()
            for name in ("journal_mode", "synchronous", "foreign_keys")
        }
    assert settings == {"journal_mode": "wal", "synchronous": 2, "foreign_keys": 1}


@given(st.binary(max_size=12), st.binary(max_size=6))
def test_what_begins_with_a_prefix_lies_in_its_range(prefix: bytes, rest: bytes) -> None:
    behind = after(prefix)
    assert behind is None or prefix <= prefix + rest < behind


NAMES = st.lists(
    st.binary(min_size=1, max_size=4).filter(lambda part: b"/" not in part), min_size=1
)


@given(NAMES, st.lists(st.sampled_from([b"a", b"*", b"**", b"?", b"[a-c]", b"[", b"x]"])))
def test_any_pattern_is_taken_and_finds_itself_and_what_is_below(
    name: list[bytes], more: list[bytes]
) -> None:
    joined = b"/".join([*name, *more])
    pattern = Pattern(joined)
    assert pattern.matches(joined) and pattern.matches(joined + b"/below/\n\xff")
    assert joined.startswith(pattern.prefix)
