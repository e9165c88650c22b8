"""Reading volumes into the catalogue, reading them back, telling what is on them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from tests.unit import made_sets
from tests.unit.made_sets import Made, file

from splitmirror.catalog import Catalog
from splitmirror.errors import MediumDamaged, VerifyFailed, WrongMedium
from splitmirror.media.dump import Thing, Told, dump
from splitmirror.media.labels import TapeFileKind, VolumeLabel
from splitmirror.media.memory import Cartridge, Memory
from splitmirror.media.shelf import VolumeState
from splitmirror.media.supply import OneVolume
from splitmirror.media.volume import label_volume, open_for_append
from splitmirror.testing.faulty_media import Fault, FaultKind, FaultyMedium
from splitmirror.verify import VolumeReport, verify_volume
from splitmirror.volumes import Scanned, scan

NOW = datetime(2024, 6, 1, tzinfo=UTC)
READ_IN = "read in from the medium on "


@pytest.fixture
def catalog(tmp_path: Path) -> Iterator[Catalog]:
    with Catalog.open(tmp_path / "catalog.db") as catalog:
        yield catalog


def a_set(medium: Memory, set_id: str, nights_ago: int = 1, **changed: Any) -> Made:
    """A set of two parts, appended to the volume."""
    content = set_id.encode() * 50
    parts = [[file(b"data/a", content)], [file(b"data/b", content[::-1])]]
    started = NOW - timedelta(days=nights_ago)
    made = made_sets.write_set(medium, parts, set_id=set_id, started=started, **changed)
    medium.unload()
    return made


def spanning() -> tuple[Memory, Memory]:
    """A set with a part on each of two volumes, SM0001 and SM0002, its catalogue on the second."""
    first, second = made_sets.blank(), made_sets.blank()
    begin = made_sets.write_set(first, [[file(b"data/a", b"a" * 99)]], complete=False)
    end = made_sets.write_set(
        second, [[file(b"data/b", b"b" * 99)]], complete=False, serial="SM0002", first=2
    )
    whole = replace(begin.backup_set, complete=True, files=2, stored_bytes=198)
    made = Made(
        backup_set=whole, parts=begin.parts + end.parts, members=begin.members + end.members
    )
    made_sets.write_catalogue(second, made)
    second.unload()
    return first, second


def scanned(medium: Memory, catalog: Catalog, **more: object) -> Scanned:
    supply = OneVolume(medium)
    return scan(supply, catalog, supply.at_hand(), driver="memory", **more)  # type: ignore[arg-type]


def record(catalog: Catalog, *made: Made) -> None:
    """As backups record them."""
    for one in made:
        catalog.record(one.backup_set, one.parts, one.members)


def complete(catalog: Catalog) -> list[str]:
    return [known.set_id for known in catalog.sets() if known.complete]


# --- scan


def test_a_volume_that_was_not_known_is_held(catalog: Catalog) -> None:
    medium = made_sets.blank()
    a_set(medium, "night-2", 2)
    a_set(medium, "night-1", 1)
    found = scanned(medium, catalog, new_pool="p")
    (volume,) = found.volumes
    assert volume == catalog.volume("SM0001")
    assert volume.held.startswith(READ_IN) and f"{datetime.now(UTC):%Y}" in volume.held
    assert (volume.pool, volume.medium, volume.state) == ("p", "memory", VolumeState.APPENDABLE)
    assert (volume.first_written, volume.last_written) == (
        NOW - timedelta(days=2),
        NOW - timedelta(days=1),
    )
    data = [thing for thing in medium.cartridge.objects if thing and len(thing) == 4096]
    assert volume.bytes == 4096 * len(data)
    assert [one.set_id for one in found.sets] == complete(catalog) == ["night-2", "night-1"]
    assert (found.missing, found.damage) == ((), None)


def test_an_empty_volume_is_known_and_held_too(catalog: Catalog) -> None:
    medium = made_sets.blank()
    label_volume(medium, "SM0007")
    (volume,) = scanned(medium, catalog, new_pool="p").volumes
    assert (volume.serial, volume.pool, volume.bytes) == ("SM0007", "p", 0)
    assert volume.held.startswith(READ_IN)


def test_a_second_scan_changes_nothing_and_a_release_lasts(catalog: Catalog) -> None:
    medium = made_sets.blank()
    a_set(medium, "night-1")
    first = scanned(medium, catalog)
    assert scanned(medium, catalog) == first
    released = catalog.change_volume("SM0001", lambda known: replace(known, held=""))
    assert scanned(medium, catalog).volumes == (released,)


def test_a_volume_about_which_nothing_new_is_learnt_is_not_held(catalog: Catalog) -> None:
    medium = made_sets.blank()
    record(catalog, a_set(medium, "night-1"))
    catalog.change_volume("SM0001", lambda known: replace(known, pool="p"))
    (volume,) = scanned(medium, catalog, new_pool="other").volumes
    assert (volume.held, volume.pool) == ("", "p")
    assert scanned(medium, catalog, pool="other").volumes[0].pool == "other"


def test_after_a_loss_and_a_backup_the_volume_is_held_for_its_older_sets(catalog: Catalog) -> None:
    """The catalogue is lost, and the next backup begins a new one, before anybody rebuilds it."""
    medium = made_sets.blank()
    a_set(medium, "before-the-loss", 2)
    record(catalog, a_set(medium, "after-the-loss", 1))
    assert catalog.volume("SM0001").held == ""
    (volume,) = scanned(medium, catalog).volumes
    assert volume.held.startswith(READ_IN)
    assert complete(catalog) == ["before-the-loss", "after-the-loss"]


def test_what_a_cut_off_run_left_is_read_in_as_incomplete(catalog: Catalog) -> None:
    medium = made_sets.blank()
    a_set(medium, "cut-off", complete=False)
    (one,) = scanned(medium, catalog).sets
    assert (one.set_id, one.complete, one.files) == ("cut-off", False, 2)
    assert catalog.dated()[0].source is None


def test_a_set_that_is_not_there_any_more_does_not_count(catalog: Catalog) -> None:
    """Another program, or another catalogue, wrote the volume anew."""
    medium = made_sets.blank()
    record(catalog, a_set(medium, "was-there", 3))
    label_volume(medium, "SM0001", losing="SM0001")
    medium.unload()
    found = a_set(medium, "is-there", 1)
    record(catalog, found)
    told = scanned(medium, catalog)
    assert told.missing == ("was-there",)
    assert complete(catalog) == ["is-there"]
    assert "not where" in catalog.get("was-there").facts["warning"]


def test_a_set_that_was_thought_missing_is_whole_again_when_it_is_found(catalog: Catalog) -> None:
    medium = made_sets.blank()
    made = a_set(medium, "night-1")
    record(catalog, made)
    catalog.mark_incomplete(["night-1"], "it was not there")
    (one,) = scanned(medium, catalog).sets
    assert one.complete


def test_a_set_over_two_volumes_is_read_in_from_the_last_and_holds_both(catalog: Catalog) -> None:
    first, second = spanning()
    found = scanned(second, catalog)
    assert [one.set_id for one in found.sets] == complete(catalog) == ["orders-1"]
    assert found.missing == ()
    assert [volume.held[: len(READ_IN)] for volume in catalog.volumes()] == [READ_IN] * 2
    assert scanned(first, catalog).missing == ()
    assert complete(catalog) == ["orders-1"]


def test_a_set_is_not_whole_when_the_part_on_its_first_volume_is_gone(catalog: Catalog) -> None:
    first, second = spanning()
    scanned(second, catalog)
    label_volume(first, "SM0001", losing="SM0001")
    first.unload()
    assert scanned(first, catalog).missing == ("orders-1",)
    assert complete(catalog) == []


def test_damage_ends_the_scan_and_what_came_before_is_recorded(catalog: Catalog) -> None:
    medium = made_sets.blank()
    record(catalog, a_set(medium, "behind", 1, serial="SM0001"))
    other = made_sets.blank()
    a_set(other, "before", 2)
    record(catalog, a_set(other, "behind", 1))
    made_sets.damage(other, b"HDR3", count=4)
    damaged = [i for i, thing in enumerate(other.cartridge.objects) if thing and b"IDR3" in thing]
    for i in damaged[:3]:  # those of the first set are well
        other.cartridge.objects[i] = (other.cartridge.objects[i] or b"").replace(b"IDR3", b"HDR3")
    found = scanned(other, catalog)
    assert isinstance(found.damage, MediumDamaged)
    assert [one.set_id for one in found.sets] == ["before"]
    assert found.missing == ()  # nobody knows what is behind the damage
    assert complete(catalog) == ["before", "behind"]


def test_a_volume_that_is_not_ours_is_not_read_in(catalog: Catalog) -> None:
    medium = made_sets.blank()
    medium.cartridge.objects.append(b"tar" * 200)
    with pytest.raises(WrongMedium):
        scanned(medium, catalog)
    assert catalog.volumes() == []


# --- verify


def verified(medium: Memory | FaultyMedium) -> VolumeReport:
    return verify_volume(OneVolume(medium), "SM0001")


def test_a_volume_is_verified_set_by_set() -> None:
    medium = made_sets.blank()
    made = [a_set(medium, "night-2", 2), a_set(medium, "night-1", 1)]
    seen: list[tuple[int, int]] = []
    report = verify_volume(
        OneVolume(medium), "SM0001", progress=lambda done, total: seen.append((done, total))
    )
    assert report.sound
    assert [(one.set_id, one.parts, one.files) for one in report.sets] == [
        ("night-2", 2, 2),
        ("night-1", 2, 2),
    ]
    assert [one.bytes for one in report.sets] == [one.backup_set.stored_bytes for one in made]
    assert report.elsewhere == ()
    assert seen[-1][0] == seen[-1][1] > 0
    report.require_sound()


def test_damage_is_told_with_its_set_and_hides_no_other() -> None:
    medium = made_sets.blank()
    for night in ("night-3", "night-2", "night-1"):
        a_set(medium, night)
    made_sets.damage(medium, b"night-2" * 20)
    report = verified(medium)
    assert [one.sound for one in report.sets] == [True, False, True]
    assert not report.sound
    with pytest.raises(VerifyFailed, match="volume SM0001 is damaged") as caught:
        report.require_sound()
    assert "night-2, part 1: data/a" in str(caught.value)
    assert caught.value.facts["report"] is report


def test_a_damaged_manifest_or_catalogue_is_told() -> None:
    medium = made_sets.blank()
    a_set(medium, "night-1")
    made_sets.damage(medium, b'"format":"splitmirror set"')
    assert [found.where for found in verified(medium).sets[0].damage] == ["catalogue of the set"]
    made_sets.damage(medium, b'"format":"splitmirror part"')
    found = {damage.where for damage in verified(medium).sets[0].damage}
    assert found == {"catalogue of the set", "part 1"}


def test_damage_of_the_labels_is_told_after_what_is_before_it() -> None:
    medium = made_sets.blank()
    a_set(medium, "night-2")
    a_set(medium, "night-1")
    last = max(i for i, thing in enumerate(medium.cartridge.objects) if thing and b"EOF1" in thing)
    medium.cartridge.objects[last] = b"x" * 80
    report = verified(medium)
    assert (len(report.damage), report.damage[0].where) == (1, "labels")
    assert [one.set_id for one in report.sets] == ["night-2", "night-1"]
    assert not report.sound


def test_of_a_set_over_several_volumes_the_parts_on_this_one_are_verified() -> None:
    medium = made_sets.blank()
    a_set(medium, "goes-on", complete=False)
    report = verified(medium)
    assert report.sound
    assert report.elsewhere == ("goes-on",)
    assert (report.sets[0].parts, report.sets[0].files) == (2, 2)


def test_of_a_set_whose_catalogue_is_here_only_what_is_here_is_verified() -> None:
    first, second = spanning()
    report = verify_volume(OneVolume(second), "SM0002")
    assert report.sound and report.elsewhere == ()
    assert (report.sets[0].parts, report.sets[0].files) == (1, 1)
    report = verified(first)
    assert report.sound and report.elsewhere == ("orders-1",)


def test_another_volume_is_not_verified() -> None:
    medium = made_sets.blank()
    label_volume(medium, "SM0002")
    medium.unload()
    with pytest.raises(WrongMedium):
        verified(medium)


# --- dump


def told(medium: Memory | FaultyMedium) -> list[Told]:
    medium.load(writable=False)
    return list(dump(medium))


def test_every_label_and_tape_file_is_told_with_its_position() -> None:
    medium = made_sets.blank()
    made = made_sets.write_set(medium, [[file(b"data/a", b"x" * 9000)]], set_id="set-1")
    found = told(medium)
    day = f"{datetime.now(UTC):%Y-%m-%d}"
    part = made.parts[0]
    blocks = part.length // 4096
    behind = 5 + blocks
    assert [(one.object, one.file, one.thing, one.words) for one in found[:11]] == [
        (0, 0, Thing.LABEL, "volume SM0001"),
        (1, 0, Thing.LABEL, f"PART-000001 of {day}, tape file 0 begins"),
        (2, 0, Thing.LABEL, "records of undefined format in blocks of 4.0 KiB"),
        (3, 0, Thing.LABEL, "part 1 of the set set-1"),
        (4, 0, Thing.FILEMARK, "filemark"),
        (5, 1, Thing.DATA, f"{blocks} records, the first of 4.0 KiB"),
        (behind, 1, Thing.FILEMARK, "filemark"),
        (
            behind + 1,
            2,
            Thing.LABEL,
            f"PART-000001 of {day}, tape file 0 ends after {blocks} records",
        ),
        (behind + 2, 2, Thing.LABEL, "records of undefined format in blocks of 4.0 KiB"),
        (
            behind + 3,
            2,
            Thing.LABEL,
            f"part 1 of the set set-1: complete, {blocks} records",
        ),
        (behind + 4, 2, Thing.FILEMARK, "filemark"),
    ]
    assert found[11].words == f"CATALOGUE of {day}, tape file 1 begins"
    assert found[13].words == "the catalogue of the set set-1"
    assert [one.thing for one in found[-3:]] == [Thing.FILEMARK, Thing.FILEMARK, Thing.END]
    assert found[-1].object == len(medium.cartridge.objects)
    assert [found[5].count, found[5].length] == [blocks, 4096]
    assert part.position is not None and found[5].object == part.position.object


def test_the_objects_told_are_all_that_there_are() -> None:
    medium = made_sets.blank()
    a_set(medium, "night-2")
    a_set(medium, "night-1", complete=False)
    at = 0
    for one in told(medium):
        assert one.object == at
        at += one.count
    assert at == len(medium.cartridge.objects)


def test_data_are_passed_over_and_not_read() -> None:
    medium = made_sets.blank()
    made_sets.write_set(medium, [[file(b"data/a", b"x" * 400_000)]], set_id="set-1")
    counting = made_sets.Counting(medium)
    counting.load(writable=False)
    assert any(one.count > 90 for one in dump(counting))
    assert counting.read_records < 40


def test_what_a_crash_or_another_program_left_is_told() -> None:
    medium = made_sets.blank()
    foreign = VolumeLabel(serial="PAY001").pack().replace(b"SPLITMIRROR", b"SOMEOTHER  ")
    medium.cartridge.objects += [foreign, b"HDR1 is theirs".ljust(80), None, b"x" * 512, b"y" * 512]
    assert [(one.thing, one.words) for one in told(medium)] == [
        (Thing.LABEL, "not a label of ours"),
        (Thing.LABEL, "not a label of ours"),
        (Thing.FILEMARK, "filemark"),
        (Thing.DATA, "2 records, the first of 512 B"),
        (Thing.END, "end of data"),
    ]
    assert told(medium)[0].label.startswith("VOL1PAY001")
    ebcdic = made_sets.blank()
    ebcdic.cartridge.objects.append(foreign.decode("ascii").encode("cp037"))
    assert told(ebcdic)[0].label.startswith("VOL1PAY001")


def test_an_abandoned_tape_file_is_told_as_such() -> None:
    class Once(Memory):
        write_once = True

    medium = Once(Cartridge())
    label_volume(medium, "SM0001")
    with open_for_append(medium, "SM0001") as writer:
        writer.begin_file(TapeFileKind.PART, "set-1", 1, 4096)
        writer.write([bytes(4096)])
        writer.abandon_file()
    assert any(one.words == "part 1 of the set set-1: ABANDONED, 1 records" for one in told(medium))


def test_a_blank_volume_is_told() -> None:
    (one,) = told(made_sets.blank())
    assert (one.thing, one.object) == (Thing.END, 0)


def test_what_cannot_be_read_is_told_and_passed_over() -> None:
    medium = made_sets.blank()
    a_set(medium, "night-1")
    bad = FaultyMedium(medium, [Fault(kind=FaultKind.READ_ERROR, object=2)])
    found = told(bad)
    things = [one.thing for one in found]
    assert things[2] is Thing.UNREADABLE and "object 2 cannot be read" in found[2].words
    assert (found[3].object, found[3].file, found[3].thing) == (5, 1, Thing.DATA)
    assert things[-1] is Thing.END


def test_a_drive_that_can_read_no_further_ends_the_dump() -> None:
    medium = made_sets.blank()
    a_set(medium, "night-1")
    lost = FaultyMedium(medium, [Fault(kind=FaultKind.LOST_POSITION, object=3)])
    found = told(lost)
    assert [one.thing for one in found] == [Thing.LABEL] * 4 + [Thing.UNREADABLE]
