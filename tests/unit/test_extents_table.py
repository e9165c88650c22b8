"""The compact table of files."""

from __future__ import annotations

import dataclasses
import io
import pickle
import tracemalloc
from pathlib import Path

import pytest

from splitmirror.databases import by_name
from splitmirror.errors import JournalDamaged
from splitmirror.extents import table as table_module
from splitmirror.extents.table import FileTable
from splitmirror.model import Attributes, Extent, ExtentFlag, ExtentMap, FileEntry, Kind

ONE_EXTENT = ExtentMap.of([Extent(0, 1 << 30, 8192, 0)])


def entry(
    name: bytes,
    kind: Kind = Kind.FILE,
    *,
    link: bytes = b"",
    extents: ExtentMap = ONE_EXTENT,
    xattrs: tuple[tuple[bytes, bytes], ...] = (),
    tree: int = 0,
    ino: int = 7,
) -> FileEntry:
    return FileEntry(
        name=name,
        tree=tree,
        attributes=Attributes(
            kind=kind,
            mode=0o640,
            uid=101,
            gid=4_000_000_000,
            size=8192 if kind is Kind.FILE else 0,
            mtime_ns=-1_700_000_000_123_456_789,
            link=link,
            xattrs=xattrs,
        ),
        ino=ino,
        nlink=1,
        ctime_ns=1_700_000_000_123_456_789,
        extents=extents if kind is Kind.FILE else ExtentMap(),
    )


def filled(*entries: FileEntry) -> FileTable:
    table = FileTable(looked_ns=5, has_xattrs=True)
    for each in entries:
        table.append(each)
    return table


EXAMPLES = (
    entry(b"data", Kind.DIRECTORY),
    entry(b"data/\xff\n", xattrs=((b"user.a", b"\0"),)),
    entry(b"data/empty", extents=ExtentMap()),
    entry(b"data/link", Kind.SYMLINK, link=b"../\xfe"),
    entry(b"data/other", Kind.HARDLINK, link=b"data/\xff\n"),
    entry(b"wal", Kind.DIRECTORY, tree=70_000),
)


def dumped(table: FileTable) -> bytes:
    out = io.BytesIO()
    table.dump(out)
    return out.getvalue()


def test_a_file_costs_at_most_150_bytes_beyond_its_path() -> None:
    count = 100_000
    tracemalloc.start()
    try:
        table = FileTable()
        for at in range(count):
            extents = ExtentMap.of([Extent(0, at * 8192, 8192, 0)])
            table.append(entry(b"data/base/16384/%d" % at, extents=extents, ino=at))
        assert table.find(b"data/base/16384/99999") == 99_999  # its index counts too
        used, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()

    paths = sum(map(len, table.names))

    assert (used - paths) / count <= 150


def test_a_file_from_stat_is_as_one_that_was_made(tmp_path: Path) -> None:
    (tmp_path / "f").write_bytes(b"12345")
    status = (tmp_path / "f").stat()
    xattrs = ((b"user.a", b"1"),)
    table = FileTable()

    table.append_file(b"t/f", 3, status, ONE_EXTENT.packed, xattrs)
    table.append_status(b"t/g", 3, Kind.FILE, status, extents=ONE_EXTENT, xattrs=xattrs)

    first, second = table
    assert dataclasses.replace(second, name=b"t/f") == first
    assert first.attributes.size == 5
    assert table.xattrs(0) == xattrs
    assert (table.tree(0), table.kinds(), list(table.inodes())) == (
        3, b"00", [(status.st_ino, 1)] * 2,
    )  # fmt: skip


def test_stretches_of_a_table_are_taken_over_with_their_maps() -> None:
    before = filled(*EXAMPLES)
    other = filled(entry(b"new", extents=ExtentMap.of([Extent(0, 7, 1, 0), Extent(1, 3, 1, 0)])))

    table = before.taking_over()
    table.extend_from(before, 0, 2)
    table.append_from(other, 0)
    table.extend_from(before, 3, 6)

    assert tuple(table) == (*EXAMPLES[:2], *other, *EXAMPLES[3:])
    assert (table.looked_ns, table.has_xattrs) == (5, True)
    assert tuple(before) == EXAMPLES
    assert tuple(FileTable.load(io.BytesIO(dumped(table)))) == tuple(table)


def test_what_was_appended_is_given_back() -> None:
    assert tuple(filled(*EXAMPLES)) == EXAMPLES


def test_an_entry_beyond_the_end_is_an_index_error() -> None:
    table = filled(*EXAMPLES)

    for at in (len(EXAMPLES), -1):
        with pytest.raises(IndexError):
            table[at]


def test_a_name_is_found_also_when_it_came_after_the_first_search() -> None:
    table = filled(EXAMPLES[0])

    assert table.find(b"wal") is None
    table.append(EXAMPLES[-1])
    assert table.find(b"wal") == 1


def test_an_entry_taken_from_another_table_keeps_all_but_tree_and_map() -> None:
    other = filled(*EXAMPLES)
    fragments = ExtentMap.of([Extent(0, 5, 1, 0), Extent(1, 9, 1, 0)])
    table = FileTable()

    for at in range(len(other)):
        table.append_from(other, at)
    table.append_from(filled(entry(b"new")), 0, tree=3, extents=fragments)

    assert tuple(table) == (*EXAMPLES, entry(b"new", tree=3, extents=fragments))


def test_stored_bytes_leave_out_what_reads_as_zeros() -> None:
    extents = ExtentMap.of([Extent(0, 0, 4096, 0), Extent(8192, 8192, 4096, ExtentFlag.UNWRITTEN)])
    unwritten = ExtentMap.of([Extent(0, 0, 4096, ExtentFlag.UNWRITTEN)])
    table = filled(
        entry(b"a", extents=extents),
        entry(b"b"),
        entry(b"c", extents=unwritten),
        entry(b"d", extents=ExtentMap()),
    )

    assert [table.stored(at) for at in range(4)] == [4096, 8192, 0, 0]
    assert table.stored_bytes == 4096 + 8192


def test_a_loaded_table_is_the_one_that_was_dumped() -> None:
    table = filled(*EXAMPLES)
    reader = io.BytesIO(dumped(table) + b"what follows")

    loaded = FileTable.load(reader)

    assert tuple(loaded) == EXAMPLES
    assert (loaded.looked_ns, loaded.has_xattrs) == (5, True)
    assert reader.read() == b"what follows"


def test_a_pickled_table_is_the_same() -> None:
    assert tuple(pickle.loads(pickle.dumps(filled(*EXAMPLES)))) == EXAMPLES


def test_a_table_cut_off_anywhere_is_refused() -> None:
    whole = dumped(filled(*EXAMPLES))

    for length in range(len(whole)):
        with pytest.raises(JournalDamaged):
            FileTable.load(io.BytesIO(whole[:length]))


def test_a_table_of_another_version_is_refused_by_its_version() -> None:
    whole = bytearray(dumped(filled(*EXAMPLES)))
    whole[8] = 99

    with pytest.raises(JournalDamaged, match="version 99"):
        FileTable.load(io.BytesIO(bytes(whole)))


def test_a_damaged_byte_is_refused_or_changes_nothing_but_values() -> None:
    """Lengths and places are checked; what a flipped byte of a value means is the digest's part."""
    whole = dumped(filled(*EXAMPLES))

    for at in range(len(whole)):
        damaged = bytearray(whole)
        damaged[at] ^= 0xFF
        try:
            loaded = FileTable.load(io.BytesIO(bytes(damaged)))
        except JournalDamaged:
            continue
        assert len(list(loaded.names)) == len(EXAMPLES)
        for index in range(len(loaded)):
            loaded.packed_extents(index)
            loaded.link(index)


def test_a_hard_link_comes_after_its_target_whatever_the_order_says() -> None:
    table = filled(
        entry(b"t", Kind.DIRECTORY),
        entry(b"t/z"),
        entry(b"t/m"),
        entry(b"t/a", Kind.HARDLINK, link=b"t/z"),
        entry(b"t/zz", Kind.HARDLINK, link=b"t/m"),
    )

    names = [table.names[at] for at in table.ordered(by_name)]

    assert names == [b"t", b"t/m", b"t/z", b"t/a", b"t/zz"]


@pytest.mark.parametrize("at_once", [1, 3, 7, 1000])
def test_an_order_is_the_same_however_much_is_sorted_at_once(
    monkeypatch: pytest.MonkeyPatch, at_once: int
) -> None:
    names = [b"%d" % (at * 37 % 100) for at in range(100)]
    tables = [filled(*map(entry, each)) for each in (names, sorted(names), [])]
    monkeypatch.setattr(table_module, "_SORTED_AT_ONCE", at_once)

    for table in tables:
        assert [table.names[at] for at in table.ordered(by_name)] == sorted(table.names)
