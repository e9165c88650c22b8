"""What the check makes of an early table and the split's own."""

from __future__ import annotations

import dataclasses

import pytest

from splitmirror.extents.check import NAMED, check
from splitmirror.extents.table import FileTable
from splitmirror.model import Attributes, Extent, ExtentMap, FileEntry, Kind, MapCounts

FILE = FileEntry(
    name=b"t/f",
    tree=0,
    attributes=Attributes(
        kind=Kind.FILE, mode=0o600, uid=0, gid=0, size=4096, mtime_ns=1, link=b"", rdev=0
    ),
    ino=11,
    nlink=1,
    ctime_ns=1,
    extents=ExtentMap.of([Extent(0, 8192, 4096, 0)]),
)
MOVED = ExtentMap.of([Extent(0, 65536, 4096, 0)])


def changed(entry: FileEntry, **attributes: object) -> FileEntry:
    return dataclasses.replace(
        entry,
        attributes=dataclasses.replace(entry.attributes, **attributes),  # type: ignore[arg-type]
    )


def table(*entries: FileEntry) -> FileTable:
    filled = FileTable()
    for entry in entries:
        filled.append(entry)
    return filled


@pytest.mark.parametrize(
    "now",
    [
        dataclasses.replace(FILE, extents=MOVED),
        dataclasses.replace(FILE, ino=12),
        changed(FILE, size=4000),
        changed(FILE, kind=Kind.SYMLINK, link=b"elsewhere"),
        changed(FILE, kind=Kind.HARDLINK, link=b"t/e"),
    ],
    ids=["relocated", "replaced", "truncated", "a link now", "a hard link now"],
)
def test_a_file_whose_bytes_lie_elsewhere_is_renewed(now: FileEntry) -> None:
    checked = check(table(FILE), table(now))

    assert checked.counts == MapCounts(early=1, renewed=1)
    assert checked.renewed == (b"t/f",)
    assert list(checked.table) == [now]


@pytest.mark.parametrize(
    "now",
    [
        changed(FILE, mtime_ns=2),
        changed(FILE, mode=0o640, uid=5),
        changed(FILE, xattrs=((b"user.a", b"1"),)),
        dataclasses.replace(FILE, ctime_ns=9, nlink=2),
    ],
    ids=["touched", "given away", "attributed", "linked"],
)
def test_a_file_with_other_attributes_only_is_not_renewed_but_has_them(now: FileEntry) -> None:
    checked = check(table(FILE), table(now))

    assert checked.counts == MapCounts(early=1)
    assert list(checked.table) == [now]


def test_a_renamed_file_is_gone_and_new() -> None:
    renamed = dataclasses.replace(FILE, name=b"t/g")

    checked = check(table(FILE), table(renamed))

    assert checked.counts == MapCounts(early=1, new=1, gone=1)
    assert (checked.gone, checked.new) == ((b"t/f",), (b"t/g",))


def test_directories_and_links_have_no_maps_and_are_not_counted() -> None:
    directory = changed(dataclasses.replace(FILE, extents=ExtentMap()), kind=Kind.DIRECTORY)

    assert check(table(directory), table()).counts == MapCounts()
    assert check(table(), table(directory)).counts == MapCounts()


def test_the_lists_of_names_are_bounded_and_the_counts_are_not() -> None:
    many = [dataclasses.replace(FILE, name=b"t/%06d" % at) for at in range(NAMED + 5)]

    checked = check(table(), table(*many))

    assert checked.counts.new == NAMED + 5
    assert len(checked.new) == NAMED


def test_files_that_are_clones_of_the_early_ones_are_the_same_where_they_lie_alike() -> None:
    clone = dataclasses.replace(FILE, ino=12)
    assert check(table(FILE), table(clone)).counts == MapCounts(early=1, renewed=1)
    assert check(table(FILE), table(clone), inodes_differ=True).counts == MapCounts(early=1)
    other = dataclasses.replace(clone, extents=MOVED)
    assert check(table(FILE), table(other), inodes_differ=True).renewed == (b"t/f",)
