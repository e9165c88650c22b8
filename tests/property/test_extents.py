"""Extent arithmetic, and the table's round trip, on whatever hypothesis thinks of."""

from __future__ import annotations

import io
from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from splitmirror.extents.check import check
from splitmirror.extents.table import FileTable
from splitmirror.model import (
    NOT_PLAIN,
    Attributes,
    Extent,
    ExtentFlag,
    ExtentMap,
    FileEntry,
    Kind,
    Leg,
    Run,
)

U64 = st.integers(0, 2**64 - 1)
NS = st.integers(-(2**63), 2**63 - 1)
NAMES = st.binary(min_size=1, max_size=40).filter(lambda name: b"\0" not in name)
FLAGS = st.sampled_from([0, *(int(flag) for flag in ExtentFlag)])


@st.composite
def extent_maps(draw: st.DrawFn) -> ExtentMap:
    """Extents in logical order, with holes between some."""
    extents, at = [], 0
    for hole, length, physical, flags in draw(
        st.lists(
            st.tuples(st.integers(0, 3), st.integers(1, 5), st.integers(0, 2**50), FLAGS),
            max_size=12,
        )
    ):
        at += hole
        extents.append(Extent(at, physical, length, flags))
        at += length
    return ExtentMap.of(extents)


@st.composite
def entries(draw: st.DrawFn, name: bytes) -> FileEntry:
    kind = draw(st.sampled_from(list(Kind)))
    return FileEntry(
        name=name,
        tree=draw(st.integers(0, 2**32 - 1)),
        attributes=Attributes(
            kind=kind,
            mode=draw(st.integers(0, 0o7777)),
            uid=draw(st.integers(0, 2**32 - 1)),
            gid=draw(st.integers(0, 2**32 - 1)),
            size=draw(U64),
            mtime_ns=draw(NS),
            link=draw(st.binary(max_size=20)),
            rdev=draw(U64),
            xattrs=tuple(draw(st.lists(st.tuples(st.binary(), st.binary()), max_size=3))),
        ),
        ino=draw(U64),
        nlink=draw(st.integers(0, 2**32 - 1)),
        ctime_ns=draw(NS),
        extents=draw(extent_maps()),
    )


@st.composite
def file_lists(draw: st.DrawFn) -> list[FileEntry]:
    return [draw(entries(name)) for name in draw(st.lists(NAMES, max_size=8, unique=True))]


def table_of(files: list[FileEntry]) -> FileTable:
    table = FileTable()
    for entry in files:
        table.append(entry)
    return table


@given(file_lists())
def test_a_table_gives_back_what_it_was_given_also_from_disk(files: list[FileEntry]) -> None:
    table = table_of(files)
    out = io.BytesIO()
    table.dump(out)

    loaded = FileTable.load(io.BytesIO(out.getvalue()))

    assert list(table) == files
    assert list(loaded) == files
    assert all(loaded.find(entry.name) == at for at, entry in enumerate(files))


@given(extent_maps())
def test_data_ranges_cover_just_the_bytes_of_written_extents(extents: ExtentMap) -> None:
    expected = {
        byte
        for extent in extents
        if not extent.flags & ExtentFlag.UNWRITTEN
        for byte in range(extent.logical, extent.logical + extent.length)
    }

    ranges = extents.data_ranges()

    covered = [byte for at, length in ranges for byte in range(at, at + length)]
    assert covered == sorted(expected)
    assert all(a + n < b for (a, n), (b, _) in pairwise(ranges))


@given(extent_maps())
def test_a_map_is_plain_unless_an_extent_is_not(extents: ExtentMap) -> None:
    assert extents.plain == all(extent.flags & NOT_PLAIN == 0 for extent in extents)


@given(
    st.lists(st.tuples(st.integers(1, 50), st.integers(0, 500)), min_size=1, max_size=6),
    st.data(),
)
def test_a_located_range_of_a_leg_has_the_bytes_of_the_volume(
    pieces: list[tuple[int, int]], data: st.DataObject
) -> None:
    runs = tuple(Run(path=f"d{n}", offset=o, length=length)
                 for n, (length, o) in enumerate(pieces))  # fmt: skip
    leg = Leg(split_id="s", volumes={"v": runs})
    volume = [(run.path, run.offset + byte) for run in runs for byte in range(run.length)]
    begin = data.draw(st.integers(0, len(volume)))
    length = data.draw(st.integers(0, len(volume) - begin))

    found = leg.locate("v", begin, length)

    assert [(run.path, run.offset + byte) for run in found for byte in range(run.length)] == volume[
        begin : begin + length
    ]


@given(file_lists(), file_lists())
def test_the_check_counts_every_mapped_name_once(
    early: list[FileEntry], now: list[FileEntry]
) -> None:
    mapped = (Kind.FILE, Kind.HARDLINK)
    before = {entry.name for entry in early if entry.attributes.kind in mapped}
    after = {entry.name for entry in now if entry.attributes.kind in mapped}
    names = {entry.name for entry in now}

    checked = check(table_of(early), table_of(now))

    assert list(checked.table) == now
    assert checked.counts.early == len(before)
    assert set(checked.new) == after - before
    assert set(checked.gone) == before - names
    assert set(checked.renewed) <= before & names


@given(file_lists())
def test_a_table_checked_against_itself_has_nothing_renewed(files: list[FileEntry]) -> None:
    counts = check(table_of(files), table_of(files)).counts

    assert (counts.renewed, counts.new, counts.gone) == (0, 0, 0)
