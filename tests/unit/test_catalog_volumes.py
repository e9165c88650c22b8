"""What the catalogue knows of volumes: brought up from version 1, changed, written anew."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from tests.unit.test_catalog import MEMBERS, PARTS, STARTED, a_set

from splitmirror.archive.manifest import PartRecord
from splitmirror.catalog import Catalog, Lookup
from splitmirror.errors import NoSuchVolume, VolumeKept
from splitmirror.media.shelf import VolumeRecord, VolumeState
from splitmirror.model import MediaPosition, VolumeUse

FIRST_VERSION = Path(__file__).with_name("catalogue_v1.sql")  # as the first release wrote one
NOW = datetime(2024, 6, 1, tzinfo=UTC)
ANOTHER = VolumeRecord(
    serial="SM0009",
    medium="tape",
    pool="nightly",
    barcode="SM0009L8",
    state=VolumeState.FULL,
    held="the auditors want it",
    write_once=True,
    first_written=NOW - timedelta(days=3),
    last_written=NOW,
    bytes=1 << 40,
    stalls=2,
    recycled=7,
    recycling=NOW,
)


@pytest.fixture
def catalog(tmp_path: Path) -> Iterator[Catalog]:
    with Catalog.open(tmp_path / "catalog.db") as catalog:
        yield catalog


def on(*serials: str) -> list[PartRecord]:
    """A part on each of these volumes."""
    return [
        replace(
            PARTS[0],
            number=number,
            position=MediaPosition(volume=serial, tape_file=number, object=7000 * number),
        )
        for number, serial in enumerate(serials, 1)
    ]


# --- bringing up version 1


def of_version_1(path: Path) -> Path:
    with sqlite3.connect(path) as connection:
        connection.executescript(FIRST_VERSION.read_text())
    connection.close()
    return path


def shape(path: Path) -> dict[str, object]:
    """Every table's columns and keys and every index, as the database knows them."""
    with sqlite3.connect(path) as connection:
        names = connection.execute("SELECT name, type FROM sqlite_master").fetchall()
        found: dict[str, object] = {}
        for name, kind in names:
            about = "table_xinfo" if kind == "table" else "index_xinfo"
            found[name] = connection.execute(f"PRAGMA {about}({name})").fetchall()
            found[f"{name} keys"] = connection.execute(
                f"PRAGMA foreign_key_list({name})"
            ).fetchall()
    connection.close()
    return found


def test_a_catalogue_of_version_1_becomes_what_a_new_one_is(
    catalog: Catalog, tmp_path: Path
) -> None:
    old = of_version_1(tmp_path / "old.db")
    Catalog.open(old).close()
    assert shape(old) == shape(tmp_path / "catalog.db")


def test_what_a_catalogue_of_version_1_holds_is_kept_and_its_volumes_are_dated(
    tmp_path: Path,
) -> None:
    with Catalog.open(of_version_1(tmp_path / "old.db")) as catalog:
        first, second = catalog.sets()
        assert first == a_set()
        assert catalog.parts(first.set_id) == PARTS
        assert list(catalog.members(first.set_id)) == MEMBERS[:2]
        assert catalog.volumes() == [
            VolumeRecord(
                serial="SM0001",
                medium="virtualtape",
                first_written=first.started.astimezone(UTC),
                last_written=first.started.astimezone(UTC),
                bytes=2 << 30,
            ),
            VolumeRecord(
                serial="SM0002",
                medium="virtualtape",
                first_written=second.started.astimezone(UTC),
                last_written=second.started.astimezone(UTC),
                bytes=1 << 30,
            ),
        ]


def test_whoever_only_looks_has_an_old_catalogue_brought_up_too(tmp_path: Path) -> None:
    with Lookup.open_to_read(of_version_1(tmp_path / "old.db")) as lookup:
        assert [volume.state for volume in lookup.volumes()] == [VolumeState.APPENDABLE] * 2


# --- volumes


def test_a_volume_comes_back_as_it_was_added(catalog: Catalog) -> None:
    catalog.add_volume(ANOTHER)
    assert catalog.volume("SM0009") == ANOTHER
    catalog.add_volume(VolumeRecord(serial="SM0009", medium="virtualtape"))
    assert catalog.volumes() == [ANOTHER]  # a second one is no other


def test_a_volume_that_is_not_known_is_told_with_the_nearest(catalog: Catalog) -> None:
    catalog.add_volume(ANOTHER)
    with pytest.raises(NoSuchVolume) as caught:
        catalog.volume("SM0008")
    assert "SM0009" in caught.value.hint
    with pytest.raises(NoSuchVolume):
        catalog.change_volume("SM0008", lambda record: record)


def test_a_volume_is_changed_alone(catalog: Catalog) -> None:
    catalog.add_volume(ANOTHER)
    catalog.add_volume(replace(ANOTHER, serial="SM0010"))
    changed = catalog.change_volume("SM0009", lambda record: replace(record, stalls=9, held=""))
    assert changed == replace(ANOTHER, stalls=9, held="")
    assert catalog.volumes() == [changed, replace(ANOTHER, serial="SM0010")]


def test_a_set_dates_the_volumes_that_it_lies_on(catalog: Catalog) -> None:
    later = a_set("later", started=STARTED + timedelta(days=1))
    catalog.record(later, on("SM0001", "SM0002"), [])
    catalog.record(a_set(), on("SM0001"), [])
    first, second = catalog.volumes()
    assert (first.serial, first.first_written, first.last_written, first.bytes) == (
        "SM0001",
        STARTED,
        STARTED + timedelta(days=1),
        2 << 30,
    )
    assert (second.first_written, second.last_written) == (later.started, later.started)
    assert (second.medium, second.held) == ("virtualtape", "")


def test_a_volume_of_which_something_new_is_read_in_is_held(catalog: Catalog) -> None:
    catalog.record(a_set("known"), on("SM0001", "SM0002"), [])
    catalog.record(a_set("known"), on("SM0001", "SM0002"), [], held="read in")
    assert [volume.held for volume in catalog.volumes()] == ["", ""]
    catalog.record(a_set("known"), on("SM0001", "SM0002", "SM0003"), [], held="read in")
    assert [volume.held for volume in catalog.volumes()] == ["", "", "read in"]
    catalog.record(a_set("unknown"), on("SM0002"), [], held="read in")
    assert [volume.held for volume in catalog.volumes()] == ["", "read in", "read in"]
    catalog.record(a_set("another"), on("SM0002"), [], held="read in later")
    assert catalog.volume("SM0002").held == "read in"


def test_sets_are_told_with_their_volumes_for_retention(catalog: Catalog) -> None:
    catalog.record(a_set("two"), on("SM0001", "SM0001", "SM0002"), [])
    catalog.record(a_set("none", source="?", complete=False), [], [])
    one, other = sorted(catalog.dated(), key=lambda found: found.set_id, reverse=True)
    assert (one.source, one.complete, one.started) == ("orders", True, STARTED)
    assert one.volumes == {"SM0001", "SM0002"}
    assert (other.source, other.complete, other.volumes) == (None, False, frozenset())


# --- writing one anew


def test_from_the_intent_on_the_sets_on_a_volume_are_incomplete(catalog: Catalog) -> None:
    catalog.record(a_set("goes"), on("SM0001", "SM0002"), MEMBERS)
    catalog.record(a_set("stays"), on("SM0002"), [])
    catalog.intend_recycling("SM0001", NOW)
    catalog.intend_recycling("SM0001", NOW + timedelta(days=1))
    assert catalog.volume("SM0001").recycling == NOW  # since then
    goes = catalog.get("goes")
    assert not goes.complete and "SM0001 is written anew" in goes.facts["warning"]
    assert goes.facts["version"] == "15.6"
    assert catalog.get("stays") == a_set("stays")
    assert catalog.parts("goes") != []


@pytest.mark.parametrize(
    "changed",
    [{"held": "for a while"}, {"state": VolumeState.RETIRED}, {"write_once": True}],
)
def test_what_is_held_retired_or_write_once_is_not_to_be_written_anew(
    catalog: Catalog, changed: dict[str, object]
) -> None:
    catalog.record(a_set("safe"), on("SM0001"), [])
    catalog.change_volume("SM0001", lambda record: replace(record, **changed))  # type: ignore[arg-type]
    with pytest.raises(VolumeKept):
        catalog.intend_recycling("SM0001", NOW)
    assert catalog.volume("SM0001").recycling is None
    assert catalog.get("safe").complete


def test_an_emptied_volume_is_as_new_and_its_sets_are_forgotten(catalog: Catalog) -> None:
    catalog.record(a_set("gone"), on("SM0001", "SM0001"), MEMBERS)
    catalog.record(a_set("elsewhere"), on("SM0002"), MEMBERS)
    catalog.change_volume("SM0001", lambda record: replace(record, state=VolumeState.FULL))
    catalog.intend_recycling("SM0001", NOW)
    catalog.emptied("SM0001")
    assert catalog.volume("SM0001") == VolumeRecord(
        serial="SM0001", medium="virtualtape", recycled=1
    )
    assert catalog.sets() == [a_set("elsewhere")]
    assert list(catalog.members("elsewhere")) == MEMBERS
    with sqlite3.connect(catalog._name) as connection:
        assert connection.execute("SELECT count(*) FROM members").fetchone() == (len(MEMBERS),)


def test_of_a_set_over_two_volumes_the_other_one_s_parts_are_still_known(catalog: Catalog) -> None:
    catalog.record(a_set("half"), on("SM0001", "SM0002"), MEMBERS)
    catalog.intend_recycling("SM0001", NOW)
    catalog.emptied("SM0001")
    half = catalog.get("half")
    assert not half.complete and "SM0001" in half.facts["warning"]
    assert (half.files, half.stored_bytes) == (PARTS[0].members, PARTS[0].stored)
    (part,) = catalog.parts("half")
    assert part.position is not None and part.position.volume == "SM0002"
    assert list(catalog.members("half")) == [row for row in MEMBERS if row.part == 2]
    catalog.emptied("SM0002")
    assert catalog.sets() == []


def test_a_volume_that_holds_no_part_but_the_set_s_own_catalogue_counts(catalog: Catalog) -> None:
    uses = tuple(VolumeUse(volume=serial) for serial in ("SM0001", "SM0002"))
    catalog.record(a_set("spanning", volumes=uses), on("SM0001"), MEMBERS, held="read in")
    assert [volume.held for volume in catalog.volumes()] == ["read in"] * 2
    assert catalog.dated()[0].volumes == {"SM0001", "SM0002"}
    catalog.emptied("SM0001")
    (left,) = catalog.sets()
    assert (left.complete, left.volumes, left.files) == (False, uses[1:], 0)
    catalog.change_volume("SM0002", lambda record: replace(record, held=""))
    catalog.intend_recycling("SM0002", NOW)
    catalog.emptied("SM0002")
    assert catalog.sets() == []


def test_the_volume_of_a_set_s_own_catalogue_is_not_emptied_unnoticed(catalog: Catalog) -> None:
    uses = tuple(VolumeUse(volume=serial) for serial in ("SM0001", "SM0002"))
    catalog.record(a_set("spanning", volumes=uses), on("SM0001"), MEMBERS)
    catalog.intend_recycling("SM0002", NOW)
    assert not catalog.get("spanning").complete
    catalog.emptied("SM0002")
    assert catalog.get("spanning").volumes == uses[:1]
    assert catalog.parts("spanning") != []


def test_a_volume_that_is_gone_is_forgotten_with_what_was_on_it(catalog: Catalog) -> None:
    catalog.record(a_set("half"), on("SM0001", "SM0002"), MEMBERS)
    catalog.emptied("SM0001", forget=True)
    assert [volume.serial for volume in catalog.volumes()] == ["SM0002"]
    assert not catalog.get("half").complete
    with pytest.raises(NoSuchVolume):
        catalog.emptied("SM0001", forget=True)


def test_a_set_that_was_found_missing_is_incomplete(catalog: Catalog) -> None:
    catalog.record(a_set("missed"), on("SM0001"), [])
    catalog.record(a_set("there"), on("SM0001"), [])
    catalog.mark_incomplete(["missed"], "it is not on SM0001")
    assert catalog.get("missed").facts["warning"] == "it is not on SM0001"
    assert [known.set_id for known in catalog.sets() if known.complete] == ["there"]
