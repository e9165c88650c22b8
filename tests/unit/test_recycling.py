"""Writing a volume anew and labelling one: what stops it, and what a crash at any moment leaves."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from tests.unit import made_sets
from tests.unit.made_sets import Made, file

from splitmirror.catalog import Catalog
from splitmirror.errors import (
    Busy,
    ConfigError,
    MediumDamaged,
    MediumError,
    SplitmirrorError,
    VolumeKept,
    WrongMedium,
)
from splitmirror.media import Block
from splitmirror.media.labels import TapeFileKind, VolumeLabel
from splitmirror.media.memory import Cartridge, Memory
from splitmirror.media.pools import Pool
from splitmirror.media.shelf import How, Shelf, Stock, VolumeRecord, VolumeState
from splitmirror.media.volume import label_volume, open_for_append
from splitmirror.media.walking import VolumeReader, beginning
from splitmirror.recycling import label, recycle, stock_of
from splitmirror.testing.faulty_media import Fault, FaultKind, FaultyMedium

NOW = datetime(2024, 6, 1, tzinfo=UTC)
POOLS = {"p": Pool(keep_sets=1), "always": Pool(), "once": Pool(keep_sets=1, write_once=True)}


@pytest.fixture
def catalog(tmp_path: Path) -> Iterator[Catalog]:
    with Catalog.open(tmp_path / "catalog.db") as catalog:
        yield catalog


def a_volume(serial: str) -> Memory:
    medium = made_sets.blank()
    label_volume(medium, serial)
    medium.unload()
    return medium


def a_set(medium: Memory, set_id: str, nights_ago: int, **changed: Any) -> Made:
    """A set of two parts, appended to the volume."""
    content = set_id.encode() * 50
    parts = [[file(b"data/a", content)], [file(b"data/b", content)]]
    started = NOW - timedelta(days=nights_ago)
    made = made_sets.write_set(medium, parts, set_id=set_id, started=started, **changed)
    medium.unload()
    return made


def record(catalog: Catalog, *made: Made, pool: str = "p") -> None:
    """As backups to the pool record them."""
    for one in made:
        catalog.record(one.backup_set, one.parts, one.members)
    for volume in catalog.volumes():
        catalog.change_volume(volume.serial, lambda known: replace(known, pool=known.pool or pool))


def stock(catalog: Catalog, **more: object) -> Stock:
    return stock_of(catalog, POOLS, now=NOW, **more)  # type: ignore[arg-type]


@dataclass
class Two:
    """A volume whose sets have expired, and the one with the newer set for which they have."""

    old: Memory
    new: Memory
    catalog: Catalog

    def recycle(self, medium: Memory | FaultyMedium | None = None) -> None:
        recycle(medium or self.old, self.catalog, "SM0001", stock(self.catalog))


@pytest.fixture
def two(catalog: Catalog) -> Two:
    return two_in(catalog)


def two_in(catalog: Catalog) -> Two:
    old, new = a_volume("SM0001"), a_volume("SM0002")
    record(catalog, a_set(old, "night-3", 3), a_set(old, "night-2", 2), a_set(new, "night-1", 1))
    return Two(old, new, catalog)


def objects(medium: Memory) -> list[bytes | None]:
    return list(medium.cartridge.objects)


def peek(medium: Memory) -> Memory:
    """Another drive with the same volume as it is now, whoever writes it."""
    copy = Cartridge()
    copy.objects = objects(medium)
    other = Memory(copy)
    other.load(writable=False)
    return other


def sets_on(medium: Memory) -> list[str]:
    return [found.set_id for found in VolumeReader(peek(medium)).sets()]


def known(catalog: Catalog) -> list[str]:
    return [found.set_id for found in catalog.sets() if found.complete]


def left_alone(
    two: Two, kind: type[SplitmirrorError], match: str | None = None
) -> SplitmirrorError:
    """Recycling is refused: nothing on the volume and nothing in the catalogue has changed."""
    before, sets, volumes = objects(two.old), two.catalog.sets(), two.catalog.volumes()
    with pytest.raises(kind, match=match) as caught:
        two.recycle()
    assert caught.value.hint
    assert (objects(two.old), two.catalog.sets()) == (before, sets)
    assert two.catalog.volumes() == volumes
    return caught.value


# --- writing one anew


def test_a_volume_whose_sets_have_expired_is_written_anew_and_can_be_appended_to(two: Two) -> None:
    two.recycle()
    assert sets_on(two.old) == []
    assert known(two.catalog) == ["night-1"]
    again = two.catalog.volume("SM0001")
    assert again == VolumeRecord(serial="SM0001", medium="memory", pool="p", recycled=1)
    with open_for_append(two.old, "SM0001") as writer:
        assert (writer.files, writer.end.closed) == ((), True)
    two.recycle()  # an empty one: harmless, and not counted
    assert two.catalog.volume("SM0001") == again


def test_another_volume_in_the_drive_is_left_alone(two: Two) -> None:
    before = objects(two.new)
    with pytest.raises(WrongMedium, match="but SM0002 is loaded"):
        recycle(two.new, two.catalog, "SM0001", stock(two.catalog))
    assert objects(two.new) == before
    assert two.catalog.volume("SM0001").recycling is None


@pytest.mark.parametrize(
    ("first", "name"),
    [
        (VolumeLabel(serial="SM0001").pack().replace(b"SPLITMIRROR", b"SOMEOTHER  "), "SM0001"),
        (b"tar" * 200, "unlabelled"),
        (None, "unlabelled"),
    ],
)
def test_what_is_not_a_volume_of_ours_is_left_alone(
    two: Two, first: bytes | None, name: str
) -> None:
    two.old.cartridge.objects[0] = first
    error = left_alone(two, WrongMedium, f"but {name} is loaded")
    assert "Nothing was written" in error.hint


def test_a_blank_volume_is_not_the_one_that_was_asked_for(two: Two) -> None:
    two.old.cartridge.objects.clear()
    left_alone(two, WrongMedium, "blank")


@pytest.mark.parametrize(
    ("changed", "why"),
    [
        ({"held": "for the auditors"}, "held: for the auditors"),
        ({"state": VolumeState.RETIRED}, "retired"),
        ({"write_once": True}, "write-once"),
        ({"pool": "once"}, "write-once"),
        ({"pool": "always"}, "night-2 and 1 more on it has not expired"),
        ({"pool": ""}, "night-2 and 1 more on it has not expired"),
    ],
)
def test_what_keeps_a_volume_is_said(two: Two, changed: dict[str, object], why: str) -> None:
    two.catalog.change_volume("SM0001", lambda old: replace(old, **changed))  # type: ignore[arg-type]
    left_alone(two, VolumeKept, why)


def test_a_hold_that_comes_meanwhile_counts(two: Two) -> None:
    judged = stock(two.catalog)
    two.catalog.change_volume("SM0001", lambda old: replace(old, held="wait"))
    with pytest.raises(VolumeKept, match="held: wait"):
        recycle(two.old, two.catalog, "SM0001", judged)
    assert sets_on(two.old) == ["night-3", "night-2"]


def test_a_volume_that_is_not_known_is_not_written_anew(two: Two) -> None:
    with pytest.raises(VolumeKept, match="does not know"):
        recycle(two.old, two.catalog, "SM0009", stock(two.catalog))


def test_a_set_on_it_that_the_catalogue_does_not_know_stops_it(two: Two) -> None:
    a_set(two.old, "from-another-host", 1)
    error = left_alone(two, VolumeKept, "does not know the set from-another-host")
    assert "media scan" in error.hint


def test_a_set_on_it_that_the_catalogue_has_elsewhere_stops_it(two: Two) -> None:
    """The catalogue is wrong; the volume's own labels are believed."""
    a_set(two.old, "night-1", 1)
    left_alone(two, VolumeKept, "the set night-1 on it has not expired")


def test_a_set_that_appears_on_it_after_the_judgement_stops_it(two: Two) -> None:
    judged = stock(two.catalog)
    record(two.catalog, a_set(two.old, "night-0", 0))
    with pytest.raises(VolumeKept, match="night-0"):
        recycle(two.old, two.catalog, "SM0001", judged)
    assert sets_on(two.old) == ["night-3", "night-2", "night-0"]


def test_damage_that_hides_what_is_behind_it_stops_it(two: Two) -> None:
    made_sets.damage(two.old, b"HDR1PART-000002")
    left_alone(two, MediumDamaged)


def test_a_set_that_a_run_still_needs_stops_it(two: Two) -> None:
    needed = stock(two.catalog, unfinished={"night-2"})
    with pytest.raises(VolumeKept, match="night-2 on it has not expired"):
        recycle(two.old, two.catalog, "SM0001", needed)


def test_a_part_that_a_run_has_begun_stops_it(two: Two) -> None:
    with open_for_append(two.old, "SM0001") as writer:
        writer.begin_file(TapeFileKind.PART, "running", 1, 4096)
    needed = stock(two.catalog, unfinished={"running"})
    with pytest.raises(VolumeKept, match="the set running is being written"):
        recycle(two.old, two.catalog, "SM0001", needed)
    two.old.unload()
    two.recycle()  # once no run needs it, what was cut off is no part of any set
    assert sets_on(two.old) == []


class Once(Memory):
    """A cartridge that can be written once."""

    write_once = True


def test_write_once_media_are_never_written_anew_and_it_is_noted(two: Two) -> None:
    before = objects(two.old)
    with pytest.raises(VolumeKept, match="write-once"):
        recycle(Once(two.old.cartridge), two.catalog, "SM0001", stock(two.catalog))
    assert objects(two.old) == before
    assert two.catalog.volume("SM0001").write_once
    assert known(two.catalog) == ["night-3", "night-2", "night-1"]


def test_a_volume_that_someone_writes_is_left_alone(two: Two) -> None:
    with open_for_append(Memory(two.old.cartridge), "SM0001"):
        left_alone(two, Busy)


class Deaf(Memory):
    """A drive that takes what is written, and writes nothing."""

    def write(self, blocks: Sequence[Block]) -> bool:
        return False

    def write_filemarks(self, count: int, *, sync: bool) -> bool:
        return False


def test_what_was_written_is_read_back_before_the_catalogue_forgets(two: Two) -> None:
    with pytest.raises(MediumDamaged, match="6 tape files was read back"):
        two.recycle(Deaf(two.old.cartridge))
    assert known(two.catalog) == ["night-1"]  # they may be gone
    assert two.catalog.volume("SM0001").recycling is not None
    assert len(two.catalog.sets()) == 3


@pytest.mark.parametrize("at", [0, 1, 2])
@pytest.mark.parametrize("kind", [FaultKind.WRITE_ERROR, FaultKind.SYNC_ERROR])
def test_a_fault_of_the_drive_leaves_it_to_the_next_call(
    two: Two, kind: FaultKind, at: int
) -> None:
    fault = Fault(kind=kind, object=at, times=1)
    with pytest.raises(MediumError, match="asked for"):
        two.recycle(FaultyMedium(two.old, [fault]))
    assert known(two.catalog) == ["night-1"]
    two.recycle()
    assert (sets_on(two.old), len(two.catalog.sets())) == ([], 1)


def test_a_drive_that_does_not_know_where_it_stands_writes_nothing(two: Two) -> None:
    before = objects(two.old)
    with pytest.raises(MediumError, match="after a rewind"):
        lost = FaultyMedium(two.old, [Fault(kind=FaultKind.WRONG_POSITION, object=0)])
        label_volume(lost, "SM0001", losing="SM0001")
    assert objects(two.old) == before


# --- crashes


class Crash(BaseException):
    pass


class Crashing:
    """Dies before or after the step with a number: a write to the volume, a change of the
    catalogue. `torn`: a virtual tape that dies in a write has ended where the write began."""

    def __init__(self, at: int, *, after: bool, torn: bool) -> None:
        self.at, self.after, self.torn, self.steps = at, after, torn, 0

    def step(self, act: object, tear: object = None) -> object:
        mine = self.steps == self.at
        self.steps += 1
        if mine and not self.after:
            if self.torn and callable(tear):
                tear()
            raise Crash
        done = act()  # type: ignore[operator]
        if mine:
            raise Crash
        return done


class CrashingMedium(Memory):
    def __init__(self, cartridge: Cartridge, crash: Crashing) -> None:
        super().__init__(cartridge)
        self._crash = crash

    def write(self, blocks: Sequence[Block]) -> bool:
        self._crash.step(lambda: super(CrashingMedium, self).write(blocks), self._end_here)
        return False

    def write_filemarks(self, count: int, *, sync: bool) -> bool:
        write = super().write_filemarks
        self._crash.step(lambda: write(count, sync=sync), self._end_here)
        return False


class CrashingCatalog(Catalog):
    crash: Crashing

    def add_volume(self, record: VolumeRecord) -> None:
        self.crash.step(lambda: super(CrashingCatalog, self).add_volume(record))

    def intend_recycling(self, serial: str, at: datetime) -> None:
        self.crash.step(lambda: super(CrashingCatalog, self).intend_recycling(serial, at))

    def emptied(self, serial: str, *, forget: bool = False) -> None:
        self.crash.step(lambda: super(CrashingCatalog, self).emptied(serial, forget=forget))


STEPS = 4  # the intent, the label, the filemarks, the forgetting


@pytest.mark.parametrize("at", range(STEPS))
@pytest.mark.parametrize("after", [False, True])
@pytest.mark.parametrize("torn", [False, True])
def test_after_a_crash_no_set_is_believed_whole_that_is_not_there(
    tmp_path: Path, at: int, after: bool, torn: bool
) -> None:
    crash = Crashing(at, after=after, torn=torn)
    with CrashingCatalog.open(tmp_path / "catalog.db") as opened:
        assert isinstance(opened, CrashingCatalog)
        opened.crash = crash
        two = two_in(opened)
        with pytest.raises(Crash):
            two.recycle(CrashingMedium(two.old.cartridge, crash))
    two.old.cartridge.writer = None  # the process is gone
    with Catalog.open(tmp_path / "catalog.db") as catalog:
        there = [] if beginning(peek(two.old)).blank else sets_on(two.old)
        assert set(known(catalog)) - {"night-1"} <= set(there)
        assert known(catalog)[-1] == "night-1"
        assert sets_on(two.new) == ["night-1"]
        recycle(Memory(two.old.cartridge), catalog, "SM0001", stock(catalog))
        assert [found.set_id for found in catalog.sets()] == ["night-1"]
        assert (sets_on(two.old), catalog.volume("SM0001").recycling) == ([], None)


def test_the_crashes_are_at_every_step(tmp_path: Path) -> None:
    crash = Crashing(-1, after=False, torn=False)
    with CrashingCatalog.open(tmp_path / "catalog.db") as opened:
        assert isinstance(opened, CrashingCatalog)
        opened.crash = crash
        two = two_in(opened)
        two.recycle(CrashingMedium(two.old.cartridge, crash))
    assert crash.steps == STEPS


# --- labelling


def new(serial: str, **changed: object) -> VolumeRecord:
    made = VolumeRecord(serial=serial, medium="memory", pool="p", barcode=f"{serial}L8")
    return replace(made, **changed)  # type: ignore[arg-type]


def test_a_blank_volume_is_labelled_and_known(catalog: Catalog) -> None:
    medium = made_sets.blank()
    assert label(medium, catalog, new("SM0001"), stock(catalog)) == new("SM0001")
    assert catalog.volumes() == [new("SM0001")]
    assert sets_on(medium) == []
    once = Once(Cartridge())
    assert label(once, catalog, new("SM0002"), stock(catalog)).write_once
    assert catalog.volume("SM0002").write_once


@pytest.mark.parametrize("at", range(4))  # the intent, the label, the filemarks, the catalogue
@pytest.mark.parametrize("after", [False, True])
@pytest.mark.parametrize("torn", [False, True])
def test_a_blank_volume_whose_labelling_was_cut_off_is_the_next_to_be_written(
    tmp_path: Path, at: int, after: bool, torn: bool
) -> None:
    crash, cartridge = Crashing(at, after=after, torn=torn), Cartridge()
    with CrashingCatalog.open(tmp_path / "catalog.db") as opened:
        assert isinstance(opened, CrashingCatalog)
        opened.crash = crash
        with pytest.raises(Crash):
            label(CrashingMedium(cartridge, crash), opened, new("SM0001"), stock(opened))
    cartridge.writer = None  # the process is gone
    with Catalog.open(tmp_path / "catalog.db") as catalog:
        medium = Memory(cartridge)
        choice = Shelf("p", stock(catalog)).next()
        if choice.how is How.BLANK:  # nothing has happened yet
            assert (at, after, objects(medium)) == (0, False, [])
            label(medium, catalog, new("SM0001"), stock(catalog))
        elif choice.how is How.RECYCLE:
            recycle(medium, catalog, "SM0001", stock(catalog))
        assert catalog.volumes() == [new("SM0001")]
        medium.unload()
        assert sets_on(medium) == []
        with open_for_append(medium, "SM0001"):
            pass


def test_a_volume_of_ours_that_is_empty_and_not_known_is_known_when_it_is_labelled(
    catalog: Catalog,
) -> None:
    medium = a_volume("SM0001")
    label(medium, catalog, new("SM0001"), stock(catalog))
    assert catalog.volumes() == [new("SM0001")]


def test_a_volume_of_ours_is_labelled_again_only_when_its_sets_have_expired(two: Two) -> None:
    with pytest.raises(VolumeKept, match="night-1"):
        label(two.new, two.catalog, new("SM0002"), stock(two.catalog))
    assert sets_on(two.new) == ["night-1"]
    two.new.unload()
    again = label(two.old, two.catalog, new("SM0001", pool="always"), stock(two.catalog))
    assert sets_on(two.old) == []
    assert (again.pool, again.barcode, again.recycled) == ("always", "SM0001L8", 1)


def test_a_volume_of_ours_that_the_catalogue_does_not_know_keeps_its_sets(catalog: Catalog) -> None:
    medium = a_volume("SM0001")
    a_set(medium, "night-1", 1)
    with pytest.raises(VolumeKept, match="does not know the set night-1"):
        label(medium, catalog, new("SM0001"), stock(catalog))
    assert sets_on(medium) == ["night-1"]
    assert catalog.volumes() == []


def test_a_blank_one_does_not_take_the_serial_of_another(two: Two) -> None:
    medium = made_sets.blank()
    with pytest.raises(WrongMedium, match="blank"):
        label(medium, two.catalog, new("SM0001"), stock(two.catalog))
    assert objects(medium) == []


def test_a_foreign_volume_is_lost_only_by_its_name(catalog: Catalog) -> None:
    medium = made_sets.blank()
    medium.cartridge.objects += [b"tar" * 200, None]
    for losing in (None, "SM0001"):
        with pytest.raises(WrongMedium, match="it is unlabelled"):
            label(medium, catalog, new("SM0001"), stock(catalog), losing=losing)
        assert objects(medium) == [b"tar" * 200, None]
        assert catalog.volumes() == []
    label(medium, catalog, new("SM0001"), stock(catalog), losing="unlabelled")
    assert sets_on(medium) == []
    assert catalog.volumes() == [new("SM0001")]


def test_what_is_kept_is_lost_by_the_volume_s_name_and_the_catalogue_forgets_it(two: Two) -> None:
    label(two.new, two.catalog, new("SM0002"), stock(two.catalog), losing="SM0002")
    assert sets_on(two.new) == []
    assert known(two.catalog) == ["night-3", "night-2"]
    assert two.catalog.volume("SM0002").recycled == 1


def test_another_volume_than_the_named_one_is_not_lost(two: Two) -> None:
    before = two.catalog.volumes()
    with pytest.raises(WrongMedium, match="it is SM0002"):
        label(two.new, two.catalog, new("SM0001"), stock(two.catalog), losing="SM0001")
    assert sets_on(two.new) == ["night-1"]
    assert (two.catalog.volumes(), len(known(two.catalog))) == (before, 3)


def test_a_volume_that_is_lost_can_get_another_serial(two: Two) -> None:
    with pytest.raises(VolumeKept, match="another volume SM0001"):
        label(two.new, two.catalog, new("SM0001"), stock(two.catalog), losing="SM0002")
    assert sets_on(two.new) == ["night-1"]
    label(two.new, two.catalog, new("SM0007"), stock(two.catalog), losing="SM0002")
    assert beginning(two.new).serial == "SM0007"
    assert [volume.serial for volume in two.catalog.volumes()] == ["SM0001", "SM0007"]
    assert known(two.catalog) == ["night-3", "night-2"]


@pytest.mark.parametrize(
    ("changed", "why"),
    [({"held": "wait"}, "held: wait"), ({"state": VolumeState.RETIRED}, "retired")],
)
def test_what_is_held_or_retired_is_not_lost_even_by_its_name(
    two: Two, changed: dict[str, object], why: str
) -> None:
    two.catalog.change_volume("SM0002", lambda old: replace(old, **changed))  # type: ignore[arg-type]
    with pytest.raises(VolumeKept, match=why):
        label(two.new, two.catalog, new("SM0002"), stock(two.catalog), losing="SM0002")
    assert sets_on(two.new) == ["night-1"]
    assert "night-1" in known(two.catalog)


def test_write_once_media_are_not_lost_even_by_their_name(two: Two) -> None:
    once = Once(two.new.cartridge)
    with pytest.raises(VolumeKept, match="write-once"):
        label(once, two.catalog, new("SM0002"), stock(two.catalog), losing="SM0002")
    assert sets_on(two.new) == ["night-1"]


def test_a_serial_that_is_none_changes_nothing(two: Two) -> None:
    with pytest.raises(ConfigError, match="serial"):
        label(two.new, two.catalog, new("tape-7"), stock(two.catalog), losing="SM0002")
    assert sets_on(two.new) == ["night-1"]
    assert two.catalog.volume("SM0002").recycling is None


def test_the_name_may_be_given_although_nothing_is_there_to_lose(catalog: Catalog) -> None:
    medium = made_sets.blank()
    label(medium, catalog, new("SM0001"), stock(catalog), losing="SM0009")
    assert beginning(medium).serial == "SM0001"
