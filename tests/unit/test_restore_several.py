"""Restoring from several volumes at once: what belongs together lies on any of them."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from tests.unit.made_sets import (
    BLOCK_SIZE,
    Made,
    a_set,
    directory,
    file,
    other,
    pieces,
    write_catalogue,
    write_set,
)

from splitmirror.archive.ahead import WINDOW
from splitmirror.archive.manifest import MemberRecord, PartRecord
from splitmirror.catalog import Catalog
from splitmirror.catalog.rebuild import record_sets
from splitmirror.errors import MediumError, NoSuchVolume, VerifyFailed
from splitmirror.media import Medium
from splitmirror.media.memory import Cartridge, Memory
from splitmirror.media.supply import Loaded
from splitmirror.media.walking import VolumeReader
from splitmirror.model import Kind
from splitmirror.restore import RestoreReport, restore
from splitmirror.stream.member import Member
from splitmirror.testing.faulty_media import Fault, FaultKind, FaultyMedium
from splitmirror.verify import verify


class Shelf:
    """Volumes in memory. `most`: how many were there at once."""

    def __init__(self, drives: Mapping[str, Any], readers: int) -> None:
        self.drives, self.readers = dict(drives), readers
        self.brought: list[str] = []
        self.most = self._there = 0

    def at_hand(self) -> Sequence[str]:
        return list(self.drives)

    def require(self, serials: Sequence[str]) -> None:
        if missing := [serial for serial in serials if serial not in self.drives]:
            raise NoSuchVolume(f"volume {', '.join(missing)}", hint="Put it there.")

    @contextmanager
    def to_read(self, serial: str) -> Iterator[Loaded]:
        self.brought.append(serial)
        self._there += 1
        self.most = max(self.most, self._there)
        medium = self.drives[serial]
        medium.load(writable=False)
        yield medium, VolumeReader(medium)
        medium.unload()
        self._there -= 1

    def close(self) -> None:
        pass  # each drive is let go when it was read


def spread(
    catalog: Catalog, volumes: Sequence[Sequence[Sequence[Member]]]
) -> tuple[dict[str, Memory], Made]:
    """A set of which each volume holds some parts; their numbers go on from volume to volume."""
    drives: dict[str, Memory] = {}
    parts: list[PartRecord] = []
    members: list[tuple[int, MemberRecord]] = []
    for at, on_it in enumerate(volumes, 1):
        serial = f"SM{at:04d}"
        drives[serial] = drive = Memory(Cartridge())
        made = write_set(drive, on_it, complete=False, serial=serial, first=len(parts) + 1)
        parts += made.parts
        members += made.members
    stored = sum(part.stored for part in parts)
    record = a_set(
        "orders-1", files=len(members), stored_bytes=stored, trees=((b"data", b"/nowhere/data"),)
    )
    catalog.record(record, parts, members)
    return drives, Made(backup_set=record, parts=parts, members=members)


@pytest.fixture
def catalog(tmp_path: Path) -> Iterator[Catalog]:
    with Catalog.open(tmp_path / "catalog.db") as made:
        yield made


LARGE = os.urandom(3_000_000)


def large_set() -> list[list[list[Member]]]:
    cut = pieces(b"data/large", LARGE, 500_000)
    return [
        [[directory(b"data"), file(b"data/a", b"a" * 5000), *cut[:1]], cut[1:2]],
        [cut[2:3], [*cut[3:4], file(b"data/b", b"b" * 9000)]],
        [cut[4:5], [*cut[5:], file(b"data/c", b"c")]],
    ]


@pytest.mark.parametrize("readers", [1, 2, 3])
@pytest.mark.parametrize("turned", [False, True])
def test_a_file_whose_pieces_lie_on_several_volumes_is_joined_in_any_order(
    catalog: Catalog, tmp_path: Path, readers: int, turned: bool
) -> None:
    drives, made = spread(catalog, large_set())
    shelf = Shelf(drives, readers)
    if turned:  # the slowest drive has the first pieces
        shelf.drives["SM0001"] = Slow(drives["SM0001"])
    report = restore(shelf, catalog, made.set_id, (), tmp_path / "target")
    assert (tmp_path / "target/data/large").read_bytes() == LARGE
    assert report.files == 4 and report.bytes == made.backup_set.stored_bytes
    assert sorted(shelf.brought) == list(drives)
    assert shelf.most == readers


class Slow:
    """A drive that takes its time before it reads data."""

    def __init__(self, inner: Medium) -> None:
        self._inner = inner

    def __getattr__(self, name: str) -> object:
        return getattr(self._inner, name)

    def read(self, buffer: memoryview) -> object:
        threading.Event().wait(0.002)
        return self._inner.read(buffer)


class At:
    """A drive that does something before it reads an object."""

    def __init__(self, inner: Memory, at: int, act: Callable[[], object]) -> None:
        self._inner, self._at, self._act = inner, at, act

    def __getattr__(self, name: str) -> object:
        return getattr(self._inner, name)

    def read(self, buffer: memoryview) -> object:
        if self._inner.tell() == self._at:
            self._act()
        return self._inner.read(buffer)


def test_of_two_names_whose_data_come_at_the_same_time_one_becomes_a_link(
    catalog: Catalog, tmp_path: Path
) -> None:
    content = os.urandom(2 * WINDOW)
    here = [directory(b"data"), file(b"data/a", content)]
    there = [file(b"data/c", content, link=b"data/a")]
    drives, made = spread(catalog, [[here], [there]])
    second_window, other_has_come = 5 + WINDOW // BLOCK_SIZE, threading.Event()
    first = At(drives["SM0001"], second_window, lambda: other_has_come.wait(30))
    second = At(drives["SM0002"], second_window - 1, other_has_come.set)
    shelf = Shelf({"SM0001": first, "SM0002": second}, 2)
    restore(shelf, catalog, made.set_id, (), tmp_path / "target")
    place = tmp_path / "target/data"
    assert (place / "a").read_bytes() == content
    assert (place / "a").samefile(place / "c")
    assert sorted(shelf.brought) == list(drives)


@pytest.mark.parametrize("readers", [1, 2])
@pytest.mark.parametrize("slow", ["SM0001", "SM0002"])
def test_links_between_volumes_become_links_whichever_comes_first(
    catalog: Catalog, tmp_path: Path, readers: int, slow: str
) -> None:
    content = os.urandom(2_000_000)
    here = [
        directory(b"data"),
        file(b"data/a", content),
        other(b"data/b", Kind.HARDLINK, link=b"data/a"),
    ]
    there = [
        file(b"data/c", content, link=b"data/a"),
        file(b"data/small", b"x"),
        other(b"data/small2", Kind.HARDLINK, link=b"data/small"),
    ]
    drives, made = spread(catalog, [[here], [there]])
    shelf = Shelf(drives, readers)
    shelf.drives[slow] = Slow(drives[slow])
    report = restore(shelf, catalog, made.set_id, (), tmp_path / "target")
    place = tmp_path / "target/data"
    assert (place / "a").read_bytes() == content
    for name in "bc":
        assert (place / name).samefile(place / "a")
    assert (place / "small2").samefile(place / "small")
    assert report.files == 5


def test_a_link_alone_costs_its_own_volume_once(catalog: Catalog, tmp_path: Path) -> None:
    here = [directory(b"data"), file(b"data/x", b"x")]
    there = [file(b"data/a", b"the data"), other(b"data/b", Kind.HARDLINK, link=b"data/a")]
    drives, made = spread(catalog, [[here], [there]])
    shelf = Shelf(drives, 1)
    restore(shelf, catalog, made.set_id, [b"data/b"], tmp_path / "target")
    assert (tmp_path / "target/data/b").read_bytes() == b"the data"
    assert shelf.brought == ["SM0002"]


def test_damage_on_one_volume_costs_what_lies_there_and_nothing_else(
    catalog: Catalog, tmp_path: Path
) -> None:
    drives, made = spread(catalog, large_set())
    data = made.parts[3].position
    assert data is not None
    faulty = FaultyMedium(
        drives["SM0002"], [Fault(kind=FaultKind.READ_ERROR, object=data.object + 4)]
    )
    shelf = Shelf({**drives, "SM0002": faulty}, 3)
    with pytest.raises(VerifyFailed, match="data/large") as caught:
        restore(shelf, catalog, made.set_id, (), tmp_path / "target")
    report = caught.value.facts["report"]
    assert isinstance(report, RestoreReport)
    assert {bad.name for bad in report.mismatches} == {b"data/large"}
    names = sorted(path.name for path in (tmp_path / "target/data").iterdir())
    assert names == ["a", "b", "c"]


def test_a_drive_that_fails_stops_the_others_and_its_error_is_told(
    catalog: Catalog, tmp_path: Path
) -> None:
    drives, made = spread(catalog, large_set())

    class Gone(Shelf):
        @contextmanager
        def to_read(self, serial: str) -> Iterator[Loaded]:
            if serial == "SM0003":
                raise MediumError("the drive is gone", hint="Look for it.")
            with super().to_read(serial) as loaded:
                yield loaded

    with pytest.raises(MediumError, match="the drive is gone"):
        restore(Gone(drives, 2), catalog, made.set_id, (), tmp_path / "target")


def test_a_missing_volume_is_named_and_nothing_is_written(catalog: Catalog, tmp_path: Path) -> None:
    drives, made = spread(catalog, large_set())
    del drives["SM0002"]
    with pytest.raises(NoSuchVolume, match="SM0002"):
        restore(Shelf(drives, 2), catalog, made.set_id, (), tmp_path / "target")
    assert not (tmp_path / "target").exists()


@pytest.mark.parametrize("readers", [1, 3])
def test_verify_puts_together_what_it_found_on_several_volumes(
    catalog: Catalog, tmp_path: Path, readers: int
) -> None:
    drives, made = spread(catalog, large_set())
    write_catalogue(drives["SM0003"], made)
    shelf = Shelf(drives, readers)
    report = verify(shelf, made.set_id)
    assert report.sound, report.damage
    assert (report.parts, report.files) == (6, len(made.members))
    assert report.bytes == made.backup_set.stored_bytes
    assert sorted(shelf.brought) == list(drives)


def test_a_part_that_was_written_twice_is_taken_once(catalog: Catalog) -> None:
    drive = Memory(Cartridge())
    for _ in range(2):  # it was whole in the moment before a crash, but not noted
        write_set(drive, [[directory(b"data"), file(b"data/a", b"a")]], complete=False)
    (found,) = record_sets(Shelf({"SM0001": drive}, 1), catalog)
    assert (found.complete, found.files) == (False, 2)
    assert [part.number for part in catalog.parts(found.set_id)] == [1]
