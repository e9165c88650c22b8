"""Which volumes of a pool a backup gets: never one with something on it that must be kept."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from tests.unit import made_sets
from tests.unit.library_lab import LibraryLab, Operator
from tests.unit.made_sets import Made, file

from splitmirror.catalog import Catalog
from splitmirror.errors import EndOfMedium, NoSuchVolume
from splitmirror.media.library import Library
from splitmirror.media.librarysupply import LibraryVolumes
from splitmirror.media.pools import Pool
from splitmirror.media.shelf import VolumeRecord, VolumeState
from splitmirror.media.walking import VolumeReader
from splitmirror.model import VolumeUse
from splitmirror.supplying import NamedVolume, PoolVolumes

NOW = datetime.now(UTC)


class Site:
    """A library, its catalogue, and a pool that keeps the last set of each source."""

    def __init__(self, directory: Path, catalog: Catalog) -> None:
        self.lab = LibraryLab(directory, labelled=3, blank=1)
        self.catalog = catalog
        self.unfinished: set[str] = set()
        for number in (1, 2, 3):
            self.know(f"SM000{number}")

    def know(self, serial: str, **changed: object) -> None:
        made = VolumeRecord(serial=serial, medium="virtualtape", pool="p")
        self.catalog.add_volume(made)
        self.catalog.change_volume(serial, lambda old: replace(old, **changed))  # type: ignore[arg-type]

    def a_set(self, serial: str, set_id: str, nights_ago: int, *, record: bool = True) -> Made:
        medium = LibraryLab.tape(self.path(serial))
        started = NOW - timedelta(days=nights_ago)
        made = made_sets.write_set(
            medium, [[file(b"data/a", set_id.encode())]], set_id=set_id, started=started
        )
        if record:
            self.catalog.record(made.backup_set, made.parts, made.members)
        return made

    def full(self, *serials: str) -> None:
        for serial in serials:
            self.know(serial, state=VolumeState.FULL)

    def path(self, serial: str) -> Path:
        return self.lab.directory / f"{serial}L8"

    def sets_on(self, serial: str) -> list[str]:
        medium = LibraryLab.tape(self.path(serial))
        medium.load(writable=False)
        try:
            return [found.set_id for found in VolumeReader(medium).sets()]
        finally:
            medium.unload()

    def pool(self, library: Library) -> PoolVolumes:
        return PoolVolumes(
            library,
            self.catalog,
            pool="p",
            pools={"p": Pool(keep_sets=1)},
            driver="virtualtape",
            streams=1,
            unfinished=self.unfinished,
        )

    @contextmanager
    def supply(self) -> Iterator[PoolVolumes]:
        supply = self.pool(self.lab.library())
        try:
            supply.take()
            yield supply
        finally:
            supply.close()

    def next(self, *passed: str) -> str:
        """The volume that a backup gets."""
        with self.supply() as supply, supply.next_volume(0, passed) as volume:
            return volume.serial


@pytest.fixture
def site(tmp_path: Path) -> Iterator[Site]:
    with Catalog.open(tmp_path / "catalog.db") as catalog:
        yield Site(tmp_path, catalog)


def held(site: Site) -> dict[str, str]:
    return {volume.serial: volume.held for volume in site.catalog.volumes() if volume.held}


def test_volumes_with_room_come_first_then_those_to_be_written_anew_then_blank_ones(
    site: Site,
) -> None:
    site.a_set("SM0001", "night-3", 3)
    site.a_set("SM0002", "night-1", 1)
    site.full("SM0001")
    assert site.next() == "SM0002"
    assert site.next("SM0002") == "SM0003"
    assert site.next("SM0002", "SM0003") == "SM0001"
    assert site.sets_on("SM0001") == []
    assert [one.set_id for one in site.catalog.sets()] == ["night-1"]
    assert site.next("SM0001", "SM0002", "SM0003") == "SM0004"
    new = site.catalog.volume("SM0004")
    assert (new.pool, new.barcode, new.medium) == ("p", "SM0004L8", "virtualtape")


def test_what_is_kept_is_not_written_anew_for_want_of_another(site: Site) -> None:
    site.a_set("SM0001", "night-1", 1)
    site.full("SM0001", "SM0002", "SM0003")
    site.path("SM0004").unlink()
    with pytest.raises(NoSuchVolume, match="blank"):
        site.next("SM0002", "SM0003")
    assert site.sets_on("SM0001") == ["night-1"]
    assert held(site) == {}


def test_a_volume_with_a_set_that_is_not_known_is_held_and_the_next_one_is_taken(
    site: Site,
) -> None:
    site.a_set("SM0001", "night-3", 3)
    site.a_set("SM0001", "from-another-host", 2, record=False)
    site.a_set("SM0002", "night-2", 2)
    site.a_set("SM0003", "night-1", 1)
    site.full("SM0001", "SM0002", "SM0003")
    assert site.next() == "SM0002"
    assert site.sets_on("SM0001") == ["night-3", "from-another-host"]
    assert "from-another-host" in held(site)["SM0001"]


def test_a_cartridge_that_is_not_what_its_barcode_says_is_held(site: Site) -> None:
    site.a_set("SM0001", "night-3", 3)
    site.a_set("SM0002", "night-1", 1)
    site.full("SM0001", "SM0002")
    content = site.path("SM0001").read_bytes()
    site.path("SM0001").write_bytes(content.replace(b"VOL1SM0001", b"VOL1SM0009"))
    assert site.next("SM0003") == "SM0004"
    assert "SM0009" in held(site)["SM0001"]
    assert site.path("SM0001").read_bytes() == content.replace(b"VOL1SM0001", b"VOL1SM0009")


def test_the_set_that_is_being_written_keeps_its_volumes(site: Site) -> None:
    """It is in the catalogue only when it is whole; till then its run is what keeps it."""
    site.a_set("SM0001", "night-3", 3)
    site.a_set("SM0002", "night-1", 1)
    site.a_set("SM0001", "running", 0, record=False)
    site.full("SM0001", "SM0002", "SM0003")
    site.unfinished.add("running")
    assert site.next() == "SM0003"  # empty, and full by the catalogue: written anew
    assert site.next("SM0003") == "SM0004"
    assert site.sets_on("SM0001") == ["night-3", "running"]


def test_a_set_that_a_cut_off_run_may_go_on_with_keeps_its_volume(site: Site) -> None:
    """A scan has read it in, and a complete set began later: but for the run it has expired."""
    cut_off = site.a_set("SM0001", "cut-off", 2)
    site.catalog.amend(replace(cut_off.backup_set, complete=False))
    site.a_set("SM0002", "night-1", 1)
    site.full("SM0001", "SM0002")
    site.unfinished.add("cut-off")
    assert site.next("SM0003") == "SM0004"
    assert (site.sets_on("SM0001"), held(site)) == (["cut-off"], {})
    site.unfinished.clear()
    site.catalog.change_volume("SM0004", lambda known: replace(known, held="not this one"))
    assert site.next("SM0003") == "SM0001"


def test_a_volume_that_another_run_is_writing_to_is_passed_over(site: Site) -> None:
    site.a_set("SM0001", "night-1", 1)
    library = site.lab.library()
    with library.lease() as (bay,):
        library.bring(bay, "SM0001", writable=True)
        assert site.next() == "SM0002"
    assert held(site) == {}
    assert site.next() == "SM0001"


def test_a_volume_that_is_not_in_the_library_is_passed_over(site: Site) -> None:
    site.a_set("SM0001", "night-1", 1)
    site.path("SM0001").rename(site.lab.directory.parent / "SM0001L8")
    assert site.next() == "SM0002"
    assert held(site) == {}


def test_a_recycling_that_a_crash_cut_off_is_gone_on_with(site: Site) -> None:
    """Also where the cartridge was blank at that moment, as a virtual tape is."""
    site.a_set("SM0001", "night-3", 3)
    site.a_set("SM0002", "night-1", 1)
    site.full("SM0001", "SM0002")
    site.catalog.intend_recycling("SM0001", NOW)
    site.path("SM0001").write_bytes(b"")
    site.path("SM0001").with_name("SM0001L8.idx").unlink(missing_ok=True)
    assert site.next("SM0003") == "SM0001"
    assert [one.set_id for one in site.catalog.sets()] == ["night-1"]
    assert site.catalog.volume("SM0001").recycling is None


def test_by_hand_too_a_labelling_that_was_cut_off_is_gone_on_with(site: Site) -> None:
    """The cartridge in the drive is blank still. Another blank one than that is not taken for a
    volume with expired sets."""
    site.a_set("SM0001", "night-3", 3)
    site.a_set("SM0002", "night-1", 1)
    site.full("SM0001", "SM0002", "SM0003")
    path = site.lab.directory.parent / "in-the-drive"
    path.touch()
    tape = site.lab.tape(path)
    supply = site.pool(Library([tape], None, leases=site.lab.leases, ask=Operator()))
    try:
        supply.take()
        with pytest.raises(NoSuchVolume, match=r"SM0001 into drive .*a blank volume was in it"):
            supply.next_volume(0, {"SM0002", "SM0003"})
        site.know("SM0007", recycling=NOW)
        with supply.next_volume(0, ()) as volume:
            assert volume.serial == "SM0007"
    finally:
        supply.close()
    assert site.catalog.volume("SM0007").recycling is None
    assert site.sets_on("SM0001") == ["night-3"]


def test_what_a_run_learns_of_a_volume_is_noted(site: Site) -> None:
    site.know("SM0003", state=VolumeState.RETIRED)
    with site.supply() as supply:
        supply.noted(VolumeUse(volume="SM0001", stalls=2))
        supply.noted(VolumeUse(volume="SM0001", stalls=3, full=True))
        supply.noted(VolumeUse(volume="SM0003", full=True))
    first = site.catalog.volume("SM0001")
    assert (first.state, first.stalls) == (VolumeState.FULL, 5)
    assert site.catalog.volume("SM0003").state is VolumeState.RETIRED


# --- one volume of a library, and volumes that are read


def test_one_volume_of_a_library_is_written_to_and_no_other(site: Site) -> None:
    supply = NamedVolume(site.lab.library(), "SM0002")
    try:
        supply.look()
        supply.take()
        with supply.next_volume(0, ()) as volume:
            assert volume.serial == "SM0002"
        with pytest.raises(EndOfMedium, match="SM0002 is full"):
            supply.next_volume(0, {"SM0002"})
        with supply.again(0, "SM0002") as volume:
            assert volume.serial == "SM0002"
    finally:
        supply.close()
    absent = NamedVolume(site.lab.library(), "SM0099")
    with pytest.raises(NoSuchVolume, match="SM0099 is not in the library"):
        absent.look()
    absent.close()


def test_volumes_that_a_restore_needs_are_missed_by_name_before_it_begins(site: Site) -> None:
    supply = LibraryVolumes(site.lab.library())
    supply.require(["SM0001", "SM0002"])
    site.path("SM0002").unlink()
    with pytest.raises(NoSuchVolume, match="volumes SM0002, SM0099") as missed:
        supply.require(["SM0001", "SM0002", "SM0099"])
    assert missed.value.hint
    supply.close()
